package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
)

// board is a tracker without a network.
type board struct {
	mu    sync.Mutex
	peers []netip.AddrPort
	down  bool
}

func (b *board) announce(self netip.AddrPort) func(context.Context, Announcement) ([]netip.AddrPort, time.Duration, error) {
	return func(_ context.Context, a Announcement) ([]netip.AddrPort, time.Duration, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.down {
			return nil, 0, context.DeadlineExceeded
		}
		others := slices.DeleteFunc(slices.Clone(b.peers), func(p netip.AddrPort) bool { return p == self })
		mathrand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		if a.Event == "stopped" {
			b.peers = slices.DeleteFunc(b.peers, func(p netip.AddrPort) bool { return p == self })
		} else if !slices.Contains(b.peers, self) {
			b.peers = append(b.peers, self)
		}
		return others[:min(len(others), 50)], 30 * time.Second, nil
	}
}

type rig struct {
	t       testing.TB
	board   board
	content []byte
	torrent *metainfo.Torrent
	peers   []*Peer
	stores  [][]byte
}

func newRig(t testing.TB, size, piece int64) *rig {
	r := &rig{t: t, content: make([]byte, size)}
	if _, err := rand.Read(r.content); err != nil {
		t.Fatal(err)
	}
	r.torrent = metainfo.Make("A", r.content, piece)
	return r
}

// add makes a peer; change may change its options.
func (r *rig) add(seed bool, change func(*Options)) *Peer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	self := netip.MustParseAddrPort(l.Addr().String())
	o := Options{
		Torrent: r.torrent, Seed: seed, Listener: l, Announce: r.board.announce(self),
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		},
	}
	if _, err := rand.Read(o.ID[:]); err != nil {
		r.t.Fatal(err)
	}
	o.Store = r.content
	if !seed {
		o.Store = make([]byte, len(r.content))
	}
	if change != nil {
		change(&o)
	}
	p, err := New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.peers, r.stores = append(r.peers, p), append(r.stores, o.Store)
	if seed {
		_, _, _ = o.Announce(context.Background(), Announcement{Event: "started"})
	}
	return p
}

// start starts all, seeders first.
func (r *rig) start(ctx context.Context) {
	for _, p := range r.peers {
		p.Start(ctx)
	}
}

// finish waits for all and ends them; it returns what the leechers did.
func (r *rig) finish(ctx context.Context) []Report {
	r.t.Helper()
	for i, p := range r.peers {
		select {
		case <-p.Complete():
		case <-ctx.Done():
			r.t.Fatalf("peer %d: %+v", i, p.Progress())
		}
	}
	var reports []Report
	for i, p := range r.peers {
		p.Leave(ctx)
		<-p.Done()
		if !bytes.Equal(r.stores[i], r.content) {
			r.t.Fatalf("peer %d has other content", i)
		}
		if !p.opt.Seed {
			reports = append(reports, p.Report())
		}
	}
	return reports
}

func deadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
