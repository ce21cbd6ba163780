package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/autoscaler/drive"
)

// envBus makes this binary a worker on a bus.
const envBus = "AUTOSCALER_TEST_BUS"

func TestMain(m *testing.M) {
	if at := os.Getenv(envBus); at != "" && os.Getenv(drive.EnvWorker) != "" {
		if err := work(at); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work is a detector without detection: it takes clips, holds each for a moment,
// says how it stands and leaves when it is told to.
func work(at string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	url, password, _ := strings.Cut(at, " ")
	name := os.Getenv(drive.EnvWorker)
	c, err := bus.Connect(ctx, bus.Options{URL: url, User: bus.RoleDetector, Password: password, Name: name, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	statuses, err := bus.OpenBucket[schemas.DetectorStatus](ctx, c, bus.BucketDetectors)
	if err != nil {
		return err
	}
	taking, drain := context.WithCancel(ctx)
	defer drain()
	if err := bus.Listen(ctx, c, bus.SubjectDrain(name), func(schemas.Drain) { drain() }); err != nil {
		return err
	}
	clips := uint64(0)
	say := func(busy int) error {
		_, err := statuses.Put(context.WithoutCancel(ctx), name, schemas.DetectorStatus{
			Name: name, Site: "local", Slots: 1, Busy: busy, Clips: clips, Draining: taking.Err() != nil, Updated: time.Now(),
		})
		return err
	}
	if err := say(0); err != nil {
		return err
	}
	err = bus.Consume(taking, c, consumption(), func(context.Context, schemas.ClipJob) error {
		if err := say(1); err != nil {
			return err
		}
		<-time.After(20 * time.Millisecond)
		clips++
		return say(0)
	})
	return errors.Join(err, statuses.Delete(context.WithoutCancel(ctx), name))
}

func consumption() bus.Consumption {
	return bus.Consumption{Stream: bus.StreamClips, Durable: bus.ConsumerDetectors, Subject: bus.SubjectAnyClips, Shared: true}
}

// The service on a real bus with real processes: clips come, workers are started and
// do them, are drained and leave; each decision is an event.
func TestService(t *testing.T) {
	s := bustest.Start(t)
	options := s.Options(bus.RoleDetector, "worker", nil)
	t.Setenv(envBus, options.URL+" "+options.Password)
	gateway := bustest.Join(t, s, bus.RoleGateway)

	// The consumer is there as soon as there was a first detector.
	first, cancel := context.WithCancel(t.Context())
	once := bustest.Join(t, s, bus.RoleDetector)
	taken := make(chan struct{}, 1)
	gone := make(chan error, 1)
	go func() {
		gone <- bus.Consume(first, once, consumption(), func(context.Context, schemas.ClipJob) error {
			taken <- struct{}{}
			return nil
		})
	}()
	send(t, gateway, "first")
	<-taken
	cancel()
	if err := <-gone; err != nil {
		t.Fatal(err)
	}

	cfg := DefaultConfig()
	cfg.Policy, cfg.Cap, cfg.CoolDown, cfg.Every, cfg.State = "backlog-per-worker", 2, time.Second, 100*time.Millisecond, t.TempDir()
	cfg.Command = []string{os.Args[0]}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	n, err := node.New(Service(), "1.2.3", bustest.Join(t, s, bus.RoleAutoscaler), node.Registry(), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(cfg, n).Run(ctx) }()
	if err := n.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}

	up, down := make(chan struct{}), make(chan struct{})
	watch, unwatch := context.WithTimeout(t.Context(), 60*time.Second)
	defer unwatch()
	lab := bustest.Join(t, s, bus.RoleOperator)
	statuses, err := bus.OpenBucket[schemas.DetectorStatus](t.Context(), lab, bus.BucketDetectors)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		seen, left := map[string]bool{}, map[string]bool{}
		_ = statuses.Watch(watch, ">", func(e bus.Entry[schemas.DetectorStatus]) error {
			if !e.Deleted && !seen[e.Key] {
				if seen[e.Key] = true; len(seen) == 2 {
					close(up)
				}
			}
			if e.Deleted && !left[e.Key] {
				if left[e.Key] = true; len(left) == 2 {
					close(down)
				}
			}
			return nil
		})
	}()
	for i := range 40 {
		send(t, gateway, fmt.Sprint("clip-", i))
	}
	for what, happened := range map[string]chan struct{}{"come": up, "leave": down} {
		select {
		case <-happened:
		case <-watch.Done():
			t.Fatalf("the workers did not %s", what)
		}
	}
	if waiting, inWork, err := lab.Backlog(t.Context(), bus.StreamClips, bus.ConsumerDetectors); err != nil || waiting+inWork > 0 {
		t.Errorf("%d clips wait, %d are in work: %v", waiting, inWork, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	state, err := lab.EventStream(t.Context())
	if err != nil || state.Last < 1 {
		t.Errorf("events %+v: %v", state, err)
	}
}

func send(t *testing.T, c *bus.Conn, id string) {
	t.Helper()
	job := &schemas.ClipJob{
		Clip: schemas.Clip{ID: id, Size: 1, SHA256: strings.Repeat("0", 64), Type: schemas.TypeMP4, Trigger: time.Now()},
		Edge: "pi", Bucket: "clips", Key: id, Queued: time.Now(),
	}
	if err := c.Publish(t.Context(), bus.SubjectClips("pi"), id, job); err != nil {
		t.Fatal(err)
	}
}
