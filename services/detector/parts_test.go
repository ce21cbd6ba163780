package detector

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/alecthomas/kong"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
)

func TestConfig(t *testing.T) {
	t.Setenv("TRANSFERLAB_VISION", "") // the tests' own
	var flags Config
	parser, err := kong.New(&flags)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(nil); err != nil {
		t.Fatal(err)
	}
	if want := DefaultConfig(); !reflect.DeepEqual(flags, want) {
		t.Errorf("flags default to %+v, the configuration to %+v", flags, want)
	}
	if err := flags.Validate(); err != nil {
		t.Error(err)
	}
	bad := Config{
		Name: "Über", Site: "a b", Endpoint: "ftp://x", Region: "?", CAFile: "/no/such", Results: "R", Models: []string{"/no/such"}, Model: "../x",
		Sample: -1, Threshold: 2, Nice: 20, Slots: 0, Threads: -1, Prefetch: 1, Tries: 0, Grace: -1, IdleExit: -1, AccessKey: "half",
	}
	err = bad.Validate()
	for _, flag := range []string{
		"--name", "--site", "--s3-endpoint", "--s3-ca-file", "--results-bucket", "--models", "--model:", "--sample", "--threshold", "--nice", "--slots",
		"--threads", "--prefetch", "--tries", "--lease", "--timeout", "--grace", "--idle-exit", EnvSecretKey,
	} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("nothing is said of %s", flag)
		}
	}
	one, two := DefaultConfig().complete(), DefaultConfig().complete()
	if one.Name == two.Name || one.Validate() != nil {
		t.Errorf("names %q and %q: %v", one.Name, two.Name, one.Validate())
	}
}

func TestNoVisionHere(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Program = "/no/such/program"
	if err := Available(cfg); err == nil || !strings.Contains(err.Error(), "transferlab-vision") {
		t.Error(err)
	}
}

// What goes into a ring comes out of it, however it is cut, and a slow reader
// holds the writer.
func TestRing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{1, 7, 4096} {
		data := content('V', uint64(size), 100_000)
		r := newRing(make([]byte, size))
		go func() {
			for rest := data; len(rest) > 0; {
				n := min(1+random.IntN(3000), len(rest))
				if _, err := r.Write(rest[:n]); err != nil {
					t.Error(err)
				}
				rest = rest[n:]
			}
			r.finish(io.EOF)
		}()
		if err := iotest.TestReader(onlyOnce{r}, data); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	broken := errors.New("broken")
	r := newRing(make([]byte, 4))
	wrote := make(chan error)
	go func() {
		_, err := r.Write([]byte("more than fits"))
		wrote <- err
	}()
	b := make([]byte, 2)
	if n, err := r.Read(b); n == 0 || err != nil {
		t.Error(n, err)
	}
	r.finish(broken)
	r.finish(io.EOF)
	if err := <-wrote; !errors.Is(err, broken) {
		t.Errorf("write: %v", err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, broken) {
		t.Errorf("read: %v", err)
	}
	r = newRing(make([]byte, 4))
	go func() {
		_, err := r.Write([]byte("more than fits"))
		wrote <- err
	}()
	r.abandon()
	if err := <-wrote; err != nil {
		t.Errorf("abandoned: %v", err)
	}
	if _, err := r.Read(b); err == nil {
		t.Error("an abandoned ring is read")
	}
}

// onlyOnce hides that a ring is more than a reader.
type onlyOnce struct{ io.Reader }

// A store that says nothing is asked again.
func TestStall(t *testing.T) {
	r := newRig(t)
	data := content('V', 1, 1<<20)
	r.put(t, "clips", "a", data)
	r.store.Faults().Add(embedded.Fault{Op: embedded.OpGetObject, Bucket: "clips", Count: 1, Latency: 3 * time.Second})
	fetch := newReader(r.st, 2, 1<<20)
	fetch.stall = 100 * time.Millisecond
	begun := time.Now()
	clip := fetch.start(t.Context(), jobOf("a", data))
	got, err := io.ReadAll(clip)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	<-clip.done
	if clip.err != nil || clip.bytes != int64(len(data)) || clip.first.IsZero() || clip.fetched.IsZero() {
		t.Errorf("%+v", clip.err)
	}
	fetch.close(clip)
	if took := time.Since(begun); took > 2500*time.Millisecond {
		t.Errorf("it took %s", took)
	}
}

// A fetch that nobody wants any more ends, wherever it is.
func TestFetchIsCancelled(t *testing.T) {
	r := newRig(t)
	data := content('V', 1, 4<<20)
	r.put(t, "clips", "a", data)
	fetch := newReader(r.st, 2, 256<<10)
	ctx, cancel := context.WithCancelCause(t.Context())
	clip := fetch.start(ctx, jobOf("a", data))
	if _, err := io.ReadFull(clip, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	why := errors.New("why")
	cancel(why)
	<-clip.done
	if !errors.Is(clip.err, why) {
		t.Errorf("%v", clip.err)
	}
	if _, err := io.ReadAll(clip); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	fetch.close(clip)
}

func TestAnswersThatAreNotTheClip(t *testing.T) {
	const offset, size = 100, 1000
	for name, c := range map[string]struct {
		status int
		length int64
		span   string
		ok     bool
		is     error
	}{
		"the rest":          {http.StatusPartialContent, 900, "bytes 100-999/1000", true, nil},
		"of unknown length": {http.StatusPartialContent, 900, "bytes 100-999/*", true, nil},
		"other bytes":       {http.StatusPartialContent, 900, "bytes 0-899/1000", false, nil},
		"no range":          {http.StatusPartialContent, 900, "", false, nil},
		"longer":            {http.StatusPartialContent, 901, "bytes 100-1000/1001", false, errCorrupt},
		"all of it":         {http.StatusOK, 1000, "", false, nil},
		"nothing behind":    {http.StatusRequestedRangeNotSatisfiable, 0, "bytes */100", false, errCorrupt},
		"elsewhere":         {http.StatusTemporaryRedirect, 0, "", false, nil},
	} {
		resp := &http.Response{StatusCode: c.status, ContentLength: c.length, Header: http.Header{"Content-Range": {c.span}}, Body: http.NoBody}
		err := whole(resp, offset, size)
		if (err == nil) != c.ok || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A result that cannot be stored is named rather than tried again.
func TestResultTooLarge(t *testing.T) {
	r := newRig(t)
	d := r.start(t, r.config("one"), &fakeEyes{})
	a := &attempt{job: *jobOf("a", content('V', 1, 10)), delivery: bus.Delivery{Tries: 1}}
	mine := d.result(a, schemas.StatusOK)
	for range schemas.MaxDetectionFrames {
		mine.Frames = append(mine.Frames, schemas.Frame{Objects: []schemas.Object{{Label: strings.Repeat("<", 100), Score: 1}}})
	}
	err := d.store(t.Context(), a, mine)
	if !errors.Is(err, bus.ErrDrop) || a.status != schemas.StatusError {
		t.Errorf("%s: %v", a.status, err)
	}
	if found := r.stored(t, "a"); found.Status != schemas.StatusError || len(found.Frames) != 0 || !strings.Contains(found.Error, "bytes") {
		t.Errorf("%+v", found.Detections)
	}
}

// Whatever is in the queue: what passes for a job can be worked with.
func FuzzJob(f *testing.F) {
	good, err := json.Marshal(jobOf("a-1", []byte("clip")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"clip":{"id":"../x","size_bytes":-1}}`))
	f.Add(bytes.Replace(good, []byte(`"clips"`), []byte(`"../clips?x"`), 1))
	f.Add([]byte(`{"clip":{"id":"a","size_bytes":1,"sha256":"` + strings.Repeat("0", 64) + `","type":"video/mp4","trigger":"2026-01-01T00:00:00Z","detection":{"sample_per_s":60}},"edge":"` + strings.Repeat(`\u0000`, 100) + `","bucket":"b","key":"k"}`))
	store, err := objectstore.Open(f.Context(), objectstore.Target{Endpoint: "http://127.0.0.1:1", Region: "us-east-1"}, objectstore.Static("a", "b", ""))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var j schemas.ClipJob
		if json.Unmarshal(data, &j) != nil || j.Validate() != nil {
			return
		}
		req, err := store.NewGet(t.Context(), j.Bucket, j.Key, objectstore.Range{}, time.Now())
		if err == nil && req.URL.Host != "127.0.0.1:1" {
			t.Errorf("the clip would be fetched from %s", req.URL)
		}
		a := &attempt{job: j, delivery: bus.Delivery{Tries: 1}}
		a.stamps.Taken = time.Now()
		state := schemas.ClipState{Clip: j.Clip, Edge: j.Edge, State: schemas.ClipUploading}
		if !a.taken(&state) || state.State != schemas.ClipQueued || state.Stamps.Taken.IsZero() {
			t.Errorf("%+v", state)
		}
		d := &Detector{cfg: DefaultConfig()}
		r := d.result(a, schemas.StatusLost)
		if _, err := r.encode(); err != nil {
			t.Errorf("no result for a job that is valid: %v", err)
		}
		if !r.ended(&state) || state.State != schemas.ClipDead || a.taken(&state) || r.ended(&state) {
			t.Errorf("%+v", state)
		}
		if _, err := json.Marshal(state); err != nil {
			t.Error(err)
		}
	})
}

// A result that is read can be written, and says the same then.
func FuzzResult(f *testing.F) {
	d := &Detector{cfg: DefaultConfig()}
	r := d.result(&attempt{job: *jobOf("a", []byte("clip"))}, schemas.StatusOK)
	r.Frames = []schemas.Frame{{At: time.Second, Objects: []schemas.Object{{Label: "dog", Score: 0.5, Box: schemas.Box{X: 0.1, Y: 0.2, W: 0.3, H: 0.4}}}}}
	r.Labels = map[string]float64{"dog": 0.5}
	good, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"clip":"a","status":"ok","frames":null,"labels":{"\ud800":1}}`))
	f.Add([]byte(`{"version":1,"clip":"a","status":"lost","where":"` + strings.Repeat("x", 1000) + `","worker":"` + strings.Repeat("y", 1000) + `"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := parseResult(data, "a")
		if err != nil {
			if !errors.Is(err, errUnreadable) {
				t.Errorf("not named: %v", err)
			}
			return
		}
		once, err := found.encode()
		if err != nil {
			// What JSON makes of it may be longer than it was.
			return
		}
		again, err := parseResult(once, "a")
		if err != nil {
			t.Fatalf("what was written is not read: %v", err)
		}
		if twice, err := again.encode(); err != nil || !bytes.Equal(once, twice) || again.Hash() != found.Hash() {
			t.Errorf("%s\nbecame\n%s", once, twice)
		}
		state := schemas.ClipState{State: schemas.ClipQueued}
		if !found.ended(&state) || !state.Ended() {
			t.Errorf("%+v", state)
		}
		if text, err := json.Marshal(state); err != nil || len(text) > 48<<10 {
			t.Errorf("state of %d bytes, %v", len(text), err)
		}
	})
}
