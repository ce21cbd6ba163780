package packet

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"math"
	"math/bits"
	"time"
)

// Offsets in the packets of RFC 8762, sections 4.2 (sender) and 4.3 (reflector).
// The two octets after the error estimate are the session identifier of RFC 8972.
type layout struct {
	size                                     int
	seq, stamp, estimate, ssid               int
	receive, senderSeq, senderStamp          int // reflector's only, as are the rest
	senderEstimate, senderTTL, hmac, covered int
}

func layoutOf(auth bool) layout {
	if auth {
		return layout{
			size: MinSTAMPAuth, seq: 0, stamp: 16, estimate: 24, ssid: 26, receive: 32, senderSeq: 48,
			senderStamp: 64, senderEstimate: 72, senderTTL: 80, hmac: 96, covered: 96,
		}
	}
	return layout{
		size: MinSTAMP, seq: 0, stamp: 4, estimate: 12, ssid: 14, receive: 16, senderSeq: 24,
		senderStamp: 28, senderEstimate: 36, senderTTL: 40,
	}
}

// Bits of the error estimate.
const (
	estimateSynced = 1 << 15
	estimatePTP    = 1 << 14
)

// signer makes and checks the signatures of one goroutine; nil in
// unauthenticated mode.
type signer struct {
	mac hash.Hash
	sum []byte
}

func newSigner(key []byte) *signer {
	if len(key) == 0 {
		return nil
	}
	return &signer{mac: hmac.New(sha256.New, key), sum: make([]byte, 0, sha256.Size)}
}

func (s *signer) of(covered []byte) []byte {
	s.mac.Reset()
	s.mac.Write(covered)
	s.sum = s.mac.Sum(s.sum[:0])
	return s.sum[:16]
}

func (s *signer) sign(b []byte, l layout) { copy(b[l.hmac:l.hmac+16], s.of(b[:l.covered])) }

func (s *signer) valid(b []byte, l layout) bool {
	return subtle.ConstantTimeCompare(b[l.hmac:l.hmac+16], s.of(b[:l.covered])) == 1
}

// Parts of a TLV of RFC 8972.
const (
	tlvHeader       = 4
	tlvUnrecognised = 0x80
	tlvMalformed    = 0x40
	tlvExtraPadding = 1
)

// fillPadding makes what follows the base packet an Extra Padding TLV, or zeros
// where there is no room for one.
func fillPadding(b []byte) {
	clear(b)
	if len(b) < tlvHeader {
		return
	}
	b[0], b[1] = tlvUnrecognised, tlvExtraPadding
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-tlvHeader))
	fillPattern(b[tlvHeader:])
}

// reflectTLVs sets in a reply the flags that tell the sender what was
// understood: extra padding is, nothing else.
func reflectTLVs(b []byte) {
	for len(b) >= tlvHeader {
		// A packet padded with zeros by a sender without TLVs is left as it is.
		if b[0] == 0 && b[1] == 0 && b[2] == 0 && b[3] == 0 {
			return
		}
		size := tlvHeader + int(binary.BigEndian.Uint16(b[2:]))
		if size > len(b) {
			b[0] |= tlvMalformed
			return
		}
		b[0] &^= tlvUnrecognised | tlvMalformed
		if b[1] != tlvExtraPadding {
			b[0] |= tlvUnrecognised
		}
		b = b[size:]
	}
}

// putRequest writes a sender's packet into b, which has zeros where the base
// packet must and the padding after it.
func putRequest(b []byte, l layout, r request, s *signer) {
	binary.BigEndian.PutUint32(b[l.seq:], r.seq)
	binary.BigEndian.PutUint64(b[l.stamp:], r.stamp)
	binary.BigEndian.PutUint16(b[l.estimate:], r.estimate)
	binary.BigEndian.PutUint16(b[l.ssid:], r.ssid)
	if s != nil {
		s.sign(b, l)
	}
}

// reply is what a reflector says.
type reply struct {
	seq         uint32
	t3, t2      uint64 // in the reflector's format
	estimate    uint16
	ssid        uint16 // 0 from who does not know RFC 8972
	senderSeq   uint32
	senderStamp uint64
	senderTTL   byte
}

type verdict uint8

const (
	verdictOK verdict = iota
	verdictShort
	verdictForged
	verdictLooped
)

// parseReply reads a reflector's packet.
func parseReply(b []byte, l layout, s *signer) (r reply, v verdict) {
	if len(b) < l.size {
		return r, verdictShort
	}
	if s != nil && !s.valid(b, l) {
		return r, verdictForged
	}
	return reply{
		seq: binary.BigEndian.Uint32(b[l.seq:]), t3: binary.BigEndian.Uint64(b[l.stamp:]), t2: binary.BigEndian.Uint64(b[l.receive:]),
		estimate: binary.BigEndian.Uint16(b[l.estimate:]), ssid: binary.BigEndian.Uint16(b[l.ssid:]), senderSeq: binary.BigEndian.Uint32(b[l.senderSeq:]),
		senderStamp: binary.BigEndian.Uint64(b[l.senderStamp:]), senderTTL: b[l.senderTTL],
	}, verdictOK
}

// request is what a sender says.
type request struct {
	seq      uint32
	stamp    uint64
	estimate uint16
	ssid     uint16
}

// loopWindow is how near each other the two times of an answer are, at most.
const loopWindow = 10 << 32

// parseRequest reads a sender's packet.
//
// What a sender must leave zero is not looked at, as the RFC wants, but for one
// thing: a packet with a receive time shortly before its own time is an answer.
// To answer it, sent on by someone under a forged address, would
// have two reflectors answer each other for ever.
func parseRequest(b []byte, l layout, s *signer) (r request, v verdict) {
	if len(b) < l.size {
		return r, verdictShort
	}
	if s != nil && !s.valid(b, l) {
		return r, verdictForged
	}
	r = request{
		seq: binary.BigEndian.Uint32(b[l.seq:]), stamp: binary.BigEndian.Uint64(b[l.stamp:]),
		estimate: binary.BigEndian.Uint16(b[l.estimate:]), ssid: binary.BigEndian.Uint16(b[l.ssid:]),
	}
	if received := binary.BigEndian.Uint64(b[l.receive:]); received != 0 && r.stamp-received < loopWindow {
		return r, verdictLooped
	}
	return r, verdictOK
}

// putReply turns the request in b into the answer to it, of the same length.
// What follows the base packet stays, but for the flags of TLVs.
func putReply(b []byte, l layout, req request, seq uint32, t2, t3 int64, estimate uint16, ttl byte, s *signer) {
	clear(b[:l.size])
	binary.BigEndian.PutUint32(b[l.seq:], seq)
	binary.BigEndian.PutUint64(b[l.stamp:], ntp(t3))
	binary.BigEndian.PutUint16(b[l.estimate:], estimate)
	binary.BigEndian.PutUint16(b[l.ssid:], req.ssid)
	binary.BigEndian.PutUint64(b[l.receive:], ntp(t2))
	binary.BigEndian.PutUint32(b[l.senderSeq:], req.seq)
	binary.BigEndian.PutUint64(b[l.senderStamp:], req.stamp)
	binary.BigEndian.PutUint16(b[l.senderEstimate:], req.estimate)
	b[l.senderTTL] = ttl
	if s != nil {
		s.sign(b, l)
	}
}

const (
	// ntpEpoch is 1970 in seconds of NTP.
	ntpEpoch = 2_208_988_800
	second   = int64(time.Second)
)

// ntp turns ns since 1970 into NTP's 64 bits. The fraction is rounded up so that
// unixNano gives the same nanosecond back.
func ntp(wall int64) uint64 {
	sec, frac := floorDiv(wall, second)
	return uint64(uint32(sec+ntpEpoch))<<32 | (uint64(frac)<<32+uint64(second)-1)/uint64(second)
}

func floorDiv(a, b int64) (q, r int64) {
	q, r = a/b, a%b
	if r < 0 {
		q, r = q-1, r+b
	}
	return q, r
}

// unixNano turns NTP's 64 bits into ns since 1970, in the era (of 136 years)
// that brings it nearest to near.
func unixNano(stamp uint64, near int64) int64 {
	return unfold(int64(stamp>>32)-ntpEpoch, int64((stamp&math.MaxUint32)*uint64(second)>>32), near)
}

// ptpNano is unixNano for the truncated format of PTP: seconds and nanoseconds.
func ptpNano(stamp uint64, near int64) int64 {
	return unfold(int64(stamp>>32), int64(stamp&math.MaxUint32), near)
}

func unfold(sec, ns, near int64) int64 {
	const era = 1 << 32
	nearSec, _ := floorDiv(near, second)
	eras, _ := floorDiv(nearSec-sec+era/2, era)
	sec += eras * era
	if sec > math.MaxInt64/second-1 || sec < math.MinInt64/second+1 {
		return 0
	}
	return sec*second + ns
}

// remoteNano turns a reflector's time into ns since 1970 by its error estimate.
func remoteNano(stamp uint64, estimate uint16, near int64) int64 {
	if estimate&estimatePTP != 0 {
		return ptpNano(stamp, near)
	}
	return unixNano(stamp, near)
}

// encodeEstimate makes an error estimate of NTP times: multiplier × 2^scale × 2^-32 s.
func encodeEstimate(synced bool, bound time.Duration) uint16 {
	units := max(1, uint64(bound)/uint64(second)<<32+uint64(bound)%uint64(second)<<32/uint64(second))
	scale := max(0, bits.Len64(units)-8)
	if units&(1<<scale-1) != 0 {
		units += 1 << scale
		scale = max(0, bits.Len64(units)-8)
	}
	e := uint16(scale)<<8 | uint16(units>>scale)
	if synced {
		e |= estimateSynced
	}
	return e
}

// decodeEstimate is the inverse of encodeEstimate.
func decodeEstimate(e uint16) (synced bool, bound time.Duration) {
	sec := math.Ldexp(float64(e&0xff), int(e>>8&0x3f)-32)
	if ns := sec * 1e9; ns < math.MaxInt64 {
		return e&estimateSynced != 0, time.Duration(ns)
	}
	return e&estimateSynced != 0, math.MaxInt64
}
