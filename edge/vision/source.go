package vision

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// source is a clip's bytes on their way in.
type source struct {
	r     *bufio.Reader
	read  int64
	most  int64
	meter *meter
	// copy has all of the bytes once they have come, if they are needed again.
	copy    *os.File
	fetched time.Time
}

// errSource marks errors of the reader that the bytes come from.
type errSource struct{ error }

func (e errSource) Unwrap() error { return e.error }

func newSource(r io.Reader, clip *schemas.Clip) *source {
	s := &source{most: schemas.MaxClipBytes}
	if clip.Size > 0 {
		s.most = min(s.most, clip.Size)
	}
	s.r = bufio.NewReaderSize(r, headBytes)
	return s
}

// keep has the bytes written to a file without a name, too.
func (s *source) keep() error {
	f, err := os.CreateTemp("", "transferlab-clip-")
	if err != nil {
		return fmt.Errorf("keep clip: %w", err)
	}
	s.copy = f
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("keep clip: %w", err)
	}
	return nil
}

func (s *source) close() {
	if s.copy != nil {
		_ = s.copy.Close()
	}
}

// next reads some bytes into buf: io.EOF at the end, ErrUndecodable if there are too
// many, errSource if they cannot be had.
func (s *source) next(buf []byte) (int, error) {
	if s.meter != nil {
		defer s.meter.wait()()
	}
	n, err := s.r.Read(buf)
	s.read += int64(n)
	if s.copy != nil && n > 0 {
		if _, err := s.copy.Write(buf[:n]); err != nil {
			return n, errSource{fmt.Errorf("keep clip: %w", err)}
		}
	}
	switch {
	case s.read > s.most:
		return 0, fmt.Errorf("%w: more than %d bytes", ErrUndecodable, s.most)
	case err == io.EOF:
		if s.fetched.IsZero() {
			s.fetched = time.Now()
		}
	case err != nil:
		return n, errSource{fmt.Errorf("read clip: %w", err)}
	}
	return n, err
}

// pump hands the bytes to w until they end. If w takes no more, the rest is read all
// the same, as long as ctx lasts: whoever gave r wants to have seen all of it.
func (s *source) pump(ctx context.Context, w io.WriteCloser, progress func()) error {
	defer w.Close()
	buf := make([]byte, 256<<10)
	open := true
	for ctx.Err() == nil {
		n, err := s.next(buf)
		if open && n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				open = false
				_ = w.Close()
			}
			progress()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// drain reads what is left, into the copy if there is one, unless it is too much
// already.
func (s *source) drain(ctx context.Context) error {
	if s.read > s.most || !s.fetched.IsZero() {
		return nil
	}
	return s.pump(ctx, discard{}, func() {})
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }

func isSource(err error) bool {
	var s errSource
	return errors.As(err, &s)
}
