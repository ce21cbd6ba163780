// Package lab runs the real program for benchmarks: a `transferlab up` in a
// directory of its own, with agents as processes of their own beside it.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// Lab is a `transferlab up` that serves.
type Lab struct {
	// Binary is the program, for further commands.
	Binary string
	// Dir is the state directory, which such commands want as --dir.
	Dir string
	// Env says where the lab serves and with which keys: what DIR/env exports.
	Env map[string]string
	// Up is the lab's process. The database engine is a child of it.
	Up *Process

	logs   string
	agents []*Process
}

// Build compiles the program of this tree into dir, says so on progress, and
// returns its path. A binary that is given is returned as it is.
func Build(ctx context.Context, dir, binary string, progress io.Writer) (string, error) {
	if binary != "" {
		return binary, nil
	}
	fmt.Fprintln(progress, "building transferlab")
	binary = filepath.Join(dir, "transferlab")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "github.com/transferlab/transferlab/services/transferlab")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = progress
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build transferlab: %w", err)
	}
	return binary, nil
}

// Start starts a lab on free ports and returns once it serves. Its state and the
// logs of all its processes are in dir.
func Start(ctx context.Context, dir, binary string) (_ *Lab, err error) {
	l := &Lab{Binary: binary, Dir: filepath.Join(dir, "lab"), logs: dir}
	const log = "up.log"
	l.Up, err = l.start(nil, log, "--dir", l.Dir, "up", "--port-nats", "0", "--port-clickhouse", "0", "--port-s3", "0", "--port-http", "0")
	if err != nil {
		return nil, err
	}
	if err := l.await(ctx, log); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w\n%s", binary, err, l.said(log)), l.Close())
	}
	return l, nil
}

// await waits for the line with which the lab says that it is up.
func (l *Lab) await(ctx context.Context, log string) error {
	// The first start on a machine fetches the database engine.
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	for {
		if strings.Contains(l.said(log), "Ctrl-C ends it") {
			text, err := os.ReadFile(filepath.Join(l.Dir, "env"))
			if err != nil {
				return fmt.Errorf("read where the lab serves: %w", err)
			}
			l.Env = parseEnv(string(text))
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the lab does not start: %w", ctx.Err())
		case <-l.Up.Ended():
			return errors.New("the lab has ended")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// parseEnv reads lines of the form export NAME='value'.
func parseEnv(text string) map[string]string {
	env := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if found {
			env[name] = strings.ReplaceAll(strings.Trim(value, "'"), `'\''`, "'")
		}
	}
	return env
}

// start runs the program in the background.
func (l *Lab) start(env []string, log string, args ...string) (*Process, error) {
	return StartProcess(filepath.Join(l.logs, log), env, l.Binary, args...)
}

// said is the end of a log.
func (l *Lab) said(log string) string {
	text, err := os.ReadFile(filepath.Join(l.logs, log))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4096):])
}

// Connect joins the lab's bus under a name. The caller closes the connection.
func (l *Lab) Connect(ctx context.Context, name string) (*bus.Conn, error) {
	return bus.Connect(ctx, bus.Options{URL: l.Env["NATS_URL"], User: l.Env["NATS_USER"], Password: l.Env["NATS_PASSWORD"], Name: name})
}

// Agent starts a service (`transferlab service SERVICE`) at a site, with env
// beside what leads it to the lab's bus, and returns once the lab knows it by its
// name. It ends with the lab, if it is not stopped before.
func (l *Lab) Agent(ctx context.Context, conn *bus.Conn, service, site, name string, env ...string) (*Process, error) {
	log := name + ".log"
	p, err := l.start(append([]string{
		"TRANSFERLAB_NATS=" + l.Env["NATS_URL"], "TRANSFERLAB_NATS_USER=" + l.Env["NATS_USER"], "TRANSFERLAB_NATS_PASSWORD=" + l.Env["NATS_PASSWORD"],
	}, env...), log, "service", service, "--site", site, "--name", name)
	if err != nil {
		return nil, err
	}
	l.agents = append(l.agents, p)
	agents, err := bus.OpenBucket[schemas.Agent](ctx, conn, bus.BucketAgents)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := agents.Get(ctx, bus.Token(name)); err == nil {
			return p, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s %s does not come: %w\n%s", service, name, ctx.Err(), l.said(log))
		case <-p.Ended():
			return nil, fmt.Errorf("%s %s has ended\n%s", service, name, l.said(log))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Version is what the program says of itself, or "unknown".
func (l *Lab) Version(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, l.Binary, "version").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// Close stops the agents, then the lab.
func (l *Lab) Close() error {
	var errs []error
	for _, p := range append(l.agents, l.Up) {
		errs = append(errs, p.Stop())
	}
	return errors.Join(errs...)
}
