package spool

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

func wrong(r *Record, to State) error {
	return fmt.Errorf("clip %s is %s and cannot become %s: %w", r.Clip.ID, r.State, to, ErrState)
}

// Decide notes who shall look at a clip; it may be decided anew until that was done.
func (s *Spool) Decide(id string, d Decision) error {
	if d.Where != schemas.WhereEdge && d.Where != schemas.WhereCloud || len(d.Policy) > maxText || len(d.Reason) > maxText {
		return fmt.Errorf("decide on clip %s for %q, want %s or %s", id, d.Where, schemas.WhereEdge, schemas.WhereCloud)
	}
	_, err := s.change(id, false, func(r *Record) error {
		if r.State != Spooled && r.State != Decided {
			return wrong(r, Decided)
		}
		r.State, r.Decision, r.Stamps.Decided = Decided, d, time.Now()
		return nil
	})
	return err
}

// Detected keeps the result of looking at a clip here. Of at only Taken, Fetched,
// Decoded and Inferred count.
func (s *Spool) Detected(id string, result *schemas.Detections, at Stamps) error {
	if err := result.Validate(); err != nil {
		return fmt.Errorf("result of clip %s: %w", id, err)
	}
	data, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("result of clip %s: %w", id, err)
	}
	if len(data) > schemas.MaxResultBytes {
		return fmt.Errorf("result of clip %s: %d bytes, at most %d", id, len(data), schemas.MaxResultBytes)
	}
	if r, err := s.Get(id); err != nil {
		return err
	} else if r.State != Decided {
		return wrong(&r, Detected)
	}
	if err := s.writeResult(id, data); err != nil {
		return fmt.Errorf("keep the result of clip %s: %w", id, err)
	}
	hash := sha256.Sum256(data)
	_, err = s.change(id, false, func(r *Record) error {
		if r.State != Decided {
			return wrong(r, Detected)
		}
		r.State, r.Result = Detected, hex.EncodeToString(hash[:])
		r.Stamps.Taken, r.Stamps.Fetched, r.Stamps.Decoded, r.Stamps.Inferred = at.Taken, at.Fetched, at.Decoded, at.Inferred
		return nil
	})
	return err
}

func (s *Spool) writeResult(id string, data []byte) error {
	f, err := s.disk.open(resultPath(id), fresh)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Close())
}

// Result reads the result that was kept of a clip, nil without one. A result
// that a power cut has taken makes the clip fall back to Decided, with an error that
// wraps [ErrState].
func (s *Spool) Result(id string) (*schemas.Detections, error) {
	r, err := s.Get(id)
	if err != nil || r.Result == "" {
		return nil, err
	}
	d, err := s.readResult(&r)
	if err == nil {
		return d, nil
	}
	_, back := s.change(id, false, func(r *Record) error {
		if r.State != Detected && r.State != Uploading {
			return errSame
		}
		r.State, r.Result, r.Upload = Decided, "", nil
		r.Stamps.Taken, r.Stamps.Fetched, r.Stamps.Decoded, r.Stamps.Inferred = time.Time{}, time.Time{}, time.Time{}, time.Time{}
		return nil
	})
	return nil, errors.Join(fmt.Errorf("result of clip %s: %w: %w", id, ErrState, err), back)
}

func (s *Spool) readResult(r *Record) (*schemas.Detections, error) {
	f, err := s.disk.open(resultPath(r.Clip.ID), there)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, schemas.MaxResultBytes))
	if err != nil {
		return nil, err
	}
	if hash := sha256.Sum256(data); hex.EncodeToString(hash[:]) != r.Result {
		return nil, errors.New("the file is not the one that was written")
	}
	var d schemas.Detections
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// Uploading notes how far an upload is.
func (s *Spool) Uploading(id string, u Upload) error {
	if err := u.validate(); err != nil {
		return fmt.Errorf("clip %s: %w", id, err)
	}
	_, err := s.change(id, false, func(r *Record) error {
		if step := r.State.step(r.Decision.Where); step != StepUpload && step != StepArchive {
			return wrong(r, Uploading)
		}
		if r.State != Uploading {
			r.Stamps.Uploading = time.Now()
		}
		r.State, r.Upload = Uploading, &u
		return nil
	})
	return err
}

// Stored notes that the lab has every byte of a clip since uploaded, by the
// edge's clock.
func (s *Spool) Stored(id string, lab schemas.ClipState, uploaded time.Time) error {
	_, err := s.change(id, false, func(r *Record) error {
		if r.State.code() >= Stored.code() {
			return errSame
		}
		if r.State == Recording {
			return wrong(r, Stored)
		}
		r.State, r.Upload, r.Lab, r.Stamps.Uploaded = Stored, nil, short(lab), uploaded
		return nil
	})
	return err
}

// Missing takes back that the lab has clips: it has nothing of them, and they are
// uploaded again. Clips that are not stored are passed over.
func (s *Spool) Missing(ids ...string) error {
	for _, id := range ids {
		_, err := s.change(id, false, func(r *Record) error {
			if r.State != Stored {
				return errSame
			}
			r.State = Decided
			if r.Result != "" {
				r.State = Detected
			}
			r.Lab, r.Upload, r.Stamps.Uploaded = nil, nil, time.Time{}
			return nil
		})
		if err != nil && !errors.Is(err, ErrUnknown) {
			return err
		}
	}
	return nil
}

// short leaves out of the lab's state what the record says itself, and what may be
// long.
func short(lab schemas.ClipState) *schemas.ClipState {
	lab.Clip, lab.Upload = schemas.Clip{}, ""
	if lab.Result != nil {
		r := *lab.Result
		if len(r.Error) > maxText {
			r.Error = r.Error[:maxText]
		}
		if len(r.Labels) > 256 {
			r.Labels = nil
		}
		lab.Result = &r
	}
	return &lab
}

// Confirmed notes that clips have their results in the lab, and deletes their bytes
// once that is durable. Clips that are not here, or already confirmed, are passed
// over, and so are states that are no end.
func (s *Spool) Confirmed(at time.Time, labs ...schemas.ClipState) error {
	return s.end(func(note func(e *entry, f func(*Record))) {
		for _, lab := range labs {
			e := s.find(lab.Clip.ID)
			if e == nil || !lab.Ended() || e.code < int8(Spooled.code()) || e.code > int8(Stored.code()) {
				continue
			}
			note(e, func(r *Record) {
				r.State, r.Lab, r.Upload, r.Stamps.Confirmed = Confirmed, short(lab), nil, at
				if r.Stamps.Uploaded.IsZero() {
					r.Stamps.Uploaded = at
				}
			})
		}
	})
}

// Expire gives a clip up: its bytes are deleted, and it stays to be reported with the
// status.
func (s *Spool) Expire(id, status, reason string) error {
	known, possible := false, false
	err := s.end(func(note func(e *entry, f func(*Record))) {
		e := s.find(id)
		known = e != nil
		if known && e.code >= int8(Spooled.code()) && e.code <= int8(Stored.code()) {
			possible = true
			note(e, func(r *Record) { s.expired(r, status, reason) })
		} else if known && states[e.code] == Expired {
			possible = true
		}
	})
	switch {
	case err != nil:
		return err
	case !known:
		return fmt.Errorf("%s: %w", id, ErrUnknown)
	case !possible:
		return fmt.Errorf("expire clip %s: %w", id, ErrState)
	}
	return nil
}

// end takes clips to a state without bytes: one fsync for all of them, then
// their files go.
func (s *Spool) end(choose func(note func(e *entry, f func(*Record)))) error {
	var ended []Record
	s.mu.Lock()
	if err := s.usable(); err != nil {
		s.mu.Unlock()
		return err
	}
	var failed error
	choose(func(e *entry, f func(*Record)) {
		r, err := s.journal.read(e.off, int(e.len))
		if err == nil {
			f(r)
			e, err = s.note(r, 0)
		}
		if err != nil {
			failed = errors.Join(failed, err)
			return
		}
		s.settle(e, true)
		ended = append(ended, *r)
	})
	s.mu.Unlock()
	if len(ended) == 0 {
		return failed
	}
	if err := s.sync(); err != nil {
		return errors.Join(failed, err)
	}
	ids := make([]string, 0, len(ended))
	for i := range ended {
		r := &ended[i]
		ids = append(ids, r.Clip.ID)
		if err := s.disk.remove(clipPath(&r.Clip, false)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("delete a clip's bytes", "clip", r.Clip.ID, "error", err)
		}
		if r.Result != "" {
			if err := s.disk.remove(resultPath(r.Clip.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.log.Warn("delete a clip's result", "clip", r.Clip.ID, "error", err)
			}
		}
	}
	s.settled(ids...)
	s.pack()
	return failed
}

// Reported forgets a clip that the lab knows all of.
func (s *Spool) Reported(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	e := s.find(id)
	if e == nil {
		return nil
	}
	if Step(e.step) != StepReport {
		return fmt.Errorf("forget clip %s, which is %s: %w", id, states[e.code], ErrState)
	}
	s.tally.Reported++
	return s.forget(e, id)
}

func (s *Spool) forget(e *entry, id string) error {
	_, err := s.note(&Record{Clip: schemas.Clip{ID: id}, Seq: e.seq, State: Reported}, 0)
	s.notify()
	return err
}

// makeRoom sees to it that so many more bytes and records fit.
func (s *Spool) makeRoom(bytes int64, records int) error {
	for {
		s.mu.Lock()
		err := s.usable()
		over := s.bytes + s.kept + bytes - s.opts.MaxBytes
		many := len(s.entries) - s.dead + records - s.opts.MaxClips
		if err == nil && many > 0 && s.opts.Policy == PolicyDrop && s.forgetExpired(many) {
			s.mu.Unlock()
			continue
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if over <= 0 && many <= 0 {
			return nil
		}
		if s.opts.Policy != PolicyDrop {
			return fmt.Errorf("%w: %d bytes or %d records too many", ErrFull, max(over, 0), max(many, 0))
		}
		if many > 0 && over <= 0 {
			// The oldest one makes place for a record only by way of its end.
			over = 1
		}
		if s.dropBytes(over) == 0 {
			return fmt.Errorf("%w: nothing is left that may be dropped", ErrFull)
		}
	}
}

// forgetExpired gives up the records of the oldest expired clips.
func (s *Spool) forgetExpired(n int) bool {
	var ids []string
	for i := range s.entries {
		if e := &s.entries[i]; n > 0 && e.waits(StepReport) && states[e.code] == Expired {
			if r, err := s.journal.read(e.off, int(e.len)); err == nil {
				ids = append(ids, r.Clip.ID)
				n--
			}
		}
	}
	for _, id := range ids {
		s.tally.Forgotten++
		if err := s.forget(s.find(id), id); err != nil {
			return false
		}
	}
	return len(ids) > 0
}

// dropBytes gives up clips, the oldest first, until so many bytes are free, and
// says how many are. Those the lab has already go last.
func (s *Spool) dropBytes(want int64) int64 {
	var freed int64
	for _, stored := range []bool{false, true} {
		if freed >= want {
			break
		}
		err := s.giveUp(func(e *entry) bool {
			if freed >= want || (states[e.code] == Stored) != stored {
				return false
			}
			freed += e.size
			return true
		}, "the spool was full")
		if err != nil {
			s.log.Error("drop clips of a full spool", "error", err)
			return 0
		}
	}
	return freed
}

// giveUp expires the clips that which chooses, in their order, of those that nobody
// works on.
func (s *Spool) giveUp(which func(e *entry) bool, reason string) error {
	return s.end(func(note func(e *entry, f func(*Record))) {
		for i := range s.entries {
			e := &s.entries[i]
			if e.bits&(bitTaken|bitSettling|bitDead) != 0 || e.code < int8(Spooled.code()) || e.code > int8(Stored.code()) || !which(e) {
				continue
			}
			note(e, func(r *Record) {
				s.log.Warn("a clip is given up", "clip", r.Clip.ID, "bytes", r.Clip.Size, "reason", reason)
				s.expired(r, schemas.StatusExpired, reason)
			})
		}
	})
}
