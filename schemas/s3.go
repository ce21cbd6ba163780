package schemas

import (
	"fmt"
	"net/url"
	"slices"
	"time"
)

// WorkloadS3 is parallel downloads and uploads of objects.
const WorkloadS3 = "s3"

const (
	millisecond = time.Millisecond
	minute      = time.Minute
)

// S3 is the section of the s3 workload. Every field but target and buckets may
// be an axis of the matrix; so may buckets, as a list of lists.
type S3 struct {
	Target  S3Target `yaml:"target,omitempty" json:"target"`
	Buckets []string `yaml:"buckets" json:"buckets" jsonschema:"required,minItems=1,description=Each client goes through them in a cycle."`

	Operation string  `yaml:"operation,omitempty" json:"operation" jsonschema:"enum=get,enum=put,enum=mixed,description=get if not given."`
	PutShare  float64 `yaml:"put_share,omitempty" json:"put_share" jsonschema:"minimum=0,maximum=1,description=Share of uploads when operation is mixed."`
	Size      Size    `yaml:"size" json:"size_bytes" jsonschema:"required"`
	Objects   int     `yaml:"objects,omitempty" json:"objects" jsonschema:"minimum=1,description=Distinct objects of the size in each bucket; 4 if not given."`
	Pick      string  `yaml:"pick,omitempty" json:"pick" jsonschema:"enum=cycle,enum=random,description=How the next object of a bucket is chosen; cycle if not given."`
	Prefix    string  `yaml:"prefix,omitempty" json:"prefix" jsonschema:"description=Prefix of the objects' keys; transferlab/ if not given."`
	Populate  string  `yaml:"populate,omitempty" json:"populate" jsonschema:"enum=missing,enum=never,description=Whether buckets and objects that are missing are made before a trial; missing if not given."`

	Loop         string   `yaml:"loop,omitempty" json:"loop" jsonschema:"enum=closed,enum=open,description=closed: a client waits after each request has ended; open: requests start by a schedule whatever the store does. closed if not given."`
	Wait         Duration `yaml:"wait,omitempty" json:"wait_ns" jsonschema:"description=Mean think time between the requests of a closed loop; 0s is as fast as possible."`
	Distribution string   `yaml:"wait_distribution,omitempty" json:"wait_distribution" jsonschema:"enum=poisson,enum=exponential,enum=constant,description=Of the think times: poisson (whole seconds) or exponential or constant. poisson if not given."`
	Rate         float64  `yaml:"rate,omitempty" json:"rate_per_s" jsonschema:"exclusiveMinimum=0,description=Open loop: requests a second of each client on average; arrivals are a Poisson process."`
	Concurrency  int      `yaml:"concurrency,omitempty" json:"concurrency" jsonschema:"minimum=1,description=Requests a client has under way at a time; 1 in a closed loop and 256 in an open one if not given."`
	Requests     int      `yaml:"requests,omitempty" json:"requests" jsonschema:"minimum=1,description=Requests of each client."`
	Duration     Duration `yaml:"duration,omitempty" json:"duration_ns" jsonschema:"description=No request starts later than this after the start of the trial."`

	PartSize     Size     `yaml:"part_size,omitempty" json:"part_size_bytes" jsonschema:"description=Objects larger than this are fetched as ranges; 0 is one request."`
	PartParallel int      `yaml:"part_parallel,omitempty" json:"part_parallel" jsonschema:"minimum=1,description=Ranges under way at a time; 4 if not given."`
	Verify       string   `yaml:"verify,omitempty" json:"verify" jsonschema:"enum=size,enum=checksum,description=What is checked of a download: its length or its content too; size if not given."`
	Connections  string   `yaml:"connections,omitempty" json:"connections" jsonschema:"enum=reuse,enum=fresh,description=Whether requests share connections; reuse if not given."`
	Timeout      Duration `yaml:"timeout,omitempty" json:"timeout_ns" jsonschema:"description=Of one request with its retries; 1m if not given."`
	Retries      int      `yaml:"retries,omitempty" json:"retries" jsonschema:"minimum=0,description=How often a request that the store failed or refused to take is sent again; 0 if not given."`
}

// S3Target says which store. Empty is the lab's own. Secrets never stand here:
// they come from the profile, the environment or the machine's role, on the
// agent.
type S3Target struct {
	Endpoint  string `yaml:"endpoint,omitempty" json:"endpoint,omitempty" jsonschema:"description=URL of the store; empty with a region is AWS; empty without is the lab's own store."`
	Region    string `yaml:"region,omitempty" json:"region,omitempty"`
	Profile   string `yaml:"profile,omitempty" json:"profile,omitempty" jsonschema:"description=Profile of the shared AWS configuration on the agent."`
	PathStyle *bool  `yaml:"path_style,omitempty" json:"path_style,omitempty" jsonschema:"description=http://host/bucket/key instead of http://bucket.host/key; true if not given and an endpoint is."`
}

// IsLab reports whether the target is the lab's own store.
func (t S3Target) IsLab() bool { return t.Endpoint == "" && t.Region == "" && t.Profile == "" }

// SetDefaults fills what the file leaves out.
func (s *S3) SetDefaults() {
	s.Operation = orDefault(s.Operation, "get")
	s.Objects = orDefault(s.Objects, 4)
	s.Pick = orDefault(s.Pick, "cycle")
	s.Prefix = orDefault(s.Prefix, "transferlab/")
	s.Populate = orDefault(s.Populate, "missing")
	s.Loop = orDefault(s.Loop, "closed")
	s.Distribution = orDefault(s.Distribution, "poisson")
	if s.Loop == "open" {
		s.Concurrency = orDefault(s.Concurrency, 256)
	}
	s.Concurrency = orDefault(s.Concurrency, 1)
	s.PartParallel = orDefault(s.PartParallel, 4)
	s.Verify = orDefault(s.Verify, "size")
	s.Connections = orDefault(s.Connections, "reuse")
	s.Timeout = orDefault(s.Timeout, Duration(minute))
}

// Limits of the section.
const (
	MaxS3Concurrency = 4096
	MaxS3Requests    = 100_000_000
	MaxS3Objects     = 1_000_000
)

// Validate reports every fault.
func (s *S3) Validate() error { return s.check("s3").err() }

func (s *S3) check(at string) faultList {
	var faults faultList
	word := func(field, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			faults.add(at+"."+field, "%q, want %s", value, oneOf(allowed))
		}
	}
	between := func(field string, v, low, high int) {
		if v < low || v > high {
			faults.add(at+"."+field, "%d, want %d to %d", v, low, high)
		}
	}
	if len(s.Buckets) == 0 || len(s.Buckets) > 1000 {
		faults.add(at+".buckets", "%d buckets, want 1 to 1000", len(s.Buckets))
	}
	for i, b := range s.Buckets {
		if !isBucketName(b) {
			faults.add(fmt.Sprintf("%s.buckets[%d]", at, i), "%q, want 3 to 63 lower-case letters, digits, dots and hyphens", b)
		}
	}
	if s.Target.Endpoint != "" {
		u, err := url.Parse(s.Target.Endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
			faults.add(at+".target.endpoint", "%q, want http://host:port or https://host, without credentials", s.Target.Endpoint)
		}
	}
	word("operation", s.Operation, "get", "put", "mixed")
	word("pick", s.Pick, "cycle", "random")
	word("populate", s.Populate, "missing", "never")
	word("loop", s.Loop, "closed", "open")
	word("wait_distribution", s.Distribution, "poisson", "exponential", "constant")
	word("verify", s.Verify, "size", "checksum")
	word("connections", s.Connections, "reuse", "fresh")
	if s.Operation == "mixed" && (s.PutShare <= 0 || s.PutShare >= 1) {
		faults.add(at+".put_share", "%g, want a share between 0 and 1 (operation is mixed)", s.PutShare)
	}
	if s.Operation != "mixed" && s.PutShare != 0 {
		faults.add(at+".put_share", "%g, but operation is %s: only mixed has a share", s.PutShare, s.Operation)
	}
	between("objects", s.Objects, 1, MaxS3Objects)
	between("concurrency", s.Concurrency, 1, MaxS3Concurrency)
	between("part_parallel", s.PartParallel, 1, 1024)
	between("retries", s.Retries, 0, 100)
	if len(s.Prefix) > 512 {
		faults.add(at+".prefix", "%d bytes, want at most 512", len(s.Prefix))
	}
	switch s.Loop {
	case "open":
		if !(s.Rate > 0 && s.Rate <= 1e6) {
			faults.add(at+".rate", "%g, want requests a second above 0, up to 1,000,000 (loop is open)", s.Rate)
		}
		if s.Wait != 0 {
			faults.add(at+".wait", "%s, but loop is open: its arrivals follow `rate`", s.Wait)
		}
	case "closed":
		if s.Rate != 0 {
			faults.add(at+".rate", "%g, but loop is closed: its requests follow `wait`", s.Rate)
		}
	}
	if s.Requests == 0 && s.Duration == 0 {
		faults.add(at+".requests", "not given, nor is `duration`: a trial must end")
	}
	if s.Requests != 0 {
		between("requests", s.Requests, 1, MaxS3Requests)
	}
	if s.PartSize != 0 && s.PartSize < 64<<10 {
		faults.add(at+".part_size", "%s, want 0 or at least 64KiB", s.PartSize)
	}
	if s.Timeout <= 0 {
		faults.add(at+".timeout", "%s, want more than 0", s.Timeout)
	}
	return faults
}

// checkGroups has nothing to say: clients of s3 know nothing of each other.
func (*S3) checkGroups(string, []Group) faultList { return nil }

// isBucketName follows the rules that all stores share. It is asked for every
// cell of a matrix, so it does without a regular expression.
func isBucketName(name string) bool {
	if len(name) < 3 || len(name) > 63 {
		return false
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if inside := i > 0 && i < len(name)-1; !letter && (!inside || c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// Key is the key of object number i of the section's size.
func (s *S3) Key(i int) string { return fmt.Sprintf("%s%s/%06d.bin", s.Prefix, s.Size, i) }
