package drive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Labels of containers.
const (
	labelOwner  = "io.transferlab.autoscaler"
	labelWorker = "io.transferlab.worker"
)

// DockerConfig says how workers are started as containers.
type DockerConfig struct {
	Owner   string // marks the containers
	Socket  string // of the engine, an absolute path
	Image   string
	Command []string          // the image's own if empty
	Env     map[string]string // of the workers, beside their name
	Network string            // the engine's default if empty
	Grace   time.Duration
	Log     *slog.Logger
}

// Validate reports every fault.
func (c *DockerConfig) Validate() error {
	var errs []error
	if !ownerName(c.Owner) {
		errs = append(errs, fmt.Errorf("--owner: %q, want lower-case letters, digits, hyphens and underscores, at most 31", c.Owner))
	}
	if !strings.HasPrefix(c.Socket, "/") {
		errs = append(errs, fmt.Errorf("--docker-socket: %q, want the absolute path of the engine's socket", c.Socket))
	}
	if c.Image == "" {
		errs = append(errs, errors.New("--image: empty, want the image of a worker"))
	}
	if c.Grace < 0 || c.Grace > time.Hour {
		errs = append(errs, fmt.Errorf("--stop-grace: %s, want 0 to 1h", c.Grace))
	}
	return errors.Join(errs...)
}

// Docker runs workers as containers, over the Engine API at its unix socket. The
// five calls that takes are made here: the engine's own client library would bring
// thirteen modules.
type Docker struct {
	c      DockerConfig
	client *http.Client
	base   string
}

// Bounds of what the engine answers and of how long it may take.
const (
	maxEngineAnswer = 16 << 20
	enginePatience  = time.Minute
	// newestAPI is the newest version that this was written against.
	newestAPI = "1.45"
)

// OpenDocker agrees with the engine on a version.
func OpenDocker(ctx context.Context, c DockerConfig) (*Docker, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
		},
		MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
	}
	d := &Docker{c: c, client: &http.Client{Transport: transport}, base: "http://docker"}
	ctx, cancel := context.WithTimeout(ctx, enginePatience)
	defer cancel()
	header, err := d.call(ctx, http.MethodGet, "/_ping", nil, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("reach the Docker engine at %s: %w", c.Socket, err)
	}
	version := header.Get("Api-Version")
	if !regexp.MustCompile(`^1\.[0-9]{1,3}$`).MatchString(version) {
		return nil, fmt.Errorf("the Docker engine at %s offers API version %.32q, want 1.N", c.Socket, version)
	}
	if minor(version) > minor(newestAPI) {
		version = newestAPI
	}
	d.base += "/v" + version
	return d, nil
}

func minor(version string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(version, "1."))
	if err != nil {
		return 0
	}
	return n
}

// engineError is what the engine refused.
type engineError struct {
	status  int
	message string
}

func (e *engineError) Error() string { return fmt.Sprintf("%s (HTTP %d)", e.message, e.status) }

// call makes one call; in and out are JSON if not nil.
func (d *Docker) call(ctx context.Context, method, path string, query url.Values, in, out any) (http.Header, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
		body = bytes.NewReader(data)
	}
	target := d.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := d.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxEngineAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the engine's answer: %w", err)
	}
	if len(data) > maxEngineAnswer {
		return nil, fmt.Errorf("the engine's answer is longer than %d bytes", maxEngineAnswer)
	}
	if answer.StatusCode >= 400 {
		return nil, &engineError{answer.StatusCode, engineMessage(data)}
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			return nil, fmt.Errorf("the engine's answer: %w", err)
		}
	}
	return answer.Header, nil
}

func engineMessage(data []byte) string {
	var said struct{ Message string }
	if json.Unmarshal(data, &said) != nil || said.Message == "" {
		said.Message = fmt.Sprintf("%.200q", data)
	}
	return said.Message[:min(len(said.Message), 1000)]
}

type container struct {
	ID      string `json:"Id"`
	Created int64
	State   string
	Labels  map[string]string
}

func (d *Docker) containers(ctx context.Context) ([]container, error) {
	filters, err := json.Marshal(map[string][]string{"label": {labelOwner + "=" + d.c.Owner}})
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	var all []container
	if _, err := d.call(ctx, http.MethodGet, "/containers/json", url.Values{"all": {"true"}, "filters": {string(filters)}}, nil, &all); err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return all, nil
}

// List returns the containers that are there; those that have ended are removed.
func (d *Docker) List(ctx context.Context) ([]Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, enginePatience)
	defer cancel()
	all, err := d.containers(ctx)
	if err != nil {
		return nil, err
	}
	instances := make([]Instance, 0, len(all))
	for _, c := range all {
		switch c.State {
		case "exited", "dead":
			if err := d.remove(ctx, c.ID); err != nil {
				d.c.Log.Warn("remove container", "container", c.ID, "error", err)
			}
		case "removing":
		default:
			instances = append(instances, Instance{ID: c.ID, Worker: c.Labels[labelWorker], Started: time.Unix(c.Created, 0)})
		}
	}
	return instances, nil
}

// atATime is how many containers are started side by side.
const atATime = 4

// Start creates and starts n containers; with an error some of them may be there.
func (d *Docker) Start(ctx context.Context, n int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atATime)
	for range min(n, MaxStart) {
		group.Go(func() error { return d.start(ctx) })
	}
	return group.Wait()
}

func (d *Docker) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enginePatience)
	defer cancel()
	name := workerName(d.c.Owner)
	env := []string{EnvWorker + "=" + name}
	for k, v := range d.c.Env {
		env = append(env, k+"="+v)
	}
	order := map[string]any{
		"Image": d.c.Image, "Env": env,
		"Labels":     map[string]string{labelOwner: d.c.Owner, labelWorker: name},
		"HostConfig": map[string]any{"Init": true, "NetworkMode": d.c.Network, "SecurityOpt": []string{"no-new-privileges"}},
	}
	if len(d.c.Command) > 0 {
		order["Cmd"] = d.c.Command
	}
	var made struct {
		ID string `json:"Id"`
	}
	if _, err := d.call(ctx, http.MethodPost, "/containers/create", url.Values{"name": {"transferlab-" + name}}, order, &made); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	if _, err := d.call(ctx, http.MethodPost, "/containers/"+url.PathEscape(made.ID)+"/start", nil, nil, nil); err != nil {
		err = fmt.Errorf("start container: %w", err)
		// It would count as an instance that never comes up.
		rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), enginePatience)
		defer cancel()
		return errors.Join(err, d.remove(rest, made.ID))
	}
	return nil
}

// Stop asks a container to end, has the engine kill it after the grace and removes it.
func (d *Docker) Stop(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, d.c.Grace+enginePatience)
	defer cancel()
	all, err := d.containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.ID != id {
			continue
		}
		grace := url.Values{"t": {strconv.Itoa(int(d.c.Grace.Seconds()))}}
		_, err := d.call(ctx, http.MethodPost, "/containers/"+url.PathEscape(id)+"/stop", grace, nil, nil)
		if err != nil && !gone(err) {
			return fmt.Errorf("stop container: %w", err)
		}
		return d.remove(ctx, id)
	}
	return nil
}

func (d *Docker) remove(ctx context.Context, id string) error {
	_, err := d.call(ctx, http.MethodDelete, "/containers/"+url.PathEscape(id), url.Values{"force": {"true"}, "v": {"true"}}, nil, nil)
	if err != nil && !gone(err) {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}

// gone reports that a container is not there or somebody removes it already.
func gone(err error) bool {
	refused, ok := errors.AsType[*engineError](err)
	return ok && (refused.status == http.StatusNotFound || refused.status == http.StatusConflict)
}

// Close leaves the containers as they are: they are found again by their label.
func (d *Docker) Close(context.Context) error {
	d.client.CloseIdleConnections()
	return nil
}
