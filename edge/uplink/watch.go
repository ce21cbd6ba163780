package uplink

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn counts what the other side has acknowledged.
type conn struct {
	net.Conn
	wrote, read atomic.Int64
	arrived     atomic.Int64 // acknowledged, when the kernel was last asked
	kernel      kernel
}

func newConn(k net.Conn) *conn { return &conn{Conn: k, kernel: kernelOf(k)} }

func (k *conn) Write(p []byte) (int, error) {
	n, err := k.Conn.Write(p)
	k.wrote.Add(int64(n))
	return n, err
}

func (k *conn) Read(p []byte) (int, error) {
	n, err := k.Conn.Read(p)
	k.read.Add(int64(n))
	return n, err
}

// acked is how much of what was written has arrived.
func (k *conn) acked() int64 {
	if !k.kernel.tells() {
		return k.wrote.Load()
	}
	// A closed connection is not known to the kernel any longer.
	if n, ok := k.kernel.acked(); ok {
		k.arrived.Store(n)
	}
	return k.arrived.Load()
}

// watch sees whether a request gets on.
type watch struct {
	patience time.Duration

	mu   sync.Mutex
	conn *conn
	from int64 // acknowledged on the connection before the request
	told int64 // of this request, to the meter
}

// onto is told which connection a request has.
func (w *watch) onto(c net.Conn) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	k, ok := c.(*conn)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn, w.from, w.told = k, k.acked(), 0
}

// progress is whatever changes while a request gets on, and how many bytes were
// acknowledged since the last call.
func (w *watch) progress() (sign [2]int64, more int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		return sign, 0
	}
	acked := w.conn.acked()
	more = max(acked-w.from-w.told, 0)
	w.told += more
	return [2]int64{acked + w.conn.wrote.Load(), w.conn.read.Load()}, more
}

// watchEvery is how often a transfer's progress is looked at.
const watchEvery = 200 * time.Millisecond

// start watches until the returned function is called, which gives the
// acknowledged bytes that the meter has not been told of. A request that does not get
// on is cancelled.
func (w *watch) start(cancel context.CancelCauseFunc, m *meter) (stop func() int64) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(min(watchEvery, w.patience/4))
		defer tick.Stop()
		last, since := [2]int64{-1, -1}, time.Now()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			sign, more := w.progress()
			if m != nil {
				m.add(more)
			}
			if sign != last {
				last, since = sign, time.Now()
			} else if time.Since(since) >= w.patience {
				cancel(errStalled)
				return
			}
		}
	}()
	return func() int64 {
		close(done)
		<-ended
		_, more := w.progress()
		return more
	}
}
