package peer

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hub is a network without a system below it, for time that is not the real one.
type hub struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]*hubListener
}

type hubListener struct {
	addr  netip.AddrPort
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *hubListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *hubListener) Close() error { l.once.Do(func() { close(l.done) }); return nil }

func (l *hubListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

func (h *hub) listen() *hubListener {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners == nil {
		h.listeners = map[netip.AddrPort]*hubListener{}
	}
	n := len(h.listeners) + 1
	l := &hubListener{
		addr:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 6881),
		conns: make(chan net.Conn, 16), done: make(chan struct{}),
	}
	h.listeners[l.addr] = l
	return l
}

func (h *hub) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	h.mu.Lock()
	l := h.listeners[to]
	h.mu.Unlock()
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// on puts a peer into the hub.
func (h *hub) on(r *rig, o *Options) {
	_ = o.Listener.Close()
	l := h.listen()
	o.Listener, o.Dial, o.Announce = l, h.dial, r.board.announce(l.addr)
}

// TestShaped holds swarms with limited uploads against the fluid lower bound, in
// time that no busy machine stretches.
func TestShaped(t *testing.T) {
	const (
		size     = 10_000_000
		leechers = 50
	)
	for _, s := range []struct {
		name                 string
		seeder, up, down     int64 // bytes a second
		atLeast, seederSends float64
	}{
		{"symmetric", 2_500_000, 2_500_000, 0, 0.7, 1.6},
		{"strong seeder", 12_500_000, 2_500_000, 12_500_000, 0.7, 0},
		{"weak leechers", 2_500_000, 1_250_000, 6_250_000, 0.7, 0},
	} {
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				var h hub
				r := newRig(t, size, 32<<10)
				r.add(true, func(o *Options) { h.on(r, o); o.Upload, o.SuperSeed = s.seeder, true })
				for range leechers {
					r.add(false, func(o *Options) { h.on(r, o); o.Upload, o.Download = s.up, s.down })
				}
				r.start(ctx)
				var last time.Duration
				for _, report := range r.finish(ctx) {
					last = max(last, report.Completed.Sub(report.Begun))
				}
				bound := max(size/float64(s.seeder), leechers*size/float64(s.seeder+leechers*s.up))
				if s.down > 0 {
					bound = max(bound, size/float64(s.down))
				}
				efficiency := bound / last.Seconds()
				copies := float64(r.peers[0].Report().Wire.Sent[0].Bytes) / size
				t.Logf("bound %.2f s, last leecher %.2f s: %.2f of it; the seeder sent %.2f files", bound, last.Seconds(), efficiency, copies)
				if efficiency < s.atLeast {
					t.Errorf("%.2f of the bound, want %.2f", efficiency, s.atLeast)
				}
				if s.seederSends > 0 && copies > s.seederSends {
					t.Errorf("the seeder sent %.2f files, want %.2f at most", copies, s.seederSends)
				}
			})
		})
	}
}
