package detector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// Statuses of attempts, beside those of results and the store's words.
const (
	statusDuplicate = "duplicate" // the clip had its result already
)

// How long the store or the bus may take over a step beside the clip itself
// before the job is put back.
const stepPatience = 30 * time.Second

// How long an acknowledgement may take before its attempt is accounted for
// without it: longer than package bus tries.
const settlePatience = 15 * time.Second

var errTimeout = fmt.Errorf("looking at the clip took too long: %w", context.DeadlineExceeded)

// attempt is one try at one clip.
type attempt struct {
	job      schemas.ClipJob
	delivery bus.Delivery
	stamps   schemas.ClipStamps
	state    bus.Entry[schemas.ClipState] // as last seen
	known    bool                         // whether it has been

	began  time.Time // when a slot began with it
	first  time.Duration
	bytes  int64
	fetch  time.Duration
	store  time.Duration
	seen   vision.Outcome
	status string
	err    error
}

// failure is why an attempt has no detection.
type failure struct {
	status string // of the attempt
	result string // of the clip, if this was the last
	final  bool   // trying again is of no use
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// handle is one delivery of a job.
func (d *Detector) handle(ctx context.Context, job schemas.ClipJob) error {
	a := &attempt{job: job, delivery: bus.DeliveryOf(ctx)}
	a.stamps.Taken = time.Now()
	d.settled(a.delivery.Sequence)
	d.account.enter()
	d.metrics.busy.Inc()
	err := d.attempt(a)
	d.metrics.busy.Dec()
	d.account.leave()
	a.err = err
	if err == nil {
		d.settling.add(a)
		return nil
	}
	d.record(a)
	return err
}

// attempt brings a clip to its end. Its error is the handler's: see bus.Consume.
func (d *Detector) attempt(a *attempt) error {
	if d.taking.Err() != nil {
		return d.handBack(a)
	}
	ctx := d.working
	clip := d.reader.start(ctx, &a.job)
	defer d.reader.close(clip)
	// What is fetched in vain was taken by somebody else in the meantime, which
	// is rare; the time it would take to make sure first is not.
	found, err := d.begin(ctx, a)
	switch {
	case err != nil:
		return d.away(a, err)
	case found != nil:
		a.status = statusDuplicate
		return d.conclude(ctx, a, found)
	case a.state.Value.Ended():
		return d.overAlready(a)
	}
	mine, err := d.look(ctx, a, clip)
	var failed *failure
	switch {
	case err == nil:
		a.status = schemas.StatusOK
	case errors.Is(err, errHandedBack):
		return d.handBack(a)
	case !errors.As(err, &failed):
		return d.away(a, err)
	case !failed.final && !a.delivery.Last:
		a.status = failed.status
		return fmt.Errorf("clip %s: %w", a.job.Clip.ID, err)
	default:
		a.status = failed.status
		mine = d.result(a, failed.result)
		mine.Error = clipped(err.Error(), maxText)
	}
	return d.store(ctx, a, mine)
}

// handBack gives a job to whoever takes it next.
func (d *Detector) handBack(a *attempt) error {
	a.status = schemas.StatusCancelled
	return fmt.Errorf("%w: clip %s: %w", bus.ErrAgain, a.job.Clip.ID, errHandedBack)
}

// away gives a job back because of who else is needed for it.
func (d *Detector) away(a *attempt, err error) error {
	if d.working.Err() != nil {
		return d.handBack(a)
	}
	a.status = objectstore.Classify(err)
	return fmt.Errorf("%w: clip %s: %w", bus.ErrAgain, a.job.Clip.ID, err)
}

// overAlready settles the job of a clip that has ended.
func (d *Detector) overAlready(a *attempt) error {
	a.status = statusDuplicate
	s := &a.state.Value
	if s.State == schemas.ClipDead && s.Where == schemas.WhereCloud && s.Result != nil {
		// Whoever found that out may not have come to say so.
		return fmt.Errorf("%w: clip %s: %s: %s", bus.ErrDrop, a.job.Clip.ID, s.Result.Status, s.Result.Error)
	}
	return nil
}

// begin finds out whether a clip has its result already, and says that it is in
// work if it has not. Whoever calls it looks at the attempt's state.
func (d *Detector) begin(ctx context.Context, a *attempt) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, stepPatience)
	defer cancel()
	var found *result
	var missing error
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		missing = patiently(ctx, func() (err error) {
			found, err = d.results.read(ctx, a.job.Clip.ID)
			return err
		})
	}()
	err := d.recall(ctx, a)
	<-looked
	switch {
	case err != nil:
		return nil, err
	case errors.Is(missing, errUnreadable):
		// It cannot be replaced either: the clip ends with what can be said.
		found = d.result(a, schemas.StatusError)
		found.Error = clipped(missing.Error(), maxText)
	case missing != nil:
		return nil, missing
	}
	if s := &a.state.Value; s.Clip.SHA256 != a.job.Clip.SHA256 {
		return nil, fmt.Errorf("%w: the job of clip %s is about bytes with SHA-256 %s, those known have %s", bus.ErrDrop, s.Clip.ID, a.job.Clip.SHA256, s.Clip.SHA256)
	}
	if found != nil || a.state.Value.Ended() {
		return found, nil
	}
	return nil, d.change(ctx, a, a.taken)
}

// patiently does what may need a while to work.
func patiently(ctx context.Context, do func() error) error {
	for wait := firstPause; ; wait = min(2*wait, longestPause) {
		err := do()
		if err == nil {
			return nil
		}
		if err := pause(ctx, wait, err); err != nil {
			return err
		}
	}
}

// look waits for a slot and has the clip looked at.
func (d *Detector) look(ctx context.Context, a *attempt, clip *fetching) (*result, error) {
	if err := d.slot(clip); err != nil {
		if errors.Is(err, errHandedBack) {
			return nil, err
		}
		return nil, unfetched(err)
	}
	a.began = time.Now()
	looking, cancel := context.WithTimeoutCause(ctx, d.cfg.Timeout, errTimeout)
	defer cancel()
	stop := context.AfterFunc(looking, func() { clip.cancel(context.Cause(looking)) })
	defer stop()
	outcome, err := d.eyes.Detect(looking, clip, a.job.Clip)
	<-d.slots
	// Whatever was seen, the bytes must be the clip's.
	clip.abandon()
	<-clip.done
	a.seen = outcome
	a.bytes = clip.bytes
	if !clip.first.IsZero() {
		a.first = clip.first.Sub(a.stamps.Taken)
	}
	switch {
	case ctx.Err() != nil:
		return nil, errHandedBack
	case errors.Is(clip.err, errLost), errors.Is(clip.err, errCorrupt):
		return nil, unfetched(clip.err)
	case looking.Err() != nil && (err != nil || clip.err != nil):
		return nil, &failure{status: schemas.StatusTimeout, result: schemas.StatusTimeout, err: errors.Join(errTimeout, err)}
	case clip.err != nil:
		return nil, unfetched(clip.err)
	}
	a.fetch = clip.fetched.Sub(a.stamps.Taken)
	if err != nil {
		return nil, unseen(err)
	}
	// The stages are passed one after the other: what overlaps counts for the
	// earlier one.
	a.stamps.Fetched = clip.fetched
	a.stamps.Decoded = later(outcome.Decoded, a.stamps.Fetched)
	a.stamps.Inferred = later(outcome.Inferred, a.stamps.Decoded)
	r := d.result(a, schemas.StatusOK)
	r.Model, r.Sample, r.Decode, r.Infer, r.stamps = outcome.Model, outcome.Sample, outcome.Decode, outcome.Infer, a.stamps
	if outcome.Frames != nil {
		r.Frames = outcome.Frames
	}
	if outcome.Labels != nil {
		r.Labels = outcome.Labels
	}
	return r, nil
}

// slot waits until a clip can be looked at.
func (d *Detector) slot(clip *fetching) error {
	fetched := clip.done
	for {
		select {
		case d.slots <- struct{}{}:
			if d.taking.Err() == nil {
				return nil
			}
			<-d.slots
			return errHandedBack
		case <-d.taking.Done():
			return errHandedBack
		case <-fetched:
			if clip.err != nil {
				return clip.err
			}
			fetched = nil
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// unfetched is the failure of a clip whose bytes did not come.
func unfetched(err error) error {
	switch {
	case errors.Is(err, errLost):
		return &failure{status: schemas.StatusLost, result: schemas.StatusLost, final: true, err: err}
	case errors.Is(err, errCorrupt):
		return &failure{status: schemas.StatusCorrupt, result: schemas.StatusCorrupt, final: true, err: err}
	}
	return &failure{status: objectstore.Classify(err), result: schemas.StatusError, err: err}
}

// unseen is the failure of a clip that is here but could not be looked at.
func unseen(err error) error {
	status := vision.Status(err)
	if status == "" {
		status = schemas.StatusError
	}
	return &failure{status: status, result: status, final: status == schemas.StatusUndecodable || status == schemas.StatusModel, err: err}
}

// result is one of an attempt that has seen nothing.
func (d *Detector) result(a *attempt, status string) *result {
	model := a.job.Clip.Detection.Model
	if model == "" {
		model = d.cfg.Model
	}
	return &result{
		Detections: schemas.Detections{
			Version: 1, Clip: a.job.Clip.ID, Edge: a.job.Edge, SHA256: a.job.Clip.SHA256, Where: schemas.WhereCloud, Worker: d.cfg.Name,
			Status: status, Model: schemas.ModelUsed{Name: model}, Sample: a.job.Clip.Detection.Sample,
			Frames: []schemas.Frame{}, Labels: map[string]float64{}, Created: time.Now(),
		},
		stamps: a.stamps,
	}
}

// store stores a result, or takes the one that is there, and settles the clip
// with it.
func (d *Detector) store(ctx context.Context, a *attempt, mine *result) error {
	begun := time.Now()
	stored, err := d.storeResult(ctx, a, mine)
	if errors.Is(err, errUnreadable) {
		stored, err = d.result(a, schemas.StatusError), nil
		stored.Error = errUnreadable.Error()
	}
	if err != nil {
		return d.away(a, err)
	}
	if stored != mine {
		a.status = statusDuplicate
	}
	err = d.conclude(ctx, a, stored)
	a.store = time.Since(begun)
	if a.status == schemas.StatusOK {
		d.account.done(work{service: time.Since(a.began), decode: a.seen.Decode, infer: a.seen.Infer})
		d.metrics.fetch.Observe(a.fetch.Seconds())
		d.metrics.decode.Observe(a.seen.Decode.Seconds())
		d.metrics.infer.Observe(a.seen.Infer.Seconds())
		d.metrics.store.Observe(a.store.Seconds())
	}
	return err
}

func (d *Detector) storeResult(ctx context.Context, a *attempt, mine *result) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, stepPatience)
	defer cancel()
	if _, err := mine.encode(); err != nil {
		// It would be the same the next time.
		a.status = schemas.StatusError
		mine.Status, mine.Error, mine.Frames, mine.Labels = schemas.StatusError, clipped(err.Error(), maxText), []schemas.Frame{}, map[string]float64{}
	}
	if len(a.seen.Annotated) > 0 && mine.Status == schemas.StatusOK {
		if _, err := d.results.putOnce(ctx, frameKey(mine.Clip), a.seen.Annotated, http.Header{"Content-Type": {"image/jpeg"}}); err != nil {
			return nil, err
		}
	}
	var stored *result
	err := patiently(ctx, func() (err error) {
		stored, err = d.results.put(ctx, mine)
		return err
	})
	return stored, err
}

// conclude brings a clip's state to what its result says. A clip without a
// detection is an error: its job is kept as a dead letter.
func (d *Detector) conclude(ctx context.Context, a *attempt, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, stepPatience)
	defer cancel()
	if r.SHA256 != "" && r.SHA256 != a.job.Clip.SHA256 {
		a.status = schemas.StatusError
		return fmt.Errorf("%w: the result of clip %s is about bytes with SHA-256 %.64q, its job about %s", bus.ErrDrop, a.job.Clip.ID, r.SHA256, a.job.Clip.SHA256)
	}
	if err := d.change(ctx, a, r.ended); err != nil {
		return d.away(a, err)
	}
	if r.Status != schemas.StatusOK && r.Where != schemas.WhereEdge {
		return fmt.Errorf("%w: clip %s: %s: %s", bus.ErrDrop, a.job.Clip.ID, r.Status, r.Error)
	}
	return nil
}

// acknowledged is called once the bus has said that it has a job's
// acknowledgement. A clip whose time of that is lost is none the worse.
func (d *Detector) acknowledged(ctx context.Context, delivery bus.Delivery) {
	a := d.settling.take(delivery.Sequence)
	if a == nil {
		return
	}
	now := time.Now()
	defer d.record(a)
	err := d.change(ctx, a, func(s *schemas.ClipState) bool {
		if !s.Ended() || !s.Stamps.Acknowledged.IsZero() {
			return false
		}
		s.Stamps.Acknowledged = now
		return true
	})
	if err != nil {
		d.log.Warn("clip without its time of acknowledgement", "clip", a.job.Clip.ID, "error", err)
	}
	a.stamps.Acknowledged = now
}

// settling are the attempts whose acknowledgement is under way.
type settling struct {
	mu       sync.Mutex
	attempts map[uint64]*unsettled // by the sequence of the job
}

type unsettled struct {
	*attempt
	since time.Time
}

func (s *settling) add(a *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attempts == nil {
		s.attempts = map[uint64]*unsettled{}
	}
	s.attempts[a.delivery.Sequence] = &unsettled{a, time.Now()}
}

func (s *settling) take(sequence uint64) *attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.attempts[sequence]
	if u == nil {
		return nil
	}
	delete(s.attempts, sequence)
	return u.attempt
}

// older removes and returns what has been there for a while.
func (s *settling) older(than time.Duration) []*attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	var old []*attempt
	for _, sequence := range slices.Sorted(maps.Keys(s.attempts)) {
		if u := s.attempts[sequence]; time.Since(u.since) >= than {
			delete(s.attempts, sequence)
			old = append(old, u.attempt)
		}
	}
	return old
}

// settled accounts for an earlier attempt at a job that has come again: its
// acknowledgement was lost.
func (d *Detector) settled(sequence uint64) {
	if a := d.settling.take(sequence); a != nil {
		d.record(a)
	}
}

func (d *Detector) flushSettling(age time.Duration) {
	for _, a := range d.settling.older(age) {
		d.record(a)
	}
}

// record records the attempt's event; it has just ended.
func (d *Detector) record(a *attempt) {
	end := a.stamps.Acknowledged
	if end.IsZero() {
		end = time.Now()
	}
	d.metrics.tries.WithLabelValues(a.status).Inc()
	d.metrics.bytes.Add(float64(a.bytes))
	model := a.seen.Model.Name
	if model == "" {
		model = a.job.Clip.Detection.Model
	}
	nanoseconds := func(d time.Duration) string { return strconv.FormatInt(int64(d), 10) }
	e := schemas.Event{
		Intended: a.stamps.Taken, Run: uuid.Nil, Workload: schemas.WorkloadOffload, Service: ServiceName, Site: d.cfg.Site, Agent: d.cfg.Name,
		Kind: schemas.KindDetection, FirstByte: a.first, Duration: end.Sub(a.stamps.Taken), Bytes: uint64(a.bytes), Status: a.status,
		Attrs: []schemas.Attr{
			{Key: "clip", Value: a.job.Clip.ID},
			{Key: "edge", Value: a.job.Edge},
			{Key: "try", Value: strconv.Itoa(a.delivery.Tries)},
			{Key: "fetch_ns", Value: nanoseconds(a.fetch)},
			{Key: "decode_ns", Value: nanoseconds(a.seen.Decode)},
			{Key: "infer_ns", Value: nanoseconds(a.seen.Infer)},
			{Key: "store_ns", Value: nanoseconds(a.store)},
			{Key: "model", Value: model},
		},
	}
	if a.err != nil {
		e.Error = clipped(a.err.Error(), maxText)
	}
	if err := d.events(&e); err != nil {
		d.log.Error("event not recorded", "clip", a.job.Clip.ID, "error", err)
	}
}
