package peer

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/transport"
	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

func TestSwarm(t *testing.T) {
	for _, size := range []int64{1, 10_000, 16 << 10, 100_000, 1_000_003} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			ctx := deadline(t, 20*time.Second)
			r := newRig(t, size, 16<<10)
			r.add(true, nil)
			for range 3 {
				r.add(false, nil)
			}
			r.start(ctx)
			for _, report := range r.finish(ctx) {
				if report.Have != size || report.Wire.Received[0].Bytes < uint64(size) {
					t.Fatalf("%+v", report)
				}
			}
		})
	}
}

// endpoint puts a peer into the host's network as the lab does.
func endpoint(t *testing.T, r *rig, o *Options) {
	t.Helper()
	_ = o.Listener.Close()
	e, err := transport.Host().Endpoint(t.Context(), transport.ProtocolTCP, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	o.Listener, o.Dial, o.Announce = e.Listener(), e.Dial, r.board.announce(e.Addr())
}

// TestLedger holds what is in the books against what the system counted.
func TestLedger(t *testing.T) {
	ctx := deadline(t, 20*time.Second)
	r := newRig(t, 5_000_000, 64<<10)
	for i := range 6 {
		r.add(i == 0, func(o *Options) { endpoint(t, r, o) })
	}
	r.start(ctx)
	r.finish(ctx)
	var sent, received uint64
	for i, p := range r.peers {
		report := p.Report()
		if s := report.Sockets; report.Wire.SentBytes() != s.Sent || report.Wire.ReceivedBytes() > s.Received {
			t.Errorf("peer %d: %d bytes sent and %d received by its books, %d and %d by the system's", i,
				report.Wire.SentBytes(), report.Wire.ReceivedBytes(), s.Sent, s.Received)
		}
		if n := report.Wire.Received[wire.Unknown].Bytes; n > 4096 {
			t.Errorf("peer %d: %d bytes of no class", i, n)
		}
		sent += report.Wire.Sent[wire.Payload].Bytes
		received += report.Wire.Received[wire.Payload].Bytes
	}
	if received < 25_000_000 || received > sent {
		t.Errorf("%d bytes of content sent, %d received", sent, received)
	}
}

func TestEncrypted(t *testing.T) {
	for _, policy := range []string{"prefer", "require"} {
		t.Run(policy, func(t *testing.T) {
			ctx := deadline(t, 20*time.Second)
			r := newRig(t, 1_000_000, 16<<10)
			for i := range 3 {
				r.add(i == 0, func(o *Options) {
					o.Secure = func(ctx context.Context, c net.Conn, initiator bool) (net.Conn, Overhead, error) {
						secured, sent, received, err := transport.Secure(ctx, c, policy, r.torrent.InfoHash, initiator)
						return secured, Overhead{Sent: sent, Received: received}, err
					}
				})
			}
			r.start(ctx)
			for _, report := range r.finish(ctx) {
				if report.Wire.Sent[wire.Encryption].Bytes+report.Wire.Received[wire.Encryption].Bytes == 0 {
					t.Error("no bytes of encryption")
				}
			}
		})
	}
}

func TestCorruptSeeder(t *testing.T) {
	ctx := deadline(t, 20*time.Second)
	r := newRig(t, 2_000_000, 64<<10)
	r.add(true, func(o *Options) { o.Corrupt = true })
	// Slow enough that the other is asked for something too.
	r.add(true, func(o *Options) { o.Upload = 4_000_000 })
	for range 3 {
		r.add(false, nil)
	}
	r.start(ctx)
	wrong := 0
	for _, report := range r.finish(ctx) {
		wrong += report.HashFailures
		if report.Have != 2_000_000 {
			t.Errorf("%+v", report)
		}
	}
	if wrong == 0 {
		t.Error("nobody was sent anything wrong")
	}
}

// TestOnlyCorrupt: what is wrong never counts.
func TestOnlyCorrupt(t *testing.T) {
	ctx := deadline(t, 20*time.Second)
	r := newRig(t, 200_000, 64<<10)
	r.add(true, func(o *Options) { o.Corrupt = true })
	leecher := r.add(false, nil)
	r.start(ctx)
	await(t, ctx, func() bool { p := leecher.Progress(); return p.Wrong > 0 && p.Connected == 0 })
	leecher.Kill()
	<-leecher.Done()
	if report := leecher.Report(); report.Have != 0 || !report.Completed.IsZero() || report.Banned != 1 {
		t.Errorf("%+v", report)
	}
	r.peers[0].Kill()
}

// await polls until something holds.
func await(t *testing.T, ctx context.Context, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatal("it never came")
		case <-tick.C:
		}
	}
}

func TestKill(t *testing.T) {
	ctx := deadline(t, 20*time.Second)
	r := newRig(t, 2_000_000, 64<<10)
	r.add(true, func(o *Options) { o.Upload = 8_000_000 })
	victim := r.add(false, nil)
	r.add(false, nil)
	r.start(ctx)
	await(t, ctx, func() bool { return victim.Progress().Have > 0 })
	victim.Kill()
	<-victim.Done()
	report := victim.Report()
	r.peers = []*Peer{r.peers[0], r.peers[2]}
	r.stores = [][]byte{r.stores[0], r.stores[2]}
	r.finish(ctx)
	if report.Have == 0 || report.Left.IsZero() {
		t.Errorf("%+v", report)
	}
}

// TestSeederLeaves: who has everything serves those that come later.
func TestSeederLeaves(t *testing.T) {
	ctx := deadline(t, 20*time.Second)
	r := newRig(t, 1_000_000, 64<<10)
	seeder := r.add(true, nil)
	first := r.add(false, nil)
	seeder.Start(ctx)
	first.Start(ctx)
	<-first.Complete()
	seeder.Leave(ctx)
	second := r.add(false, nil)
	second.Start(ctx)
	r.finish(ctx)
	if n := second.Report().FromSeeds; n != 1_000_000 {
		t.Errorf("%d bytes from who had everything", n)
	}
}

func TestSlots(t *testing.T) {
	for _, slots := range []int{1, 2} {
		ctx := deadline(t, 30*time.Second)
		r := newRig(t, 3_000_000, 64<<10)
		for i := range 5 {
			r.add(i == 0, func(o *Options) { o.Slots = slots })
		}
		r.start(ctx)
		r.finish(ctx)
	}
}

// TestTrackerComesLate: a tracker that is not there yet is asked again.
func TestTrackerComesLate(t *testing.T) {
	ctx := deadline(t, 20*time.Second)
	r := newRig(t, 100_000, 16<<10)
	r.add(true, nil)
	leecher := r.add(false, nil)
	r.board.mu.Lock()
	r.board.down = true
	r.board.mu.Unlock()
	r.start(ctx)
	await(t, ctx, func() bool { return leecher.Report().TrackerError != nil })
	if leecher.Progress().Announced {
		t.Error("announced to a tracker that is down")
	}
	r.board.mu.Lock()
	r.board.down = false
	r.board.mu.Unlock()
	r.finish(ctx)
}

// BenchmarkSwarm is one seeder and its leechers over loopback; a leecher's time
// is from its start until all is verified.
func BenchmarkSwarm(b *testing.B) {
	for _, s := range []struct {
		size, piece int64
		leechers    int
	}{
		{10e3, 16 << 10, 3},
		{100e3, 16 << 10, 3},
		{1e6, 16 << 10, 3},
		{10e6, 128 << 10, 3},
		{100e6, 1 << 20, 3},
		{100e6, 1 << 20, 1},
		{10e6, 128 << 10, 200},
	} {
		b.Run(fmt.Sprintf("size=%d/leechers=%d", s.size, s.leechers), func(b *testing.B) {
			var times []float64
			var received uint64
			for range b.N {
				b.StopTimer()
				ctx := deadline(b, time.Minute)
				r := newRig(b, s.size, s.piece)
				r.add(true, nil)
				for range s.leechers {
					r.add(false, nil)
				}
				b.StartTimer()
				r.start(ctx)
				for _, report := range r.finish(ctx) {
					times = append(times, report.Completed.Sub(report.Begun).Seconds()*1e3)
					received += report.Wire.ReceivedBytes()
				}
			}
			slices.Sort(times)
			b.ReportMetric(times[len(times)/2], "p50-ms")
			b.ReportMetric(times[len(times)*99/100], "p99-ms")
			b.ReportMetric(float64(received)/float64(s.size)/float64(len(times)), "ratio")
		})
	}
}
