package main

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
	"github.com/transferlab/transferlab/schemas"
)

// cell is what is measured: a file, so many leechers, and limits of rates (0:
// none).
type cell struct {
	size                         schemas.Size
	leechers                     int
	seedUpload, upload, download schemas.BitRate
}

// bound is the fluid lower bound: the seeder sends everything once, the slowest
// leecher receives everything, and all that is received is sent by somebody.
func (c cell) bound() time.Duration {
	bits, n := float64(c.size)*8, float64(c.leechers)
	seconds := 0.0
	if c.seedUpload > 0 {
		seconds = bits / float64(c.seedUpload)
	}
	if c.download > 0 {
		seconds = max(seconds, bits/float64(c.download))
	}
	if c.seedUpload > 0 && c.upload > 0 {
		seconds = max(seconds, n*bits/(float64(c.seedUpload)+n*float64(c.upload)))
	}
	return time.Duration(seconds * float64(time.Second))
}

// leecher is what one leecher did.
type leecher struct {
	Elapsed  int64  `json:"elapsed_ns"` // negative: not finished
	Received int64  `json:"received"`   // bytes on its sockets, without headers of IP and TCP
	Checked  bool   `json:"checked"`    // the file has the SHA-256 that it should have
	Error    string `json:"error"`
}

// measured is what a contestant did in one round of a cell.
type measured struct {
	Leechers []leecher `json:"leechers"`
	CPU      int64     `json:"cpu_ns"`
	Piece    int64     `json:"piece"`
	Error    string    `json:"error"`

	size int64
}

// fault is why the figures are not to be used; leechers that did not finish are
// figures.
func (m *measured) fault(c cell) error {
	if m.Error != "" {
		return fmt.Errorf("%s", m.Error)
	}
	if len(m.Leechers) != c.leechers {
		return fmt.Errorf("%d leechers, want %d", len(m.Leechers), c.leechers)
	}
	for i, l := range m.Leechers {
		if l.Elapsed >= 0 && !l.Checked {
			return fmt.Errorf("leecher %d finished, but its file is not the one seeded: %s", i, l.Error)
		}
	}
	return nil
}

// times are those of the leechers that finished, in nanoseconds, sorted.
func (m *measured) times() []float64 {
	var out []float64
	for _, l := range m.Leechers {
		if l.Elapsed >= 0 {
			out = append(out, float64(l.Elapsed))
		}
	}
	slices.Sort(out)
	return out
}

func (m *measured) unfinished() int { return len(m.Leechers) - len(m.times()) }

// last is the time until all have the file; NaN if one never does.
func (m *measured) last() float64 {
	if m.unfinished() > 0 || len(m.Leechers) == 0 {
		return math.NaN()
	}
	return slices.Max(m.times())
}

// ratio is all that leechers received for each byte of their files.
func (m *measured) ratio() float64 {
	total := int64(0)
	for _, l := range m.Leechers {
		total += l.Received
	}
	return float64(total) / float64(m.size) / float64(len(m.Leechers))
}

func (m *measured) cpu() float64 { return float64(m.CPU) / 1e9 }

// pooled is every leecher's time of all rounds.
func pooled(all []measured) []float64 {
	var out []float64
	for i := range all {
		out = append(out, all[i].times()...)
	}
	slices.Sort(out)
	return out
}

// quantile is the nearest rank of sorted values: the smallest that a share p of
// all do not exceed; NaN of nothing.
func quantile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(p * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func median(v []float64) float64 {
	return figures.Median(v, func(x float64) float64 { return x })
}

func medianOf(all []measured, of func(*measured) float64) float64 {
	return figures.Median(all, func(m measured) float64 { return of(&m) })
}

// milli prints nanoseconds in milliseconds.
func milli(ns float64) string {
	switch {
	case math.IsNaN(ns):
		return "-"
	case ns < 100e6:
		return fmt.Sprintf("%.2f", ns/1e6)
	}
	return fmt.Sprintf("%.0f", ns/1e6)
}

// number prints what may be unknown.
func number(format string, v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

// record adds a measurement's row.
func (b *bench) record(tool string, c cell, m *measured, more ...figures.Value) {
	values := []figures.Value{
		{V: median(m.times()), Unit: "p50-ns"},
		{V: m.last(), Unit: "last-ns"},
		{V: m.ratio(), Unit: "ratio"},
		{V: m.cpu(), Unit: "cpu-s"},
		{V: float64(m.unfinished()), Unit: "unfinished"},
	}
	b.Add(tool, c.leechers, append(values, more...), "size="+c.size.String(), fmt.Sprintf("leechers=%d", c.leechers))
}

// crossing is the least of the numbers from which on the first is always faster;
// 0 if there is none.
func crossing(numbers []int, first, second []float64) int {
	at := 0
	for i, n := range numbers {
		switch {
		case !(first[i] < second[i]):
			at = 0
		case at == 0:
			at = n
		}
	}
	return at
}
