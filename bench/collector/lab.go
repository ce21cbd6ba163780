package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/bus"
)

// lab is a transferlab of our own.
type lab struct {
	cmd  *exec.Cmd
	done chan struct{}
	env  map[string]string
	log  string
	http *http.Client
}

// startLab starts `transferlab up` in dir and returns once it serves.
func startLab(ctx context.Context, dir, binary string) (*lab, error) {
	if binary == "" {
		binary = filepath.Join(dir, "transferlab")
		fmt.Fprintln(os.Stderr, "building transferlab")
		build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/transferlab/transferlab/services/transferlab")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build transferlab: %w", err)
		}
	}
	state := filepath.Join(dir, "state")
	l := &lab{done: make(chan struct{}), log: filepath.Join(dir, "lab.log"), http: &http.Client{
		Transport: &http.Transport{WriteBufferSize: 256 << 10, MaxIdleConnsPerHost: 4, DisableCompression: true},
	}}
	log, err := os.Create(l.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	l.cmd = exec.Command(binary, "--dir", state, "up", "--port-nats", "0", "--port-clickhouse", "0", "--port-s3", "0", "--port-http", "0")
	l.cmd.Stdout, l.cmd.Stderr = log, log
	if err := l.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() {
		_ = l.cmd.Wait()
		close(l.done)
	}()
	if err := l.await(ctx, filepath.Join(state, "env")); err != nil {
		l.stop()
		said, _ := os.ReadFile(l.log)
		return nil, fmt.Errorf("start %s: %w\n%s", binary, err, said[max(0, len(said)-4096):])
	}
	return l, nil
}

func (l *lab) await(ctx context.Context, env string) error {
	// The first start on a machine fetches the database engine.
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.done:
			return errors.New("it ended")
		case <-tick.C:
		}
		text, err := os.ReadFile(env)
		if err != nil {
			continue
		}
		l.env = parseEnv(string(text))
		if n, err := l.number(ctx, "SELECT count() FROM events"); err == nil && n >= 0 {
			return nil
		}
	}
}

// parseEnv reads lines of the form export NAME='value'.
func parseEnv(text string) map[string]string {
	env := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if found {
			env[name] = strings.ReplaceAll(strings.Trim(value, "'"), `'\''`, "'")
		}
	}
	return env
}

func (l *lab) stop() {
	_ = l.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-l.done:
	case <-time.After(30 * time.Second):
		_ = l.cmd.Process.Kill()
		<-l.done
	}
}

// connect joins the bus as a producer would.
func (l *lab) connect(ctx context.Context) (*bus.Conn, error) {
	return bus.Connect(ctx, bus.Options{URL: l.env["NATS_URL"], User: l.env["NATS_USER"], Password: l.env["NATS_PASSWORD"], Name: "bench"})
}

// query sends a statement to the database, with data after it if there is any,
// and returns the answer.
func (l *lab) query(ctx context.Context, statement string, data []byte) (string, error) {
	values := url.Values{"query": {statement}, "database": {l.env["CLICKHOUSE_DATABASE"]}}
	if len(data) > 0 {
		// As the collector's inserts: one part, whatever its size.
		values.Set("min_insert_block_size_rows", "1000000000")
		values.Set("min_insert_block_size_bytes", "17179869184")
		values.Set("async_insert", "0")
		values.Set("max_insert_threads", "1")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.env["CLICKHOUSE_URL"]+"/?"+values.Encode(), bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	req.Header.Set("X-ClickHouse-User", l.env["CLICKHOUSE_USER"])
	req.Header.Set("X-ClickHouse-Key", l.env["CLICKHOUSE_PASSWORD"])
	resp, err := l.http.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", statement, answer)
	}
	return strings.TrimSpace(string(answer)), err
}

func (l *lab) number(ctx context.Context, statement string) (float64, error) {
	answer, err := l.query(ctx, statement, nil)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(answer, 64)
}

// usage is the CPU time the lab's processes have used so far: the lab itself,
// and its children, which are the database engine.
func (l *lab) usage() (own, engine time.Duration) {
	own, engine = processCPU(l.cmd.Process.Pid)
	return own, engine
}

// processCPU sums user and system time of a process, and of its living
// children, as Linux tells them; elsewhere it is 0.
func processCPU(pid int) (own, children time.Duration) {
	own, _ = statCPU(pid)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if used, parent := statCPU(child); parent == pid {
			children += used
		}
	}
	return own, children
}

func statCPU(pid int) (used time.Duration, parent int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The name of the program, in brackets, may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, 0
	}
	parent, _ = strconv.Atoi(fields[1])
	const tick = 10 * time.Millisecond
	for _, f := range fields[11:13] {
		n, _ := strconv.ParseInt(f, 10, 64)
		used += time.Duration(n) * tick
	}
	return used, parent
}

func selfCPU() time.Duration {
	used, _ := statCPU(os.Getpid())
	return used
}

// machine describes what the figures were taken on.
func machine() string {
	kernel := "unknown kernel"
	if text, err := os.ReadFile("/proc/version"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) > 2 {
			kernel = fields[0] + " " + fields[2]
		}
	}
	processor := ""
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if name, value, found := strings.Cut(lines.Text(), ":"); found && strings.TrimSpace(name) == "model name" {
				processor = strings.TrimSpace(value) + ", "
				break
			}
		}
		_ = f.Close()
	}
	load := ""
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) > 0 {
			load = ", load at the start " + fields[0]
		}
	}
	return fmt.Sprintf("%s%d cores, %s, %s%s", processor, runtime.NumCPU(), kernel, runtime.Version(), load)
}
