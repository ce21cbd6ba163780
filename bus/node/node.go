// Package node is what every service's process shares: its connection to the
// bus, its log, its health and metrics, and how it ends.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/transferlab/transferlab/bus"
)

// Service is one entry of the list of services.
type Service struct {
	Name  string // wire and command-line name: `s3-loader`
	Short string // one line of help
	Role  string // as whom it joins the bus: a role of package bus
	// Config is a pointer to the service's configuration, whose fields carry
	// kong tags for flags and TRANSFERLAB_* variables, or nil.
	Config any
	// Run blocks until ctx ends and owns every goroutine it starts.
	Run func(ctx context.Context, n *Node) error
}

// Node is what a running service gets.
type Node struct {
	Service string
	Version string
	Log     *slog.Logger
	Bus     *bus.Conn
	// Registration is the service as seen on the bus; endpoints are added to it.
	Registration *bus.Registration
	Metrics      prometheus.Registerer

	mu     sync.Mutex
	checks map[string]func() error
	ready  chan struct{}
	once   sync.Once
}

// New returns a node on a connection, registered on the bus.
func New(s Service, version string, conn *bus.Conn, metrics prometheus.Registerer, log *slog.Logger) (*Node, error) {
	registration, err := conn.Register(s.Name, version, s.Short, nil)
	if err != nil {
		return nil, err
	}
	n := &Node{
		Service: s.Name, Version: version, Log: log.With("service", s.Name), Bus: conn, Registration: registration,
		Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"service": s.Name}, metrics),
		checks:  map[string]func() error{"bus": conn.Healthy}, ready: make(chan struct{}),
	}
	return n, nil
}

// Check adds a condition of health under a name.
func (n *Node) Check(name string, check func() error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.checks[name] = check
}

// Ready is called by the service once it serves.
func (n *Node) Ready() { n.once.Do(func() { close(n.ready) }) }

// AwaitReady returns when the service serves or ctx ends.
func (n *Node) AwaitReady(ctx context.Context) error {
	select {
	case <-n.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", n.Service, ctx.Err())
	}
}

// Health returns nil, or every failed condition.
func (n *Node) Health() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	select {
	case <-n.ready:
	default:
		errs = append(errs, errors.New("starting"))
	}
	for name, check := range n.checks {
		if err := check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// ErrFinished is what the Run of a service returns, wrapped with the reason,
// when it has ended by itself and was meant to: a worker that was drained, or
// found nothing to do for long enough.
var ErrFinished = errors.New("finished")

// Run runs a service until ctx ends and unregisters it. A service that ends by
// itself counts as failed, but for one whose error wraps [ErrFinished]: its
// process ends like one that was told to, with exit code 0.
func (n *Node) Run(ctx context.Context, s Service) error {
	defer func() {
		if err := n.Registration.Stop(); err != nil {
			n.Log.Debug("unregister", "error", err)
		}
	}()
	err := s.Run(ctx, n)
	if errors.Is(err, ErrFinished) {
		n.Log.Info("ended by itself", "reason", err)
		return nil
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	if ctx.Err() == nil {
		return fmt.Errorf("%s: ended by itself", s.Name)
	}
	return err
}

// Registry returns a registry with the process's own metrics in it.
func Registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Handler serves /healthz (200 or 503 with the reasons as JSON) and /metrics
// for the nodes of a process.
func Handler(metrics prometheus.Gatherer, nodes ...*Node) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		health := map[string]string{}
		status := http.StatusOK
		for _, n := range nodes {
			health[n.Service] = "ok"
			if err := n.Health(); err != nil {
				health[n.Service], status = err.Error(), http.StatusServiceUnavailable
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(health)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}

// Serve serves h on a TCP address until ctx ends; listening is done when it
// returns, the bound address comes back, and the channel closes once the server
// is gone.
func Serve(ctx context.Context, address string, h http.Handler, log *slog.Logger) (net.Addr, <-chan struct{}, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serve", "address", address, "error", err)
		}
	}()
	context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	return l.Addr(), done, nil
}
