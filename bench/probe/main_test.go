package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

const fpingOutput = `ICMP Host Unreachable from 10.0.0.2 for ICMP Echo sent to 10.0.0.1
127.0.0.1 : 0.049 0.028 - 1.23 12.3
127.0.0.2 : - - - - 1047
`

func TestFping(t *testing.T) {
	s, err := parseFping(strings.NewReader(fpingOutput), 2, 5)
	if err != nil {
		t.Fatal(err)
	}
	want := []time.Duration{49 * time.Microsecond, 28 * time.Microsecond, 1230 * time.Microsecond, 12300 * time.Microsecond, 1047 * time.Millisecond}
	if s.sent != 10 || s.lost() != 5 || !slices.Equal(s.rtts, want) {
		t.Errorf("%+v", s)
	}
	for _, bad := range []struct {
		text           string
		targets, count int
	}{
		{fpingOutput, 3, 5},
		{fpingOutput, 2, 6},
		{"127.0.0.1 : 0.049 x", 1, 2},
		{"127.0.0.1 : NaN", 1, 1},
		{"127.0.0.1 : -1", 1, 1},
		{"", 1, 1},
	} {
		if _, err := parseFping(strings.NewReader(bad.text), bad.targets, bad.count); err == nil {
			t.Errorf("no error for %q", bad.text)
		}
	}
}

const pingOutput = `PING 127.0.0.1 (127.0.0.1) 56(84) bytes of data.
64 bytes from 127.0.0.1: icmp_seq=1 ttl=64 time=0.010 ms
64 bytes from 127.0.0.1: icmp_seq=2 ttl=64 time=12.3 ms
64 bytes from 127.0.0.1: icmp_seq=2 ttl=64 time=12.4 ms (DUP!)
From 10.0.0.2 icmp_seq=3 Destination Host Unreachable

--- 127.0.0.1 ping statistics ---
3 packets transmitted, 2 received, +1 duplicates, +1 errors, 33.3333% packet loss, time 30ms
rtt min/avg/max/mdev = 0.010/0.014/0.018/0.003 ms
`

func TestPing(t *testing.T) {
	s, err := parsePing(strings.NewReader(pingOutput))
	if err != nil {
		t.Fatal(err)
	}
	if s.sent != 3 || s.lost() != 1 || !slices.Equal(s.rtts, []time.Duration{10 * time.Microsecond, 12300 * time.Microsecond}) {
		t.Errorf("%+v", s)
	}
	for _, bad := range []string{
		"",
		"ping: 127.0.0.1: No address",
		"x packets transmitted, 0 received",
		"64 bytes from ::1: icmp_seq=1 time=0.1 ms\n0 packets transmitted, 0 received",
		"64 bytes from ::1: icmp_seq=1 time=x ms\n1 packets transmitted, 0 received",
	} {
		if _, err := parsePing(strings.NewReader(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

const cloudproberOutput = `# TYPE total counter
total{ptype="ping",probe="p1",dst="127.0.0.1"} 24 1795364204617
total{ptype="ping",probe="p2",dst="127.0.0.2"} 16 1795364204617
total{ptype="sysvars"} 7 1795364204617
success{ptype="ping",probe="p1",dst="127.0.0.1"} 24 1795364204617
success{ptype="ping",probe="p2",dst="127.0.0.2"} 15 1795364204617
latency_bucket{ptype="ping",probe="p1",dst="127.0.0.1",le="5"} 4 1795364204617
latency_bucket{ptype="ping",probe="p1",dst="127.0.0.1",le="10"} 24 1795364204617
latency_bucket{ptype="ping",probe="p1",dst="127.0.0.1",le="+Inf"} 24 1795364204617
latency_bucket{ptype="ping",probe="p2",dst="127.0.0.2",le="5"} 0 1795364204617
latency_bucket{ptype="ping",probe="p2",dst="127.0.0.2",le="10"} 14 1795364204617
latency_bucket{ptype="ping",probe="p2",dst="127.0.0.2",le="+Inf"} 15 1795364204617
`

func TestCloudprober(t *testing.T) {
	c, err := parseCloudprober([]byte(cloudproberOutput))
	if err != nil {
		t.Fatal(err)
	}
	if c.sent != 40 || c.answered != 39 || c.within(0.1) != "5" || c.within(0.5) != "10" || c.within(0.99) != "+Inf" {
		t.Errorf("%+v: %s %s %s", c, c.within(0.1), c.within(0.5), c.within(0.99))
	}
	if d := c.minus(c); d.sent != 0 || d.within(0.5) != "" {
		t.Errorf("%+v", d)
	}
	if _, err := parseCloudprober([]byte(`total{ptype="ping"} x`)); err == nil {
		t.Error("no error")
	}
}

func TestQuantile(t *testing.T) {
	var s samples
	if s.quantile(0.5) >= 0 {
		t.Error("a quantile of nothing")
	}
	for i := range 200 {
		s.rtts = append(s.rtts, time.Duration(200-i))
	}
	for p, want := range map[float64]time.Duration{0: 1, 0.5: 100, 0.99: 198, 0.995: 199, 1: 200} {
		if got := s.quantile(p); got != want {
			t.Errorf("%g: %d, want %d", p, got, want)
		}
	}
}

func TestControllerRoot(t *testing.T) {
	for _, c := range []struct {
		mounts  string
		cpu     bool
		dir     string
		version int
	}{
		{"cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n", false, "/sys/fs/cgroup/cpu,cpuacct", 1},
		{"cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n", true, "/sys/fs/cgroup", 2},
		{"cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", false, "/sys/fs/cgroup/cpu", 1},
		{"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n\nshort\n", false, "", 0},
	} {
		dir, version := controllerRoot(c.mounts, func(string) bool { return c.cpu })
		if dir != c.dir || version != c.version {
			t.Errorf("%q: %q %d, want %q %d", c.mounts, dir, version, c.dir, c.version)
		}
	}
}

func TestPlanned(t *testing.T) {
	text, err := os.ReadFile("../../services/prober/examples/mesh-100.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := planned(text); err != nil || n != 600_000 {
		t.Errorf("%d, %v, want 600000", n, err)
	}
	if _, err := planned([]byte(experiment("other", "local", []string{"icmp://127.0.0.1"}, time.Second, 3))); err == nil {
		t.Error("no error without a mesh")
	}
}

func TestOptions(t *testing.T) {
	good := options{scenarios: "rtt,mesh", rounds: 1, probes: 1, loadRounds: 1, loadDuration: time.Second}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	bad := options{scenarios: "rtt,nonsense"}
	err := bad.validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"nonsense", "--rounds", "--probes", "--load-rounds", "--load-duration"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

func TestScenarioNames(t *testing.T) {
	var names []string
	for _, s := range (&bench{}).scenarios() {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, scenarioNames()) {
		t.Errorf("scenarios %q, in flags %q", names, scenarioNames())
	}
}

func FuzzFping(f *testing.F) {
	f.Add([]byte(fpingOutput), 2, 5)
	f.Fuzz(func(t *testing.T, text []byte, targets, count int) {
		s, err := parseFping(strings.NewReader(string(text)), targets, count)
		if err == nil && (s.sent != targets*count || s.lost() < 0) {
			t.Errorf("%d targets, %d probes each: %d sent, %d lost", targets, count, s.sent, s.lost())
		}
	})
}

func FuzzPing(f *testing.F) {
	f.Add([]byte(pingOutput))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := parsePing(strings.NewReader(string(text))); err == nil && s.lost() < 0 {
			t.Errorf("%d lost of %d", s.lost(), s.sent)
		}
	})
}

func FuzzCloudprober(f *testing.F) {
	f.Add([]byte(cloudproberOutput))
	f.Fuzz(func(_ *testing.T, text []byte) {
		if c, err := parseCloudprober(text); err == nil {
			_ = c.within(0.99)
		}
	})
}
