package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// samples are round trips of the probes that were answered.
type samples struct {
	sent int
	rtts []time.Duration
}

func (s *samples) lost() int { return s.sent - len(s.rtts) }

// quantile is the nearest rank: the smallest sample that a share p of all do not
// exceed; negative if there is none.
func (s *samples) quantile(p float64) time.Duration {
	if len(s.rtts) == 0 {
		return -1
	}
	if !slices.IsSorted(s.rtts) {
		slices.Sort(s.rtts)
	}
	rank := int(math.Ceil(p * float64(len(s.rtts))))
	return s.rtts[min(max(rank, 1), len(s.rtts))-1]
}

// micro prints microseconds; negative and NaN stand for unknown.
func micro(ns float64) string {
	if math.IsNaN(ns) || ns < 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", ns/1e3)
}

// ratio prints a / b.
func ratio(a, b float64) string {
	if math.IsNaN(a) || math.IsNaN(b) || a < 0 || b <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}
