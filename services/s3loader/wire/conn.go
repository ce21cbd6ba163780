package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"net/http/httputil"
	"sync"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// past interrupts whatever a connection is waiting for.
var past = time.Unix(1, 0)

// conn is one connection. It belongs to one request at a time; only interrupt
// may be called by others.
type conn struct {
	net.Conn
	address string
	raw     syscall.RawConn // nil behind TLS and where there is none
	drop    discarder
	in      *bufio.Reader
	head    head
	sums    bool      // whether heads are searched for checksums
	idle    time.Time // since when
	stale   bool
	peek    func(fd uintptr) bool

	// A deadline must not overwrite an interruption that came just before.
	mu          sync.Mutex
	interrupted bool
}

func newConn(nc net.Conn, address string) *conn {
	c := &conn{Conn: nc, address: address, in: bufio.NewReaderSize(nc, maxHead)}
	if sc, ok := nc.(*net.TCPConn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
			c.drop.init(raw)
		}
	}
	c.peek = func(fd uintptr) bool {
		c.stale = pending(fd)
		return true
	}
	return c
}

func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupted = true
	_ = c.Conn.SetDeadline(past)
}

func (c *conn) wasInterrupted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.interrupted
}

// until bounds everything that follows.
func (c *conn) until(deadline time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interrupted {
		return nil
	}
	return c.Conn.SetDeadline(deadline)
}

// readUntil bounds reads only.
func (c *conn) readUntil(deadline time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interrupted {
		return nil
	}
	return c.Conn.SetReadDeadline(deadline)
}

// usable reports whether an idle connection can take a request.
func (c *conn) usable(now time.Time) bool {
	since := now.Sub(c.idle)
	switch {
	case since > maxIdle:
		return false
	case since < time.Millisecond:
		// Looking costs as much as it could save.
		return true
	}
	raw := c.raw
	if raw == nil {
		if t, ok := c.Conn.(*tls.Conn); ok {
			if sc, ok := t.NetConn().(syscall.Conn); ok {
				raw, _ = sc.SyscallConn()
			}
		}
	}
	c.stale = false
	// A deadline of the last request that has passed would refuse the look.
	if raw == nil || c.until(time.Time{}) != nil {
		return raw == nil
	}
	return raw.Read(c.peek) == nil && !c.stale
}

// dialled says how long the phases of a new connection took.
type dialled struct {
	dns, connect, tls time.Duration
}

// dial opens a connection; config is nil for plain HTTP. The phases come back
// also with an error, as far as they went.
func dial(ctx context.Context, address string, config *tls.Config) (*conn, dialled, error) {
	var (
		took    dialled
		mu      sync.Mutex // several addresses may be tried at once
		dns     time.Time
		lookups time.Duration
	)
	begin := time.Now()
	trace := &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) {
			mu.Lock()
			defer mu.Unlock()
			dns = time.Now()
		},
		DNSDone: func(httptrace.DNSDoneInfo) {
			mu.Lock()
			defer mu.Unlock()
			lookups = time.Since(dns)
		},
	}
	nc, err := (&net.Dialer{}).DialContext(httptrace.WithClientTrace(ctx, trace), "tcp", address)
	mu.Lock()
	took.dns = lookups
	mu.Unlock()
	took.connect = time.Since(begin) - took.dns
	if err != nil {
		return nil, took, fmt.Errorf("connect to %s: %w", address, err)
	}
	if config == nil {
		return newConn(nc, address), took, nil
	}
	begin = time.Now()
	tc := tls.Client(nc, config)
	err = tc.HandshakeContext(ctx)
	took.tls = time.Since(begin)
	if err != nil {
		_ = nc.Close()
		return nil, took, fmt.Errorf("TLS with %s: %w", address, err)
	}
	return newConn(tc, address), took, nil
}

// awaitByte returns when the first byte of a response is there.
func (c *conn) awaitByte() error {
	if _, err := c.in.Peek(1); err != nil {
		return fmt.Errorf("wait for the response: %w", err)
	}
	return nil
}

// readHead reads a response's head into c.head.
func (c *conn) readHead() error {
	for want := 1; ; {
		if _, err := c.in.Peek(want); err != nil {
			return fmt.Errorf("read the response's head: %w", err)
		}
		b, _ := c.in.Peek(c.in.Buffered())
		if n := headEnd(b); n >= 0 {
			err := c.head.parse(b[:n], c.sums)
			_, _ = c.in.Discard(n)
			return err
		}
		if len(b) >= maxHead {
			return malformed("a head of more than %d bytes", maxHead)
		}
		want = len(b) + 1
	}
}

// Interim responses before the real one.
const maxInterim = 8

// readFinalHead skips interim responses.
func (c *conn) readFinalHead() error {
	for range maxInterim {
		if err := c.readHead(); err != nil {
			return err
		}
		if c.head.status >= 200 || c.head.status == 101 {
			return nil
		}
	}
	return malformed("more than %d interim responses", maxInterim)
}

// body reads the body of the response whose head was read.
type body struct {
	c *conn
	// buffer is what a read takes at most; see for what is done with it.
	buffer []byte
	see    func(p []byte)
	// kernel has the rest dropped unseen.
	kernel bool
}

// read takes the whole body, at most limit bytes of it, and returns its length
// and whether the connection is at the end of the response.
func (b *body) read(limit int64) (n int64, whole bool, err error) {
	h := &b.c.head
	switch {
	case bodyless(h.status):
		return 0, true, nil
	case h.chunked:
		return b.chunked(limit)
	case h.length >= 0:
		n, err = b.exactly(min(h.length, limit))
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("body ends after %d of %d bytes: %w", n, h.length, io.ErrUnexpectedEOF)
		} else if err != nil {
			err = fmt.Errorf("read the body, at byte %d of %d: %w", n, h.length, err)
		}
		return n, err == nil && n == h.length, err
	}
	h.close = true
	n, err = b.through(b.c.in, limit)
	return n, false, err
}

// exactly reads n bytes: what came with the head, then the rest from the
// connection itself, past the buffer.
func (b *body) exactly(n int64) (int64, error) {
	var done int64
	for done < n && b.c.in.Buffered() > 0 {
		p, _ := b.c.in.Peek(int(min(n-done, int64(b.c.in.Buffered()))))
		if b.see != nil {
			b.see(p)
		}
		_, _ = b.c.in.Discard(len(p))
		done += int64(len(p))
	}
	if done == n {
		return done, nil
	}
	if b.kernel {
		m, err := b.c.drop.discard(n - done)
		return done + m, err
	}
	for done < n {
		m, err := b.c.Conn.Read(b.buffer[:min(n-done, int64(len(b.buffer)))])
		if b.see != nil {
			b.see(b.buffer[:m])
		}
		done += int64(m)
		if err != nil && done < n {
			return done, err
		}
	}
	return done, nil
}

// through reads r to its end.
func (b *body) through(r io.Reader, limit int64) (int64, error) {
	var done int64
	for {
		m, err := r.Read(b.buffer)
		if b.see != nil {
			b.see(b.buffer[:m])
		}
		done += int64(m)
		switch {
		case errors.Is(err, io.EOF):
			return done, nil
		case err != nil:
			return done, fmt.Errorf("read the body, at byte %d: %w", done, err)
		case done > limit:
			return done, fmt.Errorf("%w: more than %d bytes come", objectstore.ErrCorrupt, limit)
		}
	}
}

func (b *body) chunked(limit int64) (int64, bool, error) {
	n, err := b.through(httputil.NewChunkedReader(b.c.in), limit)
	if err != nil {
		return n, false, err
	}
	for range maxHeadLines {
		line, err := b.c.in.ReadSlice('\n')
		if err != nil {
			return n, false, fmt.Errorf("read the body's trailer: %w", err)
		}
		if len(line) <= 2 {
			return n, true, nil
		}
	}
	return n, false, malformed("a trailer of more than %d lines", maxHeadLines)
}
