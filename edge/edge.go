package edge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/edge/camera"
	"github.com/transferlab/transferlab/edge/decide"
	"github.com/transferlab/transferlab/edge/spool"
	"github.com/transferlab/transferlab/edge/uplink"
	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/schemas"
)

// Parts are what a station is made of. Who makes one closes them after Run has
// returned.
type Parts struct {
	Source camera.Source
	Spool  *spool.Spool
	Lab    *uplink.Client
	// Detector looks at clips here; nil hands all of them over.
	Detector Detector
	// Bus has the queue of offers of the policy overflow; nil lets that policy
	// follow the source's rule.
	Bus *bus.Conn
	// Queue is the name of the queue of offers; the station's if empty.
	Queue string
	// Took is what the detector here took for clips before, if that is known.
	Took time.Duration
	// Tell is given what became of each clip, again until it returns nil; nil
	// tells the lab.
	Tell func(context.Context, *schemas.ClipOutcome) error
	Log  *slog.Logger
}

// Detector looks at a clip: [vision.Detector].
type Detector interface {
	Detect(ctx context.Context, r io.Reader, clip schemas.Clip) (vision.Outcome, error)
}

// Station takes clips from a source and sees to it that each gets its result.
type Station struct {
	name   string
	policy PolicyConfig
	detect schemas.Detection
	slots  int
	upload int
	order  spool.Order
	Parts

	mu sync.Mutex
	// begun are the triggers of clips that began in this process, with a reading
	// of a clock that nobody sets.
	begun map[string]time.Time
	total map[string]time.Duration // trigger to confirmed, by that clock
	near  map[string]time.Time     // decided for the edge and not looked at: since when in work, zero before
	sent  map[string]bool          // decided for the lab, which does not know of them yet
	mean  time.Duration            // that the edge takes for a clip
	lab   *schemas.OffloadState
	heard time.Time // when the lab said so
	// reserved uploads, by clip.
	reserved map[string]*uplink.Reservation
	// offered clips wait for the queue's decision.
	offered map[string]chan struct{}
	busy    chan struct{} // there while the uplink is wanted, and closed at its end
	sending int
	// told are clips whose result the lab has had from here.
	told    map[string]bool
	telling sync.WaitGroup
	largest int64  // clip so far
	start   string // of this process, in the names of its offers
	// stored is signalled when there is one more clip to wait for.
	stored chan struct{}
}

// Assemble makes a station; Run starts it.
func Assemble(cfg Config, p Parts) *Station {
	s := &Station{
		name: cfg.Name, policy: cfg.Policy, detect: cfg.Detection, slots: cfg.Local.Slots, upload: cfg.Uplink.Parallel, Parts: p,
		begun: map[string]time.Time{}, total: map[string]time.Duration{}, near: map[string]time.Time{}, sent: map[string]bool{},
		told: map[string]bool{}, start: rand.Text()[:8], reserved: map[string]*uplink.Reservation{}, offered: map[string]chan struct{}{}, stored: make(chan struct{}, 1),
	}
	if cfg.Uplink.Order == OrderNewest {
		s.order = spool.NewestFirst
	}
	if p.Detector == nil || !cfg.Local.Enabled {
		s.slots, s.Detector = 0, nil
	}
	s.mean = p.Took
	if s.Queue == "" {
		s.Queue = s.name
	}
	s.upload = max(s.upload, 1)
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Tell == nil {
		s.Tell = func(ctx context.Context, o *schemas.ClipOutcome) error { return s.Lab.Outcome(ctx, *o) }
	}
	return s
}

// Run works until ctx ends, also beyond the end of its source. What is left then
// is in the spool for the next start.
func (s *Station) Run(ctx context.Context) error {
	if err := s.remember(); err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	every := func(n int, step func(context.Context) error) {
		for range n {
			parts.Go(func() error {
				for {
					err := step(ctx)
					switch {
					case err == nil:
					case ctx.Err() != nil || errors.Is(err, spool.ErrClosed):
						return nil
					case errors.Is(err, spool.ErrState) || errors.Is(err, spool.ErrUnknown):
						// The clip was given up, or has fallen back, meanwhile.
						s.Log.Warn("clip passed over", "error", err)
					default:
						return err
					}
				}
			})
		}
	}
	defer s.telling.Wait()
	parts.Go(func() error {
		if err := s.Lab.Run(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("way to the lab: %w", err)
		}
		return nil
	})
	parts.Go(func() error {
		if err := s.Source.Run(ctx, sink{s}); err != nil && ctx.Err() == nil {
			return fmt.Errorf("source of clips: %w", err)
		}
		return nil
	})
	every(1, s.decideNext)
	every(s.slots, s.detectNext)
	every(s.upload, s.uploadNext)
	every(1, s.archiveNext)
	every(1, s.confirmNext)
	every(1, s.reportNext)
	if s.policy.Kind == schemas.PolicyAdaptive {
		every(1, s.ask)
	}
	if s.policy.Kind == schemas.PolicyOverflow && s.Bus != nil && s.slots > 0 {
		parts.Go(func() error { return s.takeOffers(ctx, true) })
		parts.Go(func() error { return s.takeOffers(ctx, false) })
	}
	return parts.Wait()
}

// remember takes up what an earlier process has decided.
func (s *Station) remember() error {
	waiting, err := s.Spool.List(spool.StepDetect, spool.OldestFirst, 100_000)
	if err != nil {
		return fmt.Errorf("read the spool: %w", err)
	}
	for _, r := range waiting {
		s.near[r.Clip.ID] = time.Time{}
	}
	s.weigh()
	return nil
}

// sink puts what the source records into the spool.
type sink struct{ s *Station }

func (k sink) Begin(ctx context.Context, start camera.Start) (camera.Recording, error) {
	s := k.s
	w, err := s.Spool.Create(spool.Meta{ID: start.ID, Type: start.Type, Trigger: start.Trigger, Detection: s.detect, Expect: start.Size, Copy: start.Path != ""})
	if err != nil {
		if errors.Is(err, spool.ErrExists) {
			// A kill in the middle of taking a file has left a part of it.
			if there, e := s.Spool.Get(start.ID); e == nil && start.Size > 0 && there.Clip.Size != start.Size {
				return nil, fmt.Errorf("clip %s: %w", start.ID, camera.ErrPartial)
			}
			return nil, fmt.Errorf("clip %s: %w", start.ID, fs.ErrExist)
		}
		return nil, err
	}
	s.mu.Lock()
	s.begun[start.ID] = start.Trigger
	room := min(max(2*s.largest, leastRoom), schemas.MaxClipBytes)
	s.mu.Unlock()
	if s.policy.Kind != schemas.PolicyLocal && start.Path == "" {
		s.reserve(ctx, start, room)
	}
	return &recording{Writer: w, s: s, id: start.ID, ctx: ctx}, nil
}

// reserve asks for room while the clip is recorded, which saves that round trip
// at its end. Without an answer the clip asks at its end.
func (s *Station) reserve(ctx context.Context, start camera.Start, room int64) {
	go func() {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		r, err := s.Lab.Reserve(ctx, start.ID, start.Type, room)
		if err != nil {
			s.Log.Debug("reserve room", "clip", start.ID, "error", err)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, here := s.begun[start.ID]; here {
			s.reserved[start.ID] = r
		}
	}()
}

// leastRoom is reserved for a clip while nobody knows how large clips are.
const leastRoom = 16 << 20

type recording struct {
	*spool.Writer
	s       *Station
	id      string
	ctx     context.Context // of the source: what is sent ahead ends with it
	sending atomic.Bool
}

// Write also sends ahead what is there, when it is certain that the clip is handed
// over: at its end only the rest is left to send, on connections that are in
// full swing.
func (r *recording) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	if err == nil && r.s.policy.Kind == schemas.PolicyCloud && r.sending.CompareAndSwap(false, true) {
		written := r.Written()
		r.s.telling.Go(func() {
			defer r.sending.Store(false)
			r.s.mu.Lock()
			room := r.s.reserved[r.id]
			r.s.mu.Unlock()
			ctx, cancel := context.WithTimeout(r.ctx, tellPatience)
			defer cancel()
			if err := r.s.Lab.Early(ctx, room, r.File(), written); err != nil {
				r.s.Log.Debug("send ahead", "clip", r.id, "error", err)
			}
		})
	}
	return n, err
}

func (r *recording) Commit(_ context.Context, end camera.End) error {
	kept, err := r.Writer.Commit(end.Length, end.Recorded, end.Truncated)
	if err != nil {
		r.s.forget(r.id)
		return fmt.Errorf("keep clip %s: %w", r.id, err)
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.largest = max(r.s.largest, kept.Clip.Size)
	return nil
}

func (r *recording) Abort() error {
	r.s.forget(r.id)
	return r.Writer.Abort()
}

// forget drops what is known of a clip beside its record.
func (s *Station) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.begun, id)
	delete(s.total, id)
	delete(s.sent, id)
	delete(s.near, id)
	delete(s.reserved, id)
	delete(s.told, id)
	s.weigh()
}

// decideNext decides on one clip.
func (s *Station) decideNext(ctx context.Context) error {
	r, err := s.Spool.Take(ctx, spool.StepDecide, s.order)
	if err != nil {
		return err
	}
	id := r.Clip.ID
	if s.policy.Kind == schemas.PolicyOverflow && s.Bus != nil && s.slots > 0 && s.Bus.Healthy() == nil {
		return s.offer(ctx, id)
	}
	defer s.Spool.Release(id)
	if s.policy.Kind == schemas.PolicyAdaptive {
		s.refresh(ctx)
	}
	choice := decide.By(s.policy.Kind, s.situation(r.Clip.Size))
	return s.decided(id, choice)
}

// situation is what is known right now.
func (s *Station) situation(size int64) decide.Situation {
	upload, _ := s.Lab.Estimate(size)
	trip, _ := s.Lab.RTT()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := decide.Situation{
		Busy: len(s.near), Slots: s.slots, Service: s.mean, Online: s.Lab.Online(), RTT: trip, Upload: upload, Sent: len(s.sent),
	}
	for _, since := range s.near {
		if !since.IsZero() {
			now.Spent = max(now.Spent, time.Since(since))
		}
	}
	// What the lab said long ago says nothing about its queue.
	if s.lab != nil && time.Since(s.heard) < stale {
		now.Lab = s.lab
	}
	return now
}

// stale is the age at which what the lab said of its queue is forgotten.
const stale = 15 * time.Second

func (s *Station) decided(id string, c decide.Choice) error {
	s.mu.Lock()
	if c.Where == schemas.WhereEdge {
		s.near[id] = time.Time{}
	} else {
		delete(s.near, id)
		s.sent[id] = true
	}
	s.weigh()
	s.mu.Unlock()
	s.Log.Debug("decided", "clip", id, "where", c.Where, "reason", c.Reason, "edge", c.Edge, "cloud", c.Cloud)
	err := s.Spool.Decide(id, spool.Decision{Where: c.Where, Policy: s.policy.Kind, Edge: c.Edge, Cloud: c.Cloud, Reason: c.Reason})
	if err != nil {
		return fmt.Errorf("decide on clip %s: %w", id, err)
	}
	return nil
}

// refresh asks what the lab is doing, unless it has just said so, and does not wait
// for the answer much longer than it should take.
func (s *Station) refresh(ctx context.Context) {
	s.mu.Lock()
	age := time.Since(s.heard)
	s.mu.Unlock()
	if age > freshFor && s.Lab.Online() {
		trip, _ := s.Lab.RTT()
		s.hear(ctx, freshFor+2*trip)
	}
}

// freshFor is how long an edge goes by what the lab has said of its queue, when it
// could ask.
const freshFor = 100 * time.Millisecond

func (s *Station) hear(ctx context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	state, err := s.Lab.State(ctx)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lab, s.heard = &state, time.Now()
}

// ask renews what is known of the lab.
func (s *Station) ask(ctx context.Context) error {
	s.hear(ctx, 5*time.Second)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(askEvery):
		return nil
	}
}

const askEvery = 500 * time.Millisecond

// offer gives the clip to the queue, where the local detector takes it, or the
// uplink once more wait than may. It stays claimed until one of them has.
func (s *Station) offer(ctx context.Context, id string) error {
	taken := make(chan struct{})
	s.mu.Lock()
	s.offered[id] = taken
	s.mu.Unlock()
	// An offer of an earlier process may have been taken, and its name be known
	// to the server: this one must not count as its repetition.
	err := s.Bus.Publish(ctx, bus.SubjectOffers(s.Queue), id+"-"+s.start, &schemas.ClipOffer{ID: id, Edge: s.Queue})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Without the queue the rule that it stands for.
	s.Log.Warn("offer clip", "clip", id, "error", err)
	s.withdraw(id)
	defer s.Spool.Release(id)
	return s.decided(id, decide.By(schemas.PolicySource, s.situation(0)))
}

func (s *Station) withdraw(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, found := s.offered[id]
	if found {
		delete(s.offered, id)
		close(taken)
	}
	return found
}

// takeOffers takes clips back from the queue: the near taker as many as the edge
// looks at at a time, the other what waits behind them.
func (s *Station) takeOffers(ctx context.Context, near bool) error {
	where, reason, parallel := schemas.WhereCloud, "more wait than may", s.upload
	if near {
		where, reason, parallel = schemas.WhereEdge, "the edge is free", s.slots
	}
	return bus.Consume(ctx, s.Bus, bus.Consumption{
		Stream: bus.StreamOffers, Durable: "edge-" + bus.Token(s.Queue), Subject: bus.SubjectOffers(s.Queue),
		Overflow: true, Near: near, Backlog: int64(s.policy.Behind), Parallel: parallel, Tries: 1000,
	}, func(ctx context.Context, o schemas.ClipOffer) error {
		if !s.withdraw(o.ID) {
			// Offered by an earlier process: that the clip is undecided again is why
			// it is, or will be, offered anew.
			return nil
		}
		c := decide.By(schemas.PolicyOverflow, s.situation(0))
		c.Where, c.Reason = where, reason
		err := s.decided(o.ID, c)
		s.Spool.Release(o.ID)
		if err != nil || !near {
			return err
		}
		// The taker is busy as long as the detector is.
		s.looked(ctx, o.ID)
		return nil
	})
}

// looked returns when the edge is done with a clip.
func (s *Station) looked(ctx context.Context, id string) {
	for {
		changed := s.Spool.Changed()
		s.mu.Lock()
		_, still := s.near[id]
		s.mu.Unlock()
		if !still {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// detectNext looks at one clip.
func (s *Station) detectNext(ctx context.Context) error {
	r, err := s.Spool.Take(ctx, spool.StepDetect, spool.OldestFirst)
	if err != nil {
		return err
	}
	id := r.Clip.ID
	defer s.Spool.Release(id)
	taken := time.Now()
	s.mu.Lock()
	s.near[id] = taken
	s.mu.Unlock()
	seen, err := s.look(ctx, r.Clip)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		// The lab's detectors may have what this one lacks, and say why if not.
		s.Log.Warn("not looked at here", "clip", id, "error", err)
		c := decide.By(schemas.PolicyCloud, s.situation(r.Clip.Size))
		c.Reason = "the edge failed: " + err.Error()[:min(len(err.Error()), 256)]
		return s.decided(id, c)
	}
	result := &schemas.Detections{
		Version: 1, Clip: id, Edge: s.name, SHA256: r.Clip.SHA256, Where: schemas.WhereEdge, Worker: s.name, Status: schemas.StatusOK,
		Model: seen.Model, Sample: seen.Sample, Frames: seen.Frames, Labels: seen.Labels, Created: time.Now(), Decode: seen.Decode, Infer: seen.Infer,
	}
	// The clip is here: reading it is part of decoding.
	err = s.Spool.Detected(id, result, spool.Stamps{Taken: taken, Fetched: taken, Decoded: seen.Decoded, Inferred: seen.Inferred})
	if err != nil {
		return fmt.Errorf("keep the result of clip %s: %w", id, err)
	}
	s.mu.Lock()
	delete(s.near, id)
	s.weigh()
	took := seen.Inferred.Sub(taken)
	if s.mean == 0 {
		s.mean = took
	}
	s.mean += (took - s.mean) / 3
	s.mu.Unlock()
	s.telling.Go(func() { s.tellResult(ctx, r.Clip, result) })
	return nil
}

// tellResult stores a result at once: it must not wait for the bytes of clips
// before it. What fails is done again before the clip's own bytes.
func (s *Station) tellResult(ctx context.Context, clip schemas.Clip, result *schemas.Detections) {
	ctx, cancel := context.WithTimeout(ctx, tellPatience)
	defer cancel()
	if _, err := s.Lab.Result(ctx, clip, result); err != nil {
		s.Log.Debug("store the result", "clip", clip.ID, "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[clip.ID] = true
}

const tellPatience = 20 * time.Second

func (s *Station) look(ctx context.Context, clip schemas.Clip) (vision.Outcome, error) {
	f, err := s.Spool.Clip(clip.ID)
	if err != nil {
		return vision.Outcome{}, err
	}
	defer func() { _ = f.Close() }()
	return s.Detector.Detect(ctx, f, clip)
}

// uploadNext hands one clip over.
func (s *Station) uploadNext(ctx context.Context) error {
	r, err := s.Spool.Take(ctx, spool.StepUpload, s.order)
	if err != nil {
		return err
	}
	defer s.Spool.Release(r.Clip.ID)
	s.hurry(1)
	defer s.hurry(-1)
	return s.send(ctx, r, nil)
}

// archiveNext stores the result of a clip that was looked at here, then its
// bytes, for which nobody waits: they let those go first that the lab has to
// look at.
func (s *Station) archiveNext(ctx context.Context) error {
	r, err := s.Spool.Take(ctx, spool.StepArchive, s.order)
	if err != nil {
		return err
	}
	defer s.Spool.Release(r.Clip.ID)
	result, err := s.Spool.Result(r.Clip.ID)
	if err != nil {
		return fmt.Errorf("result of clip %s: %w", r.Clip.ID, err)
	}
	s.mu.Lock()
	told := s.told[r.Clip.ID]
	s.mu.Unlock()
	if result != nil && !told {
		if _, err := s.Lab.Result(ctx, r.Clip, result); err != nil {
			return s.refused(ctx, r, err)
		}
	}
	s.yield(ctx)
	return s.send(ctx, r, result)
}

// hurry counts the uploads that a result waits for.
func (s *Station) hurry(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending += n
	s.weigh()
}

// weigh notes whether the uplink is wanted for clips without a result: those that
// are handed over, and those that will be while the edge is busy with others. mu is
// held.
func (s *Station) weigh() {
	switch wanted := s.sending > 0 || len(s.near) > 0; {
	case wanted && s.busy == nil:
		s.busy = make(chan struct{})
	case !wanted && s.busy != nil:
		close(s.busy)
		s.busy = nil
	}
}

// yield waits while the uplink is wanted for something more urgent, for as long as
// the bytes of what is done may wait.
func (s *Station) yield(ctx context.Context) {
	most := time.NewTimer(yieldMost)
	defer most.Stop()
	for {
		s.mu.Lock()
		busy := s.busy
		s.mu.Unlock()
		if busy == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-most.C:
			return
		case <-busy:
		}
	}
}

const yieldMost = time.Minute

func (s *Station) send(ctx context.Context, r spool.Record, result *schemas.Detections) error {
	id := r.Clip.ID
	f, err := s.Spool.Clip(id)
	if errors.Is(err, fs.ErrNotExist) {
		return s.Spool.Expire(id, schemas.StatusLost, "its bytes are gone from the spool")
	}
	if err != nil {
		return fmt.Errorf("open clip %s: %w", id, err)
	}
	defer func() { _ = f.Close() }()
	s.mu.Lock()
	reserved := s.reserved[id]
	s.mu.Unlock()
	progress := uplink.Progress{
		Reserved: reserved,
		Save: func(upload string, partBytes int64, parts []uplink.Part) {
			u := spool.Upload{ID: upload, PartBytes: partBytes}
			for _, p := range parts {
				u.Parts = append(u.Parts, spool.Part(p))
			}
			if err := s.Spool.Uploading(id, u); err != nil {
				s.Log.Warn("journal the upload", "clip", id, "error", err)
			}
		},
		Retry: func(again uplink.Retrying) {
			s.Log.Info("upload will be tried again", "clip", id, "attempt", again.Attempt, "in", again.In, "error", again.Err)
		},
	}
	state, err := s.Lab.Upload(ctx, r.Clip, f, progress, result)
	if err != nil {
		return s.refused(ctx, r, err)
	}
	now := time.Now()
	if err := s.Spool.Stored(id, state, now); err != nil {
		return fmt.Errorf("clip %s is stored: %w", id, err)
	}
	s.mu.Lock()
	delete(s.sent, id)
	delete(s.reserved, id)
	s.mu.Unlock()
	if state.Ended() && !state.Stamps.Uploaded.IsZero() {
		return s.confirm(state)
	}
	select {
	case s.stored <- struct{}{}:
	default:
	}
	return nil
}

// refused gives up a clip that the lab will never take.
func (s *Station) refused(ctx context.Context, r spool.Record, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var refusal *uplink.Refused
	if !errors.As(err, &refusal) {
		return fmt.Errorf("clip %s: %w", r.Clip.ID, err)
	}
	s.Log.Error("the lab refuses a clip for good", "clip", r.Clip.ID, "error", err)
	s.mu.Lock()
	delete(s.sent, r.Clip.ID)
	s.mu.Unlock()
	if err := s.Spool.Expire(r.Clip.ID, schemas.StatusDenied, refusal.Error()); err != nil {
		return fmt.Errorf("give up clip %s: %w", r.Clip.ID, err)
	}
	return nil
}

// confirmNext waits until the lab has the results of some clips, or there are
// more to wait for.
func (s *Station) confirmNext(ctx context.Context) error {
	changed := s.Spool.Changed()
	waiting, err := s.Spool.List(spool.StepConfirm, spool.OldestFirst, 1000)
	if err != nil {
		return err
	}
	if len(waiting) == 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			return nil
		}
	}
	ids := make([]string, len(waiting))
	for i, r := range waiting {
		ids[i] = r.Clip.ID
	}
	asking, stop := context.WithCancel(ctx)
	defer stop()
	more := make(chan struct{})
	go func() {
		defer close(more)
		select {
		case <-asking.Done():
		case <-s.stored:
			stop()
		}
	}()
	said, err := s.Lab.Confirm(asking, ids)
	ended := asking.Err() != nil
	stop()
	<-more
	if err != nil {
		if ended && ctx.Err() == nil {
			return nil // there are more to wait for
		}
		return err
	}
	if err := s.Spool.Missing(said.Unknown...); err != nil {
		return fmt.Errorf("upload again what the lab has lost: %w", err)
	}
	return s.confirm(said.Ended...)
}

// confirm keeps what the lab says of clips that have ended.
func (s *Station) confirm(states ...schemas.ClipState) error {
	now := time.Now()
	s.mu.Lock()
	for i := range states {
		if begun, here := s.begun[states[i].Clip.ID]; here {
			s.total[states[i].Clip.ID] = now.Sub(begun)
		}
	}
	s.mu.Unlock()
	if err := s.Spool.Confirmed(now, states...); err != nil {
		return fmt.Errorf("confirm clips: %w", err)
	}
	return nil
}

// reportNext tells what became of one clip.
func (s *Station) reportNext(ctx context.Context) error {
	r, err := s.Spool.Take(ctx, spool.StepReport, spool.OldestFirst)
	if err != nil {
		return err
	}
	id := r.Clip.ID
	defer s.Spool.Release(id)
	o := s.outcome(r)
	if err := s.Tell(ctx, o); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var refusal *uplink.Refused
		if !errors.As(err, &refusal) {
			return fmt.Errorf("tell what became of clip %s: %w", id, err)
		}
		s.Log.Error("the lab does not want to know what became of a clip", "clip", id, "error", err)
	}
	s.forget(id)
	if err := s.Spool.Reported(id); err != nil {
		return fmt.Errorf("forget clip %s: %w", id, err)
	}
	return nil
}

func (s *Station) outcome(r spool.Record) *schemas.ClipOutcome {
	offset, bound, _ := s.Lab.Clock()
	o := &schemas.ClipOutcome{
		Clip: r.Clip, Trigger: r.Clip.Trigger, Recorded: r.Stamps.Recorded, Spooled: r.Stamps.Spooled, Decided: r.Stamps.Decided,
		Edge:   schemas.EdgeStamps{Taken: r.Stamps.Taken, Fetched: r.Stamps.Fetched, Decoded: r.Stamps.Decoded, Inferred: r.Stamps.Inferred},
		Offset: offset, Bound: bound, Confirmed: r.Stamps.Confirmed,
		Policy: r.Decision.Policy, Decision: r.Decision.Where, Reason: r.Decision.Reason, PredictedEdge: r.Decision.Edge, PredictedCloud: r.Decision.Cloud,
		Status: r.Status, Error: r.Error,
	}
	if o.Policy == "" {
		o.Policy = s.policy.Kind // given up before it was decided on
	}
	end := r.Stamps.Confirmed
	if end.IsZero() {
		end = r.Stamps.Expired
	}
	o.Total = max(0, end.Sub(r.Clip.Trigger))
	s.mu.Lock()
	if total, here := s.total[r.Clip.ID]; here {
		o.Total = total
	}
	s.mu.Unlock()
	if lab := r.Lab; lab != nil {
		o.Lab, o.Where, o.Tries, o.Result = lab.Stamps, lab.Where, lab.Attempts, lab.Result
		if lab.Result != nil && o.Status == "" {
			o.Status, o.Error = lab.Result.Status, lab.Result.Error
		}
	}
	if o.Status == "" {
		o.Status = schemas.StatusError
	}
	return o
}
