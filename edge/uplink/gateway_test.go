package uplink

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// lab is a gateway and a store that speak the clip API on a real socket, with
// faults on request.
type lab struct {
	t        testing.TB
	srv      *httptest.Server
	store    *httptest.Server
	partSize int64
	skew     time.Duration
	reserved int

	mu      sync.Mutex
	clips   map[string]*labClip
	puts    int // parts stored
	bytes   int64
	through int
	outcome map[string]schemas.ClipOutcome
	// fault is asked before each request; true says that it has answered.
	fault func(w http.ResponseWriter, r *http.Request) bool
}

type labClip struct {
	state  schemas.ClipState
	parts  map[int][]byte
	body   []byte
	stored int // times the clip became whole
}

func newLab(t testing.TB) *lab {
	l := &lab{t: t, partSize: 64 << 10, clips: map[string]*labClip{}, outcome: map[string]schemas.ClipOutcome{}}
	l.srv = httptest.NewServer(http.HandlerFunc(l.gateway))
	l.store = httptest.NewUnstartedServer(http.HandlerFunc(l.put))
	// Small buffers: what is acknowledged has nearly been read.
	l.store.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			_ = c.(*net.TCPConn).SetReadBuffer(256 << 10)
		}
	}
	l.store.Start()
	t.Cleanup(func() {
		l.srv.CloseClientConnections()
		l.store.CloseClientConnections()
		l.srv.Close()
		l.store.Close()
	})
	return l
}

func (l *lab) faults(f func(w http.ResponseWriter, r *http.Request) bool) {
	l.mu.Lock()
	l.fault = f
	l.mu.Unlock()
}

func (l *lab) faulty(w http.ResponseWriter, r *http.Request) bool {
	l.mu.Lock()
	f := l.fault
	l.mu.Unlock()
	return f != nil && f(w, r)
}

func (l *lab) clip(id string) *labClip {
	k := l.clips[id]
	if k == nil {
		k = &labClip{parts: map[int][]byte{}}
		k.state = schemas.ClipState{State: schemas.ClipUploading, Upload: "u-" + id}
		l.clips[id] = k
	}
	return k
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": detail})
}

func (l *lab) gateway(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(headerReceived, strconv.FormatInt(time.Now().Add(l.skew).UnixNano(), 10))
	w.Header().Set(headerTime, strconv.FormatInt(time.Now().Add(l.skew).UnixNano(), 10))
	if l.faulty(w, r) {
		return
	}
	if r.Header.Get("Authorization") != "Bearer secret" {
		problem(w, http.StatusUnauthorized, "token")
		return
	}
	if r.URL.Path == "/v1/clips" {
		l.post(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	id, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/clips/"), "/")
	var in struct {
		Clip   schemas.Clip
		Parts  []Part
		Result *schemas.Detections
		Clips  []string
		Max    int64 `json:"max_bytes"`
	}
	var plain schemas.Clip
	if what == "upload" {
		_ = json.Unmarshal(body, &plain)
	} else {
		_ = json.Unmarshal(body, &in)
	}
	switch {
	case r.URL.Path == "/v1/offload":
		l.answer(w, schemas.OffloadState{Waiting: 3, Slots: 2, Now: time.Now()})
	case r.URL.Path == "/v1/clips/confirm":
		out := Confirmation{}
		for _, id := range in.Clips {
			if k := l.clips[id]; k == nil {
				out.Unknown = append(out.Unknown, id)
			} else if k.state.Ended() {
				out.Ended = append(out.Ended, k.state)
			}
		}
		l.answer(w, out)
	case what == "reserve":
		l.reserved++
		l.answer(w, l.plan(id, in.Max, true))
	case what == "upload":
		k := l.clip(id)
		if k.stored > 0 {
			if k.state.Clip.SHA256 != plain.SHA256 {
				problem(w, http.StatusConflict, "other bytes")
				return
			}
			l.answer(w, plan{State: k.state, PartBytes: l.partSize})
			return
		}
		k.state.Clip = plain
		l.answer(w, l.plan(id, plain.Size, false))
	case what == "complete":
		l.complete(w, id, in.Clip, in.Parts, in.Result)
	case what == "outcome":
		var o schemas.ClipOutcome
		_ = json.Unmarshal(body, &o)
		l.outcome[id] = o
		w.WriteHeader(http.StatusNoContent)
	case what == "" && r.Method == http.MethodGet && l.clips[id] != nil:
		l.answer(w, l.clips[id].state)
	default:
		problem(w, http.StatusNotFound, "no such thing")
	}
}

func (l *lab) answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (l *lab) plan(id string, size int64, reserve bool) plan {
	k := l.clip(id)
	p := plan{State: k.state, PartBytes: l.partSize, Expires: time.Now().Add(time.Hour)}
	if size <= l.partSize && !reserve && len(k.parts) == 0 {
		p.PutURL = l.store.URL + "/clips/" + id
		p.PutHeader = map[string]string{"X-Test": "signed"}
		return p
	}
	for n := 1; int64(n-1)*l.partSize < size; n++ {
		x := planPart{N: n, URL: fmt.Sprintf("%s/clips/%s?part=%d", l.store.URL, id, n), Size: min(l.partSize, size-int64(n-1)*l.partSize)}
		if data, ok := k.parts[n]; ok {
			x.Done, x.ETag = true, etag(data)
		}
		p.Parts = append(p.Parts, x)
	}
	return p
}

func etag(b []byte) string {
	sum := md5.Sum(b)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func (l *lab) put(w http.ResponseWriter, r *http.Request) {
	if l.faulty(w, r) {
		return
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	id := strings.TrimPrefix(r.URL.Path, "/clips/")
	n, _ := strconv.Atoi(r.URL.Query().Get("part"))
	sum := md5.Sum(body)
	if n > 0 && r.Header.Get("Content-MD5") != base64.StdEncoding.EncodeToString(sum[:]) {
		http.Error(w, "BadDigest", http.StatusBadRequest)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.clip(id)
	l.puts++
	l.bytes += int64(len(body))
	if n == 0 {
		if r.Header.Get("X-Test") != "signed" {
			http.Error(w, "SignatureDoesNotMatch", http.StatusForbidden)
			return
		}
		if k.body != nil {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
		k.body = body
	} else {
		k.parts[n] = body
	}
	w.Header().Set("ETag", etag(body))
}

func (l *lab) complete(w http.ResponseWriter, id string, clip schemas.Clip, parts []Part, result *schemas.Detections) {
	k := l.clip(id)
	body := k.body
	if k.stored == 0 && body == nil {
		for _, p := range parts {
			data, ok := k.parts[p.N]
			if !ok || etag(data) != p.ETag {
				problem(w, http.StatusUnprocessableEntity, "a part is missing")
				return
			}
			body = append(body, data...)
		}
	}
	l.settle(w, k, clip, body, result, http.StatusOK)
}

func (l *lab) settle(w http.ResponseWriter, k *labClip, clip schemas.Clip, body []byte, result *schemas.Detections, status int) {
	if k.stored > 0 {
		if k.state.Clip.SHA256 != clip.SHA256 {
			problem(w, http.StatusConflict, "other bytes")
			return
		}
		l.answer(w, k.state)
		return
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != clip.SHA256 {
		k.body, k.parts = nil, map[int][]byte{}
		problem(w, http.StatusUnprocessableEntity, "checksum")
		return
	}
	k.stored++
	k.body, k.state.Clip, k.state.State = body, clip, schemas.ClipQueued
	if result != nil {
		k.state.State = schemas.ClipDone
	}
	w.WriteHeader(status)
	l.answer(w, k.state)
}

func (l *lab) post(w http.ResponseWriter, r *http.Request) {
	form, err := r.MultipartReader()
	if err != nil {
		problem(w, http.StatusUnsupportedMediaType, err.Error())
		return
	}
	var clip schemas.Clip
	var body []byte
	var result *schemas.Detections
	for {
		part, err := form.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
		switch part.FormName() {
		case "meta":
			err = json.NewDecoder(part).Decode(&clip)
		case "clip":
			body, err = io.ReadAll(part)
			if part.Header.Get("Content-Type") != clip.Type {
				err = fmt.Errorf("type %s", part.Header.Get("Content-Type"))
			}
		case "result":
			result = new(schemas.Detections)
			err = json.NewDecoder(part).Decode(result)
		}
		if err != nil {
			problem(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.through++
	l.settle(w, l.clip(clip.ID), clip, body, result, http.StatusCreated)
}

func (l *lab) client(o Options) *Client {
	l.t.Helper()
	o.Gateway, o.Token = l.srv.URL, "secret"
	c, err := New(o)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(c.Close)
	return c
}

func makeClip(t testing.TB, id string, size int) (schemas.Clip, *bytes.Reader) {
	t.Helper()
	data := make([]byte, size)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return schemas.Clip{ID: id, Size: int64(size), SHA256: hex.EncodeToString(sum[:]), Type: schemas.TypeMPEG, Trigger: time.Now()}, bytes.NewReader(data)
}

// once checks that the lab has a clip, whole, and became so one time.
func (l *lab) once(clip schemas.Clip) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.clips[clip.ID]
	if k == nil || k.stored != 1 {
		l.t.Errorf("clip %s is not there exactly once: %+v", clip.ID, k)
		return
	}
	if sum := sha256.Sum256(k.body); hex.EncodeToString(sum[:]) != clip.SHA256 {
		l.t.Errorf("clip %s has other bytes", clip.ID)
	}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
