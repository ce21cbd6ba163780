package prober

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/prober/packet"
	"github.com/transferlab/transferlab/services/prober/stream"
)

// Worker executes the service's tasks.
type Worker struct {
	cfg      Config
	log      *slog.Logger
	resolver *net.Resolver
	retry    time.Duration // between lookups of a name that is unknown
}

var _ agent.Worker = (*Worker)(nil)

// NewWorker returns what executes the service's tasks. Without an address in
// cfg its jobs listen at the loopback interface.
func NewWorker(cfg Config, log *slog.Logger) *Worker {
	return &Worker{cfg: cfg, log: log, resolver: net.DefaultResolver, retry: 5 * time.Second}
}

// Prepare reads the section, opens what others of the mesh reach, and looks the
// targets' names up. That a name is unknown is a finding, not a failure.
func (w *Worker) Prepare(ctx context.Context, task *schemas.Task) (agent.Job, error) {
	if err := task.Validate(); err != nil {
		return nil, err
	}
	var section schemas.Probe
	if err := json.Unmarshal(task.Section, &section); err != nil {
		return nil, fmt.Errorf("read the section of the task: %w", err)
	}
	section.SetDefaults()
	if err := section.Validate(); err != nil {
		return nil, err
	}
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if w.cfg.Address != "" {
		var err error
		if addr, err = netip.ParseAddr(w.cfg.Address); err != nil {
			return nil, fmt.Errorf("--address: %q, want an IP address", w.cfg.Address)
		}
	}
	roots, err := w.cfg.roots()
	if err != nil {
		return nil, err
	}
	j := &job{
		log: w.log, task: task, section: &section, prepared: time.Now(),
		lag: hdrhistogram.New(64, int64(time.Hour), 3),
		stream: stream.Options{
			Timeout: time.Duration(section.Timeout), DSCP: section.DSCP, TTL: section.TTL, IP: section.IP,
			Insecure: section.Insecure, Roots: roots, Resolver: w.resolver,
		},
		names: newNames(w.resolver, section.IP, w.retry),
	}
	if section.Mesh != "none" {
		if err := j.listen(addr); err != nil {
			return nil, errors.Join(err, j.Close())
		}
	}
	for _, text := range section.Targets {
		t, err := schemas.ParseTarget(text)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("probe.targets: %w", err), j.Close())
		}
		j.targets = append(j.targets, t)
		if !looksUp(t.Protocol) {
			j.names.add(t.Host)
		}
	}
	j.names.lookUp(ctx)
	if ctx.Err() != nil {
		return nil, errors.Join(context.Cause(ctx), j.Close())
	}
	return j, nil
}

// looksUp reports whether each probe of a protocol looks the target's name up.
func looksUp(protocol string) bool {
	return protocol == schemas.ProtocolHTTP || protocol == schemas.ProtocolHTTPS
}

// listen opens the responders.
func (j *job) listen(addr netip.Addr) error {
	responders, err := stream.Listen(addr, j.section.Protocols, j.log)
	if err != nil {
		return err
	}
	j.responders = responders
	if !slices.Contains(j.section.Protocols, schemas.ProtocolUDP) {
		return nil
	}
	reflector, err := packet.NewReflector(netip.AddrPortFrom(addr, 0), j.log)
	if errors.Is(err, syscall.EADDRNOTAVAIL) && !addr.IsLoopback() {
		reflector, err = packet.NewReflector(netip.AddrPortFrom(stream.Unspecified(addr), 0), j.log)
	}
	if err != nil {
		return fmt.Errorf("open STAMP reflector: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	j.reflector, j.stopReflector = reflector, stop
	j.reflecting.Go(func() {
		if err := reflector.Run(ctx); err != nil && ctx.Err() == nil {
			j.log.Error("STAMP reflector ended", "error", err)
		}
	})
	return nil
}

// Ports implements agent.Listener.
func (j *job) Ports() map[string]uint16 {
	ports := map[string]uint16{}
	if j.responders != nil {
		maps.Copy(ports, j.responders.Ports())
	}
	if j.reflector != nil {
		ports[schemas.ProtocolUDP] = j.reflector.Port()
	}
	return ports
}

// Close implements agent.Job.
func (j *job) Close() error {
	var errs []error
	if j.responders != nil {
		errs = append(errs, j.responders.Close())
	}
	if j.reflector != nil {
		j.stopReflector()
		j.reflecting.Wait()
		errs = append(errs, j.reflector.Close())
		j.reflector = nil
	}
	j.responders = nil
	return errors.Join(errs...)
}

// names are the addresses of hosts, looked up until they are known.
type names struct {
	resolver *net.Resolver
	version  string
	retry    time.Duration

	mu    sync.Mutex
	hosts map[string]*host
}

type host struct {
	addr netip.Addr
	err  error
}

func newNames(r *net.Resolver, version string, retry time.Duration) *names {
	return &names{resolver: r, version: version, retry: retry, hosts: map[string]*host{}}
}

// add makes a host one that is looked up.
func (n *names) add(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &host{err: errors.New("not looked up yet")}
	if addr, err := netip.ParseAddr(name); err == nil {
		h.addr, h.err = addr, nil
	}
	n.hosts[name] = h
}

// get is the host's address, or why there is none.
func (n *names) get(name string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, ok := n.hosts[name]
	if !ok {
		return netip.Addr{}, fmt.Errorf("host %q is none of the targets'", name)
	}
	return h.addr, h.err
}

func (n *names) unknown() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var unknown []string
	for name, h := range n.hosts {
		if h.err != nil {
			unknown = append(unknown, name)
		}
	}
	return unknown
}

// Limits of one round of lookups.
const (
	lookupPatience = 5 * time.Second
	lookupParallel = 32
)

// lookUp tries once to find every address that is not known.
func (n *names) lookUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookupPatience)
	defer cancel()
	free := make(chan struct{}, lookupParallel)
	var round sync.WaitGroup
	for _, name := range n.unknown() {
		free <- struct{}{}
		round.Go(func() {
			defer func() { <-free }()
			addr, err := stream.Lookup(ctx, n.resolver, n.version, name)
			n.mu.Lock()
			defer n.mu.Unlock()
			*n.hosts[name] = host{addr, err}
		})
	}
	round.Wait()
}

// watch looks up until every host is known or ctx ends.
func (n *names) watch(ctx context.Context) {
	tick := time.NewTicker(n.retry)
	defer tick.Stop()
	for len(n.unknown()) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n.lookUp(ctx)
	}
}
