package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

const (
	bucket         = "bench-s3"
	loaderName     = "ours"
	withoutCapture = "ours-dropping"
)

// lab is a `transferlab up` and the s3-loaders beside it.
type lab struct {
	binary  string
	dir     string
	env     map[string]string
	up      *process
	conn    *bus.Conn
	states  *bus.Bucket[schemas.TaskState]
	agents  []*process
	running map[string]*process // by site
}

func startLab(ctx context.Context, dir, binary string) (_ *lab, err error) {
	l := &lab{binary: binary, dir: filepath.Join(dir, "lab"), running: map[string]*process{}}
	if l.binary == "" {
		say("building transferlab")
		l.binary = filepath.Join(dir, "transferlab")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", l.binary, "github.com/transferlab/transferlab/services/transferlab")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build transferlab: %w", err)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	say("starting the lab")
	if l.up, err = l.start(nil, "up.log", "--dir", l.dir, "up", "--port-nats", "0", "--port-clickhouse", "0", "--port-s3", "0", "--port-http", "0"); err != nil {
		return nil, err
	}
	if l.env, err = awaitEnv(ctx, l.up, filepath.Join(l.dir, "env")); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, l.log("up.log"))
	}
	if l.conn, err = bus.Connect(ctx, bus.Options{
		URL: l.env["NATS_URL"], User: l.env["NATS_USER"], Password: l.env["NATS_PASSWORD"], Name: "bench-s3",
	}); err != nil {
		return nil, err
	}
	if l.states, err = bus.OpenBucket[schemas.TaskState](ctx, l.conn, bus.BucketTrials); err != nil {
		return nil, err
	}
	return l, nil
}

// process is one that was started; ended is closed once it is gone.
type process struct {
	*exec.Cmd
	ended chan struct{}
}

// start runs the binary until close; its output goes to a file.
func (l *lab) start(env []string, log string, args ...string) (*process, error) {
	out, err := os.Create(filepath.Join(filepath.Dir(l.dir), log))
	if err != nil {
		return nil, fmt.Errorf("make a log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(l.binary, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args, err)
	}
	p := &process{cmd, make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait()
	}()
	return p, nil
}

func (l *lab) log(name string) string {
	data, err := os.ReadFile(filepath.Join(filepath.Dir(l.dir), name))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-2000):])
}

// awaitEnv waits for the file in which the lab says where it serves.
func awaitEnv(ctx context.Context, up *process, path string) (map[string]string, error) {
	// The first start on a machine fetches the database engine.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		data, err := os.ReadFile(path)
		if err == nil {
			env := map[string]string{}
			for line := range strings.Lines(string(data)) {
				name, value, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
				if found {
					env[name] = strings.Trim(value, "'")
				}
			}
			return env, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the lab does not start: %w", err)
		case <-up.ended:
			return nil, errors.New("the lab has ended")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *lab) close() error {
	if l.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = l.conn.Close(ctx)
	}
	var errs []error
	for _, p := range append(l.agents, l.up) {
		if p == nil {
			continue
		}
		if err := p.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("stop process %d: %w", p.Process.Pid, err))
			continue
		}
		kill := time.AfterFunc(30*time.Second, func() { _ = p.Process.Kill() })
		<-p.ended
		kill.Stop()
	}
	return errors.Join(errs...)
}

func (l *lab) version(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, l.binary, "version").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// loaders are the s3-loader in the ways it is measured.
func (l *lab) loaders() []client {
	var out []client
	for _, c := range []struct {
		name, what, site string
		env              []string
	}{
		{loaderName, "s3-loader, every event captured", "bench", nil},
		{"ours-copying", "the same, reading every byte into memory", "bench-copying", []string{"TRANSFERLAB_S3_COPY=true"}},
		{withoutCapture, "the same as the first, events dropped", "bench-dropping", []string{"TRANSFERLAB_NO_CAPTURE=1"}},
	} {
		out = append(out, client{name: c.name, what: c.what, run: func(ctx context.Context, cl cell) (measured, error) {
			if err := l.agent(ctx, c.site, c.env); err != nil {
				return measured{}, err
			}
			return l.load(ctx, cl, c.site, "never", c.name != withoutCapture)
		}})
	}
	return out
}

// agent starts the s3-loader of a site unless it runs.
func (l *lab) agent(ctx context.Context, site string, env []string) error {
	if l.running[site] != nil {
		return nil
	}
	env = append([]string{
		"TRANSFERLAB_NATS=" + l.env["NATS_URL"], "TRANSFERLAB_NATS_USER=" + l.env["NATS_USER"], "TRANSFERLAB_NATS_PASSWORD=" + l.env["NATS_PASSWORD"],
		"TRANSFERLAB_S3_ENDPOINT=" + l.env["AWS_ENDPOINT_URL"], "TRANSFERLAB_S3_REGION=" + l.env["AWS_REGION"],
		"TRANSFERLAB_S3_ACCESS_KEY=" + l.env["AWS_ACCESS_KEY_ID"], "TRANSFERLAB_S3_SECRET_KEY=" + l.env["AWS_SECRET_ACCESS_KEY"],
	}, env...)
	cmd, err := l.start(env, site+".log", "service", "s3-loader", "--name", site, "--site", site)
	if err != nil {
		return err
	}
	l.agents = append(l.agents, cmd)
	l.running[site] = cmd
	agents, err := bus.OpenBucket[schemas.Agent](ctx, l.conn, bus.BucketAgents)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := agents.Get(ctx, bus.Token(site)); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s does not come: %s", site, l.log(site+".log"))
		case <-cmd.ended:
			return fmt.Errorf("the agent of %s has ended: %s", site, l.log(site+".log"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// prefix keeps the cells' objects apart, which other clients fetch by prefix.
func (c cell) prefix() string { return "bench/" + strconv.Itoa(c.objects) + "/" }

// key is the section's name for object i.
func (c cell) key(i int) string {
	s := schemas.S3{Prefix: c.prefix(), Size: schemas.Size(c.size)}
	return s.Key(i)
}

func (l *lab) populate(ctx context.Context, c cell) error {
	if err := l.agent(ctx, "bench", nil); err != nil {
		return err
	}
	_, err := l.load(ctx, c, "bench", "missing", true)
	return err
}

// load has a site's agent download a cell once.
func (l *lab) load(ctx context.Context, c cell, site, populate string, captured bool) (measured, error) {
	experiment := fmt.Sprintf(`
name: bench-%s
workload: s3
groups: [{site: %s}]
trials: {retries: 0}
s3:
  buckets: [%s]
  prefix: %s
  size: %d
  objects: %d
  requests: %d
  concurrency: %d
  wait: 0s
  populate: %s
`, strings.ToLower(rand.Text()[:8]), site, bucket, c.prefix(), c.size, c.objects, c.objects, c.concurrency, populate)
	cmd := l.running[site]
	before, err := processorTime(cmd.Process.Pid)
	if err != nil {
		return measured{}, err
	}
	run, err := bus.Request[schemas.Run](ctx, l.conn, bus.SubjectSubmit, &schemas.Submit{File: experiment})
	if err != nil {
		return measured{}, err
	}
	state, err := l.await(ctx, &run)
	if err != nil {
		return measured{}, err
	}
	after, err := processorTime(cmd.Process.Pid)
	if err != nil {
		return measured{}, err
	}
	r := state.Result
	if r.Errors > 0 || r.Issued != uint64(c.objects) {
		return measured{}, fmt.Errorf("%d requests, %d of them failed", r.Issued, r.Errors)
	}
	if captured {
		if err := l.awaitEvents(ctx, &run, c.objects); err != nil {
			return measured{}, err
		}
	}
	return measured{Bytes: int64(r.Bytes), Requests: int64(r.Issued), Elapsed: r.Elapsed, CPU: after - before}, nil
}

// await returns the state in which the run's only task ends.
func (l *lab) await(ctx context.Context, run *schemas.Run) (schemas.TaskState, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var last schemas.TaskState
	err := l.states.Watch(ctx, fmt.Sprintf("task.%s.>", run.ID), func(e bus.Entry[schemas.TaskState]) error {
		if last = e.Value; last.Ended() {
			cancel()
		}
		return nil
	})
	switch {
	case last.Phase == schemas.TaskDone:
		return last, nil
	case last.Ended():
		return last, fmt.Errorf("the task %s: %s", last.Phase, last.Error)
	case err != nil:
		return last, fmt.Errorf("wait for the task: %w", err)
	}
	return last, errors.New("the task does not end")
}

// awaitEvents waits until the database has every request of a run, once.
func (l *lab) awaitEvents(ctx context.Context, run *schemas.Run, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	query := fmt.Sprintf("SELECT countIf(status = 'ok'), uniqExact(producer, seq) FROM events WHERE run = '%s' AND kind = 'request'", run.ID)
	for {
		answer, err := l.query(ctx, query)
		if err != nil {
			return err
		}
		if answer == fmt.Sprintf("%d\t%d", want, want) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("events of the run: %q requests and distinct ones in the database, want %d", answer, want)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *lab) query(ctx context.Context, text string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.env["CLICKHOUSE_URL"], strings.NewReader(text))
	if err != nil {
		return "", fmt.Errorf("ask the database: %w", err)
	}
	req.Header.Set("X-ClickHouse-User", l.env["CLICKHOUSE_USER"])
	req.Header.Set("X-ClickHouse-Key", l.env["CLICKHOUSE_PASSWORD"])
	req.Header.Set("X-ClickHouse-Database", l.env["CLICKHOUSE_DATABASE"])
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask the database: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("ask the database: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ask the database: %s: %s", resp.Status, body)
	}
	return strings.TrimSpace(string(body)), nil
}
