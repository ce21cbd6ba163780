package packet

import (
	"bytes"
	"encoding/binary"
)

// Types and codes of ICMP that are looked at.
const (
	icmp4EchoReply, icmp4Unreachable, icmp4Echo, icmp4TimeExceeded, icmp4Parameter = 0, 3, 8, 11, 12
	icmp6Unreachable, icmp6TooBig, icmp6TimeExceeded, icmp6Parameter               = 1, 2, 3, 4
	icmp6Echo, icmp6EchoReply                                                      = 128, 129

	icmpHeader          = 8
	protoICMP, protoUDP = 1, 17
	protoICMPv6         = 58
)

// echo is an echo request or reply.
type echo struct {
	id, seq uint16
	payload []byte
}

// parseEcho reads an ICMP message of the type, without the IP header.
func parseEcho(b []byte, kind byte) (e echo, ok bool) {
	if len(b) < icmpHeader || b[0] != kind || b[1] != 0 {
		return e, false
	}
	return echo{
		id: binary.BigEndian.Uint16(b[4:]), seq: binary.BigEndian.Uint16(b[6:]),
		payload: b[icmpHeader:],
	}, true
}

// token is what an echo request of ours says of itself.
type token struct {
	cookie    uint64
	flow, seq uint32
}

func putToken(b []byte, t token) {
	binary.BigEndian.PutUint64(b, t.cookie)
	binary.BigEndian.PutUint32(b[8:], t.flow)
	binary.BigEndian.PutUint32(b[12:], t.seq)
}

func parseToken(b []byte) (t token, ok bool) {
	if len(b) < CookiePayload {
		return t, false
	}
	return token{binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])}, true
}

// fillPattern writes what payloads carry beside the token. It varies so that
// misplaced bytes are noticed.
func fillPattern(b []byte) {
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
}

// samePayload reports whether an echo's payload is the template beside the token.
func samePayload(payload, template []byte) bool {
	if len(payload) != len(template) {
		return false
	}
	if len(template) < CookiePayload {
		return bytes.Equal(payload, template)
	}
	return bytes.Equal(payload[CookiePayload:], template[CookiePayload:])
}

// checksum is that of RFC 1071, of b on top of sum.
func checksum(sum uint32, b []byte) uint16 {
	return ^fold(partial(sum, b))
}

func partial(sum uint32, b []byte) uint32 {
	wide := uint64(sum)
	for len(b) >= 4 {
		wide += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	wide = wide>>32 + wide&0xffffffff
	wide = wide>>32 + wide&0xffffffff
	s := uint32(wide>>16) + uint32(wide&0xffff)
	if len(b) >= 2 {
		s += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// parseIPv4 returns the header's protocol and hop limit, and what follows it.
func parseIPv4(b []byte) (proto, ttl byte, rest []byte, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return 0, 0, nil, false
	}
	size := int(b[0]&15) * 4
	if size < 20 || len(b) < size {
		return 0, 0, nil, false
	}
	return b[9], b[8], b[size:], true
}

// icmpError is an ICMP error about a packet of ours.
type icmpError struct {
	kind, code byte
	dst        []byte // where the packet was going: 4 or 16 bytes
	inner      []byte // the packet, from the ICMP or UDP header on; may be cut
}

// parseError reads an ICMP error, without its own IP header, about an echo
// request. v6 tells which of the two ICMPs it is.
func parseError(b []byte, v6 bool) (e icmpError, ok bool) {
	if len(b) < icmpHeader || !isErrorType(b[0], v6) {
		return e, false
	}
	e.kind, e.code = b[0], b[1]
	quoted := b[icmpHeader:]
	if v6 {
		// Echo requests of ours have no extension headers.
		if len(quoted) < 40+icmpHeader || quoted[0]>>4 != 6 || quoted[6] != protoICMPv6 {
			return e, false
		}
		e.dst, e.inner = quoted[24:40], quoted[40:]
		return e, e.inner[0] == icmp6Echo
	}
	proto, _, inner, ok := parseIPv4(quoted)
	if !ok || proto != protoICMP || len(inner) < icmpHeader {
		return e, false
	}
	e.dst, e.inner = quoted[16:20], inner
	return e, inner[0] == icmp4Echo
}

func isErrorType(kind byte, v6 bool) bool {
	if v6 {
		return kind >= icmp6Unreachable && kind <= icmp6Parameter
	}
	return kind == icmp4Unreachable || kind == icmp4TimeExceeded || kind == icmp4Parameter
}

// describe tells what an ICMP error means for a probe.
func describe(kind, code byte, v6 bool) (state, string) {
	if v6 {
		switch kind {
		case icmp6Unreachable:
			switch code {
			case 0:
				return stateUnreachable, "no route"
			case 1, 5, 6:
				return stateUnreachable, "prohibited"
			case 3:
				return stateUnreachable, "address unreachable"
			case 4:
				return stateRefused, "port unreachable"
			}
			return stateUnreachable, "unreachable"
		case icmp6TooBig:
			return stateUnreachable, "packet too big"
		case icmp6TimeExceeded:
			return stateUnreachable, "hop limit exceeded"
		}
		return stateError, "parameter problem"
	}
	switch kind {
	case icmp4Unreachable:
		switch code {
		case 0, 6, 11:
			return stateUnreachable, "network unreachable"
		case 1, 7, 8, 12:
			return stateUnreachable, "host unreachable"
		case 2:
			return stateRefused, "protocol unreachable"
		case 3:
			return stateRefused, "port unreachable"
		case 4:
			return stateUnreachable, "fragmentation needed"
		case 9, 10, 13:
			return stateUnreachable, "prohibited"
		}
		return stateUnreachable, "unreachable"
	case icmp4TimeExceeded:
		return stateUnreachable, "hop limit exceeded"
	}
	return stateError, "parameter problem"
}
