package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

const (
	sizeName    = unix.SizeofSockaddrInet6
	sizeControl = 256
	// maxBatch is how many messages one call moves.
	maxBatch = 64
	// batchBytes bounds the buffers of a batch where packets are big.
	batchBytes = 1 << 20
	// socketBuffer is asked of the kernel for each direction: several thousand
	// small packets, each of which takes it about 1 kB.
	socketBuffer = 8 << 20
)

// messages are buffers for one call of sendmmsg or recvmmsg. It refers to itself.
type messages struct {
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	names [][sizeName]byte
	ctl   [][sizeControl]byte
	data  [][]byte
}

func newMessages(size int, control bool) *messages {
	n := min(maxBatch, max(4, batchBytes/max(1, size)))
	m := &messages{hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), names: make([][sizeName]byte, n), data: make([][]byte, n)}
	if control {
		m.ctl = make([][sizeControl]byte, n)
	}
	all := make([]byte, n*size)
	for i := range n {
		m.data[i] = all[i*size : (i+1)*size : (i+1)*size]
		if size > 0 {
			m.iovs[i].Base = &m.data[i][0]
		}
		m.iovs[i].SetLen(size)
		h := &m.hdrs[i].hdr
		h.Iov = &m.iovs[i]
		h.SetIovlen(1)
		h.Name = &m.names[i][0]
		h.Namelen = sizeName
		if control {
			h.Control = &m.ctl[i][0]
		}
	}
	m.reset(n)
	return m
}

// reset makes the first n ready to receive into.
func (m *messages) reset(n int) {
	for i := range n {
		h := &m.hdrs[i].hdr
		h.Namelen, h.Flags = sizeName, 0
		if m.ctl != nil {
			h.SetControllen(sizeControl)
		}
	}
}

// receive reads what is there, without waiting, and returns how many messages.
func (m *messages) receive(fd, flags int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m.hdrs[0])), uintptr(len(m.hdrs)), uintptr(flags|unix.MSG_DONTWAIT), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// send sends messages from to to; an error is of the first.
func (m *messages) send(fd, from, to int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m.hdrs[from])), uintptr(to-from), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func (m *messages) payload(i int) []byte { return m.data[i][:min(int(m.hdrs[i].len), len(m.data[i]))] }

func (m *messages) name(i int) []byte { return m.names[i][:min(int(m.hdrs[i].hdr.Namelen), sizeName)] }

func (m *messages) control(i int) []byte {
	return m.ctl[i][:min(int(m.hdrs[i].hdr.Controllen), sizeControl)]
}

const (
	stampFlags = unix.SOF_TIMESTAMPING_SOFTWARE | unix.SOF_TIMESTAMPING_RX_SOFTWARE
	// OPT_TSONLY: the stamp comes back with the packet's number (OPT_ID) instead
	// of the packet.
	sendStampFlags = stampFlags | unix.SOF_TIMESTAMPING_TX_SOFTWARE | unix.SOF_TIMESTAMPING_OPT_ID | unix.SOF_TIMESTAMPING_OPT_TSONLY
)

// socketKind is one of the four ways a probe takes.
type socketKind uint8

const (
	kindICMP4 socketKind = iota
	kindICMP6
	kindUDP4
	kindUDP6
	kinds
)

func (k socketKind) v6() bool  { return k == kindICMP6 || k == kindUDP6 }
func (k socketKind) udp() bool { return k >= kindUDP4 }

func (k socketKind) String() string {
	return [kinds]string{"ICMP", "ICMPv6", "UDP", "UDP over IPv6"}[k]
}

// socket is one way for probes out and answers in.
type socket struct {
	kind  socketKind
	fd    int
	raw   bool
	id    uint16 // of echo requests, if raw
	drops uint32 // as last said by the kernel

	out    *messages
	sum    uint32   // of what all payloads share
	keys   []uint32 // low half of the window's numbers by number of the transmit stamp
	next   uint32   // number that the next packet's stamp will have
	stamps bool     // the kernel stamps
}

// sizeKeys bounds how many transmit stamps may be outstanding.
const sizeKeys = 1 << 14

// openSocket opens the way; id is for raw sockets.
func openSocket(kind socketKind, o *Options, id uint16) (*socket, error) {
	s := &socket{kind: kind, fd: -1, id: id}
	if err := s.open(); err != nil {
		return nil, err
	}
	if err := s.configure(o); err != nil {
		return nil, errors.Join(err, unix.Close(s.fd))
	}
	s.keys = make([]uint32, sizeKeys)
	return s, nil
}

func (s *socket) open() error {
	domain, icmp := unix.AF_INET, unix.IPPROTO_ICMP
	if s.kind.v6() {
		domain, icmp = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	var err error
	if s.kind.udp() {
		if s.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|flags, unix.IPPROTO_UDP); err != nil {
			return fmt.Errorf("open %s socket: %w", s.kind, err)
		}
		return nil
	}
	if s.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|flags, icmp); err == nil {
		return nil
	}
	datagram := err
	if s.fd, err = unix.Socket(domain, unix.SOCK_RAW|flags, icmp); err != nil {
		return fmt.Errorf("open raw %s socket: %w (needs CAP_NET_RAW), and datagram socket: %w (net.ipv4.ping_group_range is %s)", s.kind, err, datagram, pingGroups())
	}
	s.raw = true
	return nil
}

func pingGroups() string {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
	if err != nil {
		return "not readable"
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func (s *socket) configure(o *Options) error {
	ttl := o.TTL
	if ttl == 0 {
		ttl = 64
	}
	var faults []error
	set := func(what string, level, opt, value int) {
		if err := unix.SetsockoptInt(s.fd, level, opt, value); err != nil {
			faults = append(faults, fmt.Errorf("set %s of %s socket: %w", what, s.kind, err))
		}
	}
	if s.kind.v6() {
		set("hop limit", unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, ttl)
		set("traffic class", unix.SOL_IPV6, unix.IPV6_TCLASS, o.DSCP<<2)
		set("hop limit of answers", unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
	} else {
		set("TTL", unix.SOL_IP, unix.IP_TTL, ttl)
		set("DSCP", unix.SOL_IP, unix.IP_TOS, o.DSCP<<2)
		if !s.raw {
			set("TTL of answers", unix.SOL_IP, unix.IP_RECVTTL, 1)
		}
	}
	switch {
	case s.raw:
		// A raw socket sees ICMP errors as packets. With RECVERR it would also
		// have those of other processes' pings, as errors of our own calls.
		faults = append(faults, s.filter())
	case s.kind.v6():
		set("errors", unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	default:
		set("errors", unix.SOL_IP, unix.IP_RECVERR, 1)
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	enlargeBuffers(s.fd)
	s.stamps = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, sendStampFlags) == nil
	return s.bind(o.Source)
}

func enlargeBuffers(fd int) {
	// Best effort: past the sysctl's limit with CAP_NET_ADMIN, up to it without;
	// overflows are counted, so too little shows.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
}

func (s *socket) bind(source netip.Addr) error {
	source = source.Unmap()
	if !source.IsValid() || source.Is6() != s.kind.v6() {
		return nil
	}
	scope, err := scopeOf(source)
	if err != nil {
		return err
	}
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: source.As16(), ZoneId: scope}
	if source.Is4() {
		sa = &unix.SockaddrInet4{Addr: source.As4()}
	}
	if err := unix.Bind(s.fd, sa); err != nil {
		return fmt.Errorf("bind %s socket to %s: %w", s.kind, source, err)
	}
	return nil
}

// filter lets only what may be for us through to a raw socket, so that the
// traffic of others does not wake us: first the kernel's own filter by type,
// which spares it a copy, then one by identifier.
func (s *socket) filter() error {
	const accept = 0xffffffff
	if s.kind.v6() {
		var blocked unix.ICMPv6Filter
		for i := range blocked.Data {
			blocked.Data[i] = 0xffffffff
		}
		for _, kind := range []uint32{icmp6EchoReply, icmp6Unreachable, icmp6TooBig, icmp6TimeExceeded, icmp6Parameter} {
			blocked.Data[kind/32] &^= 1 << (kind % 32)
		}
		if err := unix.SetsockoptICMPv6Filter(s.fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &blocked); err != nil {
			return fmt.Errorf("filter ICMPv6 by type: %w", err)
		}
		return s.attach([]unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 2, K: icmp6EchoReply},
			{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4},
			{Code: unix.BPF_JMP | unix.BPF_JA, K: 1},
			// The identifier of the echo request quoted by an error.
			{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: icmpHeader + 40 + 4},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(s.id)},
			{Code: unix.BPF_RET | unix.BPF_K, K: accept},
			{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		})
	}
	blocked := ^uint32(1<<icmp4EchoReply | 1<<icmp4Unreachable | 1<<icmp4TimeExceeded | 1<<icmp4Parameter)
	if err := unix.SetsockoptInt(s.fd, unix.SOL_RAW, unix.ICMP_FILTER, int(int32(blocked))); err != nil {
		return fmt.Errorf("filter ICMP by type: %w", err)
	}
	return s.attach([]unix.SockFilter{
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0}, // x: length of the IP header
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 2, K: icmp4EchoReply},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JA, K: 6},
		// x += length of the quoted IP header
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: icmpHeader},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 15},
		{Code: unix.BPF_ALU | unix.BPF_LSH | unix.BPF_K, K: 2},
		{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_X},
		{Code: unix.BPF_MISC | unix.BPF_TAX},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: icmpHeader + 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(s.id)},
		{Code: unix.BPF_RET | unix.BPF_K, K: accept},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	})
}

func (s *socket) attach(program []unix.SockFilter) error {
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &p); err != nil {
		return fmt.Errorf("filter %s by identifier: %w", s.kind, err)
	}
	return nil
}

// prepare makes the buffers for sending packets with the template as payload.
func (s *socket) prepare(template []byte) {
	head := icmpHeader
	if s.kind.udp() {
		head = 0
	}
	s.out = newMessages(head+len(template), false)
	if len(template) > CookiePayload {
		s.sum = partial(0, template[CookiePayload:])
	}
	for _, b := range s.out.data {
		copy(b[head:], template)
		switch s.kind {
		case kindICMP4:
			b[0] = icmp4Echo
		case kindICMP6:
			b[0] = icmp6Echo
		default:
			continue
		}
		binary.BigEndian.PutUint16(b[4:], s.id)
	}
}

// putEcho writes the i-th packet of the batch.
func (s *socket) putEcho(i int, seq uint16, t token) {
	b := s.out.data[i]
	binary.BigEndian.PutUint16(b[6:], seq)
	head := b[:min(len(b), icmpHeader+CookiePayload)]
	if len(head) == icmpHeader+CookiePayload {
		putToken(b[icmpHeader:], t)
	}
	if s.kind == kindICMP4 {
		b[2], b[3] = 0, 0
		binary.BigEndian.PutUint16(b[2:], checksum(s.sum, head))
	}
}

// sentAs notes that the packet of window number n was sent and returns the
// number of its transmit stamp.
func (s *socket) sentAs(n uint64) uint32 {
	key := s.next
	s.next++
	s.keys[key%sizeKeys] = uint32(n)
	return key
}

// renumber has the kernel count transmit stamps from 0 again: kernels differ in
// whether a packet that could not be sent takes a number.
func (s *socket) renumber() {
	if !s.stamps {
		return
	}
	s.next = 0
	err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, sendStampFlags&^unix.SOF_TIMESTAMPING_OPT_ID)
	if err == nil {
		err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, sendStampFlags)
	}
	s.stamps = err == nil
}

// hasErrors reports whether errors about earlier packets come through the error
// queue, and then also in place of the results of later calls.
func (s *socket) hasErrors() bool { return !s.raw }
