package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// Multipart bodies: what is read of one is what the standard library reads of
// it, and a body that it refuses is refused.
func FuzzForm(f *testing.F) {
	clip, content := footage("fuzz", 100)
	good, kind := encode(pieces(clip, content, saw(clip)))
	_, parameters, _ := mime.ParseMediaType(kind)
	good = bytes.ReplaceAll(good, []byte(parameters["boundary"]), []byte("b"))
	for _, s := range []string{
		string(good), "", "--b\r\n", "--b--", "--b--\r\n", "--b\r\n\r\n\r\n--b--", "--b\r\nContent-Disposition: form-data; name=meta\r\n\r\nx\r\n--b--\r\n",
		"--b  \r\nContent-Disposition: form-data; name=meta; filename=\"../x\"\r\n\r\n\r\n--b--", "--b\nContent-Disposition: form-data; name=m\n\nx\n--b--",
		"--b\r\nContent-Disposition: form-data; name=m\r\n\r\n--b\r\n--b--", "--b\r\n" + strings.Repeat("X: y\r\n", 20),
	} {
		f.Add([]byte(s), 100)
	}
	f.Fuzz(func(t *testing.T, body []byte, size int) {
		const limit = 1 << 16
		ours := must(newForm(bytes.NewReader(body), "multipart/form-data; boundary=b"))
		theirs := multipart.NewReader(bytes.NewReader(body), "b")
		for n := 0; ; n++ {
			p, err := ours.next()
			if err != nil {
				return
			}
			var text []byte
			if n == 1 && size >= 0 && size < len(body) {
				text = make([]byte, size)
				if _, err := io.ReadFull(ours, text); err != nil {
					return
				}
				if ours.end() != nil {
					return
				}
			} else if text, err = ours.text(limit); err != nil {
				return
			}
			part, err := theirs.NextRawPart()
			if err != nil {
				t.Fatalf("part %d (%q): the library refuses it: %v", n, p.name, err)
			}
			want, err := io.ReadAll(part)
			if err != nil || p.name != part.FormName() {
				t.Fatalf("part %d: name %q, want %q; %v", n, p.name, part.FormName(), err)
			}
			// A part of known size may have the boundary in it.
			if n == 1 && !bytes.Equal(text, want) {
				if !bytes.Contains(text, []byte("--b")) {
					t.Fatalf("part %d: %q, want %q", n, text, want)
				}
				return
			}
			if !bytes.Equal(text, want) {
				t.Fatalf("part %d: %q, want %q", n, text, want)
			}
		}
	})
}

// Requests as a whole: an answer or a refusal, never a failure of ours, and
// nothing stored that is not right.
func FuzzPostClip(f *testing.F) {
	r := newClipRig(f, nil)
	h := r.gateway.Handler()
	clip, content := footage("fuzz", 50)
	good, kind := encode(pieces(clip, content, saw(clip)))
	_, parameters, _ := mime.ParseMediaType(kind)
	good = bytes.ReplaceAll(good, []byte(parameters["boundary"]), []byte("b"))
	f.Add(good, "multipart/form-data; boundary=b", "")
	f.Add(good[:len(good)-30], "multipart/form-data; boundary=b", "id=fuzz&sha256="+clip.SHA256)
	f.Add([]byte("x"), "text/plain", "id=../x")
	f.Fuzz(func(t *testing.T, body []byte, kind, query string) {
		req := httptest.NewRequest(http.MethodPost, "/v1/clips", bytes.NewReader(body))
		req.URL.RawQuery = query
		req.Header.Set("Content-Type", kind)
		req.Header.Set("Authorization", "Bearer "+r.token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code >= 500 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		for _, bucket := range []string{bucketClips, bucketResults} {
			all, _, err := r.store.List(context.Background(), bucket, objectstore.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range all {
				if err := schemas.ClipID(strings.TrimSuffix(o.Key, ".json")); err != nil {
					t.Errorf("stored in %s: %v", bucket, err)
				}
				if o.Key == clip.ID && o.Size != clip.Size {
					t.Errorf("other bytes were stored")
				}
			}
		}
	})
}

// Ids in paths reach the store only if they are ids.
func FuzzClipPath(f *testing.F) {
	r := newClipRig(f, nil)
	h := r.gateway.Handler()
	for _, s := range []string{"x", "../x", "%2e%2e", "a/b", "a\x00b", "confirm", "x.json", strings.Repeat("a", 200), "-x", ""} {
		f.Add(s, uint8(0))
		f.Add(s, uint8(1))
	}
	f.Fuzz(func(t *testing.T, id string, which uint8) {
		method, rest := "GET", ""
		switch which % 4 {
		case 1:
			rest = "/result"
		case 2:
			method, rest = "POST", "/complete"
		case 3:
			method, rest = "POST", "/upload"
		}
		req := httptest.NewRequest(method, "/", strings.NewReader("{}"))
		req.URL.Path = "/v1/clips/" + id + rest
		req.Header.Set("Authorization", "Bearer "+r.token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code >= 500 || w.Code/100 == 2 {
			t.Errorf("%s %q: %d %s", method, req.URL.Path, w.Code, w.Body)
		}
	})
}

// Results: refused, or such that they can be stored and read again.
func FuzzResult(f *testing.F) {
	clip, _ := footage("fuzz", 50)
	f.Add([]byte(`{"version":1,"clip":"fuzz","edge":"gate-1","clip_sha256":"` + clip.SHA256 + `","where":"edge","status":"ok","frames":[{"at_ns":0,"objects":null}]}`))
	f.Add([]byte(`{"frames":[null,null]}`))
	f.Add([]byte(`{"frames":[{},{},{}]} x`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parseResult(text, testEdge, &clip)
		if err != nil {
			if p := asProblem(err); p.Status != 400 && p.Status != 422 {
				t.Errorf("%v", err)
			}
			return
		}
		if d.Clip != clip.ID || d.Edge != testEdge || d.Validate() != nil {
			t.Errorf("%+v", d)
		}
		again, err := parseResult(must(json.Marshal(d)), testEdge, &clip)
		if err != nil || again.Hash() != d.Hash() {
			t.Errorf("it is not read again: %v", err)
		}
	})
}
