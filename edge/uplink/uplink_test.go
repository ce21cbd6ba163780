package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// later goes on after d by the clock of a synctest bubble, which runs ahead as
// soon as all in the bubble wait: nobody really does.
func later(d time.Duration) { <-time.After(d) }

func TestUpload(t *testing.T) {
	for _, c := range []struct {
		name   string
		path   string
		size   int
		result bool
	}{
		{"parts", PathDirect, 300_000, false},
		{"whole number of parts", PathDirect, 4 * 64 << 10, false},
		{"one put", PathDirect, 5000, false},
		{"one byte", PathDirect, 1, false},
		{"with a result", PathDirect, 300_000, true},
		{"through the gateway", PathGateway, 300_000, false},
		{"through the gateway with a result", PathGateway, 300_000, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			up := l.client(Options{Path: c.path})
			clip, src := makeClip(t, "a-1", c.size)
			want := schemas.ClipQueued
			var result *schemas.Detections
			if c.result {
				result = &schemas.Detections{Version: 1, Clip: clip.ID, Status: schemas.StatusOK}
				want = schemas.ClipDone
			}
			var saved []Part
			s, err := up.Upload(within(t), clip, src, Progress{Save: func(upload string, partBytes int64, parts []Part) {
				if upload != "u-a-1" || partBytes != 64<<10 || len(parts) != len(saved)+1 {
					t.Errorf("saved %q, %d, %v after %v", upload, partBytes, parts, saved)
				}
				saved = parts
			}}, result)
			if err != nil || s.State != want {
				t.Fatalf("%q, %v", s.State, err)
			}
			l.once(clip)
			// Again, as after a crash: nothing is sent.
			sent := l.bytes
			if s, err := up.Upload(within(t), clip, src, Progress{}, result); err != nil || s.State != want {
				t.Errorf("again: %q, %v", s.State, err)
			}
			l.once(clip)
			if l.bytes != sent {
				t.Errorf("sent %d bytes again", l.bytes-sent)
			}
			// The id with other bytes is refused for good.
			other, src := makeClip(t, "a-1", c.size+1)
			var refused *Refused
			if _, err := up.Upload(within(t), other, src, Progress{}, nil); !errors.As(err, &refused) || refused.Status != http.StatusConflict {
				t.Errorf("other bytes: %v", err)
			}
		})
	}
}

func TestReservedAndEarly(t *testing.T) {
	l := newLab(t)
	up := l.client(Options{})
	ctx := within(t)
	clip, src := makeClip(t, "a", 300_000)
	r, err := up.Reserve(ctx, clip.ID, clip.Type, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for written := int64(0); written < clip.Size; written += 50_000 {
		if err := up.Early(ctx, r, src, written); err != nil {
			t.Fatal(err)
		}
	}
	l.mu.Lock()
	ahead := l.puts
	l.mu.Unlock()
	if ahead != 3 {
		t.Errorf("%d parts ahead of the end, want 3", ahead)
	}
	var asked atomic.Int64
	l.faults(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/upload") {
			asked.Add(1)
		}
		return false
	})
	if _, err := up.Upload(ctx, clip, src, Progress{Reserved: r}, nil); err != nil {
		t.Fatal(err)
	}
	l.once(clip)
	if l.puts != 5 || asked.Load() != 0 {
		t.Errorf("%d parts stored, asked %d times; want 5 and 0", l.puts, asked.Load())
	}
	// A reservation of another clip, and one too small, are of no use and do no harm.
	for _, r := range []*Reservation{r, {id: "b", media: clip.Type, plan: plan{PartBytes: 10, Parts: []planPart{{N: 1}}}}} {
		clip, src := makeClip(t, "b", 100_000)
		if _, err := up.Upload(ctx, clip, src, Progress{Reserved: r}, nil); err != nil {
			t.Fatal(err)
		}
		l.once(clip)
		delete(l.clips, "b")
	}
}

// reset ends a request's connection in the middle.
func reset(w http.ResponseWriter) {
	if h, ok := w.(http.Hijacker); ok {
		if c, _, err := h.Hijack(); err == nil {
			_ = c.Close()
		}
	}
}

// hang takes a request and never answers it.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// first answers the first requests that match by f, and no later ones.
func first(n int, match string, f func(w http.ResponseWriter, r *http.Request)) func(w http.ResponseWriter, r *http.Request) bool {
	var seen atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.Method+" "+r.URL.String(), match) || seen.Add(1) > int64(n) {
			return false
		}
		f(w, r)
		return true
	}
}

func TestFaultsAreOvercome(t *testing.T) {
	status := func(code int, header ...string) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			problem(w, code, "on purpose")
		}
	}
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"store dies mid-part": first(3, "PUT ", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 1000)
			reset(w)
		}),
		"store answers 500":           first(3, "PUT ", status(500)),
		"store answers 503":           first(1, "part=2", status(503)),
		"store answers 403":           first(2, "part=2", status(403)),
		"store knows the upload not":  first(1, "part=1", status(404)),
		"store got wrong bytes":       first(1, "part=3", status(400)),
		"store gives no tag":          first(1, "part=3", func(http.ResponseWriter, *http.Request) {}),
		"store gives a wrong tag":     first(1, "part=3", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("ETag", `"wrong"`) }),
		"store hangs":                 first(1, "part=1", hang),
		"gateway resets":              first(2, "/upload", func(w http.ResponseWriter, _ *http.Request) { reset(w) }),
		"gateway answers 502":         first(1, "/upload", status(502)),
		"gateway answers 429":         first(1, "/upload", status(429, "Retry-After", "1")),
		"gateway hangs":               first(1, "/upload", hang),
		"upload forgotten":            first(1, "/complete", status(410)),
		"complete finds wrong bytes":  first(1, "/complete", status(422)),
		"complete knows no such clip": first(1, "/complete", status(404)),
		"answer is cut": first(1, "/upload", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"state":`))
		}),
		"answer is nonsense": first(1, "/upload", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }),
		"answer is empty":    first(1, "/complete", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			up := l.client(Options{Stall: 300 * time.Millisecond})
			clip, src := makeClip(t, "a", 300_000)
			l.faults(fault)
			ctx := within(t)
			if _, err := up.Upload(ctx, clip, src, Progress{}, nil); err != nil {
				t.Fatal(err)
			}
			l.once(clip)
		})
	}
}

// The lab has the result of a clip before its bytes: that the bytes are complete
// is said until it is heard, whatever the clip's state is.
func TestBytesAfterTheResult(t *testing.T) {
	for name, fault := range map[string]string{"put": "PUT ", "complete": "/complete"} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			up := l.client(Options{})
			clip, src := makeClip(t, "a", 1000)
			k := l.clip(clip.ID)
			k.state.Clip, k.state.State = clip, schemas.ClipDone
			l.faults(first(1, fault, func(w http.ResponseWriter, _ *http.Request) { reset(w) }))
			result := &schemas.Detections{Version: 1, Clip: clip.ID, Status: schemas.StatusOK}
			if _, err := up.Upload(within(t), clip, src, Progress{}, result); err != nil {
				t.Fatal(err)
			}
			l.once(clip)
		})
	}
}

func TestGivesUpWhatNeverWorks(t *testing.T) {
	for code, tries := range map[int]int64{409: 1, 413: 1, 415: 1, 422: wrongMost} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			l := newLab(t)
			up := l.client(Options{})
			clip, src := makeClip(t, "a", 1000)
			var n atomic.Int64
			l.faults(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/upload") {
					return false
				}
				n.Add(1)
				problem(w, code, "never")
				return true
			})
			var refused *Refused
			_, err := up.Upload(within(t), clip, src, Progress{}, nil)
			if !errors.As(err, &refused) || refused.Status != code || refused.Detail != "never" || n.Load() != tries {
				t.Errorf("after %d tries: %v", n.Load(), err)
			}
		})
	}
}

// The store's address does not answer, the gateway does: the clip goes through it,
// and so does the next, at once.
func TestStoreOutOfReach(t *testing.T) {
	l := newLab(t)
	up := l.client(Options{StoreAddr: "127.0.0.1:1"})
	var ways []string
	clip, src := makeClip(t, "a", 300_000)
	p := Progress{Retry: func(r Retrying) { ways = append(ways, r.Path) }}
	if _, err := up.Upload(within(t), clip, src, p, nil); err != nil {
		t.Fatal(err)
	}
	l.once(clip)
	if len(ways) != strikesMost || l.through != 1 {
		t.Errorf("failures %v, %d clips through the gateway", ways, l.through)
	}
	clip, src = makeClip(t, "b", 300_000)
	if _, err := up.Upload(within(t), clip, src, p, nil); err != nil || len(ways) != strikesMost || l.through != 2 {
		t.Errorf("the next: %v, failures %v, %d through the gateway", err, ways, l.through)
	}
}

// 100 clips while one request in twenty loses its connection before, while or after
// it is handled.
func TestDroppedConnections(t *testing.T) {
	l := newLab(t)
	l.partSize = 8 << 10
	up := l.client(Options{Connections: 8})
	rng := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	l.faults(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		drop, when := rng.Float64() < 0.05, rng.IntN(3)
		mu.Unlock()
		if !drop {
			return false
		}
		switch when {
		case 1:
			_, _ = io.CopyN(io.Discard, r.Body, 4000)
		case 2:
			// Handled, but the answer is lost.
			if r.Method == http.MethodPut {
				l.put2(r)
			}
		}
		reset(w)
		return true
	})
	ctx := within(t)
	var wait sync.WaitGroup
	work := make(chan int)
	for range 8 {
		wait.Go(func() {
			for i := range work {
				clip, src := makeClip(t, fmt.Sprintf("c-%d", i), 20_000+i*100)
				if _, err := up.Upload(ctx, clip, src, Progress{}, nil); err != nil {
					t.Errorf("clip %d: %v", i, err)
				}
				l.once(clip)
			}
		})
	}
	for i := range 100 {
		work <- i
	}
	close(work)
	wait.Wait()
	if len(l.clips) != 100 {
		t.Errorf("%d clips in the lab", len(l.clips))
	}
}

// put2 handles a PUT whose answer nobody gets.
func (l *lab) put2(r *http.Request) {
	l.mu.Lock()
	f := l.fault
	l.fault = nil
	l.mu.Unlock()
	l.put(discard{http.Header{}}, r)
	l.mu.Lock()
	l.fault = f
	l.mu.Unlock()
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// A slow link is no stalled one.
func TestSlowIsNotStalled(t *testing.T) {
	l := newLab(t)
	up := l.client(Options{Stall: 1200 * time.Millisecond})
	clip, src := makeClip(t, "a", 64<<10)
	var tries atomic.Int64
	l.faults(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			tries.Add(1)
			r.Body = io.NopCloser(&slow{in: r.Body, every: time.NewTicker(40 * time.Millisecond)})
		}
		return false
	})
	big, bigSrc := makeClip(t, "b", 12<<20)
	l.partSize = 12 << 20
	if _, err := up.Upload(within(t), clip, src, Progress{}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := up.Upload(within(t), big, bigSrc, Progress{}, nil); err != nil || tries.Load() != 2 {
		t.Errorf("%d tries, %v", tries.Load(), err)
	}
}

type slow struct {
	in    io.Reader
	every *time.Ticker
}

func (s *slow) Read(p []byte) (int, error) {
	<-s.every.C
	return s.in.Read(p[:min(len(p), 256<<10)])
}

func TestConfirmAndTheRest(t *testing.T) {
	l := newLab(t)
	l.skew = 90 * time.Second
	up := l.client(Options{})
	ctx := within(t)
	if s, err := up.State(ctx); err != nil || s.Waiting != 3 {
		t.Errorf("state: %+v, %v", s, err)
	}
	offset, bound, ok := up.Clock()
	if d := offset - l.skew; !ok || max(d, -d) > bound+time.Millisecond || bound > 5*time.Second {
		t.Errorf("clock: offset %s ± %s, want %s", offset, bound, l.skew)
	}
	if rtt, ok := up.RTT(); !ok || rtt <= 0 {
		t.Errorf("rtt: %s, %v", rtt, ok)
	}
	if _, err := up.Clip(ctx, "a"); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown clip: %v", err)
	}
	if c, err := up.Confirm(ctx, []string{"a"}); err != nil || len(c.Unknown) != 1 {
		t.Errorf("confirm of an unknown clip: %+v, %v", c, err)
	}
	clip, src := makeClip(t, "a", 2<<20)
	if _, err := up.Upload(ctx, clip, src, Progress{}, nil); err != nil {
		t.Fatal(err)
	}
	if s, err := up.Clip(ctx, "a"); err != nil || s.State != schemas.ClipQueued {
		t.Errorf("state of the clip: %+v, %v", s, err)
	}
	asked := make(chan struct{}, 100)
	l.faults(func(_ http.ResponseWriter, r *http.Request) bool {
		asked <- struct{}{}
		return false
	})
	done := make(chan Confirmation, 1)
	go func() {
		c, err := up.Confirm(ctx, []string{"a"})
		if err != nil {
			t.Error(err)
		}
		done <- c
	}()
	<-asked
	l.mu.Lock()
	l.clips["a"].state.State = schemas.ClipDone
	l.mu.Unlock()
	if c := <-done; len(c.Ended) != 1 || c.Ended[0].Clip.ID != "a" {
		t.Errorf("confirmed: %+v", c)
	}
	o := schemas.ClipOutcome{Clip: clip, Policy: schemas.Policies()[0], Status: schemas.StatusOK}
	if err := up.Outcome(ctx, o); err != nil || l.outcome["a"].Status != schemas.StatusOK {
		t.Errorf("outcome: %+v, %v", l.outcome["a"], err)
	}
	if rate, ok := up.Rate(); !ok || rate < 1e5 {
		t.Errorf("rate: %g, %v", rate, ok)
	}
	small, _ := up.Estimate(1)
	large, ok := up.Estimate(1 << 30)
	if !ok || small <= 0 || large < small {
		t.Errorf("estimates: %s and %s", small, large)
	}
	if !up.Online() {
		t.Error("not online")
	}
	l.srv.Close()
	if _, err := up.State(ctx); err == nil || up.Online() {
		t.Errorf("with the gateway gone: %v, online %v", err, up.Online())
	}
}

func TestContextEnds(t *testing.T) {
	l := newLab(t)
	l.faults(func(_ http.ResponseWriter, r *http.Request) bool { hang(nil, r); return true })
	up := l.client(Options{})
	clip, src := makeClip(t, "a", 1000)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := up.Upload(ctx, clip, src, Progress{}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if up.pending.Load() != 0 || len(up.slots) != 0 {
		t.Errorf("%d bytes pending, %d slots taken", up.pending.Load(), len(up.slots))
	}
}

type trip func(*http.Request) (*http.Response, error)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A day without a link: tries get rare, and the first after the link is back is not
// half a minute late.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, err := New(Options{Gateway: "http://lab.test", Token: "secret", Path: PathGateway})
		if err != nil {
			t.Fatal(err)
		}
		clip, src := makeClip(t, "a", 1000)
		begin := time.Now()
		back := begin.Add(24 * time.Hour)
		var tries int
		up.http = trip(func(r *http.Request) (*http.Response, error) {
			if time.Now().Before(back) {
				if r.Method == http.MethodPost {
					tries++
				}
				return nil, errors.New("no route to host")
			}
			body := `{}`
			if r.Method == http.MethodPost {
				_, _ = io.Copy(io.Discard, r.Body)
				body = fmt.Sprintf(`{"state":"queued","clip":{"id":"a","size_bytes":1000,"sha256":%q}}`, clip.SHA256)
			}
			return &http.Response{StatusCode: 201, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- up.Run(ctx) }()
		var waits []time.Duration
		if _, err := up.Upload(ctx, clip, src, Progress{Retry: func(r Retrying) { waits = append(waits, r.In) }}, nil); err != nil {
			t.Fatal(err)
		}
		if late := time.Since(back); late > lookEvery+time.Second {
			t.Errorf("%s late after the link was back", late)
		}
		if tries < 24*60*2 || tries > 24*60*4+20 {
			t.Errorf("%d tries in a day", tries)
		}
		for i, w := range waits {
			most := min(backoffMin<<min(i, 10), backoffMax)
			if w < most/2 || w > most {
				t.Fatalf("wait %d is %s, want %s to %s", i, w, most/2, most)
			}
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		err         error
		least, most time.Duration
	}{
		{&Refused{Status: 429, after: 3 * time.Second}, 3 * time.Second, 3 * time.Second},
		{&Refused{Status: 401}, 15 * time.Second, 15 * time.Second},
		{errors.New("x"), 100 * time.Millisecond, 200 * time.Millisecond},
	} {
		if d := pause(1, c.err); d < c.least || d > c.most {
			t.Errorf("%v: %s", c.err, d)
		}
	}
	h := http.Header{"Retry-After": {"99999999"}}
	if r := refusal(503, h, nil); r.after != retryMax {
		t.Errorf("an absurd Retry-After: %s", r.after)
	}
}

// The rate and the latency of a path are told apart, by sizes of all kinds.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter()
		const rate, rtt = 2e6, 50 * time.Millisecond
		for _, size := range []int64{10 << 20, 1 << 20, 300 << 10, 20 << 20, 5 << 20, 10 << 20} {
			begin := time.Now()
			m.begin()
			for sent := int64(0); sent < size; {
				n := min(400_000, size-sent)
				later(time.Duration(float64(n) / rate * 1e9))
				sent += n
				if sent < size {
					m.add(n)
				} else {
					later(rtt)
					m.end(n, rtt)
				}
			}
			m.uploaded(size, time.Since(begin))
		}
		if r, ok := m.rate(); !ok || r < rate*0.95 || r > rate*1.05 {
			t.Errorf("rate %g, want %g", r, rate)
		}
		if l, ok := m.latency(); !ok || l < rtt/2 || l > 2*rtt {
			t.Errorf("latency %s, want about %s", l, rtt)
		}
		// The link becomes ten times slower in the middle of a transfer: seen before it ends.
		m.begin()
		for range 5 {
			later(time.Second)
			m.add(rate / 10)
		}
		if r, _ := m.rate(); r > rate/9 {
			t.Errorf("rate %g after the link became slow", r)
		}
	})
}

func TestOptions(t *testing.T) {
	bad := Options{Gateway: "ftp://x", Path: "x", Connections: -1, Stall: -1, StoreAddr: "x"}
	_, err := New(bad)
	for _, want := range []string{"uplink.gateway", "uplink.token", "uplink.path", "uplink.connections", "uplink.stall", "uplink.store_addr"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell of %s", err, want)
		}
	}
	if _, err := New(Options{Gateway: "https://x", Token: "x", CAFile: "/nowhere"}); err == nil {
		t.Error("a file of certificates that is not there")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"state":{"state":"uploading"},"part_bytes":5242880,"parts":[{"n":1,"url":"http://x/y","size_bytes":1}]}`))
	f.Add(200, []byte(`{"clips":[{"clip":{"id":"a"},"state":"done"}],"unknown":["b"]}`))
	f.Add(409, []byte(`{"title":"Conflict","detail":"other bytes"}`))
	f.Fuzz(func(t *testing.T, status int, answer []byte) {
		var p plan
		if understand(status, http.Header{}, answer, &p) == nil {
			for _, size := range []int64{1, 10_500_000, schemas.MaxClipBytes} {
				if p.PartBytes == 0 || !p.covers(size) {
					continue
				}
				for _, x := range p.Parts {
					if x.N > p.count(size) {
						continue
					}
					if off, n := p.span(x.N, size); off < 0 || n < 1 || off+n > size {
						t.Fatalf("part %d of %d bytes is at %d, %d long", x.N, size, off, n)
					}
				}
			}
		}
		var c Confirmation
		_ = understand(status, http.Header{}, answer, &c)
		var s schemas.ClipState
		if err := understand(status, http.Header{"Retry-After": {string(answer[:min(len(answer), 5)])}}, answer, &s); err != nil && len(err.Error()) > 1<<20 {
			t.Fatal("an error as long as an answer")
		}
	})
}
