package netlab

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// segmented makes a TCP or UDP packet with n segments, as a device gives it.
func segmented(v6, udp bool, segment, payload int) []byte {
	l4 := 20
	if v6 {
		l4 = 40
	}
	header := 32
	if udp {
		header = 8
	}
	b := make([]byte, vnetLen+l4+header+payload)
	b[0] = vnetNeedsChecksum
	binary.NativeEndian.PutUint16(b[4:], uint16(segment))
	binary.NativeEndian.PutUint16(b[6:], uint16(l4))
	ip := b[vnetLen:]
	protocol := byte(protoTCP)
	field := 16
	if udp {
		protocol, field = protoUDP, 6
	}
	binary.NativeEndian.PutUint16(b[8:], uint16(field))
	switch {
	case udp:
		b[1] = gsoUDP
	case v6:
		b[1] = gsoTCP6
	default:
		b[1] = gsoTCP4
	}
	from, to := block(0).addr4(2).AsSlice(), block(0).addr4(3).AsSlice()
	if v6 {
		from, to = block(0).addr6(2).AsSlice(), block(0).addr6(3).AsSlice()
		ip[0], ip[6], ip[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
		copy(ip[8:], from)
		copy(ip[24:], to)
	} else {
		ip[0], ip[8], ip[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[4:], 65530)
		copy(ip[12:], from)
		copy(ip[16:], to)
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:20], 0)))
	}
	transport := ip[l4:]
	if udp {
		binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)))
	} else {
		binary.BigEndian.PutUint32(transport[4:], 0xfffffff0)
		transport[12], transport[13] = 8<<4, 0x99 // CWR, ACK, PSH, FIN
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := header; i < len(transport); i++ {
		transport[i] = byte(random.Uint32())
	}
	binary.BigEndian.PutUint16(transport[field:], pseudo(ip, l4, protocol))
	return b
}

// pseudo is the sum of the pseudo header, from scratch.
func pseudo(ip []byte, l4 int, protocol byte) uint16 {
	addresses := ip[12:20]
	if ip[0]>>4 == 6 {
		addresses = ip[8:40]
	}
	return fold(sum(addresses, uint64(len(ip)-l4)+uint64(protocol)))
}

func TestCut(t *testing.T) {
	for _, c := range []struct{ v6, udp bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		const segment, payload = 1000, 5300
		b := segmented(c.v6, c.udp, segment, payload)
		p, err := parsePacket(b)
		if err != nil || p.n != 6 {
			t.Fatalf("%+v: %d segments, %v", c, p.n, err)
		}
		total := 0
		for i := range p.n {
			total += p.size(i)
		}
		if total != payload+6*p.head {
			t.Errorf("%+v: segments of %d bytes in all", c, total)
		}
		for from := range p.n {
			for to := from + 1; to <= p.n; to++ {
				var scratch [vnetLen + maxHead]byte
				head, rest := p.cut(b, from, to, &scratch)
				whole := append(bytes.Clone(head), rest...)
				got, err := parsePacket(whole)
				if err != nil {
					t.Fatalf("%+v %d:%d: %v", c, from, to, err)
				}
				if want := p.head + min(payload, to*segment) - from*segment; got.length != want {
					t.Errorf("%+v %d:%d: %d bytes, want %d", c, from, to, got.length, want)
				}
				if to-from == 1 && whole[1] != gsoNone || to-from > 1 && got.n != to-from {
					t.Errorf("%+v %d:%d: %d segments", c, from, to, got.n)
				}
				if !bytes.Equal(rest, b[vnetLen+p.head:][from*segment:min(payload, to*segment)]) {
					t.Errorf("%+v %d:%d: other payload", c, from, to)
				}
				ip := whole[vnetLen:]
				transport := ip[p.l4:]
				field, protocol := 16, byte(protoTCP)
				if c.udp {
					field, protocol = 6, protoUDP
				}
				if got, want := binary.BigEndian.Uint16(transport[field:]), pseudo(ip, p.l4, protocol); got != want {
					t.Errorf("%+v %d:%d: pseudo header sum %04x, want %04x", c, from, to, got, want)
				}
				if !c.v6 && fold(sum(ip[:20], 0)) != 0xffff {
					t.Errorf("%+v %d:%d: header checksum", c, from, to)
				}
				if !c.v6 && binary.BigEndian.Uint16(ip[4:]) != uint16(65530+from) {
					t.Errorf("%+v %d:%d: identification", c, from, to)
				}
				if c.udp {
					if int(binary.BigEndian.Uint16(transport[4:])) != len(transport) {
						t.Errorf("%+v %d:%d: UDP length", c, from, to)
					}
					continue
				}
				if got, want := binary.BigEndian.Uint32(transport[4:]), uint32(0xfffffff0)+uint32(from*segment); got != want {
					t.Errorf("%+v %d:%d: sequence %d, want %d", c, from, to, got, want)
				}
				flags := byte(0x10)
				if from == 0 {
					flags |= 0x80
				}
				if to == p.n {
					flags |= 0x09
				}
				if transport[13] != flags {
					t.Errorf("%+v %d:%d: flags %02x, want %02x", c, from, to, transport[13], flags)
				}
			}
		}
	}
}

func TestUnreachableAnswer(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		b := segmented(v6, true, 1000, 900)
		p, err := parsePacket(b)
		if err != nil {
			t.Fatal(err)
		}
		answer := unreachable(b[vnetLen:], p, noHost, block(0))
		got, err := parsePacket(answer)
		if err != nil || got.v6 != v6 {
			t.Fatal(got, err)
		}
		ip := answer[vnetLen:]
		if got := block(0).destination(ip, v6); got != 2 {
			t.Errorf("answer to %d, want the sender, 2", got)
		}
		if v6 {
			if s := fold(sum(ip[8:], uint64(len(ip)-40)+protoICMPv6)); s != 0xffff || ip[40] != 1 || ip[41] != 3 {
				t.Errorf("checksum %04x, type %d, code %d", s, ip[40], ip[41])
			}
		} else if s := fold(sum(ip[20:], 0)); s != 0xffff || fold(sum(ip[:20], 0)) != 0xffff || ip[20] != 3 || ip[21] != 1 || len(ip) != 576 {
			t.Errorf("checksum %04x, type %d, code %d, %d bytes", s, ip[20], ip[21], len(ip))
		}
		// An error is never answered.
		if unreachable(ip, got, noHost, block(0)) != nil {
			t.Error("an error about an error")
		}
	}
}

func TestDestination(t *testing.T) {
	b := block(70)
	for _, c := range []struct {
		to   string
		want int
	}{
		{b.addr4(1).String(), 1},
		{b.addr4(1000).String(), 1000},
		{b.addr4(1023).String(), toAll},
		{"10.73.0.5", toNobody},
		{"224.0.0.1", toAll},
		{"255.255.255.255", toAll},
		{b.addr6(5).String(), 5},
		{b.addr6(1022).String(), 1022},
		{"fd74:6c61:6200:46:1::5", toNobody},
		{"ff02::2", toAll},
		{"fe80::1", toAll},
		{"::1", toNobody},
	} {
		a := netip.MustParseAddr(c.to)
		ip := make([]byte, 40)
		if a.Is6() {
			copy(ip[24:], a.AsSlice())
		} else {
			copy(ip[16:], a.AsSlice())
		}
		if got := b.destination(ip, a.Is6()); got != c.want {
			t.Errorf("%s: %d, want %d", c.to, got, c.want)
		}
	}
}

func FuzzPacket(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			f.Add(segmented(v6, udp, 100, 350))
		}
	}
	f.Add(append(make([]byte, vnetLen), 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0, 10, 73, 0, 2, 10, 73, 0, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err != nil {
			return
		}
		if to := block(0).destination(b[vnetLen:], p.v6); to < toAll || to >= blockSize {
			t.Fatalf("destination %d", to)
		}
		if answer := unreachable(b[vnetLen:], p, noLink, block(0)); answer != nil {
			if _, err := parsePacket(answer); err != nil {
				t.Fatal("malformed answer")
			}
		}
		total := 0
		for i := range p.n {
			size := p.size(i)
			if size < 20 || size > p.length {
				t.Fatalf("segment %d of %d: %d bytes", i, p.n, size)
			}
			total += size
			if p.gso != gsoNone && i < 100 {
				var scratch [vnetLen + maxHead]byte
				head, payload := p.cut(b, i, i+1, &scratch)
				if len(head)+len(payload) != vnetLen+size {
					t.Fatalf("segment %d: cut to %d bytes, want %d", i, len(head)+len(payload)-vnetLen, size)
				}
				if _, err := parsePacket(append(bytes.Clone(head), payload...)); err != nil {
					t.Fatal("segment is malformed")
				}
			}
		}
		if want := p.length + (p.n-1)*p.head; total != want {
			t.Fatalf("segments of %d bytes in all, want %d", total, want)
		}
	})
}
