// Package client speaks to the gateway's HTTP API.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/internal/report"
)

// Client is a gateway seen from outside. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// New returns a client of the gateway at a URL such as http://127.0.0.1:8080.
// It connects at the first call.
func New(address, token string) (*Client, error) {
	base, err := url.Parse(address)
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" || base.User != nil {
		return nil, fmt.Errorf("address of the lab: %q, want http://host:port or https://host:port", address)
	}
	if token == "" {
		return nil, errors.New("no token for the lab at " + base.Host + ": set TRANSFERLAB_TOKEN")
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	transport := &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		// Reports wait for events, streams are quiet for long: calls are bounded
		// by their context.
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4,
	}
	return &Client{base: base, token: token, http: &http.Client{
		Transport: transport,
		// The token must not follow a redirect elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// URL is where the gateway is.
func (c *Client) URL() string { return c.base.String() }

// do sends a request and returns the answer, or the *api.Problem in it.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, contentType string, body io.Reader) (*http.Response, error) {
	u := *c.base
	u.Path += path
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, fmt.Errorf("lab at %s: %w", c.base.Host, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, readProblem(resp)
}

// readProblem always returns a *api.Problem.
func readProblem(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	p := &api.Problem{}
	if json.Unmarshal(text, p) != nil || p.Status == 0 {
		p = &api.Problem{Title: http.StatusText(resp.StatusCode), Detail: strings.TrimSpace(string(text[:min(len(text), 512)]))}
	}
	p.Status = resp.StatusCode
	return p
}

// Status is the HTTP status of the problem in err, or 0.
func Status(err error) int {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Status
	}
	return 0
}

// maxDocument bounds what is read of a JSON answer.
const maxDocument = 256 << 20

func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, contentType string, body io.Reader) (T, error) {
	var v T
	resp, err := c.do(ctx, method, path, query, contentType, body)
	if err != nil {
		return v, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxDocument)).Decode(&v); err != nil {
		return v, fmt.Errorf("answer of the lab to %s %s: %w", method, path, err)
	}
	return v, nil
}

func (c *Client) stream(ctx context.Context, method, path string, query url.Values, body io.Reader, w io.Writer) error {
	contentType := ""
	if body != nil {
		contentType = "text/plain"
	}
	resp, err := c.do(ctx, method, path, query, contentType, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(w, resp.Body); err != nil {
		if ctx.Err() == nil && errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the lab broke off its answer in the middle: what came is not complete (its log says why): %w", err)
		}
		return fmt.Errorf("answer of the lab to %s %s: %w", method, path, err)
	}
	return nil
}

const yaml = "application/yaml"

func seeded(seed uint64) url.Values {
	q := url.Values{}
	if seed != 0 {
		q.Set("seed", strconv.FormatUint(seed, 10))
	}
	return q
}

func runPath(run, rest string) string { return "/v1/runs/" + url.PathEscape(run) + rest }

// Validate says what an experiment file would do; seed 0 takes the file's. A
// file with faults is an *api.Problem with Faults.
func (c *Client) Validate(ctx context.Context, file []byte, seed uint64) (api.Validation, error) {
	return call[api.Validation](ctx, c, http.MethodPost, "/v1/validate", seeded(seed), yaml, bytes.NewReader(file))
}

// Submit starts a run; seed 0 takes the file's.
func (c *Client) Submit(ctx context.Context, file []byte, seed uint64) (schemas.Run, error) {
	return call[schemas.Run](ctx, c, http.MethodPost, "/v1/runs", seeded(seed), yaml, bytes.NewReader(file))
}

// ListOptions choose runs; zero values choose all.
type ListOptions struct {
	Limit  int    // 1 to 1000; 0 is 50
	Before string // field Next of the page before
	Name   string
	State  string
}

// Runs lists runs, newest first, without their files.
func (c *Client) Runs(ctx context.Context, o ListOptions) (api.Runs, error) {
	q := url.Values{}
	if o.Limit > 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	for k, v := range map[string]string{"before": o.Before, "name": o.Name, "state": o.State} {
		if v != "" {
			q.Set(k, v)
		}
	}
	return call[api.Runs](ctx, c, http.MethodGet, "/v1/runs", q, "", nil)
}

// Run returns one run; run is an id, the unique beginning of one, or `latest`,
// here and below.
func (c *Client) Run(ctx context.Context, run string) (schemas.Run, error) {
	return call[schemas.Run](ctx, c, http.MethodGet, runPath(run, ""), nil, "", nil)
}

// Cancel ends a run.
func (c *Client) Cancel(ctx context.Context, run string) (schemas.Run, error) {
	return call[schemas.Run](ctx, c, http.MethodPost, runPath(run, "/cancel"), nil, "", nil)
}

// Resume goes on with a run that failed or was cancelled.
func (c *Client) Resume(ctx context.Context, run string) (schemas.Run, error) {
	return call[schemas.Run](ctx, c, http.MethodPost, runPath(run, "/resume"), nil, "", nil)
}

// Watcher is told what happens to a run; either function may be nil.
type Watcher struct {
	Run      func(schemas.Run)
	Progress func(schemas.RunProgress)
}

// Watch follows a run until it has ended and returns it. It connects again
// when the connection breaks, as long as ctx lasts.
func (c *Client) Watch(ctx context.Context, run string, w Watcher) (schemas.Run, error) {
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		ended, heard, err := c.watchOnce(ctx, run, w)
		if ended != nil {
			return *ended, nil
		}
		// What the gateway refuses it will refuse again; a gateway that is away
		// or busy will be back.
		if status := Status(err); status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			return schemas.Run{}, err
		}
		if heard {
			wait = 250 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return schemas.Run{}, fmt.Errorf("watch run %s: %w", run, errors.Join(ctx.Err(), err))
		case <-time.After(wait):
		}
	}
}

// silence is how long a stream may be quiet: three heartbeats.
const silence = 30 * time.Second

func (c *Client) watchOnce(ctx context.Context, run string, w Watcher) (ended *schemas.Run, heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	resp, err := c.do(ctx, http.MethodGet, runPath(run, "/events"), nil, "", nil)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = resp.Body.Close() }()
	err = readEvents(resp.Body, func() { heard = true; quiet.Reset(silence) }, func(event string, data []byte) error {
		switch event {
		case api.EventRun:
			var r schemas.Run
			if err := json.Unmarshal(data, &r); err != nil {
				return fmt.Errorf("event %s: %w", event, err)
			}
			if w.Run != nil {
				w.Run(r)
			}
		case api.EventProgress:
			var p schemas.RunProgress
			if err := json.Unmarshal(data, &p); err != nil {
				return fmt.Errorf("event %s: %w", event, err)
			}
			if w.Progress != nil {
				w.Progress(p)
			}
		case api.EventEnd:
			var r schemas.Run
			if err := json.Unmarshal(data, &r); err != nil {
				return fmt.Errorf("event %s: %w", event, err)
			}
			ended = &r
			return io.EOF
		}
		return nil
	})
	return ended, heard, err
}

// maxEvent is the largest event, in bytes.
const maxEvent = 8 << 20

// readEvents reads server-sent events until the stream ends or handle fails.
func readEvents(r io.Reader, alive func(), handle func(event string, data []byte) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxEvent)
	event := ""
	var data []byte
	for lines.Scan() {
		alive()
		line := lines.Bytes()
		if len(line) == 0 {
			if data != nil {
				if err := handle(event, data); err != nil {
					return err
				}
			}
			event, data = "", nil
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "event":
			event = string(value)
		case "data":
			if data != nil {
				data = append(data, '\n')
			}
			if len(data)+len(value) > maxEvent {
				return fmt.Errorf("event of more than %d bytes", maxEvent)
			}
			data = append(data, value...)
			if data == nil {
				data = []byte{}
			}
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// Report returns a run's report. Of a run that has ended it waits for the last
// events.
func (c *Client) Report(ctx context.Context, run string) (*report.Report, error) {
	r, err := call[report.Report](ctx, c, http.MethodGet, runPath(run, "/report"), nil, "", nil)
	return &r, err
}

// WriteReport writes a run's report as the gateway renders it: json, csv or
// table.
func (c *Client) WriteReport(ctx context.Context, run, format string, w io.Writer) error {
	return c.stream(ctx, http.MethodGet, runPath(run, "/report"), url.Values{"format": {format}}, nil, w)
}

// CompareOptions of a comparison; zero values take the gateway's.
type CompareOptions struct {
	MinEffect float64
	Alpha     float64
}

func (o CompareOptions) query(a, b string) url.Values {
	q := url.Values{"a": {a}, "b": {b}}
	if o.MinEffect > 0 {
		q.Set("min_effect", strconv.FormatFloat(o.MinEffect, 'g', -1, 64))
	}
	if o.Alpha > 0 {
		q.Set("alpha", strconv.FormatFloat(o.Alpha, 'g', -1, 64))
	}
	return q
}

// Compare judges run b by run a.
func (c *Client) Compare(ctx context.Context, a, b string, o CompareOptions) (*report.Comparison, error) {
	r, err := call[report.Comparison](ctx, c, http.MethodGet, "/v1/compare", o.query(a, b), "", nil)
	return &r, err
}

// ExportOptions choose what of a run is exported.
type ExportOptions struct {
	Format string   // csv, tsv, json, ndjson, parquet, arrow, native; csv if empty
	Kinds  []string // of events; all if empty
	View   string   // a table or view; if empty swarm_transfers of a swarm run of which no kinds are asked for, else events
}

// Export writes the rows of a run. After an error what was written is not
// complete.
func (c *Client) Export(ctx context.Context, run string, o ExportOptions, w io.Writer) error {
	q := url.Values{"kind": o.Kinds}
	if o.Format != "" {
		q.Set("format", o.Format)
	}
	if o.View != "" {
		q.Set("view", o.View)
	}
	return c.stream(ctx, http.MethodGet, runPath(run, "/export"), q, nil, w)
}

// ExportSource writes one of [api.SourceFiles] of a swarm run that has ended. After
// an error what was written is not complete.
func (c *Client) ExportSource(ctx context.Context, run, file string, w io.Writer) error {
	return c.stream(ctx, http.MethodGet, runPath(run, "/export/source/"+url.PathEscape(file)), nil, nil, w)
}

// SQL writes exactly what ClickHouse answers to a query; format is used where
// the query names none and may be empty.
func (c *Client) SQL(ctx context.Context, query, format string, w io.Writer) error {
	q := url.Values{}
	if format != "" {
		q.Set("format", format)
	}
	return c.stream(ctx, http.MethodPost, "/v1/sql", q, strings.NewReader(query), w)
}

// Agents lists the agents that are present.
func (c *Client) Agents(ctx context.Context) ([]schemas.Agent, error) {
	return call[[]schemas.Agent](ctx, c, http.MethodGet, "/v1/agents", nil, "", nil)
}

// Status says how the lab is.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	return call[api.Status](ctx, c, http.MethodGet, "/v1/status", nil, "", nil)
}

// Integrity counts events lost and duplicated by producer; producer "" is all.
func (c *Client) Integrity(ctx context.Context, producer string) ([]api.Integrity, error) {
	q := url.Values{}
	if producer != "" {
		q.Set("producer", producer)
	}
	return call[[]api.Integrity](ctx, c, http.MethodGet, "/v1/integrity", q, "", nil)
}

// Schedules lists recurring experiments.
func (c *Client) Schedules(ctx context.Context) ([]schemas.Recurring, error) {
	return call[[]schemas.Recurring](ctx, c, http.MethodGet, "/v1/schedules", nil, "", nil)
}

// PutSchedule lets an experiment recur.
func (c *Client) PutSchedule(ctx context.Context, r schemas.Recurring) (schemas.Recurring, error) {
	q := seeded(r.Seed)
	q.Set("cron", r.Cron)
	if r.Zone != "" {
		q.Set("zone", r.Zone)
	}
	return call[schemas.Recurring](ctx, c, http.MethodPut, "/v1/schedules/"+url.PathEscape(r.Name), q, yaml, strings.NewReader(r.File))
}

// DeleteSchedule lets an experiment recur no more.
func (c *Client) DeleteSchedule(ctx context.Context, name string) error {
	resp, err := c.do(ctx, http.MethodDelete, "/v1/schedules/"+url.PathEscape(name), nil, "", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// ImportCloudWatch imports S3 request metrics beside the lab's own series.
func (c *Client) ImportCloudWatch(ctx context.Context, q api.CloudWatchImport) (api.CloudWatchImported, error) {
	return post[api.CloudWatchImported](ctx, c, "/v1/import/cloudwatch", q)
}

// ExportDynamoDB writes a run's 1-minute series to a DynamoDB table.
func (c *Client) ExportDynamoDB(ctx context.Context, run string, q api.DynamoDBExport) (api.DynamoDBExported, error) {
	return post[api.DynamoDBExported](ctx, c, runPath(run, "/export/dynamodb"), q)
}

func post[T any](ctx context.Context, c *Client, path string, body any) (T, error) {
	data, err := json.Marshal(body)
	if err != nil {
		var none T
		return none, fmt.Errorf("encode request: %w", err)
	}
	return call[T](ctx, c, http.MethodPost, path, nil, "application/json", bytes.NewReader(data))
}

// Edges lists the accounts of edges.
func (c *Client) Edges(ctx context.Context) ([]api.Edge, error) {
	return call[[]api.Edge](ctx, c, http.MethodGet, "/v1/edges", nil, "", nil)
}

// AddEdge makes an account for an edge; its token is in the answer and nowhere
// else.
func (c *Client) AddEdge(ctx context.Context, name string) (api.EdgeToken, error) {
	return post[api.EdgeToken](ctx, c, "/v1/edges", api.EdgeName{Name: name})
}

// RevokeEdge ends an edge's account.
func (c *Client) RevokeEdge(ctx context.Context, name string) error {
	resp, err := c.do(ctx, http.MethodDelete, "/v1/edges/"+url.PathEscape(name), nil, "", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Detections is what was seen in a clip.
func (c *Client) Detections(ctx context.Context, clip string) (schemas.Detections, error) {
	return call[schemas.Detections](ctx, c, http.MethodGet, "/v1/clips/"+url.PathEscape(clip)+"/result", nil, "", nil)
}
