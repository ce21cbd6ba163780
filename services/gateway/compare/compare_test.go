package compare

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/services/internal/report"
)

var usual = Options{Alpha: .05, MinEffect: .05, resamples: 100}

// byTrials draws a comparison of two cells and four metrics whose unit is the
// trial; every trial has conditions of its own that all its metrics share.
func byTrials(random *rand.Rand, trials int, factor, spread float64) []Test {
	var tests []Test
	for cell := range 2 {
		sides := [2][4][]float64{}
		for side := range sides {
			for range trials {
				conditions := math.Exp(random.NormFloat64() * spread)
				if side == 1 {
					conditions *= factor
				}
				for metric := range 3 {
					sides[side][metric] = append(sides[side][metric], 1e6*float64(1+metric)*conditions*math.Exp(random.NormFloat64()*spread/4))
				}
				sides[side][3] = append(sides[side][3], 1e9/conditions)
			}
		}
		for metric, name := range []string{Corrected, Service, FirstByte, Throughput} {
			tests = append(tests, Test{
				Values: []report.Value{{Name: "size", Value: fmt.Sprint(cell)}}, Metric: name, Over: overTrials,
				A: Data{sides[0][metric]}, B: Data{sides[1][metric]},
			})
		}
	}
	return tests
}

func byRequests(random *rand.Rand, n int, factor float64) []Test {
	draw := func(factor float64) Data {
		d := make(Data, 2)
		for i := range d {
			for range n {
				d[i] = append(d[i], math.Round(factor*1e6*(1+random.ExpFloat64())))
			}
		}
		return d
	}
	var tests []Test
	for _, name := range []string{Corrected, Service, FirstByte} {
		tests = append(tests, Test{Metric: name, Over: overRequests, A: draw(1), B: draw(factor)})
	}
	return tests
}

// verdicts counts comparisons in which any metric has a verdict of its kind.
func verdicts(t *testing.T, rounds int, tests func(*rand.Rand) []Test) map[string]int {
	t.Helper()
	random := rand.New(rand.NewPCG(11, 12))
	counts := map[string]int{}
	for i := range rounds {
		results, err := Judge(tests(random), usual, fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, d := range results {
			seen[d.Verdict] = true
		}
		for v := range seen {
			counts[v]++
		}
	}
	return counts
}

// Of two runs of the same thing, at most 5 % may be called better or worse, over
// all metrics and cells together.
func TestFalsePositives(t *testing.T) {
	const rounds = 300
	for name, tests := range map[string]func(*rand.Rand) []Test{
		"5 trials":     func(r *rand.Rand) []Test { return byTrials(r, 5, 1, .1) },
		"12 trials":    func(r *rand.Rand) []Test { return byTrials(r, 12, 1, .3) },
		"30 requests":  func(r *rand.Rand) []Test { return byRequests(r, 15, 1) },
		"120 requests": func(r *rand.Rand) []Test { return byRequests(r, 60, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			counts := verdicts(t, rounds, tests)
			if wrong := counts[report.Better] + counts[report.Worse]; wrong > rounds*5/100 {
				t.Errorf("%d of %d comparisons of equals found a difference: %v, want at most 5 %%", wrong, rounds, counts)
			}
			t.Logf("%v of %d", counts, rounds)
		})
	}
}

func TestShiftsAreFound(t *testing.T) {
	const rounds = 20
	for name, c := range map[string]struct {
		tests func(*rand.Rand) []Test
		want  string
	}{
		"8 trials, 50 % slower":    {func(r *rand.Rand) []Test { return byTrials(r, 8, 1.5, .05) }, report.Worse},
		"8 trials, a third faster": {func(r *rand.Rand) []Test { return byTrials(r, 8, 1/1.5, .05) }, report.Better},
		"600 requests, slower":     {func(r *rand.Rand) []Test { return byRequests(r, 300, 1.4) }, report.Worse},
		"600 requests, faster":     {func(r *rand.Rand) []Test { return byRequests(r, 300, 1/1.4) }, report.Better},
		"the same, 4000 requests":  {func(r *rand.Rand) []Test { return byRequests(r, 4000, 1) }, report.NoDifference},
		"3 requests":               {func(r *rand.Rand) []Test { return byRequests(r, 1, 3) }, report.Underpowered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rounds := rounds
			if name == "the same, 4000 requests" {
				rounds = 4
			}
			counts := verdicts(t, rounds, c.tests)
			if counts[c.want] < rounds*95/100 {
				t.Errorf("verdicts %v of %d, want %s", counts, rounds, c.want)
			}
		})
	}
}

// Effect sizes come out as they were put in.
func TestEffectSizes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	results, err := Judge(byTrials(random, 40, 1.5, .02), usual, "x")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range results {
		want := 1.5
		if d.Metric == Throughput {
			want = 1 / 1.5
		}
		if math.Abs(*d.Ratio/want-1) > .03 || *d.RatioLow > want || *d.RatioHigh < want || math.Abs(d.CliffsDelta) != 1 || d.NA != 40 || d.P > 1e-6 {
			t.Errorf("%s: %+v, want the ratio %g", d.Metric, d, want)
		}
		if shift := d.MedianB - d.MedianA; math.Abs(d.Shift/shift-1) > .1 {
			t.Errorf("%s: shift %g, medians differ by %g", d.Metric, d.Shift, shift)
		}
	}
}

func TestJudgeIsDeterministic(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 9))
	tests := byRequests(random, 200, 1.1)
	first, err := Judge(tests, usual, "runs a and b")
	if err != nil {
		t.Fatal(err)
	}
	second, err := Judge(tests, usual, "runs a and b")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(first, second) {
		t.Error("the same data gave another answer")
	}
}

// Requests by the thousand do not outweigh trials that differ among themselves.
func TestTrialsThatDiffer(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 5))
	trial := func(level float64) []float64 {
		v := make([]float64, 1000)
		for i := range v {
			v[i] = level * (1 + random.Float64())
		}
		return v
	}
	for _, c := range []struct {
		a, b Data
		want string
	}{
		{Data{trial(1), trial(2)}, Data{trial(1.5), trial(3)}, report.Underpowered},
		{Data{trial(1), trial(2)}, Data{trial(2.5), trial(3)}, report.Worse},
		{Data{trial(1)}, Data{trial(3)}, report.Worse},
	} {
		results, err := Judge([]Test{{Metric: Service, Over: overRequests, A: c.a, B: c.b}}, usual, "x")
		if err != nil {
			t.Fatal(err)
		}
		if results[0].Verdict != c.want || results[0].PHolm > .001 {
			t.Errorf("%d and %d trials: %s, p %g, want %s", len(c.a), len(c.b), results[0].Verdict, results[0].PHolm, c.want)
		}
	}
}

// When no data of that size could show anything, the result says what could.
func TestTooFewTrials(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 3))
	results, err := Judge(byTrials(random, 5, 3, .01), usual, "x")
	if err != nil {
		t.Fatal(err)
	}
	// 8 tests: 2/C(10,5) is too much, 2/C(12,6) is not.
	for _, d := range results {
		if d.Verdict != report.Underpowered || !strings.Contains(d.Caveat, "trials.repeat: 6") {
			t.Errorf("5 trials: %s, %q, want the advice to take 6", d.Verdict, d.Caveat)
		}
	}
	if results, err = Judge(byTrials(random, 6, 3, .01), usual, "x"); err != nil {
		t.Fatal(err)
	}
	for _, d := range results {
		if d.Verdict != report.Worse || d.Caveat != "" {
			t.Errorf("6 trials: %s, %q, want worse", d.Verdict, d.Caveat)
		}
	}
}

func TestNothingToCompare(t *testing.T) {
	results, err := Judge([]Test{
		{Metric: Corrected, Over: overTrials, A: Data{{1, 2, 3, 4, 5}}, B: Data{}},
		{Metric: Corrected, Over: overRequests, A: Data{{0, 0, 0}}, B: Data{{0, 0, 0}}},
		{Metric: Throughput, Over: overTrials, A: Data{{1, 2}}, B: Data{{9, 9}}},
	}, usual, "x")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range results {
		if d.Verdict != report.Underpowered || d.P != 1 {
			t.Errorf("%+v, want underpowered", d)
		}
	}
	if results[2].Ratio == nil || *results[2].Ratio != 6 || results[2].RatioLow != nil {
		t.Errorf("few trials: %+v, want the ratio alone", results[2])
	}
}
