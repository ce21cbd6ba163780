package swarmrunner

import "net/netip"

func loopback(block, host byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, block, host}) }
