package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

const smallFile = `name: small
workload: s3
groups: [{site: oregon, clients: 2}]
matrix: {size: [1MB, 100kB, 10kB]}
trials: {repeat: 2}
s3: {buckets: [bucket1], size: 1MB, requests: 5}
`

func TestToken(t *testing.T) {
	r := newRig(t, nil)
	get := func(path, authorization string) *http.Response {
		req := must(http.NewRequestWithContext(t.Context(), "GET", r.url+path, nil))
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	for _, path := range []string{"/healthz", "/openapi.json"} {
		if resp := get(path, ""); resp.StatusCode != 200 {
			t.Errorf("GET %s without a token: %s, want 200", path, resp.Status)
		}
	}
	var document struct{ Paths map[string]map[string]any }
	if err := json.NewDecoder(get("/openapi.json", "").Body).Decode(&document); err != nil {
		t.Fatal(err)
	}
	for path := range document.Paths {
		for method := range document.Paths[path] {
			req := must(http.NewRequestWithContext(t.Context(), strings.ToUpper(method), r.url+strings.NewReplacer("{id}", "latest", "{name}", "x").Replace(path), nil))
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != 401 && resp.StatusCode != 429 {
				t.Errorf("%s %s without a token: %s, want 401", method, path, resp.Status)
			}
		}
	}
	for _, authorization := range []string{"", "Bearer", "Bearer ", "Bearer wrong", "Basic " + testToken, "Bearer " + testToken + "x"} {
		resp := get("/v1/runs", authorization)
		if resp.StatusCode != 401 && resp.StatusCode != 429 {
			t.Errorf("authorization %q: %s, want 401", authorization, resp.Status)
		}
	}
	// Guessing is slowed down, the right token is not.
	limited := false
	for range 40 {
		limited = limited || get("/metrics", "Bearer wrong").StatusCode == 429
	}
	if !limited {
		t.Error("40 wrong tokens in a row were all looked at, want 429 in between")
	}
	if resp := get("/metrics", "Bearer "+testToken); resp.StatusCode != 200 {
		t.Errorf("GET /metrics: %s, want 200", resp.Status)
	}
}

func TestRuns(t *testing.T) {
	r := newRig(t, nil)
	ctx := t.Context()
	_, err := r.client.Submit(ctx, []byte(smallFile), 0)
	if client.Status(err) != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "no service answers") {
		t.Fatalf("submit without a scheduler: %v, want 503", err)
	}
	r.startScheduler()

	v, err := r.client.Validate(ctx, []byte(smallFile), 7)
	if err != nil || v.Trials != 6 || v.Cells != 3 || v.Seed != 7 || len(v.ScheduleHash) != 64 || v.Name != "small" {
		t.Fatalf("validate: %+v, %v", v, err)
	}
	var submitted []schemas.Run
	for range 5 {
		run, err := r.client.Submit(ctx, []byte(smallFile), 7)
		if err != nil {
			t.Fatal(err)
		}
		submitted = append(submitted, run)
	}
	if submitted[0].ScheduleHash != v.ScheduleHash || submitted[0].State != schemas.RunQueued {
		t.Errorf("submitted %+v, want the hash %s", submitted[0], v.ScheduleHash)
	}
	page, err := r.client.Runs(ctx, client.ListOptions{Limit: 3})
	if err != nil || len(page.Runs) != 3 || page.Runs[0].ID != submitted[4].ID || page.Runs[0].File != "" || page.Next == "" {
		t.Fatalf("first page %+v, %v, want the 3 newest", page, err)
	}
	page, err = r.client.Runs(ctx, client.ListOptions{Limit: 3, Before: page.Next, Name: "small", State: schemas.RunQueued})
	if err != nil || len(page.Runs) != 2 || page.Runs[1].ID != submitted[0].ID || page.Next != "" {
		t.Fatalf("second page %+v, %v, want the 2 oldest", page, err)
	}
	if page, err = r.client.Runs(ctx, client.ListOptions{State: schemas.RunDone}); err != nil || len(page.Runs) != 0 {
		t.Errorf("runs that are done: %+v, %v, want none", page, err)
	}

	last := submitted[4]
	for _, reference := range []string{"latest", last.ID.String(), strings.ToUpper(last.ID.String()), last.ID.String()[:35]} {
		run, err := r.client.Run(ctx, reference)
		if err != nil || run.ID != last.ID || run.File != smallFile {
			t.Errorf("run %s: %v, %v", reference, run.ID, err)
		}
	}
	// Ids of version 7 made at about the same time begin alike.
	if _, err := r.client.Run(ctx, last.ID.String()[:6]); client.Status(err) != http.StatusConflict {
		t.Errorf("beginning of several runs: %v, want 409", err)
	}
	for reference, status := range map[string]int{
		"ffffffff": 404, uuid.NewString(): 404, "abc": 422, "../x": 422, "latest2": 422, strings.Repeat("a", 65): 422, "ffffffff-ffff-ffff-ffff-fffffffffff-": 422,
	} {
		if _, err := r.client.Run(ctx, reference); client.Status(err) != status {
			t.Errorf("run %q: %v, want %d", reference, err, status)
		}
	}

	if _, err := r.client.Resume(ctx, "latest"); client.Status(err) != http.StatusConflict {
		t.Errorf("resume a queued run: %v, want 409", err)
	}
	if run, err := r.client.Cancel(ctx, "latest"); err != nil || run.State != schemas.RunCancelled {
		t.Errorf("cancel: %s, %v", run.State, err)
	}
	if run, err := r.client.Resume(ctx, last.ID.String()); err != nil || run.State != schemas.RunQueued {
		t.Errorf("resume: %s, %v", run.State, err)
	}
	if _, err := r.client.Cancel(ctx, uuid.NewString()); client.Status(err) != http.StatusNotFound {
		t.Errorf("cancel a run that is not there: %v, want 404", err)
	}
}

func TestInvalidFiles(t *testing.T) {
	r := newRig(t, nil)
	r.startScheduler()
	for _, submit := range []func(context.Context, []byte, uint64) error{
		func(ctx context.Context, f []byte, seed uint64) error {
			_, err := r.client.Validate(ctx, f, seed)
			return err
		},
		func(ctx context.Context, f []byte, seed uint64) error {
			_, err := r.client.Submit(ctx, f, seed)
			return err
		},
	} {
		err := submit(t.Context(), []byte(strings.Replace(strings.Replace(smallFile, "workload: s3", "workload: s4", 1), "buckets:", "bukets:", 1)), 0)
		var p *api.Problem
		if !errors.As(err, &p) || p.Status != 422 || len(p.Faults) < 2 {
			t.Fatalf("two faults: %v, want 422 with both", err)
		}
		found := false
		for _, f := range p.Faults {
			found = found || f.Line == 6 && f.Column > 0 && f.Path == "s3.bukets" && strings.Contains(f.Text, "buckets")
		}
		if !found {
			t.Errorf("faults %+v, want s3.bukets on line 6 with its cure", p.Faults)
		}
		for name, c := range map[string]struct {
			file   string
			status int
		}{
			"empty":     {"", 400},
			"blank":     {" \n", 422},
			"no YAML":   {"{", 422},
			"brackets":  {strings.Repeat("a: [", 30_000), 422},
			"dashes":    {strings.Repeat("- ", 60_000), 422},
			"too large": {smallFile + "#" + strings.Repeat("x", schemas.MaxExperimentBytes), 422},
			"huge":      {strings.Repeat("x", 4<<20), 413},
			"too many": {strings.NewReplacer("clients: 2", "clients: 10000", "repeat: 2", "repeat: 1000", "requests: 5", "requests: 1000000").
				Replace(smallFile), 422},
		} {
			if err := submit(t.Context(), []byte(c.file), 0); client.Status(err) != c.status {
				t.Errorf("%s: %v, want %d", name, err, c.status)
			}
		}
	}
	for _, query := range []string{"?seed=-1", "?seed=x", "?seed=99999999999999999999", "?sed=1"} {
		if resp := r.request("POST", "/v1/validate"+query, smallFile); resp.StatusCode != 422 {
			t.Errorf("validate%s: %s, want 422", query, resp.Status)
		}
	}
}

func TestEvents(t *testing.T) {
	r := newRig(t, nil)
	r.startScheduler()
	run, err := r.client.Submit(t.Context(), []byte(smallFile), 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 100)
	type outcome struct {
		run schemas.Run
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		ended, err := r.client.Watch(t.Context(), "latest", client.Watcher{
			Run:      func(r schemas.Run) { seen <- "run " + r.State },
			Progress: func(p schemas.RunProgress) { seen <- fmt.Sprintf("progress %d", p.Progress.Done) },
		})
		done <- outcome{ended, err}
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("event %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no event, want %q", want)
		}
	}
	put := func(state string) {
		t.Helper()
		run.State = state
		if _, err := r.runs.Put(t.Context(), run.ID.String(), run); err != nil {
			t.Fatal(err)
		}
	}
	expect("run queued")
	put(schemas.RunRunning)
	expect("run running")
	if err := r.operator.Announce(bus.SubjectProgress(run.ID.String()), &schemas.RunProgress{Run: run.ID, Progress: schemas.Progress{Done: 3}}); err != nil {
		t.Fatal(err)
	}
	expect("progress 3")
	put(schemas.RunDone)
	expect("run done")
	got := <-done
	if got.err != nil || got.run.State != schemas.RunDone || got.run.File != "" {
		t.Errorf("the end: %+v, %v", got.run, got.err)
	}
	// A run that has ended: its state and the end, at once.
	if ended, err := r.client.Watch(t.Context(), run.ID.String(), client.Watcher{}); err != nil || ended.State != schemas.RunDone {
		t.Errorf("a run that has ended: %+v, %v", ended, err)
	}
	resp := r.request("GET", "/v1/runs/latest/events", "")
	body := must(io.ReadAll(resp.Body))
	if resp.Header.Get("Content-Type") != "text/event-stream" || !bytes.HasPrefix(body, []byte("event: run\ndata: {")) || !bytes.Contains(body, []byte("event: end\n")) {
		t.Errorf("stream %s: %.200s", resp.Header.Get("Content-Type"), body)
	}
	if _, err := r.client.Watch(t.Context(), uuid.NewString(), client.Watcher{}); client.Status(err) != 404 {
		t.Errorf("watch a run that is not there: %v, want 404", err)
	}
}

// More streams than allowed are refused, and a stream that is closed makes
// room.
func TestEventsBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Streams = 1 })
	r.startScheduler()
	if _, err := r.client.Submit(t.Context(), []byte(smallFile), 0); err != nil {
		t.Fatal(err)
	}
	first := r.request("GET", "/v1/runs/latest/events", "")
	if first.StatusCode != 200 {
		t.Fatal(first.Status)
	}
	second := r.request("GET", "/v1/runs/latest/events", "")
	if second.StatusCode != 429 || second.Header.Get("Retry-After") == "" {
		t.Fatalf("second stream: %s, want 429 with Retry-After", second.Status)
	}
	_ = first.Body.Close()
	deadline := time.After(10 * time.Second)
	for {
		resp := r.request("GET", "/v1/runs/latest/events", "")
		if resp.StatusCode == 200 {
			return
		}
		select {
		case <-deadline:
			t.Fatal("the closed stream still takes the place")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestSQL(t *testing.T) {
	r := newRig(t, nil)
	ask := func(query, format string) (string, error) {
		var b strings.Builder
		err := r.client.SQL(t.Context(), query, format, &b)
		return b.String(), err
	}
	for _, c := range []struct{ query, format, want string }{
		{"SELECT 1, 'a\tb' FORMAT TSV", "", "1\ta\\tb\n"},
		{"SELECT 1, 'x'", "", "1\tx\n"},
		{"SELECT 1 AS a, 'x' AS b", "CSVWithNames", "\"a\",\"b\"\n1,\"x\"\n"},
		{"SELECT 1 AS a FORMAT JSONEachRow", "CSV", "{\"a\":1}\n"},
		{"SELECT 1 WHERE 0 FORMAT TSV", "", ""},
		{"SELECT currentUser() FORMAT TSV", "", "reader\n"},
		{"SELECT currentDatabase() FORMAT TSV;", "", "transferlab\n"},
		{"SELECT unhex('00ff0a') FORMAT RawBLOB", "", "\x00\xff\n"},
		{"SELECT count() FROM numbers(1000000) SETTINGS max_threads = 1 FORMAT TSV", "", "1000000\n"},
	} {
		got, err := ask(c.query, c.format)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.query, got, err, c.want)
		}
	}
	for _, c := range []struct {
		query, text string
		status      int
	}{
		{"SELEC 1", "SYNTAX_ERROR", 400},
		{"SELECT * FROM nowhere", "UNKNOWN_TABLE", 404},
		{"SELECT nothing FROM events", "UNKNOWN_IDENTIFIER", 400},
		{"INSERT INTO events (trial) VALUES (1)", "", 403},
		{"DROP TABLE events", "", 403},
		{"SELECT * FROM file('/etc/passwd')", "", 403},
		{"SELECT sleep(1) SETTINGS max_execution_time = 1000", "max_execution_time", 403},
		{"SELECT count() FROM numbers(1e12) WHERE NOT ignore(sipHash64(number)) SETTINGS max_execution_time = 1", "", 408},
		{"", "body is required", 400},
		{"  ", "no query", 422},
		{"SELECT '" + strings.Repeat("x", maxQuery) + "'", "", 413},
		{strings.Repeat("x", 4<<20), "", 413},
		{"SELECT 1 FORMAT Nonsense", "", 400},
	} {
		got, err := ask(c.query, "")
		if client.Status(err) != c.status || got != "" || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%.80s: %q, %v, want %d with %q", c.query, got, err, c.status, c.text)
		}
	}
	if resp := r.request("POST", "/v1/sql?format=a%20b", "SELECT 1"); resp.StatusCode != 422 {
		t.Errorf("a format that is none: %s, want 422", resp.Status)
	}
	if resp := r.request("POST", "/v1/sql", "SELECT 1 FORMAT JSON"); resp.Header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("media type of JSON: %s", resp.Header.Get("Content-Type"))
	}
}

// An answer that fails in the middle must not look whole.
func TestSQLFailsInTheMiddle(t *testing.T) {
	r := newRig(t, nil)
	var b bytes.Buffer
	err := r.client.SQL(t.Context(), "SELECT number, throwIf(number = 3000000) FROM numbers(10000000) SETTINGS max_block_size = 1000, max_threads = 1 FORMAT TSV", "", &b)
	if err == nil || b.Len() == 0 || bytes.Contains(b.Bytes(), []byte("exception")) {
		t.Errorf("%d bytes and error %v, want some rows, then an error", b.Len(), err)
	}
}

// Large answers stream: neither the gateway nor the client holds them.
func TestSQLStreams(t *testing.T) {
	r := newRig(t, nil)
	resp := r.request("POST", "/v1/sql", "SELECT number FROM numbers(5000000) FORMAT RowBinary")
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != 40_000_000 {
		t.Errorf("%d bytes, %v, want 40000000", n, err)
	}
}

func TestBusy(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Heavy = 1 })
	release, err := r.gateway.take(r.gateway.heavy, "x")
	if err != nil {
		t.Fatal(err)
	}
	if resp := r.request("POST", "/v1/sql", "SELECT 1"); resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("while busy: %s, want 429 with Retry-After", resp.Status)
	}
	release()
	for range 3 {
		if resp := r.request("POST", "/v1/sql", "SELECT 1"); resp.StatusCode != 200 {
			t.Errorf("afterwards: %s", resp.Status)
		} else if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
	}
}

func TestRate(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Rate = 1 })
	statuses := map[int]int{}
	for range 20 {
		statuses[r.request("GET", "/v1/runs", "").StatusCode]++
	}
	if statuses[200] == 0 || statuses[429] == 0 {
		t.Errorf("statuses %v, want some 200 and some 429", statuses)
	}
}

func TestExport(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: madeFile, requests: 20})
	export := func(o client.ExportOptions) ([]byte, error) {
		var b bytes.Buffer
		err := r.client.Export(t.Context(), x.run.ID.String(), o, &b)
		return b.Bytes(), err
	}
	all := len(x.requests) + 24 + 12
	lines := func(data []byte) int { return bytes.Count(data, []byte("\n")) }
	if got, err := export(client.ExportOptions{}); err != nil || lines(got) != all+1 || !bytes.HasPrefix(got, []byte(`"ts","run"`)) {
		t.Errorf("csv: %d lines, %v, want a header and %d: %.80s", lines(got), err, all, got)
	}
	if got, err := export(client.ExportOptions{Format: "ndjson", Kinds: []string{"request"}}); err != nil || lines(got) != len(x.requests) {
		t.Errorf("requests as ndjson: %d lines, %v, want %d", lines(got), err, len(x.requests))
	}
	var rows []struct {
		Kind     string            `json:"kind"`
		Duration uint64            `json:"duration_ns"`
		Attrs    map[string]string `json:"attrs"`
	}
	got, err := export(client.ExportOptions{Format: "json", Kinds: []string{"trial", "task", "trial"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(got, &rows); err != nil || len(rows) != 36 || rows[0].Duration == 0 {
		t.Errorf("tasks and trials as json: %d rows, %v, want 36", len(rows), err)
	}
	if got, err := export(client.ExportOptions{Format: "parquet"}); err != nil || !bytes.HasPrefix(got, []byte("PAR1")) || !bytes.HasSuffix(got, []byte("PAR1")) {
		t.Errorf("parquet: %.8q, %v", got, err)
	}
	if got, err := export(client.ExportOptions{Format: "arrow"}); err != nil || !bytes.HasPrefix(got, []byte("ARROW1")) {
		t.Errorf("arrow: %.8q, %v", got, err)
	}
	for _, view := range []string{"s3_requests", "s3_metrics_1m", "s3_metrics_1s"} {
		if got, err := export(client.ExportOptions{Format: "tsv", View: view}); err != nil || lines(got) < 2 {
			t.Errorf("%s: %d lines, %v", view, lines(got), err)
		}
	}
	for _, query := range []string{"format=xls", "kind=a%27b", "kind=Request", "view=system.users", "view=s3_requests&kind=request", "k=1"} {
		if resp := r.request("GET", "/v1/runs/latest/export?"+query, ""); resp.StatusCode != 422 {
			t.Errorf("export?%s: %s, want 422", query, resp.Status)
		}
	}
	resp := r.request("GET", "/v1/runs/latest/export", "")
	if want := fmt.Sprintf(`attachment; filename="made-%s.csv"`, x.run.ID); resp.Header.Get("Content-Disposition") != want {
		t.Errorf("file name %s, want %s", resp.Header.Get("Content-Disposition"), want)
	}
}

func TestSchedules(t *testing.T) {
	r := newRig(t, nil)
	s := r.startScheduler()
	ctx := t.Context()
	want := schemas.Recurring{Name: "nightly", Cron: "0 3 * * *", Zone: "Europe/Berlin", File: smallFile, Seed: 9}
	if got, err := r.client.PutSchedule(ctx, want); err != nil || got != want {
		t.Fatalf("put: %+v, %v", got, err)
	}
	if all, err := r.client.Schedules(ctx); err != nil || len(all) != 1 || all[0] != want {
		t.Errorf("list: %+v, %v", all, err)
	}
	for name, change := range map[string]func(*schemas.Recurring){
		"cron":       func(r *schemas.Recurring) { r.Cron = "nonsense" },
		"empty cron": func(r *schemas.Recurring) { r.Cron = " " },
		"zone":       func(r *schemas.Recurring) { r.Zone = "Mars/Olympus" },
		"name":       func(r *schemas.Recurring) { r.Name = "A B" },
		"file":       func(r *schemas.Recurring) { r.File = "name: x" },
	} {
		bad := want
		change(&bad)
		if _, err := r.client.PutSchedule(ctx, bad); client.Status(err) != 422 {
			t.Errorf("bad %s: %v, want 422", name, err)
		}
	}
	if err := r.client.DeleteSchedule(ctx, "nightly"); err != nil {
		t.Error(err)
	}
	if err := r.client.DeleteSchedule(ctx, "nightly"); client.Status(err) != 404 {
		t.Errorf("delete again: %v, want 404", err)
	}
	if all, err := r.client.Schedules(ctx); err != nil || len(all) != 0 {
		t.Errorf("list after the end: %+v, %v", all, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asked) != 3 {
		t.Errorf("the scheduler was asked %v, want a put, a refused put and a delete", s.asked)
	}
}

func TestStatus(t *testing.T) {
	r := newRig(t, nil)
	r.startScheduler()
	x := r.make(making{file: madeFile, requests: 5})
	agents := must(bus.OpenBucket[schemas.Agent](t.Context(), r.operator, bus.BucketAgents))
	for _, name := range []string{"b-1", "a-1"} {
		if _, err := agents.Put(t.Context(), name, schemas.Agent{Name: name, Start: "s", Service: "s3-loader", Site: "oregon", Version: "0.1.0", CPUs: 2}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := r.client.Agents(t.Context())
	if err != nil || len(list) != 2 || list[0].Name != "a-1" {
		t.Errorf("agents %+v, %v", list, err)
	}
	if err := r.operator.PublishBatch(t.Context(), "s3-loader", "1", bus.FormatNative, []byte("x")); err != nil {
		t.Fatal(err)
	}
	// The collector's own note of how far it is: one batch behind.
	stream := must(r.operator.EventStream(t.Context()))
	note := must(bus.OpenBucket[position](t.Context(), r.operator, bus.BucketCollector))
	if _, err := note.Put(t.Context(), "events", position{Created: stream.Created, Done: stream.Last - 1}); err != nil {
		t.Fatal(err)
	}
	s, err := r.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	services := map[string]string{}
	for _, service := range s.Services {
		services[service.Name] = service.Error
	}
	if len(services) != 4 || services["scheduler"] != "" || services["gateway"] != "" || services["collector"] == "" || services["s3-loader"] == "" || s.Healthy {
		t.Errorf("services %v, healthy %v; want scheduler and gateway only", services, s.Healthy)
	}
	if s.Events.Lag == nil || *s.Events.Lag != 1 {
		t.Errorf("lag %v, want 1", s.Events.Lag)
	}
	if s.Events.Batches != 1 || s.Events.MaxBytes == 0 || s.Events.Error != "" {
		t.Errorf("events %+v", s.Events)
	}
	if s.ClickHouse.Version == "" || s.ClickHouse.Events < uint64(len(x.requests)) || s.ClickHouse.Error != "" {
		t.Errorf("ClickHouse %+v", s.ClickHouse)
	}
	if s.Runs[schemas.RunDone] != 1 || len(s.Agents) != 2 {
		t.Errorf("runs %v, agents %v", s.Runs, s.Agents)
	}
	integrity, err := r.client.Integrity(t.Context(), x.states[fmt.Sprintf("task.%s.0.1.oregon-1", x.run.ID)].Result.Producer)
	if err != nil || len(integrity) != 1 || integrity[0].Received != 12*6 || integrity[0].Lost != 0 || integrity[0].Duplicated != 0 {
		t.Errorf("integrity %+v, %v", integrity, err)
	}
	if integrity, err = r.client.Integrity(t.Context(), "nobody'"); err != nil || len(integrity) != 0 {
		t.Errorf("integrity of nobody: %+v, %v", integrity, err)
	}
}

func TestMetricsAndHealth(t *testing.T) {
	r := newRig(t, nil)
	_ = r.request("GET", "/v1/runs", "")
	_ = r.request("GET", "/v1/runs/zz", "")
	body := string(must(io.ReadAll(r.request("GET", "/metrics", "").Body)))
	for _, want := range []string{
		`transferlab_http_requests_total{code="200",operation="list-runs",service="gateway"} 1`,
		`transferlab_http_requests_total{code="422",operation="get-run",service="gateway"} 1`,
		`transferlab_http_request_seconds_count{operation="list-runs",service="gateway"} 1`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	resp := r.request("GET", "/healthz", "")
	if body := must(io.ReadAll(resp.Body)); resp.StatusCode != 200 || !strings.Contains(string(body), `"gateway":"ok"`) {
		t.Errorf("health: %s %s", resp.Status, body)
	}
	if resp := r.request("GET", "/nowhere", ""); resp.StatusCode != 404 || resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("a path that is not there: %s", resp.Status)
	}
	if resp := r.request("PUT", "/v1/runs", ""); resp.StatusCode != 405 && resp.StatusCode != 404 {
		t.Errorf("a method that is not there: %s", resp.Status)
	}
}

func TestOpenAPI(t *testing.T) {
	r := newRig(t, nil)
	var document struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]struct {
			OperationID string `json:"operationId"`
			Summary     string `json:"summary"`
		} `json:"paths"`
	}
	if err := json.NewDecoder(r.request("GET", "/openapi.json", "").Body).Decode(&document); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(document.OpenAPI, "3.1") {
		t.Errorf("version %s", document.OpenAPI)
	}
	for _, want := range []string{
		"post /v1/validate", "post /v1/runs", "get /v1/runs", "get /v1/runs/{id}", "post /v1/runs/{id}/cancel", "post /v1/runs/{id}/resume",
		"get /v1/runs/{id}/events", "get /v1/runs/{id}/report", "get /v1/compare", "get /v1/runs/{id}/export", "post /v1/sql", "get /v1/agents",
		"get /v1/runs/{id}/export/source/{file}",
		"get /v1/status", "get /v1/schedules", "put /v1/schedules/{name}", "delete /v1/schedules/{name}", "get /v1/integrity",
	} {
		method, path, _ := strings.Cut(want, " ")
		if document.Paths[path][method].Summary == "" {
			t.Errorf("the document lacks %s", want)
		}
	}
}

// What is left of a body that was not read must not be taken for a request.
func TestUnreadBody(t *testing.T) {
	r := newRig(t, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	hidden := "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	body := strings.Repeat("x", 2*maxQuery) + hidden
	go func() {
		_, _ = fmt.Fprintf(conn, "POST /v1/sql HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", testToken, len(body), body)
	}()
	reply, _ := io.ReadAll(conn)
	if n := strings.Count(string(reply), "HTTP/1.1 "); n != 1 || !strings.HasPrefix(string(reply), "HTTP/1.1 413") {
		t.Errorf("%d answers: %.300q, want one 413", n, reply)
	}
}

// A body that comes in pieces: the read deadline of one must not stay.
func TestBodyInPieces(t *testing.T) {
	r := newRig(t, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "POST /v1/sql HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 8\r\n\r\nSELE", testToken)
	_, _ = fmt.Fprint(conn, "CT 7")
	reply := make([]byte, 4096)
	n, err := conn.Read(reply)
	if err != nil || !strings.HasPrefix(string(reply[:n]), "HTTP/1.1 200") {
		t.Errorf("%q, %v", reply[:n], err)
	}
}

func TestConfigValidate(t *testing.T) {
	good := DefaultConfig()
	good.Token, good.ClickHouse = "x", "clickhouse://reader:secret@127.0.0.1:9000/transferlab"
	if err := good.Validate(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no token":        {func(c *Config) { c.Token = "" }, "TRANSFERLAB_TOKEN"},
		"short token":     {func(c *Config) { c.Listen, c.Token = "0.0.0.0:8080", "short" }, "at least 20"},
		"any host":        {func(c *Config) { c.Listen, c.Token = ":8080", "short" }, "at least 20"},
		"host name":       {func(c *Config) { c.Listen, c.Token = "lab.example:8080", "short" }, "at least 20"},
		"address":         {func(c *Config) { c.Listen = "8080" }, "--listen"},
		"no database":     {func(c *Config) { c.ClickHouse = "" }, "--clickhouse-reader"},
		"bad database":    {func(c *Config) { c.ClickHouse = "ftp://x:secret@y" }, "scheme"},
		"bad writer":      {func(c *Config) { c.ClickHouseWriter = "ftp://x" }, "--clickhouse:"},
		"settle":          {func(c *Config) { c.Settle = -1 }, "--settle"},
		"heavy":           {func(c *Config) { c.Heavy = 0 }, "--heavy"},
		"streams":         {func(c *Config) { c.Streams = 0 }, "--streams"},
		"rate":            {func(c *Config) { c.Rate = 0 }, "--rate"},
		"several at once": {func(c *Config) { c.Rate, c.Heavy = 0, 0 }, "--heavy"},
	} {
		bad := good
		c.change(&bad)
		err := bad.Validate()
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestIndexSurvivesDeletion(t *testing.T) {
	r := newRig(t, nil)
	x := r.make(making{file: madeFile, requests: 1})
	if err := r.runs.Delete(t.Context(), x.run.ID.String()); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(10 * time.Second)
	for {
		page, err := r.client.Runs(t.Context(), client.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Runs) == 0 {
			break
		}
		select {
		case <-deadline:
			t.Fatal("the deleted run is still listed")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Without its database a gateway serves what it can and says what is wrong.
func TestWithoutDatabase(t *testing.T) {
	closed := must(net.Listen("tcp", "127.0.0.1:0"))
	address := closed.Addr().String()
	_ = closed.Close()
	r := newRig(t, func(c *Config) {
		c.ClickHouse = "clickhouse://reader:secret-word@" + address + "/transferlab?http_url=http://" + address
	})
	if page, err := r.client.Runs(t.Context(), client.ListOptions{}); err != nil || len(page.Runs) != 0 {
		t.Errorf("runs: %+v, %v", page, err)
	}
	var b strings.Builder
	if err := r.client.SQL(t.Context(), "SELECT 1", "", &b); client.Status(err) != 503 || strings.Contains(err.Error(), "secret-word") {
		t.Errorf("SQL: %v, want 503", err)
	}
	if _, err := r.client.Report(t.Context(), "latest"); client.Status(err) != 503 {
		t.Errorf("report: %v, want 503", err)
	}
	if s, err := r.client.Status(t.Context()); err != nil || s.Healthy || s.ClickHouse.Error == "" {
		t.Errorf("status: %+v, %v", s, err)
	}
	if resp := r.request("GET", "/healthz", ""); resp.StatusCode != 503 {
		t.Errorf("health: %s, want 503", resp.Status)
	}
}

// What time cannot cure ends the gateway with the reason.
func TestWrongPassword(t *testing.T) {
	r := newRig(t, nil)
	cfg := r.gateway.cfg
	cfg.ClickHouse = strings.Replace(cfg.ClickHouse, chtest.ReaderPassword, "another-one", 1)
	n := must(node.New(node.Service{Name: "gateway", Short: "test"}, "0.1.0", bustest.Join(t, r.nats, bus.RoleGateway), prometheus.NewRegistry(), r.gateway.log))
	err := New(cfg, n).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "AUTHENTICATION_FAILED") && !strings.Contains(err.Error(), "516") || strings.Contains(err.Error(), "another-one") {
		t.Errorf("%v, want authentication failed", err)
	}
	cfg.Token = ""
	if err := New(cfg, must(node.New(node.Service{Name: "gateway", Short: "test"}, "0.1.0", bustest.Join(t, r.nats, bus.RoleGateway), prometheus.NewRegistry(), r.gateway.log))).Run(t.Context()); err == nil {
		t.Error("a configuration without a token is taken")
	}
}
