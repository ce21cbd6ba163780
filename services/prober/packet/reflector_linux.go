package packet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Reflector answers STAMP test packets on one UDP port, statefully: its answers
// are counted by session. It forgets the session used longest ago where there are too
// many.
type Reflector struct {
	log      *slog.Logger
	socks    []*mirror
	port     uint16
	wake     int
	key      atomic.Pointer[[]byte]
	sessions *sessions
	stats    reflectorStats
	ran      atomic.Bool

	current  *[]byte // the key that sign is for
	sign     *signer
	estimate uint16
	rated    time.Time
}

type reflectorStats struct {
	received, answered, disabled, short, forged, looped, failed, dropped, noStamp, evicted atomic.Uint64
	sessions                                                                               atomic.Int64
}

// mirror is one of its sockets.
type mirror struct {
	fd    int
	v6    bool
	in    *messages
	drops uint32
	// One answer at a time is sent, so that its time is read just before.
	out     unix.Msghdr
	iov     unix.Iovec
	control []byte
}

// maxRequest is the largest packet that is answered.
const maxRequest = maxPayload

// NewReflector opens the port, 0 for any, of the address; of both families if
// it is not specified. It answers nothing before SetKey.
func NewReflector(addr netip.AddrPort, log *slog.Logger) (*Reflector, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Reflector{log: log, wake: -1, sessions: newSessions(maxSessions)}
	if err := r.open(addr); err != nil {
		return nil, errors.Join(fmt.Errorf("STAMP reflector on %s: %w", addr, err), r.Close())
	}
	return r, nil
}

func (r *Reflector) open(addr netip.AddrPort) error {
	if !addr.Addr().IsValid() {
		return errors.New("no address")
	}
	var err error
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	if !addr.Addr().IsUnspecified() {
		return r.listen(addr)
	}
	// The port that one family has free may be taken in the other.
	const tries = 16
	for range tries {
		err = r.listen(netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port()))
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return err
		}
		port := addr.Port()
		if err == nil {
			port = r.port
		}
		six := r.listen(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		switch {
		case six == nil, errors.Is(six, unix.EAFNOSUPPORT) && err == nil, errors.Is(six, unix.EADDRNOTAVAIL) && err == nil:
			return nil
		case addr.Port() != 0 || !errors.Is(six, unix.EADDRINUSE):
			return six
		}
		if err := r.closeSockets(); err != nil {
			return err
		}
		err = six
	}
	return err
}

func (r *Reflector) listen(addr netip.AddrPort) error {
	a := addr.Addr().Unmap()
	domain, level, info, ttl := unix.AF_INET, unix.SOL_IP, unix.IP_PKTINFO, unix.IP_RECVTTL
	if a.Is6() {
		domain, level, info, ttl = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_RECVHOPLIMIT
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	m := &mirror{fd: fd, v6: a.Is6()}
	if err := m.setup(addr, level, info, ttl); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return errors.Join(fmt.Errorf("read own address: %w", err), unix.Close(fd))
	}
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		r.port = uint16(n.Port)
	case *unix.SockaddrInet6:
		r.port = uint16(n.Port)
	}
	r.socks = append(r.socks, m)
	return nil
}

func (m *mirror) setup(addr netip.AddrPort, level, info, ttl int) error {
	a := addr.Addr().Unmap()
	var faults []error
	set := func(what string, level, opt, value int) {
		if err := unix.SetsockoptInt(m.fd, level, opt, value); err != nil {
			faults = append(faults, fmt.Errorf("set %s: %w", what, err))
		}
	}
	scope, err := scopeOf(a)
	if err != nil {
		return err
	}
	var sa unix.Sockaddr
	if a.Is6() {
		set("only IPv6", unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
		sa = &unix.SockaddrInet6{Addr: a.As16(), Port: int(addr.Port()), ZoneId: scope}
	} else {
		sa = &unix.SockaddrInet4{Addr: a.As4(), Port: int(addr.Port())}
	}
	set("packet information", level, info, 1)
	set("TTL of requests", level, ttl, 1)
	if err := errors.Join(faults...); err != nil {
		return err
	}
	enlargeBuffers(m.fd)
	// Best effort: without it, the time received is ours.
	_ = unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, stampFlags)
	if err := unix.Bind(m.fd, sa); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	m.in = newMessages(maxRequest, true)
	m.control = make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	m.out.Iov = &m.iov
	m.out.SetIovlen(1)
	return nil
}

// Port is the UDP port that is listened on.
func (r *Reflector) Port() uint16 { return r.port }

// SetKey begins to answer, or goes on with another key: packets signed with
// the key in authenticated mode. An empty key means unauthenticated mode: anyone's packets are
// answered. That is for those who ask for it.
func (r *Reflector) SetKey(key []byte) {
	own := append([]byte(nil), key...)
	r.key.Store(&own)
}

// Disable ends answering, until SetKey.
func (r *Reflector) Disable() { r.key.Store(nil) }

// Stats may be called at any time.
func (r *Reflector) Stats() ReflectorStats {
	s := &r.stats
	return ReflectorStats{
		Received: s.received.Load(), Answered: s.answered.Load(), Disabled: s.disabled.Load(), Short: s.short.Load(),
		Forged: s.forged.Load(), Looped: s.looped.Load(), Failed: s.failed.Load(), Dropped: s.dropped.Load(),
		NoStamp: s.noStamp.Load(), Sessions: int(s.sessions.Load()), Evicted: s.evicted.Load(),
	}
}

// Close gives the port back. It must not be called during Run.
func (r *Reflector) Close() error {
	err := r.closeSockets()
	if r.wake >= 0 {
		err = errors.Join(err, unix.Close(r.wake))
		r.wake = -1
	}
	return err
}

func (r *Reflector) closeSockets() error {
	var faults []error
	for _, m := range r.socks {
		if err := unix.Close(m.fd); err != nil {
			faults = append(faults, fmt.Errorf("close STAMP reflector: %w", err))
		}
	}
	r.socks = nil
	return errors.Join(faults...)
}

// Run answers until ctx ends, which is no error. It can be called once.
func (r *Reflector) Run(ctx context.Context) error {
	if r.wake < 0 || r.ran.Swap(true) {
		return errors.New("run STAMP reflector: it ran before or is closed")
	}
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		_, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- r.loop(ctx)
	}()
	err := <-done
	if !stop() {
		<-told
	}
	return err
}

func (r *Reflector) loop(ctx context.Context) error {
	fds := make([]unix.PollFd, 0, 1+len(r.socks))
	fds = append(fds, unix.PollFd{Fd: int32(r.wake), Events: unix.POLLIN})
	for _, m := range r.socks {
		fds = append(fds, unix.PollFd{Fd: int32(m.fd), Events: unix.POLLIN})
	}
	for ctx.Err() == nil {
		if _, err := unix.Ppoll(fds, nil, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("STAMP reflector: wait for packets: %w", err)
		}
		if time.Since(r.rated) > time.Duration(estimateEvery) {
			r.rated, r.estimate = time.Now(), systemEstimate()
		}
		for i, m := range r.socks {
			if fds[i+1].Revents != 0 {
				r.serve(m)
			}
		}
	}
	return nil
}

// serve answers one batch of requests.
func (r *Reflector) serve(m *mirror) {
	n, err := m.in.receive(m.fd, 0)
	if err != nil {
		// Nothing there, or an error about an earlier answer; it is cleared.
		return
	}
	now := time.Now()
	if key := r.key.Load(); key != r.current {
		r.current, r.sign = key, nil
		if key != nil {
			r.sign = newSigner(*key)
		}
	}
	for i := range n {
		r.stats.received.Add(1)
		c := parseControl(m.in.control(i))
		if c.dropped {
			r.stats.dropped.Add(uint64(c.drops - m.drops))
			m.drops = c.drops
		}
		switch {
		case r.current == nil:
			r.stats.disabled.Add(1)
		case m.in.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0:
			r.stats.failed.Add(1)
		default:
			r.reflect(m, i, c, now)
		}
	}
	m.in.reset(n)
	r.stats.sessions.Store(int64(len(r.sessions.all)))
	r.stats.evicted.Store(r.sessions.evicted)
}

// reflect answers one request.
func (r *Reflector) reflect(m *mirror, i int, c control, now time.Time) {
	b, name := m.in.payload(i), m.in.name(i)
	l := layoutOf(r.sign != nil)
	req, v := parseRequest(b, l, r.sign)
	switch v {
	case verdictShort:
		r.stats.short.Add(1)
		return
	case verdictForged:
		r.stats.forged.Add(1)
		return
	case verdictLooped:
		r.stats.looped.Add(1)
		return
	}
	from, ok := parseSockaddr(name)
	if !ok || from.Port() == 0 {
		r.stats.failed.Add(1)
		return
	}
	t2 := c.stamp
	if t2 == 0 {
		t2 = now.UnixNano()
		r.stats.noStamp.Add(1)
	}
	seq := r.sessions.count(sessionKey{from: from.Addr().As16(), to: c.local, port: from.Port(), ssid: req.ssid}, now.UnixNano())
	m.address(name, c)
	reflectTLVs(b[l.size:])
	m.iov.Base = &b[0]
	m.iov.SetLen(len(b))
	putReply(b, l, req, seq, t2, time.Now().UnixNano(), r.estimate, byte(c.ttl), r.sign)
	if err := m.send(); err != nil {
		r.stats.failed.Add(1)
		return
	}
	r.stats.answered.Add(1)
}

// address has the answer go back to name, from the address that was asked.
func (m *mirror) address(name []byte, c control) {
	m.out.Name = &name[0]
	m.out.Namelen = uint32(len(name))
	clear(m.control)
	h := m.control
	size := unix.SizeofInet4Pktinfo
	level, kind := unix.SOL_IP, unix.IP_PKTINFO
	if m.v6 {
		size, level, kind = unix.SizeofInet6Pktinfo, unix.SOL_IPV6, unix.IPV6_PKTINFO
	}
	putCmsgHeader(h, size, level, kind)
	data := h[unix.CmsgLen(0):]
	if m.v6 {
		copy(data, c.local[:])
		binary.NativeEndian.PutUint32(data[16:], c.ifi)
	} else {
		// The interface is left to routing, which need not be symmetrical.
		copy(data[4:], c.local[:4])
	}
	m.out.Control = &m.control[0]
	m.out.SetControllen(unix.CmsgSpace(size))
}

// send sends the answer. An error of an earlier one may come in its place, hence
// the second try.
func (m *mirror) send() error {
	const tries = 3
	var err error
	for range tries {
		if err = sendmsg(m.fd, &m.out); err == nil {
			return nil
		}
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return err
}
