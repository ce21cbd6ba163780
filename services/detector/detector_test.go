package detector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
)

func TestClipGoesAllTheWay(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{}
	d := r.start(t, r.config("one"), see)
	data := content('V', 1, 3<<20)
	r.offer(t, "clip-1", data, func(j *schemas.ClipJob) { j.Clip.Detection.Annotate = true })
	s := r.await(t, "clip-1", acknowledged)
	if s.State != schemas.ClipDone || s.Where != schemas.WhereCloud || s.Attempts != 1 || s.Result == nil || s.Result.Status != schemas.StatusOK {
		t.Fatalf("%+v", s)
	}
	stages := []time.Time{s.Stamps.Uploaded, s.Stamps.Queued, s.Stamps.Taken, s.Stamps.Fetched, s.Stamps.Decoded, s.Stamps.Inferred, s.Stamps.Stored, s.Stamps.Acknowledged}
	if !slices.IsSortedFunc(stages[2:], time.Time.Compare) || slices.ContainsFunc(stages, time.Time.IsZero) {
		t.Errorf("stages %v", stages)
	}
	found := r.stored(t, "clip-1")
	if found.Hash() != s.Result.Hash || s.Result.Key != "clip-1.json" || found.Worker != "one" || found.Edge != "pi" || found.Labels["dog"] == 0 {
		t.Errorf("result %+v of state %+v", found, s.Result)
	}
	if _, err := r.st.Head(t.Context(), "results", "clip-1.jpg"); err != nil {
		t.Errorf("annotated frame: %v", err)
	}
	r.empty(t)
	e := d.awaitEvents(t, 1)[0]
	if e.Kind != schemas.KindDetection || e.Status != schemas.StatusOK || e.Bytes != uint64(len(data)) || e.Duration <= 0 || e.FirstByte <= 0 ||
		attr(e, "clip") != "clip-1" || attr(e, "edge") != "pi" || attr(e, "try") != "1" || attr(e, "model") != "fake" {
		t.Errorf("event %+v", e)
	}
	for _, key := range []string{"fetch_ns", "decode_ns", "store_ns"} {
		if v := attr(e, key); v == "" || v == "0" || strings.HasPrefix(v, "-") {
			t.Errorf("%s is %q", key, v)
		}
	}
	status := d.status()
	if status.Clips != 1 || status.Service <= 0 || status.Busy != 0 || status.Idle.IsZero() || status.Slots != 1 || status.Name != "one" {
		t.Errorf("status %+v", status)
	}
}

// What will never work ends at once, what may work later is tried again, and
// nobody behind it waits for that.
func TestFailures(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{}
	cfg := r.config("one")
	cfg.Tries, cfg.Timeout = 2, time.Second
	d := r.start(t, cfg, see)
	r.offer(t, "undecodable", content('U', 1, 1000))
	r.offer(t, "crashes", content('C', 2, 1000))
	r.offer(t, "stuck", content('S', 3, 1000))
	r.offer(t, "no-model", content('V', 4, 1000), func(j *schemas.ClipJob) { j.Clip.Detection.Model = "missing" })
	r.offer(t, "other-bytes", content('V', 5, 1000), func(j *schemas.ClipJob) { j.Clip.SHA256 = strings.Repeat("0", 64) })
	r.offer(t, "shorter", content('V', 6, 1000), func(j *schemas.ClipJob) { j.Clip.Size++ })
	r.offer(t, "longer", content('V', 7, 1000), func(j *schemas.ClipJob) { j.Clip.Size-- })
	r.offer(t, "gone", content('V', 8, 1000), func(j *schemas.ClipJob) { j.Key = "elsewhere" })
	r.offer(t, "good", content('V', 9, 1000))
	want := map[string]struct {
		status   string
		attempts int
	}{
		"undecodable": {schemas.StatusUndecodable, 1},
		"crashes":     {schemas.StatusCrashed, 2},
		"stuck":       {schemas.StatusTimeout, 2},
		"no-model":    {schemas.StatusModel, 1},
		"other-bytes": {schemas.StatusCorrupt, 1},
		"shorter":     {schemas.StatusCorrupt, 1},
		"longer":      {schemas.StatusCorrupt, 1},
		"gone":        {schemas.StatusLost, 1},
	}
	tries := 1
	for id, w := range want {
		s := r.await(t, id, ended)
		if s.State != schemas.ClipDead || s.Result.Status != w.status || s.Result.Error == "" || s.Attempts != w.attempts {
			t.Errorf("%s: %s after %d attempts, result %+v; want %s after %d", id, s.State, s.Attempts, s.Result, w.status, w.attempts)
		}
		if found := r.stored(t, id); found.Status != w.status || found.Error != s.Result.Error {
			t.Errorf("%s: result %+v", id, found)
		}
		tries += w.attempts
	}
	if s := r.await(t, "good", acknowledged); s.State != schemas.ClipDone {
		t.Errorf("the clip behind them: %+v", s)
	}
	r.empty(t)
	letters := r.deadLetters(t)
	if len(letters) != len(want) {
		t.Errorf("%d dead letters, want %d: %q", len(letters), len(want), letters)
	}
	for id := range want {
		if !slices.ContainsFunc(letters, func(l string) bool { return strings.Contains(l, "clip "+id+":") }) {
			t.Errorf("no dead letter of %s", id)
		}
	}
	if events := d.awaitEvents(t, tries); len(events) != tries {
		t.Errorf("%d events of %d tries", len(events), tries)
	}
}

// A crash that does not come again is not the clip's end.
func TestCrashOnceIsTriedAgain(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{crashes: 1}
	d := r.start(t, r.config("one"), see)
	r.offer(t, "a", content('V', 1, 1000))
	if s := r.await(t, "a", acknowledged); s.State != schemas.ClipDone || s.Attempts != 2 {
		t.Errorf("%+v", s)
	}
	events := d.awaitEvents(t, 2)
	if events[0].Status != schemas.StatusCrashed || events[0].Error == "" || events[1].Status != schemas.StatusOK || attr(events[1], "try") != "2" {
		t.Errorf("%+v", events)
	}
}

// A store that is not well for a while costs time, not clips.
func TestStoreIsNotWell(t *testing.T) {
	const size = 1 << 20
	get := func(f embedded.Fault) embedded.Fault {
		f.Op, f.Bucket, f.Count = embedded.OpGetObject, "clips", 1
		return f
	}
	for name, faults := range map[string][]embedded.Fault{
		"throttles":      {get(embedded.Fault{Status: 503, Code: "SlowDown"})},
		"breaks off":     {get(embedded.Fault{AfterBytes: size / 2, Reset: true}), get(embedded.Fault{AfterBytes: size / 4, Truncate: true})},
		"corrupts once":  {get(embedded.Fault{AfterBytes: 1000, CorruptByte: true})},
		"takes no PUT":   {{Op: embedded.OpPutObject, Bucket: "results", Count: 2, Status: 500}},
		"drops the PUT":  {{Op: embedded.OpPutObject, Bucket: "results", Count: 1, Drop: true}},
		"does not look":  {{Op: embedded.OpGetObject, Bucket: "results", Count: 1, Status: 500}},
		"drops the look": {{Op: embedded.OpGetObject, Bucket: "results", Count: 1, Drop: true}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			for _, f := range faults {
				r.store.Faults().Add(f)
			}
			r.offer(t, "a", content('V', 1, size))
			r.start(t, r.config("one"), &fakeEyes{})
			if s := r.await(t, "a", acknowledged); s.State != schemas.ClipDone {
				t.Errorf("%+v", s.Result)
			}
			if found := r.stored(t, "a"); found.Status != schemas.StatusOK {
				t.Errorf("result %+v", found.Detections)
			}
			r.oneResultEach(t, 1)
			if hits := r.store.Faults().Hits(); hits < int64(len(faults)) {
				t.Errorf("%d faults of %d happened", hits, len(faults))
			}
		})
	}
}

// While nothing can be stored, nothing is given up, however often it was tried.
func TestNothingIsGivenUpWithoutStore(t *testing.T) {
	r := newRig(t)
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	cfg := r.config("one")
	cfg.Tries = 1
	r.store.Faults().Add(embedded.Fault{Op: embedded.OpPutObject, Bucket: "results", Status: 403, Code: "AccessDenied", Count: 3})
	d := r.start(t, cfg, &fakeEyes{})
	r.offer(t, "a", content('U', 1, 1000))
	r.offer(t, "b", content('V', 2, 1000))
	if s := r.await(t, "a", ended); s.State != schemas.ClipDead || s.Result.Status != schemas.StatusUndecodable {
		t.Errorf("%+v", s)
	}
	if s := r.await(t, "b", acknowledged); s.State != schemas.ClipDone {
		t.Errorf("%+v", s)
	}
	events := d.awaitEvents(t, 5)
	denied := 0
	for _, e := range events {
		if e.Status == schemas.StatusDenied {
			denied++
		}
	}
	if denied != 3 {
		t.Errorf("%d tries denied, want 3", denied)
	}
}

// A clip that has its result is not looked at again.
func TestResultIsThereAlready(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{}
	first := r.start(t, r.config("first"), see)
	data := content('V', 1, 1000)
	j := r.offer(t, "a", data)
	before := r.await(t, "a", acknowledged)
	r.empty(t)

	// The same job again, with the state as it is.
	r.queue(t, j, "again")
	if e := first.awaitEvents(t, 2)[1]; e.Status != statusDuplicate {
		t.Errorf("event %+v", e)
	}
	// A state that fell behind its result, as a kill leaves it.
	e, err := r.clips.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	behind := e.Value
	behind.State, behind.Result, behind.Stamps = schemas.ClipQueued, nil, schemas.ClipStamps{Queued: behind.Stamps.Queued, Taken: time.Now()}
	if _, err := r.clips.Put(t.Context(), "a", behind); err != nil {
		t.Fatal(err)
	}
	r.queue(t, j, "and again")
	after := r.await(t, "a", acknowledged)
	if after.State != schemas.ClipDone || after.Result.Hash != before.Result.Hash || after.Result.Worker != "first" ||
		!after.Stamps.Fetched.Equal(before.Stamps.Fetched) || !after.Stamps.Taken.Equal(before.Stamps.Taken) {
		t.Errorf("repaired %+v, was %+v", after, before)
	}
	// No state at all.
	if err := r.clips.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	r.queue(t, j, "and once more")
	if s := r.await(t, "a", acknowledged); s.State != schemas.ClipDone || s.Edge != "pi" || s.Stamps.Queued.IsZero() {
		t.Errorf("made anew: %+v", s)
	}
	r.empty(t)
	if n := see.seen("a"); n != 1 {
		t.Errorf("looked at %d times", n)
	}
	// A result that nobody can read cannot be replaced: the clip ends with that.
	r.put(t, "results", "b.json", []byte("{"))
	r.offer(t, "b", data)
	if s := r.await(t, "b", ended); s.State != schemas.ClipDead || s.Result.Status != schemas.StatusError {
		t.Errorf("%+v", s)
	}
	// A job about other bytes than those known by the name is not done.
	other := jobOf("a", content('V', 99, 1000))
	r.queue(t, other, "other bytes")
	first.awaitEvents(t, 6)
	r.empty(t)
	if letters := r.deadLetters(t); len(letters) != 2 || !strings.Contains(letters[1], "SHA-256") {
		t.Errorf("dead letters %q", letters)
	}
}

// Of two that look at the same clip the first to store has the result; the
// other uses it.
func TestTwoLookAtTheSameClip(t *testing.T) {
	r := newRig(t)
	slow := &fakeEyes{entered: make(chan string), release: make(chan struct{})}
	quick := &fakeEyes{}
	cfg := r.config("one")
	cfg.Prefetch = 0 // it takes no other
	one := r.start(t, cfg, slow)
	j := r.offer(t, "a", content('V', 1, 1000))
	<-slow.entered
	two := r.start(t, r.config("two"), quick)
	r.queue(t, j, "the same again")
	if e := two.awaitEvents(t, 1)[0]; e.Status != schemas.StatusOK {
		t.Fatalf("%+v", e)
	}
	close(slow.release)
	if e := one.awaitEvents(t, 1)[0]; e.Status != statusDuplicate {
		t.Errorf("%+v", e)
	}
	s := r.await(t, "a", acknowledged)
	if s.Result.Worker != "two" || r.stored(t, "a").Worker != "two" {
		t.Errorf("%+v", s.Result)
	}
	r.empty(t)
	access, err := r.store.AccessIdle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := access.Total("results", embedded.OpPutObject, 200).Requests; n != 1 {
		t.Errorf("%d results stored", n)
	}
}

// The gateway writes to the same states all the time.
func TestGatewayWritesInBetween(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{work: 5 * time.Millisecond}
	r.start(t, r.config("one"), see)
	const clips = 20
	for i := range clips {
		r.offer(t, fmt.Sprintf("c%d", i), content('V', uint64(i), 1000))
	}
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan int, 1)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			key := fmt.Sprintf("c%d", n%clips)
			e, err := r.states.Get(ctx, key)
			if err != nil {
				continue
			}
			e.Value.Upload = fmt.Sprint(n)
			_, _ = r.states.Update(ctx, key, e.Value, e.Revision)
		}
		written <- n
	}()
	for i := range clips {
		if s := r.await(t, fmt.Sprintf("c%d", i), acknowledged); s.State != schemas.ClipDone || s.Attempts != 1 {
			t.Errorf("%+v", s)
		}
	}
	stop()
	if n := <-written; n < clips {
		t.Errorf("only %d writes in between", n)
	}
}

// What was fetched ahead begins when the slot is free, and its fetch did not
// wait for that.
func TestFetchesAhead(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{entered: make(chan string), release: make(chan struct{})}
	d := r.start(t, r.config("one"), see)
	r.offer(t, "a", content('V', 1, 1<<20))
	<-see.entered
	r.offer(t, "b", content('V', 2, 1<<20))
	r.offer(t, "c", content('V', 3, 1<<20))
	// The second is taken and fetched, the third left to others.
	r.await(t, "b", func(s schemas.ClipState) bool { return !s.Stamps.Taken.IsZero() })
	awaitAccess(t, r, "clips", 2)
	if s, err := r.clips.Get(t.Context(), "c"); err != nil || !s.Value.Stamps.Taken.IsZero() {
		t.Errorf("%+v %v", s, err)
	}
	if busy := d.status().Busy; busy != 2 {
		t.Errorf("%d busy", busy)
	}
	see.release <- struct{}{}
	<-see.entered
	see.release <- struct{}{}
	<-see.entered
	see.release <- struct{}{}
	for _, id := range []string{"a", "b", "c"} {
		if s := r.await(t, id, acknowledged); s.State != schemas.ClipDone {
			t.Errorf("%+v", s)
		}
	}
}

// awaitAccess waits until so many objects have been fetched from a bucket.
func awaitAccess(t *testing.T, r *rig, bucket string, n int64) {
	t.Helper()
	patience := time.After(10 * time.Second)
	for r.store.Access().Total(bucket, embedded.OpGetObject, 200).Requests < n {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-patience:
			t.Fatalf("%d objects fetched", n)
		}
	}
}

func TestDrainByMessage(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{entered: make(chan string), release: make(chan struct{})}
	cfg := r.config("one")
	cfg.Lease = 30 * time.Second
	d := r.start(t, cfg, see)
	detectors, err := bus.OpenBucket[schemas.DetectorStatus](t.Context(), r.lab, bus.BucketDetectors)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := detectors.Get(t.Context(), "one"); err != nil || e.Value.Draining {
		t.Fatalf("%+v %v", e, err)
	}
	r.offer(t, "begun", content('V', 1, 1000))
	<-see.entered
	r.offer(t, "ahead", content('V', 2, 1000))
	r.await(t, "ahead", func(s schemas.ClipState) bool { return !s.Stamps.Taken.IsZero() })
	if err := r.lab.Announce(bus.SubjectDrain("one"), &schemas.Drain{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	watch, seen := context.WithTimeout(t.Context(), 20*time.Second)
	defer seen()
	draining := false
	if err := detectors.Watch(watch, "one", func(e bus.Entry[schemas.DetectorStatus]) error {
		if e.Value.Draining {
			draining = true
			seen()
		}
		return nil
	}); err != nil || !draining {
		t.Fatalf("the detector does not say that it drains: %v", err)
	}
	// What was only fetched goes to another at once, not after its lease.
	other := &fakeEyes{}
	cfg.Name = "two"
	two := r.start(t, cfg, other)
	if s := r.await(t, "ahead", acknowledged); s.Result.Worker != "two" {
		t.Errorf("%+v", s.Result)
	}
	select {
	case <-d.ended:
		t.Fatal("it did not finish what it had begun")
	default:
	}
	see.release <- struct{}{}
	if s := r.await(t, "begun", acknowledged); s.Result.Worker != "one" {
		t.Errorf("%+v", s.Result)
	}
	<-d.ended
	if !errors.Is(d.err, node.ErrFinished) || !strings.Contains(d.err.Error(), "drained") {
		t.Errorf("it ended with %v", d.err)
	}
	if _, err := detectors.Get(t.Context(), "one"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("it is still announced: %v", err)
	}
	if e := d.awaitEvents(t, 2); e[0].Status != schemas.StatusCancelled || e[1].Status != schemas.StatusOK {
		t.Errorf("%+v", e)
	}
	two.awaitEvents(t, 1)
	if letters := r.deadLetters(t); len(letters) != 0 {
		t.Errorf("%q", letters)
	}
}

// What is not finished within the grace goes to another, however often it was
// tried.
func TestGraceEnds(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{entered: make(chan string), release: make(chan struct{})}
	cfg := r.config("one")
	cfg.Tries, cfg.Grace, cfg.Lease = 1, 50*time.Millisecond, 30*time.Second
	d := r.start(t, cfg, see)
	r.offer(t, "a", content('V', 1, 1000))
	<-see.entered
	d.cancel()
	<-d.ended
	if d.err != nil {
		t.Errorf("told to end, it ended with %v", d.err)
	}
	cfg.Name = "two"
	r.start(t, cfg, &fakeEyes{})
	if s := r.await(t, "a", acknowledged); s.State != schemas.ClipDone || s.Result.Worker != "two" {
		t.Errorf("%+v", s)
	}
}

func TestIdleExit(t *testing.T) {
	r := newRig(t)
	cfg := r.config("one")
	cfg.IdleExit = 1500 * time.Millisecond
	r.offer(t, "a", content('V', 1, 1000))
	d := r.start(t, cfg, &fakeEyes{})
	begun := time.Now()
	<-d.ended
	if !errors.Is(d.err, node.ErrFinished) || !strings.Contains(d.err.Error(), "nothing to do") {
		t.Errorf("it ended with %v", d.err)
	}
	if idle := time.Since(begun); idle < time.Second || idle > 20*time.Second {
		t.Errorf("it ended after %s", idle)
	}
	if s := r.await(t, "a", acknowledged); s.State != schemas.ClipDone {
		t.Errorf("%+v", s)
	}
}

// A clip in work for longer than its lease is not given to another.
func TestLeaseIsExtended(t *testing.T) {
	r := newRig(t)
	see := &fakeEyes{work: 2500 * time.Millisecond}
	one := r.start(t, r.config("one"), see)
	r.offer(t, "a", content('V', 1, 1000))
	other := &fakeEyes{}
	r.await(t, "a", func(s schemas.ClipState) bool { return !s.Stamps.Taken.IsZero() })
	r.start(t, r.config("two"), other)
	if s := r.await(t, "a", acknowledged); s.Attempts != 1 || s.Result.Worker != "one" {
		t.Errorf("%+v", s)
	}
	one.awaitEvents(t, 1)
	if n := other.seen("a"); n != 0 {
		t.Errorf("the other looked at it %d times", n)
	}
}

// Slots look at clips side by side.
func TestSlots(t *testing.T) {
	r := newRig(t)
	entered, release := make(chan string), make(chan struct{})
	cfg := r.config("one")
	cfg.Slots = 2
	r.start(t, cfg, &fakeEyes{entered: entered, release: release})
	for _, id := range []string{"a", "b"} {
		r.offer(t, id, content('V', 1, 1000))
	}
	got := []string{<-entered, <-entered}
	slices.Sort(got)
	if !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("in work at a time: %v", got)
	}
	close(release)
	for _, id := range got {
		r.await(t, id, acknowledged)
	}
}
