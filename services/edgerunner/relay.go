package edgerunner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// relay stands between an edge and the lab: every connection through it has a
// longer round trip, all of them share an uplink, and outages cut them. It works
// on streams of bytes, so that neither packets are lost nor TCP's slow start is
// that of a long way: links of emulated sites are for that.
type relay struct {
	uplink   *rate.Limiter // bytes a second; nil: as fast as it goes
	oneWay   time.Duration
	log      *slog.Logger
	mu       sync.Mutex
	down     bool
	open     map[net.Conn]struct{}
	parts    sync.WaitGroup
	listener []net.Listener
}

// relayChunk is what waits for the uplink at a time.
const relayChunk = 16 << 10

func newRelay(bytesPerS float64, rtt time.Duration, log *slog.Logger) *relay {
	r := &relay{oneWay: rtt / 2, log: log, open: map[net.Conn]struct{}{}}
	if bytesPerS > 0 {
		r.uplink = rate.NewLimiter(rate.Limit(bytesPerS), relayChunk)
	}
	return r
}

// to opens a way to an address and returns where it begins.
func (r *relay) to(ctx context.Context, address string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen for the emulated uplink: %w", err)
	}
	r.listener = append(r.listener, l)
	context.AfterFunc(ctx, func() { _ = l.Close() })
	r.parts.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			if !r.admit(near) {
				_ = near.Close()
				continue
			}
			r.parts.Go(func() {
				defer r.leave(near)
				if err := r.carry(ctx, near, address); err != nil && ctx.Err() == nil {
					r.log.Debug("emulated uplink", "error", err)
				}
			})
		}
	})
	return l.Addr().String(), nil
}

func (r *relay) admit(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return false
	}
	r.open[c] = struct{}{}
	return true
}

func (r *relay) leave(c net.Conn) {
	_ = c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
}

// outages cuts every connection each time, and lets nobody in for a while.
func (r *relay) outages(ctx context.Context, every, length time.Duration) {
	r.parts.Go(func() {
		for next := time.Now().Add(every - length); ; next = next.Add(every) {
			if sleepUntil(ctx, next) != nil {
				return
			}
			r.cut(true)
			err := sleepUntil(ctx, next.Add(length))
			r.cut(false)
			if err != nil {
				return
			}
		}
	})
}

func (r *relay) cut(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
	if !down {
		return
	}
	for c := range r.open {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
	}
}

// wait ends what is under way once the relay's context has ended.
func (r *relay) wait() {
	for _, l := range r.listener {
		_ = l.Close()
	}
	r.cut(true)
	r.parts.Wait()
}

func (r *relay) carry(ctx context.Context, near net.Conn, to string) error {
	var d net.Dialer
	// The handshake takes a round trip.
	if err := sleepUntil(ctx, time.Now().Add(2*r.oneWay)); err != nil {
		return err
	}
	far, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	defer func() { _ = far.Close() }()
	defer context.AfterFunc(ctx, func() { _ = near.Close(); _ = far.Close() })()
	back := make(chan error, 1)
	go func() {
		err := r.pipe(ctx, near, far, nil)
		_ = near.Close()
		back <- err
	}()
	err = r.pipe(ctx, far, near, r.uplink)
	_ = far.Close()
	return errors.Join(err, <-back)
}

// delayed is what is on its way.
type delayed struct {
	data []byte
	due  time.Time
}

// pipe carries one direction: bytes leave at the uplink's rate and arrive later.
func (r *relay) pipe(ctx context.Context, dst io.Writer, src io.Reader, limit *rate.Limiter) error {
	// As much as a fast way of a second holds; a full one makes the sender wait.
	way := make(chan delayed, 1024)
	sent := make(chan error, 1)
	go func() {
		for d := range way {
			if err := sleepUntil(ctx, d.due); err != nil {
				sent <- err
				return
			}
			if _, err := dst.Write(d.data); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	var failed error
	for failed == nil {
		buf := make([]byte, relayChunk)
		n, err := src.Read(buf)
		if n > 0 {
			if limit != nil {
				if err := limit.WaitN(ctx, n); err != nil {
					failed = err
					break
				}
			}
			select {
			case way <- delayed{buf[:n], time.Now().Add(r.oneWay)}:
			case err := <-sent:
				return err
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				failed = err
			}
			break
		}
	}
	close(way)
	return errors.Join(failed, <-sent)
}
