package plan

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/transferlab/transferlab/schemas"
)

func experiment(t *testing.T, section string) *schemas.Experiment {
	t.Helper()
	e, err := schemas.ParseExperiment([]byte(`
name: planned
workload: s3
groups:
  - {site: oregon, clients: 2}
  - {site: dublin, clients: 1}
matrix:
  size: [1kB, 2kB]
trials: {repeat: 3}
s3:
  buckets: [alpha, beta, gamma]
  size: 1kB
` + section))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestSamePlanForSameSeed(t *testing.T) {
	e := experiment(t, "  wait: 2s\n  requests: 50\n")
	first, err := New(e, 7)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := New(experiment(t, "  wait: 2s\n  requests: 50\n"), 7)
	other, _ := New(e, 8)
	if first.Hash != again.Hash {
		t.Errorf("same seed: hashes %s and %s", first.Hash, again.Hash)
	}
	if first.Hash == other.Hash {
		t.Error("another seed has the same hash")
	}
	if len(first.Trials) != 6 {
		t.Fatalf("%d trials, want 2 cells × 3", len(first.Trials))
	}
	for round := range 3 {
		cells := []int{first.Trials[2*round].Cell, first.Trials[2*round+1].Cell}
		slices.Sort(cells)
		if !slices.Equal(cells, []int{0, 1}) {
			t.Errorf("repetition %d runs cells %v", round, cells)
		}
	}
}

func TestBucketsInACycle(t *testing.T) {
	s := experiment(t, "  requests: 12\n").S3
	q := NewS3(1, 0, 0, s)
	var buckets []int
	for r, ok := q.Next(); ok; r, ok = q.Next() {
		buckets = append(buckets, r.Bucket)
	}
	if want := []int{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}; !slices.Equal(buckets, want) {
		t.Errorf("buckets %v, want %v", buckets, want)
	}
}

// Over 100 seeds the arrivals of an open loop must be a Poisson process: each
// seed's gaps are tested against the exponential distribution (Kolmogorov and
// Smirnov), and the 100 p-values against the uniform one.
func TestOpenArrivalsArePoisson(t *testing.T) {
	s := experiment(t, "  loop: open\n  rate: 50\n  requests: 500\n").S3
	var ps []float64
	for seed := uint64(1); seed <= 100; seed++ {
		q := NewS3(seed, 0, 0, s)
		var gaps []float64
		last := time.Duration(0)
		for r, ok := q.Next(); ok; r, ok = q.Next() {
			gaps = append(gaps, (r.At - last).Seconds())
			last = r.At
		}
		ps = append(ps, kolmogorovSmirnov(gaps, distuv.Exponential{Rate: 50}.CDF))
	}
	if p := kolmogorovSmirnov(ps, distuv.Uniform{Min: 0, Max: 1}.CDF); p < 0.001 {
		t.Errorf("p-values of 100 seeds are not uniform: p = %g", p)
	}
}

// The think times of a closed loop over 100 seeds against the Poisson
// distribution, by chi-square.
func TestThinkTimesArePoisson(t *testing.T) {
	s := experiment(t, "  wait: 2s\n  requests: 201\n").S3
	counts := map[int]float64{}
	n := 0.0
	for seed := uint64(1); seed <= 100; seed++ {
		q := NewS3(seed, 0, 0, s)
		for i := 0; ; i++ {
			r, ok := q.Next()
			if !ok {
				break
			}
			if i == 0 {
				if r.At != 0 {
					t.Fatal("a client waits before its first request")
				}
				continue
			}
			if r.At%time.Second != 0 {
				t.Fatalf("think time %s, want whole seconds", r.At)
			}
			counts[min(int(r.At/time.Second), 8)]++
			n++
		}
	}
	chi, poisson := 0.0, distuv.Poisson{Lambda: 2}
	for k := range 9 {
		expected := n * poisson.Prob(float64(k))
		if k == 8 {
			expected = n * (1 - poisson.CDF(7))
		}
		chi += (counts[k] - expected) * (counts[k] - expected) / expected
	}
	if p := (distuv.ChiSquared{K: 8}).Survival(chi); p < 0.001 {
		t.Errorf("think times are not Poisson(2): chi-square %g, p = %g, counts %v", chi, p, counts)
	}
}

func TestExponentialThinkTimes(t *testing.T) {
	s := experiment(t, "  wait: 100ms\n  wait_distribution: exponential\n  requests: 2000\n").S3
	q := NewS3(3, 0, 0, s)
	var gaps []float64
	for r, ok := q.Next(); ok; r, ok = q.Next() {
		gaps = append(gaps, r.At.Seconds())
	}
	if p := kolmogorovSmirnov(gaps[1:], distuv.Exponential{Rate: 10}.CDF); p < 0.001 {
		t.Errorf("p = %g", p)
	}
}

// Clients, trials and seeds must not share a schedule.
func TestStreamsDiffer(t *testing.T) {
	s := experiment(t, "  loop: open\n  rate: 50\n  requests: 20\n").S3
	seen := map[time.Duration]string{}
	for seed := range uint64(3) {
		for trial := range uint32(3) {
			for client := range 3 {
				r, _ := NewS3(seed, trial, client, s).Next()
				name := fmt.Sprint(seed, trial, client)
				if other, found := seen[r.At]; found {
					t.Errorf("%s and %s start alike", name, other)
				}
				seen[r.At] = name
			}
		}
	}
}

// kolmogorovSmirnov is the p-value of the one-sample test (asymptotic
// distribution with Stephens' correction, 1970).
func kolmogorovSmirnov(x []float64, cdf func(float64) float64) float64 {
	slices.Sort(x)
	n := float64(len(x))
	d := 0.0
	for i, v := range x {
		f := cdf(v)
		d = max(d, f-float64(i)/n, float64(i+1)/n-f)
	}
	lambda := (math.Sqrt(n) + 0.12 + 0.11/math.Sqrt(n)) * d
	p := 0.0
	for k := 1; k <= 100; k++ {
		term := 2 * math.Exp(-2*float64(k*k)*lambda*lambda)
		if k%2 == 0 {
			term = -term
		}
		p += term
	}
	return min(max(p, 0), 1)
}
