package schemas

import (
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
)

// Fleet is a set of cloud instances that exist for a run: EC2 instances, each
// an agent at a site.
type Fleet struct {
	// Sites by name: where each one's instances are.
	Sites map[string]FleetSite `yaml:"sites" json:"sites" jsonschema:"required"`
	Agent FleetAgent           `yaml:"agent" json:"agent" jsonschema:"required"`
	// KeyPair asks for a key to log in with; it is deleted with the fleet.
	KeyPair bool   `yaml:"key_pair,omitempty" json:"key_pair,omitempty" jsonschema:"description=Whether a key pair is made to log in with; its private key is kept with mode 0600 beside the fleet's journal and both are deleted with the fleet."`
	SSHFrom string `yaml:"ssh_from,omitempty" json:"ssh_from,omitempty" jsonschema:"description=With key_pair: the addresses that may log in such as 203.0.113.7/32. Never the whole world."`
	Profile string `yaml:"profile,omitempty" json:"profile,omitempty" jsonschema:"description=Profile of the shared AWS configuration."`
	// Bus is the address at which instances reach the lab's bus.
	Bus string `yaml:"bus,omitempty" json:"bus,omitempty" jsonschema:"description=Address of the lab's bus as instances reach it such as tls://lab.example.com:4222; the one that the lab advertises if not given."`
}

// FleetSite is the instances of one site.
type FleetSite struct {
	Region string `yaml:"region" json:"region" jsonschema:"required,description=AWS region such as us-west-2."`
	Type   string `yaml:"type,omitempty" json:"type" jsonschema:"description=Instance type; t3.micro if not given."`
	Count  int    `yaml:"count,omitempty" json:"count" jsonschema:"minimum=1,description=Instances; 1 if not given."`
	Image  string `yaml:"image,omitempty" json:"image" jsonschema:"description=An image id (ami-…) or ssm:/path of an SSM parameter that holds one; Amazon Linux 2023 for x86-64 if not given."`
}

// FleetAgent says where instances fetch the program from.
type FleetAgent struct {
	URL    string `yaml:"url" json:"url" jsonschema:"required,description=HTTPS address of the transferlab binary for the instances' architecture."`
	SHA256 string `yaml:"sha256" json:"sha256" jsonschema:"required,description=Its SHA-256 in hexadecimal: instances run nothing else."`
}

// Limits of a fleet.
const (
	MaxFleetSites     = 16
	MaxFleetInstances = 200
	// DefaultFleetImage is resolved in each region.
	DefaultFleetImage = "ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
)

// SetDefaults fills what the file leaves out.
func (f *Fleet) SetDefaults() {
	for name, s := range f.Sites {
		s.Type, s.Count, s.Image = orDefault(s.Type, "t3.micro"), orDefault(s.Count, 1), orDefault(s.Image, DefaultFleetImage)
		f.Sites[name] = s
	}
}

// Validate reports every fault.
func (f *Fleet) Validate() error { return f.check("fleet").err() }

func (f *Fleet) check(at string) faultList {
	var faults faultList
	name := regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	region := regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)
	kind := regexp.MustCompile(`^[a-z0-9-]+\.[a-z0-9-]+$`)
	image := regexp.MustCompile(`^(ami-[0-9a-f]{8,17}|ssm:/[A-Za-z0-9_./-]{1,500})$`)
	sum := regexp.MustCompile(`^[0-9a-f]{64}$`)
	if len(f.Sites) == 0 || len(f.Sites) > MaxFleetSites {
		faults.add(at+".sites", "%d sites, want 1 to %d", len(f.Sites), MaxFleetSites)
	}
	instances := 0
	for _, site := range slices.Sorted(maps.Keys(f.Sites)) {
		s, here := f.Sites[site], at+".sites."+site
		if !name.MatchString(site) {
			faults.add(here, "%q, want lower-case letters, digits and hyphens, at most 63", site)
		}
		if !region.MatchString(s.Region) {
			faults.add(here+".region", "%q, want an AWS region such as us-west-2", s.Region)
		}
		if !kind.MatchString(s.Type) {
			faults.add(here+".type", "%q, want an instance type such as t3.micro", s.Type)
		}
		if !image.MatchString(s.Image) {
			faults.add(here+".image", "%q, want ami-… or ssm:/path/of/a/parameter", s.Image)
		}
		if s.Count < 1 {
			faults.add(here+".count", "%d, want 1 or more", s.Count)
		}
		instances += max(s.Count, 0)
	}
	if instances > MaxFleetInstances {
		faults.add(at+".sites", "%d instances in all, at most %d are allowed", instances, MaxFleetInstances)
	}
	u, err := url.Parse(f.Agent.URL)
	loopback := err == nil && (u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "https" && !(u.Scheme == "http" && loopback)) {
		faults.add(at+".agent.url", "%q, want https://… without credentials", f.Agent.URL)
	}
	if !sum.MatchString(f.Agent.SHA256) {
		faults.add(at+".agent.sha256", "%q, want 64 hexadecimal digits", f.Agent.SHA256)
	}
	switch {
	case f.SSHFrom != "" && !f.KeyPair:
		faults.add(at+".ssh_from", "given, but key_pair is false: nobody could log in")
	case f.KeyPair && f.SSHFrom == "":
		faults.add(at+".ssh_from", "not given, but key_pair is true: want the addresses that may log in such as 203.0.113.7/32")
	case f.SSHFrom != "":
		p, err := netip.ParsePrefix(f.SSHFrom)
		if err != nil || p.Bits() < 8 {
			faults.add(at+".ssh_from", "%q, want a network in CIDR notation of /8 or smaller such as 203.0.113.7/32", f.SSHFrom)
		}
	}
	if f.Bus != "" {
		if u, err := url.Parse(f.Bus); err != nil || u.Scheme != "tls" || u.Host == "" || u.User != nil {
			faults.add(at+".bus", "%q, want tls://host:port without credentials", f.Bus)
		}
	}
	return faults
}
