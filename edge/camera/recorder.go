package camera

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

const (
	// lag is how much later than the stream a trigger may come: its picture has to
	// be decoded first.
	lag = time.Second
	// atWork is how many recordings may be written or made durable at a time.
	atWork = 2
	// queued is how many reads of the stream may wait for the disk.
	queued = 64
	// keyless is how long a stream may be without key frames before it is said.
	keyless = 15 * time.Second
)

// group is a group of pictures: a key frame and what needs it.
type group struct {
	at    time.Time // of the key frame's arrival
	bytes []byte    // only ever appended to: recordings hold parts of it
	pts   []int64
	// headless groups have lost their key frame: only a recording that has it can
	// go on with them.
	headless bool
}

// recorder cuts a transport stream into clips. Its methods are called by one
// goroutine; time is what the caller says.
type recorder struct {
	name     string
	clip     ClipConfig
	cooldown time.Duration
	always   bool // clips follow each other without triggers
	most     int  // bytes of the ring
	sink     Sink
	log      *slog.Logger

	now     time.Time // of the last read
	stream  *stream
	groups  []*group
	waiting time.Time // a trigger without a recording
	rest    time.Time // nothing triggers before
	take    *take
	keyAt   time.Time // of the last key frame
	tight   bool      // the ring's bound has been told
	slots   chan struct{}
	writers sync.WaitGroup
}

func newRecorder(o Options, sink Sink) *recorder {
	preRoll := time.Duration(o.Clip.PreRoll)
	// Twice what the bit rate makes of the pre-roll, the lag and two groups of a
	// second, within what a small machine can spare.
	expected := float64(o.Source.Bitrate) / 8 * (preRoll + lag + 2*time.Second).Seconds()
	return &recorder{
		name: o.Name, clip: o.Clip, cooldown: time.Duration(o.Motion.Cooldown), always: o.Motion.Kind == "none",
		most: int(min(max(2*expected, 4<<20), 24<<20)),
		sink: sink, log: o.Log, slots: make(chan struct{}, atWork),
	}
}

// restart begins a new stream: a child has been started.
func (r *recorder) restart(now time.Time) {
	r.stream, r.groups, r.keyAt = newStream(), nil, now
}

// trigger is motion. While a clip is recorded, or soon after, it means nothing.
func (r *recorder) trigger(at time.Time) {
	if r.take != nil || at.Before(r.rest) || !r.waiting.IsZero() {
		return
	}
	r.waiting = at
}

// read takes what came from the stream.
func (r *recorder) read(ctx context.Context, now time.Time, b []byte) {
	r.now = now
	r.stream.read(b, func(p piece) {
		if p.frame {
			r.frame(ctx, now, p)
		}
		if len(r.groups) == 0 {
			return
		}
		g := r.groups[len(r.groups)-1]
		g.bytes = append(g.bytes, p.bytes...)
		if r.held() > r.most {
			r.shrink()
		}
	})
	if r.take != nil {
		r.flush()
	}
	if now.Sub(r.keyAt) > keyless {
		r.log.Warn("no key frame in the stream: clips cannot begin", "for", now.Sub(r.keyAt).Round(time.Second), "not_understood_bytes", r.stream.skipped)
		r.keyAt = now
	}
}

// frame is called where a frame begins.
func (r *recorder) frame(ctx context.Context, now time.Time, p piece) {
	if r.take != nil && !now.Before(r.take.until) {
		r.flush()
		r.end(now, false)
		if p.key {
			r.groups = nil // all of it is in that clip
		}
	}
	if p.key {
		r.keyAt = now
		if r.take != nil {
			r.flush()
		}
		size := 0
		if n := len(r.groups); n > 0 {
			size = len(r.groups[n-1].bytes) * 5 / 4
		}
		r.groups = append(r.groups, &group{at: now, bytes: make([]byte, 0, min(size, r.most))})
		if r.take != nil {
			r.take.sent = 0
		}
		horizon := now.Add(-time.Duration(r.clip.PreRoll) - lag)
		for len(r.groups) > 1 && !r.groups[1].at.After(horizon) {
			r.groups = r.groups[1:]
		}
	}
	if n := len(r.groups); n > 0 && p.timed {
		r.groups[n-1].pts = append(r.groups[n-1].pts, p.pts)
		if r.take != nil {
			r.take.span.add(p.pts)
		}
	}
	if r.always && r.take == nil && !now.Before(r.rest) {
		r.trigger(now)
	}
	switch {
	case r.waiting.IsZero():
	case now.Sub(r.waiting) >= time.Duration(r.clip.Length):
		r.log.Error("a clip is left out: until its end there was no key frame, or the disk was busy with the clips before", "trigger", r.waiting)
		r.waiting = time.Time{}
	case len(r.groups) > 0:
		r.begin(ctx)
	}
}

func (r *recorder) held() (n int) {
	for _, g := range r.groups {
		n += len(g.bytes)
	}
	return n
}

// shrink keeps the ring within its bound: the pre-roll becomes shorter, and if
// a single group is too long there is none.
func (r *recorder) shrink() {
	if !r.tight {
		r.tight = true
		r.log.Warn("the pre-roll is shortened: the stream has more bytes than its bit rate promises", "limit_bytes", r.most)
	}
	if len(r.groups) > 1 {
		r.groups = r.groups[1:]
		return
	}
	// The recording under way goes on with a group that has no key frame.
	if r.take != nil {
		g := r.groups[0]
		r.groups[0] = &group{at: g.at, headless: true, bytes: append([]byte(nil), g.bytes[r.take.sent:]...)}
		r.take.sent = 0
		return
	}
	r.groups = nil
}

// take is a recording.
type take struct {
	start  Start
	until  time.Time
	bytes  int64
	span   span
	sent   int // of the youngest group
	chunks chan []byte
	end    End
	failed atomic.Bool
}

// begin starts the recording of the trigger that waits, unless the disk is too
// far behind.
func (r *recorder) begin(ctx context.Context) {
	select {
	case r.slots <- struct{}{}:
	default:
		return
	}
	trigger := r.waiting
	r.waiting = time.Time{}
	t := &take{
		start:  Start{ID: clipName(r.name, trigger), Trigger: trigger, Type: schemas.TypeMPEG},
		until:  trigger.Add(time.Duration(r.clip.Length)),
		chunks: make(chan []byte, queued),
	}
	r.take = t
	r.writers.Go(func() {
		defer func() { <-r.slots }()
		if err := t.write(context.WithoutCancel(ctx), r.sink); err != nil {
			r.log.Error("record a clip", "clip", t.start.ID, "error", err)
		}
	})
	first := 0
	for i, g := range r.groups {
		if !g.at.After(trigger.Add(-time.Duration(r.clip.PreRoll))) {
			first = i
		}
	}
	r.send(bytes.Clone(r.stream.pat))
	r.send(bytes.Clone(r.stream.pmt))
	// The first bytes may be too many already, which ends the recording.
	groups := r.groups[first:]
	for _, g := range groups {
		for _, pts := range g.pts {
			t.span.add(pts)
		}
		r.send(g.bytes)
		t.sent = len(g.bytes)
	}
	r.log.Info("motion: recording", "clip", t.start.ID, "pre_roll", trigger.Sub(groups[0].at).Round(time.Millisecond))
}

// flush sends what has come since.
func (r *recorder) flush() {
	if len(r.groups) == 0 {
		return
	}
	g := r.groups[len(r.groups)-1]
	r.send(g.bytes[r.take.sent:])
	if r.take != nil {
		r.take.sent = len(g.bytes)
	}
}

func (r *recorder) send(b []byte) {
	t := r.take
	if t == nil || len(b) == 0 {
		return
	}
	full := t.bytes+int64(len(b)) > int64(r.clip.MaxBytes)
	if full {
		b = b[:(int64(r.clip.MaxBytes)-t.bytes)/packetBytes*packetBytes]
	}
	if len(b) > 0 && !t.failed.Load() {
		t.bytes += int64(len(b))
		t.chunks <- b
	}
	if full {
		r.log.Warn("a clip ends early: it has reached clip.max_bytes", "clip", t.start.ID, "max_bytes", int64(r.clip.MaxBytes))
		r.end(r.now, true)
	}
}

// end closes the recording.
func (r *recorder) end(now time.Time, truncated bool) {
	t := r.take
	r.take = nil
	t.end = End{Recorded: now, Length: time.Duration(t.span.ticks()) * time.Second / ptsRate, Truncated: truncated}
	close(t.chunks)
	r.rest = now.Add(r.cooldown)
	if n := len(r.groups); n > 0 {
		r.groups = r.groups[n-1:]
		if r.groups[0].headless {
			r.groups = nil
		}
	}
}

// finish ends the recording under way: no more will come of the stream.
func (r *recorder) finish(now time.Time) {
	r.waiting = time.Time{}
	if r.take == nil {
		return
	}
	// The end of a file comes when all of its last frame has.
	r.end(now, now.Before(r.take.until))
}

// write hands the recording to the sink. After a failure it keeps taking what
// comes, so that the stream goes on.
func (t *take) write(ctx context.Context, sink Sink) error {
	drain := func(err error) error {
		t.failed.Store(true)
		for range t.chunks {
		}
		return err
	}
	rec, err := sink.Begin(ctx, t.start)
	if errors.Is(err, fs.ErrExist) {
		return drain(fmt.Errorf("the id is taken: %w", err))
	}
	if err != nil {
		return drain(err)
	}
	for b := range t.chunks {
		if _, err := rec.Write(b); err != nil {
			// What came before holds the trigger: better than nothing.
			return drain(errors.Join(fmt.Errorf("write: %w", err), commit(ctx, rec, End{Recorded: time.Now(), Truncated: true})))
		}
	}
	return commit(ctx, rec, t.end)
}

func commit(ctx context.Context, rec Recording, e End) error {
	ctx, cancel := context.WithTimeout(ctx, commitTime)
	defer cancel()
	if err := rec.Commit(ctx, e); err != nil {
		return errors.Join(fmt.Errorf("make it durable: %w", err), rec.Abort())
	}
	return nil
}
