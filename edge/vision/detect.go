package vision

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/transferlab/transferlab/edge/vision/internal/nets"
	"github.com/transferlab/transferlab/edge/vision/internal/wire"
	"github.com/transferlab/transferlab/schemas"
)

// What is a clip's, or its model's, own fault.
var (
	// ErrUndecodable says that a clip is no video, or a broken, too long or too large one.
	ErrUndecodable = errors.New("clip cannot be decoded")
	// ErrModel says that a model is not there, is faulty or does not fit.
	ErrModel = errors.New("model cannot be used")
	// ErrCrashed says that transferlab-vision died while it had the clip.
	ErrCrashed = errors.New("detection crashed")
	// errClosed says that the detector is closed.
	errClosed = errors.New("detector is closed")
)

// Status is the status of a result for what Detect returned: one of package schemas'; ""
// for an error that is not the clip's and may not come again, such as one of the
// reader or the end of the context.
func Status(err error) string {
	switch {
	case err == nil:
		return schemas.StatusOK
	case isSource(err):
		return ""
	case errors.Is(err, ErrUndecodable):
		return schemas.StatusUndecodable
	case errors.Is(err, ErrModel):
		return schemas.StatusModel
	case errors.Is(err, ErrCrashed):
		return schemas.StatusCrashed
	}
	return ""
}

// maxObjects bounds a result, which is to be stored in schemas.MaxResultBytes.
const maxObjects = 20_000

// Outcome is what was seen in a clip.
type Outcome struct {
	Model  schemas.ModelUsed
	Sample float64         // frames looked at for each second
	Frames []schemas.Frame // every one looked at; neither this nor their objects are nil
	Labels map[string]float64
	// Decode and Infer are how long ffmpeg and the model were busy: without the time
	// they waited for the clip's bytes and for each other.
	Decode, Infer time.Duration
	// Fetched is when the reader came to its end, Decoded when the decoder had, and
	// Inferred when all frames had been looked at, too: each not before the one before.
	Fetched, Decoded, Inferred time.Time
	// Annotated is a JPEG of the frame in which most was seen, with boxes, if it was asked
	// for and anything was seen.
	Annotated []byte
}

// Detector looks at clips. It may be used from several goroutines.
type Detector struct {
	o     Options
	slots chan struct{}

	mu        sync.Mutex
	idle      []*worker
	failures  int // worker processes in a row that failed
	notBefore time.Time
	closed    context.Context
	close     context.CancelCauseFunc
}

func newDetector(o Options) *Detector {
	d := &Detector{o: o, slots: make(chan struct{}, o.Slots)}
	d.closed, d.close = context.WithCancelCause(context.Background())
	return d
}

// Close ends the worker processes. What is under way fails.
func (d *Detector) Close() error {
	d.close(errClosed)
	// Everybody who is at work gives the slot back.
	for range cap(d.slots) {
		d.slots <- struct{}{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.idle {
		w.end()
	}
	d.idle = nil
	for range cap(d.slots) {
		<-d.slots
	}
	return nil
}

// Warm starts a worker process and loads the model that is used unless a clip asks for
// another, so that the first clip need not wait for it.
func (d *Detector) Warm(ctx context.Context) error {
	ctx, w, release, err := d.ready(ctx, "")
	if err != nil {
		return err
	}
	_ = ctx
	release(w, nil)
	return nil
}

// ready returns a worker that has loaded the model, and a context that also ends with the
// detector. The worker must be released with how it went.
func (d *Detector) ready(ctx context.Context, model string) (context.Context, *worker, func(*worker, error), error) {
	if model == "" {
		model = d.Model()
	}
	load, err := nets.Find(model, d.o.Dirs)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrModel, err)
	}
	load.Threads = d.o.Threads
	select {
	case d.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(d.closed, func() { cancel(errClosed) })
	release := func(w *worker, err error) {
		stop()
		cancel(nil)
		d.release(w, err)
		<-d.slots
	}
	if d.closed.Err() != nil {
		// The context follows a little later.
		release(nil, nil)
		return nil, nil, nil, errClosed
	}
	w, err := d.take(ctx, load)
	if err != nil {
		release(nil, unless(ctx, err))
		return nil, nil, nil, err
	}
	if err := w.load(ctx, load, d.o.Timeout); err != nil {
		release(w, err)
		return nil, nil, nil, err
	}
	return ctx, w, release, nil
}

// take returns a worker that waits, one with the model if there is, or starts one.
func (d *Detector) take(ctx context.Context, load wire.Load) (*worker, error) {
	d.mu.Lock()
	var w *worker
	var alive []*worker
	for _, i := range d.idle {
		if !i.alive() {
			d.o.Log.Warn("worker ended by itself", "how", i.last())
			i.end()
			continue
		}
		alive = append(alive, i)
	}
	d.idle = alive
	for i, candidate := range d.idle {
		if candidate.loaded == load || i == len(d.idle)-1 {
			w = candidate
			d.idle = append(d.idle[:i], d.idle[i+1:]...)
			break
		}
	}
	wait := time.Until(d.notBefore)
	d.mu.Unlock()
	if w != nil {
		return w, nil
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	return d.startWorker(ctx)
}

// release takes a worker back, if it lives, and remembers failures: a worker that dies
// with every clip is not started anew as fast as it dies.
func (d *Detector) release(w *worker, err error) {
	const longest = 5 * time.Second
	d.mu.Lock()
	defer d.mu.Unlock()
	if w != nil && w.alive() && !errors.Is(err, ErrCrashed) {
		if err == nil {
			d.failures = 0
		}
		d.idle = append(d.idle, w)
		return
	}
	if w != nil {
		w.kill()
		w.end()
		d.o.Log.Warn("worker ended", "how", w.last(), "clip", fmt.Sprint(err))
	}
	// One that was ended because nobody wants its answer any more did not fail.
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errClosed) {
		return
	}
	d.failures++
	d.notBefore = time.Now().Add(min(longest, 50*time.Millisecond<<min(d.failures, 10)))
}

// Detect looks at a clip that it reads from r, of which the type, the kind of detection and
// the size (as a bound) must be set.
//
// It reads r to its end, also if the clip cannot be decoded, so that a caller that
// computes a checksum beside it has seen all. It does not if the context ends, the
// model cannot be used or the worker crashes. It does not return while a Read of r is
// under way: r must fail soon after the context has ended.
//
// Errors are ErrUndecodable, ErrModel and ErrCrashed (see Status); those of r; the
// context's.
func (d *Detector) Detect(ctx context.Context, r io.Reader, clip schemas.Clip) (Outcome, error) {
	if err := clip.Detection.Validate(); err != nil {
		return Outcome{}, err
	}
	if demuxers()[clip.Type] == "" {
		return Outcome{}, fmt.Errorf("%w: type %q", ErrUndecodable, clip.Type)
	}
	ctx, w, release, err := d.ready(ctx, clip.Detection.Model)
	if err != nil {
		return Outcome{}, err
	}
	out, err := d.detect(ctx, w, r, &clip)
	release(w, err)
	return out, err
}

func (d *Detector) detect(ctx context.Context, w *worker, r io.Reader, clip *schemas.Clip) (Outcome, error) {
	out := Outcome{
		Model:  schemas.ModelUsed{Name: w.loaded.Name, SHA256: w.info.SHA256, Engine: w.engine},
		Sample: clip.Detection.Sample, Frames: []schemas.Frame{}, Labels: map[string]float64{},
	}
	if out.Sample == 0 {
		out.Sample = d.o.Sample
	}
	threshold := clip.Detection.Threshold
	if threshold == 0 {
		threshold = d.o.Threshold
	}
	if threshold == 0 {
		threshold = float64(w.info.Threshold)
	}

	src := newSource(r, clip)
	defer src.close()
	if clip.Detection.Annotate {
		if err := src.keep(); err != nil {
			return out, err
		}
	}
	working, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dec, err := d.decode(working, cancel, src, clip, out.Sample, shape{w.info.Width, w.info.Height, w.info.Stretch})
	if err != nil {
		return out, unless(ctx, err)
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		dec.watch(working, cancel, d.o.Timeout)
	}()
	objects := 0
	for p := range dec.pictures {
		began := time.Now()
		var seen []wire.Object
		if seen, err = w.look(working, p, float32(threshold), d.o.Timeout); err != nil {
			break
		}
		out.Infer += time.Since(began)
		if objects += len(seen); objects > maxObjects {
			err = fmt.Errorf("%w: more than %d objects in the clip at a threshold of %g: it is too low", ErrModel, maxObjects, threshold)
			break
		}
		out.add(p.sample, seen)
		select {
		case dec.free <- p.pix:
		default:
		}
	}
	if err != nil {
		cancel(err)
	}
	for range dec.pictures {
		// Until the decoder has noticed.
		continue
	}
	var decodeErr error
	out.Decode, decodeErr = dec.wait()
	stopped := context.Cause(working)
	cancel(nil)
	<-watched
	out.Fetched, out.Decoded, out.Inferred = src.fetched, src.fetched, time.Now()
	if dec.decoded.After(out.Decoded) {
		out.Decoded = dec.decoded
	}
	switch {
	case ctx.Err() != nil:
		return out, context.Cause(ctx)
	case stopped != nil:
		// The first thing that went wrong: what followed is its doing.
		err = stopped
	case decodeErr != nil:
		err = decodeErr
	case len(out.Frames) == 0:
		err = fmt.Errorf("%w: no frames%s", ErrUndecodable, after(dec.stderr.reason()))
	}
	if err != nil {
		if errors.Is(err, ErrUndecodable) && !isSource(err) {
			err = errors.Join(err, src.drain(ctx))
		}
		return out, unless(ctx, err)
	}
	if clip.Detection.Annotate && objects > 0 {
		if out.Annotated, err = d.annotate(ctx, src.copy, clip, &out); err != nil {
			return out, unless(ctx, err)
		}
	}
	return out, nil
}

// unless the context has ended, which then is the reason for everything else.
func unless(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func after(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func (out *Outcome) add(sample int, seen []wire.Object) {
	f := schemas.Frame{At: time.Duration(float64(sample) * float64(time.Second) / out.Sample), Objects: make([]schemas.Object, len(seen))}
	for i, o := range seen {
		f.Objects[i] = schemas.Object{Label: o.Label, Score: o.Score, Box: schemas.Box{X: o.X, Y: o.Y, W: o.W, H: o.H}}
		out.Labels[o.Label] = max(out.Labels[o.Label], o.Score)
	}
	out.Frames = append(out.Frames, f)
}
