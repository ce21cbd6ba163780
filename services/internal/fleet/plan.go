package fleet

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

// plan is what is on disk before anything is asked for.
type plan struct {
	Version  int           `json:"version"`
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Created  time.Time     `json:"created"`
	Run      uuid.UUID     `json:"run,omitzero"`
	Spec     schemas.Fleet `json:"spec"`
	Service  string        `json:"service"`
	Lifetime time.Duration `json:"lifetime_ns"`
	access   BusAccess     // in a file of its own, which goes with the fleet
	dir      string
}

const planVersion = 1

// Files of a fleet's directory.
const (
	filePlan    = "plan.json"
	fileAccess  = "access.json"
	fileJournal = "journal"
)

func newPlan(o *Options) *plan {
	id := o.Name + "-" + strings.ToLower(rand.Text()[:6])
	return &plan{
		Version: planVersion, ID: id, Name: o.Name, Created: time.Now().UTC().Truncate(time.Millisecond), Run: o.Run, Spec: o.Spec,
		Service: o.Service, Lifetime: o.Lifetime, access: o.Bus, dir: filepath.Join(fleetsDir(o.Dir), id),
	}
}

func fleetsDir(dir string) string { return filepath.Join(dir, "fleets") }

// save writes the plan: last the file that makes the directory a fleet.
func (p *plan) save() error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("create directory of the fleet: %w", err)
	}
	for _, f := range []struct {
		name string
		v    any
	}{{fileAccess, p.access}, {filePlan, p}} {
		data, err := json.MarshalIndent(f.v, "", "  ")
		if err != nil {
			return fmt.Errorf("encode plan of the fleet: %w", err)
		}
		if err := writeDurable(filepath.Join(p.dir, f.name), append(data, '\n')); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(p.dir))
}

// readPlan reads a fleet's directory; fs.ErrNotExist if it is none.
func readPlan(dir string) (*plan, error) {
	data, err := readLimited(filepath.Join(dir, filePlan), maxPlan)
	if err != nil {
		return nil, err
	}
	p := &plan{dir: dir}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("plan in %s: %w", dir, err)
	}
	if p.Version != planVersion || p.ID != filepath.Base(dir) || !fleetName.MatchString(p.Name) {
		return nil, fmt.Errorf("plan in %s: version %d of fleet %q, want version %d of %q", dir, p.Version, p.ID, planVersion, filepath.Base(dir))
	}
	if err := p.Spec.Validate(); err != nil {
		return nil, fmt.Errorf("plan in %s: %w", dir, err)
	}
	data, err = readLimited(filepath.Join(dir, fileAccess), maxPlan)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("bus access in %s: %w", dir, err)
	default:
		if err := json.Unmarshal(data, &p.access); err != nil {
			return nil, fmt.Errorf("bus access in %s: %w", dir, err)
		}
	}
	return p, nil
}

// same says in what a fleet differs from what is asked for.
func (p *plan) same(o *Options) error {
	var errs []error
	differs := func(what string) { errs = append(errs, errors.New(what)) }
	if !reflect.DeepEqual(p.Spec, o.Spec) {
		differs("another specification")
	}
	if p.access != o.Bus {
		differs("another bus access")
	}
	if p.Run != o.Run {
		differs("another run")
	}
	if p.Service != o.Service || p.Lifetime != o.Lifetime {
		differs("another service or lifetime")
	}
	if errs == nil {
		return nil
	}
	return &UsageError{fmt.Errorf("fleet %s is there already as %s, with %w: `fleet down %s` removes it", p.Name, p.ID, errors.Join(errs...), p.Name)}
}

// record is a fleet on disk.
type record struct {
	plan    *plan
	entries []entry
}

// records reads every fleet of a lab, newest first. Directories without a plan
// are of processes that were killed before they asked for anything.
func records(dir string) ([]record, error) {
	found, err := os.ReadDir(fleetsDir(dir))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("list fleets: %w", err)
	}
	var all []record
	for _, d := range found {
		if !d.IsDir() {
			continue
		}
		p, err := readPlan(filepath.Join(fleetsDir(dir), d.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r := record{plan: p}
		data, err := readLimited(filepath.Join(p.dir, fileJournal), maxJournal)
		if err == nil {
			r.entries, _, err = parseJournal(data)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("journal of fleet %s: %w", p.ID, err)
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b record) int { return b.plan.Created.Compare(a.plan.Created) })
	return all, nil
}

// find returns the open fleet of a name, or the fleet of an id.
func find(dir, name string) (*record, error) {
	all, err := records(dir)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.plan.ID == name || r.plan.Name == name && state(r.entries) != StateClosed {
			return &r, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
}

func state(entries []entry) string {
	s := StateStarting
	for _, e := range entries {
		switch {
		case e.Step == stepClosed:
			s = StateClosed
		case e.Step == stepDown && s != StateClosed:
			s = StateEnding
		case e.Step == stepUp && s == StateStarting:
			s = StateUp
		}
	}
	return s
}

func (p *plan) fleet(entries []entry) *Fleet {
	f := &Fleet{ID: p.ID, Name: p.Name, Run: p.Run, Created: p.Created, State: state(entries), Spec: p.Spec, Lifetime: p.Lifetime}
	f.Members = members(entries)
	for _, e := range entries {
		if e.Step == stepClosed {
			f.Summary = e.Summary
		}
	}
	return f
}

// members are the instances the journal knows, each as it was last seen.
func members(entries []entry) []Member {
	var all []Member
	for _, e := range entries {
		for _, m := range e.Members {
			at := slices.IndexFunc(all, func(o Member) bool { return o.InstanceID == m.InstanceID })
			if at < 0 {
				all = append(all, m)
			} else {
				all[at] = m
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Member) int { return strings.Compare(a.Agent, b.Agent) })
	return all
}

// List returns the fleets of a lab, newest first, those that are gone included.
func List(dir string) ([]Fleet, error) {
	all, err := records(dir)
	if err != nil {
		return nil, err
	}
	fleets := make([]Fleet, 0, len(all))
	for _, r := range all {
		fleets = append(fleets, *r.plan.fleet(r.entries))
	}
	return fleets, nil
}

// Load returns a fleet by its name or id as its journal knows it.
func Load(dir, name string) (*Fleet, error) {
	r, err := find(dir, name)
	if err != nil {
		return nil, err
	}
	return r.plan.fleet(r.entries), nil
}

func regionsOf(f *schemas.Fleet) []string {
	regions := map[string]bool{}
	for _, s := range f.Sites {
		regions[s.Region] = true
	}
	return slices.Sorted(maps.Keys(regions))
}

// sites of a region, in order.
func (p *plan) sites(region string) []string {
	var sites []string
	for _, name := range slices.Sorted(maps.Keys(p.Spec.Sites)) {
		if p.Spec.Sites[name].Region == region {
			sites = append(sites, name)
		}
	}
	return sites
}

// resourceName is the name of the fleet's group and key in each region.
func resourceName(id string) string { return "transferlab-" + id }

func (p *plan) keyFile(region string) string {
	return filepath.Join(p.dir, "key-"+region+".pem")
}

// token makes the launch of a site's instances idempotent.
func token(id, site string) string {
	sum := sha256.Sum256([]byte(id + "/" + site))
	return hex.EncodeToString(sum[:16])
}

// agentPrefix is what the names of a site's agents begin with; with a hyphen
// and the launch index they are at most 63 characters.
func agentPrefix(id, site string) string {
	name := id + "-" + site
	if len(name) <= 58 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:51] + "-" + hex.EncodeToString(sum[:3])
}
