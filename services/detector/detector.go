package detector

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// ServiceName is the service's name on the bus, in events and on the command
// line.
const ServiceName = "detector"

// Service is the entry in the list of services.
func Service() node.Service {
	cfg := DefaultConfig()
	return node.Service{
		Name: ServiceName, Short: "look at clips from the queue and store what is seen", Role: bus.RoleDetector, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}

// eyes look at as many clips at a time as there are slots.
type eyes interface {
	// Warm gets ready for the first clip.
	Warm(ctx context.Context) error
	// Detect looks at a clip that comes from r. It needs not read all of it.
	Detect(ctx context.Context, r io.Reader, clip schemas.Clip) (vision.Outcome, error)
	Close() error
}

// Detector is the running service.
type Detector struct {
	cfg     Config
	node    *node.Node
	log     *slog.Logger
	open    func() (eyes, error)
	metrics *metrics

	clips    *bus.Bucket[schemas.ClipState]
	reader   *reader
	results  *results
	recorder *bus.Recorder
	events   func(*schemas.Event) error

	eyes     eyes
	slots    chan struct{}   // one for each clip that is looked at
	taking   context.Context // ends when no more is taken
	working  context.Context // ends when what is left is handed back
	account  account
	settling settling
}

// New does no I/O. Keys that cfg lacks are taken from the environment.
func New(cfg Config, n *node.Node) *Detector {
	cfg = cfg.complete()
	d := &Detector{cfg: cfg, node: n, log: n.Log.With("detector", cfg.Name), metrics: newMetrics(n.Metrics)}
	d.open = func() (eyes, error) {
		return vision.New(vision.Options{
			Model: cfg.Model, Sample: cfg.Sample, Threshold: cfg.Threshold, Threads: cfg.threads(), Slots: cfg.Slots, Dirs: cfg.dirs(),
			Program: cfg.Program, Keyframes: cfg.Keyframes, Nice: cfg.Nice, Log: d.log,
		})
	}
	return d
}

// Name is the detector's name in the lab.
func (d *Detector) Name() string { return d.cfg.Name }

var (
	errDrained = fmt.Errorf("%w: drained", node.ErrFinished)
	errIdle    = fmt.Errorf("%w: nothing to do", node.ErrFinished)
)

// Run takes clips until ctx ends, or until it is drained or idle for too long:
// then its error wraps [node.ErrFinished].
func (d *Detector) Run(ctx context.Context) error {
	if err := d.cfg.Validate(); err != nil {
		return err
	}
	if err := d.connect(ctx); err != nil {
		return err
	}
	defer d.closeRecorder(ctx)
	see, err := d.open()
	if err != nil {
		return err
	}
	d.eyes, d.slots = see, make(chan struct{}, d.cfg.Slots)
	defer func() {
		if err := see.Close(); err != nil {
			d.log.Warn("end detection", "error", err)
		}
	}()
	if err := d.warm(ctx); err != nil {
		return err
	}

	taking, drain := context.WithCancelCause(ctx)
	defer drain(nil)
	working, handBack := context.WithCancelCause(context.WithoutCancel(ctx))
	defer handBack(nil)
	d.taking, d.working = taking, working
	stopGrace := context.AfterFunc(taking, func() {
		time.AfterFunc(d.cfg.Grace, func() { handBack(errHandedBack) })
	})
	defer stopGrace()

	err = bus.Listen(taking, d.node.Bus, bus.SubjectDrain(d.cfg.Name), func(m schemas.Drain) {
		d.log.Info("told to drain", "reason", clipped(m.Reason, maxText))
		drain(errDrained)
	})
	if err != nil {
		return err
	}
	leave, err := d.announce(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if d.cfg.IdleExit > 0 {
		go d.endWhenIdle(taking, func() { drain(errIdle) })
	}
	d.node.Ready()
	err = bus.Consume(taking, d.node.Bus, bus.Consumption{
		Stream: bus.StreamClips, Durable: bus.ConsumerDetectors, Subject: bus.SubjectAnyClips, Shared: true,
		Parallel: d.cfg.parallel(), Lease: d.cfg.Lease, Tries: d.cfg.Tries, Acknowledged: d.acknowledged,
	}, d.handle)
	if err == nil && ctx.Err() == nil {
		err = context.Cause(taking)
	}
	return err
}

// connect opens what the detector works with.
func (d *Detector) connect(ctx context.Context) error {
	if err := d.node.Bus.AwaitProvisioned(ctx, bus.StreamClips); err != nil {
		return err
	}
	var err error
	if d.clips, err = bus.OpenBucket[schemas.ClipState](ctx, d.node.Bus, bus.BucketClips); err != nil {
		return err
	}
	source := objectstore.Chain()
	if d.cfg.AccessKey != "" {
		source = objectstore.Static(d.cfg.AccessKey, d.cfg.SecretKey, "")
	}
	store, err := objectstore.Open(ctx, d.cfg.target(), source)
	if err != nil {
		return err
	}
	d.reader = newReader(store, d.cfg.parallel()+2, d.cfg.share())
	d.results = &results{store: store, client: d.reader.client, bucket: d.cfg.Results}
	for wait := firstPause; ; wait = min(2*wait, longestPause) {
		if err = store.EnsureBucket(ctx, d.cfg.Results); err == nil {
			break
		}
		d.log.Warn("the store has no bucket for results yet", "bucket", d.cfg.Results, "error", err)
		if err := pause(ctx, wait, err); err != nil {
			return err
		}
	}
	d.recorder = bus.NewRecorder(d.node.Bus, bus.RecorderOptions{
		Service: ServiceName, Producer: d.cfg.Name + "/" + rand.Text()[:12], Log: d.log,
	})
	d.node.Check("recorder", d.recorder.Failed)
	if d.events == nil {
		d.events = d.recorder.Record
	}
	return nil
}

// warm has every slot ready before a clip is taken. A model that can never be
// used ends the detector: it would condemn every clip.
func (d *Detector) warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	var slots errgroup.Group
	for range d.cfg.Slots {
		slots.Go(func() error {
			err := d.eyes.Warm(ctx)
			if err != nil && !errors.Is(err, vision.ErrModel) && ctx.Err() == nil {
				d.log.Warn("detection is not ready; will see with the first clip", "error", err)
				return nil
			}
			return err
		})
	}
	return slots.Wait()
}

func (d *Detector) closeRecorder(ctx context.Context) {
	d.flushSettling(0)
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	if err := d.recorder.Close(flush); err != nil {
		d.log.Error("events not stored", "error", err)
	}
}

// announce says that the detector is there, and goes on saying so until the
// returned function is called, which takes it back.
func (d *Detector) announce(ctx context.Context) (leave func(), err error) {
	detectors, err := bus.OpenBucket[schemas.DetectorStatus](ctx, d.node.Bus, bus.BucketDetectors)
	if err != nil {
		return nil, err
	}
	key := bus.Token(d.cfg.Name)
	say := func(ctx context.Context) error {
		_, err := detectors.Put(ctx, key, d.status())
		return err
	}
	if err := say(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(bus.AgentTTL / 4)
		defer tick.Stop()
		draining := d.taking.Done()
		for {
			select {
			case <-ctx.Done():
				return
			case <-draining:
				draining = nil
			case <-tick.C:
				d.flushSettling(settlePatience)
			}
			if err := say(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("announce", "error", err)
			}
		}
	}()
	return func() {
		cancel()
		<-gone
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := detectors.Delete(last, key); err != nil {
			d.log.Debug("leave", "error", err)
		}
	}, nil
}

func (d *Detector) status() schemas.DetectorStatus {
	s := d.account.status()
	s.Name, s.Site, s.Slots = d.cfg.Name, d.cfg.Site, d.cfg.Slots
	s.Draining, s.Updated = d.taking.Err() != nil, time.Now()
	return s
}

// endWhenIdle calls end once nothing has been in work for long enough.
func (d *Detector) endWhenIdle(ctx context.Context, end func()) {
	for {
		idle := d.account.idle()
		if idle >= d.cfg.IdleExit {
			d.log.Info("nothing to do", "for", idle)
			end()
			return
		}
		timer := time.NewTimer(d.cfg.IdleExit - idle)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// errHandedBack ends what is not finished within the grace.
var errHandedBack = errors.New("the detector ends")
