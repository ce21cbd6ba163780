package spool

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

const (
	expectDefault = 12 << 20
	// writeBackEvery is how much is recorded between two requests to write it to the
	// medium: at the end there is that little left to wait for.
	writeBackEvery = 1 << 20
)

// Writer takes the bytes of one clip while it is recorded. Its methods are for one
// goroutine; what File and Written give may be used by others.
type Writer struct {
	s    *Spool
	clip schemas.Clip
	copy bool
	f    file
	hash hash.Hash

	mu      sync.Mutex
	written int64
	kept    int64
	flushed int64
	named   bool // has its final name
	done    bool
}

// Create begins a clip. An error that wraps [ErrFull] says that there is no
// room by the policy or on the disk, [ErrExists] that a clip has this id.
func (s *Spool) Create(m Meta) (*Writer, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	if m.Expect == 0 {
		m.Expect = expectDefault
	}
	w := &Writer{s: s, hash: sha256.New(), copy: m.Copy, kept: m.Expect, clip: schemas.Clip{ID: m.ID, Type: m.Type, Trigger: m.Trigger, Detection: m.Detection}}
	if err := s.begin(w); err != nil {
		return nil, fmt.Errorf("begin clip %s: %w", m.ID, err)
	}
	f, err := s.disk.open(w.path(), fresh)
	if err != nil {
		w.drop()
		if noRoom(err) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		return nil, fmt.Errorf("begin clip %s: %w", m.ID, err)
	}
	w.f = f
	return w, nil
}

// path is where the bytes are now.
func (w *Writer) path() string {
	if w.copy && !w.named {
		return clipPath(&w.clip, false) + copySuffix
	}
	return clipPath(&w.clip, !w.named)
}

func (s *Spool) begin(w *Writer) error {
	if err := s.makeRoom(w.kept, 1); err != nil {
		if errors.Is(err, ErrFull) {
			s.mu.Lock()
			s.tally.Refused++
			s.noteTally()
			s.mu.Unlock()
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if s.find(w.clip.ID) != nil {
		return ErrExists
	}
	if _, err := s.note(&Record{Clip: w.clip, Seq: s.next, State: Recording}, 0); err != nil {
		if noRoom(err) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
		return err
	}
	s.kept += w.kept
	return nil
}

// Written is how many bytes there are.
func (w *Writer) Written() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written
}

// File reads what is written, until Commit or Abort.
func (w *Writer) File() io.ReaderAt { return w.f }

// Write adds bytes. After an error that wraps [ErrFull] what is there can still
// be committed, as a truncated clip.
func (w *Writer) Write(p []byte) (int, error) {
	if w.done {
		return 0, fmt.Errorf("write to clip %s: %w", w.clip.ID, ErrState)
	}
	if w.written+int64(len(p)) > schemas.MaxClipBytes {
		return 0, fmt.Errorf("write to clip %s: %w: a clip has at most %d bytes", w.clip.ID, ErrFull, schemas.MaxClipBytes)
	}
	n, err := w.write(p)
	w.hash.Write(p[:n])
	if w.written-w.flushed >= writeBackEvery {
		w.f.writeBack(w.flushed, w.written-w.flushed)
		w.flushed = w.written
	}
	if err != nil {
		if noRoom(err) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		return n, fmt.Errorf("write to clip %s: %w", w.clip.ID, err)
	}
	return n, nil
}

func (w *Writer) write(p []byte) (int, error) {
	if more := int64(len(p)) - w.kept; more > 0 {
		if err := w.s.makeRoom(more, 0); err != nil {
			return 0, err
		}
	}
	total := 0
	for tries := 0; ; tries++ {
		n, err := w.f.WriteAt(p[total:], w.written)
		total += n
		if err := w.grow(int64(n)); err != nil {
			return total, err
		}
		if err == nil || !noRoom(err) || w.s.opts.Policy != PolicyDrop || tries == 8 {
			return total, err
		}
		if w.s.dropBytes(int64(len(p))+4<<20) == 0 {
			return total, err
		}
	}
}

// grow counts bytes that are on disk now.
func (w *Writer) grow(n int64) error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if err := w.s.usable(); err != nil {
		return err
	}
	used := min(n, w.kept)
	w.kept -= used
	w.s.kept -= used
	if e := w.s.find(w.clip.ID); e != nil {
		e.size += n
		w.s.bytes += n
	}
	w.mu.Lock()
	w.written += n
	w.mu.Unlock()
	return nil
}

// Commit ends the recording: when it returns the clip survives whatever happens, and
// waits for a decision. After an error the recording can be committed again or
// aborted.
func (w *Writer) Commit(length time.Duration, recorded time.Time, truncated bool) (Record, error) {
	r, err := w.commit(length, recorded, truncated)
	if err != nil {
		if noRoom(err) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		return Record{}, fmt.Errorf("commit clip %s: %w", w.clip.ID, err)
	}
	return r, nil
}

func (w *Writer) commit(length time.Duration, recorded time.Time, truncated bool) (Record, error) {
	if w.done || w.written == 0 {
		return Record{}, fmt.Errorf("%w: it is closed or empty", ErrState)
	}
	w.s.mu.Lock()
	err := w.s.usable()
	w.s.mu.Unlock()
	if err != nil {
		return Record{}, err
	}
	clip := w.clip
	clip.Size, clip.SHA256, clip.Length = w.written, hex.EncodeToString(w.hash.Sum(nil)), length
	if err := clip.Validate(); err != nil {
		return Record{}, err
	}
	if err := w.f.Sync(); err != nil {
		return Record{}, err
	}
	if !w.named {
		if err := w.s.disk.rename(w.path(), clipPath(&clip, false)); err != nil {
			return Record{}, err
		}
		w.named = true
	}
	if err := w.s.disk.sync(dirClips); err != nil {
		return Record{}, err
	}
	r, err := w.s.change(clip.ID, true, func(r *Record) error {
		r.Clip, r.State, r.Truncated = clip, Spooled, truncated
		r.Stamps = Stamps{Recorded: recorded, Spooled: time.Now()}
		return nil
	})
	if err != nil {
		return Record{}, err
	}
	w.done = true
	w.s.unkeep(w)
	_ = w.f.Close()
	return r, nil
}

func (s *Spool) unkeep(w *Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept -= w.kept
	w.kept = 0
}

// Abort gives the recording up.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	err := w.f.Close()
	w.s.mu.Lock()
	closed := w.s.closed
	w.s.mu.Unlock()
	if closed {
		return err
	}
	if rm := w.s.disk.remove(w.path()); rm != nil {
		err = errors.Join(err, rm)
	}
	w.drop()
	if err != nil {
		return fmt.Errorf("abort clip %s: %w", w.clip.ID, err)
	}
	return nil
}

// drop notes that a recording never becomes a clip.
func (w *Writer) drop() {
	s := w.s
	s.unkeep(w)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(w.clip.ID)
	if e == nil {
		return
	}
	s.tally.Dropped++
	if _, err := s.note(&Record{Clip: w.clip, Seq: e.seq, State: Dropped}, 0); err != nil {
		s.log.Warn("note a dropped recording", "clip", w.clip.ID, "error", err)
	}
}
