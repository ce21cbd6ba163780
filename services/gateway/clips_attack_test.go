package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	s3 "github.com/transferlab/transferlab/services/internal/objectstore/embedded"
)

// zeros is a body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// raw sends text over a connection of its own and returns the answer's status,
// 0 if there is none.
func (r *clipRig) raw(send func(net.Conn) error) int {
	r.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	sent := make(chan struct{})
	go func() { defer close(sent); _ = send(conn) }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	_ = conn.Close()
	<-sent
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

func (r *clipRig) head(length int64, kind string) string {
	return fmt.Sprintf("POST /v1/clips HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", r.token, kind, length)
}

// heap is what is in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// Whatever is wrong with a request: it is refused, counted, and nothing of it is
// stored or queued.
func TestClipRefused(t *testing.T) {
	r := newClipRig(t, func(c *Config) { c.Clips.MaxBytes = 8 << 20 })
	r.work()
	clip, content := footage("good", 20_000)
	meta := func(edit func(*schemas.Clip)) schemas.Clip { c := clip; edit(&c); return c }
	result := func(edit func(*schemas.Detections)) *schemas.Detections { d := saw(clip); edit(d); return d }
	raw := func(p []piece, edit func(string) string) string { b, _ := encode(p); return edit(string(b)) }
	good, kind := encode(pieces(clip, content, saw(clip)))
	_, boundary, _ := strings.Cut(kind, "boundary=")
	for _, c := range []struct {
		name   string
		pieces []piece
		body   string
		kind   string
		status int
	}{
		{name: "no form", body: "{}", kind: "application/json", status: 415},
		{name: "no type", body: "{}", kind: "", status: 415},
		{name: "no boundary", body: "x", kind: "multipart/form-data", status: 415},
		{name: "mixed", body: string(good), kind: strings.Replace(kind, "form-data", "mixed", 1), status: 415},
		{name: "empty", body: "", kind: kind, status: 400},
		{name: "another boundary", body: string(good), kind: kind + "x", status: 400},
		{name: "LF only", body: strings.ReplaceAll(string(good[:400]), "\r\n", "\n"), kind: kind, status: 400},
		{name: "nothing but the end", body: "--" + boundary + "--\r\n", kind: kind, status: 400},
		{name: "truncated in the head", body: string(good[:100]), kind: kind, status: 400},
		{name: "truncated in the clip", body: string(good[:10_000]), kind: kind, status: 422},
		{name: "truncated in the result", body: string(good[:len(good)-200]), kind: kind, status: 400},
		{name: "without the last boundary", body: string(good[:len(good)-len(boundary)-6]), kind: kind, status: 400},
		{name: "much behind the end", body: string(good) + strings.Repeat("x", 5000), kind: kind, status: 400},
		{name: "large head", pieces: []piece{{"meta", strings.Repeat("x", 9000), "", []byte("{}")}}, status: 400},
		{name: "head without end", body: "--" + boundary + "\r\nX: " + strings.Repeat("x", 100_000), kind: kind, status: 400},
		{name: "many heads", body: "--" + boundary + "\r\n" + strings.Repeat("X: y\r\n", 100), kind: kind, status: 400},
		{name: "order", pieces: slices.Insert(pieces(clip, content, nil)[1:], 1, pieces(clip, content, nil)[0]), status: 400},
		{name: "no clip", pieces: pieces(clip, content, nil)[:1], status: 400},
		{name: "two metas", pieces: slices.Insert(pieces(clip, content, nil), 0, pieces(clip, content, nil)[0]), status: 400},
		{name: "two clips", pieces: append(pieces(clip, content, nil), pieces(clip, content, nil)[1]), status: 400},
		{name: "two results", pieces: append(pieces(clip, content, saw(clip)), pieces(clip, content, saw(clip))[2]), status: 400},
		{name: "another part", pieces: append(pieces(clip, content, nil), piece{"x", "text/plain", "", []byte("x")}), status: 400},
		{name: "file name with a path", pieces: []piece{pieces(clip, content, nil)[0], {"clip", clip.Type, "../../etc/passwd", content}}, status: 400},
		{name: "file name with backslashes", pieces: []piece{pieces(clip, content, nil)[0], {"clip", clip.Type, `..\x`, content}}, status: 400},
		{name: "meta no JSON", pieces: []piece{{"meta", "application/json", "", []byte("{")}}, status: 400},
		{name: "meta too large", pieces: []piece{{"meta", "application/json", "", bytes.Repeat([]byte(" "), 1<<20)}}, status: 413},
		{name: "meta with more", pieces: []piece{{"meta", "application/json", "", []byte(`{"idd":"x"}`)}}, status: 400},
		{name: "path in the id", pieces: pieces(meta(func(c *schemas.Clip) { c.ID = "../x" }), content, nil), status: 422},
		{name: "id with NUL", pieces: pieces(meta(func(c *schemas.Clip) { c.ID = "a\x00b" }), content, nil), status: 422},
		{name: "id with a dot", pieces: pieces(meta(func(c *schemas.Clip) { c.ID = "a.json" }), content, nil), status: 422},
		{name: "long id", pieces: pieces(meta(func(c *schemas.Clip) { c.ID = strings.Repeat("a", 1000) }), content, nil), status: 422},
		{name: "no video", pieces: pieces(meta(func(c *schemas.Clip) { c.Type = "text/html" }), content, nil), status: 422},
		{name: "another type", pieces: []piece{pieces(clip, content, nil)[0], {"clip", "text/html", "x.mp4", content}}, status: 415},
		{name: "wrong checksum", pieces: pieces(meta(func(c *schemas.Clip) { c.SHA256 = strings.Repeat("0", 64) }), content, nil), status: 422},
		{name: "other bytes", pieces: pieces(clip, bytes.ToUpper(content), nil), status: 422},
		{name: "shorter", pieces: pieces(meta(func(c *schemas.Clip) { c.Size-- }), content, nil), status: 422},
		{name: "longer", pieces: pieces(meta(func(c *schemas.Clip) { c.Size += 200 }), content, nil), status: 400},
		{name: "much longer", pieces: pieces(meta(func(c *schemas.Clip) { c.Size = 1 << 20 }), content, nil), status: 422},
		{name: "too large", pieces: pieces(meta(func(c *schemas.Clip) { c.Size = 9 << 20 }), content, nil), status: 413},
		{name: "size below 0", pieces: pieces(meta(func(c *schemas.Clip) { c.Size = -1 }), content, nil), status: 422},
		{name: "another clip's result", pieces: pieces(clip, content, result(func(d *schemas.Detections) { d.Clip = "other" })), status: 422},
		{name: "result of other bytes", pieces: pieces(clip, content, result(func(d *schemas.Detections) { d.SHA256 = strings.Repeat("0", 64) })), status: 422},
		{name: "another edge's result", pieces: pieces(clip, content, result(func(d *schemas.Detections) { d.Edge = "gate-2" })), status: 422},
		{name: "result from the cloud", pieces: pieces(clip, content, result(func(d *schemas.Detections) { d.Where = schemas.WhereCloud })), status: 422},
		{name: "invalid result", pieces: pieces(clip, content, result(func(d *schemas.Detections) { d.Version = 7 })), status: 422},
		{name: "result no JSON", pieces: append(pieces(clip, content, nil), piece{"result", "application/json", "", []byte("[")}), status: 400},
		{name: "large result", pieces: append(pieces(clip, content, nil), piece{"result", "application/json", "", bytes.Repeat([]byte(" "), 5<<20)}), status: 413},
		{name: "bomb of objects", pieces: append(pieces(clip, content, nil), piece{"result", "application/json", "", []byte(`{"frames":[` + strings.Repeat("{},", 1<<20) + `{}]}`)}), status: 422},
		{name: "bomb of nulls", pieces: append(pieces(clip, content, nil), piece{"result", "application/json", "", []byte(`{"frames":[{"objects":[` + strings.Repeat("null,", 1<<19) + `null]}]}`)}), status: 422},
		{name: "transfer encoding", body: raw(pieces(clip, content, nil), func(s string) string {
			return strings.Replace(s, "Content-Type: application/json", "Content-Transfer-Encoding: base64", 1)
		}), status: 400},
	} {
		body, kind := []byte(c.body), c.kind
		if c.pieces != nil {
			body, kind = encode(c.pieces)
		}
		if c.body != "" && kind == "" && c.name != "no type" {
			kind = "multipart/form-data; boundary=" + strings.TrimPrefix(strings.SplitN(c.body, "\r\n", 2)[0], "--")
		}
		began := time.Now()
		resp, text := r.ask(r.token, "POST", "/v1/clips", bytes.NewReader(body), "Content-Type", kind)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: took %s", c.name, took)
		}
		var p api.Problem
		if resp.StatusCode != c.status || json.Unmarshal(text, &p) != nil || p.Status != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, resp.StatusCode, text, c.status)
		}
	}
	if keys := r.stored(); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}
	if n := len(must(r.states.List(t.Context(), ">"))); n != 0 {
		t.Errorf("%d documents of clips that were refused", n)
	}
	if n := r.metric("transferlab_clips_refused_total"); n < 45 {
		t.Errorf("%g refusals counted", n)
	}
	if len(r.jobs) != 0 {
		t.Error("a refused clip was queued")
	}
	// And then the right one.
	if status, _ := r.post(r.token, pieces(clip, content, saw(clip))); status != 201 {
		t.Errorf("the right one: %d", status)
	}
}

// Two gigabytes are refused before they are sent, or as soon as there is more
// than announced; memory does not follow.
func TestHugeBody(t *testing.T) {
	r := newClipRig(t, nil)
	clip, content := footage("huge", 1000)
	before := heap()
	if status := r.raw(func(c net.Conn) error {
		_, err := io.WriteString(c, r.head(2<<30, "multipart/form-data; boundary=b"))
		return err
	}); status != 413 {
		t.Errorf("2 GB announced: %d, want 413", status)
	}
	body, kind := encode(pieces(clip, content, nil))
	cut := bytes.Index(body, content) + len(content)
	var written int64
	if status := r.raw(func(c net.Conn) error {
		_, err := io.WriteString(c, strings.Replace(r.head(0, kind), "Content-Length: 0", "Transfer-Encoding: chunked", 1)+fmt.Sprintf("%x\r\n", cut)+string(body[:cut])+"\r\n80000000\r\n")
		if err != nil {
			return err
		}
		written, err = io.CopyN(c, zeros{}, 2<<30)
		return err
	}); status != 422 {
		t.Errorf("2 GB behind a clip of 1000 bytes: %d, want 422", status)
	}
	if written > 64<<20 {
		t.Errorf("%d bytes were taken", written)
	}
	if after := heap(); after > before+32<<20 {
		t.Errorf("heap %d MB, %d MB before", after>>20, before>>20)
	}
	if keys := r.stored(); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}
}

// Who sends a byte now and then loses the place.
func TestSlowBody(t *testing.T) {
	r := newClipRig(t, func(c *Config) { c.Clips.Pause, c.Clips.EdgeUploads = 300*time.Millisecond, 1 })
	clip, content := footage("slow", 100_000)
	body, kind := encode(pieces(clip, content, nil))
	began := time.Now()
	if status := r.raw(func(c net.Conn) error {
		_, err := io.WriteString(c, r.head(int64(len(body)), kind)+string(body[:1000]))
		return err
	}); status != 408 {
		t.Errorf("silence: %d, want 408", status)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	if status := r.raw(func(c net.Conn) error {
		if _, err := io.WriteString(c, r.head(int64(len(body)), kind)+string(body[:1000])); err != nil {
			return err
		}
		for i := 1000; i < len(body); i++ {
			<-tick.C
			if _, err := c.Write(body[i : i+1]); err != nil {
				return err
			}
		}
		return nil
	}); status != 408 {
		t.Errorf("a byte now and then: %d, want 408", status)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if keys := r.stored(); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}
	// The place is free again.
	if status, _ := r.post(r.token, pieces(clip, content, nil)); status != 201 {
		t.Error(status)
	}
}

// More than allowed at a time are refused, of one edge and of all.
func TestUploadsBounded(t *testing.T) {
	r := newClipRig(t, func(c *Config) { c.Clips.EdgeUploads, c.Clips.Uploads = 1, 2 })
	tokens := []string{r.token, r.edge("second"), r.edge("third")}
	clip, content := footage("held", 1000)
	body, kind := encode(pieces(clip, content, nil))
	var held []net.Conn
	hold := func(token string) {
		conn := must(net.Dial("tcp", strings.TrimPrefix(r.url, "http://")))
		must(io.WriteString(conn, strings.Replace(r.head(int64(len(body)), kind), r.token, token, 1)+string(body[:200])))
		held = append(held, conn)
	}
	busy := func(token string, want bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
			resp, _ := r.ask(token, "POST", "/v1/clips", strings.NewReader("x"), "Content-Type", "multipart/form-data; boundary=b")
			if got := resp.StatusCode == 429; got == want {
				if want && resp.Header.Get("Retry-After") == "" {
					t.Error("429 without Retry-After")
				}
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("status %d, busy %v", resp.StatusCode, want)
			}
		}
	}
	hold(tokens[0])
	busy(tokens[0], true)
	busy(tokens[1], false)
	hold(tokens[1])
	busy(tokens[2], true)
	for _, c := range held {
		_ = c.Close()
	}
	busy(tokens[2], false)
	busy(tokens[0], false)
}

// A store that fails in between: the edge is told to come again, and what it
// sends again is taken.
func TestStoreFails(t *testing.T) {
	r := newClipRig(t, nil)
	clip, content := footage("again", 300_000)
	for _, f := range []s3.Fault{{Op: s3.OpPutObject, Drop: true}, {Op: s3.OpPutObject, Status: 503}, {Op: s3.OpGetObject, Status: 500}} {
		r.s3.Faults().Add(f)
		if status, _ := r.post(r.token, pieces(clip, content, nil)); status != 503 {
			t.Errorf("%+v: %d, want 503", f, status)
		}
		r.s3.Faults().Clear()
	}
	if keys := r.stored(); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}
	if status, _ := r.post(r.token, pieces(clip, content, nil)); status != 201 {
		t.Errorf("%d, want 201", status)
	}
}

func TestEdges(t *testing.T) {
	r := newClipRig(t, nil)
	ctx := t.Context()
	if len(r.token) < 26+len(tokenPrefix) || !strings.HasPrefix(r.token, tokenPrefix) {
		t.Errorf("token %q", r.token)
	}
	if _, err := r.client.AddEdge(ctx, testEdge); err == nil || !strings.Contains(err.Error(), "has an account") {
		t.Errorf("a second account of the name: %v", err)
	}
	for _, name := range []string{"", "Gate", "../x", "a b", strings.Repeat("x", 64), "a.b"} {
		if _, err := r.client.AddEdge(ctx, name); err == nil {
			t.Errorf("an account named %q", name)
		}
	}
	entry := must(r.gateway.edges.bucket.Get(ctx, testEdge))
	if text := string(must(json.Marshal(entry.Value))); strings.Contains(text, r.token[len(tokenPrefix):]) || len(entry.Value.Hash) != 64 {
		t.Errorf("stored %s", text)
	}
	clip, content := footage("edge", 1000)
	// An edge's token opens what is for edges and nothing else, the lab's nothing
	// of that.
	for _, path := range []string{"/v1/runs", "/v1/edges", "/v1/status", "/metrics", "/v1/clips/../runs", "/v1/clips/%2e%2e/runs", "//v1/runs", "/v1/sql"} {
		if resp, _ := r.ask(r.token, "GET", path, nil); resp.StatusCode/100 == 2 {
			t.Errorf("GET %s with an edge's token: %d", path, resp.StatusCode)
		}
	}
	if status, _ := r.post(testToken, pieces(clip, content, nil)); status != 401 {
		t.Errorf("a clip with the lab's token: %d", status)
	}
	for _, token := range []string{"", "x", r.token + "x", strings.ToUpper(r.token), r.token[:len(r.token)-1]} {
		if status, _ := r.post(token, pieces(clip, content, nil)); status != 401 && status != 429 {
			t.Errorf("a clip with token %q: %d", token, status)
		}
	}
	if keys := r.stored(); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}

	// Revoked in the middle of an upload, and for good.
	started, release := make(chan struct{}), make(chan struct{})
	body, kind := encode(pieces(clip, content, nil))
	answered := make(chan int, 1)
	go func() {
		reader := io.MultiReader(bytes.NewReader(body[:500]), &gate{started: started, release: release}, bytes.NewReader(body[500:]))
		resp, _ := r.ask(r.token, "POST", "/v1/clips", reader, "Content-Type", kind)
		answered <- resp.StatusCode
	}()
	waited := make(chan api.ClipConfirmed, 1)
	held, heldContent := footage("held", 100)
	if status, _ := r.post(r.token, pieces(held, heldContent, nil)); status != 201 {
		t.Fatal(status)
	}
	go func() {
		var out api.ClipConfirmed
		resp, _ := r.ask(r.token, "POST", "/v1/clips/confirm", strings.NewReader(`{"clips":["held"],"wait_ns":30000000000}`), "Content-Type", "application/json")
		if resp.StatusCode != 401 {
			t.Errorf("a wait of a revoked edge: %d", resp.StatusCode)
		}
		waited <- out
	}()
	<-started
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		r.gateway.clips.index.mu.Lock()
		n := len(r.gateway.clips.index.waiters)
		r.gateway.clips.index.mu.Unlock()
		if n == 1 {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
	}
	if err := r.client.RevokeEdge(ctx, testEdge); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != 401 {
		t.Errorf("an upload of a revoked edge: %d", status)
	}
	close(release)
	<-waited
	if status, _ := r.post(r.token, pieces(clip, content, nil)); status != 401 && status != 429 {
		t.Errorf("after the revocation: %d", status)
	}
	if err := r.client.RevokeEdge(ctx, testEdge); err != nil {
		t.Error(err)
	}
	if err := r.client.RevokeEdge(ctx, "nobody"); err == nil {
		t.Error("revoked nobody")
	}
	fresh := r.edge(testEdge)
	if status, _ := r.post(fresh, pieces(clip, content, nil)); status != 201 {
		t.Errorf("with the new token: %d", status)
	}
	all, err := r.client.Edges(ctx)
	if err != nil || len(all) != 1 || all[0].Name != testEdge || !all[0].Revoked.IsZero() {
		t.Errorf("%+v, %v", all, err)
	}
	r.gateway.edges.storeSeen(ctx)
	if all = must(r.client.Edges(ctx)); time.Since(all[0].Seen) > time.Minute {
		t.Errorf("seen %s", all[0].Seen)
	}
	// What another gateway does to the accounts counts here too.
	entry = must(r.gateway.edges.bucket.Get(ctx, testEdge))
	entry.Value.Revoked = time.Now()
	must(r.gateway.edges.bucket.Update(ctx, testEdge, entry.Value, entry.Revision))
	for deadline := time.Now().Add(10 * time.Second); r.gateway.edges.find(fresh) != nil; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the token still counts")
		}
	}
}

// gate lets a body be held in the middle.
type gate struct{ started, release chan struct{} }

func (g *gate) Read([]byte) (int, error) {
	close(g.started)
	<-g.release
	return 0, io.EOF
}

func TestConfirmBounded(t *testing.T) {
	r := newClipRig(t, nil)
	clip, content := footage("waits", 100)
	r.post(r.token, pieces(clip, content, nil))
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range DefaultClipsConfig().EdgeWaits {
		all.Go(func() {
			req := must(http.NewRequestWithContext(ctx, "POST", r.url+"/v1/clips/confirm", strings.NewReader(`{"clips":["waits"],"wait_ns":30000000000}`)))
			req.Header.Set("Authorization", "Bearer "+r.token)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	for deadline := time.Now().Add(10 * time.Second); len(r.gateway.clips.waits) < DefaultClipsConfig().EdgeWaits; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
	}
	if status := r.json(r.token, "POST", "/v1/clips/confirm", api.ClipConfirm{Clips: []string{"waits"}}, nil); status != 429 {
		t.Errorf("one more: %d, want 429", status)
	}
	stop()
	all.Wait()
	for _, c := range []api.ClipConfirm{{}, {Clips: []string{"../x"}}, {Clips: []string{"x"}, Wait: time.Hour}, {Clips: make([]string, 1001)}} {
		if status := r.json(r.token, "POST", "/v1/clips/confirm", c, nil); status != 422 {
			t.Errorf("%d clips, %s: %d, want 422", len(c.Clips), c.Wait, status)
		}
	}
}

func TestWithoutStore(t *testing.T) {
	r := &clipRig{rig: newRig(t, nil)}
	r.token = r.edge(testEdge)
	clip, content := footage("x", 100)
	if status, _ := r.post(r.token, pieces(clip, content, nil)); status != 503 {
		t.Error(status)
	}
	if status := r.json(r.token, "POST", "/v1/clips/x/upload", clip, nil); status != 503 {
		t.Error(status)
	}
	if status := r.json(r.token, "GET", "/v1/clips/x", nil, nil); status != 404 {
		t.Error(status)
	}
}
