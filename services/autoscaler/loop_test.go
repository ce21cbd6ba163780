package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alecthomas/kong"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/autoscaler/drive"
	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

// lab is a queue, workers and a driver in one, in virtual time.
type lab struct {
	mu        sync.Mutex
	waiting   int
	boot      time.Duration
	instances map[string]*machine
	made      int
	starts    []int
	failStart error
	failLook  error
	told      []string // workers that were told to drain
	killed    []string // instances that were ended with a clip in work
	events    []*schemas.Event
	deaf      bool // workers do not hear that they shall drain
}

type machine struct {
	drive.Instance
	up, draining bool
	busy         int
	clips        uint64
}

func newLab() *lab { return &lab{boot: 2 * time.Second, instances: map[string]*machine{}} }

func (l *lab) Backlog(context.Context) (int, int, time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	busy := 0
	for _, m := range l.instances {
		busy += m.busy
	}
	return l.waiting, busy, time.Now().Add(-time.Second), l.failLook
}

func (l *lab) Workers(context.Context) ([]schemas.DetectorStatus, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []schemas.DetectorStatus
	for _, m := range l.instances {
		if m.up {
			all = append(all, schemas.DetectorStatus{Name: m.Worker, Slots: 1, Busy: m.busy, Draining: m.draining, Clips: m.clips})
		}
	}
	return all, nil
}

func (l *lab) Drain(_ context.Context, worker string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, worker)
	for _, m := range l.instances {
		if m.Worker == worker && !l.deaf {
			m.draining = true
		}
	}
	return nil
}

func (l *lab) List(context.Context) ([]drive.Instance, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []drive.Instance
	for _, m := range l.instances {
		all = append(all, m.Instance)
	}
	return all, nil
}

func (l *lab) Start(_ context.Context, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starts = append(l.starts, n)
	if l.failStart != nil {
		return l.failStart
	}
	for range n {
		l.made++
		m := &machine{Instance: drive.Instance{ID: fmt.Sprint("i", l.made), Worker: fmt.Sprint("w", l.made), Started: time.Now()}}
		l.instances[m.ID] = m
		time.AfterFunc(l.boot, func() { l.mu.Lock(); m.up = true; l.mu.Unlock() })
	}
	return nil
}

func (l *lab) Stop(_ context.Context, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.instances[id]; m != nil && m.busy > 0 {
		l.killed = append(l.killed, id)
	}
	delete(l.instances, id)
	return nil
}

func (l *lab) record(e *schemas.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := e.Validate(); err != nil {
		return err
	}
	l.events = append(l.events, e)
	return nil
}

// set changes the lab, between two steps.
func (l *lab) set(change func()) { l.mu.Lock(); change(); l.mu.Unlock() }

func (l *lab) loop(t *testing.T, p scale.Policy) *Loop {
	t.Helper()
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return NewLoop(p, 500*time.Millisecond, Parts{l, l, l, l, l.record, slog.New(slog.NewTextHandler(t.Output(), nil))})
}

func policy() scale.Policy {
	p := scale.DefaultPolicy()
	p.Name, p.Cap, p.CoolDown, p.Patience, p.Warmup = scale.PolicyBacklog, 5, 10*time.Second, 30*time.Second, 2*time.Second
	return p
}

// running runs a loop in virtual time; wait passes time of it.
func running(t *testing.T, l *lab, p scale.Policy, check func(t *testing.T, loop *Loop)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		loop := l.loop(t, p)
		done := make(chan error)
		go func() { done <- loop.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		check(t, loop)
		if len(l.killed) > 0 {
			t.Errorf("ended with clips in work: %v", l.killed)
		}
	})
}

// pass lets virtual time go on; what the test read before and reads after it is in
// order with what the loop does.
func (l *lab) pass(d time.Duration) {
	l.set(func() {})
	<-time.After(d)
	synctest.Wait()
	l.set(func() {})
}

func TestUpAndDown(t *testing.T) {
	l := newLab()
	running(t, l, policy(), func(t *testing.T, _ *Loop) {
		l.set(func() { l.waiting = 3 })
		l.pass(time.Second)
		if !slices.Equal(l.starts, []int{3}) {
			t.Fatalf("started %v, want 3 once", l.starts)
		}
		l.pass(5 * time.Second)
		if len(l.starts) != 1 {
			t.Fatalf("those that come are not counted: %v", l.starts)
		}
		l.set(func() {
			l.waiting = 0
			for _, m := range l.instances {
				m.busy = 1
			}
		})
		l.pass(time.Minute)
		if len(l.told) > 0 || len(l.instances) != 3 {
			t.Fatalf("busy workers were told to drain: %v", l.told)
		}
		l.set(func() {
			for _, m := range l.instances {
				m.busy, m.clips = 0, 1
			}
		})
		l.pass(9 * time.Second)
		if len(l.told) > 0 {
			t.Fatalf("drained before the cool-down: %v", l.told)
		}
		l.pass(10 * time.Second)
		if len(l.told) != 3 || len(l.instances) != 0 {
			t.Errorf("told %v, %d instances are left", l.told, len(l.instances))
		}
	})
	if len(l.events) != 2 {
		t.Fatalf("%d events, want one for each decision that acted", len(l.events))
	}
	attrs := map[string]string{}
	for _, a := range l.events[0].Attrs {
		attrs[a.Key] = a.Value
	}
	e := l.events[0]
	if e.Kind != schemas.KindScaling || e.Status != schemas.StatusOK || attrs["start"] != "3" || attrs["drain"] != "0" || attrs["waiting"] != "3" ||
		attrs["in_work"] != "0" || attrs["instances"] != "0" || attrs["policy"] != "backlog-per-worker" || attrs["reason"] == "" || attrs["oldest_wait_ns"] != "1000000000" {
		t.Errorf("event %+v", e)
	}
}

// A worker that got a clip between the look and the word is ended only after it.
func TestDrainedWorkerFinishes(t *testing.T) {
	l := newLab()
	running(t, l, policy(), func(t *testing.T, _ *Loop) {
		l.set(func() { l.waiting = 1 })
		l.pass(4 * time.Second)
		l.set(func() { l.waiting = 0 })
		for len(l.told) == 0 {
			l.pass(100 * time.Millisecond)
		}
		l.set(func() { l.instances["i1"].busy = 1 })
		l.pass(5 * time.Minute)
		if len(l.instances) != 1 {
			t.Fatal("it was ended")
		}
		l.set(func() { l.instances["i1"].busy = 0 })
		l.pass(2 * time.Second)
		if len(l.instances) != 0 {
			t.Error("it is left")
		}
	})
}

// The word to drain may be lost: it is said again, and until it is heard nothing is
// ended; one that is silent for long is.
func TestWordThatIsLost(t *testing.T) {
	l := newLab()
	running(t, l, policy(), func(t *testing.T, _ *Loop) {
		l.set(func() { l.waiting, l.deaf = 1, true })
		l.pass(4 * time.Second)
		l.set(func() { l.waiting = 0 })
		l.pass(50 * time.Second)
		if len(l.told) < 3 || len(l.told) > 5 || len(l.instances) != 1 {
			t.Fatalf("told %d times, %d instances", len(l.told), len(l.instances))
		}
		l.set(func() { l.instances["i1"].up = false })
		l.pass(silent - 2*time.Second)
		if len(l.instances) != 1 {
			t.Fatal("ended although it may have a clip")
		}
		l.pass(4 * time.Second)
		if len(l.instances) != 0 {
			t.Error("it is left for ever")
		}
	})
}

// While something cannot be seen nothing changes.
func TestBlind(t *testing.T) {
	l := newLab()
	running(t, l, policy(), func(t *testing.T, loop *Loop) {
		l.set(func() { l.waiting, l.failLook = 3, errors.New("no leader") })
		l.pass(time.Minute)
		if len(l.starts) > 0 || loop.Healthy() == nil {
			t.Errorf("starts %v, health %v", l.starts, loop.Healthy())
		}
		l.set(func() { l.failLook = nil })
		l.pass(time.Second)
		if !slices.Equal(l.starts, []int{3}) || loop.Healthy() != nil {
			t.Errorf("starts %v, health %v", l.starts, loop.Healthy())
		}
	})
}

// Starts that fail are tried again, less and less often, and each is an event.
func TestStartThatFails(t *testing.T) {
	l := newLab()
	running(t, l, policy(), func(t *testing.T, _ *Loop) {
		l.set(func() { l.waiting, l.failStart = 2, errors.New("InsufficientInstanceCapacity") })
		l.pass(10 * time.Minute)
		if n := len(l.starts); n < 10 || n > 20 {
			t.Errorf("%d tries in ten minutes", n)
		}
		l.set(func() { l.failStart = nil })
		l.pass(time.Minute)
		if len(l.instances) != 2 {
			t.Errorf("%d instances", len(l.instances))
		}
	})
	if e := l.events[0]; e.Status != schemas.StatusError || !strings.Contains(e.Error, "InsufficientInstanceCapacity") {
		t.Errorf("event %+v", e)
	}
}

// An instance whose worker never comes is ended and replaced.
func TestWorkerThatNeverComes(t *testing.T) {
	l := newLab()
	l.boot = time.Hour
	running(t, l, policy(), func(t *testing.T, _ *Loop) {
		l.set(func() { l.waiting = 1 })
		l.pass(29 * time.Second)
		if len(l.starts) != 1 {
			t.Fatalf("starts %v", l.starts)
		}
		l.pass(5 * time.Second)
		if len(l.starts) != 2 || l.instances["i1"] != nil || len(l.instances) != 1 {
			t.Errorf("starts %v, instances %v", l.starts, l.instances)
		}
	})
}

// Workers of others are counted and left alone.
func TestWorkersOfOthers(t *testing.T) {
	l := newLab()
	others := others{l, 2}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		loop := NewLoop(policy(), 500*time.Millisecond, Parts{l, others, l, l, l.record, slog.New(slog.DiscardHandler)})
		done := make(chan error)
		go func() { done <- loop.Run(ctx) }()
		l.set(func() { l.waiting = 3 })
		l.pass(time.Second)
		if !slices.Equal(l.starts, []int{1}) {
			t.Errorf("starts %v, want 1 beside the 2 that are there", l.starts)
		}
		l.set(func() { l.waiting = 0 })
		l.pass(time.Minute)
		if !slices.Equal(l.told, []string{"w1"}) {
			t.Errorf("told %v", l.told)
		}
		cancel()
		<-done
	})
}

type others struct {
	*lab
	n int
}

func (o others) Workers(ctx context.Context) ([]schemas.DetectorStatus, error) {
	all, err := o.lab.Workers(ctx)
	for i := range o.n {
		all = append(all, schemas.DetectorStatus{Name: fmt.Sprint("other", i), Slots: 1})
	}
	return all, err
}

func TestConfig(t *testing.T) {
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.Driver, c.Every, c.Cap = "kubernetes", 0, 0
	err := c.Validate()
	for _, flag := range []string{"--driver", "--every", "--cap"} {
		if err == nil || !strings.Contains(err.Error(), flag+":") {
			t.Errorf("%s is not among %v", flag, err)
		}
	}
	c = DefaultConfig()
	c.Driver = DriverDocker
	t.Setenv("SECRET_OF_WORKERS", "x")
	c.Env = map[string]string{"SECRET_OF_WORKERS": "", "A": "b", "B": "$SECRET_OF_WORKERS"}
	for _, env := range []map[string]string{c.docker().Env, c.process().Env} {
		if env["SECRET_OF_WORKERS"] != "x" || env["A"] != "b" || env["B"] != "x" {
			t.Errorf("environment %v", env)
		}
	}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "--image:") {
		t.Errorf("error %v", err)
	}
	c.Driver = DriverEC2
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "--launch-template:") {
		t.Errorf("error %v", err)
	}
}

// What the flags default to is what DefaultConfig says.
func TestFlags(t *testing.T) {
	var c Config
	parser, err := kong.New(&struct{}{}, kong.Embed(&c))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(nil); err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	c.State = want.State // made absolute by the parser
	if !reflect.DeepEqual(c, want) {
		t.Errorf("flags %+v, DefaultConfig %+v", c, want)
	}
	args := []string{"--driver", "docker", "--image", "lab", "--command", "a,b", "--command", "c", "--worker-env", "A=b;C=", "--policy", "fixed", "--count", "3"}
	if _, err := parser.Parse(args); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Command, []string{"a,b", "c"}) || len(c.Env) != 2 || c.Env["A"] != "b" || c.Count != 3 {
		t.Errorf("parsed %+v", c)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
