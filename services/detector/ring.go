package detector

import (
	"io"
	"sync"
)

// ring is a pipe with a bounded memory: what fetches a clip runs ahead of what
// decodes it, but no further than that.
type ring struct {
	mu       sync.Mutex
	moved    sync.Cond
	buf      []byte
	start, n int
	end      error // what the reader gets after the last byte
	gone     bool  // nobody reads any more
}

func newRing(buf []byte) *ring {
	r := &ring{buf: buf}
	r.moved.L = &r.mu
	return r
}

// Write blocks while the ring is full. It fails once the ring has ended.
func (r *ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	written := 0
	for len(p) > 0 {
		for r.n == len(r.buf) && !r.gone && r.end == nil {
			r.moved.Wait()
		}
		switch {
		case r.end != nil:
			return written, r.end
		case r.gone:
			return written + len(p), nil
		}
		at := (r.start + r.n) % len(r.buf)
		n := copy(r.buf[at:min(at+len(r.buf)-r.n, len(r.buf))], p)
		r.n += n
		written += n
		p = p[n:]
		r.moved.Broadcast()
	}
	return written, nil
}

// Read blocks while the ring is empty.
func (r *ring) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for r.n == 0 && r.end == nil && !r.gone {
		r.moved.Wait()
	}
	switch {
	case r.gone:
		return 0, io.ErrClosedPipe
	case r.n == 0:
		return 0, r.end
	}
	n := copy(p, r.buf[r.start:min(r.start+r.n, len(r.buf))])
	r.start = (r.start + n) % len(r.buf)
	r.n -= n
	r.moved.Broadcast()
	return n, nil
}

// finish says what the reader gets after the bytes that are there; the first
// word counts.
func (r *ring) finish(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end == nil {
		r.end = err
	}
	r.moved.Broadcast()
}

// abandon drops what is there and what comes.
func (r *ring) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone, r.n = true, 0
	r.moved.Broadcast()
}
