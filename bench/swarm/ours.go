package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bench/internal/lab"
	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

const (
	swarmService = "swarm-runner"
	s3Service    = "s3-loader"
	swarmSite    = "bench-swarm"
	s3Site       = "bench-s3"
	// farSite is emulated: the lab starts its agent inside.
	farSite = "home"
)

// rig is a lab and the agents beside it.
type rig struct {
	*lab.Lab
	conn   *bus.Conn
	agents map[string]*lab.Process // by service
}

func startRig(ctx context.Context, dir, binary string) (_ *rig, err error) {
	if binary, err = lab.Build(ctx, dir, binary, os.Stderr); err != nil {
		return nil, err
	}
	say("starting the lab")
	l := &rig{agents: map[string]*lab.Process{}}
	if l.Lab, err = lab.Start(ctx, dir, binary); err != nil {
		return nil, err
	}
	if l.conn, err = l.Connect(ctx, "bench-swarm"); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *rig) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = l.conn.Close(ctx)
	return l.Close()
}

// agent is the process of a service, started unless it runs.
func (l *rig) agent(ctx context.Context, service string) (*lab.Process, error) {
	if p := l.agents[service]; p != nil {
		return p, nil
	}
	site, env := swarmSite, []string(nil)
	if service == s3Service {
		site, env = s3Site, []string{
			"TRANSFERLAB_S3_ENDPOINT=" + l.Env["AWS_ENDPOINT_URL"], "TRANSFERLAB_S3_REGION=" + l.Env["AWS_REGION"],
			"TRANSFERLAB_S3_ACCESS_KEY=" + l.Env["AWS_ACCESS_KEY_ID"], "TRANSFERLAB_S3_SECRET_KEY=" + l.Env["AWS_SECRET_ACCESS_KEY"],
		}
	}
	p, err := l.Agent(ctx, l.conn, service, site, site+"-1", env...)
	if err != nil {
		return nil, err
	}
	l.agents[service] = p
	return p, nil
}

// swarmExperiment is one trial of a cell.
func swarmExperiment(c cell, round int) string {
	var limits strings.Builder
	for _, r := range []struct {
		field string
		v     schemas.BitRate
	}{{"seed_upload", c.seedUpload}, {"upload", c.upload}, {"download", c.download}} {
		if r.v > 0 {
			fmt.Fprintf(&limits, "  %s: %s\n", r.field, r.v)
		}
	}
	return fmt.Sprintf(`name: bench-swarm
workload: swarm
seed: %d
groups: [{site: %s, clients: %d}]
trials: {retries: 0}
swarm:
  size: %s
%s`, round+1, swarmSite, c.leechers, c.size, limits.String())
}

// s3Experiment is one object fetched by so many clients, over an uplink of the
// store if there is a rate.
func s3Experiment(size schemas.Size, clients int, uplink schemas.BitRate, round int) string {
	site, network := s3Site, ""
	if uplink > 0 {
		site = farSite
		network = fmt.Sprintf("sites: {%s: {}}\nlinks:\n  lab-%s: {rate: %s}\n", farSite, farSite, uplink)
	}
	return fmt.Sprintf(`name: bench-crossover
workload: s3
seed: %d
%sgroups: [{site: %s, clients: %d}]
trials: {retries: 0}
s3:
  buckets: [bench-swarm]
  size: %s
  objects: 1
  requests: 1
  wait: 0s
  connections: fresh
`, round+1, network, site, clients, size)
}

// transfer has the swarm-runner do a cell once.
func (l *rig) transfer(ctx context.Context, c cell, round int) (measured, error) {
	m, _, err := l.swarm(ctx, c, round)
	return m, err
}

func (l *rig) swarm(ctx context.Context, c cell, round int) (measured, *lab.Outcome, error) {
	p, err := l.agent(ctx, swarmService)
	if err != nil {
		return measured{}, nil, err
	}
	before, err := lab.ProcessorTime(p.PID())
	if err != nil {
		return measured{}, nil, err
	}
	o, err := l.Run(ctx, swarmExperiment(c, round))
	if err != nil {
		return measured{}, nil, err
	}
	after, err := lab.ProcessorTime(p.PID())
	if err != nil {
		return measured{}, nil, err
	}
	rows, err := l.SQL(ctx, `SELECT leecher, status, duration_ns, received_bytes, sha256, piece_size_bytes, replaceAll(error, '\t', ' ')
FROM swarm_transfers WHERE run = '`+o.Run.ID+`' AND final ORDER BY leecher`)
	if err != nil {
		return measured{}, nil, err
	}
	m, err := transfers(rows)
	if err != nil {
		return measured{}, nil, fmt.Errorf("run %s: %w", o.Run.ID, err)
	}
	m.CPU, m.size = (after - before).Nanoseconds(), int64(c.size)
	return m, o, m.fault(c)
}

// transfers reads rows of leecher, status, duration, received bytes, verdict on
// the content, piece size, and error.
func transfers(rows [][]string) (measured, error) {
	var m measured
	for _, row := range rows {
		if len(row) != 7 {
			return m, fmt.Errorf("answer of the database: %d columns, want 7", len(row))
		}
		var n [3]int64
		for i, at := range []int{2, 3, 5} {
			v, err := strconv.ParseInt(row[at], 10, 64)
			if err != nil || v < 0 {
				return m, fmt.Errorf("answer of the database: %q, want a number", row[at])
			}
			n[i] = v
		}
		one := leecher{Elapsed: n[0], Received: n[1], Checked: row[4] == "ok"}
		if row[1] != schemas.StatusOK {
			one.Elapsed, one.Error = -1, row[1]+": "+row[6]
		}
		m.Leechers, m.Piece = append(m.Leechers, one), n[2]
	}
	return m, nil
}

// hadByAll is when the last receiver of a run had what it was to have, from the
// time it was to start, in nanoseconds; all must have it. The view has a row for
// each.
func (l *rig) hadByAll(ctx context.Context, run, view string, clients int) (float64, error) {
	rows, err := l.SQL(ctx, `SELECT count(), countIf(status = 'ok'), max(wait_ns + duration_ns) FROM `+view+` WHERE run = '`+run+`' AND final`)
	if err != nil {
		return 0, err
	}
	want := strconv.Itoa(clients)
	if len(rows) != 1 || len(rows[0]) != 3 || rows[0][0] != want || rows[0][1] != want {
		return 0, fmt.Errorf("run %s: %q, want %d receivers, all of them ok", run, rows, clients)
	}
	ns, err := strconv.ParseFloat(rows[0][2], 64)
	if err != nil || math.IsNaN(ns) {
		return 0, fmt.Errorf("run %s: answer of the database: %q", run, rows[0][2])
	}
	return ns, nil
}
