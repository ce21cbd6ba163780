package packet

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
)

const (
	// coalesce is how long answers may wait in the socket while probes are sent
	// all the time: the kernel has stamped them already.
	coalesce = time.Millisecond
	// clockSlack is by how much the wall clock may differ from where the
	// monotonic one expects it. Both are slewed alike, so only a step moves them
	// apart; the slack is for reading two clocks not quite at once.
	clockSlack = int64(50 * time.Microsecond)
	// estimateEvery is how often the system's idea of its clock's error is read.
	estimateEvery = int64(10 * time.Second)

	batchResults = 256
	// maxBatches of results may wait for emit before sending waits too.
	maxBatches = 64
	flushAfter = int64(50 * time.Millisecond)

	// yieldEvery is how often the loop lets the runtime schedule. A goroutine that
	// only ever blocks in system calls looks, after 10 ms, like one that hogs its
	// processor, and the runtime takes that away during every call from then on,
	// which costs several thousand wake-ups a second.
	yieldEvery = int64(5 * time.Millisecond)

	maxTexts = 4096
	// maxRounds bounds one drain against a flood.
	maxRounds = 256
)

// Engine sends the probes of a set of flows once.
type Engine struct {
	o       Options
	log     *slog.Logger
	flows   []Flow
	sched   *schedule
	win     *window
	cookie  uint64
	payload []byte // of echo requests; the token's place is unused
	l       layout
	sign    *signer

	sockets [kinds]*socket
	refused [kinds]refusal // where there is no socket
	scopes  map[uint32]uint32
	byAddr  map[netip.AddrPort][]uint32 // UDP flows; a flow's place is its session identifier
	ssids   []uint16                    // session identifiers of UDP flows that share an address; nil if none do
	newest  []uint32                    // sequence number answered last, +1, by flow

	in, errs *messages
	clock    clock
	start    time.Time
	offset   int64 // wall clock − time since start
	checked  int64 // when the clocks were compared last
	estimate uint16
	rated    int64 // when estimate was read

	pending   [maxBatch]uint64 // window's numbers of the batch being filled
	undrained int
	drained   int64

	texts   []string
	textIDs map[textKey]uint16

	acc   Account
	batch []Result
	full  chan []Result
	free  chan []Result
	aged  int64 // when batch got its first

	lagMu sync.Mutex
	lag   *hdrhistogram.Histogram

	wake    int // eventfd
	timer   int // timerfd
	yielded int64
	stopped atomic.Bool
	ran     atomic.Bool
}

// clock is what tests replace.
type clock struct {
	read  func() (now, wall int64) // since the start, and since 1970
	stamp func(wall int64) int64   // the kernel's stamps pass through it
}

// refusal is why a kind of socket could not be opened.
type refusal struct {
	state state
	text  uint16
}

type textKey struct {
	what       string
	errno      unix.Errno
	kind, code byte
	v6         bool
	from       netip.Addr
}

// NewEngine checks options and flows and opens the sockets. That a socket is
// not allowed or its protocol not there is no error: its probes come out with a
// status that says so. The flows are not copied and must stay as they are.
func NewEngine(o Options, flows []Flow) (*Engine, error) {
	if err := errors.Join(o.Validate(), o.checkFlows(flows)); err != nil {
		return nil, fmt.Errorf("probe engine: %w", err)
	}
	e := &Engine{
		o: o, log: o.Log, flows: flows, sign: newSigner(o.Key), l: layoutOf(len(o.Key) > 0),
		payload: make([]byte, o.Payload), newest: make([]uint32, len(flows)), wake: -1, timer: -1,
		clock: clock{stamp: func(wall int64) int64 { return wall }},
		texts: []string{""}, textIDs: map[textKey]uint16{},
		lag:  hdrhistogram.New(1, int64(time.Hour), 3),
		full: make(chan []Result, maxBatches), free: make(chan []Result, maxBatches+2),
	}
	e.clock.read = func() (now, wall int64) {
		t := time.Now()
		return int64(t.Sub(e.start)), t.UnixNano()
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if err := e.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("probe engine: %w", err), e.Close())
	}
	return e, nil
}

func (e *Engine) prepare() error {
	var random [10]byte
	if _, err := rand.Read(random[:]); err != nil {
		return fmt.Errorf("make a cookie: %w", err)
	}
	e.cookie = binary.BigEndian.Uint64(random[:])
	fillPattern(e.payload)
	id := binary.BigEndian.Uint16(random[8:]) | 1
	var err error
	if e.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return fmt.Errorf("make timer: %w", err)
	}
	if e.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	size := max(e.o.Payload+icmpHeader+60, 512) + 1
	e.in, e.errs = newMessages(size, true), newMessages(256, true)
	// Where flows follow each other at less than the interval, this many
	// probes are under way at once; more or fewer only cost growing.
	expect, total := 0, 0
	for i := range e.flows {
		total = min(total+e.flows[i].Count, 1<<30)
	}
	if rounds := int64(e.o.Timeout+2*coalesce)/int64(e.o.Interval) + 1; rounds < int64(total) {
		expect = min(total, int(min(rounds*int64(len(e.flows)), 1<<20)))
	} else {
		expect = min(total, 1<<20)
	}
	e.win = newWindow(expect)
	for i := range e.flows {
		if err := e.addFlow(uint32(i), id); err != nil {
			return err
		}
	}
	e.sched = newSchedule(e.o.Interval, e.flows)
	e.warmUp()
	return nil
}

func (e *Engine) addFlow(i uint32, id uint16) error {
	f := &e.flows[i]
	k := e.kind(f)
	if e.sockets[k] == nil && e.refused[k].state == stateDue {
		e.openKind(k, id)
	}
	addr := f.Dst.Addr().Unmap()
	scope, err := scopeOf(addr)
	if err != nil {
		return fmt.Errorf("flow %d: %w", i, err)
	}
	if scope != 0 {
		if e.scopes == nil {
			e.scopes = map[uint32]uint32{}
		}
		e.scopes[i] = scope
	}
	if !k.udp() {
		return nil
	}
	if e.byAddr == nil {
		e.byAddr = map[netip.AddrPort][]uint32{}
	}
	at := netip.AddrPortFrom(addr.WithZone(""), f.Dst.Port())
	others := e.byAddr[at]
	if len(others) > 0 {
		if e.ssids == nil {
			e.ssids = make([]uint16, len(e.flows))
		}
		// Without one, the reflector would count the flows as one session.
		e.ssids[i] = uint16(len(others))
	}
	e.byAddr[at] = append(others, i)
	return nil
}

func (e *Engine) openKind(k socketKind, id uint16) {
	s, err := openSocket(k, &e.o, id)
	if err == nil {
		template := e.payload
		if k.udp() {
			template = make([]byte, e.o.Payload)
			fillPadding(template[e.l.size:])
		}
		s.prepare(template)
		e.sockets[k] = s
		if !s.stamps {
			e.log.Warn("kernel does not stamp packets, times are taken by the process", "socket", k.String())
		}
		return
	}
	st := stateError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		st = stateDenied
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EADDRNOTAVAIL):
		st = stateUnreachable
	}
	e.refused[k] = refusal{st, e.addText(textKey{what: err.Error()}, err.Error())}
	e.log.Warn("cannot probe", "protocol", k.String(), "error", err)
}

func (e *Engine) kind(f *Flow) socketKind {
	k := kindICMP4
	if f.Protocol == schemas.ProtocolUDP {
		k = kindUDP4
	}
	if f.Dst.Addr().Unmap().Is6() {
		k++
	}
	return k
}

// scopeOf is the interface of an address with a zone.
func scopeOf(a netip.Addr) (uint32, error) {
	zone := a.Zone()
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone of %s: %w", a, err)
	}
	return uint32(i.Index), nil
}

// warmUp waits until the kernel stamps what it receives: it begins to do so
// some time after the first socket that wants it is there. Best effort.
func (e *Engine) warmUp() {
	const tries, wait = 20, 5 * time.Millisecond
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	local := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, stampFlags) != nil || unix.Bind(fd, local) != nil {
		return
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return
	}
	var data, ctl [sizeControl]byte
	for range tries {
		if unix.Sendto(fd, data[:1], unix.MSG_DONTWAIT, self) != nil {
			return
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, int(wait.Milliseconds())); err != nil || n == 0 {
			continue
		}
		_, n, _, _, err := unix.Recvmsg(fd, data[:], ctl[:], unix.MSG_DONTWAIT)
		if err == nil && parseControl(ctl[:n]).stamp != 0 {
			return
		}
	}
}

// Close gives the sockets back. It must not be called during Run.
func (e *Engine) Close() error {
	var faults []error
	for k, s := range e.sockets {
		if s != nil {
			faults = append(faults, unix.Close(s.fd))
			e.sockets[k] = nil
		}
	}
	for _, fd := range []*int{&e.wake, &e.timer} {
		if *fd >= 0 {
			faults = append(faults, unix.Close(*fd))
			*fd = -1
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("close probe engine: %w", err)
	}
	return nil
}

// Lag is how late the engine itself sent, due to sent. It may be called during Run.
func (e *Engine) Lag() (p50, p99, most time.Duration) {
	e.lagMu.Lock()
	defer e.lagMu.Unlock()
	return time.Duration(e.lag.ValueAtQuantile(50)), time.Duration(e.lag.ValueAtQuantile(99)), time.Duration(e.lag.Max())
}

// Run sends every probe when it is due, counted from start (which carries a
// monotonic reading), and emits exactly one Result per probe: when its timeout
// is over, so that duplicates are counted, or at the end. When ctx ends, what
// was due and has no answer yet comes out as cancelled, what was not due does
// not come out, and Run returns ctx's error.
//
// emit is called from the calling goroutine and may use its argument during the call only. While it
// takes its time, results wait in a queue, and when that is full, probes do:
// that shows in Wait and Lag. Run can be called once.
func (e *Engine) Run(ctx context.Context, start time.Time, emit func(*Result)) (Account, error) {
	if e.wake < 0 || e.ran.Swap(true) {
		return Account{}, errors.New("run probe engine: it ran before or is closed")
	}
	e.start = start
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		e.stopped.Store(true)
		_, _ = unix.Write(e.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	done := make(chan error, 1)
	go func() {
		// The thread is not unlocked, so that it ends with the goroutine and
		// takes its timer slack with it.
		err := e.loop()
		e.flush()
		close(e.full)
		done <- err
	}()
	for batch := range e.full {
		for i := range batch {
			emit(&batch[i])
		}
		select {
		case e.free <- batch[:0]:
		default:
		}
	}
	err := <-done
	if !stop() {
		// It writes to a descriptor that Close gives back.
		<-told
		if err == nil {
			err = ctx.Err()
		}
	}
	return e.acc, err
}

func (e *Engine) loop() error {
	e.offset, e.estimate = e.readOffset(), systemEstimate()
	for {
		now, _ := e.read()
		if e.stopped.Load() {
			e.cancel(now)
			return nil
		}
		now = e.sendDue(now)
		if e.win.len() > 0 && e.mustDrain(now) {
			now = e.drain()
			e.checkClock()
			e.expire(now)
		}
		next, more := e.sched.peek()
		if !more && e.win.len() == 0 {
			return nil
		}
		if err := e.sleep(now, next.due, more); err != nil {
			return err
		}
	}
}

// read returns the time since the start and the wall clock.
func (e *Engine) read() (now, wall int64) { return e.clock.read() }

// readOffset compares the clocks. The wall clock is read first, so that being
// interrupted between the two makes the difference smaller, never greater.
func (e *Engine) readOffset() int64 {
	const tries = 8
	now, wall := e.read()
	best := wall - now
	for range tries - 1 {
		now, wall = e.read()
		best = max(best, wall-now)
	}
	return best
}

// checkClock notices steps of the wall clock. What was under way since it was
// looked at last is marked, answered or not.
func (e *Engine) checkClock() {
	now, wall := e.read()
	since := e.checked
	e.checked = now
	if now-e.rated > estimateEvery {
		e.rated, e.estimate = now, systemEstimate()
	}
	if d := wall - now - e.offset; d >= -clockSlack && d <= clockSlack {
		return
	}
	offset := e.readOffset()
	step := offset - e.offset
	if step >= -clockSlack && step <= clockSlack {
		return
	}
	e.offset = offset
	e.acc.ClockSteps++
	e.log.Warn("wall clock was set", "by", time.Duration(step))
	for n := e.win.head; n != e.win.tail; n++ {
		if s := e.win.at(n); s.state == stateSent || s.answered >= since {
			s.flags |= flagStepped
		}
	}
}

// systemEstimate is the kernel's opinion of its clock.
func systemEstimate() uint16 {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	synced := err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
	bound := time.Duration(t.Maxerror) * time.Microsecond
	if err != nil {
		bound = time.Hour
	}
	return encodeEstimate(synced, bound)
}

// sendDue sends what is due at now and returns a later now.
func (e *Engine) sendDue(now int64) int64 {
	var to *socket
	n := 0
	for {
		p, ok := e.sched.peek()
		if !ok || p.due > now {
			if n == 0 {
				return now
			}
			e.send(to, n)
			if now, _ = e.read(); e.undrained >= maxBatch {
				return now
			}
			n = 0
			continue
		}
		k := e.kind(&e.flows[p.flow])
		s := e.sockets[k]
		if n > 0 && (s != to || n == len(to.out.hdrs)) {
			e.send(to, n)
			n = 0
			if e.undrained >= maxBatch {
				now, _ = e.read()
				return now
			}
		}
		id := e.win.push(p)
		e.sched.advance()
		e.acc.Issued++
		if s == nil {
			slot := e.win.at(id)
			slot.state, slot.text = e.refused[k].state, e.refused[k].text
			slot.sent, _ = e.read()
			slot.answered = slot.sent
			// Nothing else makes the loop come by to have it expire.
			e.undrained++
			if e.undrained >= maxBatch && n == 0 {
				return slot.sent
			}
			continue
		}
		to = s
		e.pending[n] = id
		n++
	}
}

// send sends the first n of pending.
func (e *Engine) send(s *socket, n int) {
	now, _ := e.read()
	e.lagMu.Lock()
	for i := range n {
		e.write(s, i, now)
		_ = e.lag.RecordValue(min(max(now-e.win.at(e.pending[i]).due, 0), int64(time.Hour)))
	}
	e.lagMu.Unlock()
	e.undrained += n
	for at, tries := 0, 0; at < n; {
		sent, err := s.out.send(s.fd, at, n)
		for i := at; i < at+sent; i++ {
			slot := e.win.at(e.pending[i])
			slot.state, slot.key = stateSent, s.sentAs(e.pending[i])
		}
		at += sent
		if at == n {
			return
		}
		// The stamps there are go by the old numbers.
		e.drainErrors(s)
		s.renumber()
		if sent > 0 {
			tries = 0
			continue
		}
		if tries++; e.retry(s, err, tries) {
			continue
		}
		slot := e.win.at(e.pending[at])
		slot.state, slot.text = e.sendFailed(err)
		slot.answered, _ = e.read()
		at++
		tries = 0
	}
}

// write puts the i-th of pending into its buffer.
func (e *Engine) write(s *socket, i int, now int64) {
	slot := e.win.at(e.pending[i])
	// A nanosecond apart, so that no two STAMP packets carry the same time: it
	// tells flows to the same address apart.
	slot.sent = now + int64(i)
	slot.wall = slot.sent + e.offset
	slot.socket = uint8(s.kind)
	if s.kind.udp() {
		b := s.out.data[i]
		clear(b[:e.l.size])
		var ssid uint16
		if e.ssids != nil {
			ssid = e.ssids[slot.flow]
		}
		putRequest(b, e.l, request{seq: slot.seq, stamp: ntp(slot.wall), estimate: e.estimate, ssid: ssid}, e.sign)
	} else {
		s.putEcho(i, uint16(e.pending[i]), token{e.cookie, slot.flow, slot.seq})
	}
	dst := e.flows[slot.flow].Dst
	h := &s.out.hdrs[i].hdr
	h.Namelen = uint32(putSockaddr(s.out.names[i][:], netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), e.scopes[slot.flow]))
}

// retry reports whether a failed call is worth another try, and prepares it.
func (e *Engine) retry(s *socket, err error, tries int) bool {
	const (
		maxFull  = 20
		maxStale = 4
		wait     = 2 // ms
	)
	switch {
	case errors.Is(err, unix.EINTR):
		return true
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
		if tries > maxFull {
			return false
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}, wait)
		return true
	}
	// The error may be of an earlier packet: the kernel reports those by the
	// next call, whatever that is. Clear it, and ask again.
	if !s.hasErrors() || tries > maxStale {
		return false
	}
	_, _ = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return true
}

// sendFailed tells what a failed call means for the probe.
func (e *Engine) sendFailed(err error) (state, uint16) {
	st := stateError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		st = stateDenied
	// EINVAL is what a blackhole route gives.
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETDOWN),
		errors.Is(err, unix.EHOSTDOWN), errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV):
		st = stateUnreachable
	}
	var errno unix.Errno
	errors.As(err, &errno)
	k := textKey{what: "send", errno: errno}
	if id, ok := e.textIDs[k]; ok {
		return st, id
	}
	return st, e.addText(k, fmt.Sprintf("send: %v", err))
}

// addText keeps an error's text; the same few come over and over.
func (e *Engine) addText(k textKey, text string) uint16 {
	if len(e.texts) >= maxTexts {
		return 0
	}
	id := uint16(len(e.texts))
	e.texts = append(e.texts, text)
	e.textIDs[k] = id
	return id
}

// mustDrain reports whether it is time to look for answers.
func (e *Engine) mustDrain(now int64) bool {
	return e.undrained >= maxBatch || now-e.drained >= int64(coalesce) || !e.busy(now)
}

// busy reports whether the next probe is due so soon that looking for answers
// can wait until there are more.
func (e *Engine) busy(now int64) bool {
	next, ok := e.sched.peek()
	if !ok || next.due-now >= int64(coalesce) {
		return false
	}
	for _, s := range e.sockets {
		if s != nil && !s.stamps {
			return false
		}
	}
	return true
}

// sleep waits for the next thing to do.
func (e *Engine) sleep(now, due int64, more bool) error {
	busy := e.busy(now)
	until := now + int64(time.Hour)
	if more {
		until = due
	}
	fds := [2 + kinds]unix.PollFd{{Fd: int32(e.wake), Events: unix.POLLIN}, {Fd: int32(e.timer), Events: unix.POLLIN}}
	n := 2
	if !busy {
		if e.win.len() > 0 {
			until = min(until, e.win.at(e.win.head).sent+int64(e.o.Timeout))
		}
		for _, s := range e.sockets {
			if s != nil {
				fds[n] = unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN}
				n++
			}
		}
	}
	wait := until - now
	if len(e.batch) > 0 && (wait > int64(coalesce) || now-e.aged > flushAfter) {
		e.flush()
	}
	now, _ = e.read()
	if wait = until - now; wait <= 0 {
		return nil
	}
	if now-e.yielded > yieldEvery {
		e.yielded = now
		runtime.Gosched()
		now, _ = e.read()
		if wait = until - now; wait <= 0 {
			return nil
		}
	}
	// A timerfd has none of the slack, 50 µs by default, of ppoll's own timeout.
	if err := unix.TimerfdSettime(e.timer, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(wait)}, nil); err != nil {
		return fmt.Errorf("set timer: %w", err)
	}
	if _, err := unix.Ppoll(fds[:n], nil, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for answers: %w", err)
	}
	return nil
}

// drain takes everything the sockets have and returns the time before it: what
// came until then is known.
func (e *Engine) drain() int64 {
	now, _ := e.read()
	for _, s := range e.sockets {
		if s == nil {
			continue
		}
		// Stamps of the way out first: answers need them.
		e.drainErrors(s)
		e.drainAnswers(s)
	}
	e.undrained, e.drained = 0, now
	return now
}

func (e *Engine) drainErrors(s *socket) {
	if !s.stamps && !s.hasErrors() {
		return
	}
	for range maxRounds {
		n, err := e.errs.receive(s.fd, unix.MSG_ERRQUEUE)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		now, _ := e.read()
		for i := range n {
			c := parseControl(e.errs.control(i))
			switch {
			case !c.failed:
			case c.origin == unix.SO_EE_ORIGIN_TIMESTAMPING:
				e.transmitted(s, c, now)
			default:
				e.errorQueued(s, c, e.errs.payload(i), e.errs.name(i), now)
			}
		}
		e.errs.reset(n)
		if n < len(e.errs.hdrs) {
			return
		}
	}
}

// transmitted takes the kernel's stamp of a packet of ours.
func (e *Engine) transmitted(s *socket, c control, now int64) {
	low := s.keys[c.key%sizeKeys]
	n := e.win.head + uint64(low-uint32(e.win.head))
	if c.stamp == 0 || !e.win.holds(n) {
		return
	}
	slot := e.win.at(n)
	if slot.key != c.key || slot.socket != uint8(s.kind) || slot.tx != 0 || slot.sent == 0 {
		return
	}
	// A stamp from before the call or after now is of another packet with the
	// same number, or the clock was set, which checkClock finds.
	tx := e.clock.stamp(c.stamp)
	if tx >= slot.wall-clockSlack && tx <= slot.wall+now-slot.sent+clockSlack {
		slot.tx = tx
	}
}

// errorQueued takes an ICMP error about a packet of ours from the error queue of
// a datagram socket.
func (e *Engine) errorQueued(s *socket, c control, data, name []byte, now int64) {
	if c.origin != unix.SO_EE_ORIGIN_ICMP && c.origin != unix.SO_EE_ORIGIN_ICMP6 {
		// SO_EE_ORIGIN_LOCAL: the call that sent it failed too.
		return
	}
	to, ok := parseSockaddr(name)
	if !ok {
		e.acc.Foreign++
		return
	}
	f := icmpError{kind: c.typ, code: c.cod, inner: data}
	if s.kind.udp() {
		// Routers must quote 8 bytes after the header only; a test packet's
		// number is in them.
		if len(data) < 4 {
			e.acc.Foreign++
			return
		}
		e.failUDP(to, f, binary.BigEndian.Uint32(data[e.l.seq:]), c.offender, now)
		return
	}
	e.failEcho(s, f, to.Addr(), c.offender, now)
}

func (e *Engine) drainAnswers(s *socket) {
	for range maxRounds {
		n, err := e.in.receive(s.fd, 0)
		if err != nil {
			if errors.Is(err, unix.EAGAIN) {
				return
			}
			// Of an earlier packet: the error queue has the details.
			e.drainErrors(s)
			continue
		}
		now, _ := e.read()
		for i := range n {
			c := parseControl(e.in.control(i))
			if c.dropped {
				e.acc.Dropped += uint64(c.drops - s.drops)
				s.drops = c.drops
			}
			from, ok := parseSockaddr(e.in.name(i))
			if !ok {
				e.acc.Foreign++
				continue
			}
			a := arrival{from: from, ttl: c.ttl, now: now, cut: e.in.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0}
			if c.stamp != 0 {
				a.stamp = e.clock.stamp(c.stamp)
			}
			e.answer(s, e.in.payload(i), a)
		}
		e.in.reset(n)
		if n < len(e.in.hdrs) {
			return
		}
	}
}

// arrival is what is known about a packet received.
type arrival struct {
	from  netip.AddrPort
	ttl   int
	now   int64 // when it was taken from the socket
	stamp int64 // the kernel's, wall clock; 0 none
	cut   bool
}

func (e *Engine) answer(s *socket, b []byte, a arrival) {
	if s.kind.udp() {
		e.answerSTAMP(b, a)
		return
	}
	v6 := s.kind.v6()
	want := byte(icmp4EchoReply)
	if v6 {
		want = icmp6EchoReply
	} else if s.raw {
		proto, ttl, rest, ok := parseIPv4(b)
		if !ok || proto != protoICMP {
			e.acc.Foreign++
			return
		}
		b, a.ttl = rest, int(ttl)
	}
	if len(b) > 0 && s.raw && isErrorType(b[0], v6) {
		f, ok := parseError(b, v6)
		dst, valid := netip.AddrFromSlice(f.dst)
		if !ok || !valid {
			e.acc.Foreign++
			return
		}
		e.failEcho(s, f, dst, a.from.Addr(), a.now)
		return
	}
	r, ok := parseEcho(b, want)
	if !ok || s.raw && r.id != s.id {
		e.acc.Foreign++
		return
	}
	e.answerEcho(s, b, r, a)
}

func (e *Engine) answerEcho(s *socket, b []byte, r echo, a arrival) {
	if len(e.payload) < CookiePayload {
		if s.kind == kindICMP4 && checksum(0, b) != 0 {
			e.acc.Foreign++
			return
		}
		n, ok := e.findSmall(s, r.seq, a.from.Addr())
		if !ok {
			e.acc.Foreign++
			return
		}
		if len(r.payload) < len(e.payload) {
			e.acc.Truncated++
			return
		}
		e.answered(e.win.at(n), a, a.cut || !samePayload(r.payload, e.payload))
		return
	}
	t, ok := parseToken(r.payload)
	switch {
	case !ok:
		e.acc.Truncated++
		return
	case t.cookie != e.cookie:
		e.acc.Forged++
		return
	case !e.ours(t.flow, s.kind) || !answersTo(e.flows[t.flow].Dst.Addr(), a.from.Addr()):
		e.acc.Forged++
		return
	case len(r.payload) < len(e.payload):
		e.acc.Truncated++
		return
	}
	n, ok := e.win.find(e.sched, t.flow, t.seq)
	if !ok {
		e.missed(t.flow, t.seq)
		return
	}
	e.answered(e.win.at(n), a, a.cut || r.seq != uint16(n) || !samePayload(r.payload, e.payload))
}

// ours reports whether the engine has the flow on this kind of socket.
func (e *Engine) ours(flow uint32, k socketKind) bool {
	return int(flow) < len(e.flows) && e.kind(&e.flows[flow]) == k
}

// answersTo reports whether an answer may come from there. Those to a group or to no address in
// particular come from anywhere.
func answersTo(dst, from netip.Addr) bool {
	dst = dst.Unmap().WithZone("")
	return dst == from || dst.IsMulticast() || dst.IsUnspecified() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// findSmall finds the newest probe with the low bits of its number and the
// address, for payloads without a token.
func (e *Engine) findSmall(s *socket, low uint16, from netip.Addr) (uint64, bool) {
	if e.win.len() == 0 {
		return 0, false
	}
	last := e.win.tail - 1
	for n := last - uint64(uint16(last)-low); e.win.holds(n); n -= 1 << 16 {
		slot := e.win.at(n)
		if slot.socket == uint8(s.kind) && slot.sent != 0 && answersTo(e.flows[slot.flow].Dst.Addr(), from) {
			return n, true
		}
	}
	return 0, false
}

// missed counts an answer that has no slot.
func (e *Engine) missed(flow, seq uint32) {
	if e.past(flow, seq) {
		e.acc.Late++
	} else {
		e.acc.Forged++
	}
}

// past reports whether the probe had its result already.
func (e *Engine) past(flow, seq uint32) bool {
	if int64(seq) >= int64(e.flows[flow].Count) {
		return false
	}
	if e.win.len() > 0 {
		first := e.win.at(e.win.head)
		return e.sched.before(flow, seq, first.flow, first.seq)
	}
	next, ok := e.sched.peek()
	return !ok || e.sched.before(flow, seq, next.flow, next.seq)
}

func (e *Engine) answerSTAMP(b []byte, a arrival) {
	twins := e.byAddr[a.from]
	if len(twins) == 0 {
		e.acc.Foreign++
		return
	}
	r, v := parseReply(b, e.l, e.sign)
	switch v {
	case verdictShort:
		e.acc.Truncated++
		return
	case verdictForged:
		e.acc.Forged++
		return
	}
	n, ok := e.findTwin(twins, r.ssid, r.senderSeq, func(s *slot) bool { return ntp(s.wall) == r.senderStamp })
	if !ok {
		e.missed(twins[int(r.ssid)%len(twins)], r.senderSeq)
		return
	}
	slot := e.win.at(n)
	if slot.state == stateSent || slot.state >= stateUnreachable {
		slot.t2, slot.t3 = remoteNano(r.t2, r.estimate, slot.wall), remoteNano(r.t3, r.estimate, slot.wall)
		slot.refSeq, slot.estimate = r.seq, r.estimate
		if r.estimate&estimatePTP != 0 {
			slot.flags |= flagPTP
		}
	}
	e.answered(slot, a, false)
}

// findTwin finds the probe with the number among the flows to one address. The
// session identifier tells which of them, unless there are more flows than
// identifiers or the reflector does not know of identifiers (RFC 8972 is younger
// than RFC 8762): then it takes looking.
func (e *Engine) findTwin(twins []uint32, ssid uint16, seq uint32, is func(*slot) bool) (uint64, bool) {
	const identifiers = 1 << 16
	for at := int(ssid); at < len(twins); at += identifiers {
		if n, ok := e.win.find(e.sched, twins[at], seq); ok && is(e.win.at(n)) {
			return n, true
		}
	}
	if ssid != 0 {
		return 0, false
	}
	for _, flow := range twins[min(1, len(twins)):] {
		if n, ok := e.win.find(e.sched, flow, seq); ok && is(e.win.at(n)) {
			return n, true
		}
	}
	return 0, false
}

// answered takes an answer to a probe.
func (e *Engine) answered(s *slot, a arrival, corrupt bool) {
	if s.state == stateOK || s.state == stateCorrupt {
		e.acc.Duplicates++
		if s.dups++; s.dups == 0 {
			s.dups--
		}
		return
	}
	if s.state == stateDue {
		e.acc.Forged++
		return
	}
	rx := a.stamp
	if rx == 0 {
		rx = s.wall + a.now - s.sent
	}
	from := s.wall
	if s.tx != 0 {
		from = s.tx
	}
	if s.flags&flagStepped == 0 && rx-from > int64(e.o.Timeout) && a.now-s.sent > int64(e.o.Timeout) {
		e.acc.Late++
		return
	}
	s.state = stateOK
	if corrupt {
		s.state = stateCorrupt
		e.acc.Corrupt++
	}
	e.acc.Answered++
	s.rx, s.answered, s.ttl, s.text = rx, a.now, uint8(a.ttl), 0
	if a.stamp != 0 {
		s.flags |= flagRx
		// The kernel cannot have taken longer than we did.
		if d := rx - from; d < 0 || d > a.now-s.sent+clockSlack {
			s.flags |= flagStepped
		}
	}
	if e.newest[s.flow] > s.seq {
		s.flags |= flagReordered
	} else {
		e.newest[s.flow] = s.seq + 1
	}
}

// failEcho takes an ICMP error about an echo request to dst.
func (e *Engine) failEcho(s *socket, f icmpError, dst, from netip.Addr, now int64) {
	want := byte(icmp4Echo)
	if s.kind.v6() {
		want = icmp6Echo
	}
	r, ok := parseEcho(f.inner, want)
	if !ok || s.raw && r.id != s.id {
		e.acc.Foreign++
		return
	}
	var n uint64
	if t, whole := parseToken(r.payload); whole && len(e.payload) >= CookiePayload {
		if t.cookie != e.cookie || !e.ours(t.flow, s.kind) {
			e.acc.Forged++
			return
		}
		if n, ok = e.win.find(e.sched, t.flow, t.seq); !ok {
			e.missed(t.flow, t.seq)
			return
		}
	} else if n, ok = e.findSmall(s, r.seq, dst); !ok {
		// Routers need not quote the token.
		e.acc.Foreign++
		return
	}
	slot := e.win.at(n)
	if !answersTo(e.flows[slot.flow].Dst.Addr(), dst) {
		e.acc.Forged++
		return
	}
	e.failed(slot, f, s.kind.v6(), from, now)
}

// failUDP takes an ICMP error about a test packet.
func (e *Engine) failUDP(to netip.AddrPort, f icmpError, seq uint32, from netip.Addr, now int64) {
	twins := e.byAddr[to]
	if len(twins) == 0 {
		e.acc.Foreign++
		return
	}
	// Routers need not quote the identifier.
	ssid := uint16(0)
	if len(f.inner) >= e.l.ssid+2 {
		ssid = binary.BigEndian.Uint16(f.inner[e.l.ssid:])
	}
	n, ok := e.findTwin(twins, ssid, seq, func(s *slot) bool {
		return s.state == stateSent && (len(f.inner) < e.l.stamp+8 || binary.BigEndian.Uint64(f.inner[e.l.stamp:]) == ntp(s.wall))
	})
	if !ok {
		e.missed(twins[int(ssid)%len(twins)], seq)
		return
	}
	e.failed(e.win.at(n), f, to.Addr().Is6(), from, now)
}

func (e *Engine) failed(s *slot, f icmpError, v6 bool, from netip.Addr, now int64) {
	if s.state != stateSent {
		return
	}
	st, text := describe(f.kind, f.code, v6)
	k := textKey{kind: f.kind, code: f.code, v6: v6, from: from}
	id, ok := e.textIDs[k]
	if !ok {
		if from.IsValid() {
			text += ", says " + from.String()
		}
		id = e.addText(k, text)
	}
	e.acc.Errors++
	s.state, s.text, s.answered = st, id, now
}

// expire emits what has waited long enough at now.
func (e *Engine) expire(now int64) {
	for e.win.len() > 0 {
		s := e.win.at(e.win.head)
		// What was never sent has nothing to wait for.
		waits := s.tx != 0 || s.state == stateSent || s.state == stateOK || s.state == stateCorrupt
		if waits && now-s.sent < int64(e.o.Timeout) {
			return
		}
		e.emit(s)
		e.win.head++
	}
}

// cancel ends the run early.
func (e *Engine) cancel(now int64) {
	for {
		p, ok := e.sched.peek()
		if !ok || p.due > now {
			break
		}
		s := e.win.at(e.win.push(p))
		s.state, s.sent, s.answered = stateCancelled, now, now
		e.sched.advance()
		e.acc.Issued++
	}
	now = e.drain()
	e.checkClock()
	for ; e.win.len() > 0; e.win.head++ {
		s := e.win.at(e.win.head)
		if s.state == stateSent && now-s.sent < int64(e.o.Timeout) {
			s.state, s.answered = stateCancelled, now
		}
		e.emit(s)
	}
}

// emit turns a slot into a result.
func (e *Engine) emit(s *slot) {
	if len(e.batch) == cap(e.batch) {
		e.flush()
		select {
		case e.batch = <-e.free:
		default:
			e.batch = make([]Result, 0, batchResults)
		}
	}
	if len(e.batch) == 0 {
		e.aged, _ = e.read()
	}
	e.batch = e.batch[:len(e.batch)+1]
	r := &e.batch[len(e.batch)-1]
	*r = Result{
		Flow: int(s.flow), Seq: s.seq, Intended: e.start.Add(time.Duration(s.due)), Err: e.texts[s.text],
		TTL: int(s.ttl), Duplicates: int(s.dups), Reordered: s.flags&flagReordered != 0,
	}
	from, sent := s.wall, s.sent
	if s.tx != 0 && s.flags&flagStepped == 0 {
		r.Stamps |= StampTransmit
		from, sent = s.tx, s.sent+s.tx-s.wall
	}
	r.Wait = time.Duration(max(sent-s.due, 0))
	switch s.state {
	case stateOK, stateCorrupt:
		e.emitAnswer(r, s, from)
		return
	case stateSent:
		r.Status, r.RTT = schemas.StatusTimeout, e.o.Timeout
		r.Err = "no answer in time"
		return
	case stateUnreachable:
		r.Status = schemas.StatusUnreachable
	case stateRefused:
		r.Status = schemas.StatusRefused
	case stateDenied:
		r.Status = schemas.StatusDenied
	case stateCancelled:
		r.Status, r.Err = schemas.StatusCancelled, "the run ended before the answer came"
	default:
		r.Status = schemas.StatusError
	}
	r.RTT = time.Duration(max(s.answered-s.sent, 0))
}

func (e *Engine) emitAnswer(r *Result, s *slot, from int64) {
	if s.tx == 0 {
		e.acc.NoStampTx++
	}
	if s.flags&flagRx != 0 {
		r.Stamps |= StampReceive
	} else {
		e.acc.NoStampRx++
	}
	// By our own clock, which cannot be set: an upper bound.
	r.RTT = time.Duration(s.answered - s.sent)
	if s.flags&flagStepped != 0 {
		r.Status, r.Stamps, r.Err = schemas.StatusClockStepped, 0, "the wall clock was set while the probe was under way"
		return
	}
	d := s.rx - from
	udp := socketKind(s.socket).udp()
	if udp {
		r.ReflectorSeq = s.refSeq
		r.RemoteSynced, r.RemoteError = decodeEstimate(s.estimate)
		there := s.t3 - s.t2
		if there < 0 || there > d {
			r.Status, r.Err = schemas.StatusClockStepped, "the reflector's clock was set while it answered"
			return
		}
		r.Reflected = time.Duration(there)
		if s.flags&flagPTP == 0 {
			r.Forward, r.Backward, r.HasOneWay = time.Duration(s.t2-from), time.Duration(s.rx-s.t3), true
		}
		d -= there
	}
	r.RTT, r.Status = time.Duration(d), schemas.StatusOK
	if s.state == stateCorrupt {
		r.Status, r.Err = schemas.StatusCorrupt, "the answer has another payload than was sent"
	}
}

// flush hands the results so far over.
func (e *Engine) flush() {
	if len(e.batch) > 0 {
		e.full <- e.batch
		e.batch = nil
	}
}
