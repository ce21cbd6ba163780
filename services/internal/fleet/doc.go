// Package fleet makes cloud instances that exist for a run and are gone after
// it: EC2 instances in several regions, each an agent at a site that joins the
// lab's bus by TLS.
//
// A fleet is a plan on disk before anything is asked for, and a journal that
// says before each step that it is about to be taken and after it what came of
// it, both in DIR/fleets/<id>. A process that is killed at any step leaves a
// fleet that [Up] goes on with and [Down] removes, whatever the journal still
// says: every thing carries the fleet's id from the moment it exists, in its
// name, its tags or its idempotency token, and Down looks for all three until
// nothing is there and nothing that was asked for without an answer can still
// appear.
//
// Nobody but a fleet's own members may reach them: every rule for traffic into
// an instance names a member's address, the fleet's own security group or, if a
// key pair was asked for, the network that may log in.
package fleet

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

// Tags that everything of a fleet carries.
const (
	TagFleet = "transferlab:fleet" // the fleet's id
	TagSite  = "transferlab:site"
	TagRun   = "transferlab:run"
)

// Defaults and bounds.
const (
	DefaultLifetime = 4 * time.Hour
	MinLifetime     = 10 * time.Minute
	MaxLifetime     = 7 * 24 * time.Hour
	DefaultSettle   = 30 * time.Second
	DefaultService  = "prober"
)

// BusAccess is how the instances join the bus: with credentials made for this
// fleet alone, since everybody in the account may read them.
type BusAccess struct {
	URL      string `json:"url"` // tls://host:port
	CA       string `json:"ca,omitempty"`
	User     string `json:"user"`
	Password string `json:"password"`
}

// Options say which fleet.
type Options struct {
	Dir  string // state directory of the lab; a fleet is DIR/fleets/<id>
	Name string // at most one open fleet has it
	Spec schemas.Fleet
	Run  uuid.UUID // the run that it exists for, or zero
	Bus  BusAccess
	// Service is what the instances run; "" is the prober.
	Service string
	// Lifetime after which instances end themselves, whatever became of the
	// lab; 0 is DefaultLifetime.
	Lifetime time.Duration
	// Settle is how long Down looks for what was asked for when no answer
	// came; 0 is DefaultSettle.
	Settle time.Duration
	// Regions that Down looks through beside the plan's.
	Regions []string
	// Profile for Down when there is no plan.
	Profile string
	// Progress is told each step, from several goroutines one at a time.
	Progress func(string)
}

var (
	fleetName  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,23}$`)
	regionName = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)
	unitName   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
)

// UsageError says that what was asked for cannot be a fleet.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }

func (e *UsageError) Unwrap() error { return e.err }

// ErrNotFound says that no open fleet has the name.
var ErrNotFound = errors.New("no such fleet")

func (o *Options) setDefaults() {
	o.Spec.SetDefaults()
	if o.Service == "" {
		o.Service = DefaultService
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	if o.Settle == 0 {
		o.Settle = DefaultSettle
	}
	if o.Bus.URL == "" {
		o.Bus.URL = o.Spec.Bus
	}
}

// Validate reports every fault of what Up is given.
func (o *Options) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !fleetName.MatchString(o.Name) {
		add("fleet name %q, want lower-case letters, digits and hyphens, at most 24", o.Name)
	}
	if err := o.Spec.Validate(); err != nil {
		errs = append(errs, err)
	}
	if !unitName.MatchString(o.Service) {
		add("service %q, want the name of a service", o.Service)
	}
	if o.Lifetime < MinLifetime || o.Lifetime > MaxLifetime {
		add("lifetime %s, want %s to %s", o.Lifetime, MinLifetime, MaxLifetime)
	}
	if o.Settle < 0 || o.Settle > time.Hour {
		add("settle %s, want 0 to 1h", o.Settle)
	}
	if u, err := url.Parse(o.Bus.URL); err != nil || u.Scheme != "tls" || u.Host == "" || u.User != nil || strings.ContainsAny(o.Bus.URL, "\x00\r\n") {
		add("bus %q, want tls://host:port without credentials: the address at which instances reach the lab's bus", o.Bus.URL)
	}
	if o.Bus.User == "" || o.Bus.Password == "" || strings.ContainsRune(o.Bus.User+o.Bus.Password, 0) {
		add("bus user and password: missing, want credentials made for this fleet")
	}
	if o.Bus.CA != "" && !validCA(o.Bus.CA) {
		add("certificate authority of the bus: want certificates in PEM")
	}
	for _, r := range o.Regions {
		if !regionName.MatchString(r) {
			add("region %q, want one such as us-west-2", r)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return &UsageError{errors.Join(errs...)}
}

func validCA(text string) bool {
	rest, found := []byte(text), false
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return found && strings.TrimSpace(string(rest)) == ""
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil || block.Type != "CERTIFICATE" {
			return false
		}
		found = true
	}
}

// Fleet is a fleet as its journal knows it.
type Fleet struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Run      uuid.UUID     `json:"run,omitzero"`
	Created  time.Time     `json:"created"`
	State    string        `json:"state"`
	Spec     schemas.Fleet `json:"spec"`
	Members  []Member      `json:"members,omitempty"`
	Lifetime time.Duration `json:"lifetime_ns"`
	// Summary is there once the fleet is gone.
	Summary *Summary `json:"summary,omitempty"`
}

// States of a fleet.
const (
	StateStarting = "starting" // begun; Up goes on
	StateUp       = "up"
	StateEnding   = "ending" // Down was begun; only Down goes on
	StateClosed   = "closed" // nothing is left
)

// Member is one instance.
type Member struct {
	Site       string     `json:"site"`
	Region     string     `json:"region"`
	InstanceID string     `json:"instance_id"`
	Type       string     `json:"type"`
	Zone       string     `json:"zone,omitempty"`
	Agent      string     `json:"agent"` // the name it announces on the bus
	Public     netip.Addr `json:"public,omitzero"`
	Private    netip.Addr `json:"private,omitzero"`
	Launched   time.Time  `json:"launched"`
}

// Regions of the fleet, in order.
func (f *Fleet) Regions() []string { return regionsOf(&f.Spec) }

// Expect compares where an agent says that it is with where the plan put its
// site: measurements between the wrong places must not count.
func (f *Fleet) Expect(a schemas.Agent) error {
	s, known := f.Spec.Sites[a.Site]
	if !known {
		return fmt.Errorf("agent %s announces site %q, which fleet %s does not have", a.Name, a.Site, f.ID)
	}
	if region := a.Labels[LabelRegion]; region != s.Region {
		return fmt.Errorf("agent %s of site %s says it is in region %q, the plan says %s", a.Name, a.Site, region, s.Region)
	}
	at := slices.IndexFunc(f.Members, func(m Member) bool { return m.InstanceID == a.Labels[LabelInstance] })
	if at < 0 {
		return fmt.Errorf("agent %s says it is instance %q, which is not one of fleet %s", a.Name, a.Labels[LabelInstance], f.ID)
	}
	if m := f.Members[at]; m.Site != a.Site {
		return fmt.Errorf("agent %s announces site %s, but instance %s was started for %s", a.Name, a.Site, m.InstanceID, m.Site)
	}
	return nil
}
