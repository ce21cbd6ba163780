package schemas

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// WorkloadProbe measures paths: between agents, and from agents to targets.
const WorkloadProbe = "probe"

// KindProbe is one probe of the probe workload: one packet sent, or one
// connection, handshake, request or query.
const KindProbe = "probe"

// Statuses of probes, beside those of every workload.
const (
	// StatusUnreachable: the network or the host said that there is no way.
	StatusUnreachable = "unreachable"
	// StatusClockStepped: the machine's clock was set while the probe was under
	// way, so that its times mean nothing.
	StatusClockStepped = "clock_stepped"
	// StatusAbsent: the agent probed is not there or does not answer for the
	// protocol.
	StatusAbsent = "absent"
)

// Protocols of probes.
const (
	ProtocolICMP  = "icmp"  // echo request and reply (RFC 792, RFC 4443)
	ProtocolUDP   = "udp"   // STAMP test packets (RFC 8762)
	ProtocolTCP   = "tcp"   // connect
	ProtocolTLS   = "tls"   // connect and handshake
	ProtocolHTTP  = "http"  // request, every phase
	ProtocolHTTPS = "https" // the same over TLS
	ProtocolDNS   = "dns"   // query
)

// Probe is the section of the probe workload. Every field may be an axis of the
// matrix.
type Probe struct {
	Mesh      string     `yaml:"mesh,omitempty" json:"mesh" jsonschema:"enum=full,enum=pairs,enum=none,description=full: every client probes every other; pairs: the groups of pairs only; none: targets only. full if not given and there is more than one client."`
	Pairs     [][]string `yaml:"pairs,omitempty" json:"pairs,omitempty" jsonschema:"description=With mesh pairs: lists of two group names; the clients of the first probe those of the second."`
	Self      bool       `yaml:"self,omitempty" json:"self" jsonschema:"description=Whether a client of a full mesh also probes itself."`
	Targets   []string   `yaml:"targets,omitempty" json:"targets,omitempty" jsonschema:"description=Named targets as URLs: icmp://host udp://host:862 tcp://host:port tls://host:port http://host/path https://host/path dns://server/name. Every client probes each."`
	Protocols []string   `yaml:"protocols,omitempty" json:"protocols" jsonschema:"minItems=1,description=Of the mesh: icmp udp tcp tls http https. icmp if not given."`

	Interval Duration `yaml:"interval,omitempty" json:"interval_ns" jsonschema:"description=Between the probes of one path; 1s if not given. Paths begin spread over it by the seed."`
	Count    int      `yaml:"count,omitempty" json:"count" jsonschema:"minimum=1,description=Probes of each path."`
	Duration Duration `yaml:"duration,omitempty" json:"duration_ns" jsonschema:"description=Instead of a count: no probe is due later than this after the start."`
	Timeout  Duration `yaml:"timeout,omitempty" json:"timeout_ns" jsonschema:"description=How long an answer is waited for; 1s if not given. It may be longer than the interval: several probes are under way then."`
	Payload  Size     `yaml:"payload,omitempty" json:"payload_bytes" jsonschema:"description=Bytes after the ICMP or UDP header; 56B if not given. A STAMP packet has at least 44 (112 with authentication)."`
	DSCP     int      `yaml:"dscp,omitempty" json:"dscp" jsonschema:"minimum=0,maximum=63,description=Differentiated services code point of packets sent."`
	TTL      int      `yaml:"ttl,omitempty" json:"ttl" jsonschema:"minimum=1,maximum=255,description=Hop limit of packets sent; 64 if not given."`
	IP       string   `yaml:"ip,omitempty" json:"ip" jsonschema:"enum=any,enum=4,enum=6,description=Version of IP that targets' names are resolved to; any if not given."`
	Insecure bool     `yaml:"insecure,omitempty" json:"insecure" jsonschema:"description=Whether tls and https targets may have certificates that nobody vouches for; those of the mesh always may."`
}

// Limits of the section.
const (
	MaxProbeTargets = 1000
	MaxProbePayload = 65_000
	MaxProbeCount   = 100_000_000
	// MaxProbePaths is how many paths the clients of a trial may have.
	MaxProbePaths = 1_000_000
)

// SetDefaults fills what the file leaves out.
func (p *Probe) SetDefaults() {
	p.Interval = orDefault(p.Interval, Duration(time.Second))
	p.Timeout = orDefault(p.Timeout, Duration(time.Second))
	p.Payload = orDefault(p.Payload, 56)
	p.TTL = orDefault(p.TTL, 64)
	p.IP = orDefault(p.IP, "any")
	p.Mesh = orDefault(p.Mesh, "full")
	if len(p.Protocols) == 0 {
		p.Protocols = []string{ProtocolICMP}
	}
}

// Validate reports every fault.
func (p *Probe) Validate() error { return p.check("probe").err() }

// Probes is how many probes a path whose first is due at phase has.
func (p *Probe) Probes(phase time.Duration) int {
	n := MaxProbeCount
	if p.Count > 0 {
		n = p.Count
	}
	if p.Duration > 0 {
		left := time.Duration(p.Duration) - phase
		if left <= 0 {
			return 0
		}
		n = min(n, int((left-1)/time.Duration(p.Interval))+1)
	}
	return n
}

func (p *Probe) check(at string) faultList {
	var faults faultList
	within := func(field string, v, low, high Duration) {
		if v < low || v > high {
			faults.add(at+"."+field, "%s, want %s to %s", v, low, high)
		}
	}
	if modes := []string{"full", "pairs", "none"}; !slices.Contains(modes, p.Mesh) {
		faults.add(at+".mesh", "%q, want %s", p.Mesh, oneOf(modes))
	}
	switch {
	case p.Mesh == "pairs" && len(p.Pairs) == 0:
		faults.add(at+".pairs", "none, but mesh is pairs: want lists of two group names")
	case p.Mesh != "pairs" && len(p.Pairs) > 0:
		faults.add(at+".pairs", "given, but mesh is %s: only mesh pairs has them", p.Mesh)
	}
	for i, pair := range p.Pairs {
		if len(pair) != 2 {
			faults.add(fmt.Sprintf("%s.pairs[%d]", at, i), "%d names, want two groups: who probes and who is probed", len(pair))
		}
	}
	if p.Self && p.Mesh != "full" {
		faults.add(at+".self", "true, but mesh is %s: only a full mesh has it", p.Mesh)
	}
	if p.Mesh == "none" && len(p.Targets) == 0 {
		faults.add(at+".targets", "none, and mesh is none: nothing to probe")
	}
	if len(p.Targets) > MaxProbeTargets {
		faults.add(at+".targets", "%d targets, at most %d are allowed", len(p.Targets), MaxProbeTargets)
	}
	for i, t := range p.Targets {
		if _, err := ParseTarget(t); err != nil {
			faults.add(fmt.Sprintf("%s.targets[%d]", at, i), "%v", err)
		}
	}
	for i, name := range p.Protocols {
		if known := MeshProtocols(); !slices.Contains(known, name) {
			faults.add(fmt.Sprintf("%s.protocols[%d]", at, i), "%q, want %s", name, oneOf(known))
		}
		if slices.Contains(p.Protocols[:i], name) {
			faults.add(fmt.Sprintf("%s.protocols[%d]", at, i), "%q is there twice", name)
		}
	}
	within("interval", p.Interval, Duration(10*time.Microsecond), Duration(24*time.Hour))
	within("timeout", p.Timeout, Duration(millisecond), Duration(10*minute))
	if p.Count == 0 && p.Duration == 0 {
		faults.add(at+".count", "not given, nor is `duration`: a trial must end")
	}
	if p.Count < 0 || p.Count > MaxProbeCount {
		faults.add(at+".count", "%d, want 1 to %d", p.Count, MaxProbeCount)
	}
	if p.Payload < 0 || p.Payload > MaxProbePayload {
		faults.add(at+".payload", "%s, want at most %s", p.Payload, Size(MaxProbePayload))
	}
	if p.DSCP < 0 || p.DSCP > 63 {
		faults.add(at+".dscp", "%d, want 0 to 63", p.DSCP)
	}
	if p.TTL < 1 || p.TTL > 255 {
		faults.add(at+".ttl", "%d, want 1 to 255", p.TTL)
	}
	if versions := []string{"any", "4", "6"}; !slices.Contains(versions, p.IP) {
		faults.add(at+".ip", "%q, want %s", p.IP, oneOf(versions))
	}
	return faults
}

// checkGroups reports faults that show only beside the groups that take part.
func (p *Probe) checkGroups(at string, groups []Group) faultList {
	var faults faultList
	clients := 0
	for _, g := range groups {
		clients += g.Clients
	}
	for i, pair := range p.Pairs {
		for _, name := range pair {
			if !slices.ContainsFunc(groups, func(g Group) bool { return g.Name == name }) {
				faults.add(fmt.Sprintf("%s.pairs[%d]", at, i), "no group called %q", name)
			}
		}
	}
	if p.Mesh == "full" && clients < 2 && !p.Self && len(p.Targets) == 0 {
		faults.add(at+".mesh", "full, but there is one client and no target: nothing to probe")
	}
	if paths := clients * (clients*len(p.Protocols) + len(p.Targets)); paths > MaxProbePaths {
		faults.add(at, "up to %d paths, at most %d are allowed: fewer clients, protocols or targets", paths, MaxProbePaths)
	}
	return faults
}

// MeshProtocols lists what agents answer each other.
func MeshProtocols() []string {
	return []string{ProtocolICMP, ProtocolUDP, ProtocolTCP, ProtocolTLS, ProtocolHTTP, ProtocolHTTPS}
}

// Target is a named thing to probe.
type Target struct {
	Protocol string
	Host     string // name or address
	Port     uint16 // 0 where the protocol has none
	Path     string // of http and https, with the query
	Name     string // of dns: what is asked for, an A record
}

// maxTarget bounds a target's text.
const maxTarget = 512

// ParseTarget reads `icmp://host`, `udp://host:862`, `tcp://host:22`,
// `tls://host:443`, `http://host/path`, `https://host/path` or
// `dns://server/name`.
func ParseTarget(text string) (Target, error) {
	const want = "want icmp://host, udp://host:862, tcp://host:port, tls://host:port, http://host/path, https://host/path or dns://server/name"
	var t Target
	u, err := url.Parse(text)
	if err != nil || len(text) > maxTarget || u.User != nil || u.Fragment != "" || u.Hostname() == "" || u.Opaque != "" {
		return t, fmt.Errorf("%q, %s", text, want)
	}
	t.Protocol, t.Host = u.Scheme, u.Hostname()
	if _, err := netip.ParseAddr(t.Host); err != nil && !isHostName(t.Host) {
		return t, fmt.Errorf("%q: host %q, want a name or an address", text, t.Host)
	}
	ports := map[string]uint16{ProtocolICMP: 0, ProtocolUDP: 862, ProtocolTCP: 0, ProtocolTLS: 443, ProtocolHTTP: 80, ProtocolHTTPS: 443, ProtocolDNS: 53}
	port, known := ports[t.Protocol]
	if !known {
		return t, fmt.Errorf("%q, %s", text, want)
	}
	t.Port = port
	if p := u.Port(); p != "" {
		var n int
		if _, err := fmt.Sscanf(p, "%d", &n); err != nil || n < 1 || n > 65535 || t.Protocol == ProtocolICMP {
			return t, fmt.Errorf("%q: port %s, %s", text, p, want)
		}
		t.Port = uint16(n)
	}
	switch t.Protocol {
	case ProtocolTCP:
		if t.Port == 0 {
			return t, fmt.Errorf("%q has no port, %s", text, want)
		}
	case ProtocolHTTP, ProtocolHTTPS:
		t.Path = u.RequestURI()
		return t, nil
	case ProtocolDNS:
		t.Name = strings.Trim(u.Path, "/")
		if !isHostName(t.Name) {
			return t, fmt.Errorf("%q asks for no name, %s", text, want)
		}
		return t, nil
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return t, fmt.Errorf("%q: %s has no path, %s", text, t.Protocol, want)
	}
	return t, nil
}

func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, part := range strings.Split(strings.TrimSuffix(s, "."), ".") {
		if part == "" || len(part) > 63 {
			return false
		}
		for _, c := range []byte(part) {
			letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
			if !letter {
				return false
			}
		}
	}
	return true
}
