package packet

import (
	"bytes"
	"slices"
	"testing"
)

func TestChecksum(t *testing.T) {
	// The example of RFC 1071, section 3: the sum is ddf2.
	if got := checksum(0, []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("%#x", got)
	}
	simple := func(b []byte) uint16 {
		sum := uint32(0)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i]) << 8
			if i+1 < len(b) {
				sum += uint32(b[i+1])
			}
		}
		return ^fold(sum)
	}
	b := bytes.Repeat([]byte{0xff, 0xfe, 3, 0x80, 0x7f, 0xff, 0xff}, 40)
	for n := range len(b) {
		if got, want := checksum(0, b[:n]), simple(b[:n]); got != want {
			t.Fatalf("%d: %#x, want %#x", n, got, want)
		}
		if n > 24 {
			if got, want := checksum(partial(0, b[24:n]), b[:24]), simple(b[:n]); got != want {
				t.Fatalf("%d in two parts: %#x, want %#x", n, got, want)
			}
		}
	}
}

func TestDescribe(t *testing.T) {
	for _, c := range []struct {
		kind, code byte
		v6         bool
		want       state
	}{
		{3, 0, false, stateUnreachable},
		{3, 1, false, stateUnreachable},
		{3, 2, false, stateRefused},
		{3, 3, false, stateRefused},
		{3, 4, false, stateUnreachable},
		{3, 13, false, stateUnreachable},
		{3, 99, false, stateUnreachable},
		{11, 0, false, stateUnreachable},
		{12, 0, false, stateError},
		{1, 0, true, stateUnreachable},
		{1, 1, true, stateUnreachable},
		{1, 3, true, stateUnreachable},
		{1, 4, true, stateRefused},
		{1, 99, true, stateUnreachable},
		{2, 0, true, stateUnreachable},
		{3, 0, true, stateUnreachable},
		{4, 0, true, stateError},
	} {
		if got, text := describe(c.kind, c.code, c.v6); got != c.want || text == "" {
			t.Errorf("%+v: %d %q", c, got, text)
		}
	}
}

func errorOf6(inner []byte) []byte {
	head := make([]byte, 40)
	head[0], head[6] = 0x60, protoICMPv6
	head[39] = 1
	return slices.Concat([]byte{icmp6Unreachable, 4, 0, 0, 0, 0, 0, 0}, head, inner)
}

func errorOf4(inner []byte) []byte {
	head := make([]byte, 24)
	head[0], head[9] = 0x46, protoICMP
	copy(head[16:], []byte{192, 0, 2, 1})
	return slices.Concat([]byte{icmp4Unreachable, 1, 0, 0, 0, 0, 0, 0}, head, inner)
}

func TestParseError(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		kind, wrap, dst := byte(icmp4Echo), errorOf4, []byte{192, 0, 2, 1}
		if v6 {
			kind, wrap, dst = icmp6Echo, errorOf6, append(make([]byte, 15), 1)
		}
		inner := append([]byte{kind, 0, 0, 0, 1, 2, 3, 4}, "payload"...)
		whole := wrap(inner)
		e, ok := parseError(whole, v6)
		if !ok || !bytes.Equal(e.inner, inner) || !bytes.Equal(e.dst, dst) {
			t.Errorf("%t %+v", ok, e)
		}
		for n := range len(whole) - len("payload") {
			if _, ok := parseError(whole[:n], v6); ok {
				t.Errorf("%d bytes are taken", n)
			}
		}
		inner[0]++
		if _, ok := parseError(wrap(inner), v6); ok {
			t.Error("an error about something else is taken")
		}
	}
}

func FuzzICMP(f *testing.F) {
	f.Add(append([]byte{icmp4EchoReply, 0, 0, 0, 0, 1, 0, 2}, make([]byte, 56)...), false)
	f.Add(errorOf4([]byte{icmp4Echo, 0, 0, 0, 1, 2, 3, 4}), false)
	f.Add(errorOf6([]byte{icmp6Echo, 0, 0, 0, 1, 2, 3, 4}), true)
	f.Add([]byte{0x4f, 0, 0, 0}, false)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		if _, _, rest, ok := parseIPv4(b); ok && len(rest)+20 > len(b) {
			t.Error("more than there was")
		}
		for _, kind := range []byte{icmp4EchoReply, icmp6EchoReply} {
			if e, ok := parseEcho(b, kind); ok {
				parseToken(e.payload)
				samePayload(e.payload, make([]byte, 56))
			}
		}
		if e, ok := parseError(b, v6); ok {
			if st, text := describe(e.kind, e.code, v6); st < stateUnreachable || text == "" {
				t.Errorf("%d %q", st, text)
			}
			if len(e.inner) < icmpHeader || len(e.dst) != 4 && len(e.dst) != 16 {
				t.Errorf("%+v", e)
			}
		}
	})
}
