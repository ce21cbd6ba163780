package main

import (
	"math/bits"
	"slices"
	"time"
)

// costs are what the clips of one cell take, as measured where each way had all
// of them: an edge that looks at one clip after the other; an uplink that carries
// one after the other, and a detector of the lab that has others' clips to look at
// first.
type costs struct {
	arrivals []time.Duration // decisions, after the first
	local    time.Duration   // what the edge takes for a clip
	upload   time.Duration   // what the uplink takes for a clip
	cloud    time.Duration   // what the lab's detector takes for a clip
	store    time.Duration   // from a look to its result stored: by the lab
	tell     time.Duration   // … by the edge
	backlog  time.Duration   // for which the lab's detector is busy with others
}

// finish is when each clip has its result, after its decision, when the clips of
// the set bits go to the lab and all others stay at the edge.
func (c *costs) finish(toLab uint) []time.Duration {
	var edge, link time.Duration
	detector := c.backlog
	took := make([]time.Duration, len(c.arrivals))
	for i, at := range c.arrivals {
		if toLab&(1<<i) == 0 {
			edge = max(edge, at) + c.local
			took[i] = edge + c.tell - at
			continue
		}
		link = max(link, at) + c.upload
		detector = max(detector, link) + c.cloud
		took[i] = detector + c.store - at
	}
	return took
}

// mostClips bounds the assignments that are tried: all of them.
const mostClips = 16

// best is the assignment with the least mean in hindsight, and its times.
func (c *costs) best() (toLab uint, took []time.Duration) {
	n := min(len(c.arrivals), mostClips)
	least := time.Duration(1<<63 - 1)
	for set := range uint(1) << n {
		times := c.finish(set)
		if m := mean(times); m < least || m == least && bits.OnesCount(set) < bits.OnesCount(toLab) {
			least, toLab, took = m, set, times
		}
	}
	return toLab, took
}

func mean(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	var sum time.Duration
	for _, d := range all {
		sum += d
	}
	return sum / time.Duration(len(all))
}

// p95 is the sample at rank floor(0.95 n) in ascending order, as in reports.
func p95(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(0.95*float64(len(sorted))))]
}
