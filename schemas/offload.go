package schemas

import (
	"fmt"
	"slices"
	"time"
)

// WorkloadOffload is clips from motion at the edge to a result in the store.
const WorkloadOffload = "offload"

// Kinds of events of the offload workload.
const (
	// KindClip is one clip's way from the trigger until its edge has heard of its
	// result: its timed operation.
	KindClip = "clip"
	// KindDetection is one try of a detector at one clip.
	KindDetection = "detection"
	// KindScaling is one decision of the autoscaler that changed something.
	KindScaling = "scaling"
)

// Policies of who looks at a clip.
const (
	// PolicySource offloads while the edge is busy with another clip.
	PolicySource = "source"
	// PolicyOverflow has the edge take its own clips, and offload what waits
	// behind a backlog (JetStream's priority groups).
	PolicyOverflow = "overflow"
	// PolicyAdaptive predicts both ways and takes the one that ends first.
	PolicyAdaptive = "adaptive"
	PolicyLocal    = "local" // always at the edge
	PolicyCloud    = "cloud" // always offloaded
)

// Policies lists them all.
func Policies() []string {
	return []string{PolicySource, PolicyOverflow, PolicyAdaptive, PolicyLocal, PolicyCloud}
}

// Offload is the section of the offload workload: every client is an edge with
// a spool, a decision policy and a detector of its own; the lab's detectors are
// the other side. Every field but scenes may be an axis of the matrix.
type Offload struct {
	Policy string `yaml:"policy,omitempty" json:"policy" jsonschema:"enum=source,enum=overflow,enum=adaptive,enum=local,enum=cloud,description=Who looks at a clip; source (busy: offload) if not given."`

	Clips   int      `yaml:"clips,omitempty" json:"clips" jsonschema:"minimum=1,description=Clips of each edge; 10 if not given."`
	Every   Duration `yaml:"every,omitempty" json:"every_ns" jsonschema:"description=Between the triggers of an edge (poisson: on average); 0s is all at once."`
	Arrival string   `yaml:"arrival,omitempty" json:"arrival" jsonschema:"enum=constant,enum=poisson,description=How triggers come; constant if not given."`

	Size       Size     `yaml:"size,omitempty" json:"size_bytes" jsonschema:"description=Of each clip; 10.5MB if not given."`
	Length     Duration `yaml:"length,omitempty" json:"length_ns" jsonschema:"description=Playing time of each clip which is also how long recording takes; 5s if not given."`
	Resolution string   `yaml:"resolution,omitempty" json:"resolution" jsonschema:"enum=1080p,enum=720p,enum=360p,description=1080p if not given."`
	Scenes     []string `yaml:"scenes,omitempty" json:"scenes,omitempty" jsonschema:"description=What the clips show; all scenes in turn if not given."`
	Recorded   bool     `yaml:"recorded,omitempty" json:"recorded" jsonschema:"description=The clips are there at their triggers: nobody waits for the recording."`

	Model     string  `yaml:"model,omitempty" json:"model" jsonschema:"description=What looks at the frames; the detectors' own if not given."`
	Sample    float64 `yaml:"sample,omitempty" json:"sample_per_s" jsonschema:"description=Frames looked at for each second of a clip; 1 if not given."`
	Threshold float64 `yaml:"threshold,omitempty" json:"threshold" jsonschema:"description=Least score of an object; the model's own if not given."`

	LocalSlots int   `yaml:"local_slots,omitempty" json:"local_slots" jsonschema:"minimum=1,description=Clips that an edge looks at at a time; 1 if not given."`
	LocalCPU   Share `yaml:"local_cpu,omitempty" json:"local_cpu" jsonschema:"description=Share of the time for which an edge's detector may run: what a slower machine would be; 100% if not given."`
	Behind     int   `yaml:"behind,omitempty" json:"behind" jsonschema:"minimum=1,description=Policy overflow: clips that may wait for the edge before the next is offloaded; 1 if not given."`

	Path        string   `yaml:"path,omitempty" json:"path" jsonschema:"enum=direct,enum=gateway,description=direct: to the store by presigned URLs; gateway: through it. direct if not given."`
	Connections int      `yaml:"connections,omitempty" json:"connections" jsonschema:"minimum=1,description=Of one edge's uploads; 4 if not given."`
	Uplink      BitRate  `yaml:"uplink,omitempty" json:"uplink_bps" jsonschema:"description=Rate at which an edge sends (a relay of its own in front of it; links of emulated sites are the real thing); unlimited if not given."`
	RTT         Duration `yaml:"rtt,omitempty" json:"rtt_ns" jsonschema:"description=Added to each round trip by the same relay."`
	OutageEvery Duration `yaml:"outage_every,omitempty" json:"outage_every_ns" jsonschema:"description=The relay cuts every connection this often …"`
	OutageFor   Duration `yaml:"outage_for,omitempty" json:"outage_for_ns" jsonschema:"description=… and lets none through for so long."`

	Backlog  int      `yaml:"backlog,omitempty" json:"backlog" jsonschema:"minimum=0,description=Clips of others that wait in the queue when the trial begins."`
	Patience Duration `yaml:"patience,omitempty" json:"patience_ns" jsonschema:"description=A clip without a result for this long after the last trigger counts as lost; 10m if not given."`
}

// Limits of the section.
const (
	MaxOffloadClips   = 100_000
	MaxOffloadBacklog = 1_000
)

// SetDefaults fills what the file leaves out.
func (o *Offload) SetDefaults() {
	o.Policy = orDefault(o.Policy, PolicySource)
	o.Clips = orDefault(o.Clips, 10)
	o.Arrival = orDefault(o.Arrival, "constant")
	o.Size = orDefault(o.Size, 10_500_000)
	o.Length = orDefault(o.Length, Duration(5*time.Second))
	o.Resolution = orDefault(o.Resolution, "1080p")
	o.Sample = orDefault(o.Sample, 1)
	o.LocalSlots = orDefault(o.LocalSlots, 1)
	o.LocalCPU = orDefault(o.LocalCPU, 1)
	o.Behind = orDefault(o.Behind, 1)
	o.Path = orDefault(o.Path, "direct")
	o.Connections = orDefault(o.Connections, 4)
	o.Patience = orDefault(o.Patience, Duration(10*time.Minute))
}

// Validate reports every fault.
func (o *Offload) Validate() error { return o.check("offload").err() }

// Detection is how every clip of the section is looked at.
func (o *Offload) Detection() Detection {
	return Detection{Model: o.Model, Sample: o.Sample, Threshold: o.Threshold}
}

func (o *Offload) check(at string) faultList {
	var faults faultList
	word := func(field, v string, allowed ...string) {
		if !slices.Contains(allowed, v) {
			faults.add(at+"."+field, "%q, want %s", v, oneOf(allowed))
		}
	}
	between := func(field string, v, low, high int) {
		if v < low || v > high {
			faults.add(at+"."+field, "%d, want %d to %d", v, low, high)
		}
	}
	word("policy", o.Policy, Policies()...)
	word("arrival", o.Arrival, "constant", "poisson")
	word("resolution", o.Resolution, "1080p", "720p", "360p")
	word("path", o.Path, "direct", "gateway")
	between("clips", o.Clips, 1, MaxOffloadClips)
	between("local_slots", o.LocalSlots, 1, 64)
	between("behind", o.Behind, 1, 1000)
	between("connections", o.Connections, 1, 64)
	between("backlog", o.Backlog, 0, MaxOffloadBacklog)
	if o.Arrival == "poisson" && o.Every <= 0 {
		faults.add(at+".every", "%s, want more than 0s (arrival is poisson)", o.Every)
	}
	if o.Size < 50_000 || o.Size > MaxClipBytes {
		faults.add(at+".size", "%s, want %s to %s", o.Size, Size(50_000), Size(MaxClipBytes))
	}
	if o.Length < Duration(time.Second) || o.Length > Duration(10*time.Minute) {
		faults.add(at+".length", "%s, want 1s to 10m", o.Length)
	}
	if len(o.Scenes) > 64 {
		faults.add(at+".scenes", "%d scenes, want at most 64", len(o.Scenes))
	}
	for i, s := range o.Scenes {
		if !ModelName(s) {
			faults.add(fmt.Sprintf("%s.scenes[%d]", at, i), "%s, want the name of a scene", quoted(s))
		}
	}
	d := o.Detection()
	if d.Model != "" && !ModelName(d.Model) {
		faults.add(at+".model", "%s, want lower-case letters, digits, dots, hyphens and underscores, at most 64", quoted(d.Model))
	}
	if !(o.Sample > 0 && o.Sample <= MaxSampleRate) {
		faults.add(at+".sample", "%g, want above 0, up to %d frames a second", o.Sample, MaxSampleRate)
	}
	if !(o.Threshold >= 0 && o.Threshold <= 1) {
		faults.add(at+".threshold", "%g, want 0 to 1", o.Threshold)
	}
	if o.LocalCPU < 0.01 || o.LocalCPU > 1 {
		faults.add(at+".local_cpu", "%s, want 1%% to 100%%", o.LocalCPU)
	}
	if o.Uplink != 0 && o.Uplink < 64_000 {
		faults.add(at+".uplink", "%s, want 64kbit or more", o.Uplink)
	}
	if o.RTT > Duration(10*time.Second) {
		faults.add(at+".rtt", "%s, want at most 10s", o.RTT)
	}
	if (o.OutageEvery == 0) != (o.OutageFor == 0) || o.OutageFor > 0 && o.OutageFor >= o.OutageEvery {
		faults.add(at+".outage_for", "%s in every %s, want both or none, and the outage shorter", o.OutageFor, o.OutageEvery)
	}
	if o.Patience <= 0 {
		faults.add(at+".patience", "%s, want more than 0s", o.Patience)
	}
	return faults
}

// checkGroups has nothing to say: edges know nothing of each other.
func (*Offload) checkGroups(string, []Group) faultList { return nil }
