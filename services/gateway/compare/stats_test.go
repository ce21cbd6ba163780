package compare

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func near(t *testing.T, name string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance {
		t.Errorf("%s: %.12g, want %.12g", name, got, want)
	}
}

// Hand-computed and textbook values.
func TestMannWhitney(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b []float64
		want float64
	}{
		// Of C(10,5) = 252 arrangements 2 are as extreme.
		{"5 below 5", []float64{1, 2, 3, 4, 5}, []float64{6, 7, 8, 9, 10}, 2.0 / 252},
		// C(6,3) = 20.
		{"3 below 3", []float64{1, 2, 3}, []float64{4, 5, 6}, 2.0 / 20},
		// U = 1 of 20 arrangements: 0 and 1 have one arrangement each, both tails.
		{"U is 1", []float64{1, 2, 4}, []float64{3, 5, 6}, 4.0 / 20},
		// Hollander & Wolfe, example 4.1 (permeability): one-sided .127, U = 15 of 50.
		{"Hollander & Wolfe 4.1", []float64{1.15, .88, .90, .74, 1.21}, []float64{.80, .83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, .73, 1.46}, .254},
		{"equal", []float64{1, 1, 1}, []float64{1, 1, 1}, 1},
		{"one value each", []float64{1}, []float64{2}, 1},
		{"empty", nil, []float64{2}, 1},
	} {
		got, err := mannWhitney(c.a, c.b)
		if err != nil {
			t.Fatal(err)
		}
		near(t, c.name, got, c.want, 5e-4)
		back, err := mannWhitney(c.b, c.a)
		if err != nil {
			t.Fatal(err)
		}
		near(t, c.name+" swapped", back, got, 1e-12)
	}
}

// The normal approximation with ties against its formula, written out.
func TestMannWhitneyLarge(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	a, b := make([]float64, 80), make([]float64, 90)
	for i := range a {
		a[i] = float64(random.IntN(20))
	}
	for i := range b {
		b[i] = float64(random.IntN(20) + 2)
	}
	var u float64
	for _, x := range a {
		for _, y := range b {
			switch {
			case x > y:
				u++
			case x == y:
				u += .5
			}
		}
	}
	counts := map[float64]float64{}
	for _, v := range slices.Concat(a, b) {
		counts[v]++
	}
	var ties float64
	for _, c := range counts {
		ties += c*c*c - c
	}
	n, m := float64(len(a)), float64(len(b))
	sigma := math.Sqrt(n * m / 12 * (n + m + 1 - ties/((n+m)*(n+m-1))))
	z := (math.Abs(u-n*m/2) - .5) / sigma
	got, err := mannWhitney(a, b)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "p", got, math.Erfc(z/math.Sqrt2), 1e-9)
}

func TestEffects(t *testing.T) {
	a, b := []float64{1, 2, 3}, []float64{2, 3, 4, 5}
	// Pairs b > a: 3 + 4·… counted by hand: a=1: 4, a=2: 3, a=3: 2; below: a=3: 1.
	near(t, "Cliff's delta", cliffsDelta(a, b), (9-1)/12.0, 1e-12)
	// Differences: 1 2 3 4 0 1 2 3 -1 0 1 2, sorted -1 0 0 1 1 1 2 2 2 3 3 4.
	near(t, "Hodges-Lehmann", hodgesLehmann(a, b), 1.5, 0)
	near(t, "Hodges-Lehmann, odd", hodgesLehmann([]float64{5}, []float64{1, 2, 9}), -3, 0)
	near(t, "empty", hodgesLehmann(nil, a)+cliffsDelta(nil, a), 0, 0)
	random := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		a, b := make([]float64, 1+random.IntN(12)), make([]float64, 1+random.IntN(12))
		for _, s := range [][]float64{a, b} {
			for i := range s {
				s[i] = float64(random.IntN(9)) - 4 + float64(random.IntN(2))*random.NormFloat64()
			}
			slices.Sort(s)
		}
		var differences []float64
		var delta float64
		for _, x := range a {
			for _, y := range b {
				differences = append(differences, y-x)
				switch {
				case y > x:
					delta++
				case y < x:
					delta--
				}
			}
		}
		slices.Sort(differences)
		near(t, "Hodges-Lehmann", hodgesLehmann(a, b), median(differences), 1e-15)
		near(t, "Cliff's delta", cliffsDelta(a, b), delta/float64(len(differences)), 1e-12)
	}
}

func TestHolm(t *testing.T) {
	got := holm([]float64{.01, .04, .03, .005})
	for i, want := range []float64{.03, .06, .06, .02} {
		near(t, "corrected", got[i], want, 1e-12)
	}
	near(t, "capped", holm([]float64{.9, .8})[0], 1, 0)
	if len(holm(nil)) != 0 {
		t.Error("no tests have corrected values")
	}
}

// A resampled median by ranks and counts is the median of the same draws.
func TestResampledMedian(t *testing.T) {
	groups := [][]float64{{5, 1, 9, 9}, {2, 2, 7}, {4}}
	s := newStrata(groups)
	for seed := range uint64(100) {
		got := s.resampledMedian(rand.New(rand.NewPCG(seed, 0)))
		random := rand.New(rand.NewPCG(seed, 0))
		var drawn []float64
		for _, g := range groups {
			sorted := slices.Sorted(slices.Values(g))
			for range g {
				drawn = append(drawn, sorted[random.Uint64N(uint64(len(g)))])
			}
		}
		slices.Sort(drawn)
		near(t, "median", got, median(drawn), 0)
	}
}

// The interval covers the true ratio about as often as it says.
func TestBootstrapCoverage(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	draw := func(n int, scale float64) [][]float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = scale * math.Exp(random.NormFloat64()*.3)
		}
		return [][]float64{v}
	}
	covered := 0
	const rounds = 300
	for range rounds {
		low, high, ok := bootstrapRatio(draw(100, 1), draw(100, 1.2), .95, 200, random)
		if !ok || low > high {
			t.Fatal("no interval")
		}
		if low <= 1.2 && 1.2 <= high {
			covered++
		}
	}
	if share := float64(covered) / rounds; share < .91 || share > .99 {
		t.Errorf("the interval covers the true ratio in %.1f %%, want about 95 %%", 100*share)
	}
}
