package spool

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// What a full spool does with a new recording.
const (
	PolicyRefuse = "refuse-new"
	PolicyDrop   = "drop-oldest-undelivered"
)

// Options say where a spool is and what bounds it.
type Options struct {
	Dir      string
	MaxBytes int64         // of clips' bytes; 0 is 8 GiB
	MaxClips int           // records, each some 100 bytes of memory; 0 is 200 000
	MaxAge   time.Duration // since spooled: clips older than this that the lab does not have expire; 0 is never
	Policy   string        // PolicyRefuse or PolicyDrop; empty is PolicyRefuse
	MinBytes int64         // a recording that a crash cut below this is dropped; 0 is 64 KiB
	// Detection is of clips that are known by their file's name alone.
	Detection schemas.Detection
	Log       *slog.Logger
}

// Validate reports every fault.
func (o *Options) Validate() error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("spool.dir: is required"))
	}
	if o.MaxBytes < 0 || o.MaxBytes > 0 && o.MaxBytes < 1<<20 {
		errs = append(errs, fmt.Errorf("spool.max_bytes: %d, want 0 (8 GiB) or at least 1 MiB", o.MaxBytes))
	}
	if o.MaxClips < 0 || o.MaxClips > 10_000_000 {
		errs = append(errs, fmt.Errorf("spool.max_clips: %d, want 0 (200000) to 10000000", o.MaxClips))
	}
	if o.MaxAge < 0 || o.MaxAge > 0 && o.MaxAge < time.Second {
		errs = append(errs, fmt.Errorf("spool.max_age: %s, want 0 (none) or at least 1s", o.MaxAge))
	}
	if !slices.Contains([]string{"", PolicyRefuse, PolicyDrop}, o.Policy) {
		errs = append(errs, fmt.Errorf("spool.policy: %q, want %s or %s", o.Policy, PolicyRefuse, PolicyDrop))
	}
	if o.MinBytes < 0 || o.MinBytes > schemas.MaxClipBytes {
		errs = append(errs, fmt.Errorf("spool.min_bytes: %d, want 0 (64 KiB) to %d", o.MinBytes, schemas.MaxClipBytes))
	}
	return errors.Join(append(errs, o.Detection.Validate())...)
}

func (o *Options) defaults() {
	if o.MaxBytes == 0 {
		o.MaxBytes = 8 << 30
	}
	if o.MaxClips == 0 {
		o.MaxClips = 200_000
	}
	if o.Policy == "" {
		o.Policy = PolicyRefuse
	}
	if o.MinBytes == 0 {
		o.MinBytes = 64 << 10
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// key stands for a clip's id in memory: long enough that no two are alike.
type key [16]byte

func keyOf(id string) key {
	h := sha256.Sum256([]byte(id))
	return key(h[:16])
}

// entry is what is in memory of a clip. It has no pointers: the garbage
// collector does not look at a backlog.
type entry struct {
	key  key
	seq  uint64
	off  int64 // of its last line
	size int64 // bytes on disk that count
	at   int64 // when it was spooled, ns
	len  int32
	step int8
	code int8 // of its state
	bits uint8
}

const (
	bitTaken    = 1 << iota // someone works on it
	bitSettling             // its line is not durable yet, and must be
	bitSeen                 // its file was found (while opening)
	bitDead                 // removed
)

// waits reports whether the clip is there for whoever takes this step.
func (e *entry) waits(s Step) bool {
	return e.bits&(bitTaken|bitSettling|bitDead) == 0 && Step(e.step) == s
}

// Spool is an open spool. Its methods may be called from several goroutines.
type Spool struct {
	opts  Options
	log   *slog.Logger
	disk  disk
	lock  io.Closer
	ended chan struct{} // closed by Close
	idle  sync.WaitGroup

	mu      sync.Mutex
	journal *journal
	entries []entry // in the order of seq
	index   map[key]int32
	buried  map[key]struct{} // forgotten clips that the journal still tells of, while opening
	dead    int
	live    int64      // bytes of the journal's lines that count
	counts  [steps]int // clips that wait for each step
	byState map[int8]int
	bytes   int64
	kept    int64 // room kept for recordings beyond what they have written
	next    uint64
	tally   Tally
	corrupt int
	changed chan struct{}
	broken  error
	closed  bool
	packing bool
}

// Open opens the spool of a directory, makes it if need be, and recovers what an
// earlier process left there. ctx bounds the opening alone.
func Open(ctx context.Context, o Options) (*Spool, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	d, err := newOSDisk(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	held, err := lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open spool %s: %w", o.Dir, err)
	}
	s, err := open(ctx, o, d, ballastBytes)
	if err != nil {
		_ = held.Close()
		return nil, fmt.Errorf("open spool %s: %w", o.Dir, err)
	}
	s.lock = held
	return s, nil
}

func open(ctx context.Context, o Options, d disk, ballast int64) (*Spool, error) {
	o.defaults()
	s := &Spool{
		opts: o, log: o.Log, disk: d, ended: make(chan struct{}), index: map[key]int32{}, byState: map[int8]int{},
		buried: map[key]struct{}{}, changed: make(chan struct{}), next: 1,
	}
	if err := s.load(ballast); err != nil {
		return nil, err
	}
	if err := s.recover(ctx); err != nil {
		_ = s.journal.f.Close()
		return nil, err
	}
	s.buried = nil
	s.journal.room.take()
	s.idle.Go(s.keep)
	return s, nil
}

// Close ends the spool: those who wait in Take and those who record get
// ErrClosed. What was being recorded is recovered by the next Open.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.ended)
	s.notify()
	s.mu.Unlock()
	s.idle.Wait()
	err := s.sync()
	s.journal.syncing.Lock()
	defer s.journal.syncing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	err = errors.Join(err, s.journal.f.Close())
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	if err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}

// keep does what time brings.
func (s *Spool) keep() {
	every := time.Minute
	if s.opts.MaxAge > 0 {
		every = min(every, max(s.opts.MaxAge/10, 100*time.Millisecond))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		}
		if err := s.age(time.Now()); err != nil {
			s.log.Error("expire clips of the spool", "error", err)
		}
		s.mu.Lock()
		s.journal.room.take()
		s.mu.Unlock()
		s.pack()
	}
}

// age expires what has become too old.
func (s *Spool) age(now time.Time) error {
	if s.opts.MaxAge == 0 {
		return nil
	}
	oldest := now.Add(-s.opts.MaxAge).UnixNano()
	return s.giveUp(func(e *entry) bool { return e.at < oldest && states[e.code] != Stored },
		fmt.Sprintf("older than %s", s.opts.MaxAge))
}

// Stats are the spool's counts.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Stats{Clips: map[State]int{}, Records: len(s.entries) - s.dead, Bytes: s.bytes, Journal: s.journal.end, Tally: s.tally, Corrupt: s.corrupt}
	for code, n := range s.byState {
		if n > 0 {
			out.Clips[states[code]] = n
		}
	}
	for i := range s.entries {
		if e := &s.entries[i]; e.bits&bitDead == 0 && states[e.code].hasBytes() && e.at != 0 {
			out.Oldest = time.Unix(0, e.at)
			break
		}
	}
	return out
}

// Changed is closed at the next change of any clip.
func (s *Spool) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Spool) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Spool) usable() error {
	if s.closed {
		return ErrClosed
	}
	return s.broken
}

// Take waits for a clip that is to take a step, and that nobody has taken. It
// is the caller's until Release.
func (s *Spool) Take(ctx context.Context, step Step, order Order) (Record, error) {
	for {
		s.mu.Lock()
		if err := s.usable(); err != nil {
			s.mu.Unlock()
			return Record{}, err
		}
		if e := s.first(step, order); e != nil {
			r, err := s.journal.read(e.off, int(e.len))
			if err == nil {
				s.count(e, -1)
				e.bits |= bitTaken
				s.count(e, 1)
			}
			s.mu.Unlock()
			if err != nil {
				return Record{}, err
			}
			return *r, nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return Record{}, ctx.Err()
		case <-changed:
		}
	}
}

func (s *Spool) first(step Step, order Order) *entry {
	if step < 0 || step >= steps || s.counts[step] == 0 {
		return nil
	}
	for i := range s.entries {
		if order == NewestFirst {
			i = len(s.entries) - 1 - i
		}
		if e := &s.entries[i]; e.waits(step) {
			return e
		}
	}
	return nil
}

// Release gives back what Take gave; for a clip nobody has it does nothing.
func (s *Spool) Release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.find(id); e != nil && e.bits&bitTaken != 0 {
		s.count(e, -1)
		e.bits &^= bitTaken
		s.count(e, 1)
		s.notify()
	}
}

// List gives the clips that are to take a step, taken or not, at most so many.
func (s *Spool) List(step Step, order Order, most int) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	var out []Record
	for i := range s.entries {
		if order == NewestFirst {
			i = len(s.entries) - 1 - i
		}
		if len(out) >= most {
			break
		}
		if e := &s.entries[i]; e.bits&(bitDead|bitSettling) == 0 && Step(e.step) == step {
			r, err := s.journal.read(e.off, int(e.len))
			if err != nil {
				return nil, err
			}
			out = append(out, *r)
		}
	}
	return out, nil
}

// Get gives a clip's record.
func (s *Spool) Get(id string) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return Record{}, err
	}
	e := s.find(id)
	if e == nil {
		return Record{}, fmt.Errorf("%s: %w", id, ErrUnknown)
	}
	r, err := s.journal.read(e.off, int(e.len))
	if err != nil {
		return Record{}, err
	}
	return *r, nil
}

// Bytes is an open clip.
type Bytes interface {
	io.ReaderAt
	io.Reader
	io.Closer
}

// Clip opens a clip's bytes.
func (s *Spool) Clip(id string) (Bytes, error) {
	r, err := s.Get(id)
	if err != nil {
		return nil, err
	}
	if !r.State.hasBytes() || r.State == Recording {
		return nil, fmt.Errorf("open clip %s, which is %s: %w", id, r.State, ErrState)
	}
	f, err := s.disk.open(clipPath(&r.Clip, false), there)
	if err != nil {
		return nil, fmt.Errorf("open clip: %w", err)
	}
	return clipBytes{io.NewSectionReader(f, 0, r.Clip.Size), f}, nil
}

type clipBytes struct {
	*io.SectionReader
	io.Closer
}

func (s *Spool) find(id string) *entry {
	i, ok := s.index[keyOf(id)]
	if !ok {
		return nil
	}
	return &s.entries[i]
}

// count adds an entry to the counts, or takes it out with −1.
func (s *Spool) count(e *entry, by int) {
	s.byState[e.code] += by
	if e.step >= 0 && e.waits(Step(e.step)) {
		s.counts[e.step] += by
	}
}

// put notes what a line says of a clip; size is of its bytes on disk.
func (s *Spool) put(id string, seq uint64, state State, where string, size int64, spooled time.Time, off int64, n int) *entry {
	k := keyOf(id)
	i, known := s.index[k]
	if !known {
		i = int32(len(s.entries))
		s.entries = append(s.entries, entry{key: k, seq: seq})
		s.index[k] = i
	} else {
		e := &s.entries[i]
		s.count(e, -1)
		s.bytes -= e.size
		s.live -= int64(e.len)
	}
	e := &s.entries[i]
	e.off, e.len, e.code, e.step, e.size = off, int32(n), int8(state.code()), int8(state.step(where)), 0
	if !spooled.IsZero() {
		e.at = spooled.UnixNano()
	}
	if state.hasBytes() {
		e.size = size
	}
	s.bytes += e.size
	s.live += int64(n)
	s.next = max(s.next, seq+1)
	if state.gone() {
		s.live -= int64(n)
		e.bits |= bitDead
		s.dead++
		delete(s.index, k)
		if s.buried != nil {
			s.buried[k] = struct{}{}
		}
		s.squeeze()
		return nil
	}
	delete(s.buried, k)
	s.count(e, 1)
	return e
}

// squeeze drops dead entries once they are many.
func (s *Spool) squeeze() {
	if s.dead < 1024 || s.dead < len(s.entries)/2 {
		return
	}
	live := make([]entry, 0, len(s.entries)-s.dead)
	index := make(map[key]int32, cap(live))
	for _, e := range s.entries {
		if e.bits&bitDead == 0 {
			index[e.key] = int32(len(live))
			live = append(live, e)
		}
	}
	s.entries, s.index, s.dead = live, index, 0
}

// note journals a record; the spool's lock is held.
func (s *Spool) note(r *Record, size int64) (*entry, error) {
	l := line{Record: r}
	if r.State.gone() || r.State == Expired {
		l.Tally, l.Next = &s.tally, s.next
	}
	data, err := encodeLine(l)
	if err != nil {
		return nil, err
	}
	off, err := s.journal.append(data)
	if err != nil {
		return nil, err
	}
	return s.put(r.Clip.ID, r.Seq, r.State, r.Decision.Where, size, r.Stamps.Spooled, off, len(data)), nil
}

// noteTally journals the counts; losing them is harmless.
func (s *Spool) noteTally() {
	data, err := encodeLine(line{Tally: &s.tally, Next: s.next})
	if err == nil {
		_, err = s.journal.append(data)
	}
	if err != nil {
		s.log.Warn("keep counts of the spool", "error", err)
	}
}

// sync makes everything journalled so far durable. After an error nothing is
// known of what is on the medium: the spool is of no use until it is opened anew.
func (s *Spool) sync() error {
	j := s.journal
	s.mu.Lock()
	written := j.written
	s.mu.Unlock()
	j.syncing.Lock()
	defer j.syncing.Unlock()
	if j.synced >= written {
		return nil
	}
	s.mu.Lock()
	f, upTo, broken := j.f, j.written, s.broken
	s.mu.Unlock()
	if broken != nil {
		return broken
	}
	if err := f.Sync(); err != nil {
		s.mu.Lock()
		s.broken = fmt.Errorf("%w: %w", ErrBroken, err)
		err = s.broken
		s.notify()
		s.mu.Unlock()
		return err
	}
	j.synced = upTo
	return nil
}

// change takes a clip a step further: f changes its record, or gives errSame
// when there is nothing to do.
func (s *Spool) change(id string, durable bool, f func(*Record) error) (Record, error) {
	s.mu.Lock()
	if err := s.usable(); err != nil {
		s.mu.Unlock()
		return Record{}, err
	}
	e := s.find(id)
	if e == nil {
		s.mu.Unlock()
		return Record{}, fmt.Errorf("%s: %w", id, ErrUnknown)
	}
	r, err := s.journal.read(e.off, int(e.len))
	if err == nil {
		err = f(r)
	}
	if err != nil {
		s.mu.Unlock()
		if errors.Is(err, errSame) {
			return *r, nil
		}
		return Record{}, err
	}
	e, err = s.note(r, e.size)
	if err == nil && durable && e != nil {
		s.settle(e, true)
	}
	if err == nil {
		s.notify()
	}
	s.mu.Unlock()
	if err != nil {
		return Record{}, err
	}
	if durable {
		if err := s.sync(); err != nil {
			return Record{}, err
		}
		s.settled(id)
	}
	s.pack()
	return *r, nil
}

// settle hides a clip from those who wait for work until its line is durable.
func (s *Spool) settle(e *entry, hide bool) {
	s.count(e, -1)
	if hide {
		e.bits |= bitSettling
	} else {
		e.bits &^= bitSettling
	}
	s.count(e, 1)
}

func (s *Spool) settled(ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if e := s.find(id); e != nil {
			s.settle(e, false)
		}
	}
	s.notify()
}

var errSame = errors.New("nothing to do")

// packFrom is the size below which a journal is left alone.
const packFrom = 1 << 20

// pack writes the journal anew when most of it is outdated.
func (s *Spool) pack() {
	s.mu.Lock()
	due := !s.packing && s.usable() == nil && s.journal.end > packFrom && s.journal.end > 3*s.live
	s.packing = s.packing || due
	s.mu.Unlock()
	if !due {
		return
	}
	err := s.compact()
	s.mu.Lock()
	s.packing = false
	s.mu.Unlock()
	if err != nil {
		s.log.Warn("write the spool's journal anew", "error", err)
	}
}

// compact writes a journal of last lines alone and puts it in the old one's
// place. Others go on with the old one until the last moment.
func (s *Spool) compact() error {
	j := s.journal
	j.syncing.Lock()
	defer j.syncing.Unlock()

	s.mu.Lock()
	type was struct {
		off int64
		len int32
	}
	var lines []was
	for i := range s.entries {
		if e := &s.entries[i]; e.bits&bitDead == 0 {
			lines = append(lines, was{e.off, e.len})
		}
	}
	base, old, first := j.end, j.f, line{Tally: new(Tally), Next: s.next}
	*first.Tally = s.tally
	s.mu.Unlock()

	// A file whose removal is not durable would come back and, with no line that
	// tells of it, be taken for a new clip.
	if err := s.disk.sync(dirClips); err != nil {
		return err
	}
	next, err := s.disk.open(journalNext, fresh)
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			_ = next.Close()
			_ = s.disk.remove(journalNext)
		}
	}()
	out := &appender{f: next}
	data, err := encodeLine(first)
	if err != nil {
		return err
	}
	out.write(data)
	moved := make(map[int64]int64, len(lines))
	buf := make([]byte, 0, 4096)
	for _, l := range lines {
		buf = slices.Grow(buf[:0], int(l.len))[:l.len]
		if _, err := old.ReadAt(buf, l.off); err != nil {
			return err
		}
		moved[l.off] = out.end()
		out.write(buf)
	}
	if err := errors.Join(out.flush(), next.Sync()); err != nil {
		return err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	shift := out.end() - base
	for off := base; off < j.end; {
		buf = slices.Grow(buf[:0], 64<<10)[:min(64<<10, j.end-off)]
		if _, err := old.ReadAt(buf, off); err != nil {
			return err
		}
		out.write(buf)
		off += int64(len(buf))
	}
	if err := errors.Join(out.flush(), next.Sync(), s.disk.rename(journalNext, journalName)); err != nil {
		return err
	}
	done = true
	for i := range s.entries {
		e := &s.entries[i]
		if to, ok := moved[e.off]; ok && e.off < base {
			e.off = to
		} else {
			e.off += shift
		}
	}
	j.f, j.end = next, out.end()
	_ = old.Close()
	if err := s.disk.sync(dirRoot); err != nil {
		// Which of the two journals a power cut leaves is not known: what goes into this
		// one may be lost.
		s.broken = fmt.Errorf("%w: %w", ErrBroken, err)
		return s.broken
	}
	j.synced = j.written
	return nil
}

// appender writes to the end of a file in large pieces.
type appender struct {
	f   file
	at  int64
	buf []byte
	err error
}

func (a *appender) end() int64 { return a.at + int64(len(a.buf)) }

func (a *appender) write(p []byte) {
	a.buf = append(a.buf, p...)
	if len(a.buf) >= 256<<10 {
		_ = a.flush()
	}
}

func (a *appender) flush() error {
	if a.err == nil && len(a.buf) > 0 {
		_, a.err = a.f.WriteAt(a.buf, a.at)
		a.at += int64(len(a.buf))
		a.buf = a.buf[:0]
	}
	return a.err
}
