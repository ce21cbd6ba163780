package figures

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// Value is a number and its unit, as benchstat knows them: ns, B, and others
// without spaces.
type Value struct {
	V    float64
	Unit string
}

// Row is one measurement.
type Row struct {
	Name   string // Benchmark… with its parameters
	N      int    // how much was done
	Values []Value
}

// Sheet collects what one scenario finds.
type Sheet struct {
	W        io.Writer // what is printed
	Scenario string
	Rows     []Row
	Notes    []Condition
}

// Add adds a measurement of a tool. Parameters such as size=1MB follow its name.
func (s *Sheet) Add(tool string, n int, values []Value, parameters ...string) {
	name := "Benchmark" + strings.ToUpper(s.Scenario[:1]) + s.Scenario[1:] + "/tool=" + tool
	for _, p := range parameters {
		name += "/" + p
	}
	s.Rows = append(s.Rows, Row{strings.ReplaceAll(name, " ", "_"), n, values})
}

// Goal prints whether something that is aimed at was reached.
func (s *Sheet) Goal(reached bool, format string, args ...any) {
	word := "reached"
	if !reached {
		word = "MISSED"
	}
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(s.W, "goal %s: %s\n", word, text)
	s.Note("goal", word+": "+text)
}

// Note is a condition of the scenario.
func (s *Sheet) Note(name, value string) {
	name = s.Scenario + "-" + name
	n := 1
	for _, c := range s.Notes {
		if strings.HasPrefix(c.Name, name+"-") {
			n++
		}
	}
	s.Notes = append(s.Notes, Condition{Name: fmt.Sprintf("%s-%d", name, n), Value: strings.ReplaceAll(value, "\n", " ")})
}

// WriteRows writes one line for each measurement, as benchstat reads them.
func WriteRows(path string, conditions []Condition, rows []Row) error {
	var lines []string
	for _, r := range rows {
		line := fmt.Sprintf("%s %d", r.Name, r.N)
		for _, v := range r.Values {
			if !math.IsNaN(v.V) && !math.IsInf(v.V, 0) {
				line += fmt.Sprintf(" %.6g %s", v.V, v.Unit)
			}
		}
		lines = append(lines, line)
	}
	return Write(path, conditions, lines)
}
