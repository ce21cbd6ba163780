package schemas

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// States of a run.
const (
	RunQueued     = "queued"
	RunRunning    = "running"
	RunCancelling = "cancelling"
	RunCancelled  = "cancelled"
	RunFailed     = "failed" // a trial failed for good
	RunDone       = "done"
)

// Verdicts on a finished run.
const (
	VerdictHeld    = "held"    // every threshold holds
	VerdictMissed  = "missed"  // at least one does not
	VerdictInvalid = "invalid" // the run was not healthy: its figures say nothing
)

// Run is one execution of an experiment: the document the scheduler keeps.
type Run struct {
	ID           uuid.UUID   `json:"id"`
	Name         string      `json:"name"`
	Workload     string      `json:"workload"`
	Seed         uint64      `json:"seed"`
	ScheduleHash string      `json:"schedule_hash"`
	File         string      `json:"file"` // the experiment file's text
	Recurring    string      `json:"recurring,omitempty"`
	State        string      `json:"state"`
	Error        string      `json:"error,omitempty"`   // why it failed
	Invalid      bool        `json:"invalid,omitempty"` // it failed because its conditions did not hold: verdict INVALID
	Created      time.Time   `json:"created"`
	Started      time.Time   `json:"started,omitzero"`
	Finished     time.Time   `json:"finished,omitzero"`
	Trials       int         `json:"trials"`
	TrialsDone   int         `json:"trials_done"`
	Attempt      uint16      `json:"attempt"` // last attempt of the trial that is next
	Version      string      `json:"version"`
	Placements   []Placement `json:"placements,omitempty"` // of the last trial
}

// Ended reports whether nothing more will happen in the run.
func (r *Run) Ended() bool {
	return r.State == RunDone || r.State == RunFailed || r.State == RunCancelled
}

// Placement says which agent stands for a group.
type Placement struct {
	Group string `json:"group"`
	Site  string `json:"site"`
	Agent string `json:"agent"`
	// Emulated is set when the agent is not at the site: it stands in for any
	// site, so the run says nothing about distance.
	Emulated bool `json:"emulated,omitempty"`
}

// Agent is one process that takes tasks, as it announces itself.
type Agent struct {
	Name    string            `json:"name"`
	Start   string            `json:"start"` // identity of this start of the process
	Service string            `json:"service"`
	Site    string            `json:"site"` // SiteAny stands in for every site
	Labels  map[string]string `json:"labels,omitempty"`
	// Workloads the agent can execute.
	Workloads []string  `json:"workloads"`
	Version   string    `json:"version"`
	CPUs      int       `json:"cpus"`
	Seen      time.Time `json:"seen"`
	Busy      int       `json:"busy"` // tasks in work
	// Run is set for an agent that exists for one run alone: it takes part in
	// no other, and that run is done by such agents only.
	Run uuid.UUID `json:"run,omitzero"`
	// Address at which other agents reach it.
	Address string `json:"address,omitempty"`
}

// SiteAny is the site of an agent that stands in for any.
const SiteAny = "*"

// Validate checks an announcement.
func (a *Agent) Validate() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"name", a.Name},
		{"start", a.Start},
		{"service", a.Service},
		{"site", a.Site},
	} {
		if f.value == "" || len(f.value) > 128 {
			errs = append(errs, fmt.Errorf("agent.%s: %q, want 1 to 128 bytes", f.name, f.value))
		}
	}
	if len(a.Labels) > 64 {
		errs = append(errs, fmt.Errorf("agent.labels: %d labels, want at most 64", len(a.Labels)))
	}
	return errors.Join(errs...)
}

// Stands reports whether the agent can stand for a group, and whether it is
// really at the group's site with the group's labels.
func (a *Agent) Stands(g Group) (can, real bool) {
	if a.Site == SiteAny {
		return true, false
	}
	if a.Site != g.Site {
		return false, false
	}
	for k, v := range g.Labels {
		if a.Labels[k] != v {
			return false, false
		}
	}
	return true, true
}

// Task is what one agent does in one attempt of one trial.
type Task struct {
	Run      uuid.UUID       `json:"run"`
	Trial    uint32          `json:"trial"`
	Attempt  uint16          `json:"attempt"`
	Workload string          `json:"workload"`
	Agent    string          `json:"agent"`
	Clients  []Client        `json:"clients"`
	Section  json.RawMessage `json:"section"` // the workload's section of this cell
	Seed     uint64          `json:"seed"`
	Timeout  time.Duration   `json:"timeout_ns"` // from the start
	Agents   int             `json:"agents"`     // how many take part in the attempt, this one included
}

// Client is one of the trial's clients.
type Client struct {
	// Index is the client's number in the trial, over all agents: it chooses
	// the client's schedule.
	Index  int               `json:"index"`
	Group  string            `json:"group"`
	Site   string            `json:"site"`
	Labels map[string]string `json:"labels,omitempty"`
}

// Validate checks a task.
func (t *Task) Validate() error {
	var errs []error
	if t.Run == uuid.Nil {
		errs = append(errs, errors.New("task.run: missing"))
	}
	if t.Attempt == 0 {
		errs = append(errs, errors.New("task.attempt: 0, want 1 or more"))
	}
	if t.Workload == "" || t.Agent == "" {
		errs = append(errs, errors.New("task.workload, task.agent: both are required"))
	}
	if len(t.Clients) == 0 || len(t.Clients) > MaxClients {
		errs = append(errs, fmt.Errorf("task.clients: %d, want 1 to %d", len(t.Clients), MaxClients))
	}
	if t.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("task.timeout_ns: %d, want more than 0", t.Timeout))
	}
	return errors.Join(errs...)
}

// Key is the task's key in the bucket of trials.
func (t *Task) Key() string {
	return fmt.Sprintf("task.%s.%d.%d.%s", t.Run, t.Trial, t.Attempt, t.Agent)
}

// StartKey is the key of the trial's start in the bucket of trials.
func StartKey(run uuid.UUID, trial uint32, attempt uint16) string {
	return fmt.Sprintf("start.%s.%d.%d", run, trial, attempt)
}

// Phases of a task.
const (
	TaskReady     = "ready"   // prepared, waits for the start
	TaskRunning   = "running" // started
	TaskDone      = "done"
	TaskFailed    = "failed"
	TaskCancelled = "cancelled"
	TaskGone      = "gone" // its agent is; said by the scheduler
)

// TaskState is what an agent says of a task.
type TaskState struct {
	Agent    string     `json:"agent"`
	Start    string     `json:"start"` // of the agent
	Phase    string     `json:"phase"`
	Error    string     `json:"error,omitempty"`
	Clock    Clock      `json:"clock"`
	Endpoint Endpoint   `json:"endpoint,omitzero"`
	Progress Progress   `json:"progress"`
	Result   TaskResult `json:"result,omitzero"`
	Updated  time.Time  `json:"updated"`
}

// Ended reports whether the agent is done with the task.
func (s *TaskState) Ended() bool {
	return s.Phase == TaskDone || s.Phase == TaskFailed || s.Phase == TaskCancelled || s.Phase == TaskGone
}

// Endpoint is where an agent is reached by the other agents of a trial.
type Endpoint struct {
	Address string `json:"address,omitempty"` // IP address
	// Ports by what answers there, in the workload's own words.
	Ports map[string]uint16 `json:"ports,omitempty"`
	// Machine names the clock the agent's times are of: agents of one machine
	// share one, whatever containers or namespaces they are in.
	Machine string `json:"machine,omitempty"`
}

// Peer is an agent of a trial as the others need to know it.
type Peer struct {
	Agent    string   `json:"agent"`
	Endpoint Endpoint `json:"endpoint"`
	Clock    Clock    `json:"clock"`
	Clients  []Client `json:"clients"` // without labels
}

// Clock is an agent's clock against the scheduler's: offset is what to add to
// the agent's time to get the scheduler's, right within ± bound (half the
// shortest round trip; Cristian 1989).
type Clock struct {
	Offset time.Duration `json:"offset_ns"`
	Bound  time.Duration `json:"bound_ns"`
}

// Progress is how far a task is; Total is 0 when it cannot be known.
type Progress struct {
	Done   uint64 `json:"done"`
	Total  uint64 `json:"total"`
	Bytes  uint64 `json:"bytes"`
	Errors uint64 `json:"errors"`
}

// TaskResult is a finished task's account of itself.
type TaskResult struct {
	Issued       uint64        `json:"issued"`       // operations started
	Recorded     uint64        `json:"recorded"`     // events given to the recorder, closing statement included
	Acknowledged uint64        `json:"acknowledged"` // of these, stored by the bus
	Bytes        uint64        `json:"bytes"`
	Errors       uint64        `json:"errors"`
	LagP50       time.Duration `json:"lag_p50_ns"` // how late our generator sent
	LagP99       time.Duration `json:"lag_p99_ns"`
	LagMax       time.Duration `json:"lag_max_ns"`
	CPU          float64       `json:"cpu"` // share of the machine this process used
	Elapsed      time.Duration `json:"elapsed_ns"`
	Producer     string        `json:"producer"`
}

// Start is the scheduler's word to every agent of a trial.
type Start struct {
	At        time.Time `json:"at"` // in the scheduler's clock
	Cancelled bool      `json:"cancelled,omitempty"`
	// Peers are all agents of the trial, in the order of their names.
	Peers []Peer `json:"peers,omitempty"`
	// Key is a secret that the agents of this attempt share, to know each
	// other's packets by.
	Key []byte `json:"key,omitempty"`
}

// RunProgress is announced while a run goes on.
type RunProgress struct {
	Run        uuid.UUID `json:"run"`
	State      string    `json:"state"`
	Trials     int       `json:"trials"`
	TrialsDone int       `json:"trials_done"`
	Trial      uint32    `json:"trial"`
	Attempt    uint16    `json:"attempt"`
	Cell       string    `json:"cell,omitempty"`
	Progress   Progress  `json:"progress"`
	Note       string    `json:"note,omitempty"`
	At         time.Time `json:"at"`
}

// Validate is there for the bus; every value is allowed.
func (*RunProgress) Validate() error { return nil }

// Submit asks the scheduler for a run.
type Submit struct {
	File string `json:"file"` // text of the experiment file
	Seed uint64 `json:"seed"` // 0 takes the file's
}

// Validate checks a request; the file itself is checked by the scheduler.
func (s *Submit) Validate() error {
	if s.File == "" || len(s.File) > MaxExperimentBytes {
		return fmt.Errorf("submit.file: %d bytes, want 1 to %d", len(s.File), MaxExperimentBytes)
	}
	return nil
}

// RunRef names a run.
type RunRef struct {
	Run uuid.UUID `json:"run"`
}

// Validate checks that the run is named.
func (r *RunRef) Validate() error {
	if r.Run == uuid.Nil {
		return errors.New("run: missing")
	}
	return nil
}

// Recurring is an experiment that runs by itself. An empty Cron removes it.
type Recurring struct {
	Name string `json:"name"`
	Cron string `json:"cron"` // minute hour day month weekday, or @every 10m
	Zone string `json:"zone,omitempty"`
	File string `json:"file"`
	Seed uint64 `json:"seed"`
}

// Validate checks the names and sizes; cron and file are checked by the
// scheduler.
func (r *Recurring) Validate() error {
	if r.Name == "" || len(r.Name) > 63 {
		return fmt.Errorf("schedule.name: %q, want 1 to 63 characters", r.Name)
	}
	if len(r.File) > MaxExperimentBytes {
		return fmt.Errorf("schedule.file: %d bytes, want at most %d", len(r.File), MaxExperimentBytes)
	}
	return nil
}

// ClockQuery asks for the scheduler's time.
type ClockQuery struct{}

// Validate is there for the bus.
func (*ClockQuery) Validate() error { return nil }

// ClockAnswer is the scheduler's time.
type ClockAnswer struct {
	Now time.Time `json:"now"`
}
