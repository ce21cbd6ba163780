package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
	"github.com/transferlab/transferlab/bench/internal/lab"
)

// rig is a lab and a client of its database.
type rig struct {
	*lab.Lab
	http *http.Client
}

func startRig(ctx context.Context, dir, binary string) (*rig, error) {
	binary, err := lab.Build(ctx, dir, binary, os.Stderr)
	if err != nil {
		return nil, err
	}
	l, err := lab.Start(ctx, dir, binary)
	if err != nil {
		return nil, err
	}
	return &rig{l, &http.Client{
		Transport: &http.Transport{WriteBufferSize: 256 << 10, MaxIdleConnsPerHost: 4, DisableCompression: true},
	}}, nil
}

// query sends a statement to the database, with data after it if there is any,
// and returns the answer.
func (l *rig) query(ctx context.Context, statement string, data []byte) (string, error) {
	values := url.Values{"query": {statement}, "database": {l.Env["CLICKHOUSE_DATABASE"]}}
	if len(data) > 0 {
		// As the collector's inserts: one part, whatever its size.
		values.Set("min_insert_block_size_rows", "1000000000")
		values.Set("min_insert_block_size_bytes", "17179869184")
		values.Set("async_insert", "0")
		values.Set("max_insert_threads", "1")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.Env["CLICKHOUSE_URL"]+"/?"+values.Encode(), bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	req.Header.Set("X-ClickHouse-User", l.Env["CLICKHOUSE_USER"])
	req.Header.Set("X-ClickHouse-Key", l.Env["CLICKHOUSE_PASSWORD"])
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

func (l *rig) number(ctx context.Context, statement string) (float64, error) {
	answer, err := l.query(ctx, statement, nil)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(answer, 64)
}

// usage is the CPU time the lab's processes have used so far: the lab itself,
// and its children, which are the database engine. Elsewhere than on Linux it is 0.
func (l *rig) usage() (own, engine time.Duration) {
	own, engine, _ = lab.FamilyTime(l.Up.PID())
	return own, engine
}

func selfCPU() time.Duration {
	used, _ := lab.ProcessorTime(os.Getpid())
	return used
}

// machine describes what the figures were taken on.
func machine() string {
	kernel := "unknown kernel"
	if fields := strings.Fields(figures.FirstLine("/proc/version")); len(fields) > 2 {
		kernel = fields[0] + " " + fields[2]
	}
	processor := ""
	if name := figures.Processor(); name != "unknown" {
		processor = name + ", "
	}
	load := ""
	if fields := strings.Fields(figures.Load()); len(fields) > 1 {
		load = ", load at the start " + fields[0]
	}
	return fmt.Sprintf("%s%d cores, %s, %s%s", processor, runtime.NumCPU(), kernel, runtime.Version(), load)
}
