package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// The packets of RFC 8762 written by hand from its tables (4.2.1, 4.2.2, 4.3.1,
// 4.3.2, session identifier of RFC 8972), four octets a word. The signatures
// were made with another implementation of HMAC-SHA-256.
const (
	rfcKey = "0123456789abcdef"

	// Sequence number, timestamp, error estimate and SSID; zeros.
	rfcRequest = `
		01020304 ed01b425 80000000 80051234
		00000000 00000000 00000000 00000000
		00000000 00000000 00000000`
	// Sequence number, timestamp, error estimate and SSID; receive timestamp;
	// the sender's sequence number, timestamp, error estimate; its TTL.
	rfcReply = `
		00000007 ed01b426 00000000 a1031234
		ed01b425 c0000000 01020304 ed01b425
		80000000 80050000 40000000`
	rfcRequestAuth = `
		01020304 00000000 00000000 00000000
		ed01b425 80000000 80051234 00000000
		00000000 00000000 00000000 00000000
		00000000 00000000 00000000 00000000
		00000000 00000000 00000000 00000000
		00000000 00000000 00000000 00000000
		2339e1f7 7afd6a4a d764b094 b0322710`
	rfcReplyAuth = `
		00000007 00000000 00000000 00000000
		ed01b426 00000000 a1031234 00000000
		ed01b425 c0000000 00000000 00000000
		01020304 00000000 00000000 00000000
		ed01b425 80000000 80050000 00000000
		40000000 00000000 00000000 00000000
		d38211b6 f70c8065 49aa6ab1 71d6c90e`
)

// T1 to T3 of those packets.
var (
	rfcT1 = time.Date(2026, 1, 2, 3, 4, 5, 500_000_000, time.UTC).UnixNano()
	rfcT2 = rfcT1 + 250_000_000
	rfcT3 = rfcT1 + 500_000_000
)

func octets(t testing.TB, words string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(words), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTables(t *testing.T) {
	for _, c := range []struct {
		name, key, request, reply string
	}{{"unauthenticated", "", rfcRequest, rfcReply}, {"authenticated", rfcKey, rfcRequestAuth, rfcReplyAuth}} {
		t.Run(c.name, func(t *testing.T) {
			l, s := layoutOf(c.key != ""), newSigner([]byte(c.key))
			wantRequest, wantReply := octets(t, c.request), octets(t, c.reply)
			req := request{seq: 0x01020304, stamp: ntp(rfcT1), estimate: 0x8005, ssid: 0x1234}

			b := make([]byte, l.size)
			putRequest(b, l, req, s)
			if !bytes.Equal(b, wantRequest) {
				t.Errorf("request\n%x, want\n%x", b, wantRequest)
			}
			if got, v := parseRequest(wantRequest, l, s); v != verdictOK || got != req {
				t.Errorf("%+v %d", got, v)
			}
			putReply(b, l, req, 7, rfcT2, rfcT3, 0xa103, 64, s)
			if !bytes.Equal(b, wantReply) {
				t.Errorf("reply\n%x, want\n%x", b, wantReply)
			}
			got, v := parseReply(wantReply, l, s)
			want := reply{seq: 7, t3: ntp(rfcT3), t2: ntp(rfcT2), estimate: 0xa103, ssid: 0x1234, senderSeq: req.seq, senderStamp: req.stamp, senderTTL: 64}
			if v != verdictOK || got != want {
				t.Errorf("%+v %d, want %+v", got, v, want)
			}
			if _, v := parseRequest(wantReply, l, s); v != verdictLooped {
				t.Errorf("an answer as request: %d", v)
			}
			for n := range l.size {
				if _, v := parseReply(wantReply[:n], l, s); v != verdictShort {
					t.Errorf("reply of %d: %d", n, v)
				}
				if _, v := parseRequest(wantRequest[:n], l, s); v != verdictShort {
					t.Errorf("request of %d: %d", n, v)
				}
				if s == nil {
					continue
				}
				forged := slices.Clone(wantReply)
				forged[n] ^= 1
				if _, v := parseReply(forged, l, s); v != verdictForged {
					t.Errorf("octet %d: %d", n, v)
				}
			}
			// What must be zero is not looked at on receipt.
			if s == nil {
				for i := 16; i < 44; i++ {
					wantRequest[i] = 0xff
				}
				if _, v := parseRequest(wantRequest, l, nil); v != verdictOK {
					t.Errorf("nothing zero: %d", v)
				}
			}
		})
	}
}

func TestTimestamps(t *testing.T) {
	near := rfcT1
	for _, wall := range []int64{rfcT1, rfcT1 + 1, rfcT1 + 999_999_999 - 500_000_000, rfcT3, 0, 1, math.MaxInt32 * second} {
		if got := unixNano(ntp(wall), near); got != wall {
			t.Errorf("%d came back as %d", wall, got)
		}
	}
	for ns := int64(0); ns < second; ns += 7919 {
		if got := unixNano(ntp(rfcT3+ns), near); got != rfcT3+ns {
			t.Fatalf("%d came back as %d", rfcT3+ns, got)
		}
	}
	// NTP's second era begins on 2036-02-07 06:28:16.
	turn := time.Date(2036, 2, 7, 6, 28, 16, 0, time.UTC).UnixNano()
	if ntp(turn) != 0 || ntp(turn-1)>>32 != math.MaxUint32 {
		t.Errorf("%x %x", ntp(turn), ntp(turn-1))
	}
	for _, d := range []int64{-second, -1, 0, 1, second} {
		if got := unixNano(ntp(turn+d), turn-d); got != turn+d {
			t.Errorf("%d from the turn: %d", d, got-turn)
		}
	}
	if got := remoteNano(uint64(rfcT3/second)<<32|123, estimatePTP, near); got != rfcT3+123 {
		t.Errorf("PTP: %d, want %d", got, rfcT3+123)
	}
}

func TestEstimate(t *testing.T) {
	for _, bound := range []time.Duration{0, 1, time.Microsecond, 255 * time.Microsecond, time.Millisecond, time.Second, 16 * time.Second, time.Hour} {
		e := encodeEstimate(bound > time.Millisecond, bound)
		synced, got := decodeEstimate(e)
		// At least the bound, at most a 128th more (and one unit of 2^-32 s).
		if synced != (bound > time.Millisecond) || got < bound-1 || got > bound+bound/100+2 || e&0xff == 0 || e&estimatePTP != 0 {
			t.Errorf("%s: %#x is %s", bound, e, got)
		}
	}
	if synced, bound := decodeEstimate(0xbfff); !synced || bound < time.Hour {
		t.Errorf("largest: %s", bound)
	}
}

func TestTLVs(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"none", "", ""},
		{"too short for one", "800100", "800100"},
		{"extra padding", "80010002 abcd", "00010002 abcd"},
		{"unknown", "80630002 abcd", "80630002 abcd"},
		{"unknown, not marked", "00630000", "80630000"},
		{"two", "80010001 ab 80630000", "00010001 ab 80630000"},
		{"longer than the packet", "80010003 abcd", "c0010003 abcd"},
		{"zeros", "00000000 00000000", "00000000 00000000"},
	} {
		b, want := octets(t, c.in), octets(t, c.want)
		if reflectTLVs(b); !bytes.Equal(b, want) {
			t.Errorf("%s: %x, want %x", c.name, b, want)
		}
	}
	for n := range 40 {
		b := bytes.Repeat([]byte{0xee}, n)
		fillPadding(b)
		if n >= tlvHeader && (b[0] != tlvUnrecognised || b[1] != tlvExtraPadding || int(binary.BigEndian.Uint16(b[2:])) != n-tlvHeader) {
			t.Errorf("%d: %x", n, b)
		}
		if n < tlvHeader && !bytes.Equal(b, make([]byte, n)) {
			t.Errorf("%d: %x", n, b)
		}
	}
}

func FuzzReply(f *testing.F) {
	f.Add(octets(f, rfcReply), false)
	f.Add(octets(f, rfcReplyAuth), true)
	f.Fuzz(func(t *testing.T, b []byte, auth bool) {
		l, s := layoutOf(auth), (*signer)(nil)
		if auth {
			s = newSigner([]byte(rfcKey))
		}
		r, v := parseReply(b, l, s)
		if v != verdictOK {
			return
		}
		if len(b) < l.size {
			t.Errorf("%d bytes taken", len(b))
		}
		const era = second << 32
		if d := remoteNano(r.t2, r.estimate, rfcT1) - rfcT1; d > era/2+8*second || d < -era/2-8*second {
			t.Errorf("%x is %d from now", r.t2, d)
		}
		if _, bound := decodeEstimate(r.estimate); bound < 0 {
			t.Errorf("estimate %x: %s", r.estimate, bound)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(octets(f, rfcRequest), false)
	f.Add(octets(f, rfcRequestAuth), true)
	f.Add(append(octets(f, rfcRequest), 0x80, 1, 0, 2, 1, 2, 0x80, 9, 0, 0), false)
	f.Fuzz(func(t *testing.T, b []byte, auth bool) {
		l, s := layoutOf(auth), (*signer)(nil)
		if auth {
			s = newSigner([]byte(rfcKey))
		}
		req, v := parseRequest(b, l, s)
		if v != verdictOK {
			return
		}
		reflectTLVs(b[l.size:])
		putReply(b, l, req, 1, rfcT2, rfcT3, 1, 64, s)
		r, v := parseReply(b, l, s)
		if v != verdictOK || r.senderSeq != req.seq || r.senderStamp != req.stamp || r.t2 != ntp(rfcT2) {
			t.Errorf("%+v %d of %+v", r, v, req)
		}
		if _, v := parseRequest(b, l, s); v != verdictLooped {
			t.Errorf("the answer would be answered: %d", v)
		}
	})
}
