//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	busserver "github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/collector"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
	"github.com/transferlab/transferlab/services/internal/objectstore"
	storeserver "github.com/transferlab/transferlab/services/internal/objectstore/embedded"
)

// killRig is what the processes that are killed stand on: bus, store, database
// and collector are the test's own and stay.
type killRig struct {
	t        *testing.T
	dir      string
	bus      *busserver.Server
	operator *bus.Conn
	server   *storeserver.Server
	store    *objectstore.Store
	database *clickhouse.Server
	token    string // the operator's
	gateway  string // address
	api      *client.Client
}

func newKillRig(t *testing.T) *killRig {
	t.Helper()
	r := &killRig{t: t, dir: t.TempDir(), bus: bustest.Start(t), database: chtest.StartOwn(t, nil), token: rand.Text(), gateway: "127.0.0.1:" + freePort(t)}
	r.operator = bustest.Join(t, r.bus, bus.RoleOperator)
	var err error
	r.server, err = storeserver.Start(t.Context(), storeserver.Options{Dir: filepath.Join(r.dir, "s3"), AccessKey: "access", SecretKey: rand.Text()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.server.Close(ctx); err != nil {
			t.Errorf("stop the store: %v", err)
		}
	})
	keys := r.server.Credentials()
	r.store, err = objectstore.Open(t.Context(), objectstore.Target{Endpoint: r.server.Endpoint(), Region: r.server.Region()},
		objectstore.Static(keys.AccessKey, keys.SecretKey, ""))
	if err != nil {
		t.Fatal(err)
	}
	if r.api, err = client.New("http://"+r.gateway, r.token); err != nil {
		t.Fatal(err)
	}
	r.collect()
	return r
}

// collect brings events into the database until the test ends.
func (r *killRig) collect() {
	cfg := collector.DefaultConfig()
	cfg.ClickHouse = r.database.LabDSN()
	s := node.Service{Name: "collector", Short: "bus to database", Role: bus.RoleCollector}
	n, err := node.New(s, "1.0.0", bustest.Join(r.t, r.bus, bus.RoleCollector), node.Registry(), slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		r.t.Fatal(err)
	}
	s.Run = func(ctx context.Context, n *node.Node) error { return collector.New(cfg, n).Run(ctx) }
	ctx, stop := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, s) }()
	r.t.Cleanup(func() {
		stop()
		<-ended
	})
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := n.AwaitReady(ready); err != nil {
		r.t.Fatalf("%v; %v", err, n.Health())
	}
}

// mortal is a program that is killed and started again.
type mortal struct {
	name  string
	make  func() *exec.Cmd
	ready func(context.Context) error // once
	log   string

	cmd    *exec.Cmd
	exited chan struct{}
	starts int
}

func (m *mortal) start(t *testing.T) {
	t.Helper()
	m.starts++
	m.cmd, m.exited = m.make(), make(chan struct{})
	separate(m.cmd)
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	m.cmd.Stdout, m.cmd.Stderr = log, log
	err = m.cmd.Start()
	_ = log.Close()
	if err != nil {
		t.Fatal(err)
	}
	go func(cmd *exec.Cmd, exited chan struct{}) {
		defer close(exited)
		_ = cmd.Wait()
	}(m.cmd, m.exited)
}

// kill ends the process without a chance to tidy up, and waits until those that
// it had started are gone too.
func (m *mortal) kill(t *testing.T) {
	t.Helper()
	if m.ended() {
		t.Errorf("the %s ended by itself: %s", m.name, m.cmd.ProcessState)
		return
	}
	all := family{}
	childrenOf(t, m.cmd.Process.Pid, all)
	_ = m.cmd.Process.Kill()
	<-m.exited
	all.await(t)
}

func (m *mortal) ended() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// awaitReady returns once the process serves.
func (m *mortal) awaitReady(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := awaitCondition(ctx, 20*time.Millisecond, func() (bool, string) {
		if m.ended() {
			t.Fatalf("the %s ended by itself: %s", m.name, m.cmd.ProcessState)
		}
		err := m.ready(ctx)
		return err == nil, fmt.Sprint(err)
	}); err != nil {
		t.Fatalf("the %s does not serve: %v", m.name, err)
	}
}

// tell shows the end of what the process has said.
func (m *mortal) tell(t *testing.T) {
	data, err := os.ReadFile(m.log)
	if err != nil {
		t.Logf("log of the %s: %v", m.name, err)
		return
	}
	const most = 8 << 10
	t.Logf("%s, started %d times, the end of its log:\n%s", m.name, m.starts, data[max(0, len(data)-most):])
}

// healthy asks whether the process with this address of health serves.
func healthy(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/healthz", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		said, err := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s, %v", resp.Status, said, err)
		}
		return err
	}
}

// service is `transferlab service …` on the rig's bus.
func (r *killRig) service(name, role string, env []string, flags ...string) *mortal {
	keys := r.server.Credentials()
	address := "127.0.0.1:" + freePort(r.t)
	env = append(env, "TRANSFERLAB_NATS="+r.bus.URL(), "TRANSFERLAB_NATS_USER="+role, "TRANSFERLAB_NATS_PASSWORD="+r.bus.Password(role),
		"TRANSFERLAB_S3_ACCESS_KEY="+keys.AccessKey, "TRANSFERLAB_S3_SECRET_KEY="+keys.SecretKey)
	return &mortal{
		name: name, log: filepath.Join(r.dir, name+".log"), ready: healthy(address),
		make: func() *exec.Cmd {
			cmd := program(r.t, append([]string{"service", name, "--metrics-addr", address}, flags...)...)
			cmd.Env = append(cmd.Env, env...)
			return cmd
		},
	}
}

func (r *killRig) gatewayProcess() *mortal {
	return r.service("gateway", bus.RoleGateway, []string{"TRANSFERLAB_TOKEN=" + r.token},
		"--listen", r.gateway, "--clickhouse-reader", r.database.ReaderDSN(), "--clickhouse", r.database.LabDSN(),
		"--clip-store", r.server.Endpoint(), "--clip-mend", "500ms")
}

// detectorProcess gives up the clips of a killed one soon: the lease is what the
// next one waits for.
func (r *killRig) detectorProcess() *mortal {
	return r.service("detector", bus.RoleDetector, nil, "--s3-endpoint", r.server.Endpoint(), "--lease", "3s")
}

// station is an edge that takes what comes into a directory.
type station struct {
	*mortal
	incoming, spool string
}

// edgeStatus is what `transferlab-edge status` gets.
type edgeStatus struct {
	Clips map[string]int    `json:"clips"`
	Tally map[string]uint64 `json:"since_ever"`
}

func (s *station) status(ctx context.Context) (said edgeStatus, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.spool, "status.sock"))
	if err != nil {
		return said, err
	}
	defer conn.Close()
	return said, json.NewDecoder(conn).Decode(&said)
}

// buildEdge builds the edge's program.
func buildEdge(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "transferlab-edge")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/transferlab/transferlab/edge/transferlab-edge")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build transferlab-edge: %v\n%s", err, out)
	}
	return path
}

// station makes an edge that decides by the policy, with an account of the same
// name.
func (r *killRig) station(binary, policy string) *station {
	r.t.Helper()
	accounts, err := bus.OpenBucket[schemas.EdgeAccount](r.t.Context(), r.operator, bus.BucketEdges)
	if err != nil {
		r.t.Fatal(err)
	}
	token := rand.Text() + rand.Text()
	hash := sha256.Sum256([]byte(token))
	if _, err := accounts.Put(r.t.Context(), policy, schemas.EdgeAccount{Name: policy, Hash: hex.EncodeToString(hash[:]), Created: time.Now()}); err != nil {
		r.t.Fatal(err)
	}
	s := &station{incoming: filepath.Join(r.dir, policy, "incoming"), spool: filepath.Join(r.dir, policy, "spool")}
	for _, dir := range []string{s.incoming, s.spool} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			r.t.Fatal(err)
		}
	}
	config := filepath.Join(r.dir, policy, "edge.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `name: %[1]s
gateway: http://%[2]s
nats:
  url: %[3]s
  user: %[4]s
source:
  kind: directory
  path: %[5]q
  quiet: 200ms
spool:
  dir: %[6]q
policy:
  kind: %[1]s
detection:
  model: hog
  sample_per_s: %[7]d
local:
  nice: 0
`, policy, r.gateway, r.bus.URL(), bus.RoleEdge, s.incoming, s.spool, sampleRate), 0o600); err != nil {
		r.t.Fatal(err)
	}
	s.mortal = &mortal{
		name: "edge " + policy, log: filepath.Join(r.dir, policy, "log"),
		ready: func(ctx context.Context) error { _, err := s.status(ctx); return err },
		make: func() *exec.Cmd {
			cmd := exec.Command(binary, "run", "--config", config)
			cmd.Env = append(os.Environ(), "TRANSFERLAB_EDGE_TOKEN="+token, "TRANSFERLAB_EDGE_NATS_PASSWORD="+r.bus.Password(bus.RoleEdge))
			return cmd
		},
	}
	return s
}

// sampleRate is how many frames are looked at for each second of a clip.
const sampleRate = 1

// picture is what several clips show.
type picture struct {
	data    []byte
	seconds int
}

// makePictures makes clips that differ in how long they are.
func makePictures(t *testing.T) (all []picture) {
	t.Helper()
	dir := t.TempDir()
	for seconds := 1; seconds <= 3; seconds++ {
		path := filepath.Join(dir, fmt.Sprintf("%d.ts", seconds))
		cmd := exec.CommandContext(t.Context(), "ffmpeg", "-v", "error", "-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=320x180:rate=10:duration=%d", seconds),
			"-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "10", "-f", "mpegts", path)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make a clip, for which task opencv installs ffmpeg: %v\n%s", err, out)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, picture{data, seconds})
	}
	return all
}

// bytesOf are those of a clip of its own that shows the picture, size bytes or a
// little more: null packets, which decoders pass over, make the difference.
func (p picture) bytesOf(n, size int) []byte {
	const packet = 188
	data := bytes.Clone(p.data)
	for first := true; first || len(data) < size; first = false {
		null := bytes.Repeat([]byte{0xff}, packet)
		copy(null, []byte{0x47, 0x1f, 0xff, 0x10})
		binary.BigEndian.PutUint64(null[4:], uint64(n))
		data = append(data, null...)
	}
	return data
}

// dropped is a clip that was given to an edge.
type dropped struct {
	data    []byte
	picture int
	edge    *station
}

// drops puts clips where edges take them from.
type drops struct {
	pictures []picture
	all      []dropped
}

// drop gives one more clip to an edge, all at once as a program does that has
// recorded it elsewhere.
func (d *drops) drop(t *testing.T, s *station, size int) {
	t.Helper()
	n := len(d.all)
	// In turn, whichever edge it is.
	clip := dropped{picture: n % len(d.pictures), edge: s}
	clip.data = d.pictures[clip.picture].bytesOf(n, size)
	d.all = append(d.all, clip)
	name := fmt.Sprintf("clip%04d.ts", n)
	if err := os.WriteFile(filepath.Join(s.incoming, "."+name), clip.data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(s.incoming, "."+name), filepath.Join(s.incoming, name)); err != nil {
		t.Fatal(err)
	}
}

// number is that of the dropped clip with this id, -1 if there is none.
func number(id string) int {
	digits, _, found := strings.Cut(strings.TrimPrefix(id, "clip"), "-")
	n, err := strconv.Atoi(digits)
	if !found || err != nil {
		return -1
	}
	return n
}

// Sizes of clips: most are tiny; that which is copied when the edge is killed
// takes a while.
const (
	tiny = 0
	long = 24 << 20
)

// Two edges, gateway and detector are killed at random, each a process of its
// own, while clips come in: while they start, while they work, and the edges
// also while they copy a clip and while they decide. In the end every clip has its one result, and
// nobody has anything left to do. TRANSFERLAB_OFFLOAD_KILLS says how often.
func TestKillEdgeGatewayDetector(t *testing.T) {
	kills := 15
	if text := os.Getenv("TRANSFERLAB_OFFLOAD_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil || kills < 1 {
			t.Fatalf("TRANSFERLAB_OFFLOAD_KILLS: %q, want a number above 0", text)
		}
	}
	requireVision(t)
	r, binary := newKillRig(t), buildEdge(t)
	edges := []*station{r.station(binary, schemas.PolicySource), r.station(binary, schemas.PolicyOverflow)}
	mortals := []*mortal{edges[0].mortal, edges[1].mortal, r.gatewayProcess(), r.detectorProcess()}
	t.Cleanup(func() {
		for _, m := range mortals {
			if m.cmd != nil && !m.ended() {
				m.kill(t)
			}
			if t.Failed() {
				m.tell(t)
			}
		}
	})
	d := &drops{pictures: makePictures(t)}
	for _, m := range mortals {
		m.start(t)
	}
	begun := time.Now()
	// By this seed each process comes upon each moment within the first 15 kills.
	random := mathrand.New(mathrand.NewPCG(1, 3341))
	done := map[string]int{}
	for range kills {
		// Either edge as often as the others.
		victim := []int{0, 1, 2, 2, 3, 3}[random.IntN(6)]
		m := mortals[victim]
		moment := []string{"starting", "working", "working"}[random.IntN(3)]
		if victim < len(edges) && random.IntN(2) == 0 {
			moment = []string{"copying", "deciding"}[random.IntN(2)]
		}
		d.drop(t, edges[random.IntN(len(edges))], tiny)
		if moment != "starting" {
			m.awaitReady(t)
		}
		switch moment {
		case "copying":
			d.drop(t, edges[victim], long)
			d.awaitCopy(t, edges[victim])
		case "deciding":
			for range 4 {
				d.drop(t, edges[victim], tiny)
			}
			edges[victim].awaitUndecided(t)
		default:
			select {
			case <-m.exited:
			case <-time.After(time.Duration(random.Int64N(int64(time.Second)))):
			}
		}
		m.kill(t)
		if t.Failed() {
			t.FailNow()
		}
		done[m.name+" "+moment]++
		m.start(t)
	}
	for _, m := range mortals {
		m.awaitReady(t)
	}
	killed := time.Since(begun)
	r.awaitAll(edges, mortals, len(d.all))
	t.Logf("%d kills in %s, %v; all was done %s later", kills, killed.Round(time.Millisecond), done, (time.Since(begun) - killed).Round(time.Millisecond))
	r.check(d, edges)
}

// awaitCopy returns while the edge copies the last clip.
func (d *drops) awaitCopy(t *testing.T, s *station) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	name := fmt.Sprintf("clip%04d-", len(d.all)-1)
	if err := awaitCondition(ctx, 200*time.Microsecond, func() (bool, string) {
		files, err := filepath.Glob(filepath.Join(s.spool, "clips", name+"*"))
		if err != nil || len(files) == 0 {
			return false, fmt.Sprintf("the edge does not take %s: %v", name, err)
		}
		info, err := os.Stat(files[0])
		return err != nil || info.Size() > 0, files[0]
	}); err != nil {
		t.Fatal(err)
	}
}

// awaitUndecided returns once there is a clip that the edge has not decided on.
// One by the policy source decides too fast to be seen: some clip is enough then.
func (s *station) awaitUndecided(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := awaitCondition(ctx, time.Millisecond, func() (bool, string) {
		said, err := s.status(ctx)
		clips := 0
		for _, n := range said.Clips {
			clips += n
		}
		return said.Clips["spooled"] > 0 || s.name != "edge "+schemas.PolicyOverflow && clips > 0, fmt.Sprint(said.Clips, err)
	}); err != nil {
		t.Fatal(err)
	}
}

// awaitCondition asks again and again, as often as every says, until it is so or
// ctx ends: then what it last said is an error.
func awaitCondition(ctx context.Context, every time.Duration, so func() (done bool, said string)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		done, said := so()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", ctx.Err(), said)
		case <-tick.C:
		}
	}
}

// sql asks the gateway for the rows of a query.
func (r *killRig) sql(query string) (string, error) {
	var out bytes.Buffer
	err := r.api.SQL(r.t.Context(), query, "TSV", &out)
	return strings.TrimSpace(out.String()), err
}

// awaitAll returns once the edges have nothing in their spools and all clips have
// an event in the database.
func (r *killRig) awaitAll(edges []*station, mortals []*mortal, clips int) {
	r.t.Helper()
	// A clip takes a second or two of a busy machine.
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute+time.Duration(clips)*2*time.Second)
	defer cancel()
	if err := awaitCondition(ctx, 250*time.Millisecond, func() (bool, string) {
		for _, m := range mortals {
			if m.ended() {
				r.t.Fatalf("the %s ended by itself: %s", m.name, m.cmd.ProcessState)
			}
		}
		var said strings.Builder
		for _, s := range edges {
			now, err := s.status(ctx)
			if err != nil {
				return false, err.Error()
			}
			files, err := os.ReadDir(s.incoming)
			if err != nil {
				return false, err.Error()
			}
			if len(files) > 0 {
				fmt.Fprintf(&said, "%d files to be taken by the %s; ", len(files), s.name)
			}
			for state, n := range now.Clips {
				if n > 0 {
					fmt.Fprintf(&said, "%d clips %s in the spool of the %s; ", n, state, s.name)
				}
			}
		}
		rows, err := r.sql("SELECT uniqExact(clip) FROM offload_clips")
		return err == nil && said.Len() == 0 && rows == fmt.Sprint(clips), fmt.Sprintf("%s%q of %d clips in the database, %v", said.String(), rows, clips, err)
	}); err != nil {
		r.t.Fatal(err)
	}
}

// check holds what has become of the clips against what came in.
func (r *killRig) check(d *drops, edges []*station) {
	t, clips := r.t, len(d.all)
	t.Helper()
	ask := func(query string) string {
		t.Helper()
		rows, err := r.sql(query)
		if err != nil {
			t.Errorf("%s: %v", query, err)
		}
		return rows
	}
	results := storedClips(t, r.store)
	seen := map[int]bool{}
	frames := map[int][]byte{} // of each picture
	at := map[string]int{}
	for id, result := range results {
		n := number(id)
		if n < 0 || n >= clips || seen[n] {
			t.Errorf("a result of clip %s, which was not given to the edge, or has another one", id)
			continue
		}
		seen[n] = true
		clip := d.all[n]
		at[clip.edge.name+": "+result.Where]++
		if hash := sha256.Sum256(clip.data); result.SHA256 != hex.EncodeToString(hash[:]) || "edge "+result.Edge != clip.edge.name || result.Status != schemas.StatusOK {
			t.Errorf("the result of clip %d: status %s (%s), of edge %s, of bytes %s, want %x", n, result.Status, result.Error, result.Edge, result.SHA256, hash)
		}
		if want := d.pictures[clip.picture].seconds * sampleRate; len(result.Frames) != want {
			t.Errorf("the result of clip %d has %d frames, want %d", n, len(result.Frames), want)
		}
		said, err := json.Marshal(result.Frames)
		if err != nil {
			t.Fatal(err)
		}
		if first, known := frames[clip.picture]; known && !bytes.Equal(first, said) {
			t.Errorf("the same picture was seen as\n%s\nand as\n%s", first, said)
		}
		frames[clip.picture] = said
		r.checkBytes(id, clip.data)
	}
	if len(results) != clips {
		t.Errorf("%d clips in, %d results out", clips, len(results))
	}
	// One put for each result: none was ever replaced, also by one that says the
	// same.
	access, err := r.server.AccessIdle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if puts := access.Total("results", storeserver.OpPutObject, http.StatusOK).Requests; puts != int64(clips) {
		t.Errorf("%d results were stored for %d clips", puts, clips)
	}

	states, err := bus.OpenBucket[schemas.ClipState](t.Context(), r.operator, bus.BucketClips)
	if err != nil {
		t.Fatal(err)
	}
	all, err := states.List(t.Context(), ">")
	if err != nil {
		t.Fatal(err)
	}
	deliveries := 0
	for _, e := range all {
		s, result := e.Value, results[e.Key]
		if s.State != schemas.ClipDone || s.Result == nil || s.Result.Hash != result.Hash() || s.Where != result.Where || s.Stamps.Uploaded.IsZero() || s.Reported.IsZero() {
			t.Errorf("clip %s is %q at %s, %+v, reported %s, uploaded %s; its result is of %s and has hash %s",
				e.Key, s.State, s.Where, s.Result, s.Reported, s.Stamps.Uploaded, result.Where, result.Hash())
		}
		deliveries += s.Attempts
	}
	if len(all) != clips {
		t.Errorf("the lab knows of %d clips, want %d", len(all), clips)
	}
	if got := ask("SELECT count(), uniqExact(clip), countIf(status = 'ok' AND at_uploaded IS NOT NULL) FROM offload_clips"); got != fmt.Sprintf("%d\t%d\t%d", clips, clips, clips) {
		t.Errorf("rows, clips, and those that are ok, of the events: %q, want %d of each", got, clips)
	}
	sameAsEvents(t, ask(seenByEvents), results)
	again, err := strconv.Atoi(ask("SELECT count() - uniqExact(attrs['clip']) FROM events WHERE kind = 'clip'"))
	if err != nil {
		t.Error(err)
	}
	if err := r.operator.DeadLetters(t.Context(), func(l bus.DeadLetter) error {
		t.Errorf("a dead letter of %s: %s", l.Stream, l.Reason)
		return nil
	}); err != nil {
		t.Error(err)
	}
	if waiting, inWork, err := r.operator.Backlog(t.Context(), bus.StreamClips, bus.ConsumerDetectors); err != nil || waiting+inWork > 0 {
		t.Errorf("%d clips wait for a detector, %d are with one, %v", waiting, inWork, err)
	}
	for _, edge := range edges {
		s, err := edge.status(t.Context())
		if err != nil {
			t.Error(err)
		}
		if s.Tally["refused"]+s.Tally["expired"] > 0 {
			t.Errorf("the %s has given clips up: %v", edge.name, s.Tally)
		}
		if err := filepath.WalkDir(edge.spool, func(path string, e fs.DirEntry, err error) error {
			if err == nil && strings.HasPrefix(e.Name(), "clip0") {
				t.Errorf("left in the spool: %s", path)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d clips in, %d results out (seen by: %v), %d deliveries to detectors, %d clips told of twice", clips, len(results), at, deliveries, again)
}

// checkBytes holds a clip in the store against what the edge was given.
func (r *killRig) checkBytes(id string, want []byte) {
	r.t.Helper()
	body, _, err := r.store.Get(r.t.Context(), "clips", id)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, math.MaxInt32))
	if err != nil || !bytes.Equal(got, want) {
		r.t.Errorf("clip %s has %d bytes in the store that are not the %d that the edge was given: %v", id, len(got), len(want), err)
	}
}
