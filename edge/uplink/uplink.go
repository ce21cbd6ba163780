package uplink

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Ways of a clip's bytes.
const (
	PathDirect  = "direct"  // to the store, through the gateway only when that fails
	PathGateway = "gateway" // through the gateway
)

// Options say where the gateway is and how it is used.
type Options struct {
	Gateway string // http(s)://host:port
	Token   string
	CAFile  string // certificates in PEM that are trusted beside the system's
	// StoreAddr is a host:port that is dialled instead of that in the URLs of the
	// store.
	StoreAddr string
	// Connections is how many transfers run at a time, of all clips; 0 is 4.
	Connections int
	Path        string        // PathDirect or PathGateway; empty is PathDirect
	Stall       time.Duration // without a sign of progress a request is given up; 0 is 15 s
	Log         *slog.Logger
}

// Validate reports every fault.
func (o *Options) Validate() error {
	var errs []error
	if u, err := url.Parse(o.Gateway); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.User != nil || u.RawQuery != "" {
		errs = append(errs, fmt.Errorf("uplink.gateway: %q, want http(s)://host[:port]", o.Gateway))
	}
	if o.Token == "" {
		errs = append(errs, errors.New("uplink.token: is required"))
	}
	if o.StoreAddr != "" {
		if _, _, err := net.SplitHostPort(o.StoreAddr); err != nil {
			errs = append(errs, fmt.Errorf("uplink.store_addr: %q, want host:port", o.StoreAddr))
		}
	}
	if o.Connections < 0 || o.Connections > 64 {
		errs = append(errs, fmt.Errorf("uplink.connections: %d, want 0 (4) to 64", o.Connections))
	}
	if !slices.Contains([]string{"", PathDirect, PathGateway}, o.Path) {
		errs = append(errs, fmt.Errorf("uplink.path: %q, want %s or %s", o.Path, PathDirect, PathGateway))
	}
	if o.Stall < 0 || o.Stall > 0 && o.Stall < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("uplink.stall: %s, want 0 (15s) or at least 10ms", o.Stall))
	}
	return errors.Join(errs...)
}

// Bounds of answers and waits.
const (
	maxAnswer   = 16 << 20
	maxProblem  = 64 << 10
	backoffMin  = 200 * time.Millisecond
	backoffMax  = 30 * time.Second
	retryMax    = 5 * time.Minute
	dialTimeout = 10 * time.Second
	idleTimeout = 15 * time.Minute
	writeBuffer = 256 << 10
	// directAgain is how long clips go through the gateway once the store could not be
	// reached.
	directAgain = 10 * time.Minute
)

// Client talks to one gateway as one edge. Its methods may be called from
// several goroutines.
type Client struct {
	opts  Options
	log   *slog.Logger
	http  http.RoundTripper
	slots chan struct{}
	meter *meter

	online  atomic.Bool
	pending atomic.Int64 // bytes of uploads that are not stored

	mu       sync.Mutex
	answered chan struct{} // closed when the gateway answers after it did not
	store    string        // scheme and host of the store, as signed last
	strikes  int           // transfers to the store in a row that failed
	notUntil time.Time     // the store is not tried before this
}

// New makes a client; nothing is connected to.
func New(o Options) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Connections == 0 {
		o.Connections = 4
	}
	if o.Path == "" {
		o.Path = PathDirect
	}
	if o.Stall == 0 {
		o.Stall = 15 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	roots, err := trusted(o.CAFile)
	if err != nil {
		return nil, err
	}
	c := &Client{opts: o, log: o.Log, slots: make(chan struct{}, o.Connections), meter: newMeter(), answered: make(chan struct{})}
	gateway, err := url.Parse(o.Gateway)
	if err != nil {
		return nil, fmt.Errorf("uplink.gateway: %w", err)
	}
	c.http = &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: c.dialer(hostPort(gateway)),
		// Parts in one HTTP/2 connection would share one congestion window.
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{},
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(16)},
		TLSHandshakeTimeout:   dialTimeout,
		MaxIdleConnsPerHost:   o.Connections + 4,
		IdleConnTimeout:       idleTimeout,
		WriteBufferSize:       writeBuffer,
		ExpectContinueTimeout: 2 * time.Second,
		DisableCompression:    true,
	}
	return c, nil
}

func trusted(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("uplink.ca_file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("uplink.ca_file: %s has no certificate in PEM", file)
	}
	return pool, nil
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "https" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return net.JoinHostPort(u.Hostname(), "80")
}

func (c *Client) dialer(gateway string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4},
		Control:         tune(2 * c.opts.Stall),
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if c.opts.StoreAddr != "" && addr != gateway {
			addr = c.opts.StoreAddr
		}
		k, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newConn(k), nil
	}
}

// Close closes idle connections.
func (c *Client) Close() {
	if t, ok := c.http.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// Online reports whether the gateway answered when it was last asked.
func (c *Client) Online() bool { return c.online.Load() }

// Refused is an answer that another try would not change, or, inside
// Retrying.Err, one that it may.
type Refused struct {
	Status int // of HTTP
	Title  string
	Detail string

	after time.Duration
}

func (r *Refused) Error() string {
	text := fmt.Sprintf("answered %d %s", r.Status, r.Title)
	if r.Detail != "" {
		text += ": " + r.Detail
	}
	return text
}

// retry reports whether the same request may be answered otherwise later. A
// token that is not accepted may be, once its account is there again.
func (r *Refused) retry() bool {
	switch r.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	}
	return r.Status >= 500
}

// Errors that a request ends with beside those of the network.
var (
	errStalled = errors.New("no progress")
	errAnswer  = errors.New("not an answer of the gateway")
	// ErrUnknown says that the lab does not know a clip.
	ErrUnknown = errors.New("the lab does not know the clip")
)

// request is one exchange.
type request struct {
	method string
	url    string
	header http.Header
	body   io.Reader
	length int64
	wait   time.Duration // silence that is agreed on
	bulk   bool          // its bytes tell the uplink's rate
	own    bool          // to the gateway, with the token
	expect bool          // ask before the body is sent
}

// exchange sends a request and reads its answer, at most limit bytes of it. It is
// given up when nothing moves for Stall.
func (c *Client) exchange(ctx context.Context, r request, limit int64) (status int, header http.Header, answer []byte, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watch{patience: c.opts.Stall + r.wait}
	var wrote, first time.Time
	var times sync.Mutex
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { w.onto(i.Conn) },
		WroteHeaders: func() {
			times.Lock()
			wrote = time.Now()
			times.Unlock()
		},
		GotFirstResponseByte: func() {
			times.Lock()
			first = time.Now()
			times.Unlock()
		},
	})
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, r.body)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("make request: %w", err)
	}
	req.ContentLength = r.length
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.own {
		req.Header.Set("Authorization", "Bearer "+c.opts.Token)
	}
	if r.expect {
		req.Header.Set("Expect", "100-continue")
	}
	var m *meter
	if r.bulk {
		m = c.meter
		m.begin()
	}
	stop := w.start(cancel, m)
	defer func() {
		sent := stop()
		if m != nil {
			m.end(sent, c.shortest())
		}
	}()
	res, err := c.http.RoundTrip(req)
	if err == nil {
		answer, err = io.ReadAll(io.LimitReader(res.Body, limit+1))
		_ = res.Body.Close()
		if err == nil && int64(len(answer)) > limit {
			err = fmt.Errorf("%w: more than %d bytes", errAnswer, limit)
		}
	}
	if r.own {
		c.heard(err)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		return 0, nil, nil, err
	}
	if r.own {
		times.Lock()
		c.meter.stamp(wrote, first, res.Header)
		times.Unlock()
	}
	return res.StatusCode, res.Header, answer, nil
}

// heard notes whether the gateway answered, and wakes those who wait to try again
// when it does after it did not.
func (c *Client) heard(err error) {
	was := c.online.Swap(err == nil)
	if err == nil && !was {
		c.mu.Lock()
		close(c.answered)
		c.answered = make(chan struct{})
		c.mu.Unlock()
	}
}

// call sends JSON to the gateway and reads its answer into out. A status other
// than 2xx is a *Refused.
func (c *Client) call(ctx context.Context, method, path string, in, out any, wait time.Duration) error {
	r := request{method: method, url: c.url(path), own: true, wait: wait, header: http.Header{}}
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		r.body, r.length = bytes.NewReader(data), int64(len(data))
		r.header.Set("Content-Type", "application/json")
	}
	status, header, answer, err := c.exchange(ctx, r, maxAnswer)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if err := understand(status, header, answer, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func (c *Client) url(path string) string {
	base := c.opts.Gateway
	for len(base) > 0 && base[len(base)-1] == '/' {
		base = base[:len(base)-1]
	}
	return base + path
}

// checked is an answer that can tell that it makes no sense.
type checked interface{ check() error }

// understand reads an answer of the gateway.
func understand(status int, header http.Header, answer []byte, out any) error {
	if status < 200 || status > 299 {
		return refusal(status, header, answer)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%w: %w", errAnswer, err)
	}
	if v, ok := out.(checked); ok {
		if err := v.check(); err != nil {
			return fmt.Errorf("%w: %w", errAnswer, err)
		}
	}
	return nil
}

func refusal(status int, header http.Header, answer []byte) *Refused {
	r := &Refused{Status: status, Title: http.StatusText(status)}
	var problem struct {
		Title  string `json:"title"`
		Detail string `json:"detail"`
	}
	if len(answer) <= maxProblem && json.Unmarshal(answer, &problem) == nil {
		r.Title, r.Detail = cut(problem.Title), cut(problem.Detail)
	}
	if s, err := strconv.Atoi(header.Get("Retry-After")); err == nil && s > 0 {
		r.after = min(time.Duration(min(s, 3600))*time.Second, retryMax)
	}
	return r
}

func cut(s string) string {
	const most = 1024
	if len(s) > most {
		return s[:most]
	}
	return s
}
