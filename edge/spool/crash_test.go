package spool

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// book is what a caller of the spool knows of each clip, by what returned and what
// was begun.
type book map[string]*page

type page struct {
	hash                           string
	created, committing, committed bool
	ending, ended                  bool // Confirmed or Expire
	reporting, reported            bool
	aborting                       bool
}

func bytesOf(id string, n int) []byte {
	return bytes.Repeat([]byte(id+"."), n/(len(id)+1)+1)[:n]
}

func hashOf(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// work takes some clips some way, until the power is cut.
func work(s *Spool, b book) error {
	record := func(id string, n int) (*Writer, error) {
		p := &page{hash: hashOf(bytesOf(id, n))}
		b[id] = p
		w, err := s.Create(Meta{ID: id, Type: schemas.TypeMPEG, Trigger: t0.Add(time.Duration(len(b)) * time.Second), Expect: 1 << 10})
		if err != nil {
			return nil, err
		}
		p.created = true
		data := bytesOf(id, n)
		for len(data) > 0 {
			k := min(len(data), 700)
			if _, err := w.Write(data[:k]); err != nil {
				return nil, err
			}
			data = data[k:]
		}
		return w, nil
	}
	commit := func(id string) error {
		w, err := record(id, 2000)
		if err != nil {
			return err
		}
		b[id].committing = true
		if _, err := w.Commit(5*time.Second, t0, false); err != nil {
			return err
		}
		b[id].committed = true
		return nil
	}
	end := func(ids ...string) error {
		var states []schemas.ClipState
		for _, id := range ids {
			b[id].ending = true
			states = append(states, schemas.ClipState{Clip: schemas.Clip{ID: id}, State: schemas.ClipDone})
		}
		if err := s.Confirmed(t0, states...); err != nil {
			return err
		}
		for _, id := range ids {
			b[id].ended = true
		}
		return nil
	}
	report := func(id string) error {
		b[id].reporting = true
		err := s.Reported(id)
		b[id].reported = err == nil
		return err
	}
	steps := []func() error{
		func() error { return commit("a") },
		func() error { return commit("b") },
		func() error {
			return s.Decide("a", Decision{Where: schemas.WhereEdge, Policy: "adaptive", Reason: "free", Edge: time.Second})
		},
		func() error { return s.Decide("b", Decision{Where: schemas.WhereCloud, Policy: "adaptive"}) },
		func() error {
			return s.Detected("a", &schemas.Detections{Version: 1, Clip: "a", Status: schemas.StatusOK}, Stamps{Taken: t0})
		},
		func() error { return s.Uploading("b", Upload{ID: "u", PartBytes: 1000, Parts: []Part{{1, `"x"`}}}) },
		func() error { return commit("c") },
		func() error {
			w, err := record("d", 1500)
			if err != nil {
				return err
			}
			b["d"].aborting = true
			return w.Abort()
		},
		func() error { return s.Stored("b", schemas.ClipState{State: schemas.ClipQueued}, t0) },
		func() error { return s.Stored("a", schemas.ClipState{State: schemas.ClipDone}, t0) },
		func() error { return end("a", "b") },
		func() error { return report("a") },
		s.compact,
		func() error { return commit("e") },
		func() error {
			b["c"].ending = true
			err := s.Expire("c", schemas.StatusExpired, "on purpose")
			b["c"].ended = err == nil
			return err
		},
		func() error { return report("c") },
		s.compact,
		func() error { return s.Decide("e", Decision{Where: schemas.WhereCloud, Policy: "adaptive"}) },
		func() error { _, err := record("f", 900); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func openMem(t *testing.T, d *memDisk, o Options) *Spool {
	t.Helper()
	if o.MinBytes == 0 {
		o.MinBytes = 500
	}
	o.Dir = "memory"
	s, err := open(t.Context(), o, d, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// audit checks a recovered spool against what its caller knew, and then takes
// every clip to its end.
func audit(s *Spool, d *memDisk, b book) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	seen := map[string]Record{}
	withBytes := 0
	for step := range steps {
		all, err := s.List(step, OldestFirst, 1000)
		if err != nil {
			return err
		}
		for _, r := range all {
			if _, twice := seen[r.Clip.ID]; twice {
				bad("%s is there twice", r.Clip.ID)
			}
			seen[r.Clip.ID] = r
			if r.State.hasBytes() {
				withBytes++
			}
		}
	}
	for id, r := range seen {
		p := b[id]
		if p == nil {
			bad("%s came from nowhere", id)
			continue
		}
		if p.ended && r.State.hasBytes() {
			bad("%s had ended and is %s", id, r.State)
		}
		if p.committed && (r.Truncated || !r.State.hasBytes() && !p.ending) {
			bad("%s was committed and is %s, truncated %v", id, r.State, r.Truncated)
		}
		if !r.State.hasBytes() {
			continue
		}
		in, err := s.Clip(id)
		if err != nil {
			bad("%s: %w", id, err)
			continue
		}
		data, err := io.ReadAll(in)
		_ = in.Close()
		if err != nil || hashOf(data) != r.Clip.SHA256 || !r.Truncated && r.Clip.SHA256 != p.hash || r.Clip.Type != schemas.TypeMPEG {
			bad("%s: %d bytes that are not its own, truncated %v, %v", id, len(data), r.Truncated, err)
		}
	}
	for id, p := range b {
		if _, ok := seen[id]; !ok && p.committed && !p.reporting {
			bad("%s is lost", id)
		}
	}
	files := 0
	for name := range d.names {
		if strings.HasPrefix(name, dirClips+"/") {
			files++
		}
	}
	if files != withBytes {
		bad("%d files for %d clips: %v", files, withBytes, keys(d.names))
	}
	if st := s.Stats(); st.Records != len(seen) {
		bad("%d records, %d clips", st.Records, len(seen))
	}
	for id, r := range seen {
		if r.State.hasBytes() {
			if err := s.Confirmed(t0, schemas.ClipState{Clip: schemas.Clip{ID: id}, State: schemas.ClipDone}); err != nil {
				bad("%w", err)
			}
		}
		if err := s.Reported(id); err != nil {
			bad("%w", err)
		}
	}
	if st := s.Stats(); st.Records != 0 || st.Bytes != 0 {
		bad("left: %+v", st)
	}
	return errors.Join(errs...)
}

func keys[V any](m map[string]V) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}

// The power is cut before, or in the middle of, every operation on the disk, in
// three ways, and again while the next process recovers.
func TestPowerCutsAnywhere(t *testing.T) {
	whole := newMemDisk()
	s := openMem(t, whole, Options{})
	if err := work(s, book{}); err != nil {
		t.Fatal(err)
	}
	total := whole.ops
	if total < 80 {
		t.Fatalf("only %d operations", total)
	}
	for cut := 1; cut <= total+1; cut++ {
		for try := range 5 {
			how, seed := min(try, mixed), uint64(cut*100+try)
			rng := rand.New(rand.NewPCG(seed, 1))
			d := newMemDisk()
			d.cutAt = cut
			b := book{}
			if s, err := open(t.Context(), Options{Dir: "memory", MinBytes: 500}, d, 0); err == nil {
				_ = work(s, b)
				_ = s.Close()
			}
			d = d.after(how, rng)
			// The second cut comes while what the first has left is recovered.
			d.cutAt = 1 + rng.IntN(12)
			if s, err := open(t.Context(), Options{Dir: "memory", MinBytes: 500}, d, 0); err == nil {
				_ = s.Close()
			}
			d = d.after(how, rng)
			s, err := open(t.Context(), Options{Dir: "memory", MinBytes: 500}, d, 0)
			if err != nil {
				t.Fatalf("cut %d of %d, way %d: %v", cut, total, try, err)
			}
			if err := audit(s, d, b); err != nil {
				t.Fatalf("cut %d of %d, way %d: %v", cut, total, try, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d operations, %d cuts", total, (total+1)*5)
}

// The journal is cut, and damaged, at every offset: all clips whose bytes are
// there stay, each once.
func TestDamagedJournal(t *testing.T) {
	whole := newMemDisk()
	s := openMem(t, whole, Options{})
	b := book{}
	if err := work(s, b); err != nil {
		t.Fatal(err)
	}
	size := len(whole.names[journalName].data)
	for off := range size + 1 {
		for how := range 4 {
			// Every offset in one way, each way at every fourth.
			if how > 0 && off%4 != how && off != size {
				continue
			}
			d := whole.after(killed, nil)
			j := d.names[journalName]
			switch {
			case how == 0:
				j.data = j.data[:off]
			case off == size:
				j.data = append(j.data, "\x00\x00\x00garbage\nmore"...)
			case how == 1:
				j.data[off] ^= 0x40
			case how == 2:
				j.data[off] = '\n'
			case how == 3:
				clear(j.data[off:])
			}
			s, err := open(t.Context(), Options{Dir: "memory", MinBytes: 500}, d, 0)
			if err != nil {
				t.Fatalf("damage %d at %d: %v", how, off, err)
			}
			// Here only e has bytes, and f, which was being recorded; the journal had told that the
			// others have ended, which the lab knows too.
			for id, want := range map[string]bool{"e": true, "f": true} {
				r, err := s.Get(id)
				if err != nil || !r.State.hasBytes() || r.Truncated == (id == "e") || want && r.Clip.Size == 0 {
					t.Fatalf("damage %d at %d: %s is %+v, %v", how, off, id, r, err)
				}
				if in, err := s.Clip(id); err != nil {
					t.Fatal(err)
				} else if data, err := io.ReadAll(in); err != nil || hashOf(data) != r.Clip.SHA256 || id == "e" && r.Clip.SHA256 != b[id].hash {
					t.Fatalf("damage %d at %d: bytes of %s", how, off, id)
				}
			}
			// It goes on from there.
			if err := s.Decide("f", Decision{Where: schemas.WhereCloud}); err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
			if off%16 != 0 {
				continue
			}
			s, err = open(t.Context(), Options{Dir: "memory", MinBytes: 500}, d, 0)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := s.Get("f"); err != nil || r.State != Decided || r.Decision.Where != schemas.WhereCloud {
				t.Fatalf("damage %d at %d: afterwards %+v, %v", how, off, r, err)
			}
			_ = s.Close()
		}
	}
}
