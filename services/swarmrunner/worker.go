package swarmrunner

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
	"github.com/transferlab/transferlab/services/swarmrunner/tracker"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
)

// Worker executes the service's tasks.
type Worker struct {
	cfg Config
	// aside says that the bus is not reached through an interface of this
	// machine's, so that they carry nothing of it.
	aside bool
	log   *slog.Logger
}

var _ agent.Worker = (*Worker)(nil)

// NewWorker returns what executes the service's tasks. Without an address in
// cfg its peers listen at the loopback interface.
func NewWorker(cfg Config, log *slog.Logger) *Worker { return &Worker{cfg: cfg, log: log} }

// Prepare makes the file, the torrent, the network and everything of the peers
// that must not be timed: their memory, listeners, processes.
func (w *Worker) Prepare(ctx context.Context, task *schemas.Task) (agent.Job, error) {
	if err := task.Validate(); err != nil {
		return nil, err
	}
	if task.Agents < 1 {
		return nil, fmt.Errorf("task.agents: %d, want how many take part, 1 or more", task.Agents)
	}
	var section schemas.Swarm
	if err := json.Unmarshal(task.Section, &section); err != nil {
		return nil, fmt.Errorf("read the section of the task: %w", err)
	}
	section.SetDefaults()
	if err := section.Validate(); err != nil {
		return nil, err
	}
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if w.cfg.Address != "" && task.Agents > 1 {
		var err error
		if addr, err = netip.ParseAddr(w.cfg.Address); err != nil {
			return nil, fmt.Errorf("--address: %q, want an IP address", w.cfg.Address)
		}
	}
	j := newJob(w, task, &section, addr)
	if err := j.prepare(ctx); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

func (j *job) prepare(ctx context.Context) error {
	leechers, seeders := here(j.section, j.task)
	if err := j.fits(len(leechers), len(seeders)); err != nil {
		return err
	}
	var err error
	if j.network, err = j.enter(); err != nil {
		return err
	}
	if err := j.makeFile(ctx, len(seeders) > 0); err != nil {
		return err
	}
	if len(seeders) > 0 {
		if err := j.openTracker(ctx); err != nil {
			return err
		}
	}
	if err := j.makeMembers(ctx, leechers, seeders); err != nil {
		return err
	}
	if j.task.Agents > 1 {
		return nil
	}
	// Nobody else takes part: everything is known.
	alone := schemas.Peer{Agent: j.task.Agent, Endpoint: schemas.Endpoint{Address: j.addr.String(), Ports: j.Ports()}, Clients: j.task.Clients}
	return j.assemble(ctx, []schemas.Peer{alone}, "")
}

// enter chooses the network.
func (j *job) enter() (*transport.Network, error) {
	private := j.section.Network == "private"
	if private && j.task.Agents > 1 {
		return nil, fmt.Errorf("swarm.network: private, but %d agents take part: only one can have it", j.task.Agents)
	}
	if !private && (j.section.Network == "host" || j.task.Agents > 1) {
		return transport.Host(), nil
	}
	n, err := transport.Private()
	if errors.Is(err, transport.ErrNotPermitted) && !private {
		return transport.Host(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("swarm.network: private, which cannot be had here (auto goes on without): %w", err)
	}
	return n, nil
}

// fits refuses what this machine cannot hold.
func (j *job) fits(leechers, seeders int) error {
	var faults []error
	copies := 2 // the content, and what the plain copy goes to once the leechers' memory is free
	if j.section.Storage == "memory" {
		copies = 1 + max(leechers, 1)
	}
	if j.section.Isolation == "process" {
		copies += seeders
	}
	need := int64(copies) * int64(j.section.Size)
	if left, known := availableMemory(); known && need > left {
		faults = append(faults, fmt.Errorf("%s for each of %d leechers and the content itself need %d MB of memory, this machine has %d MB left: fewer clients, a smaller swarm.size or storage: file",
			j.section.Size, leechers, need>>20, left>>20))
	}
	// Each connection between two peers of this process is a socket of both.
	if j.section.Isolation != "process" {
		others := j.section.Connections
		if j.task.Agents == 1 {
			others = min(others, leechers+seeders-1)
		}
		const beside = 256
		sockets := uint64((leechers+seeders)*(others+2) + beside)
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && j.section.Protocol == "tcp" && sockets > limit.Cur {
			faults = append(faults, fmt.Errorf("%d peers with up to %d connections each need %d sockets, this process may have %d: a smaller swarm.connections, or raise `ulimit -n`",
				leechers+seeders, others, sockets, limit.Cur))
		}
	}
	return errors.Join(faults...)
}

// makeFile makes the content, for what follows from it, and keeps it where it is
// seeded.
func (j *job) makeFile(ctx context.Context, keep bool) error {
	content, err := newMemory(int64(j.section.Size))
	if err != nil {
		return err
	}
	j.content = content
	if err := makeContent(ctx, j.key, content.data); err != nil {
		return err
	}
	if j.sum, err = digest(ctx, content.data); err != nil {
		return err
	}
	j.torrent = metainfo.Make(j.section.FileName(), content.data, j.section.PieceLength())
	if !keep {
		j.content = nil
		return content.close()
	}
	return nil
}

// openTracker opens the tracker, and where the trial's other agents come to. With
// several agents that have seeders all but the first's will not be needed.
func (j *job) openTracker(ctx context.Context) error {
	options := tracker.Options{InfoHashes: func(hash [20]byte) bool { return hash == j.torrent.InfoHash }, Log: j.log}
	if j.task.Agents > 1 {
		// Until the trial has a secret nobody is let in.
		options.Token = newNonce()
	}
	server, err := tracker.NewServer(options)
	if err != nil {
		return err
	}
	j.tracker = server
	if j.section.Tracker == "udp" {
		c, err := openAt(j.addr, func(at netip.AddrPort) (net.PacketConn, error) { return j.network.ListenPacket(ctx, at) })
		if err != nil {
			return fmt.Errorf("open the tracker: %w", err)
		}
		j.trackerPort = portOf(c.LocalAddr())
		j.serve(func() error { return server.ServePacket(c) })
	} else {
		l, err := openAt(j.addr, func(at netip.AddrPort) (net.Listener, error) { return j.network.Listen(ctx, at) })
		if err != nil {
			return fmt.Errorf("open the tracker: %w", err)
		}
		j.trackerPort = portOf(l.Addr())
		j.serve(func() error { return server.Serve(l) })
	}
	if j.task.Agents == 1 {
		return nil
	}
	l, err := openAt(j.addr, func(at netip.AddrPort) (net.Listener, error) { return j.network.Listen(ctx, at) })
	if err != nil {
		return fmt.Errorf("listen for the trial's other agents: %w", err)
	}
	j.hub = newHub(l, j.log)
	return nil
}

func (j *job) serve(run func() error) {
	j.serving.Go(func() {
		if err := run(); err != nil {
			j.log.Error("the tracker ended", "error", err)
		}
	})
}

// openAt opens something at any port of an address, or of all the machine's where
// the address is not this machine's own but its router's.
func openAt[T any](addr netip.Addr, open func(netip.AddrPort) (T, error)) (T, error) {
	opened, err := open(netip.AddrPortFrom(addr, 0))
	if isForeign(err) && !addr.IsLoopback() {
		return open(netip.AddrPortFrom(unspecified(addr), 0))
	}
	return opened, err
}

// isForeign reports whether an address could not be listened at because no
// interface has it.
func isForeign(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }

func portOf(a net.Addr) uint16 {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return 0
	}
	return at.Port()
}

// startParallel is how many processes of peers are started at a time.
const startParallel = 8

// makeMembers makes this agent's peers, each with an address.
func (j *job) makeMembers(ctx context.Context, leechers, seeders []*schemas.Client) error {
	for i, c := range leechers {
		j.leechers = append(j.leechers, &member{number: i, client: c})
	}
	for i, c := range seeders {
		j.seeders = append(j.seeders, &member{number: i, client: c, seeder: true})
	}
	all := j.members()
	faults := make([]error, len(all))
	free := make(chan struct{}, startParallel)
	var making sync.WaitGroup
	for i, m := range all {
		free <- struct{}{}
		making.Go(func() {
			defer func() { <-free }()
			if ctx.Err() != nil {
				faults[i] = context.Cause(ctx)
				return
			}
			faults[i] = j.makeMember(ctx, m)
		})
	}
	making.Wait()
	return errors.Join(faults...)
}

func (j *job) makeMember(ctx context.Context, m *member) error {
	s := j.section
	addr := j.addr
	if j.task.Agents == 1 {
		addr = homeAddress(m.seeder, m.number)
	}
	of := spec{
		Seeder: m.seeder, Address: addr, Size: int64(s.Size), Key: j.key[:], Storage: s.Storage, Dir: j.worker.cfg.dir(),
		Protocol: s.Protocol, Encryption: s.Encryption, Slots: s.Slots, Connections: s.Connections, Window: int64(s.Window),
		Upload: int64(s.Upload) / 8, Download: int64(s.Download) / 8, Fine: sharesMatter(s),
	}
	if m.seeder {
		of.Upload, of.Download = int64(s.SeedUpload)/8, 0
		of.SuperSeed = s.SuperSeed == "on" || s.SuperSeed == "auto" && s.SeedUpload > 0
	}
	if s.Isolation == "process" {
		c, err := startChild(ctx, j.network, of, j.log)
		if err != nil {
			return fmt.Errorf("start the process of a peer: %w", err)
		}
		m.body, m.life = c, c.life
		return nil
	}
	var content []byte
	if m.seeder {
		content = j.content.data
	}
	l, err := openLocal(ctx, j.network, of, content)
	if err != nil {
		return err
	}
	m.body, m.life = l, l.life
	return nil
}

// assemble gives every peer its number and what it needs to take part.
func (j *job) assemble(ctx context.Context, agents []schemas.Peer, token string) error {
	c, err := casting(j.section, agents)
	if err != nil {
		return err
	}
	if len(agents) != j.task.Agents {
		return fmt.Errorf("%d agents are at the start, want %d", len(agents), j.task.Agents)
	}
	j.cast, j.token = c, token
	number(j.leechers, c.leechers, j.task.Agent)
	number(j.seeders, c.seeders, j.task.Agent)
	j.plan()
	port := c.ports[c.hub]["tracker"]
	if port == 0 {
		return fmt.Errorf("agent %s has no tracker", c.hub)
	}
	announce := tracker.URL(j.section.Tracker, netip.AddrPortFrom(c.address[c.hub], port).String(), token)
	file := j.torrent.Encode(announce)
	var arming sync.WaitGroup
	free := make(chan struct{}, startParallel)
	faults := make([]error, len(j.members()))
	for i, m := range j.members() {
		free <- struct{}{}
		arming.Go(func() {
			defer func() { <-free }()
			id := peerID(j.key, m.seeder, m.number)
			o := orders{Torrent: file, ID: id[:], Self: m.address, Corrupt: m.seeder && j.hasFault(schemas.FaultCorruptSeeder, m.number)}
			if j.task.Agents > 1 {
				o.Self = netip.AddrPortFrom(c.address[j.task.Agent], m.address.Port())
			}
			if !m.seeder && j.hasFault(schemas.FaultTruncateTorrent, m.number) {
				o.Torrent = file[:len(file)/2]
			}
			err := m.arm(ctx, o)
			if errors.Is(err, errBadTorrent) && !m.seeder {
				m.bad = err
				return
			}
			faults[i] = err
		})
	}
	arming.Wait()
	return errors.Join(faults...)
}

// number gives the peers of an agent their numbers among all.
func number(members []*member, roles []role, agent string) {
	i := 0
	for n, r := range roles {
		if r.agent == agent && i < len(members) {
			members[i].number, members[i].client = n, r.client
			i++
		}
	}
}

func (j *job) hasFault(do string, number int) bool {
	for _, f := range j.section.Faults {
		if f.Do == do && f.Peer == number {
			return true
		}
	}
	return false
}

// sharesMatter reports whether something is to happen as soon as a leecher has
// so much.
func sharesMatter(s *schemas.Swarm) bool {
	for _, f := range s.Faults {
		if f.Progress > 0 {
			return true
		}
	}
	return false
}

// Ports implements agent.Listener.
func (j *job) Ports() map[string]uint16 {
	ports := map[string]uint16{}
	if j.tracker != nil {
		ports["tracker"] = j.trackerPort
	}
	if j.hub != nil {
		ports["hub"] = j.hub.port()
	}
	return ports
}

// trackerToken is what the tracker demands of the trial's peers.
func trackerToken(key []byte) string {
	return hex.EncodeToString(mac(key, "transferlab swarm tracker")[:16])
}

// dir is where files are kept.
func (c *Config) dir() string {
	if c.WorkDir != "" {
		return c.WorkDir
	}
	return os.TempDir()
}
