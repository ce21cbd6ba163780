package netlab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
)

// relayConfig is what the relay's process is told, as one line of JSON on its
// standard input. Its devices are descriptors firstDeviceFD and up, in the order
// of Nodes. Each further line asks for the statistics, answered by a line on
// standard output; the end of the input ends the relay.
type relayConfig struct {
	Block int         `json:"block"`
	Seed  uint64      `json:"seed"`
	Sites []relayLink `json:"sites"` // A and B are the same
	Links []relayLink `json:"links"`
	Nodes []NodeSpec  `json:"nodes"` // the lab itself is the first
}

// relayLink is a schemas.SiteLink in plain numbers: the types of experiment
// files read what people write, not what they are marshalled to.
type relayLink struct {
	A         string  `json:"a"`
	B         string  `json:"b"`
	RTT       int64   `json:"rtt_ns"`
	Jitter    int64   `json:"jitter_ns"`
	Loss      float64 `json:"loss"`
	Duplicate float64 `json:"duplicate"`
	Reorder   float64 `json:"reorder"`
	Rate      int64   `json:"rate_bits_per_s"`
	Queue     int64   `json:"queue_bytes"`
}

func plainLink(a, b string, l schemas.Link) relayLink {
	return relayLink{
		A: a, B: b, RTT: int64(l.RTT), Jitter: int64(l.Jitter), Loss: float64(l.Loss),
		Duplicate: float64(l.Duplicate), Reorder: float64(l.Reorder), Rate: int64(l.Rate), Queue: int64(l.Queue),
	}
}

func (l relayLink) link() schemas.Link {
	return schemas.Link{
		RTT: schemas.Duration(l.RTT), Jitter: schemas.Duration(l.Jitter), Loss: schemas.Share(l.Loss),
		Duplicate: schemas.Share(l.Duplicate), Reorder: schemas.Share(l.Reorder), Rate: schemas.BitRate(l.Rate), Queue: schemas.Size(l.Queue),
	}
}

func newRelayConfig(k int, t schemas.Topology, nodes []NodeSpec) relayConfig {
	c := relayConfig{Block: k, Seed: t.Seed, Nodes: nodes}
	for _, name := range slices.Sorted(maps.Keys(t.Sites)) {
		c.Sites = append(c.Sites, plainLink(name, name, t.Sites[name]))
	}
	for _, l := range t.Links {
		c.Links = append(c.Links, plainLink(l.A, l.B, l.Link))
	}
	return c
}

func (c relayConfig) topology() schemas.Topology {
	t := schemas.Topology{Sites: map[string]schemas.Link{}, Seed: c.Seed}
	for _, l := range c.Sites {
		t.Sites[l.A] = l.link()
	}
	for _, l := range c.Links {
		t.Links = append(t.Links, schemas.SiteLink{A: l.A, B: l.B, Link: l.link()})
	}
	return t
}

const firstDeviceFD = 3

// relayReady is the relay's first line of output.
type relayReady struct {
	Ready bool `json:"ready"`
}

const (
	exitFailed = 1
	exitUsage  = 2
)

// RunRelay is the whole main of the relay's process. args is what follows
// RelayCommand on the command line; the result is the process's exit code. It
// returns when standard input was closed: the lab asked for it, or is gone.
func RunRelay(args []string) int {
	if len(args) != 0 {
		fmt.Fprintf(os.Stderr, "%s is started by transferlab itself, not by hand\n", RelayCommand)
		return exitUsage
	}
	if err := serveRelay(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return 0
}

// maxConfigLine bounds a line from the parent; 256 nodes and 2016 links with
// long names take 1 MiB.
const maxConfigLine = 16 << 20

func serveRelay(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxConfigLine)
	if !lines.Scan() {
		return fmt.Errorf("read the configuration: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
	}
	var cfg relayConfig
	if err := json.Unmarshal(lines.Bytes(), &cfg); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	fds := make([]int, len(cfg.Nodes))
	for i := range fds {
		fds[i] = firstDeviceFD + i
	}
	r, err := newRelay(cfg, fds)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- r.run() }()
	encoder := json.NewEncoder(out)
	if err := encoder.Encode(relayReady{Ready: true}); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	requests := make(chan struct{})
	go func() {
		defer close(requests)
		for lines.Scan() {
			requests <- struct{}{}
		}
	}()
	for {
		select {
		case err := <-ended:
			return err
		case _, more := <-requests:
			if !more {
				r.stop()
				return <-ended
			}
			if err := encoder.Encode(r.snapshot()); err != nil {
				return fmt.Errorf("report: %w", err)
			}
		}
	}
}

// relay carries packets between devices. One thread does everything: it waits
// for the next packet to come or to leave, so a packet is never handed from one
// thread to another, nothing is locked and, where a link has no delay, a packet
// is written by the same turn that read it.
type relay struct {
	topology schemas.Topology
	nodes    []NodeSpec
	block    addressBlock
	fds      []int
	start    time.Time

	epoll, wake int
	queue       queue
	slabs       slabs
	seq         uint64
	paths       []*direction // by sender × receiver, made when first used
	links       map[[2]string]*direction
	order       []*direction // as made
	errorsLeft  []tokens     // of ICMP errors, per node

	waitedAt int64 // when wait was last called
	spinning bool  // whether it returned at once because a packet was due soon
	spins    int64 // time to spin that is left, ns

	in      []byte
	scratch [vnetLen + maxHead]byte

	overrun, malformed, unreachable, ignored, writeErrors int64

	realTime bool
	stopping atomic.Bool
	asked    atomic.Bool
	answers  chan Stats
	ended    chan struct{}
}

// none marks a pair of nodes without a link between their sites.
var none = new(direction)

func newRelay(cfg relayConfig, fds []int) (*relay, error) {
	r := &relay{
		topology: cfg.topology(), nodes: cfg.Nodes, block: block(cfg.Block), fds: fds, start: time.Now(),
		paths:      make([]*direction, len(fds)*len(fds)),
		links:      map[[2]string]*direction{},
		errorsLeft: make([]tokens, len(fds)),
		in:         make([]byte, maxPacket),
		answers:    make(chan Stats),
		ended:      make(chan struct{}),
	}
	var err error
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", err), unix.Close(r.epoll))
	}
	watch := func(fd, i int) {
		if err == nil {
			err = unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)})
		}
	}
	for i, fd := range fds {
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
		watch(fd, i)
	}
	watch(r.wake, len(fds))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch devices: %w", err), unix.Close(r.epoll), unix.Close(r.wake))
	}
	return r, nil
}

func (r *relay) now() int64 { return int64(time.Since(r.start)) }

func (r *relay) notify() {
	var one [8]byte
	one[0] = 1
	// An eventfd refuses only at 2⁶⁴−1 notes, in which case the relay wakes anyway.
	_, _ = unix.Write(r.wake, one[:])
}

func (r *relay) stop() {
	r.stopping.Store(true)
	r.notify()
}

// snapshot gives the statistics as of now.
func (r *relay) snapshot() Stats {
	r.asked.Store(true)
	r.notify()
	select {
	case s := <-r.answers:
		return s
	case <-r.ended:
		return r.stats()
	}
}

// closers is how many devices are closed at the same time.
const closers = 32

const (
	// readBurst is how many packets (each up to 64 KiB of segments) are taken
	// from one device before others get their turn.
	readBurst = 16
	// writeBurst is how many are written before the devices are looked at
	// again: a packet's delay counts from when it is read.
	writeBurst = 32
	// spin is how long before a packet's time the relay stops sleeping: waking
	// a thread takes that long.
	spin = 50 * time.Microsecond
	// spinShare of the time at most is spent so: a thread that spins all the
	// time at its priority leaves a small machine little for anything else, and
	// where packets are that close the processor does not sleep deeply.
	spinShare = 8 // one in
	// gather is how late packets may leave when all that is used up, so that one
	// turn takes several.
	gather = 20 * time.Microsecond
	// spinSaved is how much of that may be saved up.
	spinSaved = 2 * time.Millisecond
)

func (r *relay) run() error {
	// The thread is never given back: its priority is not for other work.
	runtime.LockOSThread()
	defer close(r.ended)
	defer func() {
		_ = unix.Close(r.epoll)
		_ = unix.Close(r.wake)
		// The kernel takes 20 ms to remove a device, most of it waiting, which
		// can be done for many together.
		var wait sync.WaitGroup
		for part := range closers {
			wait.Go(func() {
				for i := part; i < len(r.fds); i += closers {
					_ = unix.Close(r.fds[i])
				}
			})
		}
		wait.Wait()
	}()
	r.realTime = realTime()
	events := make([]unix.EpollEvent, min(len(r.fds)+1, 64))
	for {
		due := r.release()
		n, err := r.wait(events, due)
		if err != nil {
			return fmt.Errorf("wait for packets: %w", err)
		}
		for _, e := range events[:n] {
			if int(e.Fd) == len(r.fds) {
				var note [8]byte
				_, _ = unix.Read(r.wake, note[:])
				if r.stopping.Load() {
					return nil
				}
				if r.asked.Swap(false) {
					r.answers <- r.stats()
				}
				continue
			}
			if err := r.read(int(e.Fd)); err != nil {
				return err
			}
		}
	}
}

// realTime puts the calling thread before ordinary ones, where that is allowed:
// a wire does not wait for a processor either. It reserves half of one in
// stretches of 0.1 ms, and takes more where it is free. The plain real-time
// classes will not do: the kernel protects others from them by stopping them for
// 50 ms at a time; this one is stopped for the rest of 0.2 ms at most.
func realTime() bool {
	const (
		deadline    = 6 // SCHED_DEADLINE
		resetOnFork = 1 // threads that the runtime starts are ordinary ones
		reclaim     = 2
	)
	attr := &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: deadline, Flags: resetOnFork | reclaim,
		Runtime: uint64(100 * time.Microsecond), Deadline: uint64(200 * time.Microsecond), Period: uint64(200 * time.Microsecond),
	}
	if unix.SchedSetAttr(0, attr, 0) == nil {
		return true
	}
	// The next best; what it returns changes nothing. Timers of ordinary
	// threads are otherwise late by 50 µs on purpose.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	return false
}

// wait returns when a device has something or a packet is due soon.
func (r *relay) wait(events []unix.EpollEvent, due int64) (int, error) {
	var timeout *unix.Timespec
	now := r.now()
	if elapsed := now - r.waitedAt; r.spinning {
		r.spins -= elapsed
	} else {
		r.spins = min(r.spins+elapsed/spinShare, int64(spinSaved))
	}
	r.waitedAt, r.spinning = now, false
	if due >= 0 {
		sleep := due - now
		switch {
		case sleep <= 0: // more is due than release let go at once
			sleep = 0
		case r.spins > 0:
			r.spinning = sleep <= int64(spin)
			sleep = max(0, sleep-int64(spin))
		default:
			sleep += int64(gather)
		}
		t := unix.NsecToTimespec(sleep)
		timeout = &t
	}
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(r.epoll),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(unsafe.Pointer(timeout)), 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return 0, nil
	case unix.ENOSYS:
		return 0, fmt.Errorf("epoll_pwait2: %w (Linux 5.11 or newer is needed)", errno)
	}
	return 0, fmt.Errorf("epoll_pwait2: %w", errno)
}

// read takes what a device has to send.
func (r *relay) read(from int) error {
	for range readBurst {
		n, err := unix.Read(r.fds[from], r.in)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			return nil
		case err != nil:
			return fmt.Errorf("read from the device of %s: %w", r.nodes[from].Name, err)
		}
		r.enter(from, r.in[:n])
		r.release()
	}
	return nil
}

// enter sends a packet from a node on its way.
func (r *relay) enter(from int, b []byte) {
	now := r.now()
	p, err := parsePacket(b)
	if err != nil {
		r.malformed++
		return
	}
	ip := b[vnetLen:]
	to := r.block.destination(ip, p.v6)
	if to == toAll {
		r.ignored++
		return
	}
	to -= hostIndex
	if to < 0 || to >= len(r.fds) {
		r.refuse(from, now, ip, p, noHost)
		return
	}
	d := r.path(from, to)
	if d == none {
		r.refuse(from, now, ip, p, noLink)
		return
	}
	s := r.slabs.get(len(b))
	if s == nil {
		r.overrun += int64(p.n)
		return
	}
	if len(s.buf) == len(r.in) {
		s.buf, r.in = r.in, s.buf
	} else {
		copy(s.buf, b)
	}
	s.p = p
	if d.uniform() {
		d.packets += int64(p.n)
		d.bytes += int64(p.length + (p.n-1)*p.head)
		r.push(item{at: now + d.delay, slab: s, dir: d, dst: int32(to), to: uint16(p.n)})
		return
	}
	for i := range p.n {
		r.segment(now, d, item{slab: s, dir: d, dst: int32(to), from: uint16(i), to: uint16(i + 1)})
	}
	if s.refs == 0 {
		r.slabs.put(s)
	}
}

func (r *relay) push(x item) {
	r.seq++
	x.seq = r.seq
	x.slab.refs++
	r.queue.push(x)
}

// segment sends one segment on its way.
func (r *relay) segment(now int64, d *direction, x item) {
	f := d.pass(now, x.slab.p.size(int(x.from)))
	if f.drop {
		return
	}
	x.at, x.twice = f.at, f.duplicate
	if f.hold {
		h := &held{item: x}
		d.held = append(d.held, h)
		x.held = h
		r.push(x)
		return
	}
	r.push(x)
	for _, h := range d.held {
		if h.released {
			continue
		}
		h.released = true
		h.item.at = f.at
		r.push(h.item)
	}
	clear(d.held)
	d.held = d.held[:0]
}

// path gives what lies between two nodes.
func (r *relay) path(from, to int) *direction {
	at := from*len(r.fds) + to
	if d := r.paths[at]; d != nil {
		return d
	}
	a, b := r.nodes[from], r.nodes[to]
	link, found := r.topology.Between(a.Site, b.Site)
	if !found {
		r.paths[at] = none
		return none
	}
	key := [2]string{a.Site, b.Site}
	if a.Site == b.Site {
		key[0] = a.Name
	}
	d := r.links[key]
	if d == nil {
		d = newDirection(r.topology.Seed, key[0], key[1], link)
		r.links[key] = d
		r.order = append(r.order, d)
	}
	r.paths[at] = d
	return d
}

// refuse answers a packet that cannot be delivered.
func (r *relay) refuse(from int, now int64, ip []byte, p packet, why reason) {
	r.unreachable++
	if !r.errorsLeft[from].take(now) {
		return
	}
	if answer := unreachable(ip, p, why, r.block); answer != nil {
		r.write(from, answer, nil)
	}
}

// tokens limits ICMP errors: maxErrors a second, as many at once.
type tokens struct {
	until int64 // when all are there again
}

const maxErrors = 1000

func (t *tokens) take(now int64) bool {
	t.until = max(t.until, now)
	if t.until-now > int64(time.Second)-int64(time.Second)/maxErrors {
		return false
	}
	t.until += int64(time.Second) / maxErrors
	return true
}

// release lets go what is due, at most writeBurst packets, and tells when the
// next one is; −1 when there is none.
func (r *relay) release() int64 {
	now := r.now()
	for range writeBurst {
		if len(r.queue.items) == 0 {
			return -1
		}
		if r.queue.items[0].at > now {
			if now = r.now(); r.queue.items[0].at > now {
				return r.queue.items[0].at
			}
		}
		x := r.queue.pop()
		n := 1
		// Neighbours that are due as well go together.
		for x.held == nil && !x.twice && len(r.queue.items) > 0 {
			y := &r.queue.items[0]
			if y.at > now || y.slab != x.slab || y.from != x.to || y.twice || y.held != nil {
				break
			}
			x.to = y.to
			r.queue.pop()
			n++
		}
		r.leave(&x)
		if x.slab.refs -= n; x.slab.refs == 0 {
			r.slabs.put(x.slab)
		}
	}
	if len(r.queue.items) == 0 {
		return -1
	}
	return r.queue.items[0].at
}

// leave hands a stretch of segments to the receiving device.
func (r *relay) leave(x *item) {
	if h := x.held; h != nil {
		if h.released {
			return // it went right after the one that overtook it
		}
		h.released = true
		for len(x.dir.held) > 0 && x.dir.held[0].released {
			x.dir.held = x.dir.held[1:]
		}
	}
	p := &x.slab.p
	head, payload := x.slab.buf[:x.slab.n], []byte(nil)
	if x.from > 0 || int(x.to) < p.n {
		head, payload = p.cut(x.slab.buf[:x.slab.n], int(x.from), int(x.to), &r.scratch)
	}
	r.write(int(x.dst), head, payload)
	if x.twice {
		r.write(int(x.dst), head, payload)
	}
	if x.dir.late == nil {
		x.dir.late = new(lateness)
	}
	x.dir.late.add(r.now()-x.at, int(x.to-x.from))
}

// write hands a packet to a device.
func (r *relay) write(to int, head, payload []byte) {
	vec := [2]unix.Iovec{{Base: unsafe.SliceData(head)}, {Base: unsafe.SliceData(payload)}}
	vec[0].SetLen(len(head))
	vec[1].SetLen(len(payload))
	n := 2
	if len(payload) == 0 {
		n = 1
	}
	_, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(r.fds[to]), uintptr(unsafe.Pointer(&vec[0])), uintptr(n))
	if errno != 0 {
		r.writeErrors++
	}
}

func (r *relay) stats() Stats {
	s := Stats{
		Overrun: r.overrun, Malformed: r.malformed, Unreachable: r.unreachable, Ignored: r.ignored,
		WriteErrors: r.writeErrors, RealTime: r.realTime, Links: make([]LinkStats, len(r.order)),
	}
	for i, d := range r.order {
		s.Links[i] = d.stats()
	}
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) == nil {
		s.CPUNanos = usage.Utime.Nano() + usage.Stime.Nano()
	}
	return s
}
