package netlab

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// A TUN device opened with IFF_VNET_HDR puts this header, the kernel's struct
// virtio_net_hdr, before every packet; its numbers are in the machine's order.
const vnetLen = 10

const (
	vnetNeedsChecksum = 1

	gsoNone = 0
	gsoTCP4 = 1
	gsoTCP6 = 4
	gsoUDP  = 5
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	// maxHead is the most that the headers of a segmented packet may take.
	maxHead = 512
	// maxPacket is the longest thing to be read from a device.
	maxPacket = vnetLen + 65535
)

var errMalformed = errors.New("malformed packet")

// packet says where things are in a packet read from a device, at offsets from
// the IP header.
type packet struct {
	v6      bool
	gso     byte
	length  int // all of it
	l4      int // of the transport header, where gso is set
	head    int // headers in front of every segment; length where gso is not set
	segment int // payload of every segment but the last
	n       int // segments, at least 1
}

// size is how long segment i is on the wire, IP header included.
func (p packet) size(i int) int {
	if p.gso == gsoNone {
		return p.length
	}
	return p.head + min(p.segment, p.length-p.head-i*p.segment)
}

// parsePacket reads what a device gave: its header and an IP packet.
func parsePacket(b []byte) (packet, error) {
	if len(b) < vnetLen+20 || len(b) > maxPacket {
		return packet{}, errMalformed
	}
	flags, gso := b[0], b[1]
	segment := int(binary.NativeEndian.Uint16(b[4:]))
	l4 := int(binary.NativeEndian.Uint16(b[6:]))
	checksum := int(binary.NativeEndian.Uint16(b[8:]))
	ip := b[vnetLen:]
	p := packet{gso: gso, length: len(ip), head: len(ip), n: 1}
	protocol, first := byte(0), 0
	switch ip[0] >> 4 {
	case 4:
		first = int(ip[0]&15) * 4
		if first < 20 || first > len(ip) || int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
			return packet{}, errMalformed
		}
		protocol = ip[9]
	case 6:
		if len(ip) < 40 || int(binary.BigEndian.Uint16(ip[4:]))+40 != len(ip) {
			return packet{}, errMalformed
		}
		p.v6, first = true, 40
		protocol = ip[6]
	default:
		return packet{}, errMalformed
	}
	if flags&vnetNeedsChecksum != 0 && (l4 < first || l4+checksum+2 > len(ip)) {
		return packet{}, errMalformed
	}
	if gso == gsoNone {
		return p, nil
	}
	// A segmented packet: the header says where the transport header is, and
	// extension headers may stand in between in IPv6.
	if flags&vnetNeedsChecksum == 0 || segment == 0 || l4 < first || !p.v6 && l4 != first {
		return packet{}, errMalformed
	}
	p.l4, p.segment = l4, segment
	switch {
	case gso == gsoTCP4 && !p.v6 && protocol == protoTCP, gso == gsoTCP6 && p.v6:
		if checksum != 16 || l4+20 > len(ip) {
			return packet{}, errMalformed
		}
		n := int(ip[l4+12]>>4) * 4
		if n < 20 {
			return packet{}, errMalformed
		}
		p.head = l4 + n
	case gso == gsoUDP && (p.v6 || protocol == protoUDP):
		if checksum != 6 {
			return packet{}, errMalformed
		}
		p.head = l4 + 8
	default:
		return packet{}, errMalformed
	}
	if p.head > maxHead || p.head >= len(ip) {
		return packet{}, errMalformed
	}
	p.n = (len(ip) - p.head + segment - 1) / segment
	return p, nil
}

// cut gives segments from up to to of a packet as a device takes them: a device
// header with the packet's headers, written to scratch, and the payload, which
// lies in b.
func (p packet) cut(b []byte, from, to int, scratch *[vnetLen + maxHead]byte) (head, payload []byte) {
	head = scratch[:vnetLen+p.head]
	copy(head, b)
	ip := head[vnetLen:]
	end := min(p.length, p.head+to*p.segment)
	payload = b[vnetLen+p.head+from*p.segment : vnetLen+end]
	length := p.head + len(payload)

	binary.NativeEndian.PutUint16(head[2:], uint16(p.head))
	if to-from == 1 {
		head[1] = gsoNone
		binary.NativeEndian.PutUint16(head[2:], 0)
		binary.NativeEndian.PutUint16(head[4:], 0)
	}
	if p.v6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(length-40))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(length))
		binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(from))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:p.l4], 0)))
	}
	// The checksum field holds the sum of the pseudo header, of which only the
	// length changes.
	transport := ip[p.l4:]
	field := transport[6:]
	if p.gso == gsoUDP {
		binary.BigEndian.PutUint16(transport[4:], uint16(length-p.l4))
	} else {
		field = transport[16:]
		binary.BigEndian.PutUint32(transport[4:], binary.BigEndian.Uint32(transport[4:])+uint32(from*p.segment))
		if to != p.n {
			transport[13] &^= 0x09 // FIN and PSH are the last segment's
		}
		if from > 0 {
			transport[13] &^= 0x80 // CWR is the first one's
		}
	}
	was := uint32(p.length - p.l4)
	now := uint32(length - p.l4)
	binary.BigEndian.PutUint16(field, fold(uint64(binary.BigEndian.Uint16(field))+uint64(0xffff^was&0xffff)+uint64(now)))
	return head, payload
}

// sum adds up 16-bit words for an internet checksum.
func sum(b []byte, initial uint64) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		initial += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		initial += uint64(b[0]) << 8
	}
	return initial
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// Where a packet is to go.
const (
	toNobody = -1 // an address that no node has
	toAll    = -2 // multicast, broadcast and link-local: the kernel's own noise
)

// destination gives the number in the block of the node that a packet is for,
// toNobody or toAll.
func (b addressBlock) destination(ip []byte, v6 bool) int {
	if v6 {
		d := [16]byte(ip[24:40])
		if d[0] == 0xff || d[0] == 0xfe && d[1]&0xc0 == 0x80 {
			return toAll
		}
		prefix := b.v6.Addr().As16()
		if [8]byte(d[:8]) != [8]byte(prefix[:8]) {
			return toNobody
		}
		if low := binary.BigEndian.Uint64(d[8:]); low < blockSize {
			return int(low)
		}
		return toNobody
	}
	d := binary.BigEndian.Uint32(ip[16:])
	if d>>28 >= 14 { // multicast, reserved and 255.255.255.255
		return toAll
	}
	base := b.v4.Addr().As4()
	n := d - binary.BigEndian.Uint32(base[:])
	switch {
	case n >= blockSize:
		return toNobody
	case n == blockSize-1:
		return toAll
	}
	return int(n)
}

// reason of an error that the relay answers with.
type reason int

const (
	noLink reason = iota // net unreachable
	noHost               // host unreachable
)

// unreachable makes the answer to a packet that cannot be delivered: a device
// header and an ICMP error of at most 576 bytes from the router; nil when
// RFC 1122 or RFC 4443 forbids one.
func unreachable(ip []byte, p packet, why reason, router addressBlock) []byte {
	if p.v6 {
		return unreachable6(ip, why, router.addr6(routerIndex))
	}
	header := int(ip[0]&15) * 4
	src := [4]byte(ip[12:16])
	from := netip.AddrFrom4(src)
	if from.IsMulticast() || from.IsUnspecified() || src[0] >= 240 || src[0] == 127 ||
		binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
		return nil
	}
	if ip[9] == protoICMP {
		// Only queries are answered: an error about an error may go on for ever.
		if len(ip) <= header || ip[header] != 8 && ip[header] != 0 && ip[header] != 13 {
			return nil
		}
	}
	quoted := ip[:min(len(ip), 576-28)]
	out := make([]byte, vnetLen+28+len(quoted))
	b := out[vnetLen:]
	b[0], b[8], b[9] = 0x45, 64, protoICMP
	b[1] = 0xc0 // internetwork control, as routers send it
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	router4 := router.addr4(routerIndex).As4()
	copy(b[12:16], router4[:])
	copy(b[16:20], src[:])
	binary.BigEndian.PutUint16(b[10:], ^fold(sum(b[:20], 0)))
	icmp := b[20:]
	icmp[0], icmp[1] = 3, byte(why) // net is code 0, host code 1
	copy(icmp[8:], quoted)
	binary.BigEndian.PutUint16(icmp[2:], ^fold(sum(icmp, 0)))
	return out
}

func unreachable6(ip []byte, why reason, router netip.Addr) []byte {
	src := netip.AddrFrom16([16]byte(ip[8:24]))
	if src.IsMulticast() || src.IsUnspecified() || src.IsLoopback() {
		return nil
	}
	if ip[6] == protoICMPv6 && (len(ip) <= 40 || ip[40] < 128) {
		return nil
	}
	quoted := ip[:min(len(ip), 1280-48)]
	out := make([]byte, vnetLen+48+len(quoted))
	b := out[vnetLen:]
	b[0], b[6], b[7] = 0x60, protoICMPv6, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	from, to := router.As16(), src.As16()
	copy(b[8:24], from[:])
	copy(b[24:40], to[:])
	icmp := b[40:]
	icmp[0] = 1
	if why == noHost {
		icmp[1] = 3 // address unreachable; 0 is no route
	}
	copy(icmp[8:], quoted)
	s := sum(b[8:40], 0) + uint64(len(icmp)) + protoICMPv6
	binary.BigEndian.PutUint16(icmp[2:], ^fold(sum(icmp, s)))
	return out
}
