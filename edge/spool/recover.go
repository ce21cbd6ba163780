package spool

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

const (
	partSuffix = ".part"
	copySuffix = ".copy"
)

var extensions = []struct{ media, ext string }{
	{schemas.TypeMP4, "mp4"}, {schemas.TypeMPEG, "ts"}, {schemas.TypeH264, "h264"}, {schemas.TypeMKV, "mkv"},
}

// clipPath is a clip's file. Its name tells what must be known if the journal
// does not.
func clipPath(c *schemas.Clip, part bool) string {
	name := dirClips + "/" + c.ID + "." + strconv.FormatInt(c.Trigger.UnixNano(), 10)
	for _, e := range extensions {
		if e.media == c.Type {
			name += "." + e.ext
		}
	}
	if part {
		name += partSuffix
	}
	return name
}

// parseName is the opposite of clipPath, without the directory.
func parseName(name string) (c schemas.Clip, part, ok bool) {
	name, part = strings.CutSuffix(name, partSuffix)
	fields := strings.Split(name, ".")
	if len(fields) != 3 || schemas.ClipID(fields[0]) != nil {
		return c, false, false
	}
	at, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || strconv.FormatInt(at, 10) != fields[1] {
		return c, false, false
	}
	for _, e := range extensions {
		if e.ext == fields[2] {
			c = schemas.Clip{ID: fields[0], Type: e.media, Trigger: time.Unix(0, at)}
			return c, part, c.Trigger.Year() >= 2000
		}
	}
	return c, false, false
}

func resultPath(id string) string { return dirResults + "/" + id + ".json" }

// load reads the journal.
func (s *Spool) load(room int64) error {
	if err := s.disk.remove(journalNext); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove an unfinished journal: %w", err)
	}
	f, err := s.disk.open(journalName, kept)
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	s.journal = &journal{disk: s.disk, f: f, room: &ballast{disk: s.disk, size: room}}
	if err := s.scan(f); err != nil {
		_ = f.Close()
		return err
	}
	return nil
}

func (s *Spool) scan(f file) error {
	size, err := f.size()
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	good, end, corrupt, err := scan(io.NewSectionReader(f, 0, size), func(h *head, off int64, n int) error {
		if h.Tally != nil {
			s.tally = *h.Tally
		}
		s.next = max(s.next, h.Next)
		if r := h.Record; r != nil {
			s.put(r.Clip.ID, r.Seq, r.State, r.Decision.Where, r.Clip.Size, r.Stamps.Spooled, off, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.corrupt = corrupt
	if corrupt > 0 || good < end {
		s.log.Warn("the spool's journal has lines that cannot be read", "lines", corrupt, "tail_bytes", end-good)
	}
	if good < end {
		if err := f.Truncate(good); err != nil {
			return fmt.Errorf("cut the journal's torn end: %w", err)
		}
	}
	s.journal.end = good
	if !slices.IsSortedFunc(s.entries, bySeq) {
		slices.SortStableFunc(s.entries, bySeq)
		for i := range s.entries {
			if e := &s.entries[i]; e.bits&bitDead == 0 {
				s.index[e.key] = int32(i)
			}
		}
	}
	// What a killed process wrote is there to read and may not be durable: nothing is done
	// on the strength of it before it is.
	if err := errors.Join(f.Sync(), s.disk.sync(dirRoot)); err != nil {
		return fmt.Errorf("make the journal durable: %w", err)
	}
	return nil
}

func bySeq(a, b entry) int { return cmp.Compare(a.seq, b.seq) }

// found is a file that the journal does not account for.
type found struct {
	clip    schemas.Clip
	part    bool
	size    int64
	changed time.Time
}

// recover brings what is on disk and what the journal says together. Nothing runs
// beside it.
func (s *Spool) recover(ctx context.Context) error {
	var strangers []found
	err := s.disk.each(dirClips, func(name string, size int64, changed time.Time) error {
		if strings.HasSuffix(name, copySuffix) {
			return s.disk.remove(dirClips + "/" + name)
		}
		clip, part, ok := parseName(name)
		if !ok {
			s.log.Warn("a file in the spool that is no clip is left alone", "file", name)
			return nil
		}
		e := s.find(clip.ID)
		_, buried := s.buried[keyOf(clip.ID)]
		switch {
		case buried:
			// Its removal was not durable.
			return s.disk.remove(dirClips + "/" + name)
		case e == nil || states[e.code] == Recording:
			strangers = append(strangers, found{clip, part, size, changed})
		case !states[e.code].hasBytes() || part:
			return s.disk.remove(dirClips + "/" + name)
		case size >= e.size:
			e.bits |= bitSeen
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look through the clips: %w", err)
	}
	slices.SortFunc(strangers, func(a, b found) int { return a.clip.Trigger.Compare(b.clip.Trigger) })
	for i := range strangers {
		if err := s.adopt(ctx, &strangers[i]); err != nil {
			return fmt.Errorf("recover clip %s: %w", strangers[i].clip.ID, err)
		}
	}
	if err := s.missing(); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	err = s.disk.each(dirResults, func(name string, _ int64, _ time.Time) error {
		id, _ := strings.CutSuffix(name, ".json")
		if e := s.find(id); e == nil || !states[e.code].hasBytes() {
			return s.disk.remove(dirResults + "/" + name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look through the results: %w", err)
	}
	if err := s.disk.sync(dirClips); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	return s.sync()
}

// adopt makes a clip of a recording that was cut, or of a file that no line
// tells of.
func (s *Spool) adopt(ctx context.Context, x *found) error {
	r := &Record{Clip: x.clip, Recovered: true, Truncated: x.part, Seq: s.next}
	r.Clip.Detection = s.opts.Detection
	if e := s.find(x.clip.ID); e != nil {
		known, err := s.journal.read(e.off, int(e.len))
		if err != nil {
			return err
		}
		r.Clip.Detection, r.Seq = known.Clip.Detection, known.Seq
		r.Truncated = r.Truncated || known.Truncated
	}
	name := clipPath(&x.clip, x.part)
	if x.part && x.size < s.opts.MinBytes || x.size < 1 || x.size > schemas.MaxClipBytes {
		s.log.Warn("a recording that was cut is too short and dropped", "clip", x.clip.ID, "bytes", x.size)
		if err := s.disk.remove(name); err != nil {
			return err
		}
		r.State = Dropped
		s.tally.Dropped++
		_, err := s.note(r, 0)
		return err
	}
	f, err := s.disk.open(name, there)
	if err != nil {
		return err
	}
	hash := sha256.New()
	_, err = io.Copy(hash, reader{ctx, io.NewSectionReader(f, 0, x.size)})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if x.part {
		// From its final name alone it would be taken for a whole one.
		r.State = Recording
		if _, err := s.note(r, 0); err != nil {
			return err
		}
		if err := s.sync(); err != nil {
			return err
		}
		if err := s.disk.rename(name, clipPath(&x.clip, false)); err != nil {
			return err
		}
	}
	if err := s.disk.sync(dirClips); err != nil {
		return err
	}
	r.State, r.Clip.Size, r.Clip.SHA256 = Spooled, x.size, hex.EncodeToString(hash.Sum(nil))
	r.Stamps = Stamps{Recorded: x.changed, Spooled: time.Now()}
	e, err := s.note(r, x.size)
	if err != nil {
		return err
	}
	e.bits |= bitSeen
	s.log.Info("a clip was recovered", "clip", r.Clip.ID, "bytes", x.size, "truncated", r.Truncated)
	return nil
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	in  io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.in.Read(p)
}

// missing settles clips whose bytes are not there.
func (s *Spool) missing() error {
	// Lines that are added below may move the entries.
	var lost []key
	for i := range s.entries {
		e := &s.entries[i]
		state := states[e.code]
		// Of a stored clip the lab has every byte.
		if e.bits&(bitDead|bitSeen) == 0 && state.hasBytes() && state != Stored {
			lost = append(lost, e.key)
		}
		e.bits &^= bitSeen
	}
	for _, k := range lost {
		e := &s.entries[s.index[k]]
		r, err := s.journal.read(e.off, int(e.len))
		if err != nil {
			return err
		}
		if r.State == Recording {
			r.State = Dropped
			s.tally.Dropped++
		} else {
			s.log.Error("a clip's bytes are gone from the disk", "clip", r.Clip.ID, "state", r.State)
			_ = s.disk.remove(clipPath(&r.Clip, false))
			s.expired(r, schemas.StatusLost, "its bytes are gone from the edge's disk")
		}
		if _, err := s.note(r, 0); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spool) expired(r *Record, status, reason string) {
	if len(reason) > maxText {
		reason = reason[:maxText]
	}
	r.State, r.Status, r.Error, r.Stamps.Expired = Expired, status, reason, time.Now()
	r.Upload = nil
	s.tally.Expired++
}
