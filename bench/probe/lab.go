package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// lab is a `transferlab up` and the probers beside it.
type lab struct {
	binary string
	dir    string
	env    map[string]string
	up     *process
	conn   *bus.Conn
	agents []*process
}

func startLab(ctx context.Context, dir, binary string) (_ *lab, err error) {
	l := &lab{binary: binary, dir: filepath.Join(dir, "lab")}
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
	if err := l.await(ctx); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, l.log("up.log"))
	}
	l.conn, err = bus.Connect(ctx, bus.Options{
		URL: l.env["NATS_URL"], User: l.env["NATS_USER"], Password: l.env["NATS_PASSWORD"], Name: "bench-probe",
	})
	return l, err
}

// process is one that was started; ended is closed once it is gone.
type process struct {
	*exec.Cmd
	ended chan struct{}
}

// start runs the binary until it is stopped; its output goes to a file.
func (l *lab) start(env []string, log string, args ...string) (*process, error) {
	return startProcess(filepath.Join(filepath.Dir(l.dir), log), env, l.binary, args...)
}

// startProcess runs a program whose output goes to a file.
func startProcess(log string, env []string, program string, args ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("make a log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	p := &process{cmd, make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait()
	}()
	return p, nil
}

// stop interrupts a process, and kills it if it does not end within half a minute.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	if err := p.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop process %d: %w", p.Process.Pid, err)
	}
	kill := time.AfterFunc(30*time.Second, func() { _ = p.Process.Kill() })
	defer kill.Stop()
	<-p.ended
	return nil
}

func (l *lab) log(name string) string {
	data, err := os.ReadFile(filepath.Join(filepath.Dir(l.dir), name))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-2000):])
}

// await waits for the file in which the lab says where it serves.
func (l *lab) await(ctx context.Context) error {
	// The first start on a machine fetches the database engine.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		data, err := os.ReadFile(filepath.Join(l.dir, "env"))
		if err == nil && strings.Contains(l.log("up.log"), "Ctrl-C ends it") {
			l.env = map[string]string{}
			for line := range strings.Lines(string(data)) {
				name, value, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
				if found {
					l.env[name] = strings.Trim(value, "'")
				}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("the lab does not start"), err)
		case <-l.up.ended:
			return errors.New("the lab has ended")
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
		errs = append(errs, p.stop())
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

// prober starts one at a site and waits until the lab knows it.
func (l *lab) prober(ctx context.Context, site string) (*process, error) {
	name := site + "-1"
	p, err := l.start([]string{
		"TRANSFERLAB_NATS=" + l.env["NATS_URL"], "TRANSFERLAB_NATS_USER=" + l.env["NATS_USER"], "TRANSFERLAB_NATS_PASSWORD=" + l.env["NATS_PASSWORD"],
	}, name+".log", "service", "prober", "--site", site, "--name", name)
	if err != nil {
		return nil, err
	}
	l.agents = append(l.agents, p)
	agents, err := bus.OpenBucket[schemas.Agent](ctx, l.conn, bus.BucketAgents)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := agents.Get(ctx, bus.Token(name)); err == nil {
			return p, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("prober %s does not come: %s", name, l.log(name+".log"))
		case <-p.ended:
			return nil, fmt.Errorf("prober %s has ended: %s", name, l.log(name+".log"))
		case <-time.After(20 * time.Millisecond):
		}
	}
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

// outcome is what a run's report says, as far as it is wanted here.
type outcome struct {
	Run struct {
		ID    string `json:"id"`
		State string `json:"state"`
	} `json:"run"`
	Verdict  string `json:"verdict"`
	Validity struct {
		Valid   bool `json:"valid"`
		Reasons []struct {
			Code string `json:"code"`
			Text string `json:"text"`
		} `json:"reasons"`
	} `json:"validity"`
	Agents []struct {
		Name string `json:"name"`
	} `json:"agents"`
	Accounting struct {
		Lost       uint64 `json:"events_lost"`
		Duplicated uint64 `json:"events_duplicated"`
		Settled    bool   `json:"settled"`
	} `json:"accounting"`
}

// cost is what a prober took for a run: from before it was submitted until its
// rows were stored.
type cost struct {
	prober, lab time.Duration
	memory      memory // of the prober, since its start
}

// run has an experiment done.
func (l *lab) run(ctx context.Context, prober *process, text string) (*outcome, *cost, error) {
	path := filepath.Join(filepath.Dir(l.dir), "experiment.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return nil, nil, fmt.Errorf("write the experiment: %w", err)
	}
	before, beforeLab, err := l.times(prober)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, l.binary, "--dir", l.dir, "run", "--json", path)
	cmd.Stdout, cmd.Stderr = &out, &complaints
	// The exit code tells the verdict; a report is there in any case.
	ended := cmd.Run()
	var o outcome
	if err := json.Unmarshal(out.Bytes(), &o); err != nil || o.Run.ID == "" {
		return nil, nil, fmt.Errorf("run an experiment: %w\n%s", errors.Join(ended, err), complaints.String())
	}
	if o.Run.State != "done" {
		return nil, nil, fmt.Errorf("run %s ended %s\n%s", o.Run.ID, o.Run.State, complaints.String())
	}
	after, afterLab, err := l.times(prober)
	if err != nil {
		return nil, nil, err
	}
	mem, err := memoryOf(prober.Process.Pid)
	if err != nil {
		return nil, nil, err
	}
	return &o, &cost{prober: after - before, lab: afterLab - beforeLab, memory: mem}, nil
}

func (l *lab) times(prober *process) (own, rest time.Duration, err error) {
	if own, err = processorTime(prober.Process.Pid); err != nil {
		return 0, 0, err
	}
	rest, err = familyTime(l.up.Process.Pid)
	return own, rest, err
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
func (l *lab) stored(ctx context.Context, run string) (*stored, error) {
	var s stored
	row, err := l.sql(ctx, `
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
	if row, err = l.sql(ctx, "SELECT sum(issued), max(lag_p99_ns) FROM tasks WHERE run = '"+run+"' AND final", 2); err != nil {
		return nil, err
	}
	if err := numbers(row, &s.issued, &s.lagP99); err != nil {
		return nil, err
	}
	if row, err = l.sql(ctx, "SELECT sum(lost), sum(duplicated) FROM integrity WHERE producer IN (SELECT producer FROM tasks WHERE run = '"+run+"')", 2); err != nil {
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

// sql asks for one row of so many columns.
func (l *lab) sql(ctx context.Context, query string, columns int) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, l.binary, "--dir", l.dir, "sql", query+" FORMAT TSV")
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("ask the database: %w: %s", err, complaints.String())
	}
	fields := strings.Split(strings.TrimRight(out.String(), "\n"), "\t")
	if len(fields) != columns {
		return nil, fmt.Errorf("ask the database: answer %q, want %d columns", out.String(), columns)
	}
	return fields, nil
}

// complete reports whether every probe that was issued is a row, once.
func (s *stored) complete(want int) bool {
	return s.rows == int64(want) && s.issued == s.rows && s.lost == 0 && s.repeated == 0
}
