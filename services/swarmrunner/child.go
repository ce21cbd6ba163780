package swarmrunner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/services/internal/netlab"
	"github.com/transferlab/transferlab/services/swarmrunner/peer"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
)

// PeerCommand is the hidden first argument with which the binary re-executes
// itself to be one peer: a main (or a TestMain) that finds it in os.Args[1] must
// do nothing but os.Exit(RunPeer()).
const PeerCommand = "swarm-peer"

// What is said to the process of a peer, and by it, is a line of JSON each.
// Secrets are in these lines and not among the arguments, which everybody on the
// machine can read. Its standard input ends with its parent, by whatever death,
// and so does it.

// order is a line to the process; one field is set.
type order struct {
	Spec   *spec   `json:"spec,omitempty"`
	Orders *orders `json:"orders,omitempty"`
	Do     command `json:"do,omitempty"`
}

// word is a line of the process; one field is set.
type word struct {
	Ready    *netip.AddrPort `json:"ready,omitempty"` // it listens
	Armed    *armed          `json:"armed,omitempty"`
	Begun    *time.Time      `json:"begun,omitempty"`
	Progress *peer.Progress  `json:"progress,omitempty"`
	Complete bool            `json:"complete,omitempty"`
	Done     *outcome        `json:"done,omitempty"`
	Hash     *hashed         `json:"hash,omitempty"`
	Fault    string          `json:"fault,omitempty"` // why it cannot go on
}

type armed struct {
	Bad   string `json:"bad,omitempty"`   // the torrent cannot be read
	Error string `json:"error,omitempty"` // anything else
}

type hashed struct {
	Sum   []byte        `json:"sum,omitempty"`
	Took  time.Duration `json:"took_ns"`
	Error string        `json:"error,omitempty"`
}

// Limits of lines: a report has an entry for each piece.
const (
	lineBytes  = 64 << 10
	pieceBytes = 512
	// maxOrder holds the largest torrent.
	maxOrder = 64 << 20
)

// readLine reads a line of so many bytes at most; io.EOF says that there is none.
func readLine(r *bufio.Reader, most int64) ([]byte, error) {
	var whole []byte
	for {
		part, err := r.ReadSlice('\n')
		if int64(len(whole)+len(part)) > most {
			return nil, fmt.Errorf("%w: longer than %d bytes", errLine, most)
		}
		if err == nil && whole == nil {
			return part, nil
		}
		whole = append(whole, part...)
		if err == nil {
			return whole, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// parseWord reads what a process says and checks that it can be: it is a program
// of its own, and what becomes of it is measured.
func parseWord(line []byte, s *spec, pieces int) (word, error) {
	var w word
	if err := parseLine(line, &w); err != nil {
		return word{}, err
	}
	wrong := func(what string, v any) (word, error) { return word{}, fmt.Errorf("%w: %s %v", errLine, what, v) }
	if p := w.Progress; p != nil {
		if p.Have < 0 || p.Have > s.Size || p.Bytes != s.Size || p.Connected < 0 || p.Sources < 0 || p.Wrong < 0 {
			return wrong("progress", *p)
		}
	}
	if w.Ready != nil && (!w.Ready.IsValid() || w.Ready.Port() == 0) {
		return wrong("address", w.Ready)
	}
	if w.Hash != nil && w.Hash.Error == "" && len(w.Hash.Sum) != 32 {
		return wrong("hash of so many bytes:", len(w.Hash.Sum))
	}
	if o := w.Done; o != nil {
		r := &o.Report
		if r.Have < 0 || r.Have > s.Size || r.Bytes != s.Size || r.Wasted < 0 || r.HashFailures < 0 || r.Banned < 0 || r.FromSeeds < 0 || r.Connections < 0 {
			return wrong("report of", r.Have)
		}
		if len(r.Pieces) > pieces {
			return wrong("so many pieces:", len(r.Pieces))
		}
		if i := slices.IndexFunc(r.Pieces, func(p peer.Piece) bool { return p.Index < 0 || p.Index >= pieces }); i >= 0 {
			return wrong("piece", r.Pieces[i].Index)
		}
	}
	return w, nil
}

// Times cross from one process to another as those of a clock that both have and
// that nobody sets: wall clocks may be, in the middle.

// bridge is one moment on the clock of this process and on the one that all share.
type bridge struct {
	here   time.Time
	shared int64
}

func newBridge() bridge { return bridge{time.Now(), monotonic()} }

// out turns a time of this process into one for others, in does the reverse.
// Zero stays zero.
func (b bridge) out(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return time.Unix(0, b.shared+int64(t.Sub(b.here))).UTC()
}

func (b bridge) in(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return b.here.Add(time.Duration(t.UnixNano() - b.shared))
}

// convert applies f to every time of a report.
func convert(r *peer.Report, f func(time.Time) time.Time) {
	times := []*time.Time{&r.Begun, &r.Announced, &r.Handshake, &r.Unchoked, &r.FirstByte, &r.FirstPiece, &r.LastBlock, &r.Completed, &r.Left}
	for i := range r.Deciles {
		times = append(times, &r.Deciles[i])
	}
	for _, t := range times {
		*t = f(*t)
	}
	// The original may still be read elsewhere.
	r.Pieces = slices.Clone(r.Pieces)
	for i := range r.Pieces {
		r.Pieces[i].Asked, r.Pieces[i].Verified = f(r.Pieces[i].Asked), f(r.Pieces[i].Verified)
	}
}

// child is a peer in a process of its own.
type child struct {
	*life
	spec   spec
	log    *slog.Logger
	cmd    *exec.Cmd
	stdin  *os.File
	stdout *os.File
	stderr *tail

	ready   chan struct{} // closed when it listens
	armed   chan armed
	exited  chan struct{}
	writing sync.Mutex

	// life's mu protects these.
	latest peer.Progress
	begun  time.Time
	pieces int
	ending bool // it was told to, or killed
	fault  string
}

var _ body = (*child)(nil)

// readyLimit is how long the process may take until it listens, with its content
// made and its memory taken; orderLimit until it has read an order.
const (
	readyLimit = 2 * time.Minute
	orderLimit = 10 * time.Second
)

// startChild starts a process in the network and returns when it listens.
func startChild(ctx context.Context, network *transport.Network, s spec, log *slog.Logger) (_ *child, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	in, stdin, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	stdout, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pipe: %w", err), in.Close(), stdin.Close())
	}
	c := &child{
		life: newLife(), spec: s, log: log, stdin: stdin, stdout: stdout, stderr: &tail{},
		ready: make(chan struct{}), armed: make(chan armed, 1), exited: make(chan struct{}),
	}
	c.progress = c.lately
	c.cmd = exec.Command(self, PeerCommand)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = in, out, c.stderr
	c.cmd.Env = childEnv()
	c.cmd.WaitDelay = time.Second
	// A group of its own: Ctrl-C at the terminal is for the lab alone.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = network.Start(c.cmd)
	err = errors.Join(err, in.Close(), out.Close())
	if c.cmd.Process == nil {
		return nil, errors.Join(err, stdin.Close(), stdout.Close())
	}
	c.pid = c.cmd.Process.Pid
	go c.listen()
	if err == nil {
		err = c.send(order{Spec: &s})
	}
	late := time.NewTimer(readyLimit)
	defer late.Stop()
	if err == nil {
		select {
		case <-c.ready:
			return c, nil
		case <-c.done:
			err = errors.New(c.outcome.Err)
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-late.C:
			err = fmt.Errorf("not ready within %s", readyLimit)
		}
	}
	return nil, errors.Join(err, c.close())
}

// childEnv is what the process needs of the environment: nothing secret.
func childEnv() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "GODEBUG", "GORACE", "GOTRACEBACK", "GOMAXPROCS", "GOCOVERDIR", netlab.EnvLab} {
		if v, set := os.LookupEnv(name); set {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func (c *child) lately() peer.Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.latest
	if p.Last.IsZero() {
		p.Last = c.begun
	}
	return p
}

func (c *child) send(o order) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	// It reads all the time.
	if err := c.stdin.SetWriteDeadline(time.Now().Add(orderLimit)); err != nil {
		return err
	}
	_, err = c.stdin.Write(append(b, '\n'))
	return err
}

// listen hears the process to its end.
func (c *child) listen() {
	err := c.hear(bufio.NewReaderSize(c.stdout, lineBytes))
	// A process that talks nonsense is none to wait for.
	if !errors.Is(err, io.EOF) {
		c.kill()
	}
	// Whatever else it may say goes nowhere, and must not keep it.
	_, _ = io.Copy(io.Discard, c.stdout)
	waitErr := c.cmd.Wait()
	_ = c.stdout.Close()
	c.writing.Lock()
	_ = c.stdin.Close()
	c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
	default:
		c.outcome = outcome{Killed: true}
		r := &c.outcome.Report
		r.Begun, r.Have, r.Bytes, r.Left = c.begun, c.latest.Have, c.spec.Size, time.Now()
		if !c.ending {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			c.outcome.Err = strings.TrimSpace(fmt.Sprintf("its process ended: %v %s %s", errors.Join(err, waitErr), c.fault, c.stderr))
		}
		close(c.done)
	}
	select {
	case <-c.hashed:
	default:
		c.hashErr = errors.New("its process has ended")
		close(c.hashed)
	}
	close(c.exited)
}

func (c *child) hear(r *bufio.Reader) error {
	for {
		c.mu.Lock()
		pieces := c.pieces
		c.mu.Unlock()
		b, err := readLine(r, lineBytes+int64(pieces)*pieceBytes)
		if err != nil {
			return err
		}
		w, err := parseWord(b, &c.spec, pieces)
		if err != nil {
			return err
		}
		if err := c.take(&w); err != nil {
			return err
		}
	}
}

// take notes what the process has said. Saying a thing twice is nonsense.
func (c *child) take(w *word) error {
	once := func(ch chan struct{}) error {
		select {
		case <-ch:
			return fmt.Errorf("%w: said twice", errLine)
		default:
			close(ch)
			return nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case w.Ready != nil:
		c.address = *w.Ready
		return once(c.ready)
	case w.Armed != nil:
		select {
		case c.armed <- *w.Armed:
		default:
			return fmt.Errorf("%w: said twice", errLine)
		}
	case w.Begun != nil:
		c.begun = newBridge().in(*w.Begun)
	case w.Progress != nil:
		c.latest = *w.Progress
		c.latest.Last = newBridge().in(c.latest.Last)
	case w.Complete:
		c.latest.Have = c.spec.Size
		return once(c.complete)
	case w.Done != nil:
		c.outcome = *w.Done
		convert(&c.outcome.Report, newBridge().in)
		return once(c.done)
	case w.Hash != nil:
		copy(c.sum[:], w.Hash.Sum)
		c.took = w.Hash.Took
		if w.Hash.Error != "" {
			c.hashErr = errors.New(w.Hash.Error)
		}
		return once(c.hashed)
	case w.Fault != "":
		c.fault = w.Fault
	}
	return nil
}

func (c *child) arm(ctx context.Context, o orders) error {
	c.mu.Lock()
	c.pieces = int(c.spec.Size/minPieceLength) + 1
	c.mu.Unlock()
	if err := c.send(order{Orders: &o}); err != nil {
		return fmt.Errorf("tell the process of a peer: %w", err)
	}
	select {
	case a := <-c.armed:
		switch {
		case a.Bad != "":
			return fmt.Errorf("%w: %s", errBadTorrent, strings.TrimPrefix(a.Bad, errBadTorrent.Error()+": "))
		case a.Error != "":
			return errors.New(a.Error)
		}
		return nil
	case <-c.done:
		return errors.New(c.outcome.Err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *child) tell(what command) {
	if what != cmdStart && what != cmdHash {
		c.mu.Lock()
		c.ending = true
		c.mu.Unlock()
	}
	switch what {
	case cmdDie:
		c.kill()
		return
	case cmdStop:
		// One that does not hear is ended otherwise.
		late := time.AfterFunc(killLimit/2, c.kill)
		go func() { <-c.done; late.Stop() }()
	}
	// That it cannot be told is what its end says.
	_ = c.send(order{Do: what})
}

func (c *child) kill() {
	select {
	case <-c.exited:
	default:
		_ = c.cmd.Process.Kill()
	}
}

func (c *child) close() error {
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	c.writing.Lock()
	_ = c.stdin.Close()
	c.writing.Unlock()
	late := time.AfterFunc(leaveLimit, c.kill)
	defer late.Stop()
	select {
	case <-c.exited:
		return nil
	case <-time.After(leaveLimit + killLimit):
		return fmt.Errorf("the process %d of a peer did not end", c.pid)
	}
}

// tail keeps the end of what a process says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailLimit = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailLimit; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}
