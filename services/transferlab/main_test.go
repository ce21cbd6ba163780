package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
	"github.com/transferlab/transferlab/services/internal/netlab"
	"github.com/transferlab/transferlab/services/swarmrunner"
)

// TestMain lets the test binary be the program, also as the host of the
// database engine.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == clickhouse.HostCommand {
		os.Exit(clickhouse.RunHost(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == netlab.RelayCommand {
		os.Exit(netlab.RunRelay(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == swarmrunner.PeerCommand {
		os.Exit(swarmrunner.RunPeer())
	}
	testscript.Main(m, map[string]func(){"transferlab": main})
}

// program is the program as a command of its own.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	// testscript.Main has put the test binary there under the program's name.
	path, err := exec.LookPath("transferlab")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "TRANSFERLAB_URL=", "TRANSFERLAB_TOKEN=")
	return cmd
}

func TestScripts(t *testing.T) {
	chtest.Library(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			cache, err := os.UserCacheDir()
			if err != nil {
				return err
			}
			// The engine's library is looked for in the real cache.
			e.Setenv("XDG_CACHE_HOME", cache)
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			return nil
		},
	})
}

// up is a lab in a process of its own.
type up struct {
	cmd *exec.Cmd
	env map[string]string
	out chan struct{}
}

// startUp starts a lab and returns once it says that it is up.
func startUp(t *testing.T, dir string, args ...string) *up {
	t.Helper()
	return startUpBy(t, dir, program(t, append([]string{"--dir", dir, "up", "--port-clickhouse", "0", "--port-s3", "0", "--port-http", "0"}, args...)...))
}

// startUpBy is startUp by a command of the caller's.
func startUpBy(t *testing.T, dir string, cmd *exec.Cmd) *up {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	separate(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	u := &up{cmd: cmd, out: make(chan struct{})}
	t.Cleanup(func() { u.kill() })
	said := make(chan error, 1)
	go func() {
		defer close(u.out)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "Ctrl-C ends it") {
				said <- nil
			}
		}
		said <- io.ErrUnexpectedEOF
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	select {
	case err := <-said:
		if err != nil {
			t.Fatalf("the lab ended before it was up: %v", cmd.Wait())
		}
	case <-ctx.Done():
		t.Fatal("the lab was not up within a minute")
	}
	if u.env, err = readEnv(filepath.Join(dir, "env")); err != nil {
		t.Fatal(err)
	}
	return u
}

// freePort is a port that is free now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}
