package drive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/transferlab/transferlab/services/internal/lockfile"
)

// envOwner marks the processes of a driver, and theirs: its value is the directory
// of state, which one driver has at a time.
const envOwner = "TRANSFERLAB_AUTOSCALER_OWNER"

// ProcessConfig says how workers are started as child processes.
type ProcessConfig struct {
	Owner   string // first part of the workers' names
	Command []string
	Env     map[string]string // variables of the workers, over this process's own
	State   string            // directory of the lock; one driver has it at a time
	Grace   time.Duration     // from the request to end to the kill
	Output  io.Writer         // what the processes print; os.Stderr if nil
	Log     *slog.Logger
}

// Validate reports every fault.
func (c *ProcessConfig) Validate() error {
	var errs []error
	if !ownerName(c.Owner) {
		errs = append(errs, fmt.Errorf("--owner: %q, want lower-case letters, digits, hyphens and underscores, at most 31", c.Owner))
	}
	if len(c.Command) == 0 || c.Command[0] == "" {
		errs = append(errs, errors.New("--command: empty, want the program that is a worker, with its arguments"))
	}
	if c.State == "" {
		errs = append(errs, errors.New("--state: empty, want a directory"))
	}
	if c.Grace < 0 || c.Grace > time.Hour {
		errs = append(errs, fmt.Errorf("--stop-grace: %s, want 0 to 1h", c.Grace))
	}
	return errors.Join(errs...)
}

// Process runs workers as child processes. They end with this process, however that
// ends: on Linux the kernel sees to it, and what children of theirs may be left the
// next driver on the same directory ends first.
type Process struct {
	c      ProcessConfig
	mark   string
	unlock func()

	mu       sync.Mutex
	children map[string]*child
	closed   bool
}

type child struct {
	Instance
	cmd  *exec.Cmd
	gone chan struct{}
	once sync.Once
}

// OpenProcess takes the directory and ends what an earlier driver on it has left.
func OpenProcess(ctx context.Context, c ProcessConfig) (*Process, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Output == nil {
		c.Output = os.Stderr
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return nil, fmt.Errorf("--state: %w", err)
	}
	dir, err := filepath.Abs(c.State)
	if err != nil {
		return nil, fmt.Errorf("--state: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("--state: %w", err)
	}
	unlock, err := lockfile.Take(filepath.Join(dir, "autoscaler.lock"))
	if err != nil {
		return nil, fmt.Errorf("--state: another autoscaler works in %s: %w", dir, err)
	}
	p := &Process{c: c, mark: envOwner + "=" + dir, unlock: unlock, children: map[string]*child{}}
	if err := p.reap(ctx); err != nil {
		unlock()
		return nil, err
	}
	return p, nil
}

// reap ends the processes that bear the mark and are nobody's any more.
func (p *Process) reap(ctx context.Context) error {
	for end := time.Now().Add(p.c.Grace); ; {
		left, err := marked(p.mark)
		if err != nil {
			return fmt.Errorf("look for what an earlier start has left: %w", err)
		}
		if len(left) == 0 {
			return nil
		}
		force := time.Now().After(end)
		p.c.Log.Info("ending workers of an earlier start", "processes", left, "force", force)
		for _, pid := range left {
			endProcess(pid, force)
		}
		if time.Now().After(end.Add(10 * time.Second)) {
			return fmt.Errorf("processes %v of an earlier start do not end", left)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// List returns the processes that run.
func (p *Process) List(context.Context) ([]Instance, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Instance, 0, len(p.children))
	for _, c := range p.children {
		all = append(all, c.Instance)
	}
	slices.SortFunc(all, func(a, b Instance) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// Start starts n processes; with an error some of them may have been.
func (p *Process) Start(ctx context.Context, n int) error {
	for range min(n, MaxStart) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := p.start(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("the driver is closed")
	}
	name := workerName(p.c.Owner)
	cmd := exec.Command(p.c.Command[0], p.c.Command[1:]...)
	cmd.Env = os.Environ()
	for k, v := range p.c.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Env = append(cmd.Env, EnvWorker+"="+name, p.mark)
	cmd.Stdout, cmd.Stderr = p.c.Output, p.c.Output
	// Output that a grandchild holds open must not keep its grave open.
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = childAttributes()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.c.Command[0], err)
	}
	c := &child{Instance: Instance{ID: name, Worker: name, Started: time.Now()}, cmd: cmd, gone: make(chan struct{})}
	p.children[name] = c
	go func() {
		err := cmd.Wait()
		endGroup(cmd.Process.Pid)
		p.c.Log.Info("worker ended", "worker", name, "status", cmd.ProcessState.String(), "error", err)
		p.mu.Lock()
		delete(p.children, name)
		p.mu.Unlock()
		close(c.gone)
	}()
	return nil
}

// Stop asks a process to end, and kills it with its children after the grace.
func (p *Process) Stop(ctx context.Context, id string) error {
	p.mu.Lock()
	c := p.children[id]
	p.mu.Unlock()
	if c == nil {
		return nil
	}
	c.once.Do(func() { endProcess(c.cmd.Process.Pid, false) })
	timer := time.NewTimer(p.c.Grace)
	defer timer.Stop()
	select {
	case <-c.gone:
		return nil
	case <-ctx.Done():
	case <-timer.C:
	}
	endGroup(c.cmd.Process.Pid)
	<-c.gone
	return nil
}

// Close ends every process and gives the directory back.
func (p *Process) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	ids := make([]string, 0, len(p.children))
	for id := range p.children {
		ids = append(ids, id)
	}
	p.mu.Unlock()
	var all sync.WaitGroup
	errs := make([]error, len(ids))
	for i, id := range ids {
		all.Go(func() { errs[i] = p.Stop(ctx, id) })
	}
	all.Wait()
	p.unlock()
	return errors.Join(errs...)
}
