package simulate

import (
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

func find(t *testing.T, name string) Scenario {
	t.Helper()
	for _, s := range Bursts() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no scenario %s", name)
	return Scenario{}
}

func compare(t *testing.T, name string, seeds int) map[string]Row {
	t.Helper()
	s := find(t, name)
	table, err := Compare(s, Contenders(s.World), 1001, seeds)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]Row{}
	for _, r := range table.Rows {
		rows[r.Policy] = r
	}
	return rows
}

// From none to 19 with workers that start like processes: both of our policies are
// as good as one that knew what comes, the source's and KEDA are not.
func TestBurstOfProcesses(t *testing.T) {
	rows := compare(t, "process", 30)
	for _, name := range []string{"predictive", "… hysteresis 0.5"} {
		r := rows[name]
		if r.WaitRatio.High > 1.15 || r.WaitHeld < 0.9 {
			t.Errorf("%s: wait by the oracle's %+v, held in %.2f", name, r.WaitRatio, r.WaitHeld)
		}
		if r.CostRatio.High > 1.1 || r.CostHeld < 1 {
			t.Errorf("%s: cost by the oracle's %+v", name, r.CostRatio)
		}
		if r.Turns < 0.97 || r.Now < 1 || r.Worst.Median > 1 {
			t.Errorf("%s: few enough reversals in %.2f, decided in time in %.2f, worst %+v", name, r.Turns, r.Now, r.Worst)
		}
		if r.Peak.Median != 19 {
			t.Errorf("%s: peak %g", name, r.Peak.Median)
		}
	}
	if r := rows["source"]; r.WaitRatio.Low < 1.1 || r.WaitRatio.Low < rows["predictive"].WaitRatio.High {
		t.Errorf("source: wait by the oracle's %+v", r.WaitRatio)
	}
	for _, name := range []string{"keda, lag 1", "keda, lag 2"} {
		if r := rows[name]; r.WaitRatio.Low < 2 || r.Decided.Median < 2 {
			t.Errorf("%s: wait by the oracle's %+v, decided after %+v", name, r.WaitRatio, r.Decided)
		}
	}
	if rows["keda, lag 1"].CostRatio.Low < 1.15 {
		t.Errorf("keda: cost by the oracle's %+v", rows["keda, lag 1"].CostRatio)
	}
}

// With a boot that is long beside the clips nobody who cannot see the future is near
// the oracle; ours is near to what asking for all at the first clip would give.
func TestBurstOfInstances(t *testing.T) {
	rows := compare(t, "instance", 15)
	if r := rows["all at once"]; r.WaitRatio.Low < 2 {
		t.Errorf("all at once: wait by the oracle's %+v", r.WaitRatio)
	}
	r := rows["predictive"]
	if r.AtOnceRatio.Median > 1.35 || r.CostHeld < 1 || r.Turns < 0.97 || r.Now < 1 {
		t.Errorf("predictive: %+v", r)
	}
	if k := rows["keda, lag 1"]; k.AtOnceRatio.Median < 1.6*r.AtOnceRatio.Median {
		t.Errorf("keda: wait by all at once %+v, predictive %+v", k.AtOnceRatio, r.AtOnceRatio)
	}
}

// Where half of the cap is enough, sizing by arrivals stays cheap.
func TestHalfOfTheCap(t *testing.T) {
	rows := compare(t, "half-process", 30)
	r := rows["predictive"]
	if r.WaitRatio.High > 1.1 || r.CostRatio.Median > 1.16 || r.Turns < 0.65 || r.Peak.Median > 16 {
		t.Errorf("predictive: wait %+v, cost %+v, turns %.2f, peak %g", r.WaitRatio, r.CostRatio, r.Turns, r.Peak.Median)
	}
	if k := rows["keda, lag 1"]; k.CostRatio.Low < 1.3 {
		t.Errorf("keda: cost %+v", k.CostRatio)
	}
}

// Nothing has shorter waits than the bound or costs less than it.
func TestBounds(t *testing.T) {
	for _, s := range Bursts() {
		if strings.HasSuffix(s.Name, "-long") {
			continue
		}
		for seed := range uint64(1) {
			trace, err := s.Trace(Seeded(seed))
			if err != nil {
				t.Fatal(err)
			}
			o := Foresee(&trace, s.World)
			for _, c := range Contenders(s.World) {
				controller, err := c.Make()
				if err != nil {
					t.Fatal(err)
				}
				r, err := Run(&trace, s.World, controller, 0.5)
				if err != nil {
					t.Fatal(err)
				}
				if r.Clips != len(trace.Clips) {
					t.Errorf("%s, %s: %d clips of %d", s.Name, c.Name, r.Clips, len(trace.Clips))
				}
				if r.P95 < o.Bound.P95 || r.Max < o.Bound.Max || r.Cost < o.Bound.Cost {
					t.Errorf("%s, %s: %+v is better than can be: %+v", s.Name, c.Name, r, o.Bound)
				}
				if r.P95 < o.AtOnce.P95 || r.Max < o.AtOnce.Max {
					t.Errorf("%s, %s: shorter waits than by all at once", s.Name, c.Name)
				}
				if r.Peak > s.World.Cap {
					t.Errorf("%s, %s: %d instances", s.Name, c.Name, r.Peak)
				}
			}
		}
	}
}

func TestSameSeedSameResult(t *testing.T) {
	s := find(t, "process")
	one, err := Compare(s, Contenders(s.World), 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Compare(s, Contenders(s.World), 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(one.Rows, two.Rows) {
		t.Error("two runs of the same seeds differ")
	}
}

// The simulator itself against theory: a fixed number of workers for a long time is
// an M/M/c queue.
func TestAgainstErlang(t *testing.T) {
	b := Burst{Quiet: time.Minute, Length: 20 * time.Hour, Load: 8, Mean: 10 * time.Second, Service: Exponential(10 * time.Second)}
	p := scale.DefaultPolicy()
	p.Name, p.Count, p.Cap = scale.PolicyFixed, 10, 10
	const seeds = 5
	mean := 0.0
	for seed := range uint64(seeds) {
		trace := b.Poisson(Seeded(seed))
		c, err := Policy(p, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(&trace, World{Cap: 10, Wait: time.Second}, ending{c, epoch().Add(trace.Clips[len(trace.Clips)-1].At)}, 0)
		if err != nil {
			t.Fatal(err)
		}
		mean += r.P95.Seconds() / seeds
		if steady := steady(&trace, World{Cap: 10, Slots: 1}, 10, 0); math.Abs(steady.P95.Seconds()/r.P95.Seconds()-1) > 0.02 {
			t.Errorf("p95 wait %s, of the oracle's way to count %s", r.P95, steady.P95)
		}
	}
	theory := scale.WaitQuantile(10, 8, 10*time.Second, 0.95).Seconds()
	if math.Abs(mean/theory-1) > 0.06 {
		t.Errorf("p95 wait %.2f s, theory %.2f s", mean, theory)
	}
}

// ending drains everything after the last clip, which a fixed number never does.
type ending struct {
	Controller
	last time.Time
}

func (e ending) Step(v View) Order {
	if v.At.Before(e.last) {
		return e.Controller.Step(v)
	}
	var o Order
	for _, i := range v.Instances {
		if v.Waiting+v.InWork == 0 && i.Phase != scale.Draining {
			o.Drain = append(o.Drain, i.ID)
		}
	}
	return o
}

// Ten clips at once on instances that boot in 45 s and take a clip each, to the
// second.
func TestByHand(t *testing.T) {
	trace := Trace{Load: 1, Service: time.Minute}
	for range 3 {
		trace.Clips = append(trace.Clips, Clip{At: 10 * time.Second, Service: time.Minute})
	}
	p := scale.DefaultPolicy()
	p.Name, p.Cap = scale.PolicySource, 2
	c, err := Policy(p, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(&trace, World{Boot: 45 * time.Second, Cap: 2, Wait: time.Second}, c, 0.5)
	if err != nil {
		t.Fatal(err)
	}
	// Asked for at 10.5 s, there at 55.5; the third begins at 115.5, is done at 175.5.
	// The idle one ends 60 s after 115.5, the other after 175.5, at steps of a second.
	want := Result{
		Clips: 3, P50: 45500 * time.Millisecond, P95: 105500 * time.Millisecond, Max: 105500 * time.Millisecond,
		Cost: 165*time.Second + 225*time.Second, Reversals: 1, Decided: 500 * time.Millisecond, Worst: 500 * time.Millisecond,
		Full: 500 * time.Millisecond, Peak: 2, Started: 2,
	}
	if r != want {
		t.Errorf("%+v, want %+v", r, want)
	}
}

// KEDA's own rules, one by one.
func TestKEDA(t *testing.T) {
	at := epoch()
	pods := func(n int) (all []scale.Instance) {
		for i := range n {
			all = append(all, scale.Instance{ID: string(rune('1' + i)), Phase: scale.Busy})
		}
		return all
	}
	k := &KEDA{Threshold: 1, Cap: 19}
	step := func(lag, n int) Order {
		at = at.Add(kedaSync)
		return k.Step(View{At: at, Waiting: lag, Instances: pods(n)})
	}
	for i, want := range []int{1, 0, 1} { // from none: every other step, one
		if o := step(10, 0); o.Start != want {
			t.Errorf("step %d from none: %+v, want %d", i, o, want)
		}
	}
	for _, c := range []struct{ lag, n, start int }{{40, 1, 4}, {40, 5, 5}, {40, 10, 9}, {10, 10, 0}, {19, 18, 0}, {12, 10, 2}} {
		if o := step(c.lag, c.n); o.Start != c.start || len(o.Drain) > 0 {
			t.Errorf("lag %d on %d: %+v, want %d", c.lag, c.n, o, c.start)
		}
	}
	steps := 0
	for ; steps < 100; steps++ {
		if o := step(5, 9); len(o.Drain) > 0 {
			if len(o.Drain) != 4 || o.Drain[0] != "9" {
				t.Errorf("downwards: %+v", o)
			}
			break
		}
	}
	if after := time.Duration(steps) * kedaSync; after < kedaWindow-kedaSync || after > kedaWindow+2*kedaSync {
		t.Errorf("downwards after %s", after)
	}
	for steps = 0; steps < 100; steps++ {
		if o := step(0, 1); len(o.Drain) == 1 {
			break
		}
	}
	if after := time.Duration(steps) * kedaSync; after < kedaCooldown-2*kedaSync || after > kedaCooldown+2*kedaSync {
		t.Errorf("to none after %s", after)
	}
}

func TestPolicyThatNeverActs(t *testing.T) {
	trace := Trace{Clips: []Clip{{0, time.Second}}, Load: 1, Service: time.Second}
	p := scale.DefaultPolicy()
	p.Name, p.Count = scale.PolicyFixed, 0
	c, err := Policy(p, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(&trace, World{Cap: 1, Wait: time.Second}, c, 0); !errors.Is(err, ErrEndless) {
		t.Errorf("error %v", err)
	}
	if _, err := Policy(scale.Policy{}, time.Second); err == nil {
		t.Error("a policy that is none passes")
	}
}

func TestStepAndDistributions(t *testing.T) {
	r := Seeded(1)
	b := Burst{Length: time.Minute, Load: 2, Mean: 10 * time.Second, Service: Deterministic(10 * time.Second)}
	trace := b.Step(r)
	if len(trace.Clips) != 11 || trace.Clips[1].At-trace.Clips[0].At != 5*time.Second || trace.Clips[3].Service != 10*time.Second {
		t.Errorf("step %+v", trace)
	}
	from := []time.Duration{1, 2, 3}
	draw := Empirical(from)
	from[0], from[1], from[2] = 9, 9, 9
	seen := map[time.Duration]int{}
	for range 3000 {
		seen[draw(r)]++
	}
	for d := time.Duration(1); d <= 3; d++ {
		if seen[d] < 900 || seen[d] > 1100 {
			t.Errorf("empirical: %v", seen)
		}
	}
}

func TestReadTrace(t *testing.T) {
	trace, err := ReadTrace(strings.NewReader("name,at_s,service_s\nb,30,5\na,10.5,15\nc,50.5,10\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []Clip{{0, 15 * time.Second}, {19500 * time.Millisecond, 5 * time.Second}, {40 * time.Second, 10 * time.Second}}
	if !slices.Equal(trace.Clips, want) || (trace.Service-10*time.Second).Abs() > time.Microsecond || math.Abs(trace.Load-0.5) > 1e-6 {
		t.Errorf("%+v", trace)
	}
	for text, fault := range map[string]string{
		"":                             "header",
		"x\n1\n":                       "no column at_s",
		"at_s\n1\n2\n":                 "no column service_s",
		"at_s,service_s\n1,1\n":        "want at least 2",
		"at_s,service_s\n1,1\n-1,1\n":  "line 3: at_s",
		"at_s,service_s\n1,1\n2,NaN\n": "line 3: service_s",
		"at_s,service_s\n1,1\n1,1\n":   "at once",
		"at_s,service_s\n1\n":          "wrong number of fields",
	} {
		if _, err := ReadTrace(strings.NewReader(text), nil, nil); err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%q: error %v, want %q", text, err, fault)
		}
	}
}

func FuzzReadTrace(f *testing.F) {
	f.Add("at_s,service_s\n1,1\n2,1\n")
	f.Add("at_s\n0\n1e300\n")
	f.Add("service_s,at_s\n\"1\",3\n1,0.5\n")
	f.Fuzz(func(t *testing.T, text string) {
		trace, err := ReadTrace(strings.NewReader(text), rand.New(rand.NewPCG(1, 1)), Deterministic(time.Second))
		if err != nil {
			return
		}
		if trace.Load < 0 || math.IsNaN(trace.Load) || trace.Clips[0].At != 0 || !slices.IsSortedFunc(trace.Clips, func(a, b Clip) int { return int(a.At - b.At) }) {
			t.Errorf("%+v", trace)
		}
	})
}
