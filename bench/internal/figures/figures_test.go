package figures

import (
	"math"
	"os"
	"path/filepath"
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
