// Package bustest gives tests a real bus: an embedded server with everything
// provisioned.
package bustest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/embedded"
)

// Start runs a provisioned server until the test ends.
func Start(t testing.TB) *embedded.Server {
	t.Helper()
	s := StartIn(t, t.TempDir(), 0)
	t.Cleanup(s.Close)
	return s
}

// StartIn runs a provisioned server on a directory and port; the caller closes
// it.
func StartIn(t testing.TB, dir string, port int) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(t.Context(), embedded.Options{Dir: dir, Port: port})
	if err != nil {
		t.Fatal(err)
	}
	c, err := bus.Connect(t.Context(), s.Options(bus.RoleOperator, "provision", nil))
	if err != nil {
		s.Close()
		t.Fatal(err)
	}
	if err := c.Provision(t.Context(), bus.DefaultLimits()); err != nil {
		s.Close()
		t.Fatal(err)
	}
	Close(t, c)
	return s
}

// Join connects as a role until the test ends.
func Join(t testing.TB, s *embedded.Server, role string) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(t.Context(), s.Options(role, t.Name(), slog.New(slog.NewTextHandler(t.Output(), nil))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Close(t, c) })
	return c
}

// Close leaves the bus.
func Close(t testing.TB, c *bus.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		t.Logf("leave the bus: %v", err)
	}
}
