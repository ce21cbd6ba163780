package camera

import (
	"errors"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/motion"
	"github.com/transferlab/transferlab/schemas"
)

// tape gives a recorder a stream of 10 frames a second with a key frame every
// second, in a time of its own.
type tape struct {
	r       *recorder
	now     time.Time
	n       int
	packets int
}

func newTape(t *testing.T, o Options, sink Sink) *tape {
	r := newRecorder(o, sink)
	t.Cleanup(func() { r.finish(time.Now()); r.writers.Wait() })
	p := &tape{r: r, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), packets: 4}
	r.restart(p.now)
	r.read(t.Context(), p.now, tsTables())
	return p
}

func (p *tape) run(t *testing.T, d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); p.now = p.now.Add(100 * time.Millisecond) {
		p.r.read(t.Context(), p.now, tsFrame(int64(p.n)*9000, p.n%10 == 0, p.packets))
		p.n++
	}
}

// firstAndFrames are when a clip begins, in the tape's time stamps, and its frames.
func firstAndFrames(t *testing.T, c *clip) (first time.Duration, frames int) {
	t.Helper()
	s := newStream()
	first = -1
	s.read(c.Bytes(), func(p piece) {
		if !p.frame {
			return
		}
		if first < 0 {
			if !p.key {
				t.Error("the clip does not begin with a key frame")
			}
			first = time.Duration(p.pts) * time.Second / ptsRate
		}
		frames++
	})
	if c.Len()%packetBytes != 0 {
		t.Errorf("%d bytes are no packets", c.Len())
	}
	return first, frames
}

func TestPreRollAndLength(t *testing.T) {
	o := options(t)
	o.Clip.PreRoll, o.Clip.Length = schemas.Duration(2*time.Second), schemas.Duration(5*time.Second)
	o.Motion.Cooldown = schemas.Duration(4 * time.Second)
	sink := newStore()
	p := newTape(t, o, sink)
	p.run(t, 10500*time.Millisecond)
	trigger := p.now
	p.r.trigger(trigger)
	p.run(t, 2*time.Second)
	p.r.trigger(p.now) // while it is recorded: nothing
	p.run(t, 4*time.Second)
	p.r.trigger(p.now) // in the cooldown: nothing
	p.run(t, 4*time.Second)
	c := sink.wait(t)
	// 2 s before 10.5 s lies in the group that begins at 8 s; it ends at 15.5 s.
	if first, frames := firstAndFrames(t, c); first != 8*time.Second || frames != 75 {
		t.Errorf("%d frames from %s, want 75 from 8s", frames, first)
	}
	if !c.Start.Trigger.Equal(trigger) || c.End.Length != 7500*time.Millisecond || !c.End.Recorded.Equal(trigger.Add(5*time.Second)) || c.End.Truncated {
		t.Errorf("%+v %+v", c.Start, c.End)
	}
	p.r.trigger(p.now)
	p.run(t, 10*time.Second)
	second := sink.wait(t)
	if first, _ := firstAndFrames(t, second); first != 18*time.Second {
		t.Errorf("the second clip begins at %s", first)
	}
	if n := len(sink.clips); n != 2 {
		t.Errorf("%d clips, want 2", n)
	}
}

// Clips that follow each other at once overlap by less than a group.
func TestPreRollEndsAtTheLastClip(t *testing.T) {
	o := options(t)
	o.Clip.PreRoll, o.Clip.Length = schemas.Duration(3*time.Second), schemas.Duration(2*time.Second)
	sink := newStore()
	p := newTape(t, o, sink)
	p.run(t, 5*time.Second)
	p.r.trigger(p.now)
	p.run(t, 2500*time.Millisecond)
	p.r.trigger(p.now)
	p.run(t, 3*time.Second)
	second, other := sink.wait(t), sink.wait(t) // in either order
	if second.Start.Trigger.Before(other.Start.Trigger) {
		second = other
	}
	if first, _ := firstAndFrames(t, second); first != 7*time.Second {
		t.Errorf("the second clip begins at %s, want the key frame before the first one's end", first)
	}
}

func TestTriggerBeforeTheFirstKeyFrame(t *testing.T) {
	o := options(t)
	sink := newStore()
	p := newTape(t, o, sink)
	p.n = 5
	p.r.trigger(p.now)
	p.run(t, 3*time.Second)
	if first, _ := firstAndFrames(t, sink.wait(t)); first != time.Second {
		t.Errorf("begins at %s", first)
	}
}

func TestMaxBytesEndsAClip(t *testing.T) {
	o := options(t)
	o.Clip.MaxBytes = 64 << 10
	sink := newStore()
	p := newTape(t, o, sink)
	p.packets = 40
	p.run(t, 2*time.Second)
	p.r.trigger(p.now)
	p.run(t, 2*time.Second)
	c := sink.wait(t)
	firstAndFrames(t, c)
	if c.Len() > 64<<10 || c.Len() < 64<<10-packetBytes || !c.End.Truncated {
		t.Errorf("%d bytes, truncated %v", c.Len(), c.End.Truncated)
	}
}

// A stream with more bytes than promised does not grow the memory.
func TestRingIsBounded(t *testing.T) {
	o := options(t)
	o.Source.Bitrate, o.Clip.PreRoll = 100_000, schemas.Duration(20*time.Second)
	sink := newStore()
	p := newTape(t, o, sink)
	p.packets = 2000
	for range 40 {
		p.run(t, time.Second)
		if held := p.r.held(); held > p.r.most {
			t.Fatalf("%d bytes held, want at most %d", held, p.r.most)
		}
	}
	// One group alone is too long, while a clip is recorded and while none is.
	p.packets = 20_000
	p.run(t, 2*time.Second)
	p.packets = 100
	p.run(t, 1100*time.Millisecond)
	p.r.trigger(p.now)
	p.packets = 4000
	p.run(t, 3*time.Second)
	if held := p.r.held(); held > p.r.most {
		t.Fatalf("%d bytes held, want at most %d", held, p.r.most)
	}
	if _, frames := firstAndFrames(t, sink.wait(t)); frames < 10 {
		t.Errorf("%d frames", frames)
	}
}

func TestStreamThatEnds(t *testing.T) {
	o := options(t)
	sink := newStore()
	p := newTape(t, o, sink)
	p.run(t, 3*time.Second)
	p.r.trigger(p.now)
	p.run(t, 300*time.Millisecond)
	p.r.finish(p.now)
	if c := sink.wait(t); !c.End.Truncated || c.End.Length != 1300*time.Millisecond {
		t.Errorf("%+v", c.End)
	}
	p.r.restart(p.now)
	if len(p.r.groups) != 0 || p.r.take != nil {
		t.Error("something is left of the stream before")
	}
}

// A sink that fails costs its clip, not the stream.
func TestSinkThatFails(t *testing.T) {
	broken := errors.New("broken")
	for name, fail := range map[string]func(*store, *bool){
		"begin": func(s *store, fail *bool) {
			s.begin = func(Start) error {
				if *fail {
					return broken
				}
				return nil
			}
		},
		"write": func(s *store, fail *bool) {
			s.write = func(c *clip) error {
				if *fail && c.Len() > 0 {
					return broken
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			sink := newStore()
			failing := true
			fail(sink, &failing)
			p := newTape(t, o, sink)
			p.run(t, 2*time.Second)
			p.r.trigger(p.now)
			p.run(t, 2*time.Second)
			p.r.writers.Wait()
			failing = false
			if name == "write" {
				if c := sink.wait(t); !c.End.Truncated {
					t.Error("what could be written is not kept as truncated")
				}
			}
			p.r.trigger(p.now)
			p.run(t, 2*time.Second)
			if c := sink.wait(t); c.End.Truncated {
				t.Error("the next clip is truncated")
			}
		})
	}
}

func TestAlways(t *testing.T) {
	o := options(t)
	o.Motion.Kind, o.Motion.Cooldown, o.Clip.PreRoll = motion.KindNone, schemas.Duration(2*time.Second), 0
	sink := newStore()
	p := newTape(t, o, sink)
	for range 3 {
		p.run(t, 3*time.Second)
		sink.wait(t)
	}
}
