// Package figures describes what a benchmark's figures were taken on, and writes
// them as benchstat reads them.
package figures

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Condition is a line of what figures depend on.
type Condition struct{ Name, Value string }

// Machine is what does not change while a benchmark runs.
func Machine() []Condition {
	return []Condition{
		{"goos", runtime.GOOS},
		{"goarch", runtime.GOARCH},
		{"kernel", FirstLine("/proc/sys/kernel/osrelease")},
		{"cpu", Processor()},
		{"cores", strconv.Itoa(runtime.NumCPU())},
		{"go", runtime.Version()},
	}
}

// Load is the kernel's line on how busy the machine is: averages of 1, 5 and 15
// minutes first.
func Load() string { return FirstLine("/proc/loadavg") }

// FirstLine is that of a file, such as one under /proc; "unknown" if there is none.
func FirstLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}

// Processor is the name of the processor's model, or "unknown".
func Processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// Median is the middle of what of says, the mean of both if there are two, NaN
// of nothing.
func Median[T any](all []T, of func(T) float64) float64 {
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

// Write writes a file for benchstat: the conditions, then a row for each
// measurement, which is "BenchmarkNAME N VALUE UNIT …" without the end of line.
func Write(path string, conditions []Condition, rows []string) error {
	var b strings.Builder
	for _, c := range conditions {
		fmt.Fprintf(&b, "%s: %s\n", c.Name, c.Value)
	}
	if len(rows) > 0 {
		b.WriteString("\n")
	}
	for _, r := range rows {
		b.WriteString(r + "\n")
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}
