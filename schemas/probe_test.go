package schemas

import (
	"strings"
	"testing"
	"time"
)

// Each broken file must name its line and the cure.
func TestBrokenProbeFiles(t *testing.T) {
	const good = `name: one
workload: probe
sites: {us-west: {rtt: 1ms}, eu: {}}
links: {us-west-eu: {rtt: 140ms, loss: 0.1%, rate: 100mbit}}
groups:
  - {site: us-west, clients: 2}
  - {site: eu}
thresholds:
  - {metric: loss, max: 1%}
probe:
  count: 10
`
	e, err := ParseExperiment([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	topology, emulated := e.Topology(1)
	link, linked := topology.Between("us-west", "eu")
	if !emulated || !linked || link.RTT != Duration(140*millisecond) || link.Loss != 0.001 || link.Rate != 1e8 || link.QueueBytes() != 1_250_000 {
		t.Errorf("link %+v, %t", link, linked)
	}
	if inside, ok := topology.Between("us-west", "us-west"); !ok || inside.OneWay() != 500*time.Microsecond {
		t.Errorf("inside %+v, %t", inside, ok)
	}
	if _, ok := topology.Between("eu", SiteLab); !ok {
		t.Error("no way to the lab")
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"no such site":        {"us-west-eu:", "us-west-mars:", `links.us-west-mars: "us-west-mars", want the names of two sites`},
		"the same pair":       {"links: {", "links: {eu-us-west: {}, ", `the same pair of sites as "eu-us-west"`},
		"group elsewhere":     {"site: eu}", "site: mars}", `line 7: groups[1].site: "mars" is not one of the sites of this file: eu, us-west`},
		"jitter beyond delay": {"rtt: 140ms", "rtt: 1ms, jitter: 1ms", "jitter: 1ms, want at most half the rtt"},
		"loss above all":      {"0.1%", "120%", `"120%", want a share such as 0.1%`},
		"rate without unit":   {"100mbit", "100", `"100", want bits a second such as 512kbit`},
		"links alone":         {"sites: {us-west: {rtt: 1ms}, eu: {}}\n", "", "links: given without sites"},
		"called lab":          {"eu: {}", "lab: {}", "which is this machine"},
		"no count":            {"  count: 10", "  self: true", "probe.count: not given, nor is `duration`"},
		"no protocol":         {"count: 10", "count: 10\n  protocols: [gopher]", `line 12: probe.protocols[0]: "gopher", want one of icmp`},
		"pairs of nobody":     {"count: 10", "count: 10\n  mesh: pairs\n  pairs: [[eu, mars]]", `no group called "mars"`},
		"pairs of three":      {"count: 10", "count: 10\n  mesh: pairs\n  pairs: [[eu, eu, eu]]", "3 names, want two groups"},
		"nothing to do":       {"count: 10", "count: 10\n  mesh: none", "probe.targets: none, and mesh is none"},
		"bad target":          {"count: 10", "count: 10\n  targets: [\"ftp://host\"]", `line 12: probe.targets[0]: "ftp://host", want icmp://host`},
		"other's metric":      {"metric: loss", "metric: service_p99", `"service_p99", want one of rtt_p50`},
		"too fast":            {"count: 10", "count: 10\n  interval: 1us", "interval: 1µs, want 10µs to 24h"},
		"too many paths":      {"clients: 2", "clients: 2000", "paths, at most 1000000 are allowed"},
		"too many agents":     {"clients: 2", "clients: 2000, agents: 1000", "at most 256 can be emulated"},
		"no section":          {"probe:\n  count: 10\n", "", "workload: probe needs a section `probe:`"},
		"fleet and sites":     {"probe:", "fleet: {sites: {eu: {region: eu-west-1}}, agent: {url: \"https://x/y\", sha256: " + strings.Repeat("a", 64) + "}}\nprobe:", "either emulated here or in a cloud"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseExperiment([]byte(strings.Replace(good, c.old, c.new, 1)))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error:\n%v\nwant in it:\n%s", err, c.want)
			}
		})
	}
}

func TestBrokenFleets(t *testing.T) {
	good := `name: one
workload: probe
groups: [{site: oregon, agents: 2, clients: 2}, {site: dublin}]
fleet:
  sites:
    oregon: {region: us-west-2, count: 2}
    dublin: {region: eu-west-1}
  agent: {url: "https://example.com/transferlab", sha256: ` + strings.Repeat("0a", 32) + `}
probe: {count: 10}
`
	e, err := ParseExperiment([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if s := e.Fleet.Sites["dublin"]; s.Type != "t3.micro" || s.Count != 1 || s.Image != DefaultFleetImage {
		t.Errorf("defaults %+v", s)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"no region":         {"region: us-west-2, ", "", "fleet.sites.oregon.region: missing"},
		"bad region":        {"us-west-2", "oregon", `"oregon", want an AWS region`},
		"bad type":          {"eu-west-1", "eu-west-1, type: large", `"large", want an instance type`},
		"bad image":         {"eu-west-1", "eu-west-1, image: debian", `"debian", want ami-`},
		"too few":           {"count: 2", "count: 1", "2 agents at oregon in all, but fleet.sites.oregon.count is 1"},
		"site elsewhere":    {"{site: dublin}", "{site: mars}", `"mars" is not one of the fleet's sites`},
		"plain http":        {"https://example.com", "http://example.com", "want https://"},
		"bad sum":           {"0a0a", "zz0a", "want 64 hexadecimal digits"},
		"key, nobody":       {"fleet:", "fleet:\n  key_pair: true", "fleet.ssh_from: not given, but key_pair is true"},
		"the whole world":   {"fleet:", "fleet:\n  key_pair: true\n  ssh_from: 0.0.0.0/0", `"0.0.0.0/0", want a network in CIDR notation of /8 or smaller`},
		"ssh without a key": {"fleet:", "fleet:\n  ssh_from: 192.0.2.1/32", "key_pair is false"},
		"bus without TLS":   {"fleet:", "fleet:\n  bus: nats://x:4222", "want tls://host:port"},
		"too many":          {"count: 2", "count: 500", "at most 200 are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseExperiment([]byte(strings.Replace(good, c.old, c.new, 1)))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error:\n%v\nwant in it:\n%s", err, c.want)
			}
		})
	}
}

func TestProbesOfAPath(t *testing.T) {
	for _, c := range []struct {
		probe Probe
		phase time.Duration
		want  int
	}{
		{Probe{Interval: Duration(time.Second), Count: 5}, 0, 5},
		{Probe{Interval: Duration(time.Second), Duration: Duration(5 * time.Second)}, 0, 5},
		{Probe{Interval: Duration(time.Second), Duration: Duration(5 * time.Second)}, 900 * time.Millisecond, 5},
		{Probe{Interval: Duration(time.Second), Duration: Duration(5*time.Second + 1)}, 0, 6},
		{Probe{Interval: Duration(time.Second), Duration: Duration(time.Second / 2)}, time.Second / 2, 0},
		{Probe{Interval: Duration(time.Second), Duration: Duration(5 * time.Second), Count: 3}, 0, 3},
	} {
		if got := c.probe.Probes(c.phase); got != c.want {
			t.Errorf("%+v from %s: %d probes, want %d", c.probe, c.phase, got, c.want)
		}
	}
}

func TestTargets(t *testing.T) {
	for text, want := range map[string]Target{
		"icmp://example.com":          {Protocol: "icmp", Host: "example.com"},
		"icmp://[2001:db8::1]":        {Protocol: "icmp", Host: "2001:db8::1"},
		"udp://192.0.2.1":             {Protocol: "udp", Host: "192.0.2.1", Port: 862},
		"tcp://host:22":               {Protocol: "tcp", Host: "host", Port: 22},
		"tls://host":                  {Protocol: "tls", Host: "host", Port: 443},
		"http://host/a?b=c":           {Protocol: "http", Host: "host", Port: 80, Path: "/a?b=c"},
		"https://host:8443":           {Protocol: "https", Host: "host", Port: 8443, Path: "/"},
		"dns://192.0.2.53/a.example.": {Protocol: "dns", Host: "192.0.2.53", Port: 53, Name: "a.example."},
	} {
		got, err := ParseTarget(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "host", "tcp://host", "icmp://host:1", "tcp://u:p@host:1", "tcp://host:99999", "dns://host", "ftp://host", "tcp://host:1/x", "icmp://", "icmp://a b", "https://host#x"} {
		if got, err := ParseTarget(text); err == nil {
			t.Errorf("%q: %+v, want an error", text, got)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"icmp://example.com", "tcp://host:22", "dns://[::1]:53/name", "https://host/%2f?x=1", "udp://host:00862"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseTarget(text)
		if err != nil {
			return
		}
		if got.Host == "" || len(text) > maxTarget || got.Protocol == ProtocolDNS && got.Name == "" || got.Protocol != ProtocolICMP && got.Port == 0 {
			t.Errorf("%q was read as %+v", text, got)
		}
	})
}

func FuzzShareAndRate(f *testing.F) {
	for _, s := range []string{"0.1%", "1e-3", "100mbit", "1.5Gbit/s", "512 kbps", "NaN", "-1", "1e999bit"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s Share
		if s.UnmarshalText([]byte(text)) == nil && !(s >= 0 && s <= 1) {
			t.Errorf("share %q is %g", text, float64(s))
		}
		var r BitRate
		if r.UnmarshalText([]byte(text)) == nil && r < 0 {
			t.Errorf("rate %q is %d", text, int64(r))
		}
	})
}
