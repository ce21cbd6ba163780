package swarmrunner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
	"github.com/transferlab/transferlab/services/swarmrunner/peer"
	"github.com/transferlab/transferlab/services/swarmrunner/tracker"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
)

// spec is what a peer needs to be prepared.
type spec struct {
	Seeder     bool       `json:"seeder,omitempty"`
	Address    netip.Addr `json:"address"` // to listen at
	Size       int64      `json:"size"`
	Key        []byte     `json:"key"` // of the content: seeders make it
	Storage    string     `json:"storage"`
	Dir        string     `json:"dir"`
	Protocol   string     `json:"protocol"`
	Encryption string     `json:"encryption"`
	Slots      int        `json:"slots"`
	// Connections is also how many others it asks the tracker for.
	Connections int   `json:"connections"`
	Window      int64 `json:"window"`
	Upload      int64 `json:"upload"` // bytes a second
	Download    int64 `json:"download"`
	SuperSeed   bool  `json:"super_seed,omitempty"`
	// Fine has a process say more often how far it is.
	Fine bool `json:"fine,omitempty"`
}

// orders are what it needs to take part.
type orders struct {
	Torrent []byte         `json:"torrent"` // the file, as a client would get it
	ID      []byte         `json:"id"`
	Self    netip.AddrPort `json:"self"` // where others reach it
	Corrupt bool           `json:"corrupt,omitempty"`
}

// command is what a peer is told.
type command string

const (
	cmdStart command = "start"
	cmdLeave command = "leave"
	cmdStop  command = "stop" // without a word to the others
	cmdDie   command = "die"  // as stop; a process is killed
	cmdHash  command = "hash" // once it is done
)

// body is a peer in this process or in one of its own.
type body interface {
	// arm hands it what it needs to take part. An error that is errBadTorrent
	// is the peer's own.
	arm(ctx context.Context, o orders) error
	// tell returns at once; what comes of it shows in its life.
	tell(c command)
	// close frees everything, which waits for the peer's end for a while.
	close() error
}

// life is what is known of a peer from outside.
type life struct {
	address  netip.AddrPort // it listens at
	pid      int            // of its process, 0 without one of its own
	complete chan struct{}  // closed when it has the file, a leecher's only
	done     chan struct{}  // closed when it has ended; outcome is there then
	hashed   chan struct{}  // closed when the file is read, or cannot be

	mu       sync.Mutex
	progress func() peer.Progress
	outcome  outcome
	sum      [32]byte
	took     time.Duration // to hash
	hashErr  error
}

func newLife() *life {
	return &life{complete: make(chan struct{}), done: make(chan struct{}), hashed: make(chan struct{})}
}

// now is how far the peer is.
func (l *life) now() peer.Progress {
	l.mu.Lock()
	progress := l.progress
	l.mu.Unlock()
	if progress == nil {
		return peer.Progress{}
	}
	return progress()
}

// outcome is what a peer did.
type outcome struct {
	Report  peer.Report
	Tracker tracker.Traffic     // with the tracker
	Packets transport.Datagrams // uTP alone
	Own     transport.Usage     // of a process's sockets; those of this process's peers are its network's
	Killed  bool                // nobody is left to report: Report has what was known
	Err     string              // why it ended by itself
	Refused string              // what the tracker said last, if it was no answer
}

var errBadTorrent = errors.New("the torrent cannot be read")

// How long a peer may take to leave: to tell the tracker and to close its
// connections. It is killed then, and not waited for after another while.
const (
	leaveLimit = 3 * time.Second
	killLimit  = 10 * time.Second
)

// local is a peer in this process.
type local struct {
	*life
	spec     spec
	network  *transport.Network
	endpoint *transport.Endpoint
	content  []byte // of a seeder; others use it too
	store    *store // of a leecher
	client   tracker.Client
	peer     *peer.Peer
	armed    bool
}

var _ body = (*local)(nil)

// openLocal makes what a peer needs: memory and an address.
func openLocal(ctx context.Context, network *transport.Network, s spec, content []byte) (_ *local, err error) {
	l := &local{life: newLife(), spec: s, network: network, content: content}
	if !s.Seeder {
		if l.store, err = newStore(s.Storage, s.Dir, s.Size); err != nil {
			return nil, err
		}
	}
	l.endpoint, err = network.Endpoint(ctx, s.Protocol, netip.AddrPortFrom(s.Address, 0))
	if isForeign(err) && !s.Address.IsLoopback() {
		l.spec.Address = unspecified(s.Address)
		l.endpoint, err = network.Endpoint(ctx, s.Protocol, netip.AddrPortFrom(l.spec.Address, 0))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", s.Address, err), l.store.close())
	}
	l.address = l.endpoint.Addr()
	from := l.spec.Address
	if from.IsUnspecified() {
		from = netip.Addr{}
	}
	l.client.Dial = func(ctx context.Context, protocol, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		return network.Dial(ctx, protocol, from, to)
	}
	return l, nil
}

func (l *local) arm(_ context.Context, o orders) error {
	torrent, err := metainfo.Parse(o.Torrent)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errBadTorrent, err)
	case torrent.Length != l.spec.Size:
		return fmt.Errorf("%w: of %d bytes, want %d", errBadTorrent, torrent.Length, l.spec.Size)
	case len(torrent.Announce) == 0:
		return fmt.Errorf("%w: it names no tracker", errBadTorrent)
	}
	options := peer.Options{
		Torrent: torrent, ID: [20]byte(o.ID), Store: l.content, Seed: l.spec.Seeder, Listener: l.endpoint.Listener(), Address: o.Self,
		Dial: l.endpoint.Dial, Slots: l.spec.Slots, Connections: l.spec.Connections, Window: l.spec.Window,
		Upload: l.spec.Upload, Download: l.spec.Download, SuperSeed: l.spec.SuperSeed, Corrupt: o.Corrupt,
	}
	if !l.spec.Seeder {
		options.Store = l.store.data
	}
	if l.spec.Encryption != "off" {
		options.Secure = func(ctx context.Context, c net.Conn, initiator bool) (net.Conn, peer.Overhead, error) {
			secured, sent, received, err := transport.Secure(ctx, c, l.spec.Encryption, torrent.InfoHash, initiator)
			return secured, peer.Overhead{Sent: sent, Received: received}, err
		}
	}
	request := tracker.Request{InfoHash: torrent.InfoHash, PeerID: options.ID, Port: o.Self.Port(), NumWant: l.spec.Connections + 1}
	options.Announce = func(ctx context.Context, a peer.Announcement) ([]netip.AddrPort, time.Duration, error) {
		r := request
		r.Event, r.Uploaded, r.Downloaded, r.Left = a.Event, a.Uploaded, a.Downloaded, a.Left
		answer, err := l.client.Announce(ctx, torrent.Announce[0], r)
		return answer.Peers, answer.Interval, err
	}
	if l.peer, err = peer.New(options); err != nil {
		return err
	}
	l.armed = true
	l.mu.Lock()
	l.progress = l.peer.Progress
	l.mu.Unlock()
	go l.follow()
	return nil
}

// follow passes on what becomes of the peer. It ends with it.
func (l *local) follow() {
	if !l.spec.Seeder {
		select {
		case <-l.peer.Complete():
			close(l.complete)
		case <-l.peer.Done():
		}
	}
	<-l.peer.Done()
	report := l.peer.Report()
	// Only now is everything counted that was on its way.
	err := l.endpoint.Close()
	o := outcome{Report: report, Tracker: l.client.Traffic(), Packets: l.endpoint.Datagrams()}
	if err := errors.Join(report.Err, err); err != nil {
		o.Err = err.Error()
	}
	if report.TrackerError != nil {
		o.Refused = report.TrackerError.Error()
	}
	l.mu.Lock()
	l.outcome = o
	l.mu.Unlock()
	close(l.done)
}

func (l *local) tell(c command) {
	switch {
	case !l.armed:
	case c == cmdStart:
		// Its end is the job's to decide, which must know why first.
		l.peer.Start(context.Background())
	case c == cmdLeave:
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
			defer cancel()
			l.peer.Leave(ctx)
			l.peer.Kill()
		}()
	case c == cmdStop, c == cmdDie:
		l.peer.Kill()
	case c == cmdHash:
		go func() {
			begun := time.Now()
			sum, err := digest(context.Background(), l.store.data)
			l.mu.Lock()
			l.sum, l.took, l.hashErr = sum, time.Since(begun), err
			l.mu.Unlock()
			close(l.hashed)
		}()
	}
}

func (l *local) close() error {
	if !l.armed {
		return errors.Join(l.endpoint.Close(), l.store.close())
	}
	l.peer.Kill()
	select {
	case <-l.done:
		return l.store.close()
	case <-time.After(killLimit):
		// Its memory stays: to take away what it may still write to would end
		// the process.
		return fmt.Errorf("a peer at %s did not end within %s", l.address, killLimit)
	}
}

// member is a peer of this agent in a trial.
type member struct {
	body
	*life
	seeder  bool
	number  int             // among the trial's seeders or leechers
	client  *schemas.Client // nil for a seeder beside the clients
	arrival time.Duration
	bad     error // its torrent cannot be read

	// Of leechers; the job's mu protects them.
	begun  bool
	status string // what became of it; empty as long as that is open
	text   string
	at     time.Time // when that was known
	// Of seeders.
	stopped bool // by a fault
}

// name is how events call the peer.
func (m *member) name() string { return peerName(m.seeder, m.number) }

func peerName(seeder bool, number int) string {
	if seeder {
		return fmt.Sprintf("seeder %d", number)
	}
	return fmt.Sprintf("leecher %d", number)
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
