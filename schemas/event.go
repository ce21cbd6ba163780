package schemas

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Statuses of a timed operation. The list is open: a workload may add its own
// lower-case word; these are the ones every report knows.
const (
	StatusOK          = "ok"
	StatusTimeout     = "timeout"
	StatusRefused     = "refused"
	StatusReset       = "reset"
	StatusDNS         = "dns"
	StatusTLS         = "tls"
	StatusDenied      = "denied"
	StatusNoBucket    = "no_bucket"
	StatusNoObject    = "no_object"
	StatusThrottled   = "throttled"
	StatusServerError = "server_error"
	StatusTruncated   = "truncated"
	StatusCorrupt     = "corrupt"
	StatusCancelled   = "cancelled"
	StatusError       = "error"
)

// Kinds of events that any workload emits, beside its own.
const (
	// KindRequest is one timed request of the s3 workload.
	KindRequest = "request"
	// KindTask is the closing statement of one task of one trial: Bytes is the
	// payload moved, attrs hold `issued` (operations started) and `lag_p99_ns`.
	KindTask = "task"
	// KindTrial is the scheduler's closing statement of one trial; attrs hold
	// the cell's parameters and the verdict on its validity.
	KindTrial = "trial"
)

// Attr is one dimension of an event that is the workload's own.
type Attr struct{ Key, Value string }

// Event is one timed operation: one row of the table `events`.
//
// Corrected latency is Wait+Duration (it starts at the intended moment, so
// waiting in our own queue is never hidden: no coordinated omission); service
// time is Duration.
type Event struct {
	Intended  time.Time     // start by schedule
	Run       uuid.UUID     // version 7
	Trial     uint32        // index in the plan
	Attempt   uint16        // 1 for the first execution of the trial
	Workload  string        // `s3`, …
	Service   string        // `s3-loader`, …
	Site      string        // where it was measured
	Agent     string        // which agent measured it
	Kind      string        // `request`, …
	Wait      time.Duration // intended → sent
	FirstByte time.Duration // sent → first byte; 0 when none came
	Duration  time.Duration // sent → done
	Bytes     uint64        // payload moved
	Status    string        // `ok` or why not
	Error     string        // text when not ok
	Attrs     []Attr
}

// Limits of one event and of one batch of them, applied to whatever comes
// from outside.
const (
	MaxEventAttrs      = 64
	MaxEventString     = 4096
	MaxBatchRows       = 1 << 17
	MaxBatchBytes      = 8 << 20
	maxDictionaryValue = 256
)

// Validate reports every fault of the event, naming column, value and what is
// allowed.
func (e *Event) Validate() error {
	var errs []error
	bad := func(column string, value any, want string) {
		errs = append(errs, fmt.Errorf("event.%s: %v, want %s", column, value, want))
	}
	if y := e.Intended.Year(); y < 1970 || y > 2261 {
		bad("ts", e.Intended, "a time between 1970 and 2261")
	}
	if e.Wait < 0 {
		bad("wait_ns", int64(e.Wait), "0 or more")
	}
	if e.FirstByte < 0 {
		bad("first_byte_ns", int64(e.FirstByte), "0 or more")
	}
	if e.Duration < 0 {
		bad("duration_ns", int64(e.Duration), "0 or more")
	}
	for _, f := range []struct{ name, value string }{
		{"workload", e.Workload},
		{"service", e.Service},
		{"kind", e.Kind},
		{"status", e.Status},
	} {
		if f.value == "" {
			bad(f.name, `""`, "a word")
		}
	}
	for _, f := range []struct{ name, value string }{
		{"workload", e.Workload},
		{"service", e.Service},
		{"site", e.Site},
		{"agent", e.Agent},
		{"kind", e.Kind},
		{"status", e.Status},
	} {
		if len(f.value) > maxDictionaryValue {
			bad(f.name, fmt.Sprintf("%d bytes", len(f.value)), fmt.Sprintf("at most %d bytes", maxDictionaryValue))
		}
	}
	if len(e.Error) > MaxEventString {
		bad("error", fmt.Sprintf("%d bytes", len(e.Error)), fmt.Sprintf("at most %d bytes", MaxEventString))
	}
	if len(e.Attrs) > MaxEventAttrs {
		bad("attrs", fmt.Sprintf("%d entries", len(e.Attrs)), fmt.Sprintf("at most %d", MaxEventAttrs))
	}
	for _, a := range e.Attrs {
		if a.Key == "" || len(a.Key) > maxDictionaryValue {
			bad("attrs", fmt.Sprintf("a key of %d bytes", len(a.Key)), fmt.Sprintf("1 to %d bytes", maxDictionaryValue))
		}
		if len(a.Value) > MaxEventString {
			bad("attrs."+a.Key, fmt.Sprintf("%d bytes", len(a.Value)), fmt.Sprintf("at most %d bytes", MaxEventString))
		}
	}
	return errors.Join(errs...)
}
