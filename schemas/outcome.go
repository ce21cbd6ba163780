package schemas

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// ClipOutcome is a clip's whole way as its edge tells it: what becomes the
// clip's event. Times are by the edge's clock, those of the lab included, once
// Offset is taken from them.
type ClipOutcome struct {
	Clip     Clip          `json:"clip"`
	Trigger  time.Time     `json:"trigger"` // as it happened; Clip.Trigger if zero
	Recorded time.Time     `json:"recorded,omitzero"`
	Spooled  time.Time     `json:"spooled,omitzero"`
	Decided  time.Time     `json:"decided,omitzero"`
	Edge     EdgeStamps    `json:"edge"`
	Lab      ClipStamps    `json:"lab"`             // by the lab's clocks
	Offset   time.Duration `json:"clock_offset_ns"` // of the lab's clock from the edge's
	Bound    time.Duration `json:"clock_bound_ns"`  // of the offset's error
	// Total is trigger to confirmed, by a clock that nobody sets.
	Total     time.Duration `json:"total_ns"`
	Confirmed time.Time     `json:"confirmed,omitzero"`

	Policy   string `json:"policy"`
	Decision string `json:"decision"` // WhereEdge or WhereCloud
	Reason   string `json:"reason,omitempty"`
	// What each way was predicted to take from the decision to the result; 0 is
	// unknown.
	PredictedEdge  time.Duration `json:"predicted_edge_ns,omitempty"`
	PredictedCloud time.Duration `json:"predicted_cloud_ns,omitempty"`

	Where  string      `json:"where,omitempty"` // who looked at it
	Tries  int         `json:"tries,omitempty"`
	Status string      `json:"status"`
	Error  string      `json:"error,omitempty"`
	Result *ClipResult `json:"result,omitempty"`
}

// EdgeStamps are the stages that a clip passed at its edge, if that looked at
// it.
type EdgeStamps struct {
	Taken    time.Time `json:"taken,omitzero"`
	Fetched  time.Time `json:"fetched,omitzero"`
	Decoded  time.Time `json:"decoded,omitzero"`
	Inferred time.Time `json:"inferred,omitzero"`
}

// Validate reports faults of an outcome from outside.
func (o *ClipOutcome) Validate() error {
	errs := []error{o.Clip.Validate()}
	word := func(field, v string, allowed ...string) {
		if !slices.Contains(allowed, v) {
			errs = append(errs, fmt.Errorf("outcome.%s: %s, want %s", field, quoted(v), oneOf(allowed)))
		}
	}
	word("policy", o.Policy, Policies()...)
	word("decision", o.Decision, "", WhereEdge, WhereCloud)
	word("where", o.Where, "", WhereEdge, WhereCloud)
	if o.Status == "" || len(o.Status) > maxDictionaryValue {
		errs = append(errs, fmt.Errorf("outcome.status: %s, want a word", quoted(o.Status)))
	}
	if len(o.Error) > MaxEventString || len(o.Reason) > MaxEventString {
		errs = append(errs, fmt.Errorf("outcome.error, outcome.reason: want at most %d bytes", MaxEventString))
	}
	for _, d := range []time.Duration{o.Total, o.PredictedEdge, o.PredictedCloud, o.Bound} {
		if d < 0 {
			errs = append(errs, errors.New("outcome: a time span below 0"))
		}
	}
	return errors.Join(errs...)
}

// Event is the clip's event but for what only its recorder knows: run, trial,
// service, site, agent, and how late the trigger was.
func (o *ClipOutcome) Event() *Event {
	trigger := o.Trigger
	if trigger.IsZero() {
		trigger = o.Clip.Trigger
	}
	e := &Event{
		Intended: trigger, Workload: WorkloadOffload, Kind: KindClip, Duration: max(o.Total, 0), Bytes: uint64(max(o.Clip.Size, 0)),
		Status: o.Status, Error: o.Error,
	}
	add := func(key, value string) {
		if value != "" && value != "0" {
			e.Attrs = append(e.Attrs, Attr{Key: key, Value: value})
		}
	}
	at := func(key string, t time.Time, offset time.Duration) {
		if !t.IsZero() {
			e.Attrs = append(e.Attrs, Attr{Key: key + "_ns", Value: strconv.FormatInt(int64(t.Add(-offset).Sub(trigger)), 10)})
		}
	}
	span := func(key string, d time.Duration) { add(key, strconv.FormatInt(int64(d), 10)) }
	add("clip", o.Clip.ID)
	add("sha256", o.Clip.SHA256)
	add("policy", o.Policy)
	add("decision", o.Decision)
	add("reason", o.Reason)
	add("seen_by", o.Where)
	add("tries", strconv.Itoa(o.Tries))
	at("recorded", o.Recorded, 0)
	at("spooled", o.Spooled, 0)
	at("decided", o.Decided, 0)
	seen, offset := o.Lab, o.Offset
	if o.Where == WhereEdge {
		seen.Taken, seen.Fetched, seen.Decoded, seen.Inferred = o.Edge.Taken, o.Edge.Fetched, o.Edge.Decoded, o.Edge.Inferred
		seen.Queued, seen.Acknowledged = time.Time{}, time.Time{}
		offset = 0
	}
	at("uploaded", seen.Uploaded, o.Offset)
	at("queued", seen.Queued, o.Offset)
	at("taken", seen.Taken, offset)
	at("fetched", seen.Fetched, offset)
	at("decoded", seen.Decoded, offset)
	at("inferred", seen.Inferred, offset)
	at("stored", seen.Stored, o.Offset)
	at("acknowledged", seen.Acknowledged, o.Offset)
	at("confirmed", o.Confirmed, 0)
	span("predicted_edge_ns", o.PredictedEdge)
	span("predicted_cloud_ns", o.PredictedCloud)
	e.Attrs = append(e.Attrs, Attr{Key: "clock_offset_ns", Value: strconv.FormatInt(int64(o.Offset), 10)},
		Attr{Key: "clock_bound_ns", Value: strconv.FormatInt(int64(o.Bound), 10)})
	if r := o.Result; r != nil {
		add("worker", r.Worker)
		add("hash", r.Hash)
		span("decode_busy_ns", r.Decode)
		span("infer_busy_ns", r.Infer)
		if labels, err := json.Marshal(r.Labels); err == nil && len(r.Labels) > 0 && len(labels) <= MaxEventString {
			add("labels", string(labels))
		}
	}
	return e
}
