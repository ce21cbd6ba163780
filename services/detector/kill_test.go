//go:build unix

package detector

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// between stands between detectors and bus and store, sees every step that
// others can see, and knows which must have come before.
type between struct {
	r        *rig
	bus      string
	endpoint string
	// at is called before (false) and after a step has been passed on; nothing
	// more is passed on once it returns false.
	at func(step string, after bool) bool

	mu    sync.Mutex
	wrong []error
}

// Steps of a clip that others can see.
const (
	stepLook   = "look for a result"
	stepFetch  = "fetch"
	stepTaken  = "state: taken"
	stepStore  = "store the result"
	stepEnded  = "state: ended"
	stepAck    = "acknowledge"
	stepStamp  = "state: acknowledged"
	stepOthers = ""
)

func (b *between) complain(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong = append(b.wrong, fmt.Errorf(format, args...))
}

func (b *between) check(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := errors.Join(b.wrong...); err != nil {
		t.Error(err)
	}
}

func (r *rig) between(t *testing.T, at func(step string, after bool) bool) *between {
	t.Helper()
	b := &between{r: r, at: at}
	target, err := url.Parse(r.store.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target); p.Out.Host = p.In.Host },
		ModifyResponse: func(resp *http.Response) error {
			b.at(httpStep(resp.Request), true)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		// All of it: a process that is stopped sends no more.
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		if b.at(httpStep(req), false) {
			proxy.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(front.Close)
	b.endpoint = front.URL

	upstream := strings.TrimPrefix(r.bus.URL(), "nats://")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	b.bus = "nats://" + l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.relay(t.Context(), c, upstream)
		}
	}()
	return b
}

func httpStep(req *http.Request) string {
	switch {
	case req.Method == http.MethodGet && strings.HasPrefix(req.URL.Path, "/clips/"):
		return stepFetch
	case req.Method == http.MethodGet && strings.HasPrefix(req.URL.Path, "/results/"):
		return stepLook
	case req.Method == http.MethodPut && strings.HasPrefix(req.URL.Path, "/results/"):
		return stepStore
	}
	return stepOthers
}

// relay passes on one connection of a client to the bus, message by message.
func (b *between) relay(ctx context.Context, client net.Conn, upstream string) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", upstream)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
	in := bufio.NewReader(client)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		message := []byte(line)
		fields := strings.Fields(line)
		step := stepOthers
		if len(fields) > 2 && (fields[0] == "PUB" || fields[0] == "HPUB") {
			size, err := strconv.Atoi(fields[len(fields)-1])
			if err != nil {
				return
			}
			payload := make([]byte, size+2)
			if _, err := io.ReadFull(in, payload); err != nil {
				return
			}
			message = append(message, payload...)
			step = b.busStep(ctx, fields[1], string(payload))
		}
		if !b.at(step, false) {
			return
		}
		if _, err := server.Write(message); err != nil {
			return
		}
		if !b.at(step, true) {
			return
		}
	}
}

// busStep says what a message of a detector is, and complains if it comes too
// early.
func (b *between) busStep(ctx context.Context, subject, payload string) string {
	id, isState := strings.CutPrefix(subject, "$KV."+bus.BucketClips+".")
	switch {
	case strings.HasPrefix(subject, "$JS.ACK."+bus.StreamClips+".") && strings.HasPrefix(payload, "+ACK"):
		all, err := b.r.clips.List(ctx, ">")
		if err != nil {
			b.complain("list: %w", err)
		}
		// Which clip it is about the subject does not say; with one in work at a
		// time it is the one that has ended and has no time of this.
		n := 0
		for _, e := range all {
			if e.Value.Ended() {
				n++
			}
		}
		if n == 0 {
			b.complain("acknowledged before any clip's state says that it has ended")
		}
		return stepAck
	case !isState:
		return stepOthers
	case strings.Contains(payload, `"acknowledged":`):
		return stepStamp
	case strings.Contains(payload, `"state":"done"`):
		if _, err := b.r.st.Head(ctx, "results", resultKey(id)); err != nil {
			b.complain("the state of %s says done: %w", id, err)
		}
		return stepEnded
	case strings.Contains(payload, `"taken":`):
		return stepTaken
	}
	return stepOthers
}

// Killed before or after any step, a detector leaves what the next one
// completes: one result, one end.
func TestKilledAtEveryStep(t *testing.T) {
	for _, step := range []string{stepLook, stepFetch, stepTaken, stepStore, stepEnded, stepAck, stepStamp} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after it %v", step, after), func(t *testing.T) {
				t.Parallel()
				killedAt(t, step, after)
			})
		}
	}
}

func killedAt(t *testing.T, step string, after bool) {
	r := newRig(t)
	var first *child
	var once sync.Once
	spawned, killed := make(chan struct{}), make(chan struct{})
	var b *between
	b = r.between(t, func(s string, passed bool) bool {
		if s != step {
			return true
		}
		<-spawned
		switch {
		case after && !passed:
			// So that it does nothing on hearing that the step is done.
			_ = first.cmd.Process.Signal(syscall.SIGSTOP)
		case passed == after:
			once.Do(func() {
				if passed {
					b.awaitEffect(t, s)
				}
				first.kill()
				close(killed)
			})
			return false
		}
		return true
	})
	first = r.spawn(t, "first", b.bus, b.endpoint, nil)
	close(spawned)
	first.awaitReady(t)
	r.offer(t, "a", content('V', 1, 300_000))
	select {
	case <-killed:
	case <-time.After(20 * time.Second):
		t.Fatal("the step did not come")
	}
	second := &fakeEyes{}
	r.start(t, r.config("second"), second)
	// Once the job is acknowledged nobody comes back to it.
	whole := step == stepStamp && after
	over := step == stepAck && after || step == stepStamp
	s := r.await(t, "a", func(s schemas.ClipState) bool { return s.Ended() && (over || acknowledged(s)) })
	r.empty(t)
	found := r.stored(t, "a")
	if s.State != schemas.ClipDone || found.Hash() != s.Result.Hash || s.Result.Worker != found.Worker {
		t.Errorf("state %+v of result %+v", s.Result, found.Detections)
	}
	if whole && !acknowledged(s) {
		t.Errorf("no time of acknowledgement: %+v", s.Stamps)
	}
	for _, stamp := range []time.Time{s.Stamps.Taken, s.Stamps.Fetched, s.Stamps.Decoded, s.Stamps.Inferred, s.Stamps.Stored} {
		if stamp.IsZero() {
			t.Errorf("stages are missing: %+v", s.Stamps)
		}
	}
	kept := step == stepStore && after || step == stepEnded || step == stepAck || step == stepStamp
	if n := second.seen("a"); kept && n != 0 {
		t.Errorf("looked at again, %d times, though its result was there", n)
	}
	r.oneResultEach(t, 1)
	b.check(t)
}

// awaitEffect waits until a step that was passed on has had its effect.
func (b *between) awaitEffect(t *testing.T, step string) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		e, err := b.r.clips.Get(ctx, "a")
		s := e.Value
		if err == nil && (step == stepEnded && s.Ended() || step == stepStamp && acknowledged(s) || step == stepTaken && !s.Stamps.Taken.IsZero()) {
			return
		}
		if step == stepAck {
			if waiting, inWork, err := b.r.lab.Backlog(ctx, bus.StreamClips, bus.ConsumerDetectors); err == nil && waiting+inWork == 0 {
				return
			}
		}
		if step == stepStore || step == stepFetch || step == stepLook {
			return
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	b.complain("%s had no effect", step)
}

// Detectors are killed at random while clips flow: every clip has exactly one
// result.
func TestKilledAtRandom(t *testing.T) {
	const clips, kills = 20, 30
	killAtRandom(t, clips, kills, 100*time.Millisecond, 250*time.Millisecond, nil, func(r *rig, i int) {
		r.offer(t, fmt.Sprintf("c%d", i), content('V', uint64(i), 200_000+i))
	})
}

// Bus and store go away in the middle and come back: the detector goes on by
// itself.
func TestBusAndStoreGoAway(t *testing.T) {
	dir := t.TempDir()
	first := bustest.StartIn(t, dir, 0)
	address, err := url.Parse(first.URL())
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(address.Port())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{bus: first, store: s3test.Start(t)}
	r.st = s3test.Open(t, r.store, "clips", "results")
	r.join(t)
	const clips = 6
	for i := range clips {
		r.offer(t, fmt.Sprintf("c%d", i), content('V', uint64(i), 500_000))
	}
	d := r.spawn(t, "one", first.URL(), r.store.Endpoint(), func(c *childConfig) { c.Work = 50 * time.Millisecond })
	r.await(t, "c1", func(s schemas.ClipState) bool { return !s.Stamps.Taken.IsZero() })
	r.store.Faults().Add(embedded.Fault{Drop: true})
	first.Close()
	r.bus = bustest.StartIn(t, dir, port)
	t.Cleanup(r.bus.Close)
	r.join(t)
	r.store.Faults().Clear()
	for i := range clips {
		if s := r.await(t, fmt.Sprintf("c%d", i), ended); s.State != schemas.ClipDone {
			t.Errorf("%+v", s.Result)
		}
	}
	r.empty(t)
	r.oneResultEach(t, clips)
	select {
	case <-d.exited:
		t.Errorf("the detector ended: %v", d.err)
	default:
	}
}

func killAtRandom(t *testing.T, clips, kills int, work, longest time.Duration, with func(*childConfig), offer func(*rig, int)) *rig {
	r := newRig(t)
	b := r.between(t, func(string, bool) bool { return true })
	random := rand.New(rand.NewPCG(1, 2))
	names := 0
	spawn := func() *child {
		names++
		return r.spawn(t, fmt.Sprintf("d%d", names), b.bus, b.endpoint, func(c *childConfig) {
			c.Work = work
			if with != nil {
				with(c)
			}
		})
	}
	running := []*child{spawn(), spawn()}
	for i := range clips {
		offer(r, i)
	}
	for range kills {
		victim := random.IntN(len(running))
		running[victim].awaitReady(t)
		select {
		case <-time.After(time.Duration(random.Int64N(int64(longest)))):
		case <-running[victim].exited:
			t.Fatalf("a detector ended by itself: %v", running[victim].err)
		}
		running[victim].kill()
		running[victim] = spawn()
	}
	attempts := 0
	for i := range clips {
		s := r.await(t, fmt.Sprintf("c%d", i), ended)
		if s.State != schemas.ClipDone {
			t.Errorf("clip %d: %+v", i, s.Result)
			continue
		}
		if found := r.stored(t, fmt.Sprintf("c%d", i)); found.Hash() != s.Result.Hash || found.Worker != s.Result.Worker {
			t.Errorf("clip %d: state %+v of another result than %+v", i, s.Result, found.Detections)
		}
		attempts += s.Attempts
	}
	r.empty(t)
	r.oneResultEach(t, clips)
	b.check(t)
	t.Logf("%d kills, %d clips, %d deliveries", kills, clips, attempts)
	return r
}
