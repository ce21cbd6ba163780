package drive

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/awsfake"
)

// driver is what the autoscaler wants of one.
type driver interface {
	List(ctx context.Context) ([]Instance, error)
	Start(ctx context.Context, n int) error
	Stop(ctx context.Context, id string) error
	Close(ctx context.Context) error
}

// The same is asked of every driver; open makes one more on the same ground, as
// after a crash of the one before.
func TestConformance(t *testing.T) {
	for name, setUp := range map[string]func(t *testing.T) (open func() driver, lasting bool){
		"process": func(t *testing.T) (func() driver, bool) {
			state := t.TempDir()
			return func() driver { return openProcess(t, state, helper("wait")) }, false
		},
		"docker": func(t *testing.T) (func() driver, bool) {
			engine := startEngine(t)
			return func() driver { return openDocker(t, engine, "auto") }, true
		},
		"ec2": func(t *testing.T) (func() driver, bool) {
			fake := account(t, awsfake.EC2Options{Invisible: 2, Page: 2, Transition: 20 * time.Millisecond})
			fake.AddTemplate(testRegion, "detectors", awsfake.FakeImage, "c7g.large", "")
			return func() driver { return openEC2(t, "auto") }, true
		},
	} {
		t.Run(name, func(t *testing.T) { conform(t, setUp) })
	}
}

func conform(t *testing.T, setUp func(t *testing.T) (func() driver, bool)) {
	open, lasting := setUp(t)
	ctx, d := t.Context(), open()
	if all := list(t, d); len(all) != 0 {
		t.Fatalf("before anything was started: %v", all)
	}
	before := time.Now().Add(-2 * time.Second)
	if err := d.Start(ctx, 3); err != nil {
		t.Fatal(err)
	}
	all := list(t, d)
	if len(all) != 3 {
		t.Fatalf("after three were started: %v", all)
	}
	workers, ids := map[string]bool{}, map[string]bool{}
	for _, i := range all {
		workers[i.Worker], ids[i.ID] = true, true
		if i.Worker == "" || i.ID == "" || i.Started.Before(before) || i.Started.After(time.Now()) {
			t.Errorf("%+v", i)
		}
	}
	if len(workers) != 3 || len(ids) != 3 {
		t.Errorf("names are given twice: %v", all)
	}
	// All of them, from now on and for every list.
	for range 4 {
		if again := list(t, d); len(again) != 3 {
			t.Fatalf("one list has %d of 3", len(again))
		}
	}
	stop(t, d, all[0].ID)
	if left := list(t, d); len(left) != 2 || has(left, all[0].ID) {
		t.Errorf("after one was stopped: %v", left)
	}
	stop(t, d, all[0].ID)
	stop(t, d, "i-0123456789abcdef0")
	if left := list(t, d); len(left) != 2 {
		t.Errorf("after one was stopped twice: %v", left)
	}
	if err := d.Start(ctx, 1); err != nil {
		t.Fatal(err)
	}
	// What a cloud does not show yet, nobody but who has started it can know of.
	for range 3 {
		list(t, d)
	}
	if err := d.Close(ctx); err != nil {
		t.Fatal(err)
	}
	d = open()
	want := 0
	if lasting {
		want = 3
	}
	left := list(t, d)
	if len(left) != want {
		t.Errorf("the next driver finds %d, want %d", len(left), want)
	}
	for _, i := range left {
		stop(t, d, i.ID)
	}
	if left := list(t, d); len(left) != 0 {
		t.Errorf("in the end: %v", left)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.Start(ended, 1); err == nil {
		t.Error("starts although it must not any more")
	}
}

func list(t *testing.T, d driver) []Instance {
	t.Helper()
	all, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func has(all []Instance, id string) bool {
	for _, i := range all {
		if i.ID == id {
			return true
		}
	}
	return false
}

// stop goes on until the instance can be stopped: one may be too new to be known.
func stop(t *testing.T, d driver, id string) {
	t.Helper()
	var err error
	for range 5 {
		if err = d.Stop(t.Context(), id); err == nil {
			return
		}
	}
	t.Fatal(err)
}

const testRegion = "eu-west-1"

func account(t *testing.T, o awsfake.EC2Options) *awsfake.EC2 {
	t.Helper()
	a := awsfake.DefaultAccount()
	fake := awsfake.NewEC2(a, o)
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": server.URL, "AWS_ACCESS_KEY_ID": a.AccessKey, "AWS_SECRET_ACCESS_KEY": a.SecretKey,
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	return fake
}

func openEC2(t *testing.T, owner string) *EC2 {
	t.Helper()
	e, err := OpenEC2(t.Context(), EC2Config{Owner: owner, Region: testRegion, Template: "detectors"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func openProcess(t *testing.T, state string, command []string) *Process {
	t.Helper()
	p, err := OpenProcess(t.Context(), ProcessConfig{Owner: "auto", Command: command, State: state, Grace: 5 * time.Second, Output: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

func openDocker(t *testing.T, e *engine, owner string) *Docker {
	t.Helper()
	d, err := OpenDocker(t.Context(), DockerConfig{
		Owner: owner, Socket: e.socket, Image: "transferlab", Command: []string{"service", "detector"},
		Env: map[string]string{"TRANSFERLAB_SITE": "cloud"}, Grace: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// helper is this test's own binary as another program.
func helper(what ...string) []string {
	program, err := filepath.Abs(os.Args[0])
	if err != nil {
		panic(err)
	}
	return append([]string{program, helperArgument}, what...)
}
