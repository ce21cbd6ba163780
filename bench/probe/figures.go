package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
)

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
func writeRaw(path string, conditions []figures.Condition, rows []row) error {
	var lines []string
	for _, r := range rows {
		line := fmt.Sprintf("%s %d", r.name, r.n)
		for _, v := range r.values {
			if !math.IsNaN(v.v) && !math.IsInf(v.v, 0) {
				line += fmt.Sprintf(" %.6g %s", v.v, v.unit)
			}
		}
		lines = append(lines, line)
	}
	return figures.Write(path, conditions, lines)
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
