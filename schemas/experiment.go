package schemas

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Experiment is one file: what is measured, where, how often, and what must
// hold.
type Experiment struct {
	Name        string `yaml:"name" jsonschema:"required,pattern=^[a-z0-9][a-z0-9-]{0\\,62}$,description=Short name of the experiment: lower-case letters digits and hyphens."`
	Description string `yaml:"description,omitempty" jsonschema:"description=What the experiment asks."`
	Workload    string `yaml:"workload" jsonschema:"required,enum=s3,enum=probe,enum=swarm,enum=offload,description=What is measured."`
	Seed        uint64 `yaml:"seed,omitempty" jsonschema:"description=Fixes every random choice: same file and seed give the same schedule. 1 if not given; --seed overrides it."`
	// Groups say who takes part.
	Groups []Group `yaml:"groups" jsonschema:"required,minItems=1,description=Who takes part: clients at sites."`
	// Matrix varies fields of the workload's section.
	Matrix     Matrix      `yaml:"matrix,omitempty"`
	Trials     Trials      `yaml:"trials,omitempty"`
	Thresholds []Threshold `yaml:"thresholds,omitempty" jsonschema:"description=What must hold: a miss turns into exit code 99."`
	Health     Health      `yaml:"health,omitempty"`
	// Sites and Links emulate a network on the lab's machine; the run's agents
	// are started inside it.
	Sites   map[string]Link `yaml:"sites,omitempty" jsonschema:"description=Sites emulated on this machine (needs root); the value says what the network inside the site is like."`
	Links   map[string]Link `yaml:"links,omitempty" jsonschema:"description=What lies between two emulated sites: oregon-dublin: {rtt: 140ms}."`
	Fleet   *Fleet          `yaml:"fleet,omitempty" jsonschema:"description=Cloud instances that are started for the run and gone after it."`
	S3      *S3             `yaml:"s3,omitempty"`
	Probe   *Probe          `yaml:"probe,omitempty"`
	Swarm   *Swarm          `yaml:"swarm,omitempty"`
	Offload *Offload        `yaml:"offload,omitempty"`
}

// Group is a set of clients at one site.
type Group struct {
	Name    string            `yaml:"name,omitempty" json:"name" jsonschema:"description=Name for the matrix axis group; the site if not given."`
	Site    string            `yaml:"site" json:"site" jsonschema:"required,description=Site of the agents."`
	Labels  map[string]string `yaml:"labels,omitempty" json:"labels,omitempty" jsonschema:"description=Labels an agent must have such as instance_type; kept with every event."`
	Agents  int               `yaml:"agents,omitempty" json:"agents" jsonschema:"minimum=1,description=How many agents share the clients; 1 if not given."`
	Clients int               `yaml:"clients,omitempty" json:"clients" jsonschema:"minimum=1,description=How many clients; 1 if not given."`
}

// Trials say how often and in what order cells run.
type Trials struct {
	Repeat  int      `yaml:"repeat,omitempty" jsonschema:"minimum=1,description=Trials of each cell; 1 if not given."`
	Repeats []Repeat `yaml:"repeats,omitempty" jsonschema:"description=Other numbers of trials for some cells; the first that matches a cell counts."`
	Order   string   `yaml:"order,omitempty" jsonschema:"enum=shuffled,enum=listed,description=Order of the trials: shuffled by the seed (so that drift of the machine does not favour a cell) or as listed; shuffled if not given."`
	Timeout Duration `yaml:"timeout,omitempty" jsonschema:"description=A trial that takes longer is ended and tried again; 15m if not given."`
	Retries *int     `yaml:"retries,omitempty" jsonschema:"minimum=0,description=How often a failed trial is tried again; 2 if not given."`
	Pause   Duration `yaml:"pause,omitempty" jsonschema:"description=Quiet time between trials."`
}

// Repeat is how many trials some cells have.
type Repeat struct {
	Where map[string]string `yaml:"where" json:"where" jsonschema:"required,description=Cells with these values of the matrix."`
	Count int               `yaml:"count" json:"count" jsonschema:"required,minimum=1,description=Trials of each of them."`
}

// RepeatsOf is how many trials a cell has.
func (e *Experiment) RepeatsOf(values []Attr) int {
	for _, r := range e.Trials.Repeats {
		if r.matches(values) {
			return r.Count
		}
	}
	return e.Trials.Repeat
}

func (r Repeat) matches(values []Attr) bool {
	for name, want := range r.Where {
		i := slices.IndexFunc(values, func(a Attr) bool { return a.Key == name })
		if i < 0 || !SameValue(values[i].Value, want) {
			return false
		}
	}
	return true
}

// SameValue compares values of the matrix as sizes or time spans where they
// are: `1000kB` is `1MB`.
func SameValue(a, b string) bool {
	if a == b {
		return true
	}
	if x, err := ParseSize(a); err == nil {
		if y, err := ParseSize(b); err == nil {
			return x == y
		}
	}
	if x, err := ParseDuration(a); err == nil {
		if y, err := ParseDuration(b); err == nil {
			return x == y
		}
	}
	return false
}

// Threshold is a condition on one metric of the report, for every cell that
// matches.
type Threshold struct {
	Metric string            `yaml:"metric" json:"metric" jsonschema:"required,description=A metric of the report."`
	Where  map[string]string `yaml:"where,omitempty" json:"where,omitempty" jsonschema:"description=Only cells with these values of the matrix."`
	Max    string            `yaml:"max,omitempty" json:"max,omitempty" jsonschema:"description=The most allowed: 500ms or 0.01 or 20MB."`
	Min    string            `yaml:"min,omitempty" json:"min,omitempty" jsonschema:"description=The least allowed."`
}

// Health is what a run demands of itself: outside these limits it is INVALID.
type Health struct {
	DispatchLag Duration `yaml:"dispatch_lag_p99,omitempty" json:"dispatch_lag_ns" jsonschema:"description=How late our own generator may send at the 99th percentile; 25ms if not given."`
	ClockBound  Duration `yaml:"clock_bound,omitempty" json:"clock_bound_ns" jsonschema:"description=How uncertain an agent's clock offset may be; 100ms if not given."`
	CPU         float64  `yaml:"generator_cpu,omitempty" json:"generator_cpu" jsonschema:"minimum=0,maximum=1,description=Share of its machine the generator's process may use; no limit if not given."`
}

// Bounds turn a threshold's texts into numbers: nanoseconds for latencies,
// bytes a second, or plain numbers; nil where no bound is given.
func (t Threshold) Bounds() (lowest, highest *float64, err error) {
	parse := func(field, text string) (*float64, error) {
		if text == "" {
			return nil, nil
		}
		var v float64
		switch {
		case t.Metric == "bytes_per_s":
			s, err := ParseSize(strings.TrimSuffix(text, "/s"))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", field, err)
			}
			v = float64(s)
		case slices.Contains([]string{
			"error_rate", "loss", "duplicated", "reordered", "copy_efficiency", "bound_efficiency", "unattributed",
			"precision", "recall", "local_share", "unaccounted", "differing",
		}, t.Metric):
			var share Share
			if err := share.UnmarshalText([]byte(text)); err != nil {
				return nil, fmt.Errorf("%s: %w", field, err)
			}
			v = float64(share)
		case slices.Contains([]string{"requests_per_s", "ratio", "spread"}, t.Metric):
			if _, err := fmt.Sscanf(text, "%g", &v); err != nil || v < 0 {
				return nil, fmt.Errorf("%s: %q, want a number of 0 or more", field, text)
			}
		default:
			d, err := ParseDuration(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", field, err)
			}
			v = float64(d)
		}
		return &v, nil
	}
	if lowest, err = parse("min", t.Min); err != nil {
		return nil, nil, err
	}
	highest, err = parse("max", t.Max)
	return lowest, highest, err
}

// SetDefaults fills what the file leaves out.
func (e *Experiment) SetDefaults() {
	if e.Seed == 0 {
		e.Seed = 1
	}
	for i := range e.Groups {
		g := &e.Groups[i]
		if g.Name == "" {
			g.Name = g.Site
		}
		g.Agents, g.Clients = orDefault(g.Agents, 1), orDefault(g.Clients, 1)
	}
	t := &e.Trials
	t.Repeat, t.Order = orDefault(t.Repeat, 1), orDefault(t.Order, "shuffled")
	t.Timeout = orDefault(t.Timeout, Duration(15*minute))
	if t.Retries == nil {
		t.Retries = ptr(2)
	}
	h := &e.Health
	h.DispatchLag, h.ClockBound = orDefault(h.DispatchLag, Duration(25*millisecond)), orDefault(h.ClockBound, Duration(100*millisecond))
	if e.Fleet != nil {
		e.Fleet.SetDefaults()
	}
	if s, ok := e.Section().(interface{ SetDefaults() }); ok {
		s.SetDefaults()
	}
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Limits on the size of an experiment.
const (
	MaxTrials  = 100_000
	MaxClients = 10_000
	MaxGroups  = 256
)

// Check reports every fault of the values (after [Experiment.SetDefaults]), each under the path of its field
// (`s3.size`), which the decoder turns into a line of the file.
func (e *Experiment) Check() []Fault {
	var faults faultList
	name := regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	label := regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	if !name.MatchString(e.Name) {
		faults.add("name", "%q, want lower-case letters, digits and hyphens, at most 63", e.Name)
	}
	if !slices.Contains(Workloads(), e.Workload) {
		faults.add("workload", "%q, want %s", e.Workload, oneOf(Workloads()))
	}
	if len(e.Groups) == 0 || len(e.Groups) > MaxGroups {
		faults.add("groups", "%d groups, want 1 to %d", len(e.Groups), MaxGroups)
	}
	clients, seen := 0, map[string]bool{}
	for i, g := range e.Groups {
		at := fmt.Sprintf("groups[%d]", i)
		if !name.MatchString(g.Site) {
			faults.add(at+".site", "%q, want lower-case letters, digits and hyphens, at most 63", g.Site)
		}
		if seen[g.Name] {
			faults.add(at, "a second group called %q: give one of them a name of its own", g.Name)
		}
		seen[g.Name] = true
		if g.Agents < 1 || g.Agents > g.Clients {
			faults.add(at+".agents", "%d, want 1 to the number of clients (%d)", g.Agents, g.Clients)
		}
		if g.Clients < 1 {
			faults.add(at+".clients", "%d, want 1 or more", g.Clients)
		}
		for k := range g.Labels {
			if !label.MatchString(k) {
				faults.add(at+".labels", "label %q, want lower-case letters, digits and underscores", k)
			}
		}
		clients += max(g.Clients, 0)
	}
	if clients > MaxClients {
		faults.add("groups", "%d clients in all, at most %d are allowed", clients, MaxClients)
	}
	if e.Trials.Repeat < 1 || e.Trials.Repeat > MaxTrials {
		faults.add("trials.repeat", "%d, want 1 to %d", e.Trials.Repeat, MaxTrials)
	}
	for i, r := range e.Trials.Repeats {
		at := fmt.Sprintf("trials.repeats[%d]", i)
		if r.Count < 1 || r.Count > MaxTrials {
			faults.add(at+".count", "%d, want 1 to %d", r.Count, MaxTrials)
		}
		if len(r.Where) == 0 {
			faults.add(at+".where", "empty, want values of the matrix")
		}
		for name := range r.Where {
			if !slices.ContainsFunc(e.Matrix, func(a Axis) bool { return a.Name == name }) {
				faults.add(at+".where", "%q is no axis of the matrix", name)
			}
		}
	}
	if r := *e.Trials.Retries; r < 0 || r > 100 {
		faults.add("trials.retries", "%d, want 0 to 100", r)
	}
	if orders := []string{"shuffled", "listed"}; !slices.Contains(orders, e.Trials.Order) {
		faults.add("trials.order", "%q, want %s", e.Trials.Order, oneOf(orders))
	}
	for i, t := range e.Thresholds {
		at := fmt.Sprintf("thresholds[%d]", i)
		if known := thresholdMetrics(e.Workload); !slices.Contains(known, t.Metric) {
			faults.add(at+".metric", "%q, want %s", t.Metric, oneOf(known))
			continue
		}
		if t.Max == "" && t.Min == "" {
			faults.add(at, "has neither max nor min")
		}
		if _, _, err := t.Bounds(); err != nil {
			field, text, _ := strings.Cut(err.Error(), ": ")
			faults.add(at+"."+field, "%s", text)
		}
	}
	if e.Health.CPU < 0 || e.Health.CPU > 1 {
		faults.add("health.generator_cpu", "%g, want 0 to 1", e.Health.CPU)
	}
	faults = append(faults, e.checkNetwork(name.MatchString)...)
	faults = append(faults, e.checkFleet()...)
	if e.Section() == nil {
		if slices.Contains(Workloads(), e.Workload) {
			faults.add("workload", "%s needs a section `%s:`", e.Workload, e.Workload)
		}
		return faults
	}
	if s, ok := e.Section().(section); ok {
		faults = append(faults, s.check(e.Workload)...)
	}
	return append(faults, e.checkMatrix()...)
}

func (e *Experiment) checkFleet() faultList {
	if e.Fleet == nil {
		return nil
	}
	faults := e.Fleet.check("fleet")
	wanted := map[string]int{}
	for i, g := range e.Groups {
		wanted[g.Site] += g.Agents
		s, known := e.Fleet.Sites[g.Site]
		switch {
		case !known:
			faults.add(fmt.Sprintf("groups[%d].site", i), "%q is not one of the fleet's sites: %s", g.Site, strings.Join(slices.Sorted(maps.Keys(e.Fleet.Sites)), ", "))
		case wanted[g.Site] > s.Count:
			faults.add(fmt.Sprintf("groups[%d].agents", i), "%d agents at %s in all, but fleet.sites.%s.count is %d", wanted[g.Site], g.Site, g.Site, s.Count)
		}
	}
	return faults
}

func oneOf(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return "one of " + strings.Join(words, ", ")
}
