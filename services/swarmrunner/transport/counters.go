package transport

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Counters are sums over a network's interfaces, since they exist.
type Counters struct {
	TxBytes, RxBytes     uint64
	TxPackets, RxPackets uint64
	LinkHeaders          uint64 // the part of TxBytes that is Ethernet's; 0 for loopback and TUN devices
	Opens                uint64 // TCP connections opened, from both ends: first packets sent
}

func parseCounters(dev, snmp []byte, ethernet map[string]bool) (Counters, error) {
	devices, err := parseDevices(dev)
	if err != nil {
		return Counters{}, fmt.Errorf("interfaces' counters: %w", err)
	}
	var c Counters
	for _, d := range devices {
		c.TxBytes += d.txBytes
		c.RxBytes += d.rxBytes
		c.TxPackets += d.txPackets
		c.RxPackets += d.rxPackets
		if ethernet[d.name] {
			c.LinkHeaders += ethernetHeader * d.txPackets
		}
	}
	if c.Opens, err = parseOpens(snmp); err != nil {
		return Counters{}, fmt.Errorf("TCP's counters: %w", err)
	}
	return c, nil
}

type device struct {
	name                                   string
	rxBytes, rxPackets, txBytes, txPackets uint64
}

// parseDevices reads /proc/net/dev: two lines of headings, then a line for each
// interface with eight figures of what it received and eight of what it sent.
func parseDevices(b []byte) ([]device, error) {
	var devices []device
	for number, line := range strings.Split(strings.TrimRight(string(b), "\n"), "\n") {
		if number < 2 {
			continue
		}
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 16 {
			return nil, fmt.Errorf("line %d is not an interface: %.80q", number+1, line)
		}
		d := device{name: strings.TrimSpace(name)}
		for _, f := range []struct {
			at int
			to *uint64
		}{{0, &d.rxBytes}, {1, &d.rxPackets}, {8, &d.txBytes}, {9, &d.txPackets}} {
			v, err := strconv.ParseUint(fields[f.at], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", number+1, err)
			}
			*f.to = v
		}
		devices = append(devices, d)
	}
	if len(devices) == 0 {
		return nil, fmt.Errorf("no interface")
	}
	return devices, nil
}

// parseOpens reads /proc/net/snmp: a line of names and a line of figures for each
// protocol.
func parseOpens(b []byte) (uint64, error) {
	var names []string
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte("Tcp:"))
		if !ok {
			continue
		}
		fields := strings.Fields(string(rest))
		if names == nil {
			names = fields
			continue
		}
		if len(fields) != len(names) {
			return 0, fmt.Errorf("%d figures for %d names", len(fields), len(names))
		}
		var opens uint64
		found := 0
		for i, name := range names {
			if name == "ActiveOpens" || name == "PassiveOpens" {
				v, err := strconv.ParseUint(fields[i], 10, 64)
				if err != nil {
					return 0, fmt.Errorf("%s: %w", name, err)
				}
				opens += v
				found++
			}
		}
		if found != 2 {
			return 0, fmt.Errorf("ActiveOpens and PassiveOpens are there %d times", found)
		}
		return opens, nil
	}
	return 0, fmt.Errorf("no line of TCP's")
}

// Account says what the bytes were that interfaces sent.
type Account struct {
	Interface    int64 // what the interfaces counted
	Sockets      int64 // content of TCP connections and of UDP datagrams
	SentAgain    int64 // content that TCP sent again
	Headers      int64 // of TCP, UDP, IP and Ethernet
	Unattributed int64 // the rest; negative when more is explained than was counted
}

// Reconcile holds what interfaces sent between two readings against what sockets
// did in the meantime. When all sockets of the network at both ends are among
// them,
//
//	interface = sockets + sent again + headers + unattributed
//
// where headers are
//
//	UDP datagrams · (IP + 8)
//	+ (packets − UDP datagrams) · (mean header of the TCP connections, usually IP + 20 + 12 for timestamps)
//	+ first packets · 8 (options that only they have)
//	+ packets · 14 on Ethernet
//
// The packets are the interfaces', not TCP's: what the kernel hands over in one
// piece of up to 64 KiB (segmentation offload) is one packet with one header to
// the counter, while packets that only acknowledge count like any other.
//
// Not accounted for: ICMP, what others use the interfaces for, lists of selective
// acknowledgements (8 bytes per gap and packet), resets that a closed port sends
// (12 bytes too many), and UDP datagrams in fragments. Datagrams are taken to go
// by IPv6 only where all TCP connections do.
func Reconcile(before, after Counters, used Usage) Account {
	packets := int64(after.TxPackets - before.TxPackets)
	datagrams := min(int64(used.UDP.Sent), packets)
	header := float64(usualHeader)
	ip := int64(ipv4Header)
	if s := used.TCP; s.SegmentsOut > 0 {
		header = float64(s.HeaderOut-min(synOptions*s.Connections, s.HeaderOut)) / float64(s.SegmentsOut)
		if header >= ipv6Header+tcpHeader {
			ip = ipv6Header
		}
	}
	a := Account{
		Interface: int64(after.TxBytes - before.TxBytes),
		Sockets:   int64(used.TCP.Sent + used.UDP.SentBytes),
		SentAgain: int64(used.TCP.SentAgain),
		Headers: datagrams*(ip+udpHeader) +
			int64(float64(packets-datagrams)*header) +
			synOptions*int64(after.Opens-before.Opens) +
			int64(after.LinkHeaders-before.LinkHeaders),
	}
	a.Unattributed = a.Interface - a.Sockets - a.SentAgain - a.Headers
	return a
}
