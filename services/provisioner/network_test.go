package provisioner

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/services/internal/netlab"
)

// The agents' way to the bus: a socket at a path that is longer than a socket's
// name may be, for its owner alone, and whole streams in both directions.
func TestForwardThroughASocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep", 20), strings.Repeat("deeper", 10))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	go func() {
		for {
			c, err := far.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				heard, err := io.ReadAll(c)
				if err == nil {
					_, _ = c.Write(append([]byte("heard "), heard...))
				}
			}()
		}
	}()
	path := filepath.Join(dir, "bus.sock")
	for range 2 { // what an earlier start has left is in nobody's way
		l, err := listenSocket(path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("the socket: %v, %v", info.Mode(), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		n := &network{place: &place{Provisioner: &Provisioner{log: slog.New(slog.NewTextHandler(t.Output(), nil))}}}
		n.forward(ctx, l, far.Addr().String())
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/bus.sock", d.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Repeat("a word ", 100_000)
		if _, err := io.WriteString(c, said); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if err != nil || string(answer) != "heard "+said {
			t.Errorf("%d bytes came back, want %d: %v", len(answer), len(said)+6, err)
		}
		_ = c.Close()
		_ = d.Close()
		cancel()
		n.parts.Wait()
	}
}

func TestAgentNames(t *testing.T) {
	var taken []netlab.NodeSpec
	seen := map[string]bool{}
	long := strings.Repeat("x", 60)
	for _, site := range []string{"oregon", "oregon", "dublin", "oregon-1", long + "-a", long + "-b"} {
		name := (*place)(nil).agentName(taken, site)
		if seen[name] || len(name) > 63 {
			t.Errorf("site %s: agent %s", site, name)
		}
		seen[name] = true
		taken = append(taken, netlab.NodeSpec{Name: name, Site: site})
	}
	if !seen["netlab-oregon-2"] {
		t.Errorf("names %v", seen)
	}
}

func TestConfigFaults(t *testing.T) {
	cfg := DefaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	cfg.State, cfg.AgentBus, cfg.FleetBus, cfg.S3Endpoint = "", "nats://user:secret@host:4222", "lab", "http://host"
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no faults")
	}
	for _, want := range []string{"--state", "--agent-bus", "--fleet-bus", "--s3-endpoint"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("a password in %v", err)
	}
}

// What an agent says last is kept, and no more.
func TestTail(t *testing.T) {
	var out tail
	for range 3 {
		if n, err := out.Write([]byte(strings.Repeat("a", tailBytes-10))); n != tailBytes-10 || err != nil {
			t.Fatal(n, err)
		}
	}
	_, _ = out.Write([]byte("the end"))
	if s := out.String(); len(s) != tailBytes || !strings.HasSuffix(s, "the end") {
		t.Errorf("%d bytes", len(s))
	}
}
