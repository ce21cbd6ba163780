package detector

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	busserver "github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// envChild has what a detector needs that is a process of its own: this test
// binary under another name, which can be killed.
const envChild = "DETECTOR_UNDER_TEST"

func TestMain(m *testing.M) {
	if text := os.Getenv(envChild); text != "" {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type childConfig struct {
	Bus, Password string
	Config        Config
	Access        string
	Secret        string
	Real          bool // the real vision rather than a stand-in
	Work          time.Duration
}

func runChild(text string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	conn, err := bus.Connect(ctx, bus.Options{URL: c.Bus, User: bus.RoleDetector, Password: c.Password, Name: c.Config.Name, Log: log})
	if err != nil {
		return err
	}
	c.Config.AccessKey, c.Config.SecretKey = c.Access, c.Secret
	s := Service()
	n, err := node.New(s, "1.0.0", conn, prometheus.NewRegistry(), log)
	if err != nil {
		return err
	}
	d := New(c.Config, n)
	if !c.Real {
		d.open = func() (eyes, error) { return &fakeEyes{work: c.Work}, nil }
	}
	s.Run = func(ctx context.Context, _ *node.Node) error { return d.Run(ctx) }
	go func() {
		if n.AwaitReady(ctx) == nil {
			fmt.Println("ready")
		}
	}()
	return n.Run(ctx, s)
}

// fakeEyes see in a clip what its first byte says.
type fakeEyes struct {
	work time.Duration // how long they look
	// entered gets the clip once all of it was read; they go on when it is
	// taken from there.
	entered chan string
	release chan struct{}
	mu      sync.Mutex
	looks   map[string]int
	crashes int // so many times they crash
}

func (f *fakeEyes) Close() error { return nil }

func (f *fakeEyes) Warm(context.Context) error { return nil }

func (f *fakeEyes) seen(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.looks[id]
}

func (f *fakeEyes) Detect(ctx context.Context, r io.Reader, clip schemas.Clip) (vision.Outcome, error) {
	f.mu.Lock()
	if f.looks == nil {
		f.looks = map[string]int{}
	}
	f.looks[clip.ID]++
	crash := f.crashes > 0
	if crash {
		f.crashes--
	}
	f.mu.Unlock()
	if crash {
		return vision.Outcome{}, fmt.Errorf("fake: %w", vision.ErrCrashed)
	}
	if clip.Detection.Model == "missing" {
		return vision.Outcome{}, fmt.Errorf("fake: %w", vision.ErrModel)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return vision.Outcome{}, err
	}
	fetched := time.Now()
	if f.entered != nil {
		select {
		case f.entered <- clip.ID:
		case <-ctx.Done():
			return vision.Outcome{}, ctx.Err()
		}
		select {
		case <-f.release:
		case <-ctx.Done():
			return vision.Outcome{}, ctx.Err()
		}
	}
	if f.work > 0 {
		select {
		case <-time.After(f.work):
		case <-ctx.Done():
			return vision.Outcome{}, ctx.Err()
		}
	}
	switch data[0] {
	case 'U':
		return vision.Outcome{}, fmt.Errorf("fake: %w", vision.ErrUndecodable)
	case 'C':
		return vision.Outcome{}, fmt.Errorf("fake: %w", vision.ErrCrashed)
	case 'S':
		<-ctx.Done()
		return vision.Outcome{}, ctx.Err()
	}
	sum := sha256.Sum256(data)
	out := vision.Outcome{
		Model: schemas.ModelUsed{Name: "fake", SHA256: hex.EncodeToString(sum[:]), Engine: "none"}, Sample: 1,
		Frames:  []schemas.Frame{{Objects: []schemas.Object{{Label: "dog", Score: float64(sum[0]) / 255, Box: schemas.Box{W: 1, H: 1}}}}},
		Labels:  map[string]float64{"dog": float64(sum[0]) / 255},
		Fetched: fetched, Decoded: time.Now(), Inferred: time.Now(), Decode: time.Millisecond, Infer: f.work,
	}
	if clip.Detection.Annotate {
		out.Annotated = []byte("a picture")
	}
	return out, nil
}

// rig is a lab around detectors: bus, store, and who queues clips.
type rig struct {
	bus    *busserver.Server
	store  *embedded.Server
	st     *objectstore.Store
	lab    *bus.Conn
	clips  *bus.Bucket[schemas.ClipState]
	gate   *bus.Conn
	states *bus.Bucket[schemas.ClipState] // as the gateway
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{bus: bustest.Start(t), store: s3test.Start(t)}
	r.st = s3test.Open(t, r.store, "clips", "results")
	r.join(t)
	return r
}

// join connects to the bus.
func (r *rig) join(t testing.TB) {
	t.Helper()
	r.lab, r.gate = bustest.Join(t, r.bus, bus.RoleOperator), bustest.Join(t, r.bus, bus.RoleGateway)
	var err error
	if r.clips, err = bus.OpenBucket[schemas.ClipState](t.Context(), r.lab, bus.BucketClips); err != nil {
		t.Fatal(err)
	}
	if r.states, err = bus.OpenBucket[schemas.ClipState](t.Context(), r.gate, bus.BucketClips); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) config(name string) Config {
	cfg := DefaultConfig()
	cfg.Name, cfg.Endpoint, cfg.Region = name, r.store.Endpoint(), r.store.Region()
	cfg.AccessKey, cfg.SecretKey = r.store.Credentials().AccessKey, r.store.Credentials().SecretKey
	cfg.Lease, cfg.Grace, cfg.Prefetch = time.Second, 10*time.Second, 4<<20
	return cfg
}

// content is that of a clip, of a kind that fakeEyes know by its first byte.
func content(kind byte, seed uint64, size int) []byte {
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, size)
	_, _ = random.Read(b)
	b[0] = kind
	return b
}

func jobOf(id string, data []byte) *schemas.ClipJob {
	sum := sha256.Sum256(data)
	return &schemas.ClipJob{
		Clip: schemas.Clip{
			ID: id, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:]), Type: schemas.TypeMP4, Trigger: time.Now(), Length: 5 * time.Second,
		},
		Edge: "pi", Bucket: "clips", Key: id, Queued: time.Now(),
	}
}

// offer stores a clip, its state and its job, as the gateway does.
func (r *rig) offer(t testing.TB, id string, data []byte, with ...func(*schemas.ClipJob)) *schemas.ClipJob {
	t.Helper()
	j := jobOf(id, data)
	for _, f := range with {
		f(j)
	}
	r.put(t, "clips", id, data)
	state := schemas.ClipState{Clip: j.Clip, Edge: j.Edge, State: schemas.ClipQueued, Stamps: schemas.ClipStamps{Uploaded: time.Now(), Queued: j.Queued}}
	if _, err := r.states.Create(t.Context(), id, state); err != nil {
		t.Fatal(err)
	}
	r.queue(t, j, id)
	return j
}

func (r *rig) put(t testing.TB, bucket, key string, data []byte) {
	t.Helper()
	if _, err := r.st.Put(t.Context(), bucket, key, strings.NewReader(string(data)), int64(len(data)), objectstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) queue(t testing.TB, j *schemas.ClipJob, message string) {
	t.Helper()
	if err := r.gate.Publish(t.Context(), bus.SubjectClips(j.Edge), message, j); err != nil {
		t.Fatal(err)
	}
}

// running is a detector in this process.
type running struct {
	*Detector
	node   *node.Node
	cancel context.CancelFunc
	ended  chan struct{}
	err    error

	mu       sync.Mutex
	recorded []schemas.Event
	more     chan struct{} // an event was recorded
}

// start runs a detector until the test ends.
func (r *rig) start(t testing.TB, cfg Config, see eyes) *running {
	t.Helper()
	n, err := node.New(Service(), "1.0.0", bustest.Join(t, r.bus, bus.RoleDetector), prometheus.NewRegistry(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	d := &running{Detector: New(cfg, n), node: n, ended: make(chan struct{}), more: make(chan struct{}, 1000)}
	if see != nil {
		d.open = func() (eyes, error) { return see, nil }
	}
	d.events = func(e *schemas.Event) error {
		if err := e.Validate(); err != nil {
			t.Error(err)
		}
		d.mu.Lock()
		d.recorded = append(d.recorded, *e)
		d.mu.Unlock()
		d.more <- struct{}{}
		return d.recorder.Record(e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.cancel = cancel
	go func() {
		defer close(d.ended)
		defer cancel()
		d.err = d.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-d.ended
		if d.err != nil && !errors.Is(d.err, node.ErrFinished) && !errors.Is(d.err, context.Canceled) {
			t.Error(d.err)
		}
	})
	if err := n.AwaitReady(ctx); err != nil {
		t.Fatal(err, d.err)
	}
	return d
}

// events waits for n events of a detector.
func (d *running) awaitEvents(t testing.TB, n int) []schemas.Event {
	t.Helper()
	patience := time.After(20 * time.Second)
	for {
		d.mu.Lock()
		got := append([]schemas.Event(nil), d.recorded...)
		d.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-d.more:
		case <-patience:
			t.Fatalf("%d events, want %d", len(got), n)
		}
	}
}

func attr(e schemas.Event, key string) string {
	for _, a := range e.Attrs {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

// await returns the state of a clip once it is as wanted.
func (r *rig) await(t testing.TB, id string, is func(schemas.ClipState) bool) schemas.ClipState {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var last schemas.ClipState
	found := false
	err := r.clips.Watch(ctx, id, func(e bus.Entry[schemas.ClipState]) error {
		last = e.Value
		if !e.Deleted && is(last) {
			found = true
			cancel()
		}
		return nil
	})
	if !found {
		t.Fatalf("clip %s: %v, last %+v", id, err, last)
	}
	return last
}

func acknowledged(s schemas.ClipState) bool { return s.Ended() && !s.Stamps.Acknowledged.IsZero() }
func ended(s schemas.ClipState) bool        { return s.Ended() }

// stored reads a clip's result.
func (r *rig) stored(t testing.TB, id string) *result {
	t.Helper()
	res := &results{store: r.st, client: newReader(r.st, 1, 1<<20).client, bucket: "results"}
	found, err := res.read(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if found == nil {
		t.Fatalf("clip %s has no result", id)
	}
	return found
}

// drained waits until nothing is in the queue any more.
func (r *rig) empty(t testing.TB) {
	t.Helper()
	patience, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		waiting, inWork, err := r.lab.Backlog(patience, bus.StreamClips, bus.ConsumerDetectors)
		if err != nil {
			t.Fatalf("the queue is not empty: %d wait, %d in work, %v", waiting, inWork, err)
		}
		if waiting+inWork == 0 {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-patience.Done():
		}
	}
}

func (r *rig) deadLetters(t testing.TB) (reasons []string) {
	t.Helper()
	if err := r.lab.DeadLetters(t.Context(), func(l bus.DeadLetter) error {
		reasons = append(reasons, l.Reason)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return reasons
}

// child is a detector that is a process.
type child struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	ready  chan struct{}
	exited chan struct{}
	err    error
}

// spawn starts a process; busURL and endpoint are where it is told that bus and
// store are.
func (r *rig) spawn(t testing.TB, name, busURL, endpoint string, with func(*childConfig)) *child {
	t.Helper()
	cfg := r.config(name)
	cfg.Endpoint = endpoint
	c := childConfig{Bus: busURL, Password: r.bus.Password(bus.RoleDetector), Access: cfg.AccessKey, Secret: cfg.SecretKey, Config: cfg}
	if with != nil {
		with(&c)
	}
	c.Config.AccessKey, c.Config.SecretKey = "", ""
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	k := &child{cmd: exec.Command(os.Args[0]), ready: make(chan struct{}), exited: make(chan struct{})}
	k.cmd.Env = append(os.Environ(), envChild+"="+string(text))
	k.cmd.Stderr = t.Output()
	stdin, err := k.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	k.stdin = stdin
	stdout, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(k.exited)
		if line, _ := bufio.NewReader(stdout).ReadString('\n'); line == "ready\n" {
			close(k.ready)
		}
		k.err = k.cmd.Wait()
	}()
	t.Cleanup(func() { k.kill() })
	return k
}

// kill ends it without a chance to tidy up.
func (k *child) kill() {
	_ = k.cmd.Process.Kill()
	<-k.exited
}

func (k *child) awaitReady(t testing.TB) {
	t.Helper()
	select {
	case <-k.ready:
	case <-k.exited:
		t.Fatalf("the detector ended: %v", k.err)
	}
}

// oneResultEach checks that results were stored once for each of n clips.
func (r *rig) oneResultEach(t *testing.T, n int) {
	t.Helper()
	access, err := r.store.AccessIdle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stored := access.Total("results", embedded.OpPutObject, 200).Requests; stored != int64(n) {
		t.Errorf("%d results were stored for %d clips", stored, n)
	}
	objects, _, err := r.st.List(t.Context(), "results", objectstore.ListOptions{})
	if err != nil || len(objects) != n {
		t.Errorf("%d results of %d clips, %v", len(objects), n, err)
	}
	if letters := r.deadLetters(t); len(letters) != 0 {
		t.Errorf("dead letters %q", letters)
	}
}
