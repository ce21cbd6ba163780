package bus

import (
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Roles are who connects. Each has the permissions of [Permissions] and no
// others.
const (
	RoleOperator  = "lab"       // the lab's own process: provisions, may everything
	RoleAgent     = "agent"     // services at sites: s3-loader, …
	RoleCollector = "collector" // bus → database
	RoleScheduler = "scheduler" // plans and hands out
	RoleGateway   = "gateway"   // HTTP API
	// RoleProvisioner makes the places that runs ask for: emulated networks,
	// fleets.
	RoleProvisioner = "provisioner"
	// RoleDetector takes clips off the queue and stores what is seen in them.
	RoleDetector   = "detector"
	RoleAutoscaler = "autoscaler"
	// RoleEdge is a station at the edge: it offers its clips and takes them
	// back, or hands them over.
	RoleEdge = "edge"
)

// Streams.
const (
	// StreamEvents carries batches of timing events. Sent by every measuring
	// service, read by the collector, which also purges what is both stored and
	// older than the duplicate window. A full stream refuses new batches: that
	// is the back-pressure on producers.
	StreamEvents = "EVENTS"
	// StreamDead keeps what could not be accepted, with the reason, for 30 days.
	StreamDead = "DEAD"
	// StreamTasks is the work queue of tasks. Sent by the scheduler, each read
	// by the one agent it is assigned to.
	StreamTasks = "TASKS"
	// StreamSchedules holds recurring experiments as the server's own message
	// schedules. Sent and read by the scheduler.
	StreamSchedules = "SCHEDULES"
	// StreamClips is the work queue of the detectors. Sent by the gateway once a
	// clip is stored.
	StreamClips = "CLIPS"
	// StreamOffers is where edges put the clips they have not decided on: each
	// takes its own back, to look at them itself or, when it is behind, to hand
	// them over.
	StreamOffers = "OFFERS"
)

// ConsumerDetectors is the durable consumer that all detectors share.
const ConsumerDetectors = "detectors"

// Subjects. A trailing token is filled by the function beside it.
const (
	subjectEvents    = "events.batch.v1"    // .<producer's service>
	subjectDead      = "dead.v1"            // .<stream it comes from>
	subjectTasks     = "tasks.assigned.v1"  // .<agent>
	subjectSchedules = "schedules.run.v1"   // .<name of the schedule>
	subjectDue       = "schedules.due.v1"   // .<name of the schedule>
	subjectClips     = "clips.waiting.v1"   // .<edge>
	subjectOffers    = "clips.offered.v1"   // .<edge>
	subjectDrain     = "detector.drain.v1"  // .<detector>: core NATS, not stored
	subjectProgress  = "progress.run.v1"    // .<run>: core NATS, not stored
	SubjectClock     = "scheduler.clock.v1" // request/reply: the scheduler's time
	SubjectSubmit    = "scheduler.submit.v1"
	SubjectCancel    = "scheduler.cancel.v1"
	SubjectResume    = "scheduler.resume.v1"
	SubjectSchedule  = "scheduler.schedule.v1"
)

// SubjectEvents is where a service sends its batches.
func SubjectEvents(service string) string { return subjectEvents + "." + Token(service) }

// SubjectDead is where what a stream's reader rejects is kept.
func SubjectDead(stream string) string { return subjectDead + "." + Token(stream) }

// SubjectTasks is an agent's queue.
func SubjectTasks(agent string) string { return subjectTasks + "." + Token(agent) }

// SubjectProgress is a run's progress, for whoever watches.
func SubjectProgress(run string) string { return subjectProgress + "." + Token(run) }

// SubjectSchedules is where a recurring experiment's definition is stored.
func SubjectSchedules(name string) string { return subjectSchedules + "." + Token(name) }

// SubjectDue is where the server announces that a recurring experiment is due.
func SubjectDue(name string) string { return subjectDue + "." + Token(name) }

// SubjectClips is where an edge's clips wait for detectors.
func SubjectClips(edge string) string { return subjectClips + "." + Token(edge) }

// SubjectAnyClips matches every [SubjectClips].
const SubjectAnyClips = subjectClips + ".*"

// SubjectOffers is where an edge's undecided clips wait.
func SubjectOffers(edge string) string { return subjectOffers + "." + Token(edge) }

// SubjectDrain tells a detector to finish and take no more.
func SubjectDrain(detector string) string { return subjectDrain + "." + Token(detector) }

// SubjectAnyDue matches every [SubjectDue].
const SubjectAnyDue = subjectDue + ".*"

// Buckets (key-value).
const (
	// BucketRuns: one run each. Written by the scheduler (compare-and-set),
	// read by the gateway.
	BucketRuns = "RUNS"
	// BucketTrials: `task.<run>.<trial>.<attempt>.<agent>` written by that
	// agent, `start.<run>.<trial>.<attempt>` written by the scheduler.
	BucketTrials = "TRIALS"
	// BucketAgents: who is there, each entry renewed by its agent and gone
	// after [AgentTTL].
	BucketAgents = "AGENTS"
	// BucketCollector: how far the collector is. Written by the collector, read
	// by the gateway.
	BucketCollector = "COLLECTOR"
	// BucketPlaces: what runs need that is made for them and goes with them.
	// `want.<run>` is written by the scheduler, `place.<run>` by the
	// provisioner.
	BucketPlaces = "PLACES"
	// BucketSchedules: recurring experiments. Written by the scheduler.
	BucketSchedules = "RECURRING"
	// BucketClips: one clip each, by its id. Written by the gateway until the
	// clip waits in the queue, then by its detector (compare-and-set).
	BucketClips = "CLIPSTATES"
	// BucketEdges: who may send clips. Written and read by the gateway.
	BucketEdges = "EDGES"
	// BucketDetectors: what detectors say of themselves, each entry renewed by
	// its detector and gone after [AgentTTL].
	BucketDetectors = "DETECTORS"
)

// ClipTTL is how long the bus remembers a clip after its last change; the store
// remembers it for as long as its result is there.
const ClipTTL = 30 * 24 * time.Hour

// AgentTTL is how long an agent counts as present after its last word.
const AgentTTL = 10 * time.Second

// DuplicateWindow is how long the event stream remembers message ids: no event
// is stored twice as long as its producer gives up trying within it.
const DuplicateWindow = 10 * time.Minute

// MaxMessage is the largest message the bus takes, in bytes.
const MaxMessage = 8<<20 + 64<<10

// Limits bound what the bus keeps on disk, in bytes.
type Limits struct {
	Events int64
	Dead   int64
}

// DefaultLimits suit a laptop.
func DefaultLimits() Limits { return Limits{Events: 4 << 30, Dead: 256 << 20} }

func streams(l Limits) []jetstream.StreamConfig {
	return []jetstream.StreamConfig{
		{
			Name: StreamEvents, Subjects: []string{subjectEvents + ".*"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxBytes: l.Events,
			Duplicates: DuplicateWindow, MaxMsgSize: MaxMessage, AllowDirect: true,
		},
		{
			Name: StreamDead, Subjects: []string{subjectDead + ".*"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, MaxBytes: l.Dead,
			MaxAge: 30 * 24 * time.Hour, Duplicates: 24 * time.Hour, MaxMsgSize: MaxMessage,
		},
		{
			Name: StreamTasks, Subjects: []string{subjectTasks + ".*"},
			Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew, MaxBytes: 256 << 20,
			Duplicates: DuplicateWindow, MaxAge: 24 * time.Hour,
		},
		{
			Name: StreamSchedules, Subjects: []string{subjectSchedules + ".*", subjectDue + ".*"},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, MaxBytes: 64 << 20, MaxMsgsPerSubject: 1,
			AllowMsgSchedules: true, AllowMsgTTL: true, AllowRollup: true, Duplicates: DuplicateWindow,
		},
		{
			Name: StreamClips, Subjects: []string{SubjectAnyClips},
			Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew, MaxBytes: 256 << 20,
			Duplicates: DuplicateWindow, MaxMsgSize: 64 << 10,
		},
		{
			Name: StreamOffers, Subjects: []string{subjectOffers + ".*"},
			Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew, MaxBytes: 64 << 20,
			Duplicates: DuplicateWindow, MaxMsgSize: 4 << 10,
		},
	}
}

func buckets() []jetstream.KeyValueConfig {
	return []jetstream.KeyValueConfig{
		{Bucket: BucketRuns, Description: "runs and their states", MaxValueSize: 4 << 20, MaxBytes: 512 << 20},
		{Bucket: BucketTrials, Description: "tasks and starts of trials", MaxValueSize: 1 << 20, MaxBytes: 512 << 20},
		{Bucket: BucketAgents, Description: "agents present", TTL: AgentTTL, MaxValueSize: 64 << 10, MaxBytes: 64 << 20},
		{Bucket: BucketCollector, Description: "how far the collector is", MaxValueSize: 64 << 10, MaxBytes: 16 << 20, History: 4},
		{Bucket: BucketPlaces, Description: "emulated networks and fleets of runs", MaxValueSize: 1 << 20, MaxBytes: 128 << 20},
		{Bucket: BucketClips, Description: "clips on their way", TTL: ClipTTL, MaxValueSize: 64 << 10, MaxBytes: 512 << 20},
		{Bucket: BucketEdges, Description: "who may send clips", MaxValueSize: 4 << 10, MaxBytes: 16 << 20},
		{Bucket: BucketDetectors, Description: "detectors present", TTL: AgentTTL, MaxValueSize: 16 << 10, MaxBytes: 16 << 20},
		{Bucket: BucketSchedules, Description: "recurring experiments", MaxValueSize: 4 << 20, MaxBytes: 64 << 20},
	}
}

// Allow says what a role may send and receive.
type Allow struct{ Publish, Subscribe []string }

// Permissions is the least each role can work with. JetStream's own API is
// reached through subjects too, so they are listed.
func Permissions(role string) Allow {
	const inbox = "_INBOX.>"
	// A watch or a pull creates a consumer, asks it for messages and removes it.
	read := func(stream string) []string {
		return []string{
			"$JS.API.STREAM.INFO." + stream,
			"$JS.API.CONSUMER.CREATE." + stream + ".>",
			"$JS.API.CONSUMER.CREATE." + stream,
			"$JS.API.CONSUMER.INFO." + stream + ".>",
			"$JS.API.CONSUMER.MSG.NEXT." + stream + ".>",
			"$JS.API.CONSUMER.DELETE." + stream + ".>",
			"$JS.API.DIRECT.GET." + stream + ".>",
			"$JS.API.DIRECT.GET." + stream,
			"$JS.API.STREAM.MSG.GET." + stream,
			"$JS.ACK." + stream + ".>",
			"$JS.FC." + stream + ".>",
		}
	}
	bucket := func(name string) string { return "KV_" + name }
	join := func(lists ...[]string) []string {
		var all []string
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	common := []string{"$SRV.>", inbox, "$JS.API.INFO"}
	switch role {
	case RoleAgent:
		return Allow{
			Publish: join(common, read(StreamTasks), read(StreamOffers), read(bucket(BucketTrials)),
				[]string{
					subjectOffers + ".*", "$JS.API.STREAM.PURGE." + StreamOffers,
					"$JS.API.STREAM.INFO." + bucket(BucketAgents),
					subjectEvents + ".*", subjectProgress + ".*", subjectDead + ".*", SubjectClock,
					"$KV." + BucketAgents + ".>", "$KV." + BucketTrials + ".task.>",
				}),
			Subscribe: []string{inbox, "$SRV.>", "$JS.FC.>"},
		}
	case RoleCollector:
		return Allow{
			Publish: join(common, read(StreamEvents), read(bucket(BucketCollector)),
				[]string{
					"$JS.API.STREAM.PURGE." + StreamEvents, subjectDead + ".*",
					"$KV." + BucketCollector + ".>",
				}),
			Subscribe: []string{inbox, "$SRV.>", "$JS.FC.>"},
		}
	case RoleScheduler:
		return Allow{
			Publish: join(common, read(StreamTasks), read(StreamSchedules),
				read(bucket(BucketRuns)), read(bucket(BucketTrials)), read(bucket(BucketAgents)), read(bucket(BucketSchedules)),
				read(bucket(BucketPlaces)),
				[]string{
					"$KV." + BucketPlaces + ".want.>",
					subjectTasks + ".*", subjectSchedules + ".*", subjectProgress + ".*", subjectEvents + ".*", subjectDead + ".*",
					"$JS.API.STREAM.PURGE." + StreamTasks, "$JS.API.STREAM.PURGE." + StreamSchedules,
					"$KV." + BucketRuns + ".>", "$KV." + BucketTrials + ".>", "$KV." + BucketSchedules + ".>",
				}),
			Subscribe: []string{inbox, "$SRV.>", "scheduler.>", "$JS.FC.>"},
		}
	case RoleProvisioner:
		return Allow{
			Publish: join(common, read(bucket(BucketPlaces)), read(bucket(BucketAgents)),
				[]string{subjectEvents + ".*", subjectDead + ".*", "$JS.API.STREAM.INFO." + StreamEvents, "$KV." + BucketPlaces + ".place.>"}),
			Subscribe: []string{inbox, "$SRV.>", "$JS.FC.>"},
		}
	case RoleDetector:
		return Allow{
			Publish: join(common, read(StreamClips), read(bucket(BucketClips)),
				[]string{
					"$JS.API.STREAM.INFO." + bucket(BucketDetectors), "$JS.API.STREAM.INFO." + StreamEvents, SubjectEvents("detector"), subjectDead + ".*",
					"$KV." + BucketClips + ".>", "$KV." + BucketDetectors + ".>",
				}),
			Subscribe: []string{inbox, "$SRV.>", subjectDrain + ".*", "$JS.FC.>"},
		}
	case RoleAutoscaler:
		return Allow{
			Publish: join(common, read(StreamClips), read(bucket(BucketDetectors)),
				[]string{subjectDrain + ".*", "$JS.API.STREAM.INFO." + StreamEvents, SubjectEvents("autoscaler")}),
			Subscribe: []string{inbox, "$SRV.>", "$JS.FC.>"},
		}
	case RoleEdge:
		return Allow{
			Publish: join(common, read(StreamOffers),
				[]string{subjectOffers + ".*"}),
			Subscribe: []string{inbox, "$JS.FC.>"},
		}
	case RoleGateway:
		return Allow{
			Publish: join(common, read(bucket(BucketRuns)), read(bucket(BucketTrials)), read(bucket(BucketAgents)), read(bucket(BucketSchedules)),
				read(bucket(BucketPlaces)), read(bucket(BucketCollector)),
				read(bucket(BucketClips)), read(bucket(BucketEdges)), read(bucket(BucketDetectors)), read(StreamClips),
				[]string{
					// What edges tell over HTTP is recorded here.
					subjectClips + ".*", SubjectEvents("edge"),
					"$KV." + BucketClips + ".>", "$KV." + BucketEdges + ".>",
					SubjectSubmit, SubjectCancel, SubjectResume, SubjectSchedule, SubjectClock,
					"$JS.API.STREAM.INFO.>", "$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES",
				}),
			Subscribe: []string{inbox, "$SRV.>", subjectProgress + ".*", "$JS.FC.>"},
		}
	}
	return Allow{Publish: []string{">"}, Subscribe: []string{">"}}
}

// Token makes a name usable as one token of a subject or key: letters, digits,
// `-` and `_` stay, everything else becomes `_`.
func Token(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, name)
}
