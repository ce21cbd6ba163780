package provisioner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/netlab"
)

// network is an emulated network with the run's agents in it.
type network struct {
	place *place
	lab   *netlab.Lab
	dir   string
	stop  context.CancelFunc
	parts sync.WaitGroup
	once  sync.Once
	env   []string // of agents
	// overrun is what was lost before the run: its checks fill links.
	overrun int64
}

// How long agents in an emulated network may take until they are on the bus.
const agentPatience = time.Minute

// makeNetwork starts the emulated network, checks that it does what it should,
// and starts the run's agents in it.
func (p *place) makeNetwork(ctx context.Context) error {
	if err := netlab.Available(); err != nil {
		return err
	}
	topology, _ := p.file.Topology(p.want.Seed)
	options := netlab.Options{Dir: p.networkDir(), Topology: topology, Log: p.log}
	for _, g := range p.file.Groups {
		for range g.Agents {
			options.Nodes = append(options.Nodes, netlab.NodeSpec{Name: p.agentName(options.Nodes, g.Site), Site: g.Site})
		}
	}
	p.note(ctx, "starting %d sites with %d agents", len(topology.Sites), len(options.Nodes))
	lab, err := netlab.Start(ctx, options)
	if err != nil {
		return fmt.Errorf("start the emulated network: %w", err)
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	n := &network{place: p, lab: lab, dir: p.networkDir(), stop: stop, overrun: math.MaxInt64}
	p.network = n
	if err := p.gate(ctx, lab, topology); err != nil {
		return err
	}
	before, err := lab.Stats(ctx)
	if err != nil {
		return fmt.Errorf("ask what the links did: %w", err)
	}
	n.overrun = before.Overrun
	if err := n.serve(running); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeoutCause(ctx, agentPatience, fmt.Errorf("not within %s", agentPatience))
	defer cancel()
	failed := make(chan error, len(options.Nodes))
	var names []string
	for _, spec := range options.Nodes {
		names = append(names, spec.Name)
		n.parts.Go(func() { failed <- n.run(running, spec) })
	}
	there := make(chan error, 1)
	go func() { there <- p.awaitAgents(waiting, names, nil) }()
	p.note(ctx, "waiting for %d agents", len(names))
	select {
	case err := <-failed:
		return err
	case err := <-there:
		p.say(ctx, func(s *schemas.Place) { s.Agents = names })
		return err
	}
}

// agentName is unique in the network and says where the agent stands.
func (*place) agentName(taken []netlab.NodeSpec, site string) string {
	const longest = 40
	prefix, n := "netlab-"+site[:min(len(site), longest)]+"-", 1
	for _, t := range taken {
		if strings.HasPrefix(t.Name, prefix) {
			n++
		}
	}
	return prefix + strconv.Itoa(n)
}

// gate measures the network before the run does, and records what it saw.
func (p *place) gate(ctx context.Context, lab *netlab.Lab, topology schemas.Topology) error {
	p.note(ctx, "checking that the links do what they should")
	begin := time.Now()
	checks, err := lab.Gate(ctx)
	if err != nil {
		return fmt.Errorf("check the emulated network: %w", err)
	}
	var told []schemas.PlaceCheck
	var faults []string
	for _, c := range checks {
		for _, l := range topology.Links {
			if c.Link == l.A+"-"+l.B {
				c.Link = p.file.LinkName(l.A, l.B)
				break
			}
		}
		what, status := c.What, schemas.StatusOK
		if c.Direction != "" {
			what += " " + c.Direction
		}
		told = append(told, schemas.PlaceCheck{
			Link: c.Link, What: what, Unit: c.Unit, Set: c.Set, Measured: c.Measured, Tolerance: c.Tolerance, Samples: c.Samples, OK: c.OK,
		})
		if !c.OK {
			status = "unfit"
			faults = append(faults, c.Text)
		}
		number := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
		err := p.recorder.Record(&schemas.Event{
			Intended: begin, Run: p.run, Attempt: 1, Workload: p.file.Workload, Service: ServiceName, Kind: schemas.KindGate,
			Duration: time.Since(begin), Status: status, Error: errorText(c),
			Attrs: []schemas.Attr{
				{Key: "link", Value: c.Link},
				{Key: "what", Value: what},
				{Key: "unit", Value: c.Unit},
				{Key: "set", Value: number(c.Set)},
				{Key: "measured", Value: number(c.Measured)},
				{Key: "tolerance", Value: number(c.Tolerance)},
				{Key: "samples", Value: strconv.Itoa(c.Samples)},
				{Key: "tries", Value: strconv.Itoa(c.Tries)},
			},
		})
		if err != nil {
			return err
		}
	}
	if err := p.recorder.Flush(ctx); err != nil {
		return err
	}
	p.say(ctx, func(s *schemas.Place) { s.Checks = told })
	if len(faults) > 0 {
		return unfitError(faults)
	}
	return nil
}

func errorText(c netlab.Check) string {
	if c.OK {
		return ""
	}
	return c.Text
}

// serve gives the agents their ways out: the bus through a unix socket, which
// no network namespace hides, and the lab's store at the site lab, whose way
// is part of the emulated network.
func (n *network) serve(ctx context.Context) error {
	cfg := &n.place.cfg
	socket, err := listenSocket(filepath.Join(n.dir, "bus.sock"))
	if err != nil {
		return fmt.Errorf("listen for the agents' way to the bus: %w", err)
	}
	address, err := url.Parse(cfg.AgentBus)
	if err != nil || address.Host == "" {
		return errors.Join(fmt.Errorf("--agent-bus: %q, want nats://host:port", cfg.AgentBus), socket.Close())
	}
	n.forward(ctx, socket, address.Host)
	n.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"TRANSFERLAB_NATS=" + cfg.AgentBus, "TRANSFERLAB_NATS_SOCKET=bus.sock",
		"TRANSFERLAB_NATS_USER=" + cfg.AgentUser, "TRANSFERLAB_NATS_PASSWORD=" + cfg.AgentSecret,
		"TRANSFERLAB_RUN=" + n.place.run.String(), "TRANSFERLAB_METRICS_ADDR=",
	}
	if cfg.AgentCA != "" {
		n.env = append(n.env, "TRANSFERLAB_NATS_CA="+cfg.AgentCA)
	}
	switch workload := n.place.file.Workload; {
	case workload == schemas.WorkloadS3 && cfg.S3Endpoint != "":
		store, err := n.open(ctx, "--s3-endpoint", cfg.S3Endpoint)
		if err != nil {
			return err
		}
		n.env = append(n.env, "TRANSFERLAB_S3_ENDPOINT="+store.String(), "TRANSFERLAB_S3_REGION="+cfg.S3Region,
			"TRANSFERLAB_S3_ACCESS_KEY="+cfg.S3AccessKey, "TRANSFERLAB_S3_SECRET_KEY="+cfg.S3SecretKey)
	case workload == schemas.WorkloadOffload && cfg.Gateway != "":
		gateway, err := n.open(ctx, "--gateway", cfg.Gateway)
		if err != nil {
			return err
		}
		n.env = append(n.env, "TRANSFERLAB_GATEWAY="+gateway.String(), "TRANSFERLAB_EDGE_TOKEN="+cfg.EdgeToken, "TRANSFERLAB_EDGE_ACCOUNT="+cfg.EdgeAccount,
			"TRANSFERLAB_VISION="+os.Getenv("TRANSFERLAB_VISION"), "TRANSFERLAB_MODELS="+os.Getenv("TRANSFERLAB_MODELS"))
		if cfg.S3Endpoint != "" {
			store, err := n.open(ctx, "--s3-endpoint", cfg.S3Endpoint)
			if err != nil {
				return err
			}
			n.env = append(n.env, "TRANSFERLAB_STORE_ADDRESS="+store.Host)
		}
	}
	return nil
}

// open makes a service of the lab reachable at the site lab, and returns its
// address there.
func (n *network) open(ctx context.Context, flag, address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(n.lab.LabAddr().String(), "0"))
	if err != nil {
		return nil, fmt.Errorf("listen for the agents' way to %s: %w", u.Host, err)
	}
	n.forward(ctx, l, u.Host)
	u.Host = l.Addr().String()
	return u, nil
}

// listenSocket listens at a path of any length: the name of a socket has at most
// 108 bytes, which a path through the directory's descriptor never needs.
func listenSocket(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		return nil, err
	}
	// The name it was bound by is not there any more when it is closed.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, os.Chmod(path, 0o600)
}

// forward carries connections on to an address until ctx ends.
func (n *network) forward(ctx context.Context, l net.Listener, to string) {
	context.AfterFunc(ctx, func() { _ = l.Close() })
	n.parts.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				if ctx.Err() == nil {
					n.place.log.Error("forward", "to", to, "error", err)
				}
				return
			}
			n.parts.Go(func() {
				if err := carry(ctx, near, to); err != nil && ctx.Err() == nil {
					n.place.log.Debug("forward", "to", to, "error", err)
				}
			})
		}
	})
}

func carry(ctx context.Context, near net.Conn, to string) error {
	defer func() { _ = near.Close() }()
	var d net.Dialer
	far, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	defer func() { _ = far.Close() }()
	defer context.AfterFunc(ctx, func() { _ = near.Close(); _ = far.Close() })()
	type halfCloser interface{ CloseWrite() error }
	pipe := func(dst, src net.Conn) error {
		_, err := io.Copy(dst, src)
		if h, ok := dst.(halfCloser); ok {
			err = errors.Join(err, h.CloseWrite())
		}
		return err
	}
	back := make(chan error, 1)
	go func() { back <- pipe(near, far) }()
	err = pipe(far, near)
	return errors.Join(err, <-back)
}

// Agents that die are started again, so often at most.
const restarts = 3

// run keeps one agent running. Its error is why it could not.
func (n *network) run(ctx context.Context, spec netlab.NodeSpec) error {
	machine, found := n.lab.Node(spec.Name)
	if !found {
		return fmt.Errorf("no node %s in the emulated network", spec.Name)
	}
	for attempt := 0; ; attempt++ {
		var out tail
		process, err := machine.Start(ctx, netlab.Command{
			Path: n.place.cfg.Program, Dir: n.dir, Env: n.env, Stdout: &out, Stderr: &out,
			Args: []string{
				"service", schemas.ServiceOf(n.place.file.Workload), "--with-parent", "--name", spec.Name, "--site", spec.Site, "--address", machine.Addr4.String(),
			},
		})
		if err != nil {
			return fmt.Errorf("start agent %s: %w", spec.Name, err)
		}
		select {
		case <-ctx.Done():
			return nil // closing the network stops it
		case <-process.Done():
		}
		if ctx.Err() != nil {
			return nil
		}
		err = fmt.Errorf("agent %s ended: %w\n%s", spec.Name, errors.Join(process.Err()), out.String())
		if attempt == restarts {
			return err
		}
		n.place.log.Warn("agent ended; started again", "agent", spec.Name, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// tail keeps the end of what an agent says.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - tailBytes; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// close stops the agents and takes the network down.
func (n *network) close(ctx context.Context) {
	n.once.Do(func() {
		n.account(ctx)
		n.stop()
		if err := n.lab.Close(); err != nil {
			n.place.log.Error("take the emulated network down", "error", err)
		}
		n.parts.Wait()
	})
}

// account records what the links did.
func (n *network) account(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	stats, err := n.lab.Stats(ctx)
	if err != nil {
		n.place.log.Warn("what the links did is not known", "error", err)
		return
	}
	if err := n.recordLinks(ctx, stats); err != nil {
		n.place.log.Warn("record what the links did", "error", err)
	}
}

func (n *network) recordLinks(ctx context.Context, stats netlab.Stats) error {
	p := n.place
	number := func(v int64) string { return strconv.FormatInt(v, 10) }
	overrun := max(0, stats.Overrun-n.overrun)
	for _, l := range stats.Links {
		err := p.recorder.Record(&schemas.Event{
			Intended: time.Now(), Run: p.run, Attempt: 1, Workload: p.file.Workload, Service: ServiceName, Kind: schemas.KindLink,
			Bytes: uint64(max(l.Bytes, 0)), Status: schemas.StatusOK,
			Attrs: []schemas.Attr{
				{Key: "from", Value: l.From},
				{Key: "to", Value: l.To},
				{Key: "packets", Value: number(l.Packets)},
				{Key: "lost", Value: number(l.Lost)},
				{Key: "dropped", Value: number(l.Dropped)},
				{Key: "duplicated", Value: number(l.Duplicated)},
				{Key: "reordered", Value: number(l.Reordered)},
				{Key: "delay_error_p50_ns", Value: number(l.LateP50)},
				{Key: "delay_error_p99_ns", Value: number(l.LateP99)},
				{Key: "delay_error_max_ns", Value: number(l.LateMax)},
			},
		})
		if err != nil {
			return err
		}
	}
	relay := &schemas.Event{
		Intended: time.Now(), Run: p.run, Attempt: 1, Workload: p.file.Workload, Service: ServiceName, Kind: schemas.KindLink, Status: schemas.StatusOK,
		Attrs: []schemas.Attr{
			{Key: "from", Value: "relay"},
			{Key: "to", Value: "relay"},
			{Key: "overrun", Value: number(overrun)},
			{Key: "unreachable", Value: number(stats.Unreachable)},
			{Key: "cpu_ns", Value: number(stats.CPUNanos)},
		},
	}
	// Probes count what is lost; a load that fills its link loses packets anyway.
	if overrun > 0 && p.file.Workload == schemas.WorkloadProbe {
		relay.Status = "overrun"
		relay.Error = fmt.Sprintf("the emulated network lost %d packets that it was not asked to lose: they came faster than this machine could carry them", overrun)
	}
	if err := p.recorder.Record(relay); err != nil {
		return err
	}
	return p.recorder.Flush(ctx)
}
