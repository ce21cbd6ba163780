package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// Limits on what another sends.
const (
	maxMessage = 1 << 20 // any but a piece; a bitfield of MaxPieces fits
	maxStray   = 4 << 20 // content that nobody asked for
)

// silence is how long another may say nothing at all: two keep-alives (BEP 3)
// and a little.
const silence = 150 * time.Second

const readBuffer = 2 << 10

// reader takes messages off a connection. Blocks go from the socket into the
// store without a stop on the way; as soon as they come thickly, several by one
// call of the system, together with the headers between them.
type reader struct {
	c    *conn
	raw  syscall.RawConn
	buf  []byte
	r, w int

	ahead   int // how many blocks behind the one that comes are expected by now
	expect  []request
	places  [][]byte
	headers [mostAhead * wire.PieceHeaderSize]byte
	iov     [][]byte
	call    func(fd uintptr) bool
	n       int
	err     error
	full    []request // blocks that are there and not yet said to be
	idle    time.Time
}

// mostAhead bounds the blocks that one call of the system may read.
const mostAhead = 24

func newReader(c *conn) *reader {
	r := &reader{c: c, buf: make([]byte, readBuffer)}
	if c.p.down == nil {
		r.raw = c.tcp()
	}
	r.call = func(fd uintptr) bool {
		r.n, r.err = readv(int(fd), r.iov)
		return !errors.Is(r.err, syscall.EAGAIN) && !errors.Is(r.err, syscall.EINTR)
	}
	return r
}

// run reads until the connection ends.
func (r *reader) run() error {
	err := r.messages()
	received := &r.c.ledger.Received
	received[wire.Unknown].Bytes += uint64(r.w - r.r)
	return err
}

func (r *reader) messages() error {
	c := r.c
	received := &c.ledger.Received
	for {
		if err := r.fill(4); err != nil {
			return err
		}
		length := binary.BigEndian.Uint32(r.buf[r.r:])
		if length == 0 {
			r.r += 4
			received[wire.KeepAlive].Messages++
			received[wire.KeepAlive].Bytes += 4
			continue
		}
		if length > maxMessage {
			return fmt.Errorf("a message of %d bytes", length)
		}
		if err := r.fill(5); err != nil {
			return err
		}
		id := r.buf[r.r+4]
		if id == wire.IDPiece {
			if err := r.piece(); err != nil {
				return err
			}
			continue
		}
		size := 4 + int(length)
		if err := r.fill(size); err != nil {
			return err
		}
		m, err := wire.Parse(id, r.buf[r.r+5:r.r+size])
		if err != nil {
			return err
		}
		class := wire.ClassOf(id)
		received[class].Messages++
		received[class].Bytes += uint64(size)
		c.p.mu.Lock()
		err = c.message(m)
		c.p.mu.Unlock()
		if err != nil {
			return err
		}
		r.r += size
	}
}

// fill reads until n bytes are in the buffer.
func (r *reader) fill(n int) error {
	if r.w-r.r >= n {
		return nil
	}
	if r.r > 0 {
		copy(r.buf, r.buf[r.r:r.w])
		r.w -= r.r
		r.r = 0
	}
	if n > len(r.buf) {
		r.buf = append(make([]byte, 0, n), r.buf[:r.w]...)[:n]
	}
	for r.w < n {
		if err := r.patience(); err != nil {
			return err
		}
		k, err := r.c.c.Read(r.buf[r.w:])
		r.w += k
		if err != nil && r.w < n {
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}

// patience sets the deadline of the next read, seldom.
func (r *reader) patience() error {
	now := time.Now()
	if now.Sub(r.idle) < silence/4 {
		return nil
	}
	r.idle = now
	if err := r.c.c.SetReadDeadline(now.Add(silence)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return nil
}

// piece reads a block, and those that follow it at once.
func (r *reader) piece() error {
	c := r.c
	if err := r.fill(wire.PieceHeaderSize); err != nil {
		return err
	}
	index, begin, n, ok := wire.ParsePieceHeader(r.buf[r.r:])
	if !ok || n > wire.MaxBlock || n == 0 {
		return fmt.Errorf("a piece message with %d bytes", n)
	}
	r.r += wire.PieceHeaderSize
	r.headed()
	block, place := c.claim(index, begin, n)
	if place == nil {
		return r.discard(n)
	}
	k := copy(place, r.buf[r.r:r.w])
	r.r += k
	c.ledger.Received[wire.Payload].Bytes += uint64(k)
	if c.p.down != nil && !take(c.p.ctx, c.p.down, n) {
		return context.Cause(c.p.ctx)
	}
	err := r.content(block, place[k:])
	if err != nil {
		return err
	}
	r.tell()
	return nil
}

// headed counts the header of a piece.
func (r *reader) headed() {
	t := &r.c.ledger.Received[wire.PieceHeader]
	t.Messages++
	t.Bytes += wire.PieceHeaderSize
}

// tell says that blocks are there.
func (r *reader) tell() {
	if len(r.full) == 0 {
		return
	}
	r.c.p.mu.Lock()
	r.c.p.got(r.c, r.full)
	r.c.p.relinquish(r.full)
	r.c.p.mu.Unlock()
	r.full = r.full[:0]
}

// content reads the rest of a block.
func (r *reader) content(block request, rest []byte) error {
	c := r.c
	payload := &c.ledger.Received[wire.Payload]
	if r.raw == nil {
		for len(rest) > 0 {
			if err := r.patience(); err != nil {
				return r.lost(block, err)
			}
			n, err := c.c.Read(rest)
			payload.Bytes += uint64(n)
			rest = rest[n:]
			if err != nil && len(rest) > 0 {
				return r.lost(block, err)
			}
		}
		r.full = append(r.full, block)
		return nil
	}
	for len(rest) > 0 {
		if err := r.patience(); err != nil {
			return r.lost(block, err)
		}
		r.foresee()
		n, err := r.readv(rest)
		if err != nil {
			r.forget(0)
			return r.lost(block, err)
		}
		k := min(n, len(rest))
		payload.Bytes += uint64(k)
		rest, n = rest[k:], n-k
		if len(rest) > 0 {
			// Nothing came behind it: to expect much would be in vain.
			r.ahead = 0
			r.forget(0)
			continue
		}
		r.full = append(r.full, block)
		next, left := r.sort(n)
		if next >= 0 {
			block, rest = r.expect[next], left
			continue
		}
		return nil
	}
	r.full = append(r.full, block)
	return nil
}

// sort goes through n bytes that came behind a block: headers and blocks as
// expected, until they end or something else comes. It returns the block that
// is not whole yet with the room for its rest, or -1.
func (r *reader) sort(n int) (next int, rest []byte) {
	const size = wire.PieceHeaderSize
	payload := &r.c.ledger.Received[wire.Payload]
	if n == 0 {
		r.forget(0)
		return -1, nil
	}
	for i := range r.expect {
		header := r.headers[i*size:][:size]
		block, place := r.expect[i], r.places[i]
		if n < size || !announces(header, block) {
			r.unread(i, n)
			r.forget(i)
			return -1, nil
		}
		r.headed()
		n -= size
		k := min(n, len(place))
		payload.Bytes += uint64(k)
		n -= k
		if k < len(place) {
			r.forget(i + 1)
			r.ahead = max(i, 1)
			return i, place[k:]
		}
		r.full = append(r.full, block)
	}
	r.ahead = min(2*len(r.expect)+1, mostAhead)
	r.expect = r.expect[:0]
	// What came behind all that was expected is in the buffer.
	r.w += n
	return -1, nil
}

// announces reports whether a header is that of a block.
func announces(header []byte, q request) bool {
	index, begin, n, ok := wire.ParsePieceHeader(header)
	return ok && int32(index) == q.piece && int32(begin) == q.begin && n == int(q.n)
}

// unread puts n bytes that were taken for block i and those after it into the
// buffer, to be read as messages.
func (r *reader) unread(i, n int) {
	const size = wire.PieceHeaderSize
	buf := make([]byte, 0, max(n, readBuffer))
	for ; i < len(r.expect) && n > 0; i++ {
		for _, part := range [][]byte{r.headers[i*size:][:size], r.places[i]} {
			k := min(n, len(part))
			buf = append(buf, part[:k]...)
			n -= k
		}
	}
	if n > 0 {
		buf = append(buf, r.buf[:n]...)
	}
	r.r, r.w = 0, len(buf)
	r.buf = buf[:cap(buf)]
}

// foresee takes the blocks that should come next as the connection's to write.
func (r *reader) foresee() {
	c := r.c
	r.expect, r.places = r.expect[:0], r.places[:0]
	if r.ahead == 0 {
		return
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	for _, q := range c.pending[:min(len(c.pending), r.ahead)] {
		if !c.p.take(q) {
			break
		}
		r.expect = append(r.expect, q)
		r.places = append(r.places, c.p.place(q))
	}
	c.pending = slices.Delete(c.pending, 0, len(r.expect))
}

// forget gives back what was foreseen from block i on.
func (r *reader) forget(i int) {
	if i >= len(r.expect) {
		return
	}
	c := r.c
	c.p.mu.Lock()
	for _, q := range r.expect[i:] {
		c.giveBack(q)
	}
	c.pending = slices.Insert(c.pending, 0, r.expect[i:]...)
	c.p.mu.Unlock()
	r.expect = r.expect[:i]
}

// lost gives back a block that will not come.
func (r *reader) lost(block request, err error) error {
	r.tell()
	c := r.c
	c.p.mu.Lock()
	c.giveBack(block)
	c.over(block)
	c.p.mu.Unlock()
	return fmt.Errorf("read content: %w", err)
}

// readv reads into the rest of a block and what is expected behind it, and into
// the buffer if that is not all. The buffer is empty.
func (r *reader) readv(rest []byte) (int, error) {
	r.iov = append(r.iov[:0], rest)
	for i := range r.expect {
		r.iov = append(r.iov, r.headers[i*wire.PieceHeaderSize:][:wire.PieceHeaderSize], r.places[i])
	}
	r.r, r.w = 0, 0
	r.iov = append(r.iov, r.buf)
	if err := r.raw.Read(r.call); err != nil {
		return 0, err
	}
	if r.err != nil {
		return 0, r.err
	}
	if r.n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return r.n, nil
}

// discard drops a block that is not wanted.
func (r *reader) discard(n int) error {
	c := r.c
	c.p.mu.Lock()
	c.stray += int64(n)
	c.p.report.Wasted += int64(n)
	tooMuch := c.stray > maxStray
	c.p.mu.Unlock()
	if tooMuch {
		return fmt.Errorf("%d bytes that nobody asked for", c.stray)
	}
	payload := &c.ledger.Received[wire.Payload]
	for n > 0 {
		if err := r.fill(1); err != nil {
			return err
		}
		k := min(n, r.w-r.r)
		r.r += k
		n -= k
		payload.Bytes += uint64(k)
	}
	return nil
}
