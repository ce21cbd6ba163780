package s3loader

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
)

// The whole service on a real bus: a task comes in, events and the account of
// them go out.
func TestService(t *testing.T) {
	_, cfg := startServer(t)
	cfg.Name, cfg.Site = "agent-1", "oregon"
	server := bustest.Start(t)
	logs := slog.New(slog.NewTextHandler(t.Output(), nil))

	operator := bustest.Join(t, server, bus.RoleOperator)
	registration, err := operator.Register("scheduler", "1.0.0", "clock", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Respond(t.Context(), registration, "clock", bus.SubjectClock, func(context.Context, schemas.ClockQuery) (schemas.ClockAnswer, error) {
		return schemas.ClockAnswer{Now: time.Now()}, nil
	}); err != nil {
		t.Fatal(err)
	}
	service := Service()
	n, err := node.New(service, "1.0.0", bustest.Join(t, server, service.Role), prometheus.NewRegistry(), logs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(cfg, n).Run(ctx) }()
	defer func() {
		cancel()
		<-ended
	}()
	if err := n.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}

	tk := task(t, section(nil), 2)
	states, err := bus.OpenBucket[schemas.TaskState](t.Context(), operator, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	starts, err := bus.OpenBucket[schemas.Start](t.Context(), operator, bus.BucketTrials)
	if err != nil {
		t.Fatal(err)
	}
	if err := operator.Publish(t.Context(), bus.SubjectTasks(tk.Agent), tk.Key(), tk); err != nil {
		t.Fatal(err)
	}
	watch, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	var last schemas.TaskState
	err = states.Watch(watch, tk.Key(), func(e bus.Entry[schemas.TaskState]) error {
		last = e.Value
		switch {
		case last.Phase == schemas.TaskReady:
			_, err := starts.Put(watch, schemas.StartKey(tk.Run, tk.Trial, tk.Attempt), schemas.Start{At: time.Now().Add(20 * time.Millisecond)})
			return err
		case last.Ended():
			stop()
		}
		return nil
	})
	if err != nil && watch.Err() == nil {
		t.Fatal(err)
	}
	r := last.Result
	if last.Phase != schemas.TaskDone || r.Issued != 16 || r.Recorded != 17 || r.Acknowledged != 17 || r.Errors != 0 || r.Bytes != 1_600_000 {
		t.Fatalf("%+v", last)
	}
	stream, err := operator.EventStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stream.Last == 0 {
		t.Fatalf("no events on the bus: %+v", stream)
	}
}

func TestConfig(t *testing.T) {
	service := Service()
	parser, err := kong.New(&struct{}{}, kong.Embed(service.Config))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"--s3-endpoint=http://127.0.0.1:1", "--site=oregon", "--labels=instance_type=t3.small", "--s3-copy"}); err != nil {
		t.Fatal(err)
	}
	cfg := service.Config.(*Config)
	if cfg.Endpoint != "http://127.0.0.1:1" || cfg.Site != "oregon" || cfg.Region != "us-east-1" || cfg.Labels["instance_type"] != "t3.small" || !cfg.Copy {
		t.Errorf("%+v", cfg)
	}
	// A key on the command line would be there for everybody to read.
	for _, f := range parser.Model.AllFlags(false) {
		for _, flag := range f {
			if strings.Contains(flag.Name, "key") || strings.Contains(flag.Name, "secret") {
				t.Errorf("flag --%s", flag.Name)
			}
		}
	}
	t.Setenv(EnvAccessKey, "access")
	t.Setenv(EnvSecretKey, "secret")
	if c := cfg.withEnvironment(); c.AccessKey != "access" || c.SecretKey != "secret" {
		t.Errorf("%+v", c)
	}
	if c := (Config{AccessKey: "a", SecretKey: "b"}).withEnvironment(); c.AccessKey != "a" || c.SecretKey != "b" {
		t.Errorf("%+v", c)
	}
}

func TestConfigFaults(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := DefaultConfig()
	bad.Site, bad.Parallel = "Not A Site", 0
	bad.Endpoint, bad.Region, bad.CAFile, bad.AccessKey = "ftp://x", "US East", "/no/such/file", "alone"
	err := bad.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"--site", "--parallel", "ftp://x", "US East", "--s3-ca-file", EnvSecretKey} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not say %q", err, want)
		}
	}
}
