package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bench/internal/lab"
	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

const (
	bucket         = "bench-s3"
	loaderName     = "ours"
	withoutCapture = "ours-dropping"
)

// rig is a lab and the s3-loaders beside it.
type rig struct {
	*lab.Lab
	conn    *bus.Conn
	states  *bus.Bucket[schemas.TaskState]
	running map[string]*lab.Process // by site
}

func startRig(ctx context.Context, dir, binary string) (_ *rig, err error) {
	if binary, err = lab.Build(ctx, dir, binary, os.Stderr); err != nil {
		return nil, err
	}
	say("starting the lab")
	l := &rig{running: map[string]*lab.Process{}}
	if l.Lab, err = lab.Start(ctx, dir, binary); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.conn, err = l.Connect(ctx, "bench-s3"); err != nil {
		return nil, err
	}
	if l.states, err = bus.OpenBucket[schemas.TaskState](ctx, l.conn, bus.BucketTrials); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *rig) close() error {
	if l.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = l.conn.Close(ctx)
	}
	return l.Close()
}

// loaders are the s3-loader in the ways it is measured.
func (l *rig) loaders() []client {
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
func (l *rig) agent(ctx context.Context, site string, env []string) error {
	if l.running[site] != nil {
		return nil
	}
	p, err := l.Agent(ctx, l.conn, "s3-loader", site, site, append([]string{
		"TRANSFERLAB_S3_ENDPOINT=" + l.Env["AWS_ENDPOINT_URL"], "TRANSFERLAB_S3_REGION=" + l.Env["AWS_REGION"],
		"TRANSFERLAB_S3_ACCESS_KEY=" + l.Env["AWS_ACCESS_KEY_ID"], "TRANSFERLAB_S3_SECRET_KEY=" + l.Env["AWS_SECRET_ACCESS_KEY"],
	}, env...)...)
	if err != nil {
		return err
	}
	l.running[site] = p
	return nil
}

// prefix keeps the cells' objects apart, which other clients fetch by prefix.
func (c cell) prefix() string { return "bench/" + strconv.Itoa(c.objects) + "/" }

// key is the section's name for object i.
func (c cell) key(i int) string {
	s := schemas.S3{Prefix: c.prefix(), Size: schemas.Size(c.size)}
	return s.Key(i)
}

func (l *rig) populate(ctx context.Context, c cell) error {
	if err := l.agent(ctx, "bench", nil); err != nil {
		return err
	}
	_, err := l.load(ctx, c, "bench", "missing", true)
	return err
}

// load has a site's agent download a cell once.
func (l *rig) load(ctx context.Context, c cell, site, populate string, captured bool) (measured, error) {
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
	pid := l.running[site].PID()
	before, err := processorTime(pid)
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
	after, err := processorTime(pid)
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
func (l *rig) await(ctx context.Context, run *schemas.Run) (schemas.TaskState, error) {
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
func (l *rig) awaitEvents(ctx context.Context, run *schemas.Run, want int) error {
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

func (l *rig) query(ctx context.Context, text string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.Env["CLICKHOUSE_URL"], strings.NewReader(text))
	if err != nil {
		return "", fmt.Errorf("ask the database: %w", err)
	}
	req.Header.Set("X-ClickHouse-User", l.Env["CLICKHOUSE_USER"])
	req.Header.Set("X-ClickHouse-Key", l.Env["CLICKHOUSE_PASSWORD"])
	req.Header.Set("X-ClickHouse-Database", l.Env["CLICKHOUSE_DATABASE"])
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
