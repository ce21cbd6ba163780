//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/client"
)

// separate makes the process the head of a group, so that all of the lab can
// be killed at once.
func separate(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// kill ends the lab without a chance to tidy up.
func (u *up) kill() {
	if u.cmd.ProcessState != nil {
		return
	}
	_ = syscall.Kill(-u.cmd.Process.Pid, syscall.SIGKILL)
	_ = u.cmd.Wait()
	<-u.out
}

// kills is how often the lab is killed.
const kills = 10

// The whole lab is killed in the middle of a run, again and again, while a
// producer of another process sends 20,000 events a second. In the end the run
// must be done, and every event that was acknowledged to the producer must be
// in the database exactly once.
func TestKillTheWholeLab(t *testing.T) {
	dir := t.TempDir()
	port := freePort(t)
	l := startUp(t, dir, "--port-nats", port)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	conn, err := bus.Connect(ctx, bus.Options{URL: l.env["NATS_URL"], User: l.env["NATS_USER"], Password: l.env["NATS_PASSWORD"], Name: "outside"})
	if err != nil {
		t.Fatal(err)
	}
	recorder := bus.NewRecorder(conn, bus.RecorderOptions{Service: "outside", Producer: "outside/1"})
	sending, stopSending := context.WithCancel(ctx)
	sent := make(chan error, 1)
	go func() { sent <- send(sending, recorder, 20_000) }()

	file := filepath.Join(dir, "experiment.yaml")
	// Of the run's health only losses count here, not how busy the machine is.
	experiment := `name: killed
workload: s3
health: {dispatch_lag_p99: 1m}
groups: [{site: oregon, clients: 4}]
trials: {repeat: 12, retries: 50}
s3: {buckets: [alpha, beta], size: 1kB, objects: 8, duration: 2s, concurrency: 2}
`
	if err := os.WriteFile(file, []byte(experiment), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := program(t, "--dir", dir, "--json", "run", "--detach", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	var run schemas.Run
	if err := json.Unmarshal(out, &run); err != nil {
		t.Fatal(err)
	}
	for i := range kills {
		// A moment of a running trial, a different one each time.
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(time.Second + time.Duration(i)*130*time.Millisecond):
		}
		l.kill()
		l = startUp(t, dir, "--port-nats", port)
	}
	stopSending()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if err := recorder.Close(ctx); err != nil {
		t.Fatal(err)
	}
	acknowledged := recorder.Stats().Acknowledged
	if acknowledged != recorder.Stats().Recorded {
		t.Errorf("%d events recorded, %d acknowledged", recorder.Stats().Recorded, acknowledged)
	}

	follow(t, ctx, dir, run.ID)
	report := program(t, "--dir", dir, "--json", "report", run.ID.String())
	report.Stderr = t.Output()
	out, err = report.Output()
	if err != nil {
		t.Errorf("the run's report: %v\n%s", err, out)
	}
	query(t, ctx, dir, acknowledged)
	t.Logf("%d kills, %d events of the outside producer, each once", kills, acknowledged)
}

// send records events at a rate until ctx ends.
func send(ctx context.Context, r *bus.Recorder, rate int) error {
	run := uuid.Must(uuid.NewV7())
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			for range rate / 100 {
				e := schemas.Event{
					Intended: now, Run: run, Attempt: 1, Workload: "outside", Service: "outside", Site: "here", Agent: "outside-1", Kind: "tick", Status: schemas.StatusOK,
				}
				if err := r.Record(&e); err != nil {
					return err
				}
			}
		}
	}
}

// follow returns when the run is done.
func follow(t *testing.T, ctx context.Context, dir string, id uuid.UUID) {
	t.Helper()
	env, err := readEnv(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := dial(env["TRANSFERLAB_URL"], env["TRANSFERLAB_TOKEN"])
	if err != nil {
		t.Fatal(err)
	}
	run, err := s.Watch(ctx, id.String(), client.Watcher{})
	if err != nil {
		t.Fatal(err)
	}
	if run.State != schemas.RunDone || run.TrialsDone != run.Trials {
		t.Fatalf("run %s with %d of %d trials: %s", run.State, run.TrialsDone, run.Trials, run.Error)
	}
}

// query waits until everything is in the database, then looks for gaps.
func query(t *testing.T, ctx context.Context, dir string, acknowledged uint64) {
	t.Helper()
	ask := func(q string) string {
		cmd := program(t, "--dir", dir, "sql", q)
		cmd.Stderr = t.Output()
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		return strings.TrimSpace(string(out))
	}
	for ask("SELECT count() FROM events WHERE producer = 'outside/1' FORMAT TSV") != fmt.Sprint(acknowledged) {
		select {
		case <-ctx.Done():
			t.Fatal("events never arrived")
		case <-time.After(200 * time.Millisecond):
		}
		if status := lag(t, dir); status == 0 {
			break
		}
	}
	if got := ask("SELECT received, lost, duplicated FROM integrity WHERE producer = 'outside/1' FORMAT TSV"); got != fmt.Sprintf("%d\t0\t0", acknowledged) {
		t.Errorf("integrity of the outside producer (received, lost, duplicated): %s, want %d 0 0", got, acknowledged)
	}
	if got := ask("SELECT count(), sum(lost), sum(duplicated) FROM integrity WHERE lost + duplicated > 0 FORMAT TSV"); got != "0\t0\t0" {
		t.Errorf("producers with gaps or duplicates (count, lost, duplicated): %s", got)
	}
}

// lag is how many batches the collector has not stored yet.
func lag(t *testing.T, dir string) uint64 {
	t.Helper()
	out, err := program(t, "--dir", dir, "--json", "status").Output()
	if err != nil {
		t.Fatal(err)
	}
	var s api.Status
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatal(err)
	}
	if s.Events.Lag == nil {
		return 1
	}
	return *s.Events.Lag
}
