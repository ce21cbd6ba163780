package scale

import (
	"math"
	"slices"
	"time"
)

// rate estimates the rate of Poisson arrivals that may change at any moment. It
// remembers how many had come at moments of the past, and forgets what was before
// a change as soon as it is beyond doubt that there was one: a steady rate is
// known better the longer it lasts, and a new one counts at once.
type rate struct {
	marks []mark
}

type mark struct {
	at    time.Time
	total uint64
}

const (
	// maxMarks bounds the memory. When it is full, every other one of the older half
	// goes: the past is remembered less finely the longer ago it was.
	maxMarks = 64
	// markEvery is the least time between two.
	markEvery = time.Second
	// changed is the logarithm of the likelihood ratio from which on a change is
	// beyond doubt: one in e^10 tests of a steady rate says so.
	changed = 10
)

// observe returns the rate as it is known after an observation; r stays as it was.
func (r rate) observe(at time.Time, total uint64) rate {
	if len(r.marks) > 0 {
		if last := r.marks[len(r.marks)-1]; at.Before(last.at) || total < last.total {
			return rate{marks: []mark{{at, total}}} // another clock or another queue
		}
	}
	if len(r.marks) > 0 && at.Sub(r.marks[len(r.marks)-1].at) < markEvery {
		return r
	}
	marks := append(slices.Clone(r.marks), mark{at, total})
	if len(marks) > maxMarks {
		thin := marks[:0]
		for i, m := range marks {
			if i == 0 || i >= maxMarks/2 || i%2 == 0 {
				thin = append(thin, m)
			}
		}
		marks = thin
	}
	if split := change(marks, at, total); split > 0 {
		marks = marks[split:]
	}
	return rate{marks}
}

// change returns the mark at which the rate has most likely changed, 0 if that is
// not beyond doubt.
func change(marks []mark, at time.Time, total uint64) int {
	best, split := float64(changed), 0
	first := marks[0]
	n, t := float64(total-first.total), at.Sub(first.at).Seconds()
	if n == 0 || t <= 0 {
		return 0
	}
	whole := n * math.Log(n/t)
	for i := 1; i < len(marks)-1; i++ {
		m := marks[i]
		n1, t1 := float64(m.total-first.total), m.at.Sub(first.at).Seconds()
		n2, t2 := n-n1, t-t1
		if t1 <= 0 || t2 <= 0 {
			continue
		}
		if ratio := xlogy(n1, n1/t1) + xlogy(n2, n2/t2) - whole; ratio > best {
			best, split = ratio, i
		}
	}
	return split
}

func xlogy(x, y float64) float64 {
	if x == 0 {
		return 0
	}
	return x * math.Log(y)
}

// between is what the rate, a second, most likely is, and what it may well be: two
// standard deviations more.
func (r rate) between(at time.Time, total uint64) (likely, most float64) {
	if len(r.marks) == 0 {
		return 0, 0
	}
	first := r.marks[0]
	n, t := float64(total-first.total), at.Sub(first.at).Seconds()
	if t <= 0 {
		return 0, 0
	}
	return n / t, (n + 2*math.Sqrt(n)) / t
}
