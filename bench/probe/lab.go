package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bench/internal/lab"
	"github.com/transferlab/transferlab/bus"
)

// rig is a lab and the probers beside it.
type rig struct {
	*lab.Lab
	conn *bus.Conn
}

func startRig(ctx context.Context, dir, binary string) (_ *rig, err error) {
	if binary, err = lab.Build(ctx, dir, binary, os.Stderr); err != nil {
		return nil, err
	}
	say("starting the lab")
	l := &rig{}
	if l.Lab, err = lab.Start(ctx, dir, binary); err != nil {
		return nil, err
	}
	if l.conn, err = l.Connect(ctx, "bench-probe"); err != nil {
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

// prober starts one at a site and waits until the lab knows it.
func (l *rig) prober(ctx context.Context, site string) (*lab.Process, error) {
	return l.Agent(ctx, l.conn, "prober", site, site+"-1")
}

// experiment is a file of probes of targets, by the prober of a site.
func experiment(name, site string, targets []string, interval time.Duration, count int) string {
	return fmt.Sprintf(`name: %s
workload: probe
seed: 1
groups: [{site: %s}]
trials: {retries: 0}
probe:
  mesh: none
  targets: ["%s"]
  interval: %s
  count: %d
  payload: 56B
`, name, site, strings.Join(targets, `", "`), interval, count)
}

// cost is what a prober took for a run: from before it was submitted until its
// rows were stored.
type cost struct {
	prober, lab time.Duration
	memory      lab.Memory // of the prober, since its start
}

// run has an experiment done.
func (l *rig) run(ctx context.Context, prober *lab.Process, text string) (*lab.Outcome, *cost, error) {
	before, beforeLab, err := l.times(prober)
	if err != nil {
		return nil, nil, err
	}
	o, err := l.Run(ctx, text)
	if err != nil {
		return nil, nil, err
	}
	after, afterLab, err := l.times(prober)
	if err != nil {
		return nil, nil, err
	}
	mem, err := lab.MemoryOf(prober.PID())
	if err != nil {
		return nil, nil, err
	}
	return o, &cost{prober: after - before, lab: afterLab - beforeLab, memory: mem}, nil
}

func (l *rig) times(prober *lab.Process) (own, rest time.Duration, err error) {
	if own, err = lab.ProcessorTime(prober.PID()); err != nil {
		return 0, 0, err
	}
	up, engine, err := lab.FamilyTime(l.Up.PID())
	return own, up + engine, err
}

// stored is what the database has of a run.
type stored struct {
	rows, answered, duplicates int64
	p50, p99                   float64 // ns, nearest rank; negative: no answer
	rate                       float64 // probes a second, from the first sent to the last
	stamps                     string  // whose readings of the clock
	issued                     int64   // by the prober's own account
	lagP99                     float64 // ns
	lost, repeated             int64   // events of the run's producers: gaps, and more than once
}

// stored asks the database for a run's figures: percentiles are computed there, of
// all rows.
func (l *rig) stored(ctx context.Context, run string) (*stored, error) {
	var s stored
	row, err := l.row(ctx, `
WITH arraySort(groupArrayIf(assumeNotNull(rtt_ns), isNotNull(rtt_ns))) AS sorted,
     toUnixTimestamp64Nano(ts) + wait_ns AS sent
SELECT count(), countIf(status = 'ok'), sum(duplicates),
       if(empty(sorted), -1., toFloat64(sorted[toUInt32(ceil(0.50 * length(sorted)))])),
       if(empty(sorted), -1., toFloat64(sorted[toUInt32(ceil(0.99 * length(sorted)))])),
       (count() - 1) / ((max(sent) - min(sent)) / 1e9),
       arrayStringConcat(arraySort(groupUniqArrayIf(stamps, stamps != '')), '+')
FROM probe_packets WHERE run = '`+run+`' AND final`, 7)
	if err != nil {
		return nil, err
	}
	s.stamps = row[6]
	if err := numbers(row[:6], &s.rows, &s.answered, &s.duplicates, &s.p50, &s.p99, &s.rate); err != nil {
		return nil, err
	}
	if row, err = l.row(ctx, "SELECT sum(issued), max(lag_p99_ns) FROM tasks WHERE run = '"+run+"' AND final", 2); err != nil {
		return nil, err
	}
	if err := numbers(row, &s.issued, &s.lagP99); err != nil {
		return nil, err
	}
	if row, err = l.row(ctx, "SELECT sum(lost), sum(duplicated) FROM integrity WHERE producer IN (SELECT producer FROM tasks WHERE run = '"+run+"')", 2); err != nil {
		return nil, err
	}
	if err := numbers(row, &s.lost, &s.repeated); err != nil {
		return nil, err
	}
	return &s, nil
}

func numbers(fields []string, into ...any) error {
	for i, f := range fields {
		var err error
		switch v := into[i].(type) {
		case *int64:
			*v, err = strconv.ParseInt(f, 10, 64)
		case *float64:
			*v, err = strconv.ParseFloat(f, 64)
		}
		if err != nil {
			return fmt.Errorf("answer of the database: %w", err)
		}
	}
	return nil
}

// row asks for one row of so many columns.
func (l *rig) row(ctx context.Context, query string, columns int) ([]string, error) {
	rows, err := l.SQL(ctx, query)
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 || len(rows[0]) != columns {
		return nil, fmt.Errorf("ask the database: answer %q, want a row of %d columns", rows, columns)
	}
	return rows[0], nil
}

// complete reports whether every probe that was issued is a row, once.
func (s *stored) complete(want int) bool {
	return s.rows == int64(want) && s.issued == s.rows && s.lost == 0 && s.repeated == 0
}
