package netlab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Lab is a running emulated network.
type Lab struct {
	opts  Options
	id    string
	k     int
	block addressBlock
	nodes []*Node // the lab itself first
	byKey map[string]*Node

	lock        *os.File
	reservation *os.File

	relay    *Process
	relayOut *bufio.Reader
	relayLog *tail
	watched  chan struct{} // closed when nothing of the relay is left
	asking   sync.Mutex    // one question to the relay at a time

	mu        sync.Mutex
	journal   journal
	processes map[*Process]bool
	closing   bool
	done      chan struct{}
	err       error
	closeOnce sync.Once
	closeErr  error
}

// Node is an emulated machine. The one of site "lab" is this machine itself.
type Node struct {
	Name, Site   string
	Addr4, Addr6 netip.Addr // Addr6 of the lab is not valid where the host has no IPv6

	lab       *Lab
	device    string
	namespace *os.File // nil: the host's own
}

// Start makes an emulated network. What another lab left in the directory is
// reaped first. ctx bounds the start only.
func Start(ctx context.Context, opts Options) (_ *Lab, err error) {
	if err := errors.Join(opts.Validate(), Available()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	l := &Lab{
		opts: opts, id: hex.EncodeToString(id[:]), byKey: map[string]*Node{},
		processes: map[*Process]bool{}, done: make(chan struct{}), relayLog: &tail{},
	}
	if l.lock, err = lockDir(opts.Dir); err != nil {
		return nil, err
	}
	var devices []*os.File
	defer func() {
		// The relay has its own copies now: with it the devices go.
		for _, d := range devices {
			err = errors.Join(err, d.Close())
		}
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := reap(ctx, opts.Dir); err != nil {
		return nil, err
	}
	// The journal is there before the first process is.
	l.journal = journal{ID: l.id, Processes: []journalEntry{}}
	if err := l.journal.write(opts.Dir); err != nil {
		return nil, err
	}
	if l.k, l.reservation, err = reserveBlock(); err != nil {
		return nil, err
	}
	l.block = block(l.k)
	if devices, err = l.makeNodes(ctx); err != nil {
		return nil, err
	}
	if err := l.startRelay(ctx, devices); err != nil {
		return nil, err
	}
	opts.Log.DebugContext(ctx, "emulated network is up", slog.String("block", l.block.v4.String()),
		slog.Int("nodes", len(opts.Nodes)), slog.String("device", hostDevice(l.k)))
	return l, nil
}

// makeNodes makes the host's device and every node; the devices come back even
// with an error.
func (l *Lab) makeNodes(ctx context.Context) (devices []*os.File, err error) {
	for i, spec := range append([]NodeSpec{{Name: schemas.SiteLab, Site: schemas.SiteLab}}, l.opts.Nodes...) {
		if err := ctx.Err(); err != nil {
			return devices, err
		}
		n := &Node{Name: spec.Name, Site: spec.Site, Addr4: l.block.addr4(hostIndex + i), Addr6: l.block.addr6(hostIndex + i), lab: l, device: nodeDevice}
		a4, a6 := netip.PrefixFrom(n.Addr4, l.block.v4.Bits()), netip.PrefixFrom(n.Addr6, l.block.v6.Bits())
		var device *os.File
		if i == 0 {
			n.device = hostDevice(l.k)
			if device, err = openDevice(n.device); err != nil {
				return devices, err
			}
			devices = append(devices, device)
			err, err6 := setUp(n.device, a4, a6)
			if err != nil {
				return devices, err
			}
			if err6 != nil {
				l.opts.Log.WarnContext(ctx, "emulated sites reach this machine by IPv4 only", slog.Any("error", err6))
				n.Addr6 = netip.Addr{}
			}
		} else {
			if n.namespace, device, err = newNamespace(a4, a6); err != nil {
				return devices, fmt.Errorf("make node %s: %w", n.Name, err)
			}
			devices = append(devices, device)
		}
		l.nodes = append(l.nodes, n)
		l.byKey[n.Name] = n
	}
	for _, n := range l.nodes {
		if !n.Addr6.IsValid() {
			continue
		}
		if err := n.Do(func() error { return awaitAddress(ctx, n.Addr6) }); err != nil {
			return devices, fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	return devices, nil
}

func (l *Lab) startRelay(ctx context.Context, devices []*os.File) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	specs := make([]NodeSpec, len(l.nodes))
	for i, n := range l.nodes {
		specs[i] = NodeSpec{Name: n.Name, Site: n.Site}
	}
	config, err := json.Marshal(newRelayConfig(l.k, l.opts.Topology, specs))
	if err != nil {
		return fmt.Errorf("describe the network: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	cmd := exec.Command(self, RelayCommand)
	cmd.ExtraFiles = devices
	cmd.Stdout, cmd.Stderr = w, l.relayLog
	cmd.Env = Command{}.environ(l.id)
	relay, err := startProcess(cmd)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return fmt.Errorf("start the relay: %w", err)
	}
	l.relay, l.relayOut = relay, bufio.NewReader(r)
	l.watched = make(chan struct{})
	go l.watchRelay(r)
	if err := l.record("", relay.PID()); err != nil {
		return err
	}
	var ready relayReady
	if err := l.ask(ctx, append(config, '\n'), &ready); err != nil || !ready.Ready {
		return errors.Join(errors.New("the relay did not start"), err)
	}
	return nil
}

// watchRelay notes when the relay ends without having been asked to.
func (l *Lab) watchRelay(out *os.File) {
	defer close(l.watched)
	<-l.relay.Done()
	_ = out.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return
	}
	l.err = fmt.Errorf("the relay of the emulated network ended: %w: %s", errors.Join(l.relay.Err(), os.ErrProcessDone), l.relayLog)
	close(l.done)
}

// ask sends a line to the relay and reads its answer.
func (l *Lab) ask(ctx context.Context, line []byte, answer any) error {
	l.asking.Lock()
	defer l.asking.Unlock()
	result := make(chan error, 1)
	go func() {
		if _, err := l.relay.stdin.Write(line); err != nil {
			result <- fmt.Errorf("ask the relay: %w: %s", err, l.relayLog)
			return
		}
		b, err := l.relayOut.ReadBytes('\n')
		if err != nil {
			result <- fmt.Errorf("read the relay's answer: %w: %s", err, l.relayLog)
			return
		}
		result <- json.Unmarshal(b, answer)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		// The answer may still come and would be taken for the next one's.
		l.relay.Kill()
		return errors.Join(ctx.Err(), <-result)
	}
}

// record adds a process to the journal.
func (l *Lab) record(node string, pid int) error {
	start, err := processStart(pid)
	if err != nil {
		return nil //nolint:nilerr // it has ended and been waited for already
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.journal.Processes = append(l.journal.Processes, journalEntry{Node: node, PID: pid, Start: start})
	return l.journal.write(l.opts.Dir)
}

// Node gives a node by its name; "lab" is this machine.
func (l *Lab) Node(name string) (*Node, bool) {
	n, found := l.byKey[name]
	return n, found
}

// Nodes gives all nodes in the order of Options, without the lab.
func (l *Lab) Nodes() []*Node { return l.nodes[1:] }

// LabAddr is this machine's address as the nodes see it.
func (l *Lab) LabAddr() netip.Addr { return l.nodes[0].Addr4 }

// LabAddr6 is this machine's IPv6 address as the nodes see it; not valid where
// the host has no IPv6.
func (l *Lab) LabAddr6() netip.Addr { return l.nodes[0].Addr6 }

// Done is closed when packets no longer flow though nobody closed the lab.
func (l *Lab) Done() <-chan struct{} { return l.done }

// Err tells why; nil before Done is closed.
func (l *Lab) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Stats asks for what the links did so far.
func (l *Lab) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	if err := l.ask(ctx, []byte("\n"), &s); err != nil {
		return Stats{}, err
	}
	for _, n := range l.nodes {
		err := n.Do(func() error {
			dropped, err := droppedAt(n.device)
			s.Overrun += dropped
			return err
		})
		if err != nil {
			return Stats{}, fmt.Errorf("count of node %s: %w", n.Name, err)
		}
	}
	return s, nil
}

// Do runs f on a thread inside the node's network namespace: sockets that it
// opens stay there, wherever they are used later.
func (n *Node) Do(f func() error) error {
	if n.namespace == nil {
		return f()
	}
	return inside(n.namespace, f)
}

var errClosed = errors.New("the emulated network is closed")

// Start starts a process in the node. It gets a pipe as standard input which
// ends when the lab does, by whatever death: it must end then too. ctx bounds
// the start only.
func (n *Node) Start(ctx context.Context, c Command) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Dir = c.environ(n.lab.id), c.Dir
	cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	var p *Process
	err := n.Do(func() (err error) {
		l := n.lab
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.closing {
			return errClosed
		}
		if p, err = startProcess(cmd); err == nil {
			l.processes[p] = true
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start %s in node %s: %w", c.Path, n.Name, err)
	}
	go func() {
		<-p.done
		n.lab.mu.Lock()
		defer n.lab.mu.Unlock()
		delete(n.lab.processes, p)
	}()
	if err := n.lab.record(n.Name, p.PID()); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

const (
	stopGrace  = 5 * time.Second
	relayGrace = 20 * time.Second
)

// Close stops what runs in the nodes (SIGTERM, after 5 s SIGKILL), the relay,
// and gives everything back. It returns when the processes are gone. It may be
// called more than once.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	l.mu.Lock()
	l.closing = true
	running := make([]*Process, 0, len(l.processes))
	for p := range l.processes {
		running = append(running, p)
	}
	l.mu.Unlock()

	var faults []error
	stop, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	var wait sync.WaitGroup
	for _, p := range running {
		// How an agent that was told to end ends is its own matter.
		wait.Go(func() { _ = p.Stop(stop) })
	}
	wait.Wait()
	if l.relay != nil {
		l.relay.closeInput()
		select {
		case <-l.relay.Done():
		case <-time.After(relayGrace):
			l.relay.Kill()
			faults = append(faults, errors.New("the relay did not end by itself"))
		}
		<-l.watched
	}
	// Children of agents that did not end with them.
	reaping, cancelReaping := context.WithTimeout(context.Background(), reapLimit)
	defer cancelReaping()
	if err := killTagged(reaping, l.id); err != nil {
		faults = append(faults, err)
	} else if l.journal.ID != "" { // else it is still another lab's
		if err := os.Remove(filepath.Join(l.opts.Dir, journalName)); err != nil && !errors.Is(err, os.ErrNotExist) {
			faults = append(faults, fmt.Errorf("remove the journal: %w", err))
		}
	}
	for _, n := range l.nodes {
		if n.namespace != nil {
			faults = append(faults, n.namespace.Close())
		}
	}
	for _, f := range []*os.File{l.reservation, l.lock} {
		if f != nil {
			faults = append(faults, f.Close())
		}
	}
	return errors.Join(faults...)
}

// tail keeps the end of what a process says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailLimit = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > tailLimit {
		t.b = append(t.b[:0], t.b[len(t.b)-tailLimit:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}
