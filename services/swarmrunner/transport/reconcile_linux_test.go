package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// TestInterfaceIsExplained lets peers do what peers do in a private network, and
// holds the interface's counters against the sockets'.
func TestInterfaceIsExplained(t *testing.T) {
	const bulk = 50 << 20
	six := netip.AddrPortFrom(netip.IPv6Loopback(), 0)
	for _, c := range []struct {
		name     string
		protocol string
		a, b     netip.AddrPort
		limit    float64 // of what is not explained, as a share
		run      func(t testing.TB, a, b *Endpoint)
	}{
		{"bulk", ProtocolTCP, loopback(1), loopback(2), 0.001, func(t testing.TB, a, b *Endpoint) { stream(t, a, b, bulk, 0) }},
		{"bulk back", ProtocolTCP, loopback(1), loopback(2), 0.001, func(t testing.TB, a, b *Endpoint) { stream(t, a, b, 0, bulk) }},
		{"bulk both ways", ProtocolTCP, loopback(1), loopback(2), 0.001, func(t testing.TB, a, b *Endpoint) { stream(t, a, b, bulk, bulk) }},
		{"bulk IPv6", ProtocolTCP, six, six, 0.001, func(t testing.TB, a, b *Endpoint) { stream(t, a, b, bulk, 0) }},
		{"messages", ProtocolTCP, loopback(1), loopback(2), 0.01, func(t testing.TB, a, b *Endpoint) { messages(t, a, b, 5000) }},
		{"messages IPv6", ProtocolTCP, six, six, 0.01, func(t testing.TB, a, b *Endpoint) { messages(t, a, b, 5000) }},
		{"short connections", ProtocolTCP, loopback(1), loopback(2), 0.01, func(t testing.TB, a, b *Endpoint) {
			for range 300 {
				messages(t, a, b, 1)
			}
		}},
		{"aborted connections", ProtocolTCP, loopback(1), loopback(2), 0.01, func(t testing.TB, a, b *Endpoint) {
			for range 300 {
				there, here := pair(t, a, b)
				exchange(t, there, here, 1)
				if err := errors.Join(Abort(there), here.Close()); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"uTP", ProtocolUTP, loopback(1), loopback(2), 0.01, func(t testing.TB, a, b *Endpoint) { stream(t, a, b, bulk/10, bulk/10) }},
		{"uTP messages", ProtocolUTP, loopback(1), loopback(2), 0.01, func(t testing.TB, a, b *Endpoint) { messages(t, a, b, 500) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := private(t)
			before, err := n.Counters()
			if err != nil {
				t.Fatal(err)
			}
			a, b := endpoint(t, n, c.protocol, c.a), endpoint(t, n, c.protocol, c.b)
			c.run(t, a, b)
			if err := errors.Join(a.Close(), b.Close()); err != nil {
				t.Fatal(err)
			}
			after, err := n.Counters()
			if err != nil {
				t.Fatal(err)
			}
			used := n.Usage()
			account := Reconcile(before, after, used)
			share := float64(account.Unattributed) / float64(account.Interface)
			t.Logf("%+v: %.4f %% not explained; %d packets, %d opens, %+v", account, 100*share, after.TxPackets, after.Opens, used)
			if math.Abs(share) > c.limit {
				t.Errorf("%.4f %% of %d bytes are not explained", 100*share, account.Interface)
			}
			if s, r := used.TCP.Sent, used.TCP.Received; s != r && c.name != "aborted connections" {
				t.Errorf("%d bytes sent, %d received", s, r)
			}
			sum := a.Usage()
			sum.Add(b.Usage())
			if sum != used || used.Since(sum) != (Usage{}) {
				t.Errorf("the endpoints have %+v, the network %+v", sum, used)
			}
		})
	}
}

// stream sends so many bytes there and back at the same time.
func stream(t testing.TB, a, b *Endpoint, there, back int64) {
	t.Helper()
	x, y := pair(t, a, b)
	var wait sync.WaitGroup
	errs := make([]error, 4)
	for i, way := range []struct {
		from, to net.Conn
		n        int64
	}{{x, y, there}, {y, x, back}} {
		wait.Go(func() {
			buffer := make([]byte, 64<<10)
			for left := way.n; left > 0 && errs[2*i] == nil; {
				var n int
				n, errs[2*i] = way.from.Write(buffer[:min(left, int64(len(buffer)))])
				left -= int64(n)
			}
		})
		wait.Go(func() {
			buffer := make([]byte, 64<<10)
			for left := way.n; left > 0 && errs[2*i+1] == nil; {
				var n int
				n, errs[2*i+1] = way.to.Read(buffer[:min(left, int64(len(buffer)))])
				left -= int64(n)
			}
		})
	}
	wait.Wait()
	if err := errors.Join(append(errs, x.Close(), y.Close())...); err != nil {
		t.Fatal(err)
	}
}

// messages has a connection that carries so many small messages there, each with
// an answer.
func messages(t testing.TB, a, b *Endpoint, count int) {
	t.Helper()
	there, here := pair(t, a, b)
	exchange(t, there, here, count)
	if err := errors.Join(there.Close(), here.Close()); err != nil {
		t.Fatal(err)
	}
}

func exchange(t testing.TB, there, here net.Conn, count int) {
	t.Helper()
	answered := make(chan error, 1)
	go func() {
		message := make([]byte, 17)
		for range count {
			if _, err := io.ReadFull(here, message); err != nil {
				answered <- err
				return
			}
			if _, err := here.Write(message[:5]); err != nil {
				answered <- err
				return
			}
		}
		answered <- nil
	}()
	message, answer := make([]byte, 17), make([]byte, 5)
	for i := range count {
		binary.BigEndian.PutUint32(message, uint32(i))
		if _, err := there.Write(message); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(there, answer); err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint32(answer); got != uint32(i) {
			t.Fatal(fmt.Errorf("answer to message %d is of %d", i, got))
		}
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}
