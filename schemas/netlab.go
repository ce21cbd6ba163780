package schemas

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/invopop/jsonschema"
)

// SiteLab is the name of the machine itself in an emulated network: the lab's
// own store and other services stand there.
const SiteLab = "lab"

// Link says what happens to packets between two emulated sites, or inside one.
// Everything but rtt is for each direction.
type Link struct {
	RTT       Duration `yaml:"rtt,omitempty" json:"rtt_ns,omitempty" jsonschema:"description=Round trip: half of it in each direction."`
	Jitter    Duration `yaml:"jitter,omitempty" json:"jitter_ns,omitempty" jsonschema:"description=Each packet's one-way delay is spread evenly by up to this above and below; at most half the rtt. Packets keep their order unless reorder says otherwise."`
	Loss      Share    `yaml:"loss,omitempty" json:"loss,omitempty" jsonschema:"description=Share of packets lost, each by itself."`
	Duplicate Share    `yaml:"duplicate,omitempty" json:"duplicate,omitempty" jsonschema:"description=Share of packets that come twice."`
	Reorder   Share    `yaml:"reorder,omitempty" json:"reorder,omitempty" jsonschema:"description=Share of packets that are held back so that later ones overtake them."`
	Rate      BitRate  `yaml:"rate,omitempty" json:"rate_bits_per_s,omitempty" jsonschema:"description=Bits of IP packets a second; unlimited if not given."`
	Queue     Size     `yaml:"queue,omitempty" json:"queue_bytes,omitempty" jsonschema:"description=Bytes that may wait for a limited rate; what comes beyond is dropped. 100 ms of the rate if not given and at least 64KiB."`
}

// Topology is an emulated network: sites on one machine, and what lies between
// them. Pairs without a link cannot reach each other, except the lab, which
// every site reaches without delay unless a link says otherwise.
type Topology struct {
	// Sites by name; the value is the network inside the site.
	Sites map[string]Link `json:"sites"`
	Links []SiteLink      `json:"links"`
	Seed  uint64          `json:"seed"`
}

// SiteLink is a link between two sites, A before B in the alphabet.
type SiteLink struct {
	A    string `json:"a"`
	B    string `json:"b"`
	Link Link   `json:"link"`
}

// Between returns the link between two sites (the same one: the network inside
// it); false when there is none.
func (t *Topology) Between(a, b string) (Link, bool) {
	if a == b {
		l, ok := t.Sites[a]
		return l, ok || a == SiteLab
	}
	if a > b {
		a, b = b, a
	}
	for _, l := range t.Links {
		if l.A == a && l.B == b {
			return l.Link, true
		}
	}
	return Link{}, a == SiteLab || b == SiteLab
}

// Topology returns the emulated network of the experiment; false when it has
// none.
func (e *Experiment) Topology(seed uint64) (Topology, bool) {
	if len(e.Sites) == 0 {
		return Topology{}, false
	}
	t := Topology{Sites: e.Sites, Seed: seed, Links: []SiteLink{}}
	for _, name := range slices.Sorted(maps.Keys(e.Links)) {
		if a, b, err := e.ends(name); err == nil {
			t.Links = append(t.Links, SiteLink{A: a, B: b, Link: e.Links[name]})
		}
	}
	return t, true
}

// ends splits a link's name, `oregon-dublin`, where both parts are sites: their
// names may have hyphens too.
func (e *Experiment) ends(name string) (a, b string, err error) {
	known := func(site string) bool {
		_, ok := e.Sites[site]
		return ok || site == SiteLab
	}
	found := 0
	for i, c := range name {
		if c != '-' || !known(name[:i]) || !known(name[i+1:]) || name[:i] == name[i+1:] {
			continue
		}
		a, b = name[:i], name[i+1:]
		found++
	}
	sites := append(slices.Sorted(maps.Keys(e.Sites)), SiteLab)
	switch found {
	case 0:
		return "", "", fmt.Errorf("%q, want the names of two sites with a hyphen between them; sites are %s", name, strings.Join(sites, ", "))
	case 1:
		if a > b {
			a, b = b, a
		}
		return a, b, nil
	}
	return "", "", fmt.Errorf("%q can be read as more than one pair of sites: rename a site", name)
}

// LinkName is how the file calls the link between two sites.
func (e *Experiment) LinkName(a, b string) string {
	for name := range e.Links {
		if x, y, err := e.ends(name); err == nil && (x == a && y == b || x == b && y == a) {
			return name
		}
	}
	return a + "-" + b
}

// Limits of an emulated network.
const (
	MaxEmulatedSites  = 64
	MaxEmulatedAgents = 256
)

func (e *Experiment) checkNetwork(isName func(string) bool) faultList {
	var faults faultList
	if len(e.Sites) == 0 {
		if len(e.Links) > 0 {
			faults.add("links", "given without sites: want `sites:` with the names of both ends")
		}
		return faults
	}
	if e.Fleet != nil {
		faults.add("fleet", "given beside sites: the agents are either emulated here or in a cloud")
	}
	if len(e.Sites) > MaxEmulatedSites {
		faults.add("sites", "%d sites, at most %d are allowed", len(e.Sites), MaxEmulatedSites)
	}
	for _, site := range slices.Sorted(maps.Keys(e.Sites)) {
		if !isName(site) || site == SiteLab {
			faults.add("sites."+site, "%q, want lower-case letters, digits and hyphens, at most 63, and not %q, which is this machine", site, SiteLab)
		}
		faults = append(faults, checkLink("sites."+site, e.Sites[site])...)
	}
	seen := map[[2]string]string{}
	for _, name := range slices.Sorted(maps.Keys(e.Links)) {
		a, b, err := e.ends(name)
		if err != nil {
			faults.add("links."+name, "%v", err)
			continue
		}
		if other, twice := seen[[2]string{a, b}]; twice {
			faults.add("links."+name, "the same pair of sites as %q", other)
		}
		seen[[2]string{a, b}] = name
		faults = append(faults, checkLink("links."+name, e.Links[name])...)
	}
	agents := 0
	for i, g := range e.Groups {
		if _, known := e.Sites[g.Site]; !known {
			faults.add(fmt.Sprintf("groups[%d].site", i), "%q is not one of the sites of this file: %s", g.Site, strings.Join(slices.Sorted(maps.Keys(e.Sites)), ", "))
		}
		agents += g.Agents
	}
	if agents > MaxEmulatedAgents {
		faults.add("groups", "%d agents in all, at most %d can be emulated on one machine", agents, MaxEmulatedAgents)
	}
	return faults
}

func checkLink(at string, l Link) faultList {
	var faults faultList
	if l.RTT > Duration(minute) {
		faults.add(at+".rtt", "%s, want at most 1m", l.RTT)
	}
	if l.Jitter > l.RTT/2 {
		faults.add(at+".jitter", "%s, want at most half the rtt (%s): no packet arrives before it was sent", l.Jitter, l.RTT/2)
	}
	if l.Loss > 0.99 {
		faults.add(at+".loss", "%s, want at most 99%%: leave the link out to cut it", l.Loss)
	}
	if l.Rate != 0 && (l.Rate < 8_000 || l.Rate > 1e12) {
		faults.add(at+".rate", "%s, want 8kbit to 1000gbit", l.Rate)
	}
	if l.Rate == 0 && l.Queue != 0 {
		faults.add(at+".queue", "given without a rate: nothing ever waits")
	}
	if l.Queue > 1<<30 {
		faults.add(at+".queue", "%s, want at most 1GiB", l.Queue)
	}
	return faults
}

// QueueBytes is how much may wait for the link's rate.
func (l Link) QueueBytes() int64 {
	if l.Queue > 0 {
		return int64(l.Queue)
	}
	return max(64<<10, int64(float64(l.Rate)/8*0.1))
}

// OneWay is the delay in one direction.
func (l Link) OneWay() time.Duration { return time.Duration(l.RTT) / 2 }

// Share is a part of a whole, 0 to 1; in a file `0.1%` or `0.001`.
type Share float64

// UnmarshalJSON reads what a share is in JSON: the number.
func (s *Share) UnmarshalJSON(data []byte) error { return json.Unmarshal(data, (*float64)(s)) }

// UnmarshalText reads a share.
func (s *Share) UnmarshalText(text []byte) error {
	number, percent := strings.CutSuffix(strings.TrimSpace(string(text)), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		v /= 100
	}
	if err != nil || math.IsNaN(v) || v < 0 || v > 1 {
		return fmt.Errorf("%q, want a share such as 0.1%% or 0.001, at most 100%%", text)
	}
	*s = Share(v)
	return nil
}

func (s Share) String() string { return strconv.FormatFloat(float64(s)*100, 'g', 6, 64) + "%" }

// JSONSchema describes a share to editors.
func (Share) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{OneOf: []*jsonschema.Schema{
		{Type: "string", Pattern: `^\s*[0-9]+(\.[0-9]+)?\s*%?\s*$`},
		{Type: "number", Minimum: "0", Maximum: "1"},
	}, Description: "A share: 0.1% or 0.001."}
}

// BitRate is bits a second; in a file `100mbit`, `1.5Gbit`, always powers of
// 1000.
type BitRate int64

// UnmarshalText reads a rate.
func (r *BitRate) UnmarshalText(text []byte) error {
	s := strings.ToLower(strings.TrimSpace(string(text)))
	for _, suffix := range []string{"/s", "ps"} {
		s = strings.TrimSuffix(s, suffix)
	}
	factor := 0.0
	for _, unit := range []struct {
		name   string
		factor float64
	}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}} {
		if rest, found := strings.CutSuffix(s, unit.name); found {
			s, factor = strings.TrimSpace(rest), unit.factor
			break
		}
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || factor == 0 || math.IsNaN(v) || v < 0 || v*factor > 1e15 {
		return fmt.Errorf("%q, want bits a second such as 512kbit, 100mbit, 1gbit", text)
	}
	*r = BitRate(v * factor)
	return nil
}

// UnmarshalJSON reads what a rate is in JSON: the number, without a unit.
func (r *BitRate) UnmarshalJSON(data []byte) error { return json.Unmarshal(data, (*int64)(r)) }

func (r BitRate) String() string {
	for _, unit := range []struct {
		name   string
		factor BitRate
	}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}} {
		if r >= unit.factor {
			return strconv.FormatFloat(float64(r)/float64(unit.factor), 'g', 6, 64) + unit.name
		}
	}
	return fmt.Sprintf("%dbit", int64(r))
}

// JSONSchema describes a rate to editors.
func (BitRate) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{
		Type: "string", Pattern: `^\s*[0-9]+(\.[0-9]+)?\s*[kKmMgG]?[bB]it(/s|ps)?\s*$`,
		Description: "Bits a second: 100mbit is 10^8.",
	}
}
