package peer

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

func TestSwarm(t *testing.T) {
	for _, size := range []int64{1, 10_000, 16 << 10, 100_000, 1_000_003} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			ctx := deadline(t, 20*time.Second)
			r := newRig(t, size, 16<<10)
			r.add(true, nil)
			for range 3 {
				r.add(false, nil)
			}
			r.start(ctx)
			for _, report := range r.finish(ctx) {
				if report.Have != size || report.Wire.Received[0].Bytes < uint64(size) {
					t.Fatalf("%+v", report)
				}
			}
		})
	}
}

func TestLab(t *testing.T) {
	if os.Getenv("LAB") == "" {
		t.Skip()
	}
	type set struct {
		size, piece int64
		n, rounds   int
	}
	for _, s := range []set{{10e3, 16 << 10, 3, 15}, {100e3, 16 << 10, 3, 15}, {1e6, 16 << 10, 3, 11}, {1e6, 64 << 10, 3, 11}, {10e6, 128 << 10, 3, 9}, {10e6, 256 << 10, 3, 9}, {100e6, 1 << 20, 3, 5}, {100e6, 1 << 20, 1, 7}} {
		var times []float64
		var ratio float64
		for range s.rounds {
			ctx := deadline(t, 60*time.Second)
			r := newRig(t, s.size, s.piece)
			r.add(true, nil)
			for range s.n {
				r.add(false, nil)
			}
			r.start(ctx)
			var got uint64
			for _, report := range r.finish(ctx) {
				times = append(times, report.Completed.Sub(report.Begun).Seconds()*1e3)
				got += report.Wire.ReceivedBytes()
			}
			ratio = float64(got) / float64(s.size) / float64(s.n)
		}
		slices.Sort(times)
		fmt.Printf("size %9d piece %7d n %d: median %.2f ms  %.2f..%.2f ratio %.4f\n", s.size, s.piece, s.n, times[len(times)/2], times[0], times[len(times)-1], ratio)
	}
}
