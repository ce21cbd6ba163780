package packet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
)

const (
	both      = StampTransmit | StampReceive
	loopback4 = "127.0.0.1"
	loopback6 = "::1"
)

// run runs flows and checks that every probe came out once, in the order due.
func run(t *testing.T, o Options, flows []Flow) ([]Result, Account) {
	t.Helper()
	e, err := NewEngine(o, flows)
	if err != nil {
		t.Fatal(err)
	}
	return runEngine(t, e)
}

func runEngine(t *testing.T, e *Engine) ([]Result, Account) {
	t.Helper()
	var all []Result
	start := time.Now()
	acc, err := e.Run(t.Context(), start, func(r *Result) { all = append(all, *r) })
	if err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	checkComplete(t, e, start, all)
	if acc.Issued != uint64(len(all)) {
		t.Errorf("%d issued, %d results", acc.Issued, len(all))
	}
	return all, acc
}

func checkComplete(t *testing.T, e *Engine, start time.Time, all []Result) {
	t.Helper()
	seen := make([]uint32, len(e.flows))
	for i := range all {
		r := &all[i]
		if r.Seq != seen[r.Flow] {
			t.Fatalf("flow %d: result %d after %d", r.Flow, r.Seq, int64(seen[r.Flow])-1)
		}
		seen[r.Flow]++
		f := &e.flows[r.Flow]
		if due := start.Add(f.Phase + time.Duration(r.Seq)*e.o.Interval); !due.Equal(r.Intended) {
			t.Fatalf("flow %d, probe %d: intended %s, want %s", r.Flow, r.Seq, r.Intended, due)
		}
		if i > 0 && all[i-1].Intended.After(r.Intended) {
			t.Fatalf("result %d was due before the one before it", i)
		}
	}
	for i, n := range seen {
		if int(n) != e.flows[i].Count {
			t.Fatalf("flow %d: %d results, want %d", i, n, e.flows[i].Count)
		}
	}
}

func echoTo(i int, addr string, count int) Flow {
	return Flow{ID: i, Protocol: schemas.ProtocolICMP, Dst: netip.AddrPortFrom(netip.MustParseAddr(addr), 0), Count: count}
}

func stampTo(i int, addr string, port uint16, count int) Flow {
	return Flow{ID: i, Protocol: schemas.ProtocolUDP, Dst: netip.AddrPortFrom(netip.MustParseAddr(addr), port), Count: count}
}

func wantAll(t *testing.T, all []Result, status string) {
	t.Helper()
	for i := range all {
		if all[i].Status != status {
			t.Fatalf("probe %d of flow %d: %s (%s), want %s", all[i].Seq, all[i].Flow, all[i].Status, all[i].Err, status)
		}
		if status != schemas.StatusOK && all[i].Err == "" {
			t.Fatalf("probe %d of flow %d: %s without a text", all[i].Seq, all[i].Flow, status)
		}
	}
}

// wantStamped allows a few stamps to be missing, as the kernel does.
func wantStamped(t *testing.T, all []Result) {
	t.Helper()
	without := 0
	for i := range all {
		if all[i].Stamps != both {
			without++
		}
	}
	if without*50 > len(all) {
		t.Errorf("%d of %d without the kernel's stamps", without, len(all))
	}
}

func TestEcho(t *testing.T) {
	for _, c := range []struct {
		addr    string
		payload int
	}{{loopback4, 0}, {loopback4, 1}, {loopback4, 15}, {loopback4, 16}, {loopback4, 57}, {loopback4, 9000}, {loopback6, 0}, {loopback6, 56}, {loopback6, 60_000}, {"::ffff:127.0.0.3", 56}} {
		t.Run(fmt.Sprintf("%s/%d", c.addr, c.payload), func(t *testing.T) {
			t.Parallel()
			all, acc := run(t, Options{Interval: time.Millisecond, Timeout: 30 * time.Millisecond, Payload: c.payload, TTL: 37, DSCP: 46}, []Flow{echoTo(0, c.addr, 100)})
			wantAll(t, all, schemas.StatusOK)
			wantStamped(t, all)
			for i := range all {
				// The reply has the host's own hop limit.
				if r := &all[i]; r.RTT <= 0 || r.RTT > 20*time.Millisecond || r.TTL != 64 || r.Duplicates != 0 || r.Reordered || r.HasOneWay {
					t.Errorf("%+v", r)
				}
			}
			if acc.Answered != 100 || acc.Corrupt+acc.Forged+acc.Truncated+acc.Duplicates != 0 {
				t.Errorf("%+v", acc)
			}
		})
	}
}

func TestManyFlows(t *testing.T) {
	t.Parallel()
	const n = 2000
	r := startReflector(t, "[::]:0")
	r.SetKey(nil)
	flows := make([]Flow, n)
	for i := range flows {
		switch i % 4 {
		case 0:
			flows[i] = echoTo(i, loopback4, 3)
		case 1:
			flows[i] = echoTo(i, loopback6, 1)
		case 2:
			flows[i] = stampTo(i, loopback4, r.Port(), 2)
		case 3:
			flows[i] = stampTo(i, loopback6, r.Port(), i%5)
		}
		flows[i].Phase = time.Duration(i*7919%n) * 250 * time.Microsecond
	}
	o := Options{Interval: 300 * time.Millisecond, Timeout: time.Second, Payload: 56}
	all, acc := run(t, o, flows)
	wantAll(t, all, schemas.StatusOK)
	if acc.Dropped != 0 {
		t.Errorf("%+v", acc)
	}
	// Each flow is a session of its own, though they share an address.
	for i := range all {
		if r := &all[i]; r.HasOneWay && r.ReflectorSeq != r.Seq {
			t.Fatalf("flow %d: the reflector counts %d, want %d", r.Flow, r.ReflectorSeq, r.Seq)
		}
	}
}

// The 16 bits of ICMP's sequence number wrap, with more probes under way than
// they can tell apart.
func TestWrap(t *testing.T) {
	const n = 80_000
	for _, payload := range []int{56, 4} {
		all, acc := run(t, Options{Interval: 10 * time.Microsecond, Timeout: 2 * time.Second, Payload: payload}, []Flow{echoTo(0, loopback4, n)})
		if acc.Dropped > 0 {
			t.Logf("%d dropped by the kernel", acc.Dropped)
		}
		bad := 0
		for i := range all {
			if all[i].Status != schemas.StatusOK || all[i].Duplicates > 0 || all[i].RTT > time.Second {
				bad++
			}
		}
		if bad > int(acc.Dropped) || acc.Forged+acc.Corrupt+acc.Duplicates > 0 {
			t.Errorf("payload %d: %d bad; %+v", payload, bad, acc)
		}
	}
}

func TestSTAMP(t *testing.T) {
	for _, key := range [][]byte{nil, []byte("secret")} {
		r, stop := openReflector(t, "[::]:0")
		r.SetKey(key)
		// The group ends before the reflector is looked at.
		t.Run(fmt.Sprintf("key=%s", key), func(t *testing.T) {
			for _, payload := range []int{112, 113, 1000} {
				for _, addr := range []string{loopback4, loopback6, "127.0.0.2"} {
					t.Run(fmt.Sprintf("%s/%d", addr, payload), func(t *testing.T) {
						t.Parallel()
						trySTAMP(t, r, Options{Interval: time.Millisecond, Timeout: 500 * time.Millisecond, Payload: payload, Key: key, TTL: 37}, addr)
					})
				}
			}
		})
		stop()
		if s := r.Stats(); s.Sessions != 9 || s.Answered != 9*50 {
			t.Errorf("%+v", s)
		}
	}
}

func trySTAMP(t *testing.T, r *Reflector, o Options, addr string) {
	all, acc := run(t, o, []Flow{stampTo(0, addr, r.Port(), 50)})
	wantAll(t, all, schemas.StatusOK)
	wantStamped(t, all)
	for i := range all {
		r := &all[i]
		if r.RTT != r.Forward+r.Backward || !r.HasOneWay || r.Forward <= 0 || r.Backward <= 0 || r.Reflected <= 0 || r.TTL != 64 || r.ReflectorSeq != r.Seq || r.RemoteError <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if acc.Answered != 50 || acc.Foreign+acc.Forged+acc.Late != 0 {
		t.Errorf("%+v", acc)
	}
}

func TestSTAMPKeys(t *testing.T) {
	t.Parallel()
	r, stop := openReflector(t, "127.0.0.1:0")
	o := Options{Interval: time.Millisecond, Timeout: 20 * time.Millisecond, Payload: 200}
	try := func(status string) {
		t.Helper()
		all, _ := run(t, o, []Flow{stampTo(0, loopback4, r.Port(), 10)})
		wantAll(t, all, status)
	}
	try(schemas.StatusTimeout)
	r.SetKey([]byte("one"))
	try(schemas.StatusTimeout)
	o.Key = []byte("two")
	try(schemas.StatusTimeout)
	r.SetKey(o.Key)
	o.Timeout = time.Second
	try(schemas.StatusOK)
	r.Disable()
	o.Timeout = 20 * time.Millisecond
	try(schemas.StatusTimeout)
	stop()
	s := r.Stats()
	if s.Disabled != 20 || s.Forged != 20 || s.Answered != 10 {
		t.Errorf("%+v", s)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{loopback4, loopback6} {
		c, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		if err != nil {
			t.Fatal(err)
		}
		port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		r := startReflector(t, net.JoinHostPort(addr, "0"))
		r.SetKey(nil)
		flows := []Flow{stampTo(0, addr, port, 50), stampTo(1, addr, r.Port(), 50), stampTo(2, addr, port, 50)}
		all, acc := run(t, Options{Interval: time.Millisecond, Timeout: time.Second, Payload: 44}, flows)
		refused := 0
		for i := range all {
			want := schemas.StatusRefused
			if all[i].Flow == 1 {
				want = schemas.StatusOK
			} else if all[i].Status == schemas.StatusTimeout && addr == loopback6 {
				// The kernel limits how many ICMPv6 errors it sends.
				continue
			}
			if all[i].Status == schemas.StatusRefused {
				refused++
			}
			if all[i].Status != want || want == schemas.StatusRefused && !strings.Contains(all[i].Err, addr) {
				t.Errorf("%+v", all[i])
			}
		}
		if refused == 0 || acc.Errors != uint64(refused) {
			t.Errorf("%d refused, %+v", refused, acc)
		}
	}
}

// inNamespace runs do in a network namespace of its own, with lo up.
func inNamespace(t *testing.T, do func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput()
		if err != nil {
			done <- fmt.Errorf("%w: %s", err, out)
			return
		}
		do()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	flows := []Flow{
		echoTo(0, "192.0.2.1", 20), stampTo(1, "192.0.2.1", 862, 20), echoTo(2, "2001:db8::1", 20), stampTo(3, "2001:db8::1", 862, 20),
		echoTo(4, loopback4, 20), echoTo(5, "198.51.100.1", 20), echoTo(6, "203.0.113.1", 20), stampTo(7, "203.0.113.1", 862, 20),
		echoTo(8, "100.64.0.1", 20),
	}
	inNamespace(t, func() {
		for _, args := range []string{"route add prohibit 198.51.100.0/24", "route add blackhole 203.0.113.0/24", "link add d0 type dummy", "link set d0 up", "addr add 100.64.0.2/24 dev d0", "neigh add 100.64.0.1 dev d0 nud failed"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil && !strings.HasPrefix(args, "neigh") && !strings.Contains(args, "d0") {
				t.Errorf("ip %s: %v: %s", args, err, out)
			}
		}
		all, acc := run(t, Options{Interval: time.Millisecond, Timeout: 100 * time.Millisecond, Payload: 56}, flows)
		for i := range all {
			want := schemas.StatusUnreachable
			switch all[i].Flow {
			case 4:
				want = schemas.StatusOK
			case 5:
				want = schemas.StatusDenied
			case 8:
				// Nobody answers; where the kernel has no dummy device, there is no route.
				if s := all[i].Status; s != schemas.StatusTimeout && s != schemas.StatusUnreachable {
					t.Errorf("%+v", all[i])
				}
				continue
			}
			if all[i].Status != want {
				t.Errorf("%+v, want %s", all[i], want)
			}
			if want == schemas.StatusOK && all[i].Stamps != both {
				// Failed calls in between must not mix up the stamps.
				t.Errorf("%+v: without stamps", all[i])
			}
		}
		if acc.Answered != 20 {
			t.Errorf("%+v", acc)
		}
	})
}

// ICMP errors come as packets to a raw socket.
func TestTimeExceeded(t *testing.T) {
	t.Parallel()
	for _, groups := range []string{"1 0", "0 2147483647"} {
		inNamespace(t, func() {
			if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0); err != nil {
				t.Error(err)
				return
			}
			e, err := NewEngine(Options{Interval: time.Millisecond, Timeout: time.Second, Payload: 56}, []Flow{echoTo(0, loopback4, 50), echoTo(1, loopback6, 50)})
			if err != nil {
				t.Error(err)
				return
			}
			for _, s := range e.sockets {
				if s != nil && s.raw != (groups == "1 0") {
					t.Errorf("ping_group_range %s: %s socket raw: %t", groups, s.kind, s.raw)
				}
			}
			all, _ := runEngine(t, e)
			wantAll(t, all, schemas.StatusOK)
			wantStamped(t, all)
		})
	}
	// The kernel quotes our packet in its error.
	e := newEngine(t, Options{Interval: time.Second, Timeout: time.Second, Payload: 56}, []Flow{echoTo(0, "192.0.2.1", 1)})
	s := e.sockets[kindICMP4]
	e.start = time.Now()
	e.sched.advance()
	n := e.win.push(probe{})
	e.pending[0] = n
	e.write(s, 0, 1000)
	e.win.at(n).state = stateSent
	quote := slices.Concat([]byte{icmp4TimeExceeded, 0, 0, 0, 0, 0, 0, 0}, ipv4(protoICMP, [4]byte{192, 0, 2, 2}, [4]byte{192, 0, 2, 1}, s.out.data[0]))
	packet := ipv4(protoICMP, [4]byte{192, 0, 2, 254}, [4]byte{192, 0, 2, 2}, quote)
	s.raw = true
	e.answer(s, packet, arrival{from: netip.MustParseAddrPort("192.0.2.254:0"), now: 5000})
	if got := e.win.at(n); got.state != stateUnreachable || e.texts[got.text] != "hop limit exceeded, says 192.0.2.254" {
		t.Errorf("%+v %q", got, e.texts)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func newEngine(t *testing.T, o Options, flows []Flow) *Engine {
	t.Helper()
	e, err := NewEngine(o, flows)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func ipv4(proto byte, src, dst [4]byte, rest []byte) []byte {
	b := make([]byte, 20, 20+len(rest))
	b[0], b[8], b[9] = 0x45, 64, proto
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	return append(b, rest...)
}

// denied is set in the environment of the test's own child.
const denied = "TRANSFERLAB_TEST_DENIED"

func TestDenied(t *testing.T) {
	if os.Getenv(denied) != "" {
		all, _ := run(t, Options{Interval: time.Millisecond, Timeout: time.Second, Payload: 56}, []Flow{echoTo(0, loopback4, 10), echoTo(1, loopback6, 10)})
		wantAll(t, all, schemas.StatusDenied)
		if !strings.Contains(all[0].Err, "CAP_NET_RAW") || !strings.Contains(all[0].Err, "ping_group_range is 1 0") {
			t.Errorf("%q", all[0].Err)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The binary may lie where the other user may not look.
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inNamespace(t, func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("1 0"), 0); err != nil {
			t.Error(err)
			return
		}
		cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestDenied$")
		cmd.ExtraFiles, cmd.Dir = []*os.File{f}, "/"
		cmd.Env = []string{denied + "=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	// Nobody answers on this port.
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	e := newEngine(t, Options{Interval: 5 * time.Millisecond, Timeout: time.Hour, Payload: 44}, []Flow{stampTo(0, loopback4, port, 1000), echoTo(1, loopback4, 1000)})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		b := make([]byte, 100)
		for range 10 {
			if _, _, err := c.ReadFrom(b); err != nil {
				t.Error(err)
			}
		}
		cancel()
	}()
	var all []Result
	acc, err := e.Run(ctx, time.Now(), func(r *Result) { all = append(all, *r) })
	if err != context.Canceled { //nolint:errorlint // exactly the context's
		t.Error(err)
	}
	if len(all) < 20 || len(all) > 200 || acc.Issued != uint64(len(all)) {
		t.Errorf("%d results, %+v", len(all), acc)
	}
	for i := range all {
		want := schemas.StatusCancelled
		if all[i].Flow == 1 {
			want = schemas.StatusOK
		}
		// What is due at the very end may have gone out unanswered, or not at all.
		if all[i].Status != want && i < len(all)-2 {
			t.Errorf("%+v", all[i])
		}
	}
	if _, err := e.Run(t.Context(), time.Now(), func(*Result) {}); err == nil {
		t.Error("ran twice")
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// fakeReflector calls answer with the number of each packet that comes and the
// packet, and sends what it returns back.
func fakeReflector(t *testing.T, answer func(n int, b []byte) [][]byte) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2000)
		for n := 0; ; n++ {
			size, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			for _, a := range answer(n, slices.Clone(b[:size])) {
				if _, err := c.WriteToUDPAddrPort(a, from); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

// reflected is an unauthenticated answer as section 4.3.1 has it.
func reflected(b []byte) []byte {
	a := make([]byte, len(b))
	now := time.Now()
	stamp := binary.BigEndian.AppendUint64(nil, uint64(now.Unix()+2208988800)<<32|uint64(now.Nanosecond())<<32/1e9)
	copy(a, b[:4])
	copy(a[4:], stamp)
	copy(a[12:], []byte{0x80, 1})
	copy(a[16:], stamp)
	copy(a[24:], b[:14])
	a[40] = 255
	return a
}

func TestClockStep(t *testing.T) {
	const count, held = 200, 5
	for _, by := range []time.Duration{time.Hour, -time.Hour, 3 * time.Millisecond, -time.Millisecond} {
		t.Run(by.String(), func(t *testing.T) {
			t.Parallel()
			// Answers are held back until held further probes have come, so that
			// some are under way when the clock is set.
			var wait [][]byte
			port := fakeReflector(t, func(n int, b []byte) (out [][]byte) {
				if wait = append(wait, reflected(b)); len(wait) > held {
					out, wait = wait[:1], wait[1:]
				}
				if n == count-1 {
					out, wait = append(out, wait...), nil
				}
				return out
			})
			e := newEngine(t, Options{Interval: time.Millisecond, Timeout: time.Second, Payload: 56}, []Flow{stampTo(0, loopback4, port, count)})
			start := time.Now()
			at := start.Add(100*time.Millisecond + 500*time.Microsecond)
			e.clock.read = func() (int64, int64) {
				now := time.Now()
				wall := now.UnixNano()
				if !now.Before(at) {
					wall += int64(by)
				}
				return int64(now.Sub(start)), wall
			}
			e.clock.stamp = func(wall int64) int64 {
				if wall >= at.UnixNano() {
					wall += int64(by)
				}
				return wall
			}
			var all []Result
			acc, err := e.Run(t.Context(), start, func(r *Result) { all = append(all, *r) })
			if err != nil {
				t.Error(err)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			checkComplete(t, e, start, all)
			if acc.ClockSteps != 1 || acc.Answered != count {
				t.Errorf("%+v", acc)
			}
			stepped := 0
			for i := range all {
				r := &all[i]
				if r.RTT <= 0 || r.RTT > 500*time.Millisecond || r.Wait > 500*time.Millisecond {
					t.Errorf("%+v", r)
				}
				switch r.Status {
				case schemas.StatusClockStepped:
					stepped++
					if r.HasOneWay || r.Stamps != 0 {
						t.Errorf("%+v", r)
					}
				case schemas.StatusOK:
				default:
					t.Errorf("%+v", r)
				}
			}
			if stepped < held || stepped > count/2 {
				t.Errorf("%d of %d are marked", stepped, count)
			}
			if first, last := all[0].Status, all[count-1].Status; first != schemas.StatusOK || last != schemas.StatusOK {
				t.Errorf("first %s, last %s", first, last)
			}
		})
	}
}

// A step too small for the comparison of the clocks shows in the probe.
func TestImpossibleStamps(t *testing.T) {
	t.Parallel()
	for _, by := range []int64{-1000_000, 200_000_000} {
		e := newEngine(t, Options{Interval: 2 * time.Millisecond, Timeout: 100 * time.Millisecond, Payload: 56}, []Flow{echoTo(0, loopback4, 20)})
		calls := 0
		e.clock.stamp = func(wall int64) int64 {
			if calls++; calls > 20 {
				return wall + by
			}
			return wall
		}
		all, _ := runEngine(t, e)
		wrong := 0
		for i := range all {
			if all[i].Status == schemas.StatusClockStepped {
				wrong++
			} else if all[i].RTT < 0 || all[i].RTT > 50*time.Millisecond {
				t.Errorf("%+v", all[i])
			}
		}
		if wrong == 0 {
			t.Error("nothing noticed")
		}
	}
}

func TestDuplicatesAndOrder(t *testing.T) {
	t.Parallel()
	const count = 100
	var wait []byte
	port := fakeReflector(t, func(n int, b []byte) [][]byte {
		a := reflected(b)
		switch {
		case n%10 == 0:
			return [][]byte{a, a, a}
		case n%10 == 5:
			wait = a
			return nil
		case n%10 == 6:
			return [][]byte{a, wait}
		}
		return [][]byte{a}
	})
	all, acc := run(t, Options{Interval: time.Millisecond, Timeout: 100 * time.Millisecond, Payload: 56}, []Flow{stampTo(0, loopback4, port, count)})
	wantAll(t, all, schemas.StatusOK)
	for i := range all {
		r := &all[i]
		dups := 0
		if i%10 == 0 {
			dups = 2
		}
		if r.Duplicates != dups || r.Reordered != (i%10 == 5) {
			t.Errorf("%+v", r)
		}
	}
	if acc.Duplicates != count/10*2 || acc.Answered != count {
		t.Errorf("%+v", acc)
	}
}

func TestBadAnswers(t *testing.T) {
	t.Parallel()
	const count = 80
	port := fakeReflector(t, func(n int, b []byte) [][]byte {
		a := reflected(b)
		switch n % 8 {
		case 1:
			return [][]byte{a[:43]}
		case 2:
			a[30]++ // another time than was sent
		case 3:
			a[27]++ // another, later probe
		case 4:
			return [][]byte{{}, a[:1]}
		case 5:
			return nil
		case 6:
			// The reflector's clock was set in between.
			copy(a[16:], []byte{0xff, 0xff})
		case 7:
			copy(a[24:], []byte{0xff, 0xff, 0xff, 0xff})
		}
		return [][]byte{a}
	})
	all, acc := run(t, Options{Interval: time.Millisecond, Timeout: 50 * time.Millisecond, Payload: 56}, []Flow{stampTo(0, loopback4, port, count)})
	for i := range all {
		want := schemas.StatusTimeout
		switch i % 8 {
		case 0:
			want = schemas.StatusOK
		case 6:
			want = schemas.StatusClockStepped
		}
		if all[i].Status != want {
			t.Errorf("%d: %+v, want %s", i%8, all[i], want)
		}
	}
	if n := uint64(count / 8); acc.Answered != 2*n || acc.Truncated != 3*n || acc.Forged != 3*n {
		t.Errorf("%+v", acc)
	}
}

func TestLate(t *testing.T) {
	t.Parallel()
	const count, held = 60, 30
	var wait [][]byte
	port := fakeReflector(t, func(n int, b []byte) (out [][]byte) {
		if wait = append(wait, reflected(b)); n%2 == 0 {
			out, wait = append(out, wait[len(wait)-1]), wait[:len(wait)-1]
		}
		if len(wait) > held/2 {
			out, wait = append(out, wait[0]), wait[1:]
		}
		return out
	})
	all, acc := run(t, Options{Interval: time.Millisecond, Timeout: 10 * time.Millisecond, Payload: 56}, []Flow{stampTo(0, loopback4, port, count)})
	for i := range all {
		r := &all[i]
		if i%2 == 1 && (r.Status != schemas.StatusTimeout || r.RTT != 10*time.Millisecond || r.Err == "") {
			t.Errorf("%+v", r)
		}
	}
	if acc.Late == 0 || acc.Forged != 0 {
		t.Errorf("%+v", acc)
	}
}

// Answers to echo requests that the kernel would not give.
func TestEchoAnswers(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Options{Interval: time.Second, Timeout: time.Second, Payload: 56}, []Flow{echoTo(0, loopback4, 1), stampTo(1, loopback4, 862, 1)})
	e.start = time.Now()
	s := e.sockets[kindICMP4]
	s.raw = true
	n := e.win.push(probe{})
	e.pending[0] = n
	e.write(s, 0, 1000)
	e.win.at(n).state = stateSent
	e.sched.advance()
	good := slices.Clone(s.out.data[0])
	good[0] = icmp4EchoReply
	from := netip.MustParseAddrPort("127.0.0.1:0")
	give := func(change func(b []byte) []byte) Account {
		e.acc = Account{}
		e.answer(s, ipv4(protoICMP, [4]byte{127, 0, 0, 1}, [4]byte{127, 0, 0, 1}, change(slices.Clone(good))), arrival{from: from, now: 5000})
		return e.acc
	}
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   Account
	}{
		{"request", func(b []byte) []byte { b[0] = icmp4Echo; return b }, Account{Foreign: 1}},
		{"identifier", func(b []byte) []byte { b[4] ^= 1; return b }, Account{Foreign: 1}},
		{"no token", func(b []byte) []byte { return b[:icmpHeader+15] }, Account{Truncated: 1}},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, Account{Truncated: 1}},
		{"cookie", func(b []byte) []byte { b[icmpHeader] ^= 1; return b }, Account{Forged: 1}},
		{"flow of another kind", func(b []byte) []byte { b[icmpHeader+11] = 1; return b }, Account{Forged: 1}},
		{"no such flow", func(b []byte) []byte { b[icmpHeader+8] = 1; return b }, Account{Forged: 1}},
		{"no such probe", func(b []byte) []byte { b[icmpHeader+15] = 9; return b }, Account{Forged: 1}},
		{"payload", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, Account{Answered: 1, Corrupt: 1}},
		{"after", func(b []byte) []byte { return b }, Account{Duplicates: 1}},
	} {
		if got := give(c.change); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	var r Result
	e.emit(e.win.at(n))
	if r = e.batch[0]; r.Status != schemas.StatusCorrupt || r.Duplicates != 1 || r.TTL != 64 {
		t.Errorf("%+v", r)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func TestLongTimeout(t *testing.T) {
	t.Parallel()
	// A thousand under way on each flow, of which one answers.
	r := startReflector(t, "127.0.0.1:0")
	r.SetKey(nil)
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	silent := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	all, _ := run(t, Options{Interval: 200 * time.Microsecond, Timeout: 200 * time.Millisecond, Payload: 56}, []Flow{stampTo(0, loopback4, r.Port(), 2000), stampTo(1, loopback4, silent, 2000), echoTo(2, loopback4, 2000)})
	for i := range all {
		want := schemas.StatusOK
		if all[i].Flow == 1 {
			want = schemas.StatusTimeout
		}
		if all[i].Status != want {
			t.Fatalf("%+v", all[i])
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	_, err := NewEngine(Options{Payload: -1, DSCP: 64, TTL: 256, Key: []byte("k")}, []Flow{
		{ID: 1, Protocol: "tcp", Count: -1, Phase: -1},
		{ID: 1, Protocol: schemas.ProtocolUDP, Dst: netip.MustParseAddrPort("127.0.0.1:0")},
		{ID: 2, Protocol: schemas.ProtocolICMP, Dst: netip.MustParseAddrPort("127.0.0.1:1")},
		stampTo(3, loopback4, 1, 1),
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"interval 0s", "timeout 0s", "payload -1", "dscp 64", "ttl 256", "flow 0: id 1", `protocol "tcp"`, "count -1", "phase -1ns", "flow 1: no port", "flow 2: port 1", "flow 3: payload -1, a test packet has at least 112"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q not in %v", want, err)
		}
	}
}

func TestSource(t *testing.T) {
	t.Parallel()
	r := startReflector(t, "127.0.0.1:0")
	r.SetKey(nil)
	o := Options{Interval: time.Millisecond, Timeout: time.Second, Payload: 56, Source: netip.MustParseAddr("127.0.0.9")}
	all, _ := run(t, o, []Flow{echoTo(0, loopback4, 5), stampTo(1, loopback4, r.Port(), 5), echoTo(2, loopback6, 5)})
	wantAll(t, all, schemas.StatusOK)
	o.Source = netip.MustParseAddr("192.0.2.77")
	all, _ = run(t, o, []Flow{echoTo(0, loopback4, 5), stampTo(1, loopback4, r.Port(), 5)})
	wantAll(t, all, schemas.StatusUnreachable)
}

func startReflector(t *testing.T, addr string) *Reflector {
	t.Helper()
	r, stop := openReflector(t, addr)
	t.Cleanup(stop)
	return r
}

// openReflector is for tests that look at what it has counted: that is settled
// after stop.
func openReflector(t *testing.T, addr string) (r *Reflector, stop func()) {
	t.Helper()
	r, err := NewReflector(netip.MustParseAddrPort(addr), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
