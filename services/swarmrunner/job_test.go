package swarmrunner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
)

// networks are those that can be had here.
func networks(t *testing.T) []string {
	t.Helper()
	n, err := transport.Private()
	if errors.Is(err, transport.ErrNotPermitted) {
		return []string{"host"}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	return []string{"host", "private"}
}

// Three leechers and a seeder, in every way that peers can talk: each has the
// file, every byte has a class, and what the interfaces counted is what the
// sockets sent.
func TestSwarm(t *testing.T) {
	t.Parallel()
	for _, network := range networks(t) {
		for _, c := range []schemas.Swarm{
			{Size: 1_000_000},
			{Size: 300_000, Tracker: "udp", Storage: "file"},
			{Size: 300_000, Protocol: "utp"},
			{Size: 300_000, Encryption: "require", OnComplete: "leave"},
			{Size: 300_000, Seeders: 3, SeedUpload: 80_000_000, Upload: 80_000_000, Download: 400_000_000},
			{Size: 1, Encryption: "prefer"},
			{Size: 300_000, Isolation: "process", Storage: "file"},
		} {
			c.Network = network
			t.Run(fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", network, c.Size, c.Tracker, c.Protocol, c.Encryption, c.Storage, c.Isolation), func(t *testing.T) {
				t.Parallel()
				tr := alone(3, c)
				tr.dir = t.TempDir()
				tr.run(t, t.Context())
				tr.demand(t, "ok", "ok", "ok")
				tr.checkOrdinary(t)
				if left, err := os.ReadDir(tr.dir); err != nil || len(left) > 0 {
					t.Errorf("files are left: %v, %v", left, err)
				}
			})
		}
	}
}

// checkOrdinary demands what holds of a trial in which nothing goes wrong.
func (tr *trial) checkOrdinary(t testing.TB) {
	t.Helper()
	size, pieces := int64(tr.section.Size), (int64(tr.section.Size)+tr.section.PieceLength()-1)/tr.section.PieceLength()
	var sent, received, seeded, given, got int64
	for _, e := range tr.all(schemas.KindWire) {
		n := int64(e.Bytes)
		if n == 0 || attr(e, "messages") == "" {
			t.Errorf("%+v", e)
		}
		if attr(e, "direction") == "sent" {
			sent += n
		} else {
			received += n
		}
	}
	for _, e := range tr.all(schemas.KindTransfer) {
		given += value(t, e, "payload_sent")
		got += value(t, e, "payload_received")
		if attr(e, "seed_out_ns") == "" || attr(e, "announce_ns") == "" || value(t, e, "verified_ns") <= value(t, e, "complete_ns") || e.FirstByte <= 0 {
			t.Errorf("%+v", e)
		}
		// Others may say hello before the tracker's answer is there.
		last := int64(0)
		for _, stage := range []string{"handshake_ns", "unchoke_ns", "first_piece_ns", "d50_ns", "d90_ns", "complete_ns"} {
			at := value(t, e, stage)
			if at < last {
				t.Errorf("%s is %d ns before the stage that comes first", stage, last-at)
			}
			last = at
		}
		if isProcess := tr.section.Isolation == "process"; (attr(e, "pid") != "") != isProcess {
			t.Errorf("pid %q", attr(e, "pid"))
		}
	}
	for _, e := range tr.all(schemas.KindSeed) {
		seeded += value(t, e, "payload_sent")
		if e.Status != schemas.StatusOK || e.Duration <= 0 {
			t.Errorf("%+v", e)
		}
	}
	leechers := int64(len(tr.all(schemas.KindTransfer)))
	if got < leechers*size || seeded+given < leechers*size || seeded < size {
		t.Errorf("%d bytes of content came, %d went from seeders and %d from leechers; %d leechers of %d bytes", got, seeded, given, leechers, size)
	}
	// What is sent need not come: packets of uTP are lost where a socket's memory
	// is full, and blocks that are on their way to one who leaves are nobody's.
	if float64(received-sent) > 0.01*float64(sent) {
		t.Errorf("%d bytes were sent and %d received", sent, received)
	}
	byLeecher := map[string]map[string]bool{}
	for _, e := range tr.all(schemas.KindPiece) {
		l := attr(e, "leecher")
		if byLeecher[l] == nil {
			byLeecher[l] = map[string]bool{}
		}
		byLeecher[l][attr(e, "piece")] = true
		if from := attr(e, "from"); !strings.HasPrefix(from, "seeder ") && !strings.HasPrefix(from, "leecher ") {
			t.Errorf("a piece from %q", from)
		}
	}
	for l, seen := range byLeecher {
		if int64(len(seen)) != pieces {
			t.Errorf("leecher %s has %d pieces, want %d", l, len(seen), pieces)
		}
	}
	if int64(len(byLeecher)) != leechers {
		t.Errorf("pieces of %d leechers", len(byLeecher))
	}
	copies := tr.all(schemas.KindCopy)
	if len(copies) != 1 || copies[0].Status != schemas.StatusOK || int64(copies[0].Bytes) != size || copies[0].Duration <= 0 ||
		value(t, copies[0], "verified_ns") <= int64(copies[0].Duration) {
		t.Errorf("%+v", copies)
	}
	for _, e := range tr.all(schemas.KindInterface) {
		if attr(e, "network") != "private" {
			continue
		}
		if off := value(t, e, "unattributed"); math.Abs(float64(off)) > 0.01*float64(e.Bytes) {
			t.Errorf("%d of %d bytes are nobody's: %+v", off, e.Bytes, e)
		}
		if value(t, e, "sockets_sent") != sent || attr(e, "exclusive") != "true" {
			t.Errorf("sockets sent %s, events have %d", attr(e, "sockets_sent"), sent)
		}
	}
	if runtime.GOOS == "linux" && len(tr.all(schemas.KindInterface)) != len(tr.stations) {
		t.Errorf("%d interfaces", len(tr.all(schemas.KindInterface)))
	}
}

const patience = schemas.Duration(400 * time.Millisecond)

// Everything that can go wrong on purpose has a name in the end, for every
// leecher, whether peers are in one process or in many.
func TestFaults(t *testing.T) {
	t.Parallel()
	slow := schemas.BitRate(8_000_000) // a megabyte a second
	for name, c := range map[string]struct {
		section  schemas.Swarm
		leechers int
		want     []string
		check    func(t *testing.T, tr *trial)
	}{
		"killed": {
			schemas.Swarm{Size: 500_000, SeedUpload: slow, Upload: slow, Faults: []schemas.SwarmFault{
				{Do: schemas.FaultKillLeecher, Peer: 1, Progress: 0.3},
			}},
			3,
			[]string{"ok", "killed", "ok"},
			func(t *testing.T, tr *trial) {
				e := tr.transfers(t)[1]
				if e.Bytes < 150_000 || e.Bytes >= 500_000 || e.Duration <= 0 || attr(e, "sha256") != "" || attr(e, "complete_ns") != "" {
					t.Errorf("%+v", e)
				}
			},
		},
		"killed-before-it-came": {
			schemas.Swarm{Size: 100_000, Arrival: "staggered", Every: schemas.Duration(300 * time.Millisecond), Faults: []schemas.SwarmFault{
				{Do: schemas.FaultKillLeecher, Peer: 1},
			}},
			2,
			[]string{"ok", "killed"},
			nil,
		},
		"the-only-seeder-stops": {
			schemas.Swarm{Size: 500_000, SeedUpload: slow, Patience: patience, Faults: []schemas.SwarmFault{
				{Do: schemas.FaultStopSeeder, Progress: 0.3},
			}},
			2,
			[]string{"no_peers", "no_peers"},
			func(t *testing.T, tr *trial) {
				if e := tr.all(schemas.KindSeed)[0]; attr(e, "left") != "stopped" {
					t.Errorf("%+v", e)
				}
			},
		},
		"one-of-two-seeders-stops": {
			schemas.Swarm{Size: 500_000, Seeders: 2, SeedUpload: slow, Faults: []schemas.SwarmFault{
				{Do: schemas.FaultStopSeeder, Peer: 1, Progress: 0.2},
			}},
			2,
			[]string{"ok", "ok"},
			nil,
		},
		"tracker-down": {
			schemas.Swarm{Size: 100_000, Patience: patience, Faults: []schemas.SwarmFault{{Do: schemas.FaultTrackerDown}}, Arrival: "staggered", Every: schemas.Duration(50 * time.Millisecond)},
			3,
			nil,
			func(t *testing.T, tr *trial) {
				// The first may have been quicker than the fault.
				for i, e := range tr.transfers(t) {
					if i > 0 && e.Status != schemas.StatusNoTracker {
						t.Errorf("leecher %d: %s %s", i, e.Status, e.Error)
					}
				}
			},
		},
		"udp-tracker-down": {
			schemas.Swarm{Size: 100_000, Tracker: "udp", Patience: patience, Faults: []schemas.SwarmFault{{Do: schemas.FaultTrackerDown}}, Arrival: "staggered", Every: schemas.Duration(50 * time.Millisecond)},
			2,
			nil,
			func(t *testing.T, tr *trial) {
				if e := tr.transfers(t)[1]; e.Status != schemas.StatusNoTracker {
					t.Errorf("%s %s", e.Status, e.Error)
				}
			},
		},
		"tracker-down-for-a-while": {
			schemas.Swarm{Size: 100_000, Arrival: "staggered", Every: schemas.Duration(50 * time.Millisecond), Faults: []schemas.SwarmFault{
				{Do: schemas.FaultTrackerDown, At: schemas.Duration(20 * time.Millisecond), For: schemas.Duration(400 * time.Millisecond)},
			}},
			3,
			[]string{"ok", "ok", "ok"},
			nil,
		},
		"corrupt-seeder": {
			schemas.Swarm{Size: 500_000, Patience: patience, Faults: []schemas.SwarmFault{{Do: schemas.FaultCorruptSeeder}}},
			2,
			[]string{"corrupt", "corrupt"},
			func(t *testing.T, tr *trial) {
				for _, e := range tr.transfers(t) {
					if value(t, e, "hash_failures") == 0 || e.Bytes == uint64(tr.section.Size) {
						t.Errorf("%+v", e)
					}
				}
			},
		},
		"corrupt-seeder-beside-a-good-one": {
			schemas.Swarm{Size: 500_000, Seeders: 2, Faults: []schemas.SwarmFault{{Do: schemas.FaultCorruptSeeder, Peer: 1}}},
			3,
			[]string{"ok", "ok", "ok"},
			nil,
		},
		"truncated-torrent": {
			schemas.Swarm{Size: 500_000, Faults: []schemas.SwarmFault{{Do: schemas.FaultTruncateTorrent, Peer: 2}}},
			3,
			[]string{"ok", "ok", "bad_torrent"},
			nil,
		},
		"everything-at-once": {
			schemas.Swarm{
				Size: 500_000, Seeders: 3, SeedUpload: slow, Upload: slow,
				Faults: []schemas.SwarmFault{
					{Do: schemas.FaultKillLeecher, Peer: 0, Progress: 0.5},
					{Do: schemas.FaultTruncateTorrent, Peer: 1},
					{Do: schemas.FaultCorruptSeeder, Peer: 1},
					{Do: schemas.FaultStopSeeder, Peer: 2, Progress: 0.1},
					{Do: schemas.FaultTrackerDown, Progress: 0.2},
				},
			},
			4,
			[]string{"killed", "bad_torrent", "ok", "ok"},
			nil,
		},
	} {
		for _, isolation := range []string{"shared", "process"} {
			t.Run(name+"-"+isolation, func(t *testing.T) {
				t.Parallel()
				c.section.Isolation = isolation
				tr := alone(c.leechers, c.section)
				tr.run(t, t.Context())
				if c.want != nil {
					tr.demand(t, c.want...)
				}
				if c.check != nil {
					c.check(t, tr)
				}
			})
		}
	}
}

// The end of the trial's time, and its being cancelled, have names too; what was
// there until then is told.
func TestCutOff(t *testing.T) {
	t.Parallel()
	crawl := schemas.Swarm{Size: 10_000_000, SeedUpload: 8_000_000, Network: "host"}
	for _, isolation := range []string{"shared", "process"} {
		crawl.Isolation = isolation
		t.Run("timeout-"+isolation, func(t *testing.T) {
			t.Parallel()
			tr := alone(2, crawl)
			tr.timeout = time.Second
			begun := time.Now()
			tr.run(t, t.Context())
			for _, e := range tr.transfers(t) {
				if e.Status != schemas.StatusTimeout || e.Bytes == 0 || e.Duration < 500*time.Millisecond {
					t.Errorf("%+v", e)
				}
			}
			if took := time.Since(begun); tr.stations[0].err == nil || took > 15*time.Second {
				t.Errorf("%v after %s", tr.stations[0].err, took)
			}
		})
		t.Run("cancel-"+isolation, func(t *testing.T) {
			t.Parallel()
			section := crawl
			section.Arrival, section.Every = "staggered", schemas.Duration(10*time.Minute)
			tr := alone(2, section)
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("enough")
			tr.started = func() { cancel(why) }
			tr.run(t, ctx)
			for i, e := range tr.transfers(t) {
				if e.Status != schemas.StatusCancelled || i == 1 && e.Duration != 0 {
					t.Errorf("%+v", e)
				}
			}
			if err := tr.stations[0].err; !errors.Is(err, why) {
				t.Error(err)
			}
		})
	}
}

// A process that is gone by itself is its leecher's failure, not the trial's.
func TestProcessDies(t *testing.T) {
	t.Parallel()
	tr := alone(2, schemas.Swarm{Size: 2_000_000, SeedUpload: 16_000_000, Isolation: "process"})
	tr.prepare(t, t.Context())
	j := tr.stations[0].job.(*job)
	tr.started = func() { j.leechers[1].body.(*child).kill() }
	tr.resume(t, t.Context())
	tr.demand(t, "ok", "error")
	if e := tr.transfers(t)[1]; !strings.Contains(e.Error, "killed") {
		t.Errorf("%q", e.Error)
	}
}

// Nothing of a job stays: no process, descriptor or mapping.
func TestNothingIsLeft(t *testing.T) {
	if runtime.GOOS != "linux" {
		return
	}
	count := func() (descriptors, mappings int) {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return len(open), strings.Count(string(maps), "\n")
	}
	var descriptors, mappings int
	for i := range 6 {
		tr := alone(4, schemas.Swarm{Size: 1_000_000, Isolation: []string{"shared", "process"}[i%2], Storage: []string{"memory", "file"}[i%2]})
		tr.dir = t.TempDir()
		if i < 4 {
			tr.run(t, t.Context())
		} else {
			tr.prepare(t, t.Context())
		}
		var pids []int
		for _, m := range tr.stations[0].job.(*job).members() {
			if m.pid != 0 {
				pids = append(pids, m.pid)
			}
		}
		if err := tr.stations[0].job.Close(); err != nil {
			t.Error(err)
		}
		for _, pid := range pids {
			if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
				t.Errorf("process %d is still there", pid)
			}
		}
		if i == 1 {
			descriptors, mappings = count()
		}
	}
	// The runtime maps memory of its own, a few times.
	if d, m := count(); d > descriptors+2 || m > mappings+20 {
		t.Errorf("%d descriptors and %d mappings after all, %d and %d before", d, m, descriptors, mappings)
	}
}

// The same seed has the same file, every trial another.
func TestContent(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, c := range []struct {
		seed  uint64
		trial uint32
		same  string
	}{{1, 0, ""}, {1, 1, ""}, {2, 0, ""}, {1, 0, "1 0"}} {
		made := make([]byte, 100_000)
		key := contentKey(c.seed, c.trial)
		if err := makeContent(t.Context(), key, made); err != nil {
			t.Fatal(err)
		}
		sum, err := digest(t.Context(), made)
		if err != nil {
			t.Fatal(err)
		}
		if name := seen[string(sum[:])]; name != c.same {
			t.Errorf("%d %d has the content of %q", c.seed, c.trial, name)
		}
		seen[string(sum[:])] = fmt.Sprint(c.seed, " ", c.trial)
		// In steps or at once.
		if whole := make([]byte, 30); makeContent(t.Context(), key, whole) != nil || !slices.Equal(whole, made[:30]) {
			t.Error("the content depends on its length")
		}
	}
}

// Leechers come when the plan says.
func TestArrivals(t *testing.T) {
	t.Parallel()
	tr := alone(5, schemas.Swarm{Size: 20_000, Arrival: "poisson", Every: schemas.Duration(20 * time.Millisecond)})
	tr.seed = 9
	tr.run(t, t.Context())
	tr.demand(t, "ok", "ok", "ok", "ok", "ok")
	first := time.Time{}
	all := tr.transfers(t)
	for i, at := range plan.Arrivals(9, 0, 5, &tr.section) {
		e := all[int64(i)]
		if i == 0 {
			first = e.Intended.Add(-at)
		}
		if got := e.Intended.Sub(first); got != at {
			t.Errorf("leecher %d is due at %s, want %s", i, got, at)
		}
	}
	if r := tr.stations[0].result; r.LagMax <= 0 || r.LagMax > time.Second {
		t.Errorf("%+v", r)
	}
}

// What this machine cannot hold, or may not do, is said before anything is
// taken.
func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit func(*schemas.Swarm, *schemas.Task, *Config)
		want string
	}{
		"memory": {func(s *schemas.Swarm, task *schemas.Task, _ *Config) {
			s.Size, task.Clients = 4<<30, clients("home", 0, 2000)
		}, "MB of memory"},
		"sockets": {func(s *schemas.Swarm, task *schemas.Task, _ *Config) {
			s.Connections, task.Clients = 1000, clients("home", 0, 10_000)
		}, "ulimit"},
		"directory":  {func(s *schemas.Swarm, _ *schemas.Task, c *Config) { s.Storage, c.WorkDir = "file", "/nowhere" }, "/nowhere"},
		"agents":     {func(_ *schemas.Swarm, task *schemas.Task, _ *Config) { task.Agents = 0 }, "task.agents"},
		"private":    {func(s *schemas.Swarm, task *schemas.Task, _ *Config) { s.Network, task.Agents = "private", 2 }, "swarm.network"},
		"section":    {func(s *schemas.Swarm, _ *schemas.Task, _ *Config) { s.Size = 0 }, "swarm.size"},
		"no clients": {func(_ *schemas.Swarm, task *schemas.Task, _ *Config) { task.Clients = nil }, "task.clients"},
		"address": {func(_ *schemas.Swarm, task *schemas.Task, c *Config) {
			task.Agents, c.Address = 2, "nowhere"
		}, "--address"},
		"nobody": {func(s *schemas.Swarm, _ *schemas.Task, _ *Config) { s.SeedGroups, s.Seeders = []string{"home"}, 0 }, "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := schemas.Swarm{Size: 1000}
			cfg := DefaultConfig()
			task := &schemas.Task{
				Run: uuid.Must(uuid.NewV7()), Attempt: 1, Workload: schemas.WorkloadSwarm, Agent: "agent-1",
				Clients: clients("home", 0, 2), Timeout: time.Minute, Agents: 1,
			}
			c.edit(&s, task, &cfg)
			var err error
			if task.Section, err = json.Marshal(s); err != nil {
				t.Fatal(err)
			}
			j, err := NewWorker(cfg, slog.New(slog.DiscardHandler)).Prepare(t.Context(), task)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if err == nil {
				_ = j.Close()
			}
		})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	tr := alone(2, schemas.Swarm{Size: 1000})
	data, err := json.Marshal(tr.section)
	if err != nil {
		t.Fatal(err)
	}
	task := &schemas.Task{
		Run: uuid.Must(uuid.NewV7()), Attempt: 1, Workload: schemas.WorkloadSwarm, Agent: "agent-1", Section: data,
		Clients: clients("home", 0, 2), Timeout: time.Minute, Agents: 1,
	}
	if _, err := NewWorker(DefaultConfig(), slog.New(slog.DiscardHandler)).Prepare(ended, task); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A full disk is an error, not the end of the process.
func TestDiskIsFull(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		return
	}
	if s, err := newFile(t.TempDir(), math.MaxInt64/2); err == nil {
		t.Error("there was room", s.close())
	}
}

// Two trials at a time on one agent do not know of each other.
func TestTrialsBesideEachOther(t *testing.T) {
	t.Parallel()
	for i := range 3 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			tr := alone(3, schemas.Swarm{Size: 1_000_000, Network: "host"})
			tr.index = uint32(i)
			tr.run(t, t.Context())
			tr.demand(t, "ok", "ok", "ok")
			tr.checkOrdinary(t)
		})
	}
}

// An address that is a router's: peers listen at all of the machine's.
func TestForeignAddress(t *testing.T) {
	t.Parallel()
	n := transport.Host()
	l, err := openLocal(t.Context(), n, spec{Address: homeless(), Size: 10, Storage: "memory", Protocol: "tcp", Encryption: "off"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !l.address.Addr().IsUnspecified() || l.address.Port() == 0 {
		t.Errorf("it listens at %s", l.address)
	}
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(l.address.Port()))))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := l.close(); err != nil {
		t.Error(err)
	}
}

// What the system says of its memory is more than nothing and less than a
// petabyte.
func TestAvailableMemory(t *testing.T) {
	t.Parallel()
	if n, known := availableMemory(); known && (n < 1<<20 || n > 1<<50) || known != (runtime.GOOS == "linux") {
		t.Errorf("%d, %t", n, known)
	}
}
