package scale

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func start() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// world is a made one in which a policy can be stepped.
type world struct {
	r      *rand.Rand
	policy Policy
	state  State
	o      Observation
	next   int
}

func newWorld(seed uint64, name string) *world {
	r := rand.New(rand.NewPCG(seed, 1))
	p := DefaultPolicy()
	p.Name, p.Cap = name, 1+r.IntN(30)
	p.Floor = r.IntN(p.Cap + 1)
	p.Count = p.Floor + r.IntN(p.Cap-p.Floor+1)
	p.CoolDown, p.Hysteresis = time.Duration(r.IntN(60))*time.Second, r.Float64()*0.6
	return &world{r: r, policy: p, o: Observation{At: start()}}
}

// wander changes what is seen, as anything might.
func (w *world) wander() {
	o, r := &w.o, w.r
	o.At = o.At.Add(time.Duration(1+r.IntN(5000)) * time.Millisecond)
	come := r.IntN(4) * r.IntN(8)
	o.Arrivals += uint64(come)
	o.Waiting = max(0, o.Waiting+come-r.IntN(10))
	o.Slots = 1 + r.IntN(2)
	if r.IntN(10) == 0 {
		o.Service = time.Duration(r.IntN(60_000)) * time.Millisecond
	}
	o.Others = max(0, r.IntN(8)-5)
	o.InWork = 0
	for i := range o.Instances {
		in := &o.Instances[i]
		if in.Phase == Draining || r.IntN(3) > 0 {
			continue
		}
		in.Phase, in.Since = []Phase{Idle, Busy, Busy}[r.IntN(3)], o.At
	}
	for _, in := range o.Instances {
		if in.Phase == Busy {
			o.InWork++
		}
	}
	o.Instances = slices.DeleteFunc(o.Instances, func(in Instance) bool { return in.Phase == Draining && r.IntN(2) == 0 })
}

func (w *world) apply(d Decision) {
	for range d.Start {
		w.next++
		w.o.Instances = append(w.o.Instances, Instance{fmt.Sprintf("i%03d", w.next), Starting, w.o.At})
	}
	for i := range w.o.Instances {
		if slices.Contains(d.Drain, w.o.Instances[i].ID) {
			w.o.Instances[i].Phase, w.o.Instances[i].Since = Draining, w.o.At
		}
	}
}

func (w *world) staying() (n int) {
	for _, i := range w.o.Instances {
		if i.Phase != Draining && (i.Phase != Starting || w.o.At.Sub(i.Since) <= w.policy.Patience) {
			n++
		}
	}
	return n
}

// worlds steps every policy through many worlds and has each step checked.
func worlds(t *testing.T, check func(t *testing.T, w *world, before State, d Decision)) {
	for _, name := range Policies() {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(40) {
				w := newWorld(seed, name)
				if err := w.policy.Validate(); err != nil {
					t.Fatal(err)
				}
				for range 100 {
					w.wander()
					before := w.state
					var d Decision
					w.state, d = w.policy.Step(before, w.o)
					check(t, w, before, d)
					if t.Failed() {
						t.Fatalf("seed %d: %+v of %+v", seed, d, w.policy)
					}
					w.apply(d)
				}
			}
		})
	}
}

func TestBounds(t *testing.T) {
	worlds(t, func(t *testing.T, w *world, _ State, d Decision) {
		if d.Start < 0 || d.Start > 0 && len(w.o.Instances)+d.Start > w.policy.Cap {
			t.Errorf("starts %d beside %d", d.Start, len(w.o.Instances))
		}
		staying := w.staying()
		if overdue := len(d.Drain) - countPhase(w.o, d.Drain, Idle); staying-len(d.Drain)+overdue < w.policy.Floor && len(d.Drain) > overdue {
			t.Errorf("drains %d of %d, below the floor", len(d.Drain), staying)
		}
		if staying < w.policy.Floor && len(w.o.Instances) < w.policy.Cap && d.Start == 0 {
			t.Errorf("%d are below the floor, and none is started", staying)
		}
		if d.Start > 0 && countPhase(w.o, d.Drain, Idle) > 0 {
			t.Error("starts and drains")
		}
	})
}

func countPhase(o Observation, ids []string, p Phase) (n int) {
	for _, i := range o.Instances {
		if i.Phase == p && slices.Contains(ids, i.ID) {
			n++
		}
	}
	return n
}

func TestNeverDrainsABusyWorker(t *testing.T) {
	drained := 0
	worlds(t, func(t *testing.T, w *world, _ State, d Decision) {
		if countPhase(w.o, d.Drain, Busy)+countPhase(w.o, d.Drain, Draining) > 0 {
			t.Error("drains one that is busy or drains already")
		}
		drained += len(d.Drain)
	})
	if drained < 100 {
		t.Errorf("only %d were drained at all: the worlds show nothing", drained)
	}
}

// The same arguments give the same answer, in any order of the instances, and are
// left as they were.
func TestDeterministicAndPure(t *testing.T) {
	worlds(t, func(t *testing.T, w *world, before State, d Decision) {
		o := w.o
		o.Instances = slices.Clone(o.Instances)
		w.r.Shuffle(len(o.Instances), func(i, j int) { o.Instances[i], o.Instances[j] = o.Instances[j], o.Instances[i] })
		shuffled := slices.Clone(o.Instances)
		after, again := w.policy.Step(before, o)
		slices.Sort(again.Drain)
		sorted := slices.Sorted(slices.Values(d.Drain))
		if again.Start != d.Start || !slices.Equal(sorted, again.Drain) || !reflect.DeepEqual(after, w.state) {
			t.Errorf("%+v, and again %+v", d, again)
		}
		if !slices.Equal(shuffled, o.Instances) {
			t.Error("the observation was changed")
		}
	})
}

// With more waiting, all else being equal, there are never fewer instances.
func TestMonotoneInBacklog(t *testing.T) {
	worlds(t, func(t *testing.T, w *world, before State, d Decision) {
		o := w.o
		for range 3 {
			o.Waiting += 1 + w.r.IntN(10)
			_, more := w.policy.Step(before, o)
			if more.Start-len(more.Drain) < d.Start-len(d.Drain) {
				t.Errorf("%d waiting: %+v; %d waiting: %+v", w.o.Waiting, d, o.Waiting, more)
			}
		}
	})
}

func TestSourceRule(t *testing.T) {
	p := DefaultPolicy()
	p.Name = PolicySource
	running := []Instance{{"a", Busy, start()}, {"b", Idle, start()}, {"c", Starting, start()}}
	for waiting, want := range map[int]int{0: 0, 3: 0, 4: 1, 10: 7, 100: 16} {
		_, d := p.Step(State{}, Observation{At: start(), Waiting: waiting, InWork: 1, Instances: running})
		if d.Start != want || len(d.Drain) > 0 {
			t.Errorf("%d waiting: %+v, want %d", waiting, d, want)
		}
	}
	_, d := p.Step(State{}, Observation{At: start().Add(sourceEmpty), Instances: running})
	if !slices.Equal(d.Drain, []string{"b"}) {
		t.Errorf("after three empty polls: %+v", d)
	}
}

// An instance that does not come up is replaced, and ended.
func TestOverdueInstance(t *testing.T) {
	p := DefaultPolicy()
	p.Name = PolicyBacklog
	o := Observation{At: start(), Waiting: 1, Instances: []Instance{{"a", Starting, start()}}}
	s, d := p.Step(State{}, o)
	if d.Acts() {
		t.Fatalf("one is on its way: %+v", d)
	}
	o.At = o.At.Add(p.Patience + time.Second)
	if _, d = p.Step(s, o); d.Start != 1 || !slices.Equal(d.Drain, []string{"a"}) {
		t.Errorf("after its time: %+v", d)
	}
}

// Nothing is drained before fewer have been enough for the whole cool-down, nor by
// an autoscaler that has only just come.
func TestCoolDown(t *testing.T) {
	p := DefaultPolicy()
	p.Name, p.CoolDown = PolicyBacklog, 30*time.Second
	idle := []Instance{{"a", Idle, start().Add(-time.Hour)}, {"b", Idle, start().Add(-time.Hour)}}
	var s State
	var d Decision
	for at := time.Duration(0); at < 29*time.Second; at += time.Second {
		o := Observation{At: start().Add(at), Instances: idle}
		if at == 10*time.Second {
			o.Waiting = 2
		}
		if s, d = p.Step(s, o); len(d.Drain) > 0 {
			t.Fatalf("after %s: %+v", at, d)
		}
	}
	for at := 29 * time.Second; at <= 41*time.Second; at += time.Second {
		s, d = p.Step(s, Observation{At: start().Add(at), Instances: idle})
		if len(d.Drain) > 0 != (at > 40*time.Second) {
			t.Errorf("after %s: %+v", at, d)
		}
	}
}

func TestRateFindsAChange(t *testing.T) {
	var r rate
	rnd := rand.New(rand.NewPCG(3, 3))
	total, at := uint64(0), start()
	steps := func(n int, perSecond float64) {
		for range n {
			at = at.Add(500 * time.Millisecond)
			// Knuth's way to draw from a Poisson distribution.
			for p := rnd.Float64(); p > math.Exp(-perSecond/2); p *= rnd.Float64() {
				total++
			}
			r = r.observe(at, total)
		}
	}
	steps(1200, 0)
	if likely, _ := r.between(at, total); likely != 0 {
		t.Errorf("nothing has come: %g", likely)
	}
	before := total
	steps(40, 4)
	likely, most := r.between(at, total)
	if real := float64(total-before) / 20; likely < real*0.8 || likely > real*1.3 || most <= likely {
		t.Errorf("20 s of %.2f/s: %g to %g", real, likely, most)
	}
	steps(600, 4)
	if len(r.marks) > maxMarks {
		t.Errorf("%d marks", len(r.marks))
	}
	steps(30, 0)
	if likely, most := r.between(at, total); likely > 0.1 || most > 0.3 {
		t.Errorf("15 s after the end: %g to %g", likely, most)
	}
}

func TestMeter(t *testing.T) {
	var m Meter
	at := start()
	m.Observe(at, 0, 0, 0)
	// Four at a time, 2 s each: two a second are done.
	for i := range 40 {
		at = at.Add(time.Second)
		m.Observe(at, 3, 4, uint64(2*i))
	}
	if s := m.Service(); s < 1900*time.Millisecond || s > 2200*time.Millisecond {
		t.Errorf("service time %s, want 2 s", s)
	}
	if m.Arrivals() != 78+7 {
		t.Errorf("%d have come, want 85", m.Arrivals())
	}
	// What workers say is done comes later than that it is no longer in work.
	m.Observe(at.Add(time.Second), 3, 2, 78)
	if m.Arrivals() != 85 {
		t.Errorf("%d have come: fewer than before", m.Arrivals())
	}
}

// Values known from tables; the rest by the definition.
func TestErlangC(t *testing.T) {
	for _, c := range []struct {
		servers int
		load    float64
		want    float64
	}{{1, 0.5, 0.5}, {2, 1, 1.0 / 3}, {10, 8, 0.4092}, {19, 16, erlangByDefinition(19, 16)}, {5, 5, 1}, {3, 0, 0}} {
		if got := ErlangC(c.servers, c.load); math.Abs(got-c.want) > 5e-4 {
			t.Errorf("C(%d, %g) = %.4f, want %.4f", c.servers, c.load, got, c.want)
		}
	}
	if n := Servers(16, 10*time.Second, 10*time.Second, 0.95, 100); n != 19 {
		t.Errorf("%d servers for 16 Erlang, want 19", n)
	}
	if n := Servers(16, 10*time.Second, 10*time.Second, 0.95, 17); n != 17 {
		t.Errorf("%d servers where 17 are all there are", n)
	}
}

func erlangByDefinition(c int, load float64) float64 {
	term, sum := 1.0, 0.0
	for k := range c {
		sum += term
		term *= load / float64(k+1)
	}
	tail := term * float64(c) / (float64(c) - load)
	return tail / (sum + tail)
}

func TestPolicyReportsEveryFault(t *testing.T) {
	p := Policy{Name: "best", Floor: 5, Cap: -1, Warmup: -1, Patience: 0, CoolDown: -1, Hysteresis: 1}
	err := p.Validate()
	for _, flag := range []string{"--policy", "--floor", "--cap", "--wait", "--warm-up", "--patience", "--cool-down", "--hysteresis"} {
		if err == nil || !strings.Contains(err.Error(), flag+":") {
			t.Errorf("%s is not among %v", flag, err)
		}
	}
	if err := DefaultPolicy().Validate(); err != nil {
		t.Error(err)
	}
	p = DefaultPolicy()
	p.Name, p.Count = PolicyFixed, 20
	if err := p.Validate(); err == nil {
		t.Error("a count above the cap passes")
	}
}
