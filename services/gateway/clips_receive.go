package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// errEnough ends an upload of which nothing more is wanted: the lab has it.
var errEnough = errors.New("the lab has the clip")

type receiveInput struct {
	ID     string `query:"id" maxLength:"128" doc:"Of the clip, to be told before its body is sent that the lab has it (with Expect: 100-continue)."`
	SHA256 string `query:"sha256" maxLength:"64" doc:"Of the clip; with id."`
}

// receiving is one clip on its way from a body to the store.
type receiving struct {
	c    *clips
	edge string
	r    *http.Request
	form *form

	clip   schemas.Clip
	known  known
	result *schemas.Detections
	asked  bool // the store, for what it remembers of the clip
	// remembered is what it knows, asked while the body comes.
	remembered chan known
	failed     error // of asking
}

// receiveClip serves POST /v1/clips.
func (g *Gateway) receiveClip(_ context.Context, in *receiveInput) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		a := accountOf(r.Context())
		id, state, status, err := g.clips.receive(r, a, in)
		if err != nil {
			p := g.clips.explain(r.Context(), a.name, id, err)
			if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
				hctx.SetHeader("Retry-After", "1")
			}
			hctx.SetHeader("Content-Type", "application/problem+json")
			hctx.SetStatus(p.Status)
			_ = json.NewEncoder(w).Encode(p)
			return
		}
		hctx.SetHeader("Content-Type", "application/json")
		hctx.SetStatus(status)
		_ = json.NewEncoder(w).Encode(state)
	}}, nil
}

// admit takes a place for a clip that is being received.
func (c *clips) admit(a *account) (release func(), err error) {
	for i, places := range []chan struct{}{a.uploads, c.uploads} {
		select {
		case places <- struct{}{}:
		default:
			if i > 0 {
				<-a.uploads
			}
			return nil, problem(http.StatusTooManyRequests, "%d clips are being received, which is the most at a time%s: try again later", cap(places), []string{" of one edge", ""}[i])
		}
	}
	return func() { <-c.uploads; <-a.uploads }, nil
}

func (c *clips) receive(r *http.Request, a *account, in *receiveInput) (id string, state schemas.ClipState, status int, err error) {
	fail := func(err error) (string, schemas.ClipState, int, error) { return id, state, 0, err }
	if err := c.enabled(); err != nil {
		return fail(err)
	}
	if most := c.cfg.MaxBytes + schemas.MaxResultBytes + maxMeta + formSlack; r.ContentLength > most {
		return fail(problem(http.StatusRequestEntityTooLarge, "a body of %d bytes, want at most %d (a clip of at most %d)", r.ContentLength, most, c.cfg.MaxBytes))
	}
	f, err := newForm(r.Body, r.Header.Get("Content-Type"))
	if err != nil {
		return fail(problem(http.StatusUnsupportedMediaType, "%s", err))
	}
	u := &receiving{c: c, edge: a.name, r: r, form: f}
	if in.ID != "" {
		id = in.ID
		if done, err := u.ahead(in); err != nil || done {
			return id, u.known.state, http.StatusOK, err
		}
	}
	release, err := c.admit(a)
	if err != nil {
		return fail(err)
	}
	defer release()
	if err := u.meta(in); err != nil {
		return fail(err)
	}
	id = u.clip.ID
	if done, err := u.before(); err != nil || done {
		return id, u.known.state, http.StatusOK, err
	}
	if err := u.clipPart(); err != nil {
		return fail(err)
	}
	state, status, err = u.store()
	return id, state, status, err
}

// ahead answers by the query alone, before any body was asked for.
func (u *receiving) ahead(in *receiveInput) (done bool, err error) {
	clip := schemas.Clip{ID: in.ID, SHA256: in.SHA256}
	err = schemas.ClipID(in.ID)
	if raw, herr := hex.DecodeString(in.SHA256); herr != nil || len(raw) != sha256.Size {
		err = errors.Join(err, fmt.Errorf("sha256: %s, want 64 hexadecimal digits", short(in.SHA256)))
	}
	if err != nil {
		return false, invalid("query", err)
	}
	k, err := u.c.look(u.r.Context(), in.ID)
	if err != nil || !k.found {
		u.asked = err == nil
		return false, err
	}
	clip.Size = k.state.Clip.Size
	if err := sameClip(&k.state, u.edge, &clip); err != nil {
		return false, err
	}
	return u.has(k)
}

// has reports whether nothing of the clip is missing at the lab, and queues the
// job if only that is. A job that is another gateway's to queue is queued once,
// by its message id.
func (u *receiving) has(k known) (done bool, err error) {
	u.known = k
	s := &k.state
	switch {
	case !received(s), s.State == schemas.ClipUploading && s.Where != schemas.WhereCloud:
		return false, nil
	case s.State == schemas.ClipUploading || k.revision == 0:
		unlock := u.c.locks.lock(s.Clip.ID)
		defer unlock()
		u.known.state, err = u.c.settle(u.r.Context(), u.edge, &s.Clip, nil, k)
		return err == nil, err
	}
	return true, nil
}

// meta reads the first part.
func (u *receiving) meta(in *receiveInput) error {
	p, err := u.form.next()
	if err != nil {
		return missing(err, "meta")
	}
	if p.name != "meta" {
		return problem(http.StatusBadRequest, "part %s, want meta first, then clip, then result", short(p.name))
	}
	text, err := u.form.text(maxMeta)
	if err != nil {
		return err
	}
	if err := decodeStrictly(text, &u.clip); err != nil {
		return problem(http.StatusBadRequest, "meta: %s", err)
	}
	if err := u.clip.Validate(); err != nil {
		return invalid("meta", err)
	}
	if in.ID != "" && (in.ID != u.clip.ID || in.SHA256 != u.clip.SHA256) {
		return problem(http.StatusUnprocessableEntity, "meta: clip %s with sha256 %s, but the query says %s with %s", u.clip.ID, u.clip.SHA256, in.ID, in.SHA256)
	}
	return u.c.small(u.clip.Size)
}

func (c *clips) small(size int64) error {
	if size > c.cfg.MaxBytes {
		return problem(http.StatusRequestEntityTooLarge, "size_bytes: %d, want at most %d", size, c.cfg.MaxBytes)
	}
	return nil
}

// missing makes the end of a form a problem.
func missing(err error, part string) error {
	if errors.Is(err, io.EOF) {
		return problem(http.StatusBadRequest, "no part %s: want meta, then clip, then result or none", part)
	}
	return err
}

// decodeStrictly decodes one JSON value with no unknown fields and nothing
// behind it.
func decodeStrictly(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// before finds out what is known of the clip before its bytes come.
func (u *receiving) before() (done bool, err error) {
	k, err := u.c.document(u.r.Context(), u.clip.ID)
	if err != nil {
		return false, err
	}
	u.known = k
	if k.found {
		if err := sameClip(&k.state, u.edge, &u.clip); err != nil {
			return false, err
		}
		return u.has(k)
	}
	if u.asked {
		return false, nil
	}
	u.remembered = make(chan known, 1)
	go func() {
		k, err := u.c.remembered(u.r.Context(), u.clip.ID)
		u.failed = err
		u.remembered <- k
	}()
	return false, nil
}

// clipPart reads the head of the part whose bytes come next.
func (u *receiving) clipPart() error {
	p, err := u.form.next()
	if err != nil {
		return missing(err, "clip")
	}
	if p.name != "clip" {
		return problem(http.StatusBadRequest, "part %s, want clip behind meta", short(p.name))
	}
	if p.kind != u.clip.Type {
		return problem(http.StatusUnsupportedMediaType, "part clip: Content-Type %s, but meta.type says %q", short(p.kind), u.clip.Type)
	}
	if u.r.ContentLength >= 0 && u.r.ContentLength < u.clip.Size {
		return problem(http.StatusUnprocessableEntity, "meta.size_bytes: %d, but the whole body has %d bytes", u.clip.Size, u.r.ContentLength)
	}
	return nil
}

// rest reads what comes behind the clip's bytes, up to the end of the body.
func (u *receiving) rest() error {
	if err := u.form.end(); err != nil {
		return err
	}
	p, err := u.form.next()
	if errors.Is(err, io.EOF) {
		return u.form.epilogue()
	}
	if err != nil {
		return err
	}
	if p.name != "result" {
		return problem(http.StatusBadRequest, "part %s, want result or nothing behind clip", short(p.name))
	}
	text, err := u.form.text(schemas.MaxResultBytes)
	if err != nil {
		return err
	}
	if u.result, err = parseResult(text, u.edge, &u.clip); err != nil {
		return err
	}
	if p, err = u.form.next(); err == nil {
		return problem(http.StatusBadRequest, "part %s behind result, want nothing", short(p.name))
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return u.form.epilogue()
}

// parseResult decodes a result and holds it against its clip.
func parseResult(text []byte, edge string, clip *schemas.Clip) (*schemas.Detections, error) {
	if err := plausible(text); err != nil {
		return nil, invalid("result", err)
	}
	d := &schemas.Detections{}
	if err := decodeStrictly(text, d); err != nil {
		return nil, problem(http.StatusBadRequest, "result: %s", err)
	}
	if err := fits(d, edge, clip); err != nil {
		return nil, invalid("result", err)
	}
	return d, nil
}

// plausible refuses texts that would take many times their size in memory: lists
// of things that say nothing.
func plausible(text []byte) error {
	const leastObject = 16 // bytes of anything that becomes a struct
	if n := bytes.Count(text, []byte("{")); n > len(text)/leastObject+16 {
		return fmt.Errorf("result: %d objects in %d bytes, want frames with objects that say something", n, len(text))
	}
	for rest := text; ; {
		i := bytes.Index(rest, []byte("null"))
		if i < 0 {
			return nil
		}
		if before := bytes.TrimRight(rest[:i], " \t\r\n"); len(before) > 0 && (before[len(before)-1] == '[' || before[len(before)-1] == ',') {
			return errors.New("result: null in a list, want frames and objects")
		}
		rest = rest[i+4:]
	}
}

// intake is the body of the clip as the store gets it. Its last bytes are held
// back until the whole request has been found right: until then the store has
// nothing that it could make visible, and if anything is wrong it gets the end
// of the connection instead.
type intake struct {
	u *receiving

	mu   sync.Mutex
	sum  hash.Hash
	n    int64
	err  error
	done bool
}

func (i *intake) Read(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.read(p)
}

func (i *intake) read(p []byte) (int, error) {
	size := i.u.clip.Size
	switch {
	case i.err != nil:
		return 0, i.err
	case i.n == size:
		return 0, io.EOF
	}
	n, err := i.u.form.Read(p[:min(int64(len(p)), size-i.n)])
	_, _ = i.sum.Write(p[:n])
	i.n += int64(n)
	if err == nil && i.n == size {
		err = i.finish()
		i.done = err == nil
	}
	if err == nil {
		err = context.Cause(i.u.r.Context())
	}
	if err != nil {
		i.err = err
		return 0, err
	}
	return n, nil
}

// finish judges the whole request.
func (i *intake) finish() error {
	u := i.u
	if err := compareHash(i.sum.Sum(nil), &u.clip); err != nil {
		return err
	}
	if err := u.rest(); err != nil {
		return err
	}
	if u.remembered == nil {
		return nil
	}
	select {
	case k := <-u.remembered:
		if u.failed != nil {
			return u.failed
		}
		if !k.found {
			return nil
		}
		if err := sameClip(&k.state, u.edge, &u.clip); err != nil {
			return err
		}
		u.known = k
		if received(&k.state) {
			return errEnough
		}
		return nil
	case <-u.r.Context().Done():
		return context.Cause(u.r.Context())
	}
}

// drain reads what the store did not want, to judge it all the same.
func (i *intake) drain() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	buf := make([]byte, 64<<10)
	for {
		_, err := i.read(buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// verdict is what is wrong with the request itself, if anything.
func (i *intake) verdict() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err
}

// store passes the bytes on and settles the clip.
func (u *receiving) store() (schemas.ClipState, int, error) {
	c, ctx := u.c, u.r.Context()
	sum, err := hex.DecodeString(u.clip.SHA256)
	if err != nil {
		return schemas.ClipState{}, 0, err
	}
	body := &intake{u: u, sum: sha256.New()}
	_, err = c.store.Put(ctx, bucketClips, u.clip.ID, body, u.clip.Size, objectstore.PutOptions{
		ContentType: u.clip.Type, Metadata: map[string]string{metaEdge: u.edge, metaSHA256: u.clip.SHA256}, IfAbsent: true, SHA256: sum,
	})
	exists := errors.Is(err, objectstore.ErrExists)
	if exists {
		// Somebody was here before: a request of which the answer was lost, or
		// one that runs beside this one.
		err = body.drain()
		if err == nil {
			err = u.checkThere()
		}
	} else if verdict := body.verdict(); verdict != nil {
		err = verdict
	}
	status := http.StatusCreated
	switch {
	case errors.Is(err, errEnough), exists && err == nil:
		status = http.StatusOK
	case err != nil:
		return schemas.ClipState{}, 0, err
	default:
		c.metrics.received.Inc()
		c.metrics.bytes.Add(float64(u.clip.Size))
	}
	unlock := c.locks.lock(u.clip.ID)
	defer unlock()
	state, err := c.settle(ctx, u.edge, &u.clip, u.result, u.known)
	return state, status, err
}

// checkThere looks at bytes that were stored before. What is not the clip and
// belongs to no clip that is known is what a broken direct upload left.
func (u *receiving) checkThere() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.r.Context()), stepPatience)
	defer cancel()
	unlock := u.c.locks.lock(u.clip.ID)
	defer unlock()
	k, err := u.c.document(ctx, u.clip.ID)
	if err != nil {
		return err
	}
	if k.found {
		if err := sameClip(&k.state, u.edge, &u.clip); err != nil {
			return err
		}
		u.known = k
		if received(&k.state) {
			return nil
		}
	}
	err = u.c.check(ctx, u.edge, &u.clip)
	switch {
	case errors.Is(err, errNotThere):
		return again(u.clip.ID)
	case errors.Is(err, errWrongBytes) && k.found:
		if err := u.c.store.Delete(ctx, bucketClips, u.clip.ID); err != nil {
			return err
		}
		return again(u.clip.ID)
	case errors.Is(err, errWrongBytes):
		return problem(http.StatusConflict, "clip %s: under this id there are other bytes: other bytes want another id", u.clip.ID)
	}
	return err
}

func again(id string) error {
	return problem(http.StatusServiceUnavailable, "clip %s: what another request had stored was not right and is gone: send it again", id)
}
