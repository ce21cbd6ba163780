package figures

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	self := func(v float64) float64 { return v }
	for want, all := range map[float64][]float64{3: {5, 3, 1}, 2.5: {4, 1, 3, 2}, 7: {7}} {
		if got := Median(all, self); got != want {
			t.Errorf("%v: %g, want %g", all, got, want)
		}
	}
	if !math.IsNaN(Median(nil, self)) {
		t.Error("a median of nothing")
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw")
	for _, c := range []struct {
		rows []string
		want string
	}{
		{nil, "a: 1\nb: 2\n"},
		{[]string{"BenchmarkA 1 2 ns/op", "BenchmarkA 1 3 ns/op"}, "a: 1\nb: 2\n\nBenchmarkA 1 2 ns/op\nBenchmarkA 1 3 ns/op\n"},
	} {
		if err := Write(path, []Condition{{"a", "1"}, {"b", "2"}}, c.rows); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != c.want {
			t.Errorf("%q, %v, want %q", got, err, c.want)
		}
	}
	if err := Write(filepath.Join(path, "below"), nil, nil); err == nil {
		t.Error("no error")
	}
}

func TestMachineIsDescribed(t *testing.T) {
	for _, c := range Machine() {
		if c.Name == "" || c.Value == "" {
			t.Errorf("%+v", c)
		}
	}
	if got := FirstLine(filepath.Join(t.TempDir(), "none")); got != "unknown" {
		t.Errorf("%q", got)
	}
}

func TestSheet(t *testing.T) {
	var printed strings.Builder
	s := Sheet{W: &printed, Scenario: "load"}
	s.Goal(true, "a")
	s.Goal(false, "%s", "b")
	s.Add("fping -i 0", 500, []Value{{1234.5, "p50-ns"}, {math.NaN(), "p99-ns"}}, "size=1MB")
	if want := "goal reached: a\ngoal MISSED: b\n"; printed.String() != want {
		t.Errorf("%q", printed.String())
	}
	path := filepath.Join(t.TempDir(), "raw")
	if err := WriteRows(path, s.Notes, s.Rows); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "load-goal-1: reached: a\nload-goal-2: MISSED: b\n\nBenchmarkLoad/tool=fping_-i_0/size=1MB 500 1234.5 p50-ns\n"; string(raw) != want {
		t.Errorf("%s", raw)
	}
}

func TestMeasure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var printed strings.Builder
	s := Sheet{W: &printed}
	find := func(v float64) { s.Add("ours", 1, []Value{{v, "ns"}}) }
	broken, ended := errors.New("two\nlines"), errors.New("ended")
	out := t.TempDir()
	err := s.Measure(ctx, []Condition{{"cpu", "fast"}}, []Scenario{
		{"first", func(context.Context) error { find(1); return broken }},
		{"second", func(context.Context) error { t.Error("it was not chosen"); return nil }},
		{"third", func(context.Context) error { find(3); return nil }},
		{"fourth", func(context.Context) error { cancel(); return ended }},
		{"fifth", func(context.Context) error { t.Error("it began after the end"); return nil }},
	}, []string{"fifth", "fourth", "third", "first"}, out)
	if !errors.Is(err, broken) || !errors.Is(err, ended) || !strings.Contains(err.Error(), "first: two") || !strings.Contains(err.Error(), "fourth: ended") {
		t.Errorf("%v, want every fault", err)
	}
	// Times and loads are whatever they are.
	plain := func(text string) string {
		text = regexp.MustCompile(`(?m)-began: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`).ReplaceAllString(text, "-began: T")
		return regexp.MustCompile(`((?:before|after): )(?:unknown|[\d.]+ [\d.]+ [\d.]+ \d+/\d+ \d+)`).ReplaceAllString(text, "${1}L")
	}
	if got, want := plain(printed.String()), `cpu: fast

== first
failed: two
lines
load average before: L, after: L

== third
load average before: L, after: L

== fourth
`; got != want {
		t.Errorf("printed %s, want %s", got, want)
	}
	first := "first-began: T\nfirst-load-before: L\nfirst-failed-1: two lines\nfirst-load-after: L\n"
	third := "third-began: T\nthird-load-before: L\nthird-load-after: L\n"
	files := map[string]string{
		"first.txt":      "cpu: fast\n" + first + "\nBenchmarkFirst/tool=ours 1 1 ns\n",
		"third.txt":      "cpu: fast\n" + third + "\nBenchmarkThird/tool=ours 1 3 ns\n",
		"conditions.txt": "cpu: fast\n" + first + third,
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || plain(string(got)) != want {
			t.Errorf("%s is %s, %v, want %s", name, got, err, want)
		}
	}
	if all, err := os.ReadDir(out); err != nil || len(all) != len(files) {
		t.Errorf("%v, %v", all, err)
	}
	if err := s.Measure(t.Context(), nil, []Scenario{{"a", func(context.Context) error { return nil }}}, []string{"a"}, filepath.Join(out, "absent")); err == nil {
		t.Error("no error without the directory")
	}
}
