package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// Buckets of the store. A clip's key is its id; its result's is the id with
// .json behind it.
const (
	bucketClips   = "clips"
	bucketResults = "results"
)

// Metadata of stored clips.
const (
	metaEdge   = "transferlab-edge"
	metaSHA256 = "transferlab-sha256"
)

// How long one step at the store or the bus may take, once every byte has come:
// it is not given up because the client has gone.
const stepPatience = 20 * time.Second

// clips receives clips and their results and keeps what is known of them.
//
// The store is the truth: bytes are visible under a clip's id only if they are
// the clip's, and its result only once. The document in the bucket of clips
// follows: `uploading` with the stamp Uploaded once the bytes are there, then
// the job is published, then `queued`; or, with a result of the edge's own,
// `done`. Every step may be repeated, and whoever is asked again does what is
// missing.
type clips struct {
	cfg     ClipsConfig
	node    *node.Node
	log     *slog.Logger
	metrics *clipMetrics

	store  *objectstore.Store // nil: edges cannot send clips
	public *objectstore.Store // as edges reach it
	ready  atomic.Bool        // the buckets are there
	bucket *bus.Bucket[schemas.ClipState]

	uploads  chan struct{}
	waits    chan struct{}
	hashes   chan struct{} // clips read back to check them
	locks    keyLocks
	index    *clipIndex
	outcomes chan outcome
	load     offloadLoad
}

func newClips(cfg ClipsConfig, n *node.Node) *clips {
	return &clips{
		cfg: cfg, node: n, log: n.Log, metrics: newClipMetrics(n.Metrics),
		uploads: make(chan struct{}, max(cfg.Uploads, 1)), waits: make(chan struct{}, max(cfg.Waits, 1)), hashes: make(chan struct{}, 4),
		locks: keyLocks{held: map[string]*keyLock{}}, index: newClipIndex(), outcomes: make(chan outcome),
		load: offloadLoad{gate: make(chan struct{}, 1)},
	}
}

// open opens the bucket and the store, which need not answer yet.
func (c *clips) open(ctx context.Context) (err error) {
	if c.bucket, err = bus.OpenBucket[schemas.ClipState](ctx, c.node.Bus, bus.BucketClips); err != nil {
		return err
	}
	if c.load.detectors, err = bus.OpenBucket[schemas.DetectorStatus](ctx, c.node.Bus, bus.BucketDetectors); err != nil {
		return err
	}
	if c.cfg.Store == "" {
		return nil
	}
	if c.store, err = objectstore.Open(ctx, c.cfg.target(c.cfg.Store), c.cfg.credentials()); err != nil {
		return fmt.Errorf("store of clips: %w", err)
	}
	if c.public, err = objectstore.Open(ctx, c.cfg.target(c.cfg.public()), c.cfg.credentials()); err != nil {
		return fmt.Errorf("store of clips as edges reach it: %w", err)
	}
	first, cancel := context.WithTimeout(ctx, firstPatience)
	defer cancel()
	if err := c.ensureBuckets(first); err != nil {
		c.log.Warn("the store of clips does not answer; will try again", "error", err)
	}
	return nil
}

func (c *clips) ensureBuckets(ctx context.Context) error {
	for _, b := range []string{bucketClips, bucketResults} {
		if err := c.store.EnsureBucket(ctx, b); err != nil {
			return err
		}
	}
	c.ready.Store(true)
	return nil
}

// run follows the bucket and mends, until ctx ends.
func (c *clips) run(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() {
		watchAgain(ctx, c.log, func() error {
			return c.bucket.Watch(ctx, ">", func(e bus.Entry[schemas.ClipState]) error {
				c.index.apply(e)
				return nil
			})
		})
	})
	parts.Go(func() { c.recordOutcomes(ctx) })
	tick := time.NewTicker(c.cfg.Mend)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c.store == nil {
			continue
		}
		if !c.ready.Load() {
			if err := c.ensureBuckets(ctx); err != nil {
				if ctx.Err() == nil {
					c.log.Warn("the store of clips does not answer; will try again", "error", err)
				}
				continue
			}
			c.log.Info("the store of clips answers")
		}
		c.mend(ctx)
	}
}

// enabled is the problem if clips cannot be taken.
func (c *clips) enabled() error {
	if c.store == nil {
		return problem(http.StatusServiceUnavailable, "this lab stores no clips: its gateway was started without --clip-store")
	}
	return nil
}

// keyLocks let one request at a time settle one clip.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	mu    sync.Mutex
	users int
}

func (l *keyLocks) lock(key string) (unlock func()) {
	l.mu.Lock()
	k := l.held[key]
	if k == nil {
		k = &keyLock{}
		l.held[key] = k
	}
	k.users++
	l.mu.Unlock()
	k.mu.Lock()
	return func() {
		k.mu.Unlock()
		l.mu.Lock()
		if k.users--; k.users == 0 {
			delete(l.held, key)
		}
		l.mu.Unlock()
	}
}

// known is what there is under a clip's id.
type known struct {
	state    schemas.ClipState
	revision uint64 // 0: no document
	found    bool
	// completed is the multipart upload that the bytes came by.
	completed string
}

// received reports whether every byte of a clip is stored.
func received(s *schemas.ClipState) bool { return !s.Stamps.Uploaded.IsZero() }

// closed reports whether nothing more will happen to a clip.
func closed(s *schemas.ClipState) bool { return s.Ended() && received(s) }

// document reads the document of a clip.
func (c *clips) document(ctx context.Context, id string) (known, error) {
	e, err := c.bucket.Get(ctx, id)
	if errors.Is(err, bus.ErrNotFound) {
		return known{}, nil
	}
	if err != nil {
		return known{}, err
	}
	return known{state: e.Value, revision: e.Revision, found: true}, nil
}

// remembered is a clip that the bus has forgotten and the store has not: one
// with a result.
func (c *clips) remembered(ctx context.Context, id string) (known, error) {
	d, stored, err := c.result(ctx, id)
	if errors.Is(err, objectstore.ErrNoObject) {
		return known{}, nil
	}
	if err != nil {
		return known{}, err
	}
	s := schemas.ClipState{Clip: schemas.Clip{ID: id, SHA256: d.SHA256}, Edge: d.Edge, Updated: time.Now().UTC()}
	s.Stamps.Stored = stored
	ended(&s, d)
	o, err := c.store.Head(ctx, bucketClips, id)
	switch {
	case err == nil && o.Metadata[metaEdge] == d.Edge && (o.Metadata[metaSHA256] == d.SHA256 || o.Metadata[metaSHA256] == ""):
		s.Clip.Size, s.Stamps.Uploaded = o.Size, o.Modified
	case err != nil && !errors.Is(err, objectstore.ErrNoObject):
		return known{}, err
	}
	return known{state: s, found: true}, nil
}

// look is what is known of a clip, from the bus or else from the store.
func (c *clips) look(ctx context.Context, id string) (known, error) {
	k, err := c.document(ctx, id)
	if err != nil || k.found || c.store == nil {
		return k, err
	}
	return c.remembered(ctx, id)
}

// result reads a clip's result; the error wraps [objectstore.ErrNoObject] if it
// has none.
func (c *clips) result(ctx context.Context, id string) (*schemas.Detections, time.Time, error) {
	body, o, err := c.store.Get(ctx, bucketResults, resultKey(id))
	if err != nil {
		return nil, time.Time{}, err
	}
	defer func() { _ = body.Close() }()
	text, err := io.ReadAll(io.LimitReader(body, schemas.MaxResultBytes+1))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read result of %s: %w", id, err)
	}
	d := &schemas.Detections{}
	if err := json.Unmarshal(text, d); err != nil {
		return nil, time.Time{}, fmt.Errorf("decode result of %s: %w", id, err)
	}
	return d, o.Modified, nil
}

func resultKey(id string) string { return id + ".json" }

// storeResult stores a clip's result unless it has one, and returns the one
// that it has.
func (c *clips) storeResult(ctx context.Context, d *schemas.Detections) (*schemas.Detections, time.Time, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("encode result of %s: %w", d.Clip, err)
	}
	_, err = c.store.Put(ctx, bucketResults, resultKey(d.Clip), bytes.NewReader(text), int64(len(text)), objectstore.PutOptions{ContentType: "application/json", IfAbsent: true})
	if errors.Is(err, objectstore.ErrExists) {
		return c.result(ctx, d.Clip)
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	c.metrics.results.Inc()
	return d, time.Now().UTC(), nil
}

// ended makes a result part of a state.
func ended(s *schemas.ClipState, d *schemas.Detections) {
	s.State, s.Where, s.Result = schemas.ClipDone, d.Where, d.Result(resultKey(d.Clip))
	if d.Status != schemas.StatusOK {
		s.State = schemas.ClipDead
	}
}

// sameClip is the problem if what is known under an id is not the clip: another
// edge's, or other bytes. What is only reserved fits any.
func sameClip(s *schemas.ClipState, edge string, clip *schemas.Clip) error {
	switch {
	case s.Edge != edge:
		return problem(http.StatusConflict, "clip %s: the id is taken", clip.ID)
	case s.Clip.SHA256 != "" && s.Clip.SHA256 != clip.SHA256:
		return problem(http.StatusConflict, "clip %s: sha256 %s…, but under this id there is a clip with %s…: other bytes want another id", clip.ID, clip.SHA256[:12], s.Clip.SHA256[:min(12, len(s.Clip.SHA256))])
	case s.Clip.Size > 0 && s.Clip.Size != clip.Size:
		return problem(http.StatusConflict, "clip %s: size_bytes %d, but under this id there is a clip of %d", clip.ID, clip.Size, s.Clip.Size)
	}
	return nil
}

// change applies edit to a clip's document until nobody else has changed it in
// between; edit returns whether there is anything to store. A document that is
// not there comes as its zero value.
func (c *clips) change(ctx context.Context, id string, k known, edit func(*schemas.ClipState) (bool, error)) (known, error) {
	for range casTries {
		store, err := edit(&k.state)
		if err != nil || !store {
			return k, err
		}
		k.state.Updated = time.Now().UTC()
		if k.revision == 0 {
			k.revision, err = c.bucket.Create(ctx, id, k.state)
		} else {
			k.revision, err = c.bucket.Update(ctx, id, k.state, k.revision)
		}
		if err == nil {
			k.found = true
			return k, nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return k, err
		}
		if k, err = c.document(ctx, id); err != nil {
			return k, err
		}
	}
	return k, fmt.Errorf("change clip %s: %w", id, bus.ErrConflict)
}

// settle does what is left to do for a clip whose bytes are stored and right:
// stores the edge's own result, or queues the job. The clip is locked.
func (c *clips) settle(ctx context.Context, edge string, clip *schemas.Clip, own *schemas.Detections, k known) (schemas.ClipState, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepPatience)
	defer cancel()
	abandoned, completed := "", k.completed
	defer func() {
		if abandoned != "" {
			c.abandon(ctx, clip.ID, abandoned)
		}
	}()
	var (
		d        *schemas.Detections
		storedAt time.Time
		err      error
	)
	if own != nil && !k.state.Ended() {
		if d, storedAt, err = c.storeResult(ctx, own); err != nil {
			return k.state, err
		}
	}
	now := time.Now().UTC()
	k, err = c.change(ctx, clip.ID, k, func(s *schemas.ClipState) (bool, error) {
		if s.Edge != "" {
			if err := sameClip(s, edge, clip); err != nil {
				return false, err
			}
		}
		before := *s
		if s.Clip.SHA256 == "" || s.Clip.Type == "" {
			s.Clip = *clip
		}
		s.Edge = edge
		if s.State == "" {
			s.State = schemas.ClipUploading
		}
		if !received(s) {
			s.Stamps.Uploaded = now
		}
		if s.Upload != "" {
			if s.Upload != completed {
				abandoned = s.Upload
			}
			s.Upload = ""
		}
		switch {
		case s.Ended():
		case d != nil:
			s.Stamps.Stored = storedAt
			ended(s, d)
		case s.State == schemas.ClipUploading:
			s.Where = schemas.WhereCloud
		}
		return before.Stamps != s.Stamps || before.State != s.State || before.Upload != s.Upload || before.Where != s.Where, nil
	})
	if err != nil || k.state.State != schemas.ClipUploading {
		return k.state, err
	}
	return c.queue(ctx, k)
}

// queue publishes the job of a clip whose bytes are stored.
func (c *clips) queue(ctx context.Context, k known) (schemas.ClipState, error) {
	id, edge := k.state.Clip.ID, k.state.Edge
	job := &schemas.ClipJob{Clip: k.state.Clip, Edge: edge, Bucket: bucketClips, Key: id, Queued: time.Now().UTC()}
	if err := c.node.Bus.Publish(ctx, bus.SubjectClips(edge), "clip-"+id, job); err != nil {
		return k.state, err
	}
	k, err := c.change(ctx, id, k, func(s *schemas.ClipState) (bool, error) {
		// A detector may have been faster.
		if s.State != schemas.ClipUploading && !s.Stamps.Queued.IsZero() {
			return false, nil
		}
		if s.State == schemas.ClipUploading {
			s.State = schemas.ClipQueued
		}
		if s.Stamps.Queued.IsZero() {
			s.Stamps.Queued = job.Queued
		}
		return true, nil
	})
	if err == nil {
		c.metrics.queued.Inc()
	}
	return k.state, err
}

// abandon drops a multipart upload that was not needed in the end.
func (c *clips) abandon(ctx context.Context, id, upload string) {
	if err := c.store.AbortUpload(ctx, bucketClips, id, upload); err != nil {
		c.log.Info("a multipart upload stays until the store drops it", "clip", id, "error", err)
	}
}

// errNotThere and errWrongBytes are what check finds.
var (
	errNotThere   = errors.New("its bytes are not in the store")
	errWrongBytes = errors.New("what is stored is not the clip")
	errForeign    = errors.New("what is stored is another edge's")
)

// check looks at the stored bytes of a clip. Where the store has checked their
// SHA-256 itself it costs one request; else they are read back.
func (c *clips) check(ctx context.Context, edge string, clip *schemas.Clip) error {
	o, err := c.store.Head(ctx, bucketClips, clip.ID)
	if errors.Is(err, objectstore.ErrNoObject) {
		return errNotThere
	}
	if err != nil {
		return err
	}
	if owner := o.Metadata[metaEdge]; owner != edge {
		return errForeign
	}
	if o.Size != clip.Size {
		return fmt.Errorf("%w: %d bytes, size_bytes says %d", errWrongBytes, o.Size, clip.Size)
	}
	if o.SHA256 != nil {
		return compareHash(o.SHA256, clip)
	}
	select {
	case c.hashes <- struct{}{}:
		defer func() { <-c.hashes }()
	case <-ctx.Done():
		return ctx.Err()
	}
	began := time.Now()
	body, _, err := c.store.Get(ctx, bucketClips, clip.ID)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	sum := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, io.LimitReader(body, clip.Size+1), make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("read clip %s back: %w", clip.ID, err)
	}
	if n != clip.Size {
		return fmt.Errorf("read clip %s back: %d of %d bytes", clip.ID, n, clip.Size)
	}
	c.metrics.checked.Observe(time.Since(began).Seconds())
	return compareHash(sum.Sum(nil), clip)
}

func compareHash(sum []byte, clip *schemas.Clip) error {
	if got := hex.EncodeToString(sum); got != clip.SHA256 {
		return fmt.Errorf("%w: SHA-256 %s, sha256 says %s", errWrongBytes, got, clip.SHA256)
	}
	return nil
}

// fits reports what of a result is not the clip's and the edge's.
func fits(d *schemas.Detections, edge string, clip *schemas.Clip) error {
	err := d.Validate()
	for _, f := range []struct{ field, got, want string }{
		{"clip", d.Clip, clip.ID}, {"clip_sha256", d.SHA256, clip.SHA256}, {"edge", d.Edge, edge}, {"where", d.Where, schemas.WhereEdge},
	} {
		if f.got != f.want {
			err = errors.Join(err, fmt.Errorf("result.%s: %s, want %q", f.field, short(f.got), f.want))
		}
	}
	if len(d.Worker) > 256 || len(d.Error) > schemas.MaxEventString || len(d.Labels) > 1000 {
		err = errors.Join(err, errors.New("result.worker, result.error, result.labels: too long"))
	}
	return err
}

// invalid makes a problem of the faults of something from outside.
func invalid(what string, err error) *api.Problem {
	p := problem(http.StatusUnprocessableEntity, "%s is not valid", what)
	for _, f := range flat(err) {
		text := f.Error()
		location, message, found := strings.Cut(text, ": ")
		if !found || strings.ContainsAny(location, " ") {
			location, message = what, text
		}
		p.Errors = append(p.Errors, api.ProblemItem{Location: location, Message: message})
	}
	return p
}

func flat(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // every error of a tree, not one in it
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flat(e)...)
		}
		return all
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// explain turns errors of the store and the bus into what an edge is told, and
// logs what was refused.
func (c *clips) explain(ctx context.Context, edge, id string, err error) *api.Problem {
	var p *api.Problem
	var large *tooLargeError
	reason := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errRevoked):
		reason, p = "revoked", problem(http.StatusUnauthorized, "the token was revoked")
	case errors.As(err, &p):
		reason = map[int]string{
			http.StatusConflict: "conflict", http.StatusRequestEntityTooLarge: "size", http.StatusUnsupportedMediaType: "type",
			http.StatusUnprocessableEntity: "invalid", http.StatusTooManyRequests: "busy", http.StatusGone: "gone", http.StatusBadRequest: "form",
		}[p.Status]
	case errors.Is(err, errSlow):
		reason, p = "slow", problem(http.StatusRequestTimeout, "the body comes too slowly: want %d bytes a second on average and no pause of %s", c.cfg.MinRate, c.cfg.Pause)
	case errors.Is(err, errWrongBytes), errors.Is(err, errTooLong):
		reason, p = "checksum", problem(http.StatusUnprocessableEntity, "clip %s: %v; nothing was stored", id, err)
	case errors.Is(err, errForeign):
		reason, p = "conflict", problem(http.StatusConflict, "clip %s: the id is taken", id)
	case errors.Is(err, errNotThere), errors.Is(err, objectstore.ErrNoUpload):
		reason, p = "gone", problem(http.StatusGone, "clip %s: %v: POST /v1/clips/%s/upload begins anew", id, errNotThere, id)
	case errors.As(err, &large):
		reason, p = "size", problem(http.StatusRequestEntityTooLarge, "a part has more than %d bytes", large.limit)
	case errors.Is(err, errForm), errors.Is(err, io.ErrUnexpectedEOF):
		reason, p = "form", problem(http.StatusBadRequest, "%s", err)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			reason, p.Detail = "truncated", "the body ends before the form does"
		}
	case ctx.Err() != nil:
		reason, p = "gone", problem(http.StatusServiceUnavailable, "the request ended: %v", context.Cause(ctx))
	default:
		// Addresses and keys of the store are nobody's business out there.
		c.log.Error("clip not taken", "edge", edge, "clip", short(id), "error", err)
		c.metrics.refused.WithLabelValues("failed").Inc()
		return problem(http.StatusServiceUnavailable, "the lab cannot store it now (%s): try again", objectstore.Classify(err))
	}
	if reason == "" {
		return p
	}
	c.metrics.refused.WithLabelValues(reason).Inc()
	attrs := []any{"edge", edge, "clip", short(id), "status", p.Status, "reason", p.Detail}
	for _, e := range p.Errors[:min(len(p.Errors), 3)] {
		attrs = append(attrs, "fault", fmt.Sprintf("%v: %v", e.Location, e.Message))
	}
	c.log.Warn("clip refused", attrs...)
	return p
}

// answer is explain for huma's handlers.
func (c *clips) answer(ctx context.Context, edge, id string, err error) error {
	if err == nil {
		return nil
	}
	p := c.explain(ctx, edge, id, err)
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {"1"}})
	}
	return p
}

type clipMetrics struct {
	received prometheus.Counter
	bytes    prometheus.Counter
	results  prometheus.Counter
	queued   prometheus.Counter
	mended   *prometheus.CounterVec
	refused  *prometheus.CounterVec
	checked  prometheus.Histogram
}

func newClipMetrics(r prometheus.Registerer) *clipMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "transferlab_clips_" + name, Help: help})
	}
	m := &clipMetrics{
		received: counter("received_total", "Clips stored while they were received."),
		bytes:    counter("received_bytes_total", "Their bytes."),
		results:  counter("results_total", "Results of edges stored."),
		queued:   counter("queued_total", "Jobs put into the queue of the detectors."),
		mended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "transferlab_clips_mended_total", Help: "Clips that were stuck, by what was missing.",
		}, []string{"missing"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "transferlab_clips_refused_total", Help: "Requests of edges refused, by reason.",
		}, []string{"reason"}),
		checked: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "transferlab_clips_check_seconds", Help: "Time to read a stored clip back and hash it.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
	}
	r.MustRegister(m.received, m.bytes, m.results, m.queued, m.mended, m.refused, m.checked)
	return m
}
