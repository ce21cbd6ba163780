package uplink

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Limits of what the gateway says of an upload.
const (
	maxParts   = 10_000
	maxETag    = 1024
	maxURL     = 8192
	maxHeaders = 32
)

// Part is a part that the store has.
type Part struct {
	N    int    `json:"n"`
	ETag string `json:"etag"`
}

// plan is the gateway's answer to an upload or a reservation.
type plan struct {
	State     schemas.ClipState `json:"state"`
	PartBytes int64             `json:"part_bytes"`
	Parts     []planPart        `json:"parts"`
	PutURL    string            `json:"put_url"`
	PutHeader map[string]string `json:"put_headers"`
	Expires   time.Time         `json:"expires"`
}

type planPart struct {
	N    int    `json:"n"`
	URL  string `json:"url"`
	Size int64  `json:"size_bytes"`
	Done bool   `json:"done"`
	ETag string `json:"etag"`
}

func (p *plan) check() error {
	if len(p.Parts) > maxParts || len(p.PutHeader) > maxHeaders {
		return fmt.Errorf("%d parts and %d headers, want at most %d and %d", len(p.Parts), len(p.PutHeader), maxParts, maxHeaders)
	}
	if len(p.Parts) > 0 && (p.PartBytes < 1 || p.PartBytes > schemas.MaxClipBytes) {
		return fmt.Errorf("parts of %d bytes, want 1 to %d", p.PartBytes, schemas.MaxClipBytes)
	}
	seen := make(map[int]bool, len(p.Parts))
	for _, x := range p.Parts {
		if x.N < 1 || x.N > maxParts || seen[x.N] || len(x.ETag) > maxETag || x.Done && x.ETag == "" {
			return fmt.Errorf("part %d: want a number of 1 to %d once, and the tag of a part that is done", x.N, maxParts)
		}
		seen[x.N] = true
		if err := storeURL(x.URL); err != nil && !x.Done {
			return fmt.Errorf("part %d: %w", x.N, err)
		}
	}
	if p.PutURL != "" {
		return storeURL(p.PutURL)
	}
	return nil
}

func storeURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || len(s) > maxURL || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("want an URL of http or https")
	}
	return nil
}

// covers reports whether the plan's parts hold all of a clip.
func (p *plan) covers(size int64) bool {
	need := p.count(size)
	have := 0
	for _, x := range p.Parts {
		if x.N <= need {
			have++
		}
	}
	return have == need
}

func (p *plan) count(size int64) int { return int((size + p.PartBytes - 1) / p.PartBytes) }

// span is where a part's bytes are in the clip.
func (p *plan) span(n int, size int64) (off, length int64) {
	off = int64(n-1) * p.PartBytes
	return off, min(p.PartBytes, size-off)
}

// Reservation is room in the store for a clip whose end is not known yet.
type Reservation struct {
	id, media string

	mu   sync.Mutex // held while parts are sent ahead
	plan plan
}

// Reserve makes room for a clip that is being recorded, so that its upload need
// not ask for it, and connects to the store. It tries once.
func (c *Client) Reserve(ctx context.Context, id, media string, maxBytes int64) (*Reservation, error) {
	if err := schemas.ClipID(id); err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	if c.way() != PathDirect {
		return nil, errors.New("reserve: clips go through the gateway")
	}
	in := struct {
		Type     string `json:"type"`
		MaxBytes int64  `json:"max_bytes"`
	}{media, maxBytes}
	r := &Reservation{id: id, media: media}
	if err := c.call(ctx, http.MethodPost, "/v1/clips/"+id+"/reserve", in, &r.plan, 0); err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	c.learn(&r.plan)
	go c.warm(context.WithoutCancel(ctx))
	return r, nil
}

// Early stores the parts of a reserved clip that are complete once so many bytes are
// written, while the rest is being recorded; it leaves the connections warm. It
// may be called again and again. What was written must not change.
func (c *Client) Early(ctx context.Context, r *Reservation, src io.ReaderAt, written int64) error {
	if r == nil || c.way() != PathDirect {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plan.PartBytes == 0 {
		return nil
	}
	for i := range r.plan.Parts {
		x := &r.plan.Parts[i]
		if x.Done || int64(x.N)*r.plan.PartBytes > written {
			continue
		}
		off, n := r.plan.span(x.N, written)
		tag, err := c.part(ctx, x.URL, src, off, n)
		if err != nil {
			return fmt.Errorf("send part %d of clip %s ahead: %w", x.N, r.id, err)
		}
		x.Done, x.ETag = true, tag
	}
	return nil
}

// Progress is how a caller takes part in an upload; everything may be zero.
type Progress struct {
	Reserved *Reservation
	// Save is told which parts the store has, after each one; one call at a time.
	Save func(upload string, partBytes int64, parts []Part)
	// Retry is told of each failure before it is waited for the next try.
	Retry func(Retrying)
}

// Retrying says why and when an upload is tried again.
type Retrying struct {
	Attempt int
	In      time.Duration
	Path    string
	Err     error
}

// upload is the state of one call of Upload.
type upload struct {
	c        *Client
	clip     schemas.Clip
	src      io.ReaderAt
	progress Progress
	result   *schemas.Detections

	plan   *plan
	saving sync.Mutex
	moved  bool // something was stored since the last try
	wrong  int  // times the lab found other bytes than the clip's
	known  bool // the gateway may have the clip: ask before sending it
}

// wrongMost is how often a clip whose bytes arrive wrong is sent.
const wrongMost = 4

// Upload brings a clip's bytes to the lab, and its result if there is one. It
// returns when the lab has all of it, in whatever state the clip is then; or
// when ctx ends; or, as a *Refused, when the lab will never take it.
func (c *Client) Upload(ctx context.Context, clip schemas.Clip, src io.ReaderAt, p Progress, result *schemas.Detections) (schemas.ClipState, error) {
	if err := clip.Validate(); err != nil {
		return schemas.ClipState{}, fmt.Errorf("upload: %w", err)
	}
	alone := c.pending.Add(clip.Size) == clip.Size
	begin := time.Now()
	u := &upload{c: c, clip: clip, src: src, progress: p, result: result}
	u.reserved()
	state, first, err := u.run(ctx)
	if c.pending.Add(-clip.Size) == 0 && alone && first && err == nil {
		c.meter.uploaded(clip.Size, time.Since(begin))
	}
	if err != nil {
		return schemas.ClipState{}, fmt.Errorf("upload clip %s: %w", clip.ID, err)
	}
	return state, nil
}

func (u *upload) reserved() {
	r := u.progress.Reserved
	if r == nil || r.id != u.clip.ID || r.media != u.clip.Type {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plan.PartBytes > 0 && r.plan.covers(u.clip.Size) && (r.plan.Expires.IsZero() || time.Until(r.plan.Expires) > time.Minute) {
		p := r.plan
		p.Parts = slices.Clone(p.Parts)
		// The state is that of the reservation: whether the clip was there already is
		// not known from it.
		p.State.State = schemas.ClipUploading
		u.plan = &p
	}
}

// run tries until it is done; first says that the first try did it.
func (u *upload) run(ctx context.Context) (state schemas.ClipState, first bool, err error) {
	failures := 0
	for try := 1; ; try++ {
		way := u.c.way()
		if way == PathDirect {
			state, err = u.direct(ctx)
		} else {
			state, err = u.through(ctx)
		}
		if err == nil {
			return state, try == 1, nil
		}
		if ctx.Err() != nil {
			return state, false, ctx.Err()
		}
		if u.final(err) {
			return state, false, err
		}
		u.known = true
		failures++
		if u.moved {
			failures, u.moved = 1, false
		}
		in := pause(failures, err)
		if u.progress.Retry != nil {
			u.progress.Retry(Retrying{Attempt: try, In: in, Path: way, Err: err})
		}
		u.c.log.Debug("upload is tried again", "clip", u.clip.ID, "try", try, "in", in, "path", way, "error", err)
		if err := u.c.sleep(ctx, in); err != nil {
			return state, false, err
		}
	}
}

// final reports whether no further try can help, and prepares the next if one
// can.
func (u *upload) final(err error) bool {
	var r *Refused
	if !errors.As(err, &r) {
		return false
	}
	switch {
	case r.Status == http.StatusGone:
		u.plan = nil
		return false
	case r.Status == http.StatusUnprocessableEntity, r.Status == statusWrong:
		u.plan = nil
		u.wrong++
		return u.wrong >= wrongMost
	}
	return !r.retry()
}

// statusWrong stands for a store's word that bytes were not those announced.
const statusWrong = -1

// pause is how long to wait after so many failures in a row.
func pause(failures int, err error) time.Duration {
	d := min(backoffMin<<min(failures-1, 10), backoffMax)
	d = d/2 + rand.N(d/2+1)
	var r *Refused
	if errors.As(err, &r) {
		d = max(d, r.after)
		if r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden {
			// Nothing but an operator heals this.
			d = max(d, backoffMax/2)
		}
	}
	return d
}

// sleep waits, but not longer than until the gateway answers again.
func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	answered := c.answered
	c.mu.Unlock()
	if c.online.Load() {
		answered = nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	case <-answered:
	}
	return nil
}

// way is how clips go now.
func (c *Client) way() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opts.Path == PathGateway || time.Now().Before(c.notUntil) {
		return PathGateway
	}
	return PathDirect
}

// strikesMost is how many tries in a row may get nothing into the store, right after
// the gateway answered, before clips go the other way for a while.
const strikesMost = 2

func (c *Client) strike(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.strikes++
	if c.strikes >= strikesMost {
		c.strikes, c.notUntil = 0, time.Now().Add(directAgain)
		c.log.Warn("the store cannot be reached: clips go through the gateway", "for", directAgain, "error", err)
	}
}

func (c *Client) reached() {
	c.mu.Lock()
	c.strikes = 0
	c.mu.Unlock()
}

// learn notes where the store is.
func (c *Client) learn(p *plan) {
	raw := p.PutURL
	for _, x := range p.Parts {
		if x.URL != "" {
			raw = x.URL
			break
		}
	}
	if u, err := url.Parse(raw); err == nil && u.Host != "" {
		c.mu.Lock()
		c.store = u.Scheme + "://" + u.Host
		c.mu.Unlock()
	}
}

// direct sends what the store does not have yet.
func (u *upload) direct(ctx context.Context) (schemas.ClipState, error) {
	asked := u.plan == nil
	if asked {
		p := new(plan)
		if err := u.c.call(ctx, http.MethodPost, "/v1/clips/"+u.clip.ID+"/upload", u.clip, p, 0); err != nil {
			return schemas.ClipState{}, err
		}
		if p.State.State != schemas.ClipUploading && p.State.Clip.ID != u.clip.ID {
			return schemas.ClipState{}, fmt.Errorf("%w: a state of clip %q", errAnswer, cut(p.State.Clip.ID))
		}
		u.plan = p
		u.c.learn(p)
	}
	p := u.plan
	if asked && known(&p.State) && p.PutURL == "" && len(p.Parts) == 0 {
		if u.result == nil || p.State.Ended() {
			return p.State, nil
		}
		return u.complete(ctx, nil)
	}
	var parts []Part
	var failed error
	switch {
	case p.PutURL != "":
		failed = u.put(ctx)
		p.PutURL = ""
	case p.PartBytes > 0 && p.covers(u.clip.Size):
		failed = u.parts(ctx)
		parts = u.stored(p)
	case (p.State.State == schemas.ClipUploading || !asked) && len(p.Parts) == 0:
		// Sent already by an earlier try, which could not complete. The clip may have
		// its result since before its bytes.
	default:
		u.plan = nil
		return schemas.ClipState{}, fmt.Errorf("%w: its parts are not all of the clip", errAnswer)
	}
	if failed != nil {
		if asked && !u.moved && ctx.Err() == nil {
			u.c.strike(failed)
		}
		return schemas.ClipState{}, failed
	}
	return u.complete(ctx, parts)
}

// known reports whether the lab has the bytes of a clip.
func known(s *schemas.ClipState) bool { return s.State == schemas.ClipQueued || s.Ended() }

func (u *upload) complete(ctx context.Context, parts []Part) (schemas.ClipState, error) {
	in := struct {
		Clip   schemas.Clip        `json:"clip"`
		Parts  []Part              `json:"parts,omitempty"`
		Result *schemas.Detections `json:"result,omitempty"`
	}{u.clip, parts, u.result}
	var s schemas.ClipState
	// What the gateway does then may need it to read the whole clip.
	if err := u.c.call(ctx, http.MethodPost, "/v1/clips/"+u.clip.ID+"/complete", in, &s, time.Minute); err != nil {
		var r *Refused
		if errors.As(err, &r) && (r.Status == http.StatusNotFound || r.Status == http.StatusBadRequest) {
			// It knows nothing of such an upload, or the parts are not those it has.
			r.Status = http.StatusUnprocessableEntity
		}
		return s, err
	}
	return u.settled(s)
}

func (u *upload) settled(s schemas.ClipState) (schemas.ClipState, error) {
	if s.Clip.ID != u.clip.ID || !known(&s) {
		u.plan = nil
		return s, fmt.Errorf("%w: clip %q is %q", errAnswer, cut(s.Clip.ID), cut(s.State))
	}
	return s, nil
}

// parts sends the missing parts, as many at a time as there are connections.
func (u *upload) parts(ctx context.Context) error {
	p := u.plan
	need := p.count(u.clip.Size)
	// The first failure does not stop the others: what they have sent counts.
	var wait sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for i := range p.Parts {
		x := &p.Parts[i]
		if x.Done || x.N > need {
			continue
		}
		wait.Go(func() {
			off, n := p.span(x.N, u.clip.Size)
			tag, err := u.c.part(ctx, x.URL, u.src, off, n)
			if err != nil {
				mu.Lock()
				failed = errors.Join(failed, fmt.Errorf("part %d: %w", x.N, err))
				mu.Unlock()
				return
			}
			u.saving.Lock()
			defer u.saving.Unlock()
			x.Done, x.ETag, u.moved = true, tag, true
			if u.progress.Save != nil {
				u.progress.Save(p.State.Upload, p.PartBytes, u.stored(p))
			}
		})
	}
	wait.Wait()
	if failed != nil && ctx.Err() == nil {
		// The URLs may be out of date, the upload forgotten: the gateway knows.
		u.plan = nil
	}
	return failed
}

func (u *upload) stored(p *plan) []Part {
	var out []Part
	need := p.count(u.clip.Size)
	for _, x := range p.Parts {
		if x.Done && x.N <= need {
			out = append(out, Part{N: x.N, ETag: x.ETag})
		}
	}
	slices.SortFunc(out, func(a, b Part) int { return a.N - b.N })
	return out
}

func (c *Client) slot(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// part stores one part and gives its tag.
func (c *Client) part(ctx context.Context, to string, src io.ReaderAt, off, n int64) (string, error) {
	if err := c.slot(ctx); err != nil {
		return "", err
	}
	defer func() { <-c.slots }()
	sum := md5.New()
	if _, err := io.Copy(sum, io.NewSectionReader(src, off, n)); err != nil {
		return "", fmt.Errorf("read clip: %w", err)
	}
	header := http.Header{"Content-Md5": {base64.StdEncoding.EncodeToString(sum.Sum(nil))}}
	status, answered, answer, err := c.exchange(ctx, request{
		method: http.MethodPut, url: to, header: header, body: io.NewSectionReader(src, off, n), length: n, bulk: true,
	}, maxProblem)
	tag := answered.Get("ETag")
	switch {
	case err != nil:
		err = unsigned(err)
	case status != http.StatusOK:
		err = storeRefusal(status, answered, answer)
	case tag == "" || len(tag) > maxETag:
		err = fmt.Errorf("%w: the store gave no tag", errAnswer)
	}
	if err == nil {
		c.reached()
	}
	return tag, err
}

// put stores a small clip.
func (u *upload) put(ctx context.Context) error {
	c, p := u.c, u.plan
	if err := c.slot(ctx); err != nil {
		return err
	}
	defer func() { <-c.slots }()
	header := http.Header{}
	for k, v := range p.PutHeader {
		// Content-Length is the request's own.
		if textproto.CanonicalMIMEHeaderKey(k) != "Content-Length" && !strings.EqualFold(k, "Host") {
			header.Set(k, v)
		}
	}
	status, answered, answer, err := c.exchange(ctx, request{
		method: http.MethodPut, url: p.PutURL, header: header, body: io.NewSectionReader(u.src, 0, u.clip.Size), length: u.clip.Size, bulk: true,
	}, maxProblem)
	switch {
	case err != nil:
		err = unsigned(err)
	case status == http.StatusPreconditionFailed:
		// An earlier try has stored it, and its answer was lost.
	case status != http.StatusOK:
		err = storeRefusal(status, answered, answer)
	}
	if err != nil {
		u.plan = nil
		return err
	}
	c.reached()
	u.moved = true
	return nil
}

// unsigned keeps signed URLs out of errors, and so out of logs.
func unsigned(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("store: %w", u.Err)
	}
	return fmt.Errorf("store: %w", err)
}

// storeRefusal is an answer of the store that is none of ok. All of them are tried
// again, with new URLs: only the gateway knows what the clip's state is.
func storeRefusal(status int, header http.Header, answer []byte) error {
	r := refusal(status, header, nil)
	r.Title, r.Detail = "by the store: "+r.Title, cut(strings.ToValidUTF8(string(answer), "?"))
	switch {
	case status == http.StatusBadRequest:
		r.Status = statusWrong
		return r
	case status == http.StatusTooManyRequests, status >= 500:
		return r
	}
	return errors.New(r.Error())
}

// through sends a clip to the gateway in one request.
func (u *upload) through(ctx context.Context) (schemas.ClipState, error) {
	c := u.c
	if err := c.slot(ctx); err != nil {
		return schemas.ClipState{}, err
	}
	defer func() { <-c.slots }()
	body, length, media, err := u.form()
	if err != nil {
		return schemas.ClipState{}, err
	}
	path := "/v1/clips?id=" + u.clip.ID + "&sha256=" + u.clip.SHA256
	status, header, answer, err := c.exchange(ctx, request{
		method: http.MethodPost, url: c.url(path), header: http.Header{"Content-Type": {media}}, body: body, length: length,
		bulk: true, own: true, expect: u.known,
	}, maxAnswer)
	if err != nil {
		return schemas.ClipState{}, fmt.Errorf("POST /v1/clips: %w", err)
	}
	var s schemas.ClipState
	if err := understand(status, header, answer, &s); err != nil {
		return s, fmt.Errorf("POST /v1/clips: %w", err)
	}
	return u.settled(s)
}

// form is a clip as multipart/form-data.
func (u *upload) form() (body io.Reader, length int64, media string, err error) {
	var buf bytes.Buffer
	form := multipart.NewWriter(&buf)
	section := func(name, media string) error {
		_, err := form.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {fmt.Sprintf(`form-data; name=%q`, name)}, "Content-Type": {media},
		})
		return err
	}
	meta, err := json.Marshal(u.clip)
	if err != nil {
		return nil, 0, "", fmt.Errorf("encode clip: %w", err)
	}
	err = section("meta", "application/json")
	buf.Write(meta)
	err = errors.Join(err, section("clip", u.clip.Type))
	head := bytes.Clone(buf.Bytes())
	buf.Reset()
	if u.result != nil {
		result, encodeErr := json.Marshal(u.result)
		err = errors.Join(err, encodeErr, section("result", "application/json"))
		buf.Write(result)
	}
	if err := errors.Join(err, form.Close()); err != nil {
		return nil, 0, "", fmt.Errorf("encode clip: %w", err)
	}
	tail := buf.Bytes()
	body = io.MultiReader(bytes.NewReader(head), io.NewSectionReader(u.src, 0, u.clip.Size), bytes.NewReader(tail))
	return body, int64(len(head)) + u.clip.Size + int64(len(tail)), form.FormDataContentType(), nil
}
