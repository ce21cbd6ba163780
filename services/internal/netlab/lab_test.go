//go:build linux

package netlab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
)

// ownerEnv makes this binary a process that runs a lab in the directory it
// names, and waits to be killed.
const ownerEnv = "NETLAB_TEST_OWNER"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == RelayCommand {
		os.Exit(RunRelay(os.Args[2:]))
	}
	if dir := os.Getenv(ownerEnv); dir != "" {
		own(dir)
	}
	os.Exit(m.Run())
}

// start makes a lab with two nodes, a in east and b in west, and link between
// them.
func start(t testing.TB, link schemas.Link) *Lab {
	t.Helper()
	return startTopology(t, schemas.Topology{
		Sites: map[string]schemas.Link{"east": {}, "west": {}},
		Links: []schemas.SiteLink{{A: "east", B: "west", Link: link}},
		Seed:  7,
	}, NodeSpec{"a", "east"}, NodeSpec{"b", "west"})
}

func startTopology(t testing.TB, topology schemas.Topology, nodes ...NodeSpec) *Lab {
	t.Helper()
	l, err := Start(t.Context(), Options{Dir: t.TempDir(), Topology: topology, Nodes: nodes, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *Lab) must(t testing.TB, name string) *Node {
	t.Helper()
	n, found := l.Node(name)
	if !found {
		t.Fatalf("no node %s", name)
	}
	return n
}

// TestDecisions holds what arrives against what the seed says: exactly these
// packets are lost and doubled.
func TestDecisions(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		link := schemas.Link{RTT: ms(2), Loss: 0.1, Duplicate: 0.1, Reorder: 0.05}
		l := start(t, link)
		a, b := l.must(t, "a"), l.must(t, "b")
		x, y := bound(t, a, v6), bound(t, b, v6)
		const n = 1000
		want := make([]int, n)
		d := newDirection(7, "east", "west", link)
		sum, held := 0, false
		for i := range n {
			f := d.pass(int64(i), 100)
			if !f.drop {
				want[i] = 1
			}
			if f.duplicate {
				want[i] = 2
			}
			held = held || f.hold
			sum += want[i]
		}
		got := make([]int, n)
		var order []int
		if err := y.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if _, err := x.WriteToUDPAddrPort(fmt.Appendf(nil, "%08d", i), y.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
				t.Fatal(err)
			}
		}
		for buf := make([]byte, 100); len(order) < sum; {
			k, err := y.Read(buf)
			if err != nil {
				s, e := l.Stats(t.Context())
				t.Fatalf("%d of %d arrived: %v; %+v %v", len(order), sum, err, s, e)
			}
			var i int
			if _, err := fmt.Sscanf(string(buf[:k]), "%d", &i); err != nil {
				t.Fatal(err)
			}
			got[i]++
			order = append(order, i)
		}
		if !slices.Equal(got, want) {
			t.Errorf("v6 %t: other packets are lost or doubled than the seed says", v6)
		}
		if slices.IsSorted(order) || !held {
			t.Errorf("v6 %t: none reordered", v6)
		}
		s, err := l.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Links) != 1 || s.Links[0].Packets != n || s.Links[0].Lost != d.lost || s.Links[0].Duplicated != d.duplicated ||
			s.Links[0].Reordered != d.reordered || s.Overrun+s.Malformed+s.WriteErrors != 0 || s.Links[0].LateMax == 0 {
			t.Errorf("v6 %t: %+v", v6, s)
		}
	}
}

func bound(t testing.TB, n *Node, v6 bool) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		a := n.Addr4
		if v6 {
			a = n.Addr6
		}
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if err != nil {
			return err
		}
		return errors.Join(c.SetReadBuffer(4<<20), setOption(c, unix.SO_RCVBUFFORCE, 4<<20))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestTCP moves data over a link that spoils what it can, to the lab too.
func TestTCP(t *testing.T) {
	bad := schemas.Link{RTT: ms(2), Jitter: ms(0.5), Loss: 0.005, Duplicate: 0.005, Reorder: 0.005, Rate: 400e6}
	l := startTopology(t, schemas.Topology{
		Sites: map[string]schemas.Link{"east": {}, "west": {}}, Seed: 7,
		Links: []schemas.SiteLink{{A: "east", B: "west", Link: bad}, {A: "lab", B: "west", Link: schemas.Link{RTT: ms(1)}}},
	}, NodeSpec{"a", "east"}, NodeSpec{"b", "west"})
	lab := l.must(t, schemas.SiteLab)
	for _, c := range []struct {
		from, to *Node
		v6       bool
	}{
		{l.must(t, "a"), l.must(t, "b"), false},
		{l.must(t, "b"), l.must(t, "a"), true},
		{l.must(t, "a"), lab, false},
		{lab, l.must(t, "b"), false},
		{l.must(t, "b"), lab, true},
	} {
		address := c.to.Addr4
		if c.v6 {
			if address = c.to.Addr6; !address.IsValid() {
				continue // this host has no IPv6
			}
		}
		var ln net.Listener
		if err := c.to.Do(func() (err error) {
			ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 8<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(data)
		sent := make(chan error, 1)
		go func() {
			var out net.Conn
			err := c.from.Do(func() (err error) {
				out, err = net.DialTimeout("tcp", ln.Addr().String(), 5*time.Second)
				return err
			})
			if err == nil {
				_, err = out.Write(data)
				err = errors.Join(err, out.Close())
			} else {
				_ = ln.Close()
			}
			sent <- err
		}()
		in, err := ln.Accept()
		if err != nil {
			t.Fatal(err, <-sent)
		}
		h := sha256.New()
		if _, err := io.Copy(h, in); err != nil {
			t.Error(err)
		}
		if err := errors.Join(<-sent, in.Close(), ln.Close()); err != nil {
			t.Error(err)
		}
		if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
			t.Errorf("%s to %s, v6 %t: other data arrived", c.from.Name, c.to.Name, c.v6)
		}
	}
	s, err := l.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Malformed+s.WriteErrors+s.Overrun != 0 {
		t.Errorf("%+v", s)
	}
}

func TestUnreachable(t *testing.T) {
	l := startTopology(t, schemas.Topology{Sites: map[string]schemas.Link{"east": {}, "west": {}}}, NodeSpec{"a", "east"}, NodeSpec{"b", "west"})
	a, b := l.must(t, "a"), l.must(t, "b")
	for _, c := range []struct {
		to   netip.Addr
		want error
	}{
		{b.Addr4, unix.ENETUNREACH},
		{b.Addr6, unix.ENETUNREACH},
		{l.block.addr4(77), unix.EHOSTUNREACH},
		{l.block.addr6(77), unix.EHOSTUNREACH},
		{netip.MustParseAddr("192.0.2.1"), unix.ENETUNREACH}, // no way out
		{a.Addr4, unix.ECONNREFUSED},
		{l.LabAddr(), unix.ECONNREFUSED},
		{l.LabAddr6(), unix.ECONNREFUSED},
	} {
		if !c.to.IsValid() {
			continue // this host has no IPv6
		}
		err := a.Do(func() error {
			conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(c.to, 1).String(), 5*time.Second)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
		if !errors.Is(err, c.want) {
			t.Errorf("connect to %s: %v, want %v", c.to, err, c.want)
		}
	}
	s, err := l.Stats(t.Context())
	if err != nil || s.Unreachable < 4 {
		t.Errorf("%+v %v", s, err)
	}
}

// TestClose looks for what a lab leaves.
func TestClose(t *testing.T) {
	before := descriptors(t)
	dir := t.TempDir()
	opts := Options{
		Dir: dir, Topology: schemas.Topology{Sites: map[string]schemas.Link{"east": {}}},
		Nodes: []NodeSpec{{"a", "east"}, {"b", "east"}}, Log: slog.New(slog.DiscardHandler),
	}
	l, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	other := startTopology(t, opts.Topology, opts.Nodes...)
	if other.block == l.block {
		t.Error("two labs have the same addresses")
	}
	if _, err := Start(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "another emulated network") {
		t.Errorf("a second lab in the same directory: %v", err)
	}
	if err := Reap(t.Context(), dir); err == nil {
		t.Error("a running lab was reaped")
	}
	var out bytes.Buffer
	p, err := l.must(t, "a").Start(t.Context(), Command{Path: "/bin/sh", Args: []string{"-c", "cat /proc/net/dev; echo $GREETING"}, Env: []string{"GREETING=hello"}, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Err(); err != nil || !strings.Contains(out.String(), nodeDevice) || !strings.Contains(out.String(), "hello") || strings.Contains(out.String(), "eth0") {
		t.Errorf("%v %s", err, &out)
	}
	if _, err := l.must(t, "a").Start(t.Context(), Command{Path: "/nonexistent"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("start what is not there: %v", err)
	}
	polite, err := l.must(t, "a").Start(t.Context(), Command{Path: "/bin/cat"})
	if err != nil {
		t.Fatal(err)
	}
	stubborn, orphan := startStubborn(t, l.must(t, "b"))
	soon, cancel := context.WithCancel(t.Context())
	cancel()
	quick, err := l.must(t, "a").Start(t.Context(), Command{Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; while :; do sleep 1; done"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := quick.Stop(soon); err == nil {
		t.Error("a process that had to be killed ended without an error")
	}
	relay := l.relay.PID()
	stubborn.Kill() // its child is in a group of its own
	if !alive(orphan) {
		t.Error("the orphan should be alive still")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, pid := range []int{p.PID(), polite.PID(), orphan, relay} {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	if err := polite.Err(); err != nil && !strings.Contains(err.Error(), "terminated") {
		t.Errorf("cat: %v", err)
	}
	if _, err := netlink.LinkByName(hostDevice(l.k)); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("%s is left: %v", hostDevice(l.k), err)
	}
	if _, err := os.Stat(filepath.Join(dir, journalName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal is left: %v", err)
	}
	if _, err := l.must(t, "a").Start(t.Context(), Command{Path: "/bin/cat"}); err == nil {
		t.Error("a process was started in a closed lab")
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if after := descriptors(t); len(after) > len(before) {
		t.Errorf("descriptors are left: %v, before %v", after, before)
	}
}

func descriptors(t *testing.T) (targets []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") {
			targets = append(targets, target)
		}
	}
	return targets
}

// startStubborn starts a process with a child that ignores SIGTERM and the end
// of its input and has left the group.
func startStubborn(t testing.TB, n *Node) (p *Process, child int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	p, err = n.Start(context.Background(), Command{
		Path: "/bin/sh", Stdout: w,
		Args: []string{"-c", `trap "" TERM HUP; setsid sh -c 'echo $$; exec sleep 1000' </dev/null & exec sleep 1000 </dev/null >/dev/null`},
	})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(r, &child); err != nil {
		t.Fatal(err)
	}
	return p, child
}

// alive is false for a zombie too.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && b[bytes.LastIndexByte(b, ')')+2] != 'Z'
}

// await returns when a process that is not our child is gone.
func await(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("process %d does not end: %v", pid, err)
		}
		return
	}
}

// owned is what an owner tells about its lab.
type owned struct {
	Relay, Polite, Stubborn, Orphan int
	Device                          string
}

func own(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	l, err := Start(context.Background(), Options{
		Dir: dir, Topology: schemas.Topology{Sites: map[string]schemas.Link{"east": {}}},
		Nodes: []NodeSpec{{"a", "east"}, {"b", "east"}}, Log: slog.New(slog.DiscardHandler),
	})
	fail(err)
	// As in the lab's own processes, which are started with a cleaned environment.
	env := []string{"PATH=" + os.Getenv("PATH")}
	polite, err := l.byKey["a"].Start(context.Background(), Command{Path: "/bin/cat", Env: env})
	fail(err)
	r, w, err := os.Pipe()
	fail(err)
	stubborn, err := l.byKey["b"].Start(context.Background(), Command{
		Path: "/bin/sh", Stdout: w, Env: env,
		Args: []string{"-c", `trap "" TERM HUP PIPE; setsid sh -c 'echo $$; exec sleep 1000 >/dev/null' </dev/null & exec sleep 1000 </dev/null >/dev/null`},
	})
	fail(err)
	o := owned{Relay: l.relay.PID(), Polite: polite.PID(), Stubborn: stubborn.PID(), Device: hostDevice(l.k)}
	_, err = fmt.Fscan(r, &o.Orphan)
	fail(err)
	fail(json.NewEncoder(os.Stdout).Encode(o))
	select {}
}

// TestKilled kills a process that runs a lab. The kernel and the ends of pipes
// take care of all but what ignores them, and Reap of that.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), ownerEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var o owned
	if err := errors.Join(err, json.Unmarshal(line, &o)); err != nil {
		_ = cmd.Process.Kill()
		t.Fatalf("%v: %s", err, line)
	}
	if _, err := netlink.LinkByName(o.Device); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	await(t, o.Relay)
	await(t, o.Polite)
	if _, err := netlink.LinkByName(o.Device); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("%s is left: %v", o.Device, err)
	}
	if !alive(o.Stubborn) || !alive(o.Orphan) {
		t.Error("the stubborn should be alive still")
	}
	if err := Reap(t.Context(), dir); err != nil {
		t.Error(err)
	}
	for _, pid := range []int{o.Stubborn, o.Orphan} {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %v %v", entries, err)
	}
	if err := Reap(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if err := Reap(t.Context(), filepath.Join(dir, "nothing")); err != nil {
		t.Error(err)
	}
}

// TestReapSpares: a process that merely has the number of one in the journal is
// left alone.
func TestReapSpares(t *testing.T) {
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	j := journal{ID: "0123", Processes: []journalEntry{{PID: cmd.Process.Pid, Start: 1}, {PID: os.Getpid()}, {PID: 1}, {PID: -1}, {PID: 1 << 30}}}
	if err := j.write(dir); err != nil {
		t.Fatal(err)
	}
	if err := Reap(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Errorf("the other process was disturbed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, journalName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Reap(t.Context(), dir); err == nil || !strings.Contains(err.Error(), journalName) {
		t.Errorf("a broken journal: %v", err)
	}
}

// TestRelayDies: a lab without its relay says so.
func TestRelayDies(t *testing.T) {
	l := start(t, schemas.Link{})
	l.relay.Kill()
	select {
	case <-l.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("not noticed")
	}
	if l.Err() == nil {
		t.Error("no error")
	}
	if _, err := l.Stats(t.Context()); err == nil {
		t.Error("statistics of a dead relay")
	}
	if _, err := l.Gate(t.Context()); err == nil {
		t.Error("a gate over a dead relay")
	}
}

// TestDo: threads that were in a namespace do not come back to other work there.
func TestDo(t *testing.T) {
	l := start(t, schemas.Link{})
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{home: true}
	for _, n := range l.Nodes() {
		if err := n.Do(func() error {
			there, err := os.Readlink("/proc/thread-self/ns/net")
			if seen[there] {
				t.Errorf("%s is in a namespace seen before", n.Name)
			}
			seen[there] = true
			return err
		}); err != nil {
			t.Error(err)
		}
		want := errors.New("want")
		if err := n.Do(func() error { return want }); !errors.Is(err, want) {
			t.Error(err)
		}
	}
	for range 100 {
		runtime.Gosched()
		done := make(chan string)
		go func() {
			there, _ := os.Readlink("/proc/thread-self/ns/net")
			done <- there
		}()
		if there := <-done; there != home {
			t.Fatal("a goroutine runs in a node's namespace")
		}
	}
}

func TestValidate(t *testing.T) {
	err := Options{
		Nodes:    []NodeSpec{{"a", "x"}, {"a", "east"}, {"lab", "east"}, {"", "east"}},
		Topology: schemas.Topology{Sites: map[string]schemas.Link{"east": {}}, Links: []schemas.SiteLink{{A: "lab", B: "east"}, {A: "east", B: "nowhere"}}},
	}.Validate()
	for _, want := range []string{"dir", "log", `"x"`, `"a": want`, `"lab": want`, `"": want`, "alphabetical", `"nowhere"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no fault about %s in: %v", want, err)
		}
	}
}

// TestMany starts as large a network as is allowed and lets every node reach
// the lab.
func TestMany(t *testing.T) {
	topology := schemas.Topology{Sites: map[string]schemas.Link{}}
	var nodes []NodeSpec
	for i := range schemas.MaxEmulatedAgents {
		site := fmt.Sprintf("s%d", i%schemas.MaxEmulatedSites)
		topology.Sites[site] = schemas.Link{}
		nodes = append(nodes, NodeSpec{fmt.Sprintf("n%d", i), site})
	}
	begin := time.Now()
	l := startTopology(t, topology, nodes...)
	t.Logf("%d nodes in %s", len(nodes), time.Since(begin))
	at := bound(t, l.must(t, schemas.SiteLab), false)
	for _, n := range l.Nodes() {
		c := bound(t, n, false)
		if _, err := c.WriteToUDPAddrPort([]byte("x"), at.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		if err := at.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, from, err := at.ReadFromUDPAddrPort(make([]byte, 10))
		if err != nil || from.Addr().Unmap() != n.Addr4 {
			t.Fatalf("%s: from %s: %v", n.Name, from, err)
		}
	}
	begin = time.Now()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("closed in %s", time.Since(begin))
}
