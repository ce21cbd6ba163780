package packet

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// all lists the schedule's probes.
func (s *schedule) all() (list []probe) {
	for p, ok := s.peek(); ok; p, ok = s.peek() {
		list = append(list, p)
		s.advance()
	}
	return list
}

func TestSchedule(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		interval := time.Duration(1 + rng.IntN(20))
		flows := make([]Flow, rng.IntN(30))
		var want []probe
		for i := range flows {
			flows[i] = Flow{ID: i, Count: rng.IntN(8), Phase: time.Duration(rng.IntN(100))}
			for seq := range flows[i].Count {
				want = append(want, probe{uint32(i), uint32(seq), int64(flows[i].Phase) + int64(seq)*int64(interval)})
			}
		}
		slices.SortStableFunc(want, func(a, b probe) int {
			if a.due != b.due {
				return int(a.due - b.due)
			}
			return int(a.flow) - int(b.flow)
		})
		s := newSchedule(interval, flows)
		if got := s.all(); !slices.Equal(got, want) {
			t.Fatalf("interval %d, %+v:\n%v, want\n%v", interval, flows, got, want)
		}
		// A window finds each again, however it has moved and grown.
		w := newWindow(0)
		for i, p := range want {
			w.push(p)
			if i%3 == 2 {
				w.head++
			}
		}
		for i, p := range want {
			n, ok := w.find(s, p.flow, p.seq)
			if ok != (uint64(i) >= w.head) || ok && n != uint64(i) {
				t.Fatalf("probe %d: found %d %t", i, n, ok)
			}
		}
		if _, ok := w.find(s, 0, 1<<31); ok && len(flows) > 0 {
			t.Fatal("found what is not there")
		}
	}
}

// A flow that begins after a year, beside one that has ended, costs nothing.
func TestScheduleGap(t *testing.T) {
	const year = 365 * 24 * time.Hour
	s := newSchedule(time.Microsecond, []Flow{{Count: 2}, {Count: 2, Phase: year}, {Count: 1, Phase: 2 * year}})
	want := []probe{{0, 0, 0}, {0, 1, 1000}, {1, 0, int64(year)}, {1, 1, int64(year) + 1000}, {2, 0, int64(2 * year)}}
	if got := s.all(); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func BenchmarkSchedule(b *testing.B) {
	flows := make([]Flow, MaxFlows)
	for i := range flows {
		flows[i] = Flow{ID: i, Count: 1 << 26, Phase: time.Duration(i * 7919 % 1_000_000 * 1000)}
	}
	s := newSchedule(time.Second, flows)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		s.advance()
	}
}
