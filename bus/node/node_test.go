package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/bus/node"
)

func start(t *testing.T, s node.Service) (*node.Node, *prometheus.Registry) {
	t.Helper()
	registry := node.Registry()
	conn := bustest.Join(t, bustest.Start(t), bus.RoleScheduler)
	n, err := node.New(s, "1.2.3", conn, registry, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return n, registry
}

func health(t *testing.T, h http.Handler) (int, map[string]string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	var parts map[string]string
	if err := json.NewDecoder(w.Body).Decode(&parts); err != nil {
		t.Fatal(err)
	}
	return w.Code, parts
}

func TestHealthFollowsTheService(t *testing.T) {
	n, registry := start(t, node.Service{Name: "scheduler"})
	h := node.Handler(registry, n)
	if code, parts := health(t, h); code != http.StatusServiceUnavailable || parts["scheduler"] != "starting" {
		t.Errorf("before it serves: %d %v", code, parts)
	}
	n.Ready()
	n.Ready()
	if code, parts := health(t, h); code != http.StatusOK || parts["scheduler"] != "ok" {
		t.Errorf("while it serves: %d %v", code, parts)
	}
	n.Check("database", func() error { return errors.New("away") })
	if code, parts := health(t, h); code != http.StatusServiceUnavailable || parts["scheduler"] != "database: away" {
		t.Errorf("with a failed condition: %d %v", code, parts)
	}
	n.Metrics.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "transferlab_test", Help: "Test."}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if body, _ := io.ReadAll(w.Body); !strings.Contains(string(body), `transferlab_test{service="scheduler"} 0`) {
		t.Errorf("metrics lack the service's own:\n%.300s", body)
	}
}

// No service of ours is meant to end before it is told to.
func TestServiceThatEndsHasFailed(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"without an error": {nil, "ended by itself"},
		"with one":         {broken, "broken"},
	} {
		s := node.Service{Name: "scheduler", Run: func(context.Context, *node.Node) error { return c.err }}
		n, _ := start(t, s)
		if err := n.Run(t.Context(), s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	finished := node.Service{Name: "detector", Run: func(context.Context, *node.Node) error { return fmt.Errorf("%w: drained", node.ErrFinished) }}
	done, _ := start(t, finished)
	if err := done.Run(t.Context(), finished); err != nil {
		t.Errorf("ended as it was meant to: %v", err)
	}
	s := node.Service{Name: "scheduler", Run: func(ctx context.Context, _ *node.Node) error { <-ctx.Done(); return nil }}
	n, _ := start(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Run(ctx, s); err != nil {
		t.Errorf("ended when told to: %v", err)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr, served, err := node.Serve(ctx, "127.0.0.1:0", http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + addr.String())
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Fatalf("%v %v", resp, err)
	}
	_ = resp.Body.Close()
	cancel()
	<-served
	if _, _, err := node.Serve(t.Context(), "127.0.0.1:http-but-not", nil, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no error for an address that is none")
	}
}
