package packet

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
)

func dial(t *testing.T, r *Reflector) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(r.Port())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func ask(t *testing.T, c *net.UDPConn, b []byte) []byte {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 2000)
	n, err := c.Read(answer)
	if err != nil {
		t.Fatal(err)
	}
	return answer[:n]
}

// The reflector answers packets written by hand, field by field of the tables
// of section 4.3.
func TestReflectorTables(t *testing.T) {
	for _, key := range []string{"", rfcKey} {
		r := startReflector(t, "127.0.0.1:0")
		r.SetKey([]byte(key))
		c := dial(t, r)
		words, stamp, receive, sender, ttl := rfcRequest, 4, 16, 24, 40
		senderStamp, senderEstimate := 28, 36
		if key != "" {
			words, stamp, receive, sender, ttl = rfcRequestAuth, 16, 32, 48, 80
			senderStamp, senderEstimate = 64, 72
		}
		for seq := range uint32(3) {
			sent := octets(t, words)
			before := ntp(time.Now().UnixNano())
			got := ask(t, c, sent)
			after := ntp(time.Now().UnixNano())
			if len(got) != len(sent) || binary.BigEndian.Uint32(got) != seq {
				t.Fatalf("%x", got)
			}
			t2, t3 := binary.BigEndian.Uint64(got[receive:]), binary.BigEndian.Uint64(got[stamp:])
			if t2 < before || t3 < t2 || after < t3 {
				t.Errorf("%x %x %x %x", before, t2, t3, after)
			}
			want := make([]byte, len(sent))
			copy(want, got[:4])
			copy(want[stamp:], got[stamp:stamp+10])
			copy(want[stamp+10:], []byte{0x12, 0x34})
			copy(want[receive:], got[receive:receive+8])
			copy(want[sender:], []byte{1, 2, 3, 4})
			copy(want[senderStamp:], []byte{0xed, 0x01, 0xb4, 0x25, 0x80, 0, 0, 0})
			copy(want[senderEstimate:], []byte{0x80, 5})
			want[ttl] = 64
			if key != "" {
				mac := hmac.New(sha256.New, []byte(key))
				mac.Write(want[:96])
				copy(want[96:], mac.Sum(nil)[:16])
			}
			if !bytes.Equal(got, want) {
				t.Errorf("\n%x, want\n%x", got, want)
			}
			if got[stamp+8]&0x40 != 0 || got[stamp+9] == 0 {
				t.Errorf("error estimate %x", got[stamp+8:stamp+10])
			}
		}
	}
}

// Never an answer to less than a test packet, a forged one or an answer; never
// one that is longer than what was asked.
func TestReflectorSilent(t *testing.T) {
	r, stop := openReflector(t, "127.0.0.1:0")
	r.SetKey(nil)
	c := dial(t, r)
	request := octets(t, rfcRequest)
	for _, b := range [][]byte{{}, request[:1], request[:43], octets(t, rfcReply)} {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	// Packets are answered in order, so this is the answer to the first that gets one.
	long := append(request, bytes.Repeat([]byte{7}, 1000)...)
	if got := ask(t, c, long); len(got) != len(long) || binary.BigEndian.Uint32(got) != 0 {
		t.Errorf("%d: %x", len(got), got[:44])
	}
	r.SetKey([]byte(rfcKey))
	for _, b := range [][]byte{request, octets(t, rfcReplyAuth)} {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	forged := octets(t, rfcRequestAuth)
	forged[50] = 1
	if _, err := c.Write(forged); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, octets(t, rfcRequestAuth)); len(got) != 112 {
		t.Errorf("%x", got)
	}
	stop()
	got := r.Stats()
	if got.Received != 9 || got.Answered != 2 || got.Short != 4 || got.Looped != 2 || got.Forged != 1 || got.Sessions != 1 {
		t.Errorf("%+v", got)
	}
}

// The engine's signed packets are those of the tables, to a reflector that is
// not ours.
func TestSenderTables(t *testing.T) {
	const count = 20
	key := []byte(rfcKey)
	sign := func(b []byte) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write(b[:96])
		return mac.Sum(nil)[:16]
	}
	port := fakeReflector(t, func(n int, b []byte) [][]byte {
		mbz := make([]byte, 70)
		if len(b) != 120 || binary.BigEndian.Uint32(b) != uint32(n) || !bytes.Equal(b[4:16], mbz[:12]) || !bytes.Equal(b[26:96], mbz) || !bytes.Equal(b[96:112], sign(b)) || b[25] == 0 || b[24]&0x40 != 0 {
			t.Errorf("%d: %x", n, b)
		}
		if !bytes.Equal(b[112:116], []byte{0x80, 1, 0, 4}) {
			t.Errorf("padding %x", b[112:])
		}
		a := make([]byte, 112)
		binary.BigEndian.PutUint32(a, uint32(n)+9)
		now := binary.BigEndian.AppendUint64(nil, ntp(time.Now().UnixNano()))
		copy(a[16:], now)
		copy(a[24:], []byte{0x80, 1})
		copy(a[32:], now)
		copy(a[48:], b[:4])
		copy(a[64:], b[16:26])
		copy(a[96:], sign(a))
		if n%2 == 1 {
			a[50]++
		}
		return [][]byte{a}
	})
	all, acc := run(t, Options{Interval: time.Millisecond, Timeout: 100 * time.Millisecond, Payload: 120, Key: key}, []Flow{stampTo(0, loopback4, port, count)})
	for i := range all {
		r := &all[i]
		if i%2 == 1 && r.Status != schemas.StatusTimeout || i%2 == 0 && (r.Status != schemas.StatusOK || r.ReflectorSeq != r.Seq+9 || !r.RemoteSynced) {
			t.Errorf("%+v", r)
		}
	}
	if acc.Forged != count/2 {
		t.Errorf("%+v", acc)
	}
}

func TestReflectorTaken(t *testing.T) {
	r := startReflector(t, "[::]:0")
	if _, err := NewReflector(netip.AddrPortFrom(netip.IPv6Unspecified(), r.Port()), nil); err == nil {
		t.Error("took a port twice")
	}
	if _, err := NewReflector(netip.AddrPort{}, nil); err == nil {
		t.Error("took no address")
	}
}

func TestSessions(t *testing.T) {
	s := newSessions(3)
	key := func(n uint16) sessionKey { return sessionKey{port: n} }
	now := int64(0)
	expect := func(n uint16, want uint32) {
		t.Helper()
		now++
		if got := s.count(key(n), now); got != want {
			t.Errorf("session %d: %d, want %d", n, got, want)
		}
	}
	expect(1, 0)
	expect(2, 0)
	expect(3, 0)
	expect(1, 1)
	expect(4, 0) // in place of 2
	expect(3, 1)
	expect(1, 2)
	expect(2, 0) // in place of 4
	if s.evicted != 2 || len(s.all) != 3 || len(s.byKey) != 3 {
		t.Errorf("%+v", s)
	}
	now += int64(sessionIdle) - 1
	expect(2, 1)
	expect(1, 0) // it has ended
	expect(5, 0) // in place of 3, which nobody misses
	if s.evicted != 2 {
		t.Errorf("%+v", s)
	}
}

func FuzzControl(f *testing.F) {
	b := make([]byte, 256)
	putCmsgHeader(b, 48, unix.SOL_SOCKET, unix.SCM_TIMESTAMPING)
	binary.NativeEndian.PutUint64(b[16:], 1_800_000_000)
	binary.NativeEndian.PutUint64(b[24:], 5)
	putCmsgHeader(b[64:], 32, unix.SOL_IP, unix.IP_RECVERR)
	putSockaddr(b[64+32:], netip.MustParseAddrPort("192.0.2.1:5"), 0)
	putCmsgHeader(b[112:], 4, unix.SOL_IP, unix.IP_TTL)
	b[128] = 61
	f.Add(b[:136])
	c := parseControl(b[:136])
	if c.stamp != 1_800_000_000_000_000_005 || !c.failed || c.offender != netip.MustParseAddr("192.0.2.1") || c.ttl != 61 {
		f.Errorf("%+v", c)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := parseControl(b)
		if c.stamp < 0 || c.ttl < 0 || c.ttl > 255 {
			t.Errorf("%+v", c)
		}
		parseSockaddr(b)
	})
}
