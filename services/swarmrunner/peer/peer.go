package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// Options say who a peer is and what limits it has.
type Options struct {
	Torrent *metainfo.Torrent
	ID      [20]byte
	// Store is the file: its whole content for a seeder, memory of the same
	// length for a leecher. The peer reads and writes it from several goroutines
	// until it is closed.
	Store []byte
	Seed  bool
	// Listener is where others reach the peer; the peer closes it. Its address,
	// or Address if given, is what the peer never dials.
	Listener net.Listener
	Address  netip.AddrPort
	// Dial connects to another peer.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Secure agrees on encryption over a new connection and returns what to go
	// on with; overhead is what the agreement itself sent and received. nil
	// leaves everything plain. An error that is [transport.ErrRedialPlain] asks for a
	// plain connection instead.
	Secure func(ctx context.Context, c net.Conn, initiator bool) (net.Conn, Overhead, error)
	// Announce tells the tracker and returns who else is there, and after how
	// long to ask again. nil: there is no tracker, others come by themselves.
	Announce func(ctx context.Context, a Announcement) (peers []netip.AddrPort, interval time.Duration, err error)

	Slots       int   // peers it sends to at a time; 0: all that ask
	Connections int   // at most; 0: 40
	Window      int64 // bytes asked of one other ahead of their coming; 0: follows the rate
	Upload      int64 // bytes a second of content; 0: no limit
	Download    int64
	SuperSeed   bool // as a seeder, show each other a piece that nobody has yet (BEP 16)
	// Corrupt makes a seeder send wrong content, to see what others make of it.
	Corrupt bool
}

// Overhead is how many bytes an agreement on encryption took.
type Overhead struct{ Sent, Received uint64 }

// Announcement is what a peer tells the tracker of itself.
type Announcement struct {
	Event                      string // started, completed, stopped or empty
	Uploaded, Downloaded, Left int64
}

// Progress is how far a peer is.
type Progress struct {
	Have, Bytes int64     // verified, of all
	Last        time.Time // when the last piece was verified; the start before any was
	Connected   int       // others it is connected to
	Sources     int       // of these, those that have something it lacks
	Announced   bool      // the tracker has answered
	Wrong       int       // pieces that were wrong
}

const defaultConnections = 40

// Peer is one participant of a swarm.
type Peer struct {
	opt    Options
	t      *metainfo.Torrent
	self   netip.AddrPort
	hello  wire.Hello
	random *rand.Rand

	ctx      context.Context
	cancel   context.CancelCauseFunc
	tasks    sync.WaitGroup
	complete chan struct{}
	done     chan struct{}
	leaving  sync.Once
	up, down *rate.Limiter
	uploads  *sync.Cond // of mu; limited uploads wait here

	mu       sync.Mutex
	started  bool
	ended    bool
	conns    []*conn
	byID     map[[20]byte]*conn
	banned   map[[20]byte]bool
	known    map[netip.AddrPort]*address
	pieces   []piece
	have     wire.Bits
	missing  int // pieces that are not verified
	unpicked int // pieces that nobody has been asked for
	inFlight int64
	window   int64
	haves    []int // verified, not yet told
	telling  bool
	turn     int // of limited uploads
	revealed []int
	open     bool // super-seeding is over: everything is shown
	// Pieces that are there and not hashed.
	whole     []int
	lastWhole time.Time
	rapid     bool // they come quickly enough to wait for each other
	gathering bool
	hashing   bool
	verify    time.Duration // how long a piece takes from asked to there, smoothed
	uploaded  int64
	deciles   int
	report    Report
}

// address is somebody to connect to.
type address struct {
	dialing  bool
	conn     *conn
	failures int
	after    time.Time // not dialled again before
}

// New checks the options; nothing is begun before Start.
func New(o Options) (*Peer, error) {
	var errs []error
	if o.Torrent == nil {
		return nil, errors.New("peer: no torrent")
	}
	if int64(len(o.Store)) != o.Torrent.Length {
		errs = append(errs, fmt.Errorf("peer: the store has %d bytes, the file %d", len(o.Store), o.Torrent.Length))
	}
	if o.Dial == nil && !o.Seed {
		errs = append(errs, errors.New("peer: no way to dial"))
	}
	if o.Slots < 0 || o.Connections < 0 || o.Window < 0 || o.Upload < 0 || o.Download < 0 {
		errs = append(errs, errors.New("peer: limits below 0"))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if o.Connections == 0 {
		o.Connections = defaultConnections
	}
	p := &Peer{
		opt: o, t: o.Torrent, self: o.Address, hello: wire.Hello{InfoHash: o.Torrent.InfoHash, ID: o.ID},
		// Which of several equally rare pieces comes first: every peer its own.
		random:   rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		complete: make(chan struct{}), done: make(chan struct{}),
		byID: map[[20]byte]*conn{}, banned: map[[20]byte]bool{}, known: map[netip.AddrPort]*address{},
		pieces: make([]piece, o.Torrent.Pieces()), have: wire.NewBits(o.Torrent.Pieces()),
	}
	p.uploads = sync.NewCond(&p.mu)
	p.hello.SetFast()
	if !p.self.IsValid() && o.Listener != nil {
		if a, err := netip.ParseAddrPort(o.Listener.Addr().String()); err == nil {
			p.self = a
		}
	}
	p.up, p.down = limiter(o.Upload), limiter(o.Download)
	p.missing, p.unpicked = len(p.pieces), len(p.pieces)
	p.report.Bytes = p.t.Length
	if o.Seed {
		p.have.Fill(len(p.pieces))
		p.missing, p.unpicked, p.report.Have = 0, 0, p.t.Length
		for i := range p.pieces {
			p.pieces[i].state = verified
		}
		close(p.complete)
	}
	p.revealed = make([]int, len(p.pieces))
	p.open = !o.SuperSeed || !o.Seed
	p.window = max(o.Window, p.leastInFlight(), initialWindow)
	return p, nil
}

// limiter of bytes a second, nil for no limit. What it lets through at once is
// little, so that a limited peer sends evenly: what comes due in 20 ms, by which
// a busy machine may wake it late.
func limiter(perSecond int64) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(2*wire.BlockSize, int(perSecond/50)))
}

// Start begins: others are let in, the tracker is told, those it names are
// dialled. The end of ctx is that of the peer, as by [Peer.Kill].
func (p *Peer) Start(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.ended {
		return
	}
	p.started = true
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	p.report.Begun = time.Now()
	if p.opt.Seed {
		p.report.Completed = p.report.Begun
	}
	if p.opt.Listener != nil {
		p.tasks.Go(p.accept)
	}
	if p.opt.Announce != nil {
		p.tasks.Go(p.announce)
	}
	if p.up != nil {
		p.tasks.Go(p.sendLimited)
	}
	p.tasks.Go(p.tend)
	context.AfterFunc(p.ctx, p.close)
}

// Complete is closed when every piece is verified; a seeder's from the start.
func (p *Peer) Complete() <-chan struct{} { return p.complete }

// Done is closed when nothing of the peer is left.
func (p *Peer) Done() <-chan struct{} { return p.done }

// Progress is how far the peer is.
func (p *Peer) Progress() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	progress := Progress{
		Have: p.report.Have, Bytes: p.t.Length, Last: p.report.Begun, Connected: len(p.conns),
		Announced: !p.report.Announced.IsZero(), Wrong: p.report.HashFailures,
	}
	for _, c := range p.conns {
		if c.wanted > 0 {
			progress.Sources++
		}
	}
	if n := len(p.report.Pieces); n > 0 {
		progress.Last = p.report.Pieces[n-1].Verified
	}
	return progress
}

// Report is what the peer did; whole only after [Peer.Done].
func (p *Peer) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report
}

var (
	errKilled = errors.New("killed")
	errLeft   = errors.New("left")
)

// Kill ends the peer without a word: connections are reset, the tracker is not
// told.
func (p *Peer) Kill() { p.end(errKilled) }

// Leave tells the tracker, closes everything and waits for the end of it, at
// most until ctx ends.
func (p *Peer) Leave(ctx context.Context) {
	p.mu.Lock()
	running := p.started && !p.ended
	farewell := p.account("stopped")
	p.mu.Unlock()
	if running && p.opt.Announce != nil {
		p.leaving.Do(func() {
			// A tracker that does not answer keeps nobody from leaving.
			_, _, _ = p.opt.Announce(ctx, farewell)
		})
	}
	p.end(errLeft)
	select {
	case <-p.done:
	case <-ctx.Done():
	}
}

func (p *Peer) end(why error) {
	p.mu.Lock()
	if p.started {
		p.mu.Unlock()
		p.cancel(why)
		return
	}
	ended := p.ended
	p.ended = true
	p.mu.Unlock()
	if !ended {
		if p.opt.Listener != nil {
			_ = p.opt.Listener.Close()
		}
		close(p.done)
	}
}

// close ends what the peer runs, once its context has ended.
func (p *Peer) close() {
	abort := !errors.Is(context.Cause(p.ctx), errLeft)
	p.mu.Lock()
	p.ended = true
	conns := append([]*conn(nil), p.conns...)
	p.uploads.Broadcast()
	p.mu.Unlock()
	if p.opt.Listener != nil {
		_ = p.opt.Listener.Close()
	}
	for _, c := range conns {
		c.shut(abort)
	}
	p.tasks.Wait()
	p.mu.Lock()
	p.report.Left = time.Now()
	p.mu.Unlock()
	close(p.done)
}

// fail ends the peer because of a fault of its own.
func (p *Peer) fail(err error) {
	p.mu.Lock()
	if p.report.Err == nil {
		p.report.Err = err
	}
	p.mu.Unlock()
	p.cancel(err)
}

// accept lets others in.
func (p *Peer) accept() {
	for {
		c, err := p.opt.Listener.Accept()
		if err != nil {
			if p.ctx.Err() == nil {
				p.fail(fmt.Errorf("accept connections: %w", err))
			}
			return
		}
		p.mu.Lock()
		full := p.ended || len(p.conns) >= p.opt.Connections
		if !full {
			p.tasks.Go(func() { p.welcome(c) })
		}
		p.mu.Unlock()
		if full {
			_ = c.Close()
		}
	}
}

// How long another may take to be connected and say hello.
const (
	dialPatience  = 5 * time.Second
	helloPatience = 10 * time.Second
)

// learn adds addresses; p.mu is held.
func (p *Peer) learn(others []netip.AddrPort) {
	for _, a := range others {
		if a == p.self || !a.IsValid() || a.Port() == 0 || len(p.known) >= maxKnown {
			continue
		}
		if _, known := p.known[a]; !known {
			p.known[a] = &address{}
		}
	}
}

// maxKnown bounds how many addresses a peer keeps.
const maxKnown = 4096

// dialOthers connects to addresses it is not connected to; p.mu is held.
func (p *Peer) dialOthers() {
	if p.ended || p.missing == 0 || p.opt.Dial == nil {
		return
	}
	// In a swarm larger than that, half of a peer's connections are those of
	// others to it: were all its own, nobody who comes later would find room.
	most := p.opt.Connections
	if len(p.known) >= most {
		most = (most + 1) / 2
	}
	outgoing := 0
	for _, a := range p.known {
		if a.dialing || a.conn != nil {
			outgoing++
		}
	}
	now := time.Now()
	for to, a := range p.known {
		if outgoing >= most || len(p.conns) >= p.opt.Connections {
			return
		}
		if a.dialing || a.conn != nil || now.Before(a.after) {
			continue
		}
		a.dialing = true
		outgoing++
		p.tasks.Go(func() { p.visit(to, a) })
	}
}

// Back-off of dials: most that fail do so because the other is just not there
// yet, or full.
const (
	firstRedial = 100 * time.Millisecond
	lastRedial  = 5 * time.Second
)

// visit connects to another and stays until the connection ends.
func (p *Peer) visit(to netip.AddrPort, a *address) {
	c, err := p.call(to)
	if err == nil {
		p.mu.Lock()
		a.conn = c
		p.mu.Unlock()
		err = c.run()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a.dialing, a.conn = false, nil
	a.failures++
	a.after = time.Now().Add(min(firstRedial<<min(a.failures-1, 10), lastRedial))
	if errors.Is(err, errSelf) || errors.Is(err, errBanned) {
		a.after = time.Now().Add(time.Hour)
	}
	if errors.Is(err, errTwice) {
		// The other connection serves both; should it end, this one may try.
		a.after = time.Now().Add(lastRedial)
	}
}

// tick is how often a peer looks after what does not happen by itself.
const tick = 50 * time.Millisecond

// tend looks after dials, slow pieces and slots.
func (p *Peer) tend() {
	t := time.NewTicker(tick)
	defer t.Stop()
	rechoke := time.Now()
	for {
		select {
		case <-p.ctx.Done():
			return
		case now := <-t.C:
			p.mu.Lock()
			p.dialOthers()
			p.rescue(now)
			p.unveil()
			if p.opt.Slots > 0 && now.Sub(rechoke) >= rechokeEvery {
				rechoke = now
				p.rechoke()
			}
			p.mu.Unlock()
		}
	}
}
