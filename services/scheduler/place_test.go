package scheduler

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

const mesh = `name: mesh
workload: probe
groups: [{site: oregon}, {site: dublin}]
trials: {retries: 0}
probe: {count: 3}
`

// The agents of a trial learn where the others are, and share a secret.
func TestPeers(t *testing.T) {
	l := start(t)
	l.scheduler()
	var oregon, dublin worker
	l.agentFor(schemas.WorkloadProbe, agent.Config{Name: "o", Site: "oregon", Parallel: 1, Address: "192.0.2.1"}, &oregon)
	l.agentFor(schemas.WorkloadProbe, agent.Config{Name: "d", Site: "dublin", Parallel: 1, Address: "192.0.2.2"}, &dublin)
	run := l.ended(l.submit(mesh).ID)
	if run.State != schemas.RunDone {
		t.Fatal(run.State, run.Error)
	}
	for _, w := range []*worker{&oregon, &dublin} {
		if len(w.met) != 2 || len(w.key) != 32 || !bytes.Equal(w.key, oregon.key) {
			t.Fatalf("peers %+v, key of %d bytes", w.met, len(w.key))
		}
		for i, want := range []struct{ agent, address, site string }{{"d", "192.0.2.2", "dublin"}, {"o", "192.0.2.1", "oregon"}} {
			p := w.met[i]
			if p.Agent != want.agent || p.Endpoint.Address != want.address || p.Endpoint.Ports["udp"] != 862 || p.Endpoint.Machine == "" ||
				len(p.Clients) != 1 || p.Clients[0].Site != want.site {
				t.Errorf("peer %+v, want %+v", p, want)
			}
		}
	}
}

// A mesh outlives an agent: the others' view of it is what is measured.
func TestTrialOutlivesAnAgent(t *testing.T) {
	l := start(t)
	l.scheduler()
	begun, gone := make(chan struct{}), make(chan struct{})
	stays := worker{work: func(ctx context.Context, _ *schemas.Task, _ int) error {
		select {
		case <-gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	leaves := worker{work: func(ctx context.Context, _ *schemas.Task, _ int) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}}
	l.agentFor(schemas.WorkloadProbe, agent.Config{Name: "o", Site: "oregon", Parallel: 1}, &stays)
	stop := l.agentFor(schemas.WorkloadProbe, agent.Config{Name: "d", Site: "dublin", Parallel: 1}, &leaves)
	id := l.submit(mesh).ID
	<-begun
	stop()
	close(gone)
	run := l.ended(id)
	if run.State != schemas.RunDone || stays.begun.Load() != 1 {
		t.Errorf("run %s (%s) after %d executions, want done after one", run.State, run.Error, stays.begun.Load())
	}
	states, err := bus.OpenBucket[schemas.TaskState](t.Context(), l.asking, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	all, err := states.List(t.Context(), "task."+id.String()+".>")
	if err != nil {
		t.Fatal(err)
	}
	phases := map[string]string{}
	for _, e := range all {
		phases[e.Value.Agent] = e.Value.Phase
	}
	if phases["o"] != schemas.TaskDone || phases["d"] != schemas.TaskGone {
		t.Errorf("phases %v, want o done and d gone", phases)
	}
}

const emulated = `name: emulated
workload: probe
sites: {oregon: {}, dublin: {}}
links: {oregon-dublin: {rtt: 1ms}}
groups: [{site: oregon}, {site: dublin}]
trials: {retries: 0}
probe: {count: 3}
`

// provision answers what the scheduler wants, as a provisioner would.
func (l *lab) provision(answer func(schemas.Place) schemas.Place) (released <-chan struct{}) {
	conn := bustest.Join(l, l.server, bus.RoleProvisioner)
	wants, err := bus.OpenBucket[schemas.PlaceWanted](l.Context(), conn, bus.BucketPlaces)
	if err != nil {
		l.Fatal(err)
	}
	places, err := bus.OpenBucket[schemas.Place](l.Context(), conn, bus.BucketPlaces)
	if err != nil {
		l.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		err := wants.Watch(l.Context(), "want.*", func(e bus.Entry[schemas.PlaceWanted]) error {
			run, err := uuid.Parse(strings.TrimPrefix(e.Key, "want."))
			if err != nil {
				return err
			}
			said := schemas.Place{Run: run, State: schemas.PlaceGone}
			if e.Deleted {
				defer close(gone)
			} else {
				said = answer(schemas.Place{Run: run, State: schemas.PlaceReady})
			}
			_, err = places.Put(l.Context(), schemas.PlaceKey(run), said)
			return err
		})
		if err != nil && l.Context().Err() == nil {
			l.Error(err)
		}
	}()
	return gone
}

// A run in a place of its own is done by the agents of that place alone, and
// leaves nothing behind.
func TestRunInItsPlace(t *testing.T) {
	l := start(t)
	l.scheduler()
	var stranger, oregon, dublin worker
	l.agentFor(schemas.WorkloadProbe, agent.Config{Name: "stranger", Site: schemas.SiteAny, Parallel: 1}, &stranger)
	released := l.provision(func(p schemas.Place) schemas.Place {
		l.agentFor(schemas.WorkloadProbe, agent.Config{Name: "o", Site: "oregon", Parallel: 1, Run: p.Run.String()}, &oregon)
		l.agentFor(schemas.WorkloadProbe, agent.Config{Name: "d", Site: "dublin", Parallel: 1, Run: p.Run.String()}, &dublin)
		return p
	})
	run := l.ended(l.submit(emulated).ID)
	if run.State != schemas.RunDone || stranger.begun.Load() != 0 || oregon.begun.Load() != 1 || dublin.begun.Load() != 1 {
		t.Errorf("run %s (%s): %d executions by a stranger, %d and %d by its own", run.State, run.Error, stranger.begun.Load(), oregon.begun.Load(), dublin.begun.Load())
	}
	select {
	case <-released:
	default:
		t.Error("the run has ended before its place was gone")
	}
	// And the place's agents take part in no other run.
	stranger.work = nil
	other := l.ended(l.submit(mesh).ID)
	if other.State != schemas.RunDone || oregon.begun.Load() != 1 || stranger.begun.Load() == 0 {
		t.Errorf("another run: %s (%s), %d executions by agents of a place", other.State, other.Error, oregon.begun.Load())
	}
}

func TestPlaceThatCannotBe(t *testing.T) {
	for name, c := range map[string]struct {
		place   schemas.Place
		invalid bool
		text    string
	}{
		"failed": {schemas.Place{State: schemas.PlaceFailed, Error: "emulated sites need root"}, false, "emulated sites need root"},
		"unfit":  {schemas.Place{State: schemas.PlaceFailed, Invalid: true, Error: "oregon-dublin: rtt 2ms, set 1ms"}, true, "rtt 2ms"},
	} {
		t.Run(name, func(t *testing.T) {
			l := start(t)
			l.scheduler()
			released := l.provision(func(p schemas.Place) schemas.Place {
				c.place.Run = p.Run
				return c.place
			})
			run := l.ended(l.submit(emulated).ID)
			if run.State != schemas.RunFailed || run.Invalid != c.invalid || !strings.Contains(run.Error, c.text) {
				t.Errorf("run %s, invalid %t: %s", run.State, run.Invalid, run.Error)
			}
			<-released
		})
	}
}

func TestCancelWhileThePlaceIsMade(t *testing.T) {
	l := start(t)
	l.scheduler()
	asked := make(chan struct{})
	released := l.provision(func(p schemas.Place) schemas.Place {
		close(asked)
		p.State = schemas.PlacePreparing
		return p
	})
	id := l.submit(emulated).ID
	<-asked
	if _, err := l.tell(bus.SubjectCancel, id); err != nil {
		t.Fatal(err)
	}
	if run := l.ended(id); run.State != schemas.RunCancelled {
		t.Errorf("run %s: %s", run.State, run.Error)
	}
	<-released
}

func TestNoProvisioner(t *testing.T) {
	l := start(t)
	cfg := DefaultConfig()
	cfg.PlacePatience = 300 * time.Millisecond
	l.run(bus.RoleScheduler, "scheduler", func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) })
	run := l.ended(l.submit(emulated).ID)
	if run.State != schemas.RunFailed || !strings.Contains(run.Error, "provisioner") {
		t.Errorf("run %s: %s", run.State, run.Error)
	}
}
