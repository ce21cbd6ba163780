package provisioner

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/netlab"
)

// ServiceName is the service's name on the bus and on the command line.
const ServiceName = "provisioner"

// Service is the provisioner's entry in the list of services.
func Service() node.Service {
	cfg := DefaultConfig()
	return node.Service{
		Name: ServiceName, Short: "make emulated networks and cloud fleets for runs", Role: bus.RoleProvisioner, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}

// Provisioner makes places for runs.
type Provisioner struct {
	cfg  Config
	node *node.Node
	log  *slog.Logger

	places   *bus.Bucket[schemas.Place]
	agents   *bus.Bucket[schemas.Agent]
	recorder *bus.Recorder

	mu     sync.Mutex
	active map[uuid.UUID]*keeping
	work   sync.WaitGroup
}

// New returns a provisioner; Run starts it.
func New(cfg Config, n *node.Node) *Provisioner {
	return &Provisioner{cfg: cfg, node: n, log: n.Log, active: map[uuid.UUID]*keeping{}}
}

// keeping is a place that is there, or on its way in or out.
type keeping struct {
	unwanted bool
	end      context.CancelCauseFunc
	gone     chan struct{} // closed at its very end
}

// errUnwanted ends a place that the scheduler has given up.
var errUnwanted = errors.New("no longer wanted")

// Run makes places as long as they are wanted, until ctx ends.
func (p *Provisioner) Run(ctx context.Context) (err error) {
	if p.cfg, err = p.cfg.withEnvironment(); err != nil {
		return err
	}
	c := p.node.Bus
	if err := c.AwaitProvisioned(ctx, "KV_"+bus.BucketPlaces); err != nil {
		return err
	}
	wants, err := bus.OpenBucket[schemas.PlaceWanted](ctx, c, bus.BucketPlaces)
	if err != nil {
		return err
	}
	if p.places, err = bus.OpenBucket[schemas.Place](ctx, c, bus.BucketPlaces); err != nil {
		return err
	}
	if p.agents, err = bus.OpenBucket[schemas.Agent](ctx, c, bus.BucketAgents); err != nil {
		return err
	}
	p.recorder = bus.NewRecorder(c, bus.RecorderOptions{Service: ServiceName, Producer: ServiceName + "/" + rand.Text()[:12], InFlight: 1, Log: p.log})
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := p.recorder.Close(flush); err != nil {
			p.log.Error("events not stored", "error", err)
		}
	}()
	if err := netlab.Reap(ctx, p.networkDir()); err != nil {
		return fmt.Errorf("remove what an earlier start has left: %w", err)
	}
	defer p.work.Wait()
	if err := p.adopt(ctx, wants); err != nil {
		return err
	}
	p.node.Ready()
	return wants.Watch(ctx, "want.*", func(e bus.Entry[schemas.PlaceWanted]) error {
		id, err := uuid.Parse(strings.TrimPrefix(e.Key, "want."))
		if err != nil {
			p.log.Warn("wish without a run", "key", e.Key)
			return nil
		}
		if e.Deleted {
			p.unwant(ctx, id)
			return nil
		}
		p.want(ctx, id, e.Value)
		return nil
	})
}

func (p *Provisioner) networkDir() string { return filepath.Join(p.cfg.State, "netlab") }

// adopt takes down what an earlier start has made and nobody wants any more.
func (p *Provisioner) adopt(ctx context.Context, wants *bus.Bucket[schemas.PlaceWanted]) error {
	wanted, err := wants.List(ctx, "want.*")
	if err != nil {
		return err
	}
	still := map[uuid.UUID]bool{}
	for _, w := range wanted {
		still[w.Value.Run] = true
	}
	places, err := p.places.List(ctx, "place.*")
	if err != nil {
		return err
	}
	for _, e := range places {
		if e.Value.State == schemas.PlaceGone || still[e.Value.Run] {
			continue
		}
		p.work.Go(func() { p.leave(ctx, &place{Provisioner: p, run: e.Value.Run, said: e.Value}) })
	}
	return nil
}

func (p *Provisioner) want(ctx context.Context, id uuid.UUID, w schemas.PlaceWanted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	earlier := p.active[id]
	if earlier != nil && !earlier.unwanted {
		return
	}
	ctx, end := context.WithCancelCause(ctx)
	k := &keeping{end: end, gone: make(chan struct{})}
	p.active[id] = k
	p.work.Go(func() {
		defer close(k.gone)
		defer end(nil)
		if earlier != nil {
			<-earlier.gone // a run that was resumed finds its sites anew
		}
		p.keep(ctx, id, w)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.active[id] == k {
			delete(p.active, id)
		}
	})
}

func (p *Provisioner) unwant(ctx context.Context, id uuid.UUID) {
	p.mu.Lock()
	k := p.active[id]
	if k != nil {
		k.unwanted = true
		k.end(errUnwanted)
	}
	p.mu.Unlock()
	if k != nil {
		return
	}
	e, err := p.places.Get(ctx, schemas.PlaceKey(id))
	if err == nil && e.Value.State == schemas.PlaceGone {
		return
	}
	p.work.Go(func() { p.leave(ctx, &place{Provisioner: p, run: id, said: schemas.Place{Run: id}}) })
}

// place is one run's, while it is there.
type place struct {
	*Provisioner
	run  uuid.UUID
	want schemas.PlaceWanted
	file *schemas.Experiment

	mu   sync.Mutex
	said schemas.Place

	network *network
}

// say tells the scheduler, and who watches, how the place stands.
func (p *place) say(ctx context.Context, change func(*schemas.Place)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.said)
	p.said.Run, p.said.Updated = p.run, time.Now().UTC()
	if _, err := p.places.Put(context.WithoutCancel(ctx), schemas.PlaceKey(p.run), p.said); err != nil {
		p.log.Error("tell of the place", "run", p.run, "error", err)
	}
}

func (p *place) note(ctx context.Context, format string, args ...any) {
	p.say(ctx, func(s *schemas.Place) { s.Note = fmt.Sprintf(format, args...) })
}

// keep makes a place, keeps it as long as it is wanted and takes it down.
func (p *Provisioner) keep(ctx context.Context, id uuid.UUID, w schemas.PlaceWanted) {
	pl := &place{Provisioner: p, run: id, want: w}
	pl.say(ctx, func(s *schemas.Place) { *s = schemas.Place{State: schemas.PlacePreparing, Note: "preparing"} })
	err := pl.make(ctx)
	switch {
	case err == nil:
		pl.say(ctx, func(s *schemas.Place) { s.State, s.Note = schemas.PlaceReady, "ready" })
		err = pl.guard(ctx)
	case ctx.Err() != nil:
	default:
		_, unfit := errors.AsType[unfitError](err)
		pl.say(ctx, func(s *schemas.Place) {
			s.State, s.Error, s.Invalid = schemas.PlaceFailed, err.Error(), unfit
		})
	}
	if err != nil && ctx.Err() == nil {
		p.log.Warn("place", "run", id, "error", err)
		<-ctx.Done()
	}
	p.leave(ctx, pl)
}

// unfitError says in what a place is not what was asked for.
type unfitError []string

func (e unfitError) Error() string { return strings.Join(e, "; ") }

func (p *place) make(ctx context.Context) (err error) {
	if p.file, err = schemas.ParseExperiment([]byte(p.want.File)); err != nil {
		return fmt.Errorf("read the experiment: %w", err)
	}
	if p.file.Fleet != nil {
		return p.makeFleet(ctx)
	}
	return p.makeNetwork(ctx)
}

// guard returns when the place is no longer wanted or has broken.
func (p *place) guard(ctx context.Context) error {
	if p.network == nil {
		<-ctx.Done()
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-p.network.lab.Done():
		err := fmt.Errorf("the emulated network broke: %w", p.network.lab.Err())
		p.network.close(ctx)
		p.say(ctx, func(s *schemas.Place) { s.State, s.Error = schemas.PlaceFailed, err.Error() })
		return err
	}
}

// leave takes a place down. A fleet outlives the provisioner when it is still
// wanted: the next start goes on with it.
func (p *Provisioner) leave(ctx context.Context, pl *place) {
	pl.note(ctx, "taking them down")
	if pl.network != nil {
		pl.network.close(ctx)
	}
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errUnwanted) {
		return
	}
	ctx = context.WithoutCancel(ctx)
	err := pl.leaveFleet(ctx)
	if err != nil {
		p.log.Error("take the place down", "run", pl.run, "error", err)
		pl.say(ctx, func(s *schemas.Place) { s.Note = "could not be taken down: " + err.Error() })
		return
	}
	pl.say(ctx, func(s *schemas.Place) { s.State = schemas.PlaceGone })
}

// awaitAgents returns once every agent has announced itself for the run.
func (p *place) awaitAgents(ctx context.Context, names []string, accept func(schemas.Agent) error) error {
	missing := map[string]bool{}
	for _, n := range names {
		missing[n] = true
	}
	complete := errors.New("all are there")
	err := p.agents.Watch(ctx, ">", func(e bus.Entry[schemas.Agent]) error {
		a := e.Value
		if e.Deleted || a.Run != p.run || !missing[a.Name] {
			return nil
		}
		if accept != nil {
			if err := accept(a); err != nil {
				return err
			}
		}
		delete(missing, a.Name)
		if len(missing) == 0 {
			return complete
		}
		return nil
	})
	if errors.Is(err, complete) {
		return nil
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("wait for agents (%d of %d are missing): %w", len(missing), len(names), err)
}
