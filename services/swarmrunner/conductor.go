package swarmrunner

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Agents of a trial tell each other how far they are: seeders stay until the
// last leecher has ended, wherever it is. The tracker's agent, the hub, is told
// by the others, and tells them when it is over. It is one connection of each
// agent to the hub, lines of JSON, after both ends have shown that they know the
// trial's key. An agent whose connection is lost is gone with all its leechers.

// Limits of what comes from others.
const (
	maxLine        = 4 << 10
	maxNotes       = 100_000 // of one connection
	handshakeLimit = 10 * time.Second
	maxHandshakes  = 64 // connections that have not shown yet that they know the key
)

// What a connection is for.
const (
	forNotes = "notes"
	forCopy  = "copy"
)

// greeting is the hub's first line.
type greeting struct {
	Nonce string `json:"nonce"`
}

// answer is the other's.
type answer struct {
	Agent string `json:"agent"`
	For   string `json:"for"`
	Nonce string `json:"nonce"`
	MAC   string `json:"mac"`
}

// welcome is the hub's proof.
type welcome struct {
	MAC string `json:"mac"`
}

// note is a line of a connection that is for notes.
type note struct {
	// Of an agent: how many of its leechers have ended, that all its peers have
	// left, that it has copied.
	Ended  int  `json:"ended,omitempty"`
	Left   bool `json:"left,omitempty"`
	Copied bool `json:"copied,omitempty"`
	// Of both: the largest share of the file that a leecher has.
	Share float64 `json:"share,omitempty"`
	// Of the hub: every leecher has ended; the agent is to copy.
	Over bool `json:"over,omitempty"`
	Copy bool `json:"copy,omitempty"`
}

var errLine = errors.New("a line that is none of ours")

// parseLine reads one line of JSON without anything unknown in it.
func parseLine(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", errLine, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more behind it", errLine)
	}
	return nil
}

// parseNote reads a note and checks its values.
func parseNote(line []byte) (note, error) {
	var n note
	if err := parseLine(line, &n); err != nil {
		return note{}, err
	}
	if n.Ended < 0 || n.Share < 0 || n.Share > 1 {
		return note{}, fmt.Errorf("%w: %d leechers ended, share %g", errLine, n.Ended, n.Share)
	}
	return n, nil
}

// proof shows that one knows the key, as one of the two ends and for one
// purpose.
func proof(key []byte, role, nonce, other, agent, purpose string) string {
	return hex.EncodeToString(mac(key, fmt.Sprintf("transferlab swarm %s %q %q %q %q", role, nonce, other, agent, purpose)))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func newNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// line is a connection that carries lines.
type line struct {
	net.Conn
	reader *bufio.Reader
	mu     sync.Mutex // of writing
}

func newLine(c net.Conn) *line {
	if t, ok := c.(interface {
		SetKeepAliveConfig(config net.KeepAliveConfig) error
	}); ok {
		// A machine that is gone without a word is noticed within ten seconds.
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: 2 * time.Second, Count: 3})
	}
	return &line{Conn: c, reader: bufio.NewReaderSize(c, maxLine)}
}

// read reads one line; it is the reader's until the next.
func (l *line) read() ([]byte, error) {
	b, err := l.reader.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("%w: longer than %d bytes", errLine, maxLine)
	}
	return b, err
}

func (l *line) write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// The other end reads all the time.
	if err := l.SetWriteDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return err
	}
	_, err = l.Write(append(b, '\n'))
	return err
}

// guest is an agent as the hub knows it.
type guest struct {
	leechers int // that are at it
	ended    int
	left     bool
	gone     bool
	line     *line
}

// hub is the end at the tracker's agent.
type hub struct {
	listener net.Listener
	log      *slog.Logger
	key      []byte
	// send is what a connection for copying gets.
	send func(ctx context.Context, c net.Conn) error

	mu     sync.Mutex
	guests map[string]*guest // by agent; "" is the hub's own
	share  float64

	over      chan struct{} // closed when every leecher has ended
	left      chan struct{} // closed when every peer has left
	copied    chan struct{} // closed when the copy is done, or cannot be
	overOnce  sync.Once
	leftOnce  sync.Once
	copyOnce  sync.Once
	handlers  sync.WaitGroup
	unknown   chan struct{} // a place for each connection that is not known yet
	stop      context.CancelFunc
	receiver  string // the agent that copies
	asked     bool
	announced bool // that it is over
}

func newHub(l net.Listener, log *slog.Logger) *hub {
	return &hub{
		listener: l, log: log, guests: map[string]*guest{},
		over: make(chan struct{}), left: make(chan struct{}), copied: make(chan struct{}), unknown: make(chan struct{}, maxHandshakes),
	}
}

func (h *hub) port() uint16 { return portOf(h.listener.Addr()) }

// serve begins to answer. leechers are how many each agent has; those of the
// hub's own agent are under "". An agent that has not come by absent counts as
// gone.
func (h *hub) serve(ctx context.Context, key []byte, leechers map[string]int, absent time.Time, receiver string, send func(context.Context, net.Conn) error) {
	ctx, h.stop = context.WithCancel(ctx)
	h.key, h.send, h.receiver = key, send, receiver
	for agent, n := range leechers {
		h.guests[agent] = &guest{leechers: n}
	}
	if h.guests[""] == nil {
		h.guests[""] = &guest{}
	}
	h.settle()
	context.AfterFunc(ctx, func() { _ = h.listener.Close() })
	h.handlers.Go(func() {
		for {
			c, err := h.listener.Accept()
			if err != nil {
				return
			}
			select {
			case h.unknown <- struct{}{}:
			case <-ctx.Done():
				_ = c.Close()
				return
			}
			h.handlers.Go(func() {
				if err := h.meet(ctx, newLine(c)); err != nil && ctx.Err() == nil {
					h.log.Warn("connection of another agent", "from", c.RemoteAddr().String(), "error", err)
				}
			})
		}
	})
	h.handlers.Go(func() {
		wait := time.NewTimer(time.Until(absent))
		defer wait.Stop()
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for agent, g := range h.guests {
			if agent != "" && g.line == nil && !g.gone {
				h.log.Warn("an agent of the trial did not come", "agent", agent)
				g.gone = true
			}
		}
		h.settle()
	})
}

// close ends everything.
func (h *hub) close() error {
	if h.stop != nil {
		h.stop()
	}
	err := h.listener.Close()
	h.handlers.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// meet serves one connection to its end.
func (h *hub) meet(ctx context.Context, l *line) error {
	defer func() { _ = l.Close() }()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	a, err := h.know(l)
	<-h.unknown
	if err != nil {
		return err
	}
	if a.For == forCopy {
		if a.Agent != h.receiver {
			return fmt.Errorf("agent %q is not the one that copies", a.Agent)
		}
		return h.send(ctx, l)
	}
	return h.follow(a.Agent, l)
}

// know finds out who it is.
func (h *hub) know(l *line) (answer, error) {
	var a answer
	if err := l.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return a, err
	}
	own := newNonce()
	if err := l.write(greeting{own}); err != nil {
		return a, err
	}
	b, err := l.read()
	if err != nil {
		return a, fmt.Errorf("who it is: %w", err)
	}
	if err := parseLine(b, &a); err != nil {
		return a, err
	}
	if !hmac.Equal([]byte(a.MAC), []byte(proof(h.key, "agent", own, a.Nonce, a.Agent, a.For))) {
		return a, errors.New("it does not know the trial's key")
	}
	if a.For != forNotes && a.For != forCopy {
		return a, fmt.Errorf("%w: for %q", errLine, a.For)
	}
	if err := l.write(welcome{proof(h.key, "hub", a.Nonce, own, a.Agent, a.For)}); err != nil {
		return a, err
	}
	return a, l.SetDeadline(time.Time{})
}

// follow reads an agent's notes.
func (h *hub) follow(agent string, l *line) error {
	h.mu.Lock()
	g := h.guests[agent]
	if g == nil || agent == "" || g.line != nil || g.gone {
		h.mu.Unlock()
		return fmt.Errorf("agent %q is not expected", agent)
	}
	g.line = l
	if h.announced {
		h.tell(g, note{Over: true})
	}
	h.mu.Unlock()
	err := h.notes(g, l)
	h.mu.Lock()
	defer h.mu.Unlock()
	g.gone = true
	done := g.left && (agent != h.receiver || h.isCopied())
	h.settle()
	if done {
		return nil
	}
	return fmt.Errorf("agent %q is gone: %w", agent, err)
}

func (h *hub) notes(g *guest, l *line) error {
	for range maxNotes {
		b, err := l.read()
		if err != nil {
			return err
		}
		n, err := parseNote(b)
		if err != nil {
			return err
		}
		h.mu.Lock()
		if n.Ended > g.leechers || n.Over || n.Copy {
			h.mu.Unlock()
			return fmt.Errorf("%w: %s", errLine, b)
		}
		g.ended, g.left = max(g.ended, n.Ended), g.left || n.Left
		h.grow(n.Share)
		if n.Copied {
			h.copyOnce.Do(func() { close(h.copied) })
		}
		h.settle()
		h.mu.Unlock()
	}
	return fmt.Errorf("%w: more than %d of them", errLine, maxNotes)
}

// settle draws the conclusions of what has changed; h.mu is held, or nobody else
// there yet.
func (h *hub) settle() {
	over, left := true, true
	for _, g := range h.guests {
		over = over && (g.gone || g.ended >= g.leechers)
		left = left && (g.gone || g.left)
	}
	if over && !h.announced {
		h.announced = true
		for _, g := range h.guests {
			h.tell(g, note{Over: true})
		}
		h.overOnce.Do(func() { close(h.over) })
	}
	if left {
		h.leftOnce.Do(func() { close(h.left) })
	}
	if g := h.guests[h.receiver]; h.asked && (g == nil || g.gone) {
		h.copyOnce.Do(func() { close(h.copied) })
	}
}

func (h *hub) isCopied() bool {
	select {
	case <-h.copied:
		return true
	default:
		return false
	}
}

// tell writes a note to an agent; one that cannot be told is gone, which its
// reader finds.
func (h *hub) tell(g *guest, n note) {
	if g.line == nil || g.gone {
		return
	}
	if err := g.line.write(n); err != nil {
		_ = g.line.Close()
	}
}

// grow notes the largest share of the file that a leecher has; h.mu is held.
func (h *hub) grow(share float64) {
	if share <= h.share {
		return
	}
	h.share = share
	for _, g := range h.guests {
		h.tell(g, note{Share: share})
	}
}

// The hub's own agent speaks to it as the others do.

func (h *hub) sayEnded(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests[""].ended = n
	h.settle()
}

func (h *hub) sayShare(share float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grow(share)
}

func (h *hub) sayLeft() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests[""].left = true
	h.settle()
}

// askCopy has the receiver copy.
func (h *hub) askCopy() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = true
	if g := h.guests[h.receiver]; g != nil {
		h.tell(g, note{Copy: true})
	}
	h.settle()
}

func (h *hub) largest() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.share
}

// link is an agent's end of its connection to the hub.
type link struct {
	line *line

	mu    sync.Mutex
	share float64
	said  float64

	over chan struct{} // closed when the hub says so, or is lost
	copy chan struct{} // closed when this agent is to copy
	lost chan struct{} // closed at the connection's end
	why  error         // of lost

	reading sync.WaitGroup
}

// introduce makes a connection to the hub known to it.
func introduce(ctx context.Context, c net.Conn, key []byte, agent, purpose string) (*line, error) {
	l := newLine(c)
	defer context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })()
	if err := l.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return nil, err
	}
	b, err := l.read()
	if err != nil {
		return nil, fmt.Errorf("the hub's greeting: %w", err)
	}
	var g greeting
	if err := parseLine(b, &g); err != nil {
		return nil, err
	}
	own := newNonce()
	if err := l.write(answer{agent, purpose, own, proof(key, "agent", g.Nonce, own, agent, purpose)}); err != nil {
		return nil, err
	}
	if b, err = l.read(); err != nil {
		return nil, fmt.Errorf("the hub does not want this agent: %w", err)
	}
	var w welcome
	if err := parseLine(b, &w); err != nil {
		return nil, err
	}
	if !hmac.Equal([]byte(w.MAC), []byte(proof(key, "hub", own, g.Nonce, agent, purpose))) {
		return nil, errors.New("what answers as the hub does not know the trial's key")
	}
	return l, l.SetDeadline(time.Time{})
}

// dialHub connects to the hub, trying again until ctx ends: its agent may hear
// of the start a little later.
func dialHub(ctx context.Context, dial func(context.Context) (net.Conn, error), key []byte, agent, purpose string) (*line, error) {
	var last error
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		c, err := dial(ctx)
		if err == nil {
			l, err := introduce(ctx, c, key, agent, purpose)
			if err == nil {
				return l, nil
			}
			last = errors.Join(err, c.Close())
		} else {
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("reach the tracker's agent: %w", last)
		case <-time.After(wait):
		}
	}
}

func newLink(l *line) *link {
	k := &link{line: l, over: make(chan struct{}), copy: make(chan struct{}), lost: make(chan struct{})}
	k.reading.Go(func() {
		k.why = k.read()
		close(k.lost)
		k.mu.Lock()
		defer k.mu.Unlock()
		closeOnce(k.over)
	})
	return k
}

// closeOnce is for channels that one goroutine closes.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (k *link) read() error {
	for range maxNotes {
		b, err := k.line.read()
		if err != nil {
			return err
		}
		n, err := parseNote(b)
		if err != nil {
			return err
		}
		k.mu.Lock()
		if n.Over {
			closeOnce(k.over)
		}
		if n.Copy {
			closeOnce(k.copy)
		}
		if n.Share > k.share {
			k.share = n.Share
		}
		k.mu.Unlock()
	}
	return fmt.Errorf("%w: more than %d of them", errLine, maxNotes)
}

// say tells the hub something; that it cannot be told is what reading finds.
func (k *link) say(n note) { _ = k.line.write(n) }

// sayShare passes on what others would otherwise not know, and no more often
// than is worth knowing.
func (k *link) sayShare(share float64) {
	k.mu.Lock()
	tell := share > k.share && (share-k.said >= 0.001 || share == 1 && k.said < 1)
	if tell {
		k.said = share
	}
	k.mu.Unlock()
	if tell {
		k.say(note{Share: share})
	}
}

func (k *link) largest() float64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.share
}

func (k *link) close() error {
	err := k.line.Close()
	k.reading.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
