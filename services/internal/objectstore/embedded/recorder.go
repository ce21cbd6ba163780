package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	// pieceBytes is how much is handed to the socket between looks at deadlines and faults. sendfile(2) moves at most
	// 4 MiB a call from Go anyway.
	pieceBytes   = 4 << 20
	rationBytes  = 64 << 10
	faultyPieces = 256 << 10
)

var errCutShort = errors.New("response cut short on purpose")

// recorder counts and, on demand, spoils a response. It passes ReadFrom on, without which no response would be sent by
// sendfile(2).
type recorder struct {
	http.ResponseWriter
	ctl    *http.ResponseController
	ctx    context.Context
	faults *Faults
	fault  *Fault // applied to the body, nil if none
	idle   time.Duration

	status     int
	sent       int64
	force      int
	etagSuffix string
	cut        bool
}

var chatter = [...]string{
	"Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers",
	"Access-Control-Expose-Headers", "X-Amz-Id-2",
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	h := w.Header()
	if w.force != 0 && status >= 400 {
		status = w.force
	}
	if w.etagSuffix != "" {
		if tag := h.Get("ETag"); strings.HasSuffix(tag, `"`) && !strings.Contains(tag, "-") {
			h.Set("ETag", strings.TrimSuffix(tag, `"`)+w.etagSuffix+`"`)
		}
	}
	for name := range h {
		if strings.HasPrefix(name, checksumHeader) {
			// All of ours are of the whole object, or of a whole part.
			h.Set(checksumHeader+"Type", "FULL_OBJECT")
			break
		}
	}
	// What gofakes3 tells browsers on every response is a fifth of its size, and no browser signs requests to us.
	for _, name := range chatter {
		delete(h, name)
	}
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// begin is due before any byte of the body.
func (w *recorder) begin() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.sent == 0 {
		w.deadline()
	}
	if w.cut {
		return errCutShort
	}
	return nil
}

// deadline gives the client another idle timeout to take what is sent next. It is due at the start of every request: the
// one set for the last response on the connection would still be in force.
func (w *recorder) deadline() {
	_ = w.ctl.SetWriteDeadline(time.Now().Add(w.idle))
}

func (w *recorder) Write(p []byte) (int, error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	if !w.faults.active.Load() && w.fault == nil {
		n, err := w.ResponseWriter.Write(p)
		w.sent += int64(n)
		return n, err
	}
	var total int
	for len(p) > 0 {
		n, err := w.spoil(p[:min(len(p), w.piece())])
		total += n
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

func (w *recorder) piece() int {
	switch {
	case !w.faults.active.Load():
		return pieceBytes
	case w.faults.limited():
		return rationBytes
	}
	return faultyPieces
}

// spoil writes one piece, subject to the response's fault.
func (w *recorder) spoil(p []byte) (int, error) {
	if err := w.faults.pace(w.ctx, int64(len(p))); err != nil {
		return 0, err
	}
	w.deadline()
	f := w.fault
	if f != nil {
		at := f.AfterBytes - w.sent
		switch {
		case f.CorruptByte && at >= 0 && at < int64(len(p)):
			p = append([]byte(nil), p...)
			p[at] ^= 0x10
		case (f.Truncate || f.Reset) && at < int64(len(p)):
			n, err := w.ResponseWriter.Write(p[:max(at, 0)])
			w.sent += int64(n)
			return n, errors.Join(err, w.cutShort(f.Reset))
		}
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// cutShort closes the connection in the middle of the response.
func (w *recorder) cutShort(reset bool) error {
	w.cut = true
	_ = w.ctl.Flush()
	conn, _, err := w.ctl.Hijack()
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	if reset {
		raw := conn
		if t, ok := conn.(*tls.Conn); ok {
			raw = t.NetConn()
		}
		if t, ok := raw.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
	}
	_ = conn.Close()
	return errCutShort
}

// ReadFrom sends src. It is called with the *io.LimitedReader over an *os.File that sendfile(2) needs, and keeps it one.
func (w *recorder) ReadFrom(src io.Reader) (int64, error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	rf, ok := w.ResponseWriter.(io.ReaderFrom)
	limited, isLimited := src.(*io.LimitedReader)
	if !ok || !isLimited || w.fault != nil {
		return io.CopyBuffer(struct{ io.Writer }{w}, src, make([]byte, faultyPieces))
	}
	var total int64
	for limited.N > 0 {
		piece := min(limited.N, int64(w.piece()))
		if w.faults.active.Load() {
			if err := w.faults.pace(w.ctx, piece); err != nil {
				return total, err
			}
			w.deadline()
		} else if total > 0 {
			w.deadline()
		}
		n, err := rf.ReadFrom(&io.LimitedReader{R: limited.R, N: piece})
		limited.N -= n
		total += n
		w.sent += n
		if err != nil {
			return total, err
		}
		if n < piece {
			return total, nil // the file is shorter than it said
		}
	}
	return total, nil
}

// countedBody counts a request's body and gives the client an idle timeout for each piece of it.
type countedBody struct {
	io.ReadCloser
	ctl   *http.ResponseController
	idle  time.Duration
	n     int64
	ended bool
	until time.Time
}

func (b *countedBody) Read(p []byte) (int, error) {
	// A system call's worth of clock reading a piece, but a timer's only once in a while.
	if now := time.Now(); b.until.Sub(now) < b.idle/2 {
		b.until = now.Add(b.idle)
		_ = b.ctl.SetReadDeadline(b.until)
	}
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	if err != nil {
		b.ended = true
		// From here on net/http watches the connection for the client's leaving, and would take the deadline for that.
		_ = b.ctl.SetReadDeadline(time.Time{})
	}
	return n, err
}
