package gateway

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/internal/objectstore"
	s3 "github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// clipRig is a gateway with a store and one edge's account.
type clipRig struct {
	*rig
	s3     *s3.Server
	store  *objectstore.Store
	states *bus.Bucket[schemas.ClipState] // as a detector has it
	token  string
	jobs   chan schemas.ClipJob
}

const testEdge = "gate-1"

func newClipRig(t testing.TB, edit func(*Config)) *clipRig {
	t.Helper()
	r := &clipRig{s3: s3test.Start(t), jobs: make(chan schemas.ClipJob, 1000)}
	r.rig = newRig(t, func(c *Config) {
		c.Clips.Store, c.Clips.AccessKey, c.Clips.SecretKey = r.s3.Endpoint(), r.s3.Credentials().AccessKey, r.s3.Credentials().SecretKey
		c.Rate, c.Clips.EdgeRate = 1e5, 1e5
		if edit != nil {
			edit(c)
		}
	})
	r.store = s3test.Open(t, r.s3)
	r.token = r.edge(testEdge)
	r.states = must(bus.OpenBucket[schemas.ClipState](t.Context(), bustest.Join(t, r.nats, bus.RoleDetector), bus.BucketClips))
	return r
}

// edge makes an account and returns its token.
func (r *clipRig) edge(name string) string {
	r.t.Helper()
	token, err := r.client.AddEdge(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return token.Token
}

// work takes jobs as a detector does, without doing them.
func (r *clipRig) work() {
	r.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	conn := bustest.Join(r.t, r.nats, bus.RoleDetector)
	done := make(chan error, 1)
	go func() {
		done <- bus.Consume(ctx, conn, bus.Consumption{Stream: bus.StreamClips, Durable: bus.ConsumerDetectors, Subject: bus.SubjectAnyClips, Shared: true},
			func(_ context.Context, j schemas.ClipJob) error { r.jobs <- j; return nil })
	}()
	r.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
}

func (r *clipRig) job() schemas.ClipJob {
	r.t.Helper()
	select {
	case j := <-r.jobs:
		return j
	case <-time.After(10 * time.Second):
		r.t.Fatal("no job came")
		return schemas.ClipJob{}
	}
}

// footage is the bytes of a clip and what is said of it.
func footage(id string, size int64) (schemas.Clip, []byte) {
	content := make([]byte, size)
	_, _ = objectstore.NewContent(objectstore.Seed(1, "clips", id), size).ReadAt(content, 0)
	sum := sha256.Sum256(content)
	return schemas.Clip{ID: id, Size: size, SHA256: hex.EncodeToString(sum[:]), Type: schemas.TypeMP4, Trigger: time.Now().UTC().Truncate(time.Millisecond), Length: 5 * time.Second}, content
}

func saw(clip schemas.Clip) *schemas.Detections {
	return &schemas.Detections{
		Version: 1, Clip: clip.ID, Edge: testEdge, SHA256: clip.SHA256, Where: schemas.WhereEdge, Worker: testEdge, Status: schemas.StatusOK,
		Model: schemas.ModelUsed{Name: "nanodet", Engine: "test"}, Sample: 1, Created: time.Now().UTC(),
		Frames: []schemas.Frame{{Objects: []schemas.Object{{Label: "person", Score: .9, Box: schemas.Box{W: .1, H: .2}}}}}, Labels: map[string]float64{"person": .9},
	}
}

// piece is a part of a form.
type piece struct {
	name, kind, file string
	content          []byte
}

func pieces(clip schemas.Clip, content []byte, d *schemas.Detections) []piece {
	all := []piece{{"meta", "application/json", "", must(json.Marshal(clip))}, {"clip", clip.Type, clip.ID + ".mp4", content}}
	if d != nil {
		all = append(all, piece{"result", "application/json", "", must(json.Marshal(d))})
	}
	return all
}

func encode(all []piece) (body []byte, contentType string) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range all {
		h := textproto.MIMEHeader{"Content-Disposition": {fmt.Sprintf(`form-data; name=%q; filename=%q`, p.name, p.file)}, "Content-Type": {p.kind}}
		if p.file == "" {
			h.Set("Content-Disposition", fmt.Sprintf(`form-data; name=%q`, p.name))
		}
		part := must(w.CreatePart(h))
		must(part.Write(p.content))
	}
	_ = w.Close()
	return b.Bytes(), w.FormDataContentType()
}

// ask sends a request of an edge.
func (r *clipRig) ask(token, method, path string, body io.Reader, header ...string) (*http.Response, []byte) {
	r.t.Helper()
	req := must(http.NewRequestWithContext(r.t.Context(), method, r.url+path, body))
	req.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Errorf("%s %s: %v", method, path, err)
		return &http.Response{}, nil
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Errorf("%s %s: %v", method, path, err)
	}
	return resp, text
}

func (r *clipRig) json(token, method, path string, body, into any) int {
	r.t.Helper()
	resp, text := r.ask(token, method, path, bytes.NewReader(must(json.Marshal(body))), "Content-Type", "application/json")
	if into != nil && resp.StatusCode/100 == 2 {
		if err := json.Unmarshal(text, into); err != nil {
			r.t.Errorf("%s %s: %v in %s", method, path, err, text)
		}
	}
	if resp.StatusCode/100 != 2 {
		var p api.Problem
		if err := json.Unmarshal(text, &p); err != nil || p.Status != resp.StatusCode || p.Detail == "" || resp.Header.Get("Content-Type") != "application/problem+json" {
			r.t.Errorf("%s %s: %d with %s, want a problem", method, path, resp.StatusCode, text)
		}
		r.t.Logf("%s %s: %s", method, path, text)
	}
	return resp.StatusCode
}

func (r *clipRig) post(token string, all []piece) (int, schemas.ClipState) {
	r.t.Helper()
	body, kind := encode(all)
	resp, text := r.ask(token, "POST", "/v1/clips", bytes.NewReader(body), "Content-Type", kind)
	var s schemas.ClipState
	if resp.StatusCode/100 == 2 {
		if err := json.Unmarshal(text, &s); err != nil {
			r.t.Error(err)
		}
	} else {
		r.t.Logf("%d %s", resp.StatusCode, text)
	}
	return resp.StatusCode, s
}

func (r *clipRig) confirm(wait time.Duration, ids ...string) (out api.ClipConfirmed) {
	r.t.Helper()
	if status := r.json(r.token, "POST", "/v1/clips/confirm", api.ClipConfirm{Clips: ids, Wait: wait}, &out); status != 200 {
		r.t.Errorf("confirm: %d", status)
	}
	return out
}

// stored lists the keys in both buckets.
func (r *clipRig) stored() (keys []string) {
	r.t.Helper()
	for _, b := range []string{bucketClips, bucketResults} {
		all, _, err := r.store.List(r.t.Context(), b, objectstore.ListOptions{})
		if err != nil {
			r.t.Fatal(err)
		}
		for _, o := range all {
			keys = append(keys, b+"/"+o.Key)
		}
	}
	return keys
}

func (r *clipRig) content(id string) []byte {
	r.t.Helper()
	body, _, err := r.store.Get(r.t.Context(), bucketClips, id)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = body.Close() }()
	return must(io.ReadAll(body))
}

func (r *clipRig) metric(name string) float64 {
	r.t.Helper()
	text := string(must(io.ReadAll(r.request("GET", "/metrics", "").Body)))
	var sum float64
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, name) {
			sum += must(strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64))
		}
	}
	return sum
}

// put sends bytes to a presigned URL.
func (r *clipRig) put(url string, content []byte, header map[string]string) (int, string) {
	r.t.Helper()
	req := must(http.NewRequestWithContext(r.t.Context(), "PUT", url, bytes.NewReader(content)))
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("ETag")
}

func TestClip(t *testing.T) {
	r := newClipRig(t, nil)
	r.work()
	clip, content := footage("clip-1", 300_000)
	status, s := r.post(r.token, pieces(clip, content, nil))
	if status != 201 || s.State != schemas.ClipQueued || s.Edge != testEdge || s.Where != schemas.WhereCloud || s.Stamps.Uploaded.IsZero() || s.Stamps.Queued.IsZero() || s.Clip != clip {
		t.Fatalf("%d %+v", status, s)
	}
	if j := r.job(); j.Clip != clip || j.Edge != testEdge || j.Bucket != "clips" || j.Key != clip.ID || !j.Queued.Equal(s.Stamps.Queued) {
		t.Errorf("job %+v", j)
	}
	if !bytes.Equal(r.content(clip.ID), content) {
		t.Error("other bytes are stored")
	}
	o := must(r.store.Head(t.Context(), bucketClips, clip.ID))
	if o.Metadata[metaEdge] != testEdge || hex.EncodeToString(o.SHA256) != clip.SHA256 {
		t.Errorf("%+v", o)
	}
	// Again, in all the ways there are.
	if status, again := r.post(r.token, pieces(clip, content, nil)); status != 200 || !again.Stamps.Queued.Equal(s.Stamps.Queued) {
		t.Errorf("again: %d %+v", status, again)
	}
	body, kind := encode(pieces(clip, content, nil))
	if resp, _ := r.ask(r.token, "POST", "/v1/clips?id=clip-1&sha256="+clip.SHA256, &untouched{t: t, r: bytes.NewReader(body)}, "Content-Type", kind, "Expect", "100-continue"); resp.StatusCode != 200 {
		t.Errorf("again, asking first: %s", resp.Status)
	}
	var up api.ClipUpload
	if status := r.json(r.token, "POST", "/v1/clips/clip-1/upload", clip, &up); status != 200 || up.State.State != schemas.ClipQueued || len(up.Parts) != 0 || up.PutURL != "" {
		t.Errorf("upload of what is there: %d %+v", status, up)
	}
	var done schemas.ClipState
	if status := r.json(r.token, "POST", "/v1/clips/clip-1/complete", api.ClipComplete{Clip: clip}, &done); status != 200 || done.State != schemas.ClipQueued {
		t.Errorf("complete what is there: %d %+v", status, done)
	}
	// Other bytes, another edge.
	other, otherContent := footage("other", 300_000)
	other.ID = clip.ID
	if status, _ := r.post(r.token, pieces(other, otherContent, nil)); status != 409 {
		t.Errorf("other bytes: %d, want 409", status)
	}
	stranger := r.edge("stranger")
	if status, _ := r.post(stranger, pieces(clip, content, nil)); status != 409 {
		t.Errorf("another edge's: %d, want 409", status)
	}
	for token, want := range map[string]int{r.token: 200, stranger: 404} {
		if status := r.json(token, "GET", "/v1/clips/clip-1", nil, &done); status != want {
			t.Errorf("state: %d, want %d", status, want)
		}
	}
	if status := r.json(r.token, "GET", "/v1/clips/none", nil, nil); status != 404 {
		t.Errorf("state of none: %d", status)
	}
	if !bytes.Equal(r.content(clip.ID), content) || len(r.stored()) != 1 {
		t.Errorf("stored: %v", r.stored())
	}
	select {
	case j := <-r.jobs:
		t.Errorf("a second job: %+v", j)
	default:
	}

	// What the detector does, and what the edge hears of it.
	waiting := make(chan api.ClipConfirmed, 1)
	go func() { waiting <- r.confirm(20*time.Second, clip.ID) }()
	d := saw(clip)
	d.Where, d.Worker = schemas.WhereCloud, "detector-1"
	text := must(json.Marshal(d))
	must(r.store.Put(t.Context(), bucketResults, "clip-1.json", bytes.NewReader(text), int64(len(text)), objectstore.PutOptions{IfAbsent: true}))
	e := must(r.states.Get(t.Context(), clip.ID))
	ended(&e.Value, d)
	e.Value.Stamps.Stored = time.Now().UTC()
	e.Value.Updated = time.Now().UTC()
	revision := must(r.states.Update(t.Context(), clip.ID, e.Value, e.Revision))
	e.Value.Stamps.Acknowledged = time.Now().UTC()
	must(r.states.Update(t.Context(), clip.ID, e.Value, revision))
	got := <-waiting
	if len(got.Clips) != 1 || got.Clips[0].State != schemas.ClipDone || got.Clips[0].Stamps.Acknowledged.IsZero() || got.Clips[0].Result.Labels["person"] != .9 {
		t.Errorf("confirmed %+v", got)
	}
	var seen schemas.Detections
	for token, want := range map[string]int{r.token: 200, testToken: 200, stranger: 404} {
		if status := r.json(token, "GET", "/v1/clips/clip-1/result", nil, &seen); status != want || want == 200 && seen.Hash() != d.Hash() {
			t.Errorf("result: %d, want %d; %+v", status, want, seen)
		}
	}
}

// untouched is a body that nobody reads.
type untouched struct {
	t testing.TB
	r io.Reader
}

func (u *untouched) Read(p []byte) (int, error) {
	u.t.Error("the body was asked for")
	return u.r.Read(p)
}

func TestClipWithResult(t *testing.T) {
	r := newClipRig(t, nil)
	r.work()
	clip, content := footage("local", 200_000)
	status, s := r.post(r.token, pieces(clip, content, saw(clip)))
	if status != 201 || s.State != schemas.ClipDone || s.Where != schemas.WhereEdge || s.Result.Status != schemas.StatusOK || s.Stamps.Stored.IsZero() || s.Stamps.Uploaded.IsZero() {
		t.Fatalf("%d %+v", status, s)
	}
	if got := r.confirm(0, clip.ID, "nothing"); len(got.Clips) != 1 || len(got.Unknown) != 1 || got.Unknown[0] != "nothing" {
		t.Errorf("%+v", got)
	}
	if status, _ := r.post(r.token, pieces(clip, content, saw(clip))); status != 200 {
		t.Errorf("again: %d", status)
	}
	bad, badContent := footage("undecodable", 1000)
	d := saw(bad)
	d.Status, d.Frames, d.Labels = schemas.StatusUndecodable, nil, nil
	if status, s := r.post(r.token, pieces(bad, badContent, d)); status != 201 || s.State != schemas.ClipDead {
		t.Errorf("%d %+v", status, s)
	}

	// The result ahead of the bytes.
	late, lateContent := footage("late", 6<<20)
	var seen schemas.ClipState
	if status := r.json(r.token, "POST", "/v1/clips/late/result", api.ClipSeen{Clip: late, Result: *saw(late)}, &seen); status != 200 || seen.State != schemas.ClipDone || !seen.Stamps.Uploaded.IsZero() {
		t.Fatalf("%d %+v", status, seen)
	}
	if got := r.confirm(0, late.ID); len(got.Clips)+len(got.Unknown) != 0 {
		t.Errorf("confirmed without its bytes: %+v", got)
	}
	waiting := make(chan api.ClipConfirmed, 1)
	go func() { waiting <- r.confirm(20*time.Second, late.ID) }()
	r.upload(late, lateContent, nil)
	if got := <-waiting; len(got.Clips) != 1 || got.Clips[0].Stamps.Uploaded.IsZero() {
		t.Errorf("%+v", got)
	}
	// The same by the gateway.
	more, moreContent := footage("more", 1000)
	r.json(r.token, "POST", "/v1/clips/more/result", api.ClipSeen{Clip: more, Result: *saw(more)}, &seen)
	if status, s := r.post(r.token, pieces(more, moreContent, nil)); status != 201 || s.State != schemas.ClipDone || s.Stamps.Uploaded.IsZero() {
		t.Errorf("%d %+v", status, s)
	}
	if len(r.jobs) != 0 {
		t.Error("a clip with a result was queued")
	}
}

// upload sends a clip directly to the store.
func (r *clipRig) upload(clip schemas.Clip, content []byte, d *schemas.Detections) schemas.ClipState {
	r.t.Helper()
	var up api.ClipUpload
	if status := r.json(r.token, "POST", "/v1/clips/"+clip.ID+"/upload", clip, &up); status != 200 {
		r.t.Fatal(status)
	}
	in := api.ClipComplete{Clip: clip, Result: d}
	if up.PutURL != "" {
		if status, _ := r.put(up.PutURL, content, up.PutHeaders); status != 200 {
			r.t.Fatalf("PUT: %d", status)
		}
	}
	for _, p := range up.Parts {
		etag := p.ETag
		if !p.Done {
			piece := content[int64(p.N-1)*up.PartBytes:][:p.Size]
			sum := md5.Sum(piece)
			var status int
			if status, etag = r.put(p.URL, piece, map[string]string{"Content-MD5": base64.StdEncoding.EncodeToString(sum[:])}); status != 200 {
				r.t.Fatalf("part %d: %d", p.N, status)
			}
		}
		in.Parts = append(in.Parts, api.ClipETag{N: p.N, ETag: etag})
	}
	var s schemas.ClipState
	if status := r.json(r.token, "POST", "/v1/clips/"+clip.ID+"/complete", in, &s); status != 200 {
		r.t.Fatal(status)
	}
	return s
}

func TestDirectUpload(t *testing.T) {
	r := newClipRig(t, nil)
	small, smallContent := footage("small", 100_000)
	if s := r.upload(small, smallContent, nil); s.State != schemas.ClipQueued {
		t.Errorf("%+v", s)
	}
	local, localContent := footage("direct-local", 7<<20)
	if s := r.upload(local, localContent, saw(local)); s.State != schemas.ClipDone || s.Upload != "" {
		t.Errorf("%+v", s)
	}

	// In several attempts, reserved while it was recorded.
	clip, content := footage("parts", 11<<20)
	var up, again api.ClipUpload
	if status := r.json(r.token, "POST", "/v1/clips/parts/reserve", api.ClipReserve{Type: clip.Type, MaxBytes: 20 << 20}, &up); status != 200 || len(up.Parts) != 4 || up.State.Upload == "" {
		t.Fatalf("%d %+v", status, up)
	}
	if status, _ := r.put(up.Parts[0].URL, content[:up.PartBytes], nil); status != 200 {
		t.Fatal(status)
	}
	complete := func(in api.ClipComplete, want int) (s schemas.ClipState) {
		t.Helper()
		if status := r.json(r.token, "POST", "/v1/clips/"+in.Clip.ID+"/complete", in, &s); status != want {
			t.Errorf("complete: %d, want %d", status, want)
		}
		return s
	}
	complete(api.ClipComplete{Clip: clip}, 422)
	if status := r.json(r.token, "POST", "/v1/clips/parts/upload", clip, &again); status != 200 || again.State.Upload != up.State.Upload || len(again.Parts) != 3 || !again.Parts[0].Done || again.Parts[1].Done || again.Parts[2].Size != 1<<20 {
		t.Fatalf("%d %+v", status, again)
	}
	if status, _ := r.put(again.Parts[2].URL, content[:100], nil); status != 403 {
		t.Errorf("a part of another length: %d, want 403", status)
	}
	if status, _ := r.put(again.Parts[1].URL, content[:up.PartBytes], nil); status != 200 {
		t.Error(status)
	}
	if status, _ := r.put(again.Parts[2].URL, content[2*up.PartBytes:], nil); status != 200 {
		t.Error(status)
	}
	complete(api.ClipComplete{Clip: clip, Parts: []api.ClipETag{{N: 2, ETag: "0"}}}, 422)
	// Part 2 holds other bytes: the whole is refused and gone.
	complete(api.ClipComplete{Clip: clip}, 422)
	if keys := r.stored(); slices.Contains(keys, "clips/parts") {
		t.Errorf("stored: %v", keys)
	}
	complete(api.ClipComplete{Clip: clip}, 410)
	if s := r.upload(clip, content, nil); s.State != schemas.ClipQueued || s.Upload != "" {
		t.Errorf("%+v", s)
	}
	if !bytes.Equal(r.content(clip.ID), content) {
		t.Error("other bytes are stored")
	}
	// The URLs of a finished upload are of no use any more.
	if status, _ := r.put(again.Parts[1].URL, content[:up.PartBytes], nil); status != 404 {
		t.Errorf("a part of what is complete: %d", status)
	}
	for _, c := range []struct {
		path   string
		body   any
		status int
	}{
		{"/v1/clips/x/reserve", api.ClipReserve{Type: "text/html", MaxBytes: 1}, 422},
		{"/v1/clips/x/reserve", api.ClipReserve{Type: clip.Type, MaxBytes: 1 << 40}, 413},
		{"/v1/clips/x/reserve", api.ClipReserve{Type: clip.Type}, 422},
		{"/v1/clips/x/upload", clip, 422},
		{"/v1/clips/x/complete", api.ClipComplete{Clip: clip}, 422},
		{"/v1/clips/x/complete", "nonsense", 400},
		{"/v1/clips/none/complete", api.ClipComplete{Clip: func() schemas.Clip { c := clip; c.ID = "none"; return c }()}, 410},
		{"/v1/clips/..%2Fx/upload", clip, 422},
		{"/v1/clips/%2e%2e/upload", clip, 422},
	} {
		if status := r.json(r.token, "POST", c.path, c.body, nil); status != c.status {
			t.Errorf("%s: %d, want %d", c.path, status, c.status)
		}
	}
	if n := must(r.store.Client().ListMultipartUploads(t.Context(), &sdk.ListMultipartUploadsInput{Bucket: aws.String(bucketClips)})); len(n.Uploads) != 0 {
		t.Errorf("uploads left open: %+v", n.Uploads)
	}
}

// What a killed gateway leaves is completed by whoever is asked again.
func TestClipAfterKill(t *testing.T) {
	r := newClipRig(t, nil)
	r.work()
	ctx := t.Context()
	putClip := func(clip schemas.Clip, content []byte) {
		sum := must(hex.DecodeString(clip.SHA256))
		must(r.store.Put(ctx, bucketClips, clip.ID, bytes.NewReader(content), clip.Size, objectstore.PutOptions{Metadata: map[string]string{metaEdge: testEdge, metaSHA256: clip.SHA256}, SHA256: sum}))
	}
	putResult := func(clip schemas.Clip) {
		text := must(json.Marshal(saw(clip)))
		must(r.store.Put(ctx, bucketResults, resultKey(clip.ID), bytes.NewReader(text), int64(len(text)), objectstore.PutOptions{}))
	}
	doc := func(clip schemas.Clip, edit func(*schemas.ClipState)) {
		s := schemas.ClipState{Clip: clip, Edge: testEdge, State: schemas.ClipUploading, Where: schemas.WhereCloud, Updated: time.Now().UTC()}
		s.Stamps.Uploaded = time.Now().UTC()
		if edit != nil {
			edit(&s)
		}
		must(r.states.Create(ctx, clip.ID, s))
	}
	for i, c := range []struct {
		name  string
		left  func(schemas.Clip, []byte)
		local bool
		jobs  int
	}{
		{"bytes", putClip, false, 1},
		{"bytes and document", func(c schemas.Clip, b []byte) { putClip(c, b); doc(c, nil) }, false, 1},
		{"bytes of a local one", putClip, true, 0},
		{"bytes and result", func(c schemas.Clip, b []byte) { putClip(c, b); putResult(c) }, true, 0},
		{"result", func(c schemas.Clip, _ []byte) { putResult(c) }, true, 0},
		{"announcement", func(c schemas.Clip, _ []byte) {
			doc(c, func(s *schemas.ClipState) { s.Stamps.Uploaded, s.Where = time.Time{}, "" })
		}, false, 1},
		{"wrong bytes", func(c schemas.Clip, b []byte) {
			doc(c, func(s *schemas.ClipState) { s.Stamps.Uploaded, s.Where = time.Time{}, "" })
			must(r.store.Put(ctx, bucketClips, c.ID, bytes.NewReader(make([]byte, len(b))), c.Size, objectstore.PutOptions{Metadata: map[string]string{metaEdge: testEdge}}))
		}, false, 1},
	} {
		for _, how := range []string{"post", "direct"} {
			clip, content := footage(fmt.Sprintf("kill-%d-%s", i, how), 50_000)
			c.left(clip, content)
			var d *schemas.Detections
			want := schemas.ClipQueued
			if c.local {
				d, want = saw(clip), schemas.ClipDone
			}
			var s schemas.ClipState
			if how == "post" {
				status, _ := r.post(r.token, pieces(clip, content, d))
				if status == 503 && c.name == "wrong bytes" {
					status, _ = r.post(r.token, pieces(clip, content, d))
				}
				if status/100 != 2 {
					t.Errorf("%s, %s: %d", c.name, how, status)
				}
			} else {
				var up api.ClipUpload
				r.json(r.token, "POST", "/v1/clips/"+clip.ID+"/upload", clip, &up)
				if up.PutURL != "" {
					if status, _ := r.put(up.PutURL, content, up.PutHeaders); status != 200 && status != 412 {
						t.Errorf("%s, %s: PUT %d", c.name, how, status)
					}
				}
				status := r.json(r.token, "POST", "/v1/clips/"+clip.ID+"/complete", api.ClipComplete{Clip: clip, Result: d}, &s)
				if status == 422 && c.name == "wrong bytes" {
					r.json(r.token, "POST", "/v1/clips/"+clip.ID+"/upload", clip, &up)
					r.put(up.PutURL, content, up.PutHeaders)
					status = r.json(r.token, "POST", "/v1/clips/"+clip.ID+"/complete", api.ClipComplete{Clip: clip, Result: d}, &s)
				}
				if status != 200 {
					t.Errorf("%s, %s: complete %d", c.name, how, status)
				}
			}
			r.json(r.token, "GET", "/v1/clips/"+clip.ID, nil, &s)
			if s.State != want || s.Stamps.Uploaded.IsZero() || !bytes.Equal(r.content(clip.ID), content) {
				t.Errorf("%s, %s: %+v, want %s", c.name, how, s, want)
			}
			for range c.jobs {
				if j := r.job(); j.Clip.ID != clip.ID {
					t.Errorf("%s: job %+v", c.name, j)
				}
			}
		}
	}
	if len(r.jobs) != 0 {
		t.Errorf("%d jobs too many", len(r.jobs))
	}
}

// Many at once with the same clip: one object, one job, the same answer.
func TestClipAtOnce(t *testing.T) {
	r := newClipRig(t, func(c *Config) { c.Clips.EdgeUploads = 64 })
	r.work()
	for round := range 5 {
		clip, content := footage(fmt.Sprintf("race-%d", round), 300_000)
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() {
				switch i % 3 {
				case 0, 1:
					if status, s := r.post(r.token, pieces(clip, content, nil)); status/100 != 2 || s.State != schemas.ClipQueued {
						t.Errorf("%d %+v", status, s)
					}
				case 2:
					var up api.ClipUpload
					r.json(r.token, "POST", "/v1/clips/"+clip.ID+"/upload", clip, &up)
					if up.PutURL != "" {
						if status, _ := r.put(up.PutURL, content, up.PutHeaders); status != 200 && status != 412 {
							t.Errorf("PUT: %d", status)
						}
					}
					if status := r.json(r.token, "POST", "/v1/clips/"+clip.ID+"/complete", api.ClipComplete{Clip: clip}, nil); status != 200 {
						t.Errorf("complete: %d", status)
					}
				}
			})
		}
		all.Wait()
		if j := r.job(); j.Clip.ID != clip.ID || !bytes.Equal(r.content(clip.ID), content) {
			t.Errorf("%+v", j)
		}
	}
	if len(r.jobs) != 0 || len(r.stored()) != 5 {
		t.Errorf("%d jobs too many; stored %v", len(r.jobs), r.stored())
	}
}

func TestMend(t *testing.T) {
	r := newClipRig(t, func(c *Config) {
		c.Clips.Mend, c.Clips.Expiry, c.Clips.UploadTTL = 20*time.Millisecond, time.Minute, time.Minute
	})
	r.work()
	ctx := t.Context()
	made := func(id string, edit func(*schemas.ClipState)) schemas.Clip {
		clip, content := footage(id, 10_000)
		sum := must(hex.DecodeString(clip.SHA256))
		must(r.store.Put(ctx, bucketClips, id, bytes.NewReader(content), clip.Size, objectstore.PutOptions{Metadata: map[string]string{metaEdge: testEdge}, SHA256: sum}))
		s := schemas.ClipState{Clip: clip, Edge: testEdge, State: schemas.ClipUploading, Where: schemas.WhereCloud, Updated: time.Now().UTC().Add(-time.Hour)}
		s.Stamps.Uploaded = s.Updated
		edit(&s)
		must(r.states.Create(ctx, id, s))
		return clip
	}
	until := func(id string, what func(*schemas.ClipState) bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		found := fmt.Errorf("found")
		if err := r.states.Watch(ctx, id, func(e bus.Entry[schemas.ClipState]) error {
			if what(&e.Value) {
				return found
			}
			return nil
		}); err != found {
			t.Errorf("%s was not mended: %v", id, err)
		}
	}
	// Stored, not queued.
	made("no-job", func(*schemas.ClipState) {})
	if j := r.job(); j.Clip.ID != "no-job" {
		t.Errorf("%+v", j)
	}
	until("no-job", func(s *schemas.ClipState) bool { return s.State == schemas.ClipQueued && !s.Stamps.Queued.IsZero() })
	// Queued, and the result is there.
	clip := made("has-result", func(s *schemas.ClipState) { s.State = schemas.ClipQueued })
	d := saw(clip)
	d.Where = schemas.WhereCloud
	text := must(json.Marshal(d))
	must(r.store.Put(ctx, bucketResults, "has-result.json", bytes.NewReader(text), int64(len(text)), objectstore.PutOptions{}))
	until("has-result", func(s *schemas.ClipState) bool { return s.State == schemas.ClipDone && s.Result.Hash == d.Hash() })
	// Queued, and the queue is empty.
	made("lost-job", func(s *schemas.ClipState) { s.State = schemas.ClipQueued })
	if j := r.job(); j.Clip.ID != "lost-job" {
		t.Errorf("%+v", j)
	}
	// An upload that does not go on.
	upload := must(r.store.BeginUpload(ctx, bucketClips, "stalled", schemas.TypeMP4, nil))
	made("stalled", func(s *schemas.ClipState) { s.Stamps.Uploaded, s.Where, s.Upload = time.Time{}, "", upload })
	until("stalled", func(s *schemas.ClipState) bool { return s.Upload == "" })
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		if n := must(r.store.Client().ListMultipartUploads(ctx, &sdk.ListMultipartUploadsInput{Bucket: aws.String(bucketClips)})); len(n.Uploads) == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("uploads left open: %+v", n.Uploads)
		}
	}
}

// Beyond the memory of the bus the store remembers.
func TestClipRemembered(t *testing.T) {
	r := newClipRig(t, nil)
	r.work()
	clip, content := footage("old", 10_000)
	if status, _ := r.post(r.token, pieces(clip, content, saw(clip))); status != 201 {
		t.Fatal(status)
	}
	if err := r.states.Delete(t.Context(), clip.ID); err != nil {
		t.Fatal(err)
	}
	var s schemas.ClipState
	if status := r.json(r.token, "GET", "/v1/clips/old", nil, &s); status != 200 || s.State != schemas.ClipDone || s.Stamps.Uploaded.IsZero() {
		t.Errorf("%d %+v", status, s)
	}
	if got := r.confirm(0, "old"); len(got.Clips) != 1 {
		t.Errorf("%+v", got)
	}
	if status, s := r.post(r.token, pieces(clip, content, nil)); status != 200 || s.State != schemas.ClipDone {
		t.Errorf("%d %+v", status, s)
	}
	other, otherContent := footage("x", 10_000)
	other.ID = "old"
	if status, _ := r.post(r.token, pieces(other, otherContent, nil)); status != 409 {
		t.Errorf("other bytes: %d", status)
	}
	var up api.ClipUpload
	if status := r.json(r.token, "POST", "/v1/clips/old/upload", clip, &up); status != 200 || up.State.State != schemas.ClipDone || up.PutURL != "" {
		t.Errorf("%d %+v", status, up)
	}
	if len(r.jobs) != 0 {
		t.Error("queued again")
	}
}

func TestOutcome(t *testing.T) {
	r := newClipRig(t, nil)
	clip, content := footage("told", 10_000)
	_, s := r.post(r.token, pieces(clip, content, saw(clip)))
	o := schemas.ClipOutcome{
		Clip: clip, Trigger: clip.Trigger, Recorded: clip.Trigger.Add(5 * time.Second), Total: 6 * time.Second, Lab: s.Stamps, Policy: schemas.PolicyAdaptive,
		Decision: schemas.WhereEdge, Where: schemas.WhereEdge, Status: schemas.StatusOK, Result: s.Result,
	}
	expired := o
	expired.Clip, _ = footage("expired", 20)
	expired.Status, expired.Where, expired.Result = schemas.StatusExpired, "", nil
	missing := o
	missing.Clip, _ = footage("missing", 20)
	for _, c := range []struct {
		o      schemas.ClipOutcome
		status int
	}{{o, 204}, {o, 204}, {expired, 204}, {expired, 204}, {missing, 404}, {schemas.ClipOutcome{Clip: clip}, 422}} {
		if status := r.json(r.token, "POST", "/v1/clips/"+c.o.Clip.ID+"/outcome", c.o, nil); status != c.status {
			t.Errorf("outcome of %s: %d, want %d", c.o.Clip.ID, status, c.status)
		}
	}
	// Through the bus into the database, in the collector's stead.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	rows := 0
	if err := r.operator.ReadEvents(ctx, 1, func(b bus.EventBatch) error {
		data, err := b.Content(nil)
		if err != nil {
			return err
		}
		info, err := schemas.InspectBatch(data)
		if err != nil {
			return err
		}
		rows += info.Rows
		r.rig.store(b.Header["Nats-Msg-Id"][0], data)
		if rows >= 2 {
			cancel()
		}
		return nil
	}); err != nil || rows != 2 {
		t.Fatalf("%d events, %v", rows, err)
	}
	var answer strings.Builder
	if err := r.client.SQL(t.Context(), `SELECT attrs['clip'], site, agent, service, kind, status, toString(run), duration_ns FROM events WHERE agent = 'gate-1' ORDER BY attrs['clip'] FORMAT TSV`, "", &answer); err != nil {
		t.Fatal(err)
	}
	if got, want := answer.String(), "expired\tgate-1\tgate-1\tedge\tclip\texpired\t00000000-0000-0000-0000-000000000000\t6000000000\n"+
		"told\tgate-1\tgate-1\tedge\tclip\tok\t00000000-0000-0000-0000-000000000000\t6000000000\n"; got != want {
		t.Errorf("events\n%s\nwant\n%s", got, want)
	}
}

func TestOffloadState(t *testing.T) {
	r := newClipRig(t, nil)
	detectors := must(bus.OpenBucket[schemas.DetectorStatus](t.Context(), bustest.Join(t, r.nats, bus.RoleDetector), bus.BucketDetectors))
	must(detectors.Put(t.Context(), "d1", schemas.DetectorStatus{Name: "d1", Slots: 2, Service: 4 * time.Second}))
	must(detectors.Put(t.Context(), "d2", schemas.DetectorStatus{Name: "d2", Slots: 1, Service: 2 * time.Second}))
	must(detectors.Put(t.Context(), "d3", schemas.DetectorStatus{Name: "d3", Slots: 9, Draining: true}))
	var s schemas.OffloadState
	if status := r.json(r.token, "GET", "/v1/offload", nil, &s); status != 200 || s.Slots != 3 || s.Service != 3*time.Second || s.Waiting != 0 {
		t.Errorf("%d %+v", status, s)
	}
	before := time.Now()
	resp, _ := r.ask(r.token, "POST", "/v1/clips/confirm", strings.NewReader(`{"clips":["x"]}`), "Content-Type", "application/json")
	at, received := must(strconv.ParseInt(resp.Header.Get(api.HeaderTime), 10, 64)), must(strconv.ParseInt(resp.Header.Get(api.HeaderReceived), 10, 64))
	if received < before.UnixNano() || at < received || at > time.Now().UnixNano() {
		t.Errorf("received %d, answered %d, asked at %d", received, at, before.UnixNano())
	}
}
