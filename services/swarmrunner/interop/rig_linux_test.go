package interop

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
	"github.com/transferlab/transferlab/services/swarmrunner/peer"
	"github.com/transferlab/transferlab/services/swarmrunner/tracker"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
)

// Swarms wait far more than they compute: aria2 and Transmission let nobody in
// but every ten seconds. All are run at once.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "64"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// patience is for a swarm on a machine that is busy otherwise; most are done in
// two seconds.
const patience = 60 * time.Second

const (
	size  = 3_000_017 // no multiple of anything
	piece = 64 << 10
	port  = 6881

	trackerPort = 6969
	token       = "secret"
)

// swarm is a tracker and those that it brings together.
type swarm struct {
	t       *testing.T
	ctx     context.Context
	fail    context.CancelCauseFunc // ends it
	network *transport.Network
	server  *tracker.Server
	tracker string // its address
	url     string // of the tracker over HTTP
	udp     string

	dir     string
	content []byte
	file    string // with the content
	torrent *metainfo.Torrent
	hosts   byte // addresses that are taken
}

func newSwarm(t *testing.T) *swarm {
	t.Parallel()
	limited, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	ctx, fail := context.WithCancelCause(limited)
	network, err := transport.Private()
	if err != nil {
		t.Fatal(err)
	}
	s := &swarm{t: t, ctx: ctx, fail: fail, network: network, dir: t.TempDir(), content: make([]byte, size)}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	s.number()
	if _, err := rand.Read(s.content); err != nil {
		t.Fatal(err)
	}
	s.file = filepath.Join(s.dir, "A")
	s.write(s.file, s.content)
	s.torrent = metainfo.Make("A", s.content, piece)
	s.track()
	return s
}

// number gives lo the addresses 10.77.0.0/24, through a socket that is inside.
func (s *swarm) number() {
	s.t.Helper()
	c, err := s.network.Listen(s.ctx, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	set := func(fd int, what uint, address netip.Addr) error {
		request, err := unix.NewIfreq("lo:0")
		if err != nil {
			return err
		}
		if err := request.SetInet4Addr(address.AsSlice()); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, what, request)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			set(int(fd), unix.SIOCSIFADDR, netip.AddrFrom4([4]byte{10, 77, 0, 1})),
			set(int(fd), unix.SIOCSIFNETMASK, netip.AddrFrom4([4]byte{255, 255, 255, 0})))
	})
	if err := errors.Join(err, failed); err != nil {
		s.t.Fatal("address of lo: ", err)
	}
}

// address is one that nobody has yet.
func (s *swarm) address() netip.Addr {
	s.hosts++
	return netip.AddrFrom4([4]byte{10, 77, 0, s.hosts})
}

func (s *swarm) track() {
	s.t.Helper()
	server, err := tracker.NewServer(tracker.Options{Interval: 5 * time.Second, Token: token})
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = server
	at := netip.AddrPortFrom(s.address(), trackerPort)
	s.tracker = at.String()
	l, err := s.network.Listen(s.ctx, at)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := s.network.ListenPacket(s.ctx, at)
	if err != nil {
		s.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(l); err != nil {
			s.t.Error(err)
		}
	})
	serving.Go(func() {
		if err := server.ServePacket(c); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(func() {
		if err := server.Close(context.WithoutCancel(s.ctx)); err != nil {
			s.t.Error(err)
		}
		serving.Wait()
	})
	s.admit(token)
}

// admit has the tracker let in who has the token, or everybody without one.
func (s *swarm) admit(token string) {
	s.server.SetToken(token)
	s.url, s.udp = tracker.URL("http", s.tracker, token), tracker.URL("udp", s.tracker, token)
}

// await waits until the tracker knows of so many seeders.
func (s *swarm) await(seeders int) {
	s.t.Helper()
	err := s.server.Await(s.ctx, s.torrent.InfoHash, func(n, _, _ int) bool { return n >= seeders })
	if err != nil {
		s.t.Fatalf("%d seeders: %v: %v", seeders, err, context.Cause(s.ctx))
	}
}

func (s *swarm) write(file string, content []byte) {
	s.t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// mine is a peer of ours.
type mine struct {
	*peer.Peer
	s        *swarm
	store    []byte
	endpoint *transport.Endpoint
}

// how a peer of ours differs from the usual.
type how struct {
	seed       bool
	protocol   string // tcp
	encryption string // off
	udp        bool   // tracker
	slots      int
	upload     int64
	window     int64
	told       []netip.AddrPort // of these by itself, without the tracker
}

// ours starts one.
func (s *swarm) ours(h how) *mine {
	s.t.Helper()
	if h.protocol == "" {
		h.protocol = transport.ProtocolTCP
	}
	e, err := s.network.Endpoint(s.ctx, h.protocol, netip.AddrPortFrom(s.address(), port))
	if err != nil {
		s.t.Fatal(err)
	}
	m := &mine{s: s, endpoint: e, store: s.content}
	if !h.seed {
		m.store = make([]byte, s.torrent.Length)
	}
	o := peer.Options{
		Torrent: s.torrent, Store: m.store, Seed: h.seed, Listener: e.Listener(), Address: e.Addr(), Dial: e.Dial,
		Slots: h.slots, Upload: h.upload, Window: h.window,
	}
	copy(o.ID[:], "-TL0001-")
	if _, err := rand.Read(o.ID[8:]); err != nil {
		s.t.Fatal(err)
	}
	if h.encryption != "" {
		o.Secure = func(ctx context.Context, c net.Conn, initiator bool) (net.Conn, peer.Overhead, error) {
			secured, sent, received, err := transport.Secure(ctx, c, h.encryption, s.torrent.InfoHash, initiator)
			return secured, peer.Overhead{Sent: sent, Received: received}, err
		}
	}
	o.Announce = s.announce(o.ID, e.Addr(), h.udp)
	if h.told != nil {
		o.Announce = func(context.Context, peer.Announcement) ([]netip.AddrPort, time.Duration, error) {
			return h.told, patience, nil
		}
	}
	if m.Peer, err = peer.New(o); err != nil {
		s.t.Fatal(err)
	}
	m.Start(context.WithoutCancel(s.ctx))
	s.t.Cleanup(func() {
		m.Kill()
		<-m.Done()
		if err := e.Close(); err != nil {
			s.t.Error(err)
		}
		if s.t.Failed() {
			r := m.Report()
			s.t.Logf("ours at %s: seed %v, %d of %d bytes, %d connections, tracker %v, %v\nsent %v\nreceived %v",
				e.Addr(), h.seed, r.Have, r.Bytes, r.Connections, r.TrackerError, r.Err, r.Wire.Sent, r.Wire.Received)
		}
	})
	return m
}

func (s *swarm) announce(id [20]byte, self netip.AddrPort, udp bool) func(context.Context, peer.Announcement) ([]netip.AddrPort, time.Duration, error) {
	client := &tracker.Client{Dial: func(ctx context.Context, protocol, to string) (net.Conn, error) {
		at, err := netip.ParseAddrPort(to)
		if err != nil {
			return nil, err
		}
		return s.network.Dial(ctx, protocol, self.Addr(), at)
	}}
	url := s.url
	if udp {
		url = s.udp
	}
	return func(ctx context.Context, a peer.Announcement) ([]netip.AddrPort, time.Duration, error) {
		answer, err := client.Announce(ctx, url, tracker.Request{
			InfoHash: s.torrent.InfoHash, PeerID: id, Port: self.Port(),
			Event: a.Event, Uploaded: a.Uploaded, Downloaded: a.Downloaded, Left: a.Left,
		})
		return answer.Peers, answer.Interval, err
	}
}

// finish waits until the peer has everything, and ends it.
func (m *mine) finish() peer.Report {
	m.s.t.Helper()
	m.complete()
	return m.leave()
}

// complete waits until the peer has everything.
func (m *mine) complete() {
	t := m.s.t
	t.Helper()
	select {
	case <-m.Complete():
	case <-m.Done():
		t.Fatalf("ours at %s ended: %v", m.endpoint.Addr(), m.Report().Err)
	case <-m.s.ctx.Done():
		t.Fatalf("ours at %s: %v: %+v", m.endpoint.Addr(), context.Cause(m.s.ctx), m.Progress())
	}
}

// leave ends the peer and looks whether the file is right.
func (m *mine) leave() peer.Report {
	t := m.s.t
	t.Helper()
	m.Leave(m.s.ctx)
	<-m.Done()
	if sha256.Sum256(m.store) != sha256.Sum256(m.s.content) {
		t.Fatalf("ours at %s has other content", m.endpoint.Addr())
	}
	report := m.Report()
	if report.HashFailures > 0 || report.Err != nil {
		t.Errorf("ours at %s: %d wrong pieces, %v", m.endpoint.Addr(), report.HashFailures, report.Err)
	}
	return report
}

// other is a program that takes part.
type other struct {
	s        *swarm
	name     string
	addr     netip.Addr
	file     string // that it has or gets
	finished chan struct{}
	ended    chan struct{}
}

// address is where the others reach it; not of aria2.
func (o *other) address() netip.AddrPort { return netip.AddrPortFrom(o.addr, port) }

// kind is a way to start a program as a peer: with the file in dir, or to get it
// there.
type kind struct {
	name  string
	start func(s *swarm, seed bool, url string) *other
	// udp says whether it asks UDP trackers: aria2 has them in its DHT's socket,
	// which asks strangers. plain says that it does so without the path of BEP 41,
	// where the token is.
	udp, plain bool
}

func kinds() []kind {
	return []kind{
		{name: "libtorrent", udp: true, start: func(s *swarm, seed bool, url string) *other { return s.libtorrent(seed, url, 0, nil) }},
		{name: "aria2", start: func(s *swarm, seed bool, url string) *other { return s.aria2(seed, url) }},
		{name: "transmission", udp: true, plain: true, start: (*swarm).transmission},
	}
}

// program is where a program is, if it is.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: `task peers` installs it", err)
	}
	return path
}

// place makes the directory of a program, with the file if it is a seeder, and
// the torrent.
func (s *swarm) place(name string, seed bool, url string) (o *other, torrent string) {
	s.t.Helper()
	o = &other{s: s, name: name, addr: s.address(), finished: make(chan struct{}), ended: make(chan struct{})}
	dir := filepath.Join(s.dir, fmt.Sprintf("%s-%d", name, s.hosts))
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	o.file = filepath.Join(dir, "data", "A")
	if seed {
		s.write(o.file, s.content)
	}
	torrent = filepath.Join(dir, "A.torrent")
	s.write(torrent, s.torrent.Encode(url))
	return o, torrent
}

// libtorrent starts one, with settings that differ from the usual.
func (s *swarm) libtorrent(seed bool, url string, upload int, settings map[string]any) *other {
	s.t.Helper()
	o, torrent := s.place("libtorrent", seed, url)
	options, err := json.Marshal(map[string]any{
		"torrent": torrent, "dir": filepath.Dir(o.file), "address": netip.AddrPortFrom(o.addr, port).String(),
		"upload": upload, "settings": settings,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	o.run(python(s.t, "peer", string(options)), "finished")
	return o
}

func python(t *testing.T, args ...string) []string {
	t.Helper()
	// Debian's, which has the module; another may come first in the path.
	return append([]string{program(t, "/usr/bin/python3"), filepath.Join("testdata", "peer.py")}, args...)
}

func (s *swarm) aria2(seed bool, url string, more ...string) *other {
	s.t.Helper()
	o, torrent := s.place("aria2", seed, url)
	args := []string{
		program(s.t, "aria2c"), "--no-conf", "--dir=" + filepath.Dir(o.file), "--interface=" + o.addr.String(),
		// It listens at all addresses, with which no other's port may be the same.
		fmt.Sprintf("--listen-port=%d", 7000+int(s.hosts)),
		"--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--disable-ipv6", "--async-dns=false",
		"--file-allocation=none", "--summary-interval=0", "--console-log-level=info", "--download-result=hide",
		fmt.Sprintf("--stop-with-process=%d", os.Getpid()),
	}
	if seed {
		args = append(args, "--check-integrity", "--allow-overwrite", "--seed-ratio=0.0")
	} else {
		args = append(args, "--seed-time=0")
	}
	o.run(append(append(args, more...), torrent), "Download complete")
	return o
}

func (s *swarm) transmission(seed bool, url string) *other {
	s.t.Helper()
	o, torrent := s.place("transmission", seed, url)
	dir := filepath.Dir(torrent)
	settings, err := json.Marshal(map[string]any{
		"bind-address-ipv4": o.addr.String(), "bind-address-ipv6": "::1", "peer-port": port,
		"dht-enabled": false, "lpd-enabled": false, "utp-enabled": false, "port-forwarding-enabled": false,
		// What is complete is on disk.
		"cache-size-mb": 0,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(filepath.Join(dir, "settings.json"), settings)
	// It does not end with its standard input, as the shell does.
	args := []string{
		program(s.t, "sh"), "-c", `"$@" </dev/null & read -r _; kill -9 $!; wait $!`, "sh",
		program(s.t, "transmission-cli"), "--config-dir", dir, "--download-dir", filepath.Dir(o.file), "--port", fmt.Sprint(port),
		"--no-downlimit", "--no-uplimit", "--no-portmap", "--encryption-tolerated",
	}
	if seed {
		args = append(args, "--verify")
	}
	o.run(append(args, torrent), `to "Complete"`)
	return o
}

// run starts the program, which says so when it has the file.
func (o *other) run(args []string, finished string) {
	t := o.s.t
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(o.s.ctx))
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+o.s.dir)
	cmd.WaitDelay = 5 * time.Second
	// With what it has started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	read, write := io.Pipe()
	cmd.Stdout, cmd.Stderr = write, write
	begun := time.Now()
	if err := o.s.network.Start(cmd); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	var reading sync.WaitGroup
	reading.Go(func() {
		lines := bufio.NewScanner(read)
		lines.Split(splitLines)
		done := false
		for lines.Scan() {
			fmt.Fprintf(&said, "%6.3f %s\n", time.Since(begun).Seconds(), lines.Text())
			if !done && strings.Contains(lines.Text(), finished) {
				done = true
				close(o.finished)
			}
		}
		_, _ = io.Copy(io.Discard, read)
	})
	go func() {
		err := cmd.Wait()
		_ = write.Close()
		reading.Wait()
		fmt.Fprintf(&said, "%6.3f ended: %v", time.Since(begun).Seconds(), err)
		select {
		case <-o.finished:
		default:
			o.s.fail(fmt.Errorf("%s at %s has ended (%v)", o.name, o.addr, err))
		}
		close(o.ended)
	}()
	t.Cleanup(func() {
		_ = stdin.Close()
		if o.name == "aria2" {
			cancel()
		}
		select {
		case <-o.ended:
		case <-time.After(5 * time.Second):
			t.Errorf("%s at %s does not end", o.name, o.addr)
		}
		cancel()
		<-o.ended
		if t.Failed() {
			t.Logf("%s at %s:\n%s", o.name, o.addr, said.String())
		}
	})
}

// splitLines is [bufio.ScanLines] for those that print over their last line, too.
func splitLines(data []byte, atEOF bool) (int, []byte, error) {
	if at := bytes.IndexAny(data, "\r\n"); at >= 0 {
		return at + 1, data[:at], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// finish waits until the program has the file, and looks whether it is right.
func (o *other) finish() {
	t := o.s.t
	t.Helper()
	select {
	case <-o.finished:
	case <-o.s.ctx.Done():
		t.Fatalf("%s at %s has not got the file: %v", o.name, o.addr, context.Cause(o.s.ctx))
	}
	content, err := os.ReadFile(o.file)
	if err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(content) != sha256.Sum256(o.s.content) {
		t.Fatalf("%s at %s has other content", o.name, o.addr)
	}
}

// output runs a program to its end.
func output(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, args[0]), args[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
