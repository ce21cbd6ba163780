package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// condition is a line of what figures depend on.
type condition struct{ name, value string }

// row is one measurement.
type row struct {
	name   string // Benchmark… with its parameters
	n      int    // probes
	values []value
}

type value struct {
	v    float64
	unit string
}

func (b *bench) add(tool string, n int, values ...value) {
	name := "Benchmark" + strings.ToUpper(b.scenario[:1]) + b.scenario[1:] + "/tool=" + strings.ReplaceAll(tool, " ", "_")
	b.rows = append(b.rows, row{name, n, values})
}

// writeRaw writes one line for each measurement, as benchstat reads them.
func writeRaw(path string, conditions []condition, rows []row) error {
	var s strings.Builder
	for _, c := range conditions {
		fmt.Fprintf(&s, "%s: %s\n", c.name, c.value)
	}
	if len(rows) > 0 {
		s.WriteString("\n")
	}
	for _, r := range rows {
		fmt.Fprintf(&s, "%s %d", r.name, r.n)
		for _, v := range r.values {
			if !math.IsNaN(v.v) && !math.IsInf(v.v, 0) {
				fmt.Fprintf(&s, " %.6g %s", v.v, v.unit)
			}
		}
		s.WriteString("\n")
	}
	if err := os.WriteFile(path, []byte(s.String()), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}

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

func median[T any](all []T, of func(T) float64) float64 {
	v := make([]float64, len(all))
	for i := range all {
		v[i] = of(all[i])
	}
	slices.Sort(v)
	switch n := len(v); {
	case n == 0:
		return math.NaN()
	case n%2 == 0:
		return (v[n/2-1] + v[n/2]) / 2
	default:
		return v[n/2]
	}
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
