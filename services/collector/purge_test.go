package collector

import (
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
)

func TestRemovable(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	old := bus.DuplicateWindow + 2*time.Minute
	checkpoints := []checkpoint{
		{to: 10, stored: ago(old + time.Minute), bytes: 100},
		{to: 20, stored: ago(old), bytes: 100},
		{to: 30, stored: ago(time.Minute), bytes: 100},
		{to: 40, stored: ago(time.Second), bytes: 100},
	}
	for _, c := range []struct {
		name    string
		written uint64 // position
		stream  bus.EventStreamState
		want    uint64
		left    int
	}{
		{"what nobody repeats any more", 40, bus.EventStreamState{Bytes: 400, MaxBytes: 4000}, 20, 2},
		{"never what is not written down", 15, bus.EventStreamState{Bytes: 400, MaxBytes: 4000}, 10, 3},
		{"nothing is stored", 0, bus.EventStreamState{Bytes: 400, MaxBytes: 500}, 0, 4},
		{"a crowded stream gives up its oldest", 40, bus.EventStreamState{Bytes: 400, MaxBytes: 300}, 30, 1},
		{"and all if it has to", 40, bus.EventStreamState{Bytes: 4000, MaxBytes: 1000}, 40, 0},
		{"but not what is not written down", 30, bus.EventStreamState{Bytes: 4000, MaxBytes: 1000}, 30, 1},
		{"no limit is no crowd", 40, bus.EventStreamState{Bytes: 1 << 40, MaxBytes: -1}, 20, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &session{keeper: &keeper{current: position{Done: c.written}}, stored: append([]checkpoint(nil), checkpoints...)}
			if got := s.removable(c.stream, now); got != c.want || len(s.stored) != c.left {
				t.Errorf("up to %d with %d checkpoints left, want %d with %d", got, len(s.stored), c.want, c.left)
			}
		})
	}
}

func TestStoredBatchesLeaveACrowdedStream(t *testing.T) {
	r := newRig(t)
	if err := r.bus.Provision(t.Context(), bus.Limits{Events: 64 << 10, Dead: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	r.start(r.testConfig(), nil)
	sent := uint64(0)
	// Ten times what the stream can hold, with little of it left unread.
	for range 40 {
		r.publishEvents("a", sent+1, sent+100)
		sent += 100
		r.expect("a", sent)
		eventually(t, func() bool {
			stream, err := r.bus.EventStream(t.Context())
			return err == nil && stream.Bytes <= uint64(stream.MaxBytes)/2
		}, func() string { return "the stream stays more than half full" })
	}
	if p := r.settled(); p.Done != 40 {
		t.Errorf("position %+v, want 40", p)
	}
}
