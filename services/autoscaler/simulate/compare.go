package simulate

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

// Scenario is a world with what comes into it.
type Scenario struct {
	Name  string
	About string
	World World
	Trace func(r *rand.Rand) (Trace, error)
}

// Contender is a policy under a name; Make gives a fresh one.
type Contender struct {
	Name string
	Make func() (Controller, error)
}

// Estimate is a median over seeds with its 95 % confidence interval, by order
// statistics.
type Estimate struct{ Median, Low, High float64 }

// Row compares one contender with the oracle over all seeds. Times are in seconds.
type Row struct {
	Policy                    string
	P95, CostRatio, WaitRatio Estimate // ratios are to the steady oracle, seed by seed
	// AtOnceRatio is the 95th percentile of waits by that of asking for the cap at the
	// first clip.
	AtOnceRatio                    Estimate
	P50, Max, Cost                 Estimate
	Reversals, Decided, Worst      Estimate
	Full, Peak                     Estimate
	WaitHeld, CostHeld, Turns, Now float64 // shares of the seeds in which a target held
}

// Targets of a policy against the oracle.
const (
	TargetWait      = 1.25 // 95th percentile of waits by the oracle's
	TargetCost      = 1.15
	TargetReversals = 2
	TargetDecided   = time.Second
)

// Table is a scenario's outcome.
type Table struct {
	Scenario Scenario
	Seeds    int
	// Instances and Theory are the oracle's.
	Instances int
	Theory    time.Duration
	Rows      []Row
}

// Compare runs contenders over n seeds from the first on.
func Compare(s Scenario, contenders []Contender, first uint64, n int) (Table, error) {
	t := Table{Scenario: s, Seeds: n}
	results := make([][]Result, len(contenders)+3)
	for seed := range n {
		r := Seeded(first + uint64(seed))
		phase := r.Float64()
		trace, err := s.Trace(r)
		if err != nil {
			return t, fmt.Errorf("%s: %w", s.Name, err)
		}
		o := Foresee(&trace, s.World)
		t.Instances, t.Theory = o.Instances, o.Theory
		for i, known := range []Result{o.Steady, o.AtOnce, o.Bound} {
			results[i] = append(results[i], known)
		}
		for i, c := range contenders {
			controller, err := c.Make()
			if err != nil {
				return t, err
			}
			result, err := Run(&trace, s.World, controller, phase)
			if err != nil {
				return t, fmt.Errorf("%s: %s: seed %d: %w", s.Name, c.Name, first+uint64(seed), err)
			}
			results[i+3] = append(results[i+3], result)
		}
	}
	for i, name := range []string{"oracle", "all at once", "bound"} {
		t.Rows = append(t.Rows, row(name, results[i], results[0], results[1]))
	}
	for i, c := range contenders {
		t.Rows = append(t.Rows, row(c.Name, results[i+3], results[0], results[1]))
	}
	return t, nil
}

func row(name string, all, oracle, atOnce []Result) Row {
	of := func(value func(i int) float64) Estimate {
		values := make([]float64, len(all))
		for i := range all {
			values[i] = value(i)
		}
		return estimate(values)
	}
	share := func(held func(i int) bool) float64 {
		n := 0
		for i := range all {
			if held(i) {
				n++
			}
		}
		return float64(n) / float64(len(all))
	}
	wait := func(i int) float64 { return ratio(all[i].P95, oracle[i].P95) }
	cost := func(i int) float64 { return ratio(all[i].Cost, oracle[i].Cost) }
	return Row{
		Policy: name, WaitRatio: of(wait), CostRatio: of(cost),
		AtOnceRatio: of(func(i int) float64 { return ratio(all[i].P95, atOnce[i].P95) }),
		P50:         of(func(i int) float64 { return all[i].P50.Seconds() }),
		P95:         of(func(i int) float64 { return all[i].P95.Seconds() }),
		Max:         of(func(i int) float64 { return all[i].Max.Seconds() }),
		Cost:        of(func(i int) float64 { return all[i].Cost.Seconds() }),
		Reversals:   of(func(i int) float64 { return float64(all[i].Reversals) }),
		Decided:     of(func(i int) float64 { return all[i].Decided.Seconds() }),
		Worst:       of(func(i int) float64 { return all[i].Worst.Seconds() }),
		Full:        of(func(i int) float64 { return all[i].Full.Seconds() }),
		Peak:        of(func(i int) float64 { return float64(all[i].Peak) }),
		WaitHeld:    share(func(i int) bool { return wait(i) <= TargetWait }),
		CostHeld:    share(func(i int) bool { return cost(i) <= TargetCost }),
		Turns:       share(func(i int) bool { return all[i].Reversals <= TargetReversals }),
		Now:         share(func(i int) bool { return all[i].Decided <= TargetDecided }),
	}
}

// estimate sorts the values.
func estimate(values []float64) Estimate {
	slices.Sort(values)
	n := len(values)
	reach := 1.96 * math.Sqrt(float64(n)) / 2
	low, high := int(math.Floor(float64(n)/2-reach)), int(math.Ceil(float64(n)/2+reach))
	return Estimate{(values[(n-1)/2] + values[n/2]) / 2, values[max(0, low-1)], values[min(n-1, high)]}
}

// Poisson is the scenario of a burst.
func Poisson(name, about string, b Burst, w World) Scenario {
	return Scenario{Name: name, About: about, World: w, Trace: func(r *rand.Rand) (Trace, error) {
		t := b.Poisson(r)
		if len(t.Clips) == 0 {
			return t, errors.New("no clip comes in the burst")
		}
		return t, nil
	}}
}

// Bursts are the scenarios in which the policies are judged. The acceptable wait is
// one service time; at a load of 16 Erlang that takes 19 instances, at 8 it takes 11.
func Bursts() []Scenario {
	burst := func(name, about string, load float64, mean, boot, length time.Duration) Scenario {
		return Poisson(name, about, Burst{Quiet: time.Minute, Length: length, Load: load, Mean: mean, Service: Exponential(mean)},
			World{Boot: boot, Cap: 19, Wait: mean})
	}
	const boot = 45 * time.Second // of an instance; a process is there in a second
	return []Scenario{
		burst("process", "0 to 19, workers start in 1 s (a process), clips of 10 s, burst of 20 min", 16, 10*time.Second, time.Second, 20*time.Minute),
		burst("instance", "0 to 19, workers boot in 45 s (an instance), clips of 10 s, burst of 20 min", 16, 10*time.Second, boot, 20*time.Minute),
		burst("instance-long", "0 to 19, boot of 45 s, clips of 10 s, burst of 3 h", 16, 10*time.Second, boot, 3*time.Hour),
		burst("source", "0 to 19, boot of 45 s, clips of 2 min as the source's took, burst of 60 min", 16, 2*time.Minute, boot, time.Hour),
		burst("source-long", "0 to 19, boot of 45 s, clips of 2 min, burst of 4 h", 16, 2*time.Minute, boot, 4*time.Hour),
		burst("half-process", "11 are enough, workers start in 1 s, clips of 10 s, burst of 20 min", 8, 10*time.Second, time.Second, 20*time.Minute),
		burst("half-instance", "11 are enough, boot of 45 s, clips of 10 s, burst of 60 min", 8, 10*time.Second, boot, time.Hour),
	}
}

// Pace is how often the autoscaler looks, unless it is told otherwise.
const Pace = 500 * time.Millisecond

// Contenders are the policies for a world: ours, the source's, and KEDA.
func Contenders(w World) []Contender {
	with := func(title, name string, hysteresis float64) Contender {
		return Contender{title, func() (Controller, error) {
			p := scale.DefaultPolicy()
			p.Name, p.Cap, p.Wait, p.Warmup, p.Hysteresis = name, w.Cap, w.Wait, w.Boot, hysteresis
			p.Patience = max(p.Patience, w.Boot)
			return Policy(p, Pace)
		}}
	}
	usual := scale.DefaultPolicy().Hysteresis
	return []Contender{
		with("predictive", scale.PolicyPredictive, usual),
		with("backlog-per-worker", scale.PolicyBacklog, usual),
		with("… hysteresis 0.5", scale.PolicyBacklog, 0.5),
		with("source", scale.PolicySource, usual),
		{"keda, lag 1", func() (Controller, error) { return &KEDA{Threshold: 1, Cap: w.Cap}, nil }},
		{"keda, lag 2", func() (Controller, error) { return &KEDA{Threshold: 2, Cap: w.Cap}, nil }},
	}
}
