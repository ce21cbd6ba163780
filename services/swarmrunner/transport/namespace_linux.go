package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// stockSize is how many sockets are kept ready, stockLow when more are made:
	// socket(2) is the one call that must be made inside the namespace, and to
	// wake the thread there for each would take longer than to connect.
	stockSize, stockLow = 32, 12
	// maxProcFile bounds what is read of a file in /proc.
	maxProcFile = 4 << 20
)

// namespace is a network namespace and a thread that stays in it.
type namespace struct {
	requests chan func()
	refill   chan struct{}
	stock    chan int // sockets for TCP over IPv4
	quit     chan struct{}
	ended    chan struct{}
	once     sync.Once

	dev, snmp *os.File // /proc/net's, of the namespace: open files stay in it
}

func newNamespace() (*namespace, error) {
	n := &namespace{
		requests: make(chan func()),
		refill:   make(chan struct{}, 1),
		stock:    make(chan int, stockSize),
		quit:     make(chan struct{}),
		ended:    make(chan struct{}),
	}
	ready := make(chan error, 1)
	go n.reside(ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return n, nil
}

// reside is the namespace's thread.
func (n *namespace) reside(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// /proc/self/net and others show the main thread's namespace as the
		// process's: it must not leave. While it is held here, the goroutine
		// below gets another.
		passed := make(chan error, 1)
		go n.reside(passed)
		err := <-passed
		runtime.UnlockOSThread()
		ready <- err
		return
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		ready <- fmt.Errorf("open this network namespace: %w", err)
		return
	}
	err = n.enter()
	ready <- err
	if err == nil {
		n.serve()
	}
	// A thread that cannot return stays locked, and ends with this goroutine, so
	// that no other ever runs in the namespace.
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	_ = home.Close()
}

// enter moves the thread to a new namespace.
func (n *namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		err = fmt.Errorf("make a network namespace: %w", err)
		// EINVAL and ENOSYS are of kernels without them, ENOSPC of a limit
		// (user.max_net_namespaces) which may be zero.
		for _, e := range []error{unix.EPERM, unix.EINVAL, unix.ENOSYS, unix.ENOSPC} {
			if errors.Is(err, e) {
				return fmt.Errorf("%w: %w; it needs root or CAP_SYS_ADMIN (in a container: privileged), and this process has user id %d", ErrNotPermitted, err, os.Geteuid())
			}
		}
		return err
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	dev, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		return fmt.Errorf("open the interfaces' counters: %w", err)
	}
	snmp, err := os.Open("/proc/thread-self/net/snmp")
	if err != nil {
		return errors.Join(fmt.Errorf("open TCP's counters: %w", err), dev.Close())
	}
	n.dev, n.snmp = dev, snmp
	n.fill()
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

func (n *namespace) serve() {
	defer close(n.ended)
	for {
		select {
		case f := <-n.requests:
			f()
		case <-n.refill:
			n.fill()
		case <-n.quit:
			for {
				select {
				case fd := <-n.stock:
					_ = unix.Close(fd)
				default:
					return
				}
			}
		}
	}
}

// fill makes sockets until the stock is full. What fails is tried again by who
// wants one, and reported there.
func (n *namespace) fill() {
	for len(n.stock) < cap(n.stock) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		n.stock <- fd
	}
}

// do runs f on the thread inside.
func (n *namespace) do(f func()) error {
	done := make(chan struct{})
	select {
	case n.requests <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-n.ended:
		return net.ErrClosed
	}
}

func (n *namespace) close() error {
	n.once.Do(func() { close(n.quit) })
	<-n.ended
	return errors.Join(closed(n.dev), closed(n.snmp))
}

func closed(f *os.File) error {
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// socket is a new one inside, for a network as net.Dialer names it to Control.
func (n *namespace) socket(network string) (int, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if strings.HasSuffix(network, "6") {
		family = unix.AF_INET6
	}
	if strings.HasPrefix(network, "udp") {
		kind = unix.SOCK_DGRAM
	}
	if family == unix.AF_INET && kind == unix.SOCK_STREAM {
		select {
		case fd := <-n.stock:
			if len(n.stock) < stockLow {
				select {
				case n.refill <- struct{}{}:
				default:
				}
			}
			return fd, nil
		default:
		}
	}
	fd, err := -1, error(nil)
	if gone := n.do(func() {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}); gone != nil {
		return -1, gone
	}
	return fd, os.NewSyscallError("socket", err)
}

// exchange puts a socket of the namespace in the place of the one that the net
// package has made and not used yet. All that follows (bind, connect, listen,
// waiting) belongs to the socket, whatever thread it comes from, so that the net
// package does it as always.
func (n *namespace) exchange(network string, old int) error {
	fd, err := n.socket(network)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// What the net package has set on the old one.
	if strings.HasSuffix(network, "6") {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("dup3", unix.Dup3(fd, old, unix.O_CLOEXEC))
}

// control prepares a socket before it is bound.
func (n *Network) control(p purpose) control {
	return func(network, _ string, c syscall.RawConn) error {
		var failed error
		if err := c.Control(func(fd uintptr) { failed = n.prepare(network, int(fd), p) }); err != nil {
			return err
		}
		return failed
	}
}

func (n *Network) prepare(network string, fd int, p purpose) error {
	if n.space != nil {
		if err := n.space.exchange(network, fd); err != nil {
			return fmt.Errorf("socket in the private network: %w", err)
		}
	}
	switch p {
	case dialing:
		// Otherwise a port is taken from all connections of the address, not just
		// from those to the same place. Kernels that lack it do without.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	case listening:
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	case receiving:
		// uTP's windows are larger than the usual buffer, and what does not fit is
		// lost; who may not have that much has less.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
	}
	return nil
}

// receiveBuffer is what UDP sockets hold for a reader that is late, in bytes.
const receiveBuffer = 4 << 20

// Counters reads those of all interfaces in the network.
func (n *Network) Counters() (Counters, error) {
	if n.space == nil {
		dev, err := os.ReadFile("/proc/self/net/dev")
		if err != nil {
			return Counters{}, fmt.Errorf("interfaces' counters: %w", err)
		}
		snmp, err := os.ReadFile("/proc/self/net/snmp")
		if err != nil {
			return Counters{}, fmt.Errorf("TCP's counters: %w", err)
		}
		interfaces, err := net.Interfaces()
		if err != nil {
			return Counters{}, fmt.Errorf("list interfaces: %w", err)
		}
		ethernet := map[string]bool{}
		for _, i := range interfaces {
			ethernet[i.Name] = len(i.HardwareAddr) == 6 && i.Flags&net.FlagLoopback == 0
		}
		return parseCounters(dev, snmp, ethernet)
	}
	dev, err := io.ReadAll(io.NewSectionReader(n.space.dev, 0, maxProcFile))
	if err != nil {
		return Counters{}, fmt.Errorf("interfaces' counters: %w", err)
	}
	snmp, err := io.ReadAll(io.NewSectionReader(n.space.snmp, 0, maxProcFile))
	if err != nil {
		return Counters{}, fmt.Errorf("TCP's counters: %w", err)
	}
	return parseCounters(dev, snmp, nil)
}
