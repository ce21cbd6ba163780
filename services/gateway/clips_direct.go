package gateway

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// grant says where the bytes of a clip go. exact is false while the clip's size
// is only bounded.
func (c *clips) grant(ctx context.Context, a *account, clip *schemas.Clip, exact bool) (api.ClipUpload, error) {
	var none api.ClipUpload
	if err := c.enabled(); err != nil {
		return none, err
	}
	if err := c.small(clip.Size); err != nil {
		return none, err
	}
	unlock := c.locks.lock(clip.ID)
	defer unlock()
	k, err := c.look(ctx, clip.ID)
	if err != nil {
		return none, err
	}
	if k.found {
		// A reservation says nothing of the bytes.
		if s := k.state; s.Edge != a.name || exact {
			if err := sameClip(&s, a.name, clip); err != nil {
				return none, err
			}
		}
		if received(&k.state) || k.state.State == schemas.ClipQueued {
			return api.ClipUpload{State: k.state, PartBytes: c.cfg.PartBytes, Parts: []api.ClipPart{}}, nil
		}
	}
	var have []objectstore.Part
	if k.state.Upload != "" {
		have, err = c.store.Parts(ctx, bucketClips, clip.ID, k.state.Upload)
		switch {
		case errors.Is(err, objectstore.ErrNoUpload):
			k.state.Upload = ""
		case err != nil:
			return none, err
		}
	}
	whole := exact && k.state.Upload == "" && clip.Size <= c.cfg.PartBytes
	if k, err = c.announce(ctx, a, clip, exact, whole, k); err != nil {
		return none, err
	}
	out := api.ClipUpload{State: k.state, PartBytes: c.cfg.PartBytes, Parts: []api.ClipPart{}}
	now := time.Now().UTC()
	out.Expires = now.Add(c.cfg.Expiry)
	if whole {
		return out, c.presignWhole(ctx, a, clip, now, &out)
	}
	for n := 1; n <= c.partsOf(clip.Size); n++ {
		part := api.ClipPart{N: n, Size: c.sizeOf(clip.Size, n)}
		length := part.Size
		if !exact {
			length, part.Size = objectstore.AnyLength, c.cfg.PartBytes
		}
		at := slices.IndexFunc(have, func(p objectstore.Part) bool { return p.Number == n })
		if at >= 0 && (have[at].Size == length || !exact) {
			part.Done, part.ETag, part.Size = true, have[at].ETag, have[at].Size
		} else if part.URL, err = c.public.PresignPart(ctx, bucketClips, clip.ID, k.state.Upload, n, length, c.cfg.Expiry, now); err != nil {
			return none, err
		}
		out.Parts = append(out.Parts, part)
	}
	return out, nil
}

// partsOf is how many parts a clip has.
func (c *clips) partsOf(size int64) int { return int((size + c.cfg.PartBytes - 1) / c.cfg.PartBytes) }

// sizeOf is the size of part n.
func (c *clips) sizeOf(size int64, n int) int64 {
	return min(c.cfg.PartBytes, size-int64(n-1)*c.cfg.PartBytes)
}

// announce notes a clip that will be uploaded, and begins its multipart upload.
func (c *clips) announce(ctx context.Context, a *account, clip *schemas.Clip, exact, whole bool, k known) (known, error) {
	begun := ""
	if k.state.Upload == "" && !whole {
		if open := c.index.uploads(a.name); open >= c.cfg.EdgeOpen {
			return k, problem(http.StatusTooManyRequests, "%d uploads of edge %s are not complete, which is the most at a time: complete some, or wait for %s", open, a.name, c.cfg.UploadTTL)
		}
		metadata := map[string]string{metaEdge: a.name}
		if exact {
			metadata[metaSHA256] = clip.SHA256
		}
		var err error
		if begun, err = c.store.BeginUpload(ctx, bucketClips, clip.ID, clip.Type, metadata); err != nil {
			return k, err
		}
	}
	lost := k.found && k.state.Upload == ""
	k, err := c.change(ctx, clip.ID, k, func(s *schemas.ClipState) (bool, error) {
		if s.Edge != "" && s.Edge != a.name {
			return false, problem(http.StatusConflict, "clip %s: the id is taken", clip.ID)
		}
		before := *s
		s.Edge = a.name
		if s.State == "" {
			s.State = schemas.ClipUploading
		}
		if exact {
			s.Clip = *clip
		} else if s.Clip.ID == "" {
			s.Clip = schemas.Clip{ID: clip.ID, Type: clip.Type}
		}
		if begun != "" {
			s.Upload = begun
		}
		return lost || before != *s, nil
	})
	if err != nil && begun != "" {
		c.abandon(context.WithoutCancel(ctx), clip.ID, begun)
	}
	return k, err
}

// presignWhole lets a clip be stored in one piece, of which the store checks the
// SHA-256.
func (c *clips) presignWhole(ctx context.Context, a *account, clip *schemas.Clip, now time.Time, out *api.ClipUpload) error {
	sum, err := hex.DecodeString(clip.SHA256)
	if err != nil {
		return err
	}
	headers := http.Header{
		"Content-Type": {clip.Type}, "If-None-Match": {"*"}, "X-Amz-Checksum-Sha256": {objectstore.EncodeSHA256(sum)},
		"X-Amz-Meta-" + metaEdge: {a.name}, "X-Amz-Meta-" + metaSHA256: {clip.SHA256},
	}
	if out.PutURL, err = c.public.PresignPut(ctx, bucketClips, clip.ID, clip.Size, headers, c.cfg.Expiry, now); err != nil {
		return err
	}
	out.PutHeaders = map[string]string{}
	for name, values := range headers {
		out.PutHeaders[name] = values[0]
	}
	return nil
}

// complete makes a clip of what was uploaded directly.
func (c *clips) complete(ctx context.Context, a *account, in *completion) (schemas.ClipState, error) {
	if err := c.enabled(); err != nil {
		return schemas.ClipState{}, err
	}
	clip := &in.Clip
	if err := c.small(clip.Size); err != nil {
		return schemas.ClipState{}, err
	}
	unlock := c.locks.lock(clip.ID)
	defer unlock()
	k, err := c.look(ctx, clip.ID)
	if err != nil {
		return k.state, err
	}
	if k.found {
		if err := sameClip(&k.state, a.name, clip); err != nil {
			return k.state, err
		}
	}
	if !received(&k.state) {
		if k.state.Upload != "" {
			err = c.assemble(ctx, clip, in.Parts, k.state.Upload)
			if err == nil || errors.Is(err, objectstore.ErrNoUpload) {
				k.completed = k.state.Upload
			}
		}
		if err == nil || errors.Is(err, objectstore.ErrNoUpload) || errors.Is(err, objectstore.ErrExists) {
			err = c.check(ctx, a.name, clip)
		}
		if errors.Is(err, errWrongBytes) {
			err = errors.Join(err, c.discard(ctx, clip.ID, k))
		}
		if err != nil {
			return k.state, err
		}
	}
	return c.settle(ctx, a.name, clip, in.own, k)
}

// assemble makes an object of the parts that the store has, if they are all
// those of the clip.
func (c *clips) assemble(ctx context.Context, clip *schemas.Clip, told []api.ClipETag, upload string) error {
	have, err := c.store.Parts(ctx, bucketClips, clip.ID, upload)
	if err != nil {
		return err
	}
	parts := make([]objectstore.Part, 0, c.partsOf(clip.Size))
	var faults []error
	for n := 1; n <= c.partsOf(clip.Size); n++ {
		at := slices.IndexFunc(have, func(p objectstore.Part) bool { return p.Number == n })
		switch want := c.sizeOf(clip.Size, n); {
		case at < 0:
			faults = append(faults, fmt.Errorf("parts[%d]: not in the store", n))
			continue
		case have[at].Size != want:
			faults = append(faults, fmt.Errorf("parts[%d]: %d bytes in the store, want %d", n, have[at].Size, want))
			continue
		}
		for _, t := range told {
			if t.N == n && strings.Trim(t.ETag, `"`) != have[at].ETag {
				faults = append(faults, fmt.Errorf("parts[%d]: etag %s, but the store has %q", n, short(t.ETag), have[at].ETag))
			}
		}
		parts = append(parts, have[at])
	}
	if len(faults) > 0 {
		return invalid("parts", errors.Join(faults[:min(len(faults), 100)]...))
	}
	return c.store.CompleteUpload(ctx, bucketClips, clip.ID, upload, parts, true)
}

// discard removes bytes that are not the clip's, so that the right ones may
// come.
func (c *clips) discard(ctx context.Context, id string, k known) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepPatience)
	defer cancel()
	if err := c.store.Delete(ctx, bucketClips, id); err != nil {
		return err
	}
	if !k.found || k.revision == 0 {
		return nil
	}
	_, err := c.change(ctx, id, k, func(s *schemas.ClipState) (bool, error) {
		gone := s.Upload != "" && s.Upload == k.completed
		if gone {
			s.Upload = ""
		}
		return gone, nil
	})
	return err
}

// seen stores a result ahead of the clip's bytes.
func (c *clips) seen(ctx context.Context, a *account, clip *schemas.Clip, own *schemas.Detections) (schemas.ClipState, error) {
	if err := c.enabled(); err != nil {
		return schemas.ClipState{}, err
	}
	if err := c.small(clip.Size); err != nil {
		return schemas.ClipState{}, err
	}
	unlock := c.locks.lock(clip.ID)
	defer unlock()
	k, err := c.document(ctx, clip.ID)
	if err != nil {
		return k.state, err
	}
	if k.found {
		if err := sameClip(&k.state, a.name, clip); err != nil || k.state.Ended() {
			return k.state, err
		}
	}
	d, at, err := c.storeResult(ctx, own)
	if err != nil {
		return k.state, err
	}
	if d.Edge != a.name || d.SHA256 != clip.SHA256 {
		return k.state, problem(http.StatusConflict, "clip %s: the id is taken", clip.ID)
	}
	k, err = c.change(ctx, clip.ID, k, func(s *schemas.ClipState) (bool, error) {
		if s.Edge != "" {
			if err := sameClip(s, a.name, clip); err != nil || s.Ended() {
				return false, err
			}
		}
		s.Clip, s.Edge, s.Stamps.Stored = *clip, a.name, at
		ended(s, d)
		return true, nil
	})
	return k.state, err
}

// completion is the body of a completion, its result held against the clip.
type completion struct {
	Clip   schemas.Clip    `json:"clip"`
	Parts  []api.ClipETag  `json:"parts,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`

	own *schemas.Detections
}

// maxCompletion leaves room for the parts' tags beside the result.
const maxCompletion = schemas.MaxResultBytes + 2<<20

// readCompletion reads the body of a completion or of a result. It is not left
// to huma, which would hold it in memory before it is known whether there is a
// place for it.
func readCompletion(r *http.Request, a *account, id string) (*completion, error) {
	if r.ContentLength > maxCompletion {
		return nil, &tooLargeError{limit: maxCompletion}
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, maxCompletion+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxCompletion {
		return nil, &tooLargeError{limit: maxCompletion}
	}
	in := &completion{}
	if err := decodeStrictly(text, in); err != nil {
		return nil, problem(http.StatusBadRequest, "body: %s", err)
	}
	err = in.Clip.Validate()
	if in.Clip.ID != id {
		err = errors.Join(err, fmt.Errorf("clip.id: %s, want %s as in the path", short(in.Clip.ID), short(id)))
	}
	if len(in.Parts) > 10_000 {
		err = errors.Join(err, fmt.Errorf("parts: %d, want at most 10000", len(in.Parts)))
	}
	if err != nil {
		return nil, invalid("body", err)
	}
	if len(in.Result) > schemas.MaxResultBytes {
		return nil, &tooLargeError{limit: schemas.MaxResultBytes}
	}
	if len(in.Result) > 0 && string(in.Result) != "null" {
		in.own, err = parseResult(in.Result, a.name, &in.Clip)
	}
	return in, err
}

// ClipPath names a clip in a path.
type ClipPath struct {
	ID string `path:"id" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9_-]*$" doc:"Id of the clip."`
}

// settling serves an operation whose body has a clip and perhaps its result.
func (g *Gateway) settling(do func(context.Context, *account, *completion) (schemas.ClipState, error)) func(context.Context, *ClipPath) (*huma.StreamResponse, error) {
	return func(_ context.Context, in *ClipPath) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hctx huma.Context) {
			r, w := humago.Unwrap(hctx)
			a := accountOf(r.Context())
			state, err := func() (schemas.ClipState, error) {
				release, err := g.clips.admit(a)
				if err != nil {
					return schemas.ClipState{}, err
				}
				defer release()
				c, err := readCompletion(r, a, in.ID)
				if err != nil {
					return schemas.ClipState{}, err
				}
				return do(r.Context(), a, c)
			}()
			if err != nil {
				p := g.clips.explain(r.Context(), a.name, in.ID, err)
				if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
					hctx.SetHeader("Retry-After", "1")
				}
				hctx.SetHeader("Content-Type", "application/problem+json")
				hctx.SetStatus(p.Status)
				_ = json.NewEncoder(w).Encode(p)
				return
			}
			hctx.SetHeader("Content-Type", "application/json")
			hctx.SetStatus(http.StatusOK)
			_ = json.NewEncoder(w).Encode(state)
		}}, nil
	}
}

// own is the state of a clip of the edge's.
func (c *clips) own(ctx context.Context, a *account, id string) (schemas.ClipState, error) {
	k, err := c.look(ctx, id)
	if err == nil && (!k.found || k.state.Edge != a.name) {
		err = problem(http.StatusNotFound, "no clip %s of edge %s", id, a.name)
	}
	return k.state, err
}

// offloadLoad is what edges are told of the other side, asked for once in a
// while however many ask.
type offloadLoad struct {
	detectors *bus.Bucket[schemas.DetectorStatus]
	gate      chan struct{} // one asks at a time
	state     schemas.OffloadState
}

// loadGrain is how old the answer may be.
const loadGrain = 250 * time.Millisecond

func (c *clips) offload(ctx context.Context) (schemas.OffloadState, error) {
	l := &c.load
	select {
	case l.gate <- struct{}{}:
		defer func() { <-l.gate }()
	case <-ctx.Done():
		return schemas.OffloadState{}, ctx.Err()
	}
	now := time.Now().UTC()
	if now.Sub(l.state.Now) < loadGrain {
		return l.state, nil
	}
	all, err := l.detectors.List(ctx, ">")
	if err != nil {
		return schemas.OffloadState{}, err
	}
	s := schemas.OffloadState{Now: now}
	var measured time.Duration
	for _, e := range all {
		d := e.Value
		if d.Draining {
			continue
		}
		s.Slots += d.Slots
		if d.Service > 0 {
			s.Service += d.Service
			measured++
		}
	}
	if measured > 0 {
		s.Service /= measured
	}
	if s.Waiting, s.InWork, err = c.node.Bus.Backlog(ctx, bus.StreamClips, bus.ConsumerDetectors); err != nil {
		// No detector has ever been there: what is queued waits.
		s.Waiting, s.InWork = c.index.queued(), 0
	}
	l.state = s
	return s, nil
}

// edgeOp is an operation for edges.
func edgeOp(id, method, path, summary string) huma.Operation {
	op := operation(id, method, path, "clips", summary)
	op.Metadata = map[string]any{edgeOperation: true}
	return op
}

func (g *Gateway) registerClips() {
	c := g.clips
	schema := func(v any) *huma.Schema {
		return g.api.OpenAPI().Components.Schemas.Schema(reflect.TypeOf(v), true, "")
	}
	answers := func(op huma.Operation, v any, statuses ...int) huma.Operation {
		op.Responses = map[string]*huma.Response{}
		for _, status := range statuses {
			op.Responses[strconv.Itoa(status)] = &huma.Response{
				Description: http.StatusText(status), Content: map[string]*huma.MediaType{"application/json": {Schema: schema(v)}},
			}
		}
		return op
	}
	// Bodies that are read here are described afterwards: huma would read them.
	takes := func(path, kind string, m *huma.MediaType) {
		g.api.OpenAPI().Paths[path].Post.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{kind: m}}
	}

	post := answers(edgeOp("post-clip", http.MethodPost, "/v1/clips", "Store a clip, and what the edge saw in it if it looked itself"), schemas.ClipState{}, http.StatusOK, http.StatusCreated)
	post.Description = "The parts come in this order: meta (JSON), clip (bytes, with the Content-Type that meta names), result (JSON) or none. They are stored while they are received; nothing is stored unless all of the request is right."
	huma.Register(g.api, post, g.receiveClip)
	takes("/v1/clips", "multipart/form-data", &huma.MediaType{
		Schema: &huma.Schema{Type: huma.TypeObject, Required: []string{"meta", "clip"}, Properties: map[string]*huma.Schema{
			"meta": schema(schemas.Clip{}), "clip": {Type: huma.TypeString, Format: "binary"}, "result": schema(schemas.Detections{}),
		}},
		Encoding: map[string]*huma.Encoding{
			"meta": {ContentType: "application/json"}, "clip": {ContentType: strings.Join(schemas.ClipTypes(), ", ")}, "result": {ContentType: "application/json"},
		},
	})

	huma.Register(g.api, edgeOp("reserve-clip", http.MethodPost, "/v1/clips/{id}/reserve", "Where the bytes of a clip may go that is still being recorded"),
		func(ctx context.Context, in *struct {
			ClipPath
			Body api.ClipReserve
		},
		) (*struct{ Body api.ClipUpload }, error) {
			a := accountOf(ctx)
			if !slices.Contains(schemas.ClipTypes(), in.Body.Type) {
				return nil, c.answer(ctx, a.name, in.ID, invalid("body", fmt.Errorf("type: %s, want one of %s", short(in.Body.Type), strings.Join(schemas.ClipTypes(), ", "))))
			}
			out, err := c.grant(ctx, a, &schemas.Clip{ID: in.ID, Type: in.Body.Type, Size: in.Body.MaxBytes}, false)
			return &struct{ Body api.ClipUpload }{out}, c.answer(ctx, a.name, in.ID, err)
		})
	huma.Register(g.api, edgeOp("upload-clip", http.MethodPost, "/v1/clips/{id}/upload", "Where the bytes of a clip go: presigned URLs of the store, for those parts that it does not have"),
		func(ctx context.Context, in *struct {
			ClipPath
			Body schemas.Clip
		},
		) (*struct{ Body api.ClipUpload }, error) {
			a := accountOf(ctx)
			err := in.Body.Validate()
			if in.Body.ID != in.ID {
				err = errors.Join(err, fmt.Errorf("clip.id: %s, want %s as in the path", short(in.Body.ID), short(in.ID)))
			}
			if err != nil {
				return nil, c.answer(ctx, a.name, in.ID, invalid("body", err))
			}
			out, err := c.grant(ctx, a, &in.Body, true)
			return &struct{ Body api.ClipUpload }{out}, c.answer(ctx, a.name, in.ID, err)
		})
	done := edgeOp("complete-clip", http.MethodPost, "/v1/clips/{id}/complete", "Every byte of a clip is sent")
	huma.Register(g.api, answers(done, schemas.ClipState{}, http.StatusOK), g.settling(c.complete))
	takes(done.Path, "application/json", &huma.MediaType{Schema: schema(api.ClipComplete{})})
	early := edgeOp("put-clip-result", http.MethodPost, "/v1/clips/{id}/result", "What the edge saw in a clip whose bytes follow")
	huma.Register(g.api, answers(early, schemas.ClipState{}, http.StatusOK), g.settling(func(ctx context.Context, a *account, in *completion) (schemas.ClipState, error) {
		if in.own == nil {
			return schemas.ClipState{}, invalid("body", errors.New("result: missing, want what was seen in the clip"))
		}
		return c.seen(ctx, a, &in.Clip, in.own)
	}))
	takes(early.Path, "application/json", &huma.MediaType{Schema: schema(api.ClipSeen{})})

	both := edgeOp("get-clip-result", http.MethodGet, "/v1/clips/{id}/result", "What was seen in a clip; the operator may ask for any")
	both.Metadata[operatorToo] = true
	huma.Register(g.api, both, func(ctx context.Context, in *ClipPath) (*struct{ Body *schemas.Detections }, error) {
		name := "operator"
		a := accountOf(ctx)
		if a != nil {
			name = a.name
		}
		if err := c.enabled(); err != nil {
			return nil, err
		}
		d, _, err := c.result(ctx, in.ID)
		if errors.Is(err, objectstore.ErrNoObject) || err == nil && a != nil && d.Edge != a.name {
			return nil, problem(http.StatusNotFound, "no result of clip %s", in.ID)
		}
		return &struct{ Body *schemas.Detections }{d}, c.answer(ctx, name, in.ID, err)
	})
	huma.Register(g.api, edgeOp("get-clip", http.MethodGet, "/v1/clips/{id}", "What the lab knows of a clip of this edge"),
		func(ctx context.Context, in *ClipPath) (*struct{ Body schemas.ClipState }, error) {
			a := accountOf(ctx)
			s, err := c.own(ctx, a, in.ID)
			return &struct{ Body schemas.ClipState }{s}, c.answer(ctx, a.name, in.ID, err)
		})
	confirm := edgeOp("confirm-clips", http.MethodPost, "/v1/clips/confirm", "Which of these clips have ended; waits for the first")
	confirm.MaxBodyBytes = 256 << 10
	huma.Register(g.api, confirm, func(ctx context.Context, in *struct{ Body api.ClipConfirm }) (*struct{ Body api.ClipConfirmed }, error) {
		a := accountOf(ctx)
		out, err := c.confirm(ctx, a, &in.Body)
		return &struct{ Body api.ClipConfirmed }{out}, c.answer(ctx, a.name, "", err)
	})
	report := edgeOp("report-clip", http.MethodPost, "/v1/clips/{id}/outcome", "A clip's whole way as its edge tells it: becomes the clip's event")
	report.DefaultStatus = http.StatusNoContent
	huma.Register(g.api, report, func(ctx context.Context, in *struct {
		ClipPath
		Body schemas.ClipOutcome
	},
	) (*struct{}, error) {
		a := accountOf(ctx)
		err := in.Body.Validate()
		if in.Body.Clip.ID != in.ID {
			err = errors.Join(err, fmt.Errorf("clip.id: %s, want %s as in the path", short(in.Body.Clip.ID), short(in.ID)))
		}
		if err != nil {
			return nil, c.answer(ctx, a.name, in.ID, invalid("body", err))
		}
		return nil, c.answer(ctx, a.name, in.ID, c.report(ctx, a, &in.Body))
	})
	huma.Register(g.api, edgeOp("offload-state", http.MethodGet, "/v1/offload", "How busy the lab's detectors are"),
		func(ctx context.Context, _ *struct{}) (*struct{ Body schemas.OffloadState }, error) {
			a := accountOf(ctx)
			s, err := c.offload(ctx)
			return &struct{ Body schemas.OffloadState }{s}, c.answer(ctx, a.name, "", err)
		})
}
