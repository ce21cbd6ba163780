package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func private(t testing.TB) *Network {
	t.Helper()
	n, err := Private()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func loopback(last byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, last}), 0)
}

func endpoint(t testing.TB, n *Network, protocol string, addr netip.AddrPort) *Endpoint {
	t.Helper()
	e, err := n.Endpoint(within(t), protocol, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// pair connects a to b.
func pair(t testing.TB, a, b *Endpoint) (there, here net.Conn) {
	t.Helper()
	there, err := a.Dial(within(t), b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	// uTP's other side learns of the connection when it accepts.
	if here, err = b.Listener().Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{there, here} {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	return there, here
}

// namespaceOf is the inode of the network namespace that a socket is in.
func namespaceOf(t *testing.T, c any) uint64 {
	t.Helper()
	for {
		if p, ok := c.(*packetConn); ok {
			c = p.c
		}
		if s, ok := c.(syscall.Conn); ok {
			raw, err := s.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var inode uint64
			if err := raw.Control(func(fd uintptr) {
				namespace, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCGSKNS, 0)
				if errno != 0 {
					err = errno
					return
				}
				f := os.NewFile(namespace, "namespace")
				inode = inodeOf(t, f)
				_ = f.Close()
			}); err != nil {
				t.Fatal(err)
			}
			return inode
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			t.Fatalf("%T has no descriptor", c)
		}
		c = w.NetConn()
	}
}

func inodeOf(t *testing.T, f *os.File) uint64 {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func inodeAt(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return inodeOf(t, f)
}

func TestSocketsOfAPrivateNetworkAreInIt(t *testing.T) {
	n := private(t)
	var inside uint64
	if err := n.space.do(func() { inside = inodeAt(t, "/proc/thread-self/ns/net") }); err != nil {
		t.Fatal(err)
	}
	host := inodeAt(t, "/proc/self/ns/net")
	if inside == host {
		t.Fatal("the network is the host's")
	}
	in := func(what string, socket any) {
		t.Helper()
		if got := namespaceOf(t, socket); got != inside {
			t.Errorf("%s: namespace %d, want %d (the host's is %d)", what, got, inside, host)
		}
	}
	for _, a := range []netip.AddrPort{loopback(2), netip.AddrPortFrom(netip.IPv6Loopback(), 0), netip.AddrPortFrom(netip.AddrFrom16(loopback(3).Addr().As16()), 0)} {
		tcp := endpoint(t, n, ProtocolTCP, a)
		in("listener", tcp.Listener())
		there, here := pair(t, tcp, tcp)
		in("dialed", there)
		in("accepted", here)
		utp := endpoint(t, n, ProtocolUTP, a)
		in("uTP", utp.utp.conn)
		packets, err := n.ListenPacket(within(t), a)
		if err != nil {
			t.Fatal(err)
		}
		in("UDP listener", packets)
		to := netip.MustParseAddrPort(packets.LocalAddr().String())
		c, err := n.Dial(within(t), ProtocolUDP, netip.Addr{}, to)
		if err != nil {
			t.Fatal(err)
		}
		in("UDP dialed", c)
		if err := errors.Join(packets.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	}
	// More than are ready at a time.
	l := endpoint(t, n, ProtocolTCP, loopback(4))
	for range 3 * stockSize {
		there, here := pair(t, l, l)
		in("dialed", there)
		if err := errors.Join(there.Close(), here.Close()); err != nil {
			t.Error(err)
		}
	}
	// The host's are the host's still.
	outside := endpoint(t, Host(), ProtocolTCP, loopback(1))
	there, here := pair(t, outside, outside)
	for _, s := range []any{outside.Listener(), there, here} {
		if got := namespaceOf(t, s); got != host {
			t.Errorf("host: %T in namespace %d, want %d", s, got, host)
		}
	}
	if _, err := Host().Dial(within(t), ProtocolTCP, netip.Addr{}, l.Addr()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("from the host into the private network: %v", err)
	}
}

func TestThreadsStayAtHome(t *testing.T) {
	host := inodeAt(t, "/proc/self/ns/net")
	check := func() {
		t.Helper()
		if got := inodeAt(t, "/proc/self/ns/net"); got != host {
			t.Errorf("the process's namespace is %d, want %d", got, host)
		}
		var wait sync.WaitGroup
		for range 50 {
			wait.Go(func() {
				if got := inodeAt(t, "/proc/thread-self/ns/net"); got != host {
					t.Errorf("a goroutine is in namespace %d, want %d", got, host)
				}
			})
		}
		wait.Wait()
	}
	for range 5 {
		var networks []*Network
		for range 4 {
			n, err := Private()
			if err != nil {
				t.Fatal(err)
			}
			networks = append(networks, n)
		}
		check()
		for _, n := range networks {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
		check()
	}
}

func TestPrivateAfterClose(t *testing.T) {
	n, err := Private()
	if err != nil {
		t.Fatal(err)
	}
	e := endpoint(t, n, ProtocolTCP, loopback(1))
	there, here := pair(t, e, e)
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.Dial(within(t), ProtocolTCP, netip.Addr{}, e.Addr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
	if _, err := n.Endpoint(within(t), ProtocolUTP, loopback(1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("endpoint: %v", err)
	}
	if _, err := n.Counters(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("counters: %v", err)
	}
	if err := n.Start(exec.Command("true")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("start: %v", err)
	}
	if _, err := there.Write([]byte("still there")); err != nil {
		t.Error(err)
	}
	got := make([]byte, 11)
	if _, err := io.ReadFull(here, got); err != nil || string(got) != "still there" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStart(t *testing.T) {
	n := private(t)
	var inside uint64
	if err := n.space.do(func() { inside = inodeAt(t, "/proc/thread-self/ns/net") }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		n    *Network
		want uint64
	}{{n, inside}, {Host(), inodeAt(t, "/proc/self/ns/net")}} {
		cmd := exec.Command("readlink", "/proc/self/ns/net")
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := c.n.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.TrimSpace(out.String()), fmt.Sprintf("net:[%d]", c.want); got != want {
			t.Errorf("%s: the command is in %s, want %s", c.n.Name(), got, want)
		}
	}
}

func TestEndpointsMeet(t *testing.T) {
	for _, n := range []*Network{Host(), private(t)} {
		for _, protocol := range []string{ProtocolTCP, ProtocolUTP} {
			t.Run(n.Name()+"/"+protocol, func(t *testing.T) {
				a, b := endpoint(t, n, protocol, loopback(1)), endpoint(t, n, protocol, loopback(2))
				if a.Addr().Port() == 0 {
					t.Fatalf("address %s", a.Addr())
				}
				there, here := pair(t, a, b)
				if got := netip.MustParseAddrPort(here.RemoteAddr().String()); got.Addr() != a.Addr().Addr() {
					t.Errorf("comes from %s, want %s", got, a.Addr())
				}
				if got := netip.MustParseAddrPort(there.RemoteAddr().String()); got != b.Addr() {
					t.Errorf("went to %s, want %s", got, b.Addr())
				}
				// A listener's end is not the connections'.
				if err := b.Listener().Close(); err != nil {
					t.Error(err)
				}
				if _, err := b.Listener().Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("accept after close: %v", err)
				}
				for from, to := range map[net.Conn]net.Conn{there: here, here: there} {
					if _, err := from.Write([]byte("hello")); err != nil {
						t.Fatal(err)
					}
					got := make([]byte, 5)
					if _, err := io.ReadFull(to, got); err != nil || string(got) != "hello" {
						t.Fatalf("%q, %v", got, err)
					}
				}
				for name, c := range map[string]net.Conn{"there": there, "here": here} {
					s, ok := StatsOf(c)
					if !ok || s.Sent != 5 || s.Received != 5 {
						t.Errorf("%s: %+v, %t", name, s, ok)
					}
				}
				if err := there.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, err := there.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("read past the deadline: %v", err)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				if n, err := here.Read(make([]byte, 1)); err == nil {
					t.Errorf("read %d bytes after the other's end", n)
				}
				if _, err := there.Write([]byte("more")); err == nil {
					t.Error("the connection outlived its endpoint")
				}
				s, ok := StatsOf(there)
				if !ok || s.Sent != 5 || s.Received != 5 {
					t.Errorf("after close: %+v, %t", s, ok)
				}
				u := a.Usage()
				if protocol == ProtocolTCP && (u.TCP.Sent != 5 || u.TCP.Received != 5 || u.TCP.Connections != 1 || u.UDP != Datagrams{}) {
					t.Errorf("usage %+v", u)
				}
				if protocol == ProtocolUTP && (u.UDP.Sent < 3 || u.UDP.SentBytes < 3*20+5 || u.TCP != SocketStats{} || u.UDP != a.Datagrams()) {
					t.Errorf("usage %+v", u)
				}
			})
		}
	}
}

func TestDialFails(t *testing.T) {
	n := private(t)
	e := endpoint(t, n, ProtocolTCP, loopback(1))
	nobody := netip.MustParseAddrPort("127.0.0.9:1")
	if c, err := e.Dial(within(t), nobody); !errors.Is(err, unix.ECONNREFUSED) || c != nil {
		t.Errorf("nobody there: %v, %v", c, err)
	}
	if c, err := e.Dial(within(t), netip.MustParseAddrPort("192.0.2.1:1")); !errors.Is(err, unix.ENETUNREACH) || c != nil {
		t.Errorf("no way there: %v, %v", c, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, protocol := range []string{ProtocolTCP, ProtocolUTP} {
		if c, err := endpoint(t, n, protocol, loopback(3)).Dial(ended, nobody); err == nil || c != nil {
			t.Errorf("%s with a context that has ended: %v, %v", protocol, c, err)
		}
	}
	if _, err := n.Listen(within(t), e.Addr()); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listen at a taken address: %v", err)
	}
	if _, err := n.Dial(within(t), "sctp", netip.Addr{}, nobody); err == nil {
		t.Error("an unknown protocol was dialed")
	}
	if _, err := n.Endpoint(within(t), "udp", nobody); err == nil {
		t.Error("an endpoint of an unknown protocol")
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, err := e.Dial(within(t), endpoint(t, n, ProtocolTCP, loopback(2)).Addr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial from a closed endpoint: %v", err)
	}
}

func TestAbort(t *testing.T) {
	n := private(t)
	for _, secured := range []bool{false, true} {
		a, b := endpoint(t, n, ProtocolTCP, loopback(1)), endpoint(t, n, ProtocolTCP, loopback(2))
		there, here := pair(t, a, b)
		if secured {
			there = &securedConn{Conn: there, rw: there}
		}
		if err := Abort(there); err != nil {
			t.Error(err)
		}
		if _, err := here.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("secured %t: the other side sees %v", secured, err)
		}
	}
	a, b := endpoint(t, n, ProtocolUTP, loopback(1)), endpoint(t, n, ProtocolUTP, loopback(2))
	there, here := pair(t, a, b)
	if err := Abort(there); err != nil {
		t.Error(err)
	}
	if _, err := here.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("uTP: the other side sees %v", err)
	}
}

func TestManyPiecesAreOneSystemCall(t *testing.T) {
	n := private(t)
	e := endpoint(t, n, ProtocolTCP, loopback(1))
	there, here := pair(t, e, e)
	pieces := make(net.Buffers, 100)
	for i := range pieces {
		pieces[i] = []byte("piece")
	}
	if _, err := pieces.WriteTo(there); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(here, make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	raw, err := there.(*tcpConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || info.Data_segs_out != 1 {
			t.Errorf("%d packets, %v", info.Data_segs_out, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkDial(b *testing.B) {
	run := func(name string, l net.Listener, dial func() (net.Conn, error)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, err := dial()
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				other, err := l.Accept()
				if err != nil {
					b.Fatal(err)
				}
				_ = Abort(c)
				_ = other.Close()
				b.StartTimer()
			}
		})
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	run("net", plain, func() (net.Conn, error) { return net.Dial("tcp", plain.Addr().String()) })
	for _, n := range []*Network{Host(), private(b)} {
		for _, protocol := range []string{ProtocolTCP, ProtocolUTP} {
			from, to := endpoint(b, n, protocol, loopback(1)), endpoint(b, n, protocol, loopback(2))
			run(n.Name()+"/"+protocol, to.Listener(), func() (net.Conn, error) { return from.Dial(b.Context(), to.Addr()) })
		}
	}
}

func BenchmarkPrivate(b *testing.B) {
	for b.Loop() {
		n, err := Private()
		if err != nil {
			b.Fatal(err)
		}
		if err := n.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	for _, n := range []*Network{Host(), private(b)} {
		for _, protocol := range []string{ProtocolTCP, ProtocolUTP} {
			for _, encryption := range []string{EncryptionOff, EncryptionRequire} {
				b.Run(n.Name()+"/"+protocol+"/"+encryption, func(b *testing.B) {
					from, to := endpoint(b, n, protocol, loopback(1)), endpoint(b, n, protocol, loopback(2))
					there, here := pair(b, from, to)
					there, here = secured(b, there, here, encryption, encryption)
					const chunk = 128 << 10
					b.SetBytes(chunk)
					ended := make(chan error, 1)
					go func() {
						buffer := make([]byte, chunk)
						for {
							n, err := here.Read(buffer)
							if err != nil || buffer[n-1] == 1 {
								ended <- err
								return
							}
						}
					}()
					buffer := make([]byte, chunk)
					for b.Loop() {
						if _, err := there.Write(buffer); err != nil {
							b.Fatal(err)
						}
					}
					if _, err := there.Write([]byte{1}); err != nil {
						b.Fatal(err)
					}
					if err := <-ended; err != nil {
						b.Fatal(err)
					}
				})
			}
		}
	}
}

func TestEndpointEnds(t *testing.T) {
	n := private(t)
	// More than is sent at once, less than is taken at once.
	const size = 250_000
	for _, protocol := range []string{ProtocolTCP, ProtocolUTP} {
		a, b := endpoint(t, n, protocol, loopback(1)), endpoint(t, n, protocol, loopback(2))
		there, here := pair(t, a, b)
		if _, err := there.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if got, err := io.Copy(io.Discard, here); err != nil || got != size {
			t.Errorf("%s: %d of %d bytes came before the end, %v", protocol, got, size, err)
		}
		if _, err := there.Write([]byte("more")); err == nil {
			t.Errorf("%s: the connection outlived its endpoint", protocol)
		}
		a = endpoint(t, n, protocol, loopback(1))
		there, here = pair(t, a, b)
		if err := errors.Join(Abort(there), a.Close()); err != nil {
			t.Error(err)
		}
		if _, err := here.Read(make([]byte, 1)); err == nil || protocol == ProtocolTCP && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: the other side sees %v", protocol, err)
		}
		if _, err := there.Write([]byte("more")); err == nil {
			t.Errorf("%s: the connection outlived its end", protocol)
		}
	}
}

// TestEverybodyDialsEverybody at the same time, as a swarm begins.
func TestEverybodyDialsEverybody(t *testing.T) {
	const peers, size = 12, 100_000
	for _, protocol := range []string{ProtocolTCP, ProtocolUTP} {
		t.Run(protocol, func(t *testing.T) {
			n := private(t)
			endpoints := make([]*Endpoint, peers)
			for i := range endpoints {
				endpoints[i] = endpoint(t, n, protocol, loopback(byte(i+1)))
			}
			var wait sync.WaitGroup
			talk := func(c net.Conn) {
				defer func() { _ = c.Close() }()
				if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Error(err)
				}
				sent := make(chan error, 1)
				go func() {
					_, err := c.Write(make([]byte, size))
					sent <- err
				}()
				if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
					t.Error(err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
				// Whoever closes first must not take from the other what is under way.
				if protocol == ProtocolTCP {
					_ = c.(*tcpConn).CloseWrite()
					_, _ = io.Copy(io.Discard, c)
				}
			}
			for i, e := range endpoints {
				wait.Go(func() {
					for range i {
						c, err := e.Listener().Accept()
						if err != nil {
							t.Error(err)
							return
						}
						wait.Go(func() { talk(c) })
					}
				})
				for _, other := range endpoints[i+1:] {
					wait.Go(func() {
						c, err := e.Dial(within(t), other.Addr())
						if err != nil {
							t.Error(err)
							return
						}
						talk(c)
					})
				}
			}
			wait.Wait()
			if u := n.Usage(); protocol == ProtocolTCP && (u.TCP.Sent != peers*(peers-1)*size || u.TCP.Connections != peers*(peers-1)) {
				t.Errorf("%+v", u)
			}
		})
	}
}

func TestHostCounters(t *testing.T) {
	n := Host()
	before, err := n.Counters()
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	stream(t, endpoint(t, n, ProtocolTCP, loopback(1)), endpoint(t, n, ProtocolTCP, loopback(2)), size, 0)
	after, err := n.Counters()
	if err != nil {
		t.Fatal(err)
	}
	// Others use the host's interfaces, too.
	if account := Reconcile(before, after, n.Usage()); account.Sockets != size || account.Interface < size+account.SentAgain {
		t.Errorf("%+v", account)
	}
}

// FuzzUTP has a stranger send datagrams to an endpoint, which must be there for
// others afterwards. The input is a list of datagrams, each after its length.
func FuzzUTP(f *testing.F) {
	syn := []byte{0x41, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0}
	data := append([]byte{0x01, 1, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 0, 3, 0, 0, 0, 4, 1, 0, 0, 0}, "content"...)
	list := func(datagrams ...[]byte) []byte {
		var b []byte
		for _, d := range datagrams {
			b = append(append(b, byte(len(d))), d...)
		}
		return b
	}
	f.Add(list(syn))
	f.Add(list(syn, data, syn, data))
	f.Add(list(data[:21], append([]byte{0x31}, data[1:]...), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := Host()
		e := endpoint(t, n, ProtocolUTP, loopback(1))
		stranger, err := n.Dial(t.Context(), ProtocolUDP, netip.Addr{}, e.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stranger.Close() }()
		for len(b) > 0 {
			size := min(int(b[0]), len(b)-1)
			if _, err := stranger.Write(b[1 : 1+size]); err != nil {
				t.Fatal(err)
			}
			b = b[1+size:]
		}
		friend, err := endpoint(t, n, ProtocolUTP, loopback(2)).Dial(within(t), e.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := friend.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		for {
			c, err := e.Listener().Accept()
			if err != nil {
				t.Fatal(err)
			}
			if c.RemoteAddr().String() != friend.LocalAddr().String() {
				continue
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Fatalf("%q, %v", got, err)
			}
			return
		}
	})
}
