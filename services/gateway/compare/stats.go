package compare

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/aclements/go-moremath/stats"
)

// mannWhitney is the two-sided p of the Mann–Whitney U test: exact for small
// samples, else by the normal approximation with corrections for ties and
// continuity. Samples that are all equal, or empty, give 1.
func mannWhitney(a, b []float64) (float64, error) {
	r, err := stats.MannWhitneyUTest(a, b, stats.LocationDiffers)
	switch {
	case errors.Is(err, stats.ErrSamplesEqual), errors.Is(err, stats.ErrSampleSize):
		return 1, nil
	case err != nil:
		return 1, err
	}
	// Twice a tail of a discrete distribution can exceed 1.
	return min(r.P, 1), nil
}

// cliffsDelta is P(b > a) − P(b < a) over all pairs (Cliff 1993). Both samples
// are sorted.
func cliffsDelta(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return 0
	}
	var above, below int
	lower, upper := 0, 0 // of a: below y; not above y
	for _, y := range b {
		for lower < len(a) && a[lower] < y {
			lower++
		}
		upper = max(upper, lower)
		for upper < len(a) && a[upper] <= y {
			upper++
		}
		above += lower
		below += len(a) - upper
	}
	return float64(above-below) / float64(len(a)) / float64(len(b))
}

// hodgesLehmann is the median of all differences b − a (Hodges & Lehmann 1963).
// Both samples are sorted. The differences are not written down: their median
// is found by bisection over the representable numbers, counting how many lie
// below each guess.
func hodgesLehmann(a, b []float64) float64 {
	n := len(a) * len(b)
	if n == 0 {
		return 0
	}
	if n%2 == 1 {
		return difference(a, b, n/2)
	}
	return (difference(a, b, n/2-1) + difference(a, b, n/2)) / 2
}

// difference is the k-th smallest of all b − a, counted from 0.
func difference(a, b []float64, k int) float64 {
	low, high := ordered(b[0]-a[len(a)-1]), ordered(b[len(b)-1]-a[0])
	for low < high {
		middle := low + (high-low)/2
		if atMost(a, b, unordered(middle)) > k {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return unordered(low) + 0 // no negative zero
}

// atMost counts the differences b − a that are at most d.
func atMost(a, b []float64, d float64) int {
	n, first := 0, 0 // first of a whose difference from y is at most d
	for _, y := range b {
		for first < len(a) && y-a[first] > d {
			first++
		}
		n += len(a) - first
	}
	return n
}

// ordered maps numbers to integers of the same order.
func ordered(v float64) uint64 {
	bits := math.Float64bits(v)
	if bits>>63 == 1 {
		return ^bits
	}
	return bits | 1<<63
}

func unordered(u uint64) float64 {
	if u>>63 == 1 {
		return math.Float64frombits(u &^ (1 << 63))
	}
	return math.Float64frombits(^u)
}

// median of a sorted sample, the mean of the middle two if their number is
// even.
func median(sorted []float64) float64 {
	n := len(sorted)
	if n == 0 {
		return 0
	}
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// strata is a sample divided into groups that are resampled each on its own.
type strata struct {
	ranks  [][]int   // of each group's values in sorted
	sorted []float64 // all values
	counts []int     // scratch
}

func newStrata(groups [][]float64) *strata {
	type value struct {
		v     float64
		group int
	}
	var all []value
	for g, values := range groups {
		for _, v := range values {
			all = append(all, value{v, g})
		}
	}
	slices.SortFunc(all, func(x, y value) int {
		switch {
		case x.v < y.v:
			return -1
		case x.v > y.v:
			return 1
		}
		return x.group - y.group
	})
	s := &strata{ranks: make([][]int, len(groups)), sorted: make([]float64, len(all)), counts: make([]int, len(all))}
	for i, x := range all {
		s.sorted[i] = x.v
		s.ranks[x.group] = append(s.ranks[x.group], i)
	}
	return s
}

// resampledMedian is the median of a sample drawn with replacement, group by
// group. Drawing ranks and counting them saves sorting each draw.
func (s *strata) resampledMedian(random *rand.Rand) float64 {
	clear(s.counts)
	for _, ranks := range s.ranks {
		n := uint64(len(ranks))
		for range ranks {
			s.counts[ranks[random.Uint64N(n)]]++
		}
	}
	n := len(s.sorted)
	low, high := (n-1)/2, n/2
	seen, first := 0, 0.0
	found := false
	for i, c := range s.counts {
		seen += c
		if !found && seen > low {
			first, found = s.sorted[i], true
		}
		if seen > high {
			return (first + s.sorted[i]) / 2
		}
	}
	return first
}

// bootstrapRatio is the percentile bootstrap interval (Efron 1979) of the ratio
// of medians b / a.
func bootstrapRatio(a, b [][]float64, confidence float64, resamples int, random *rand.Rand) (low, high float64, ok bool) {
	x, y := newStrata(a), newStrata(b)
	if len(x.sorted) == 0 || len(y.sorted) == 0 {
		return 0, 0, false
	}
	ratios := make([]float64, 0, resamples)
	for range resamples {
		base := x.resampledMedian(random)
		changed := y.resampledMedian(random)
		if base <= 0 {
			return 0, 0, false
		}
		ratios = append(ratios, changed/base)
	}
	slices.Sort(ratios)
	tail := (1 - confidence) / 2
	at := func(p float64) float64 {
		i := int(math.Floor(p * float64(len(ratios))))
		return ratios[min(max(i, 0), len(ratios)-1)]
	}
	return at(tail), ratios[max(len(ratios)-1-int(math.Floor(tail*float64(len(ratios)))), 0)], true
}

// holm corrects p-values for their number (Holm 1979).
func holm(p []float64) []float64 {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch {
		case p[i] < p[j]:
			return -1
		case p[i] > p[j]:
			return 1
		}
		return 0
	})
	corrected := make([]float64, len(p))
	worst := 0.0
	for rank, i := range order {
		worst = max(worst, min(1, p[i]*float64(len(p)-rank)))
		corrected[i] = worst
	}
	return corrected
}
