package s3loader

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
	"github.com/transferlab/transferlab/services/internal/plan"
)

func TestEveryRequestIsAccountedFor(t *testing.T) {
	for name, change := range map[string]func(*schemas.S3){
		"get":      nil,
		"put":      func(s *schemas.S3) { s.Operation = "put" },
		"mixed":    func(s *schemas.S3) { s.Operation, s.PutShare = "mixed", 0.5 },
		"checksum": func(s *schemas.S3) { s.Verify = "checksum" },
		"fresh":    func(s *schemas.S3) { s.Connections = "fresh" },
		"ranges":   func(s *schemas.S3) { s.Size, s.PartSize, s.Verify = 1_000_003, 64<<10, "checksum" },
		"parallel": func(s *schemas.S3) { s.Concurrency = 4 },
		"open":     func(s *schemas.S3) { s.Loop, s.Rate = "open", 500 },
		"large":    func(s *schemas.S3) { s.Operation, s.PutShare, s.Size = "mixed", 0.5, 5_000_000 },
		"empty":    func(s *schemas.S3) { s.Operation, s.PutShare, s.Size = "mixed", 0.5, 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, cfg := startServer(t)
			s := section(change)
			var before embedded.AccessSnapshot
			l := &log{}
			res, err := runWith(t, t.Context(), cfg, task(t, s, 2), l, func() {
				var err error
				if before, err = srv.AccessIdle(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := l.statuses(); got["ok"] != 16 || len(got) != 1 {
				t.Fatalf("statuses %v: %s", got, l.events[0].Error)
			}
			after, err := srv.AccessIdle(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			served := after.Sub(before)
			var down, up uint64
			requests := int64(0)
			for i := range l.events {
				e := &l.events[i]
				if attr(e, "op") == "put" {
					up += e.Bytes
				} else {
					down += e.Bytes
				}
				requests++
				if attr(e, "parts") != "" {
					requests += 15 // of 16 ranges
				}
				if e.FirstByte <= 0 || e.FirstByte > e.Duration {
					t.Errorf("first byte after %s of %s", e.FirstByte, e.Duration)
				}
			}
			if all := served.Total("", "", 0); all.Requests != requests {
				t.Errorf("%d requests recorded, %d served: %v", requests, all.Requests, served)
			}
			if got := uint64(served.Total("", embedded.OpGetObject, 0).BytesOut); got != down {
				t.Errorf("%d bytes down recorded, %d served", down, got)
			}
			if got := uint64(served.Total("", embedded.OpPutObject, 0).BytesIn); got != up {
				t.Errorf("%d bytes up recorded, %d served", up, got)
			}
			if res.Bytes != down+up || res.Errors != 0 || res.Issued != 16 {
				t.Errorf("result %+v", res)
			}
			if want := uint64(16 * s.Size); res.Bytes != want {
				t.Errorf("%d bytes, want %d", res.Bytes, want)
			}
		})
	}
}

// What goes wrong has the right name, costs nothing but the request it hits,
// and leaves connections fit for the next.
func TestFaults(t *testing.T) {
	const size = 300_000
	for name, c := range map[string]struct {
		fault   func(*embedded.Faults)
		change  func(*schemas.S3)
		status  map[string]int
		retries string // of the first event
		http    string
	}{
		"truncated": {
			fault:  func(f *embedded.Faults) { f.TruncateNext(2, 1000) },
			status: map[string]int{"truncated": 2, "ok": 6},
		},
		"reset in the middle": {
			fault:  func(f *embedded.Faults) { f.ResetNext(2, 1000) },
			status: map[string]int{"reset": 2, "ok": 6},
		},
		"reset in the middle, retried": {
			fault:  func(f *embedded.Faults) { f.ResetNext(2, 1000) },
			change: func(s *schemas.S3) { s.Retries = 2 },
			status: map[string]int{"ok": 8}, retries: "2",
		},
		"closed without an answer": {
			fault:  func(f *embedded.Faults) { f.Add(embedded.Fault{Op: embedded.OpGetObject, Count: 1, Drop: true}) },
			status: map[string]int{"reset": 1, "ok": 7},
		},
		"corrupt": {
			fault:  func(f *embedded.Faults) { f.CorruptNext(2, size-1) },
			change: func(s *schemas.S3) { s.Verify = "checksum" },
			status: map[string]int{"corrupt": 2, "ok": 6},
		},
		"corrupt, in a range": {
			fault:  func(f *embedded.Faults) { f.CorruptNext(1, 5) },
			change: func(s *schemas.S3) { s.Verify, s.PartSize = "checksum", 64<<10 },
			status: map[string]int{"corrupt": 1, "ok": 7},
		},
		"corrupt, not looked at": {
			fault:  func(f *embedded.Faults) { f.CorruptNext(2, 5) },
			status: map[string]int{"ok": 8},
		},
		"throttled": {
			fault:  func(f *embedded.Faults) { f.FailNext(3, 503, "SlowDown") },
			status: map[string]int{"throttled": 3, "ok": 5}, http: "503",
		},
		"throttled, retried": {
			fault:  func(f *embedded.Faults) { f.FailNext(2, 503, "SlowDown") },
			change: func(s *schemas.S3) { s.Retries = 3 },
			status: map[string]int{"ok": 8}, retries: "2",
		},
		"server error on upload, retried": {
			fault:  func(f *embedded.Faults) { f.FailNext(1, 500, "InternalError") },
			change: func(s *schemas.S3) { s.Operation, s.Retries = "put", 1 },
			status: map[string]int{"ok": 8}, retries: "1",
		},
		"timeout": {
			fault: func(f *embedded.Faults) {
				f.Add(embedded.Fault{Op: embedded.OpGetObject, Count: 2, Latency: time.Minute})
			},
			change: func(s *schemas.S3) { s.Timeout = schemas.Duration(300 * time.Millisecond) },
			status: map[string]int{"timeout": 2, "ok": 6},
		},
	} {
		for _, copied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s copied=%t", name, copied), func(t *testing.T) {
				t.Parallel()
				srv, cfg := startServer(t)
				cfg.Copy = copied
				l := &log{}
				s := section(func(s *schemas.S3) {
					s.Size = size
					if c.change != nil {
						c.change(s)
					}
				})
				res, err := runWith(t, t.Context(), cfg, task(t, s, 1), l, func() { c.fault(srv.Faults()) })
				if err != nil {
					t.Fatal(err)
				}
				if got := l.statuses(); !maps.Equal(got, c.status) {
					t.Fatalf("statuses %v, want %v; first: %s", got, c.status, l.events[0].Error)
				}
				if want := uint64(8 - c.status["ok"]); res.Errors != want {
					t.Errorf("%d errors, want %d", res.Errors, want)
				}
				e := &l.events[0]
				if attr(e, "retries") != c.retries || attr(e, "http_status") != c.http {
					t.Errorf("attributes %v", e.Attrs)
				}
				for i := range l.events {
					if e := &l.events[i]; (e.Error == "") != (e.Status == "ok") {
						t.Errorf("%s with error %q", e.Status, e.Error)
					}
				}
			})
		}
	}
}

// The point of an open loop: when the store stalls, the requests that could not
// be sent count too.
func TestStallShowsInCorrectedLatency(t *testing.T) {
	srv, cfg := startServer(t)
	s := section(func(s *schemas.S3) { s.Loop, s.Rate, s.Requests, s.Size, s.Concurrency = "open", 400, 600, 1000, 4 })
	l := &log{seen: func(n int) {
		if n == 100 {
			srv.Faults().Stall(500 * time.Millisecond)
		}
	}}
	res, err := runWith(t, t.Context(), cfg, task(t, s, 1), l, nil)
	if err != nil || res.Errors != 0 || res.Issued != 600 {
		t.Fatal(res, err)
	}
	if p50 := quantile(durations(l, service), 0.5); p50 > 100*time.Millisecond {
		t.Errorf("service time p50 is %s", p50)
	}
	if p99 := quantile(durations(l, corrected), 0.99); p99 < 350*time.Millisecond {
		t.Errorf("corrected p99 is %s", p99)
	}
	// Four were under way; the others waited unsent.
	if p99 := quantile(durations(l, service), 0.98); p99 > 350*time.Millisecond {
		t.Errorf("service time p98 is %s", p99)
	}
}

func TestClosedLoopFollowsThePlan(t *testing.T) {
	_, cfg := startServer(t)
	s := section(func(s *schemas.S3) {
		s.Operation, s.PutShare, s.Pick, s.Objects, s.Size = "mixed", 0.3, "random", 3, 1000
		s.Wait, s.Distribution, s.Requests = schemas.Duration(5*time.Millisecond), "exponential", 20
	})
	tk := task(t, s, 2)
	tk.Clients[1].Index, tk.Clients[1].Site = 5, "dublin"
	began := time.Now()
	l, res := run(t, cfg, tk)
	if res.Issued != 40 {
		t.Fatal(res)
	}
	for _, client := range tk.Clients {
		q := plan.NewS3(tk.Seed, tk.Trial, client.Index, &s)
		free := time.Time{}
		n := 0
		for i := range l.events {
			e := &l.events[i]
			if attr(e, "client") != strconv.Itoa(client.Index) {
				continue
			}
			r, _ := q.Next()
			op := "get"
			if r.Put {
				op = "put"
			}
			want := []schemas.Attr{
				{Key: "bucket", Value: s.Buckets[r.Bucket]},
				{Key: "object", Value: s.Key(r.Object)},
				{Key: "op", Value: op},
				{Key: "size", Value: "1kB"},
				{Key: "client", Value: strconv.Itoa(client.Index)},
				{Key: "instance_type", Value: "t3.small"},
			}
			if !slices.Equal(e.Attrs[:len(want)], want) {
				t.Fatalf("request %d of client %d: %v, want %v", n, client.Index, e.Attrs, want)
			}
			if n > 0 {
				if e.Intended.Sub(free) != r.At {
					t.Errorf("request %d was due %s after the last one's end, want %s", n, e.Intended.Sub(free), r.At)
				}
			} else if e.Intended.Before(began.Round(0)) || attr(e, "conn") != "new" || attr(e, "connect_ns") == "" {
				t.Errorf("first request: %+v", e)
			}
			free = e.Intended.Add(e.Wait + e.Duration)
			if e.Site != client.Site || e.Agent != tk.Agent || e.Service != ServiceName || e.Kind != "request" || e.Trial != tk.Trial || e.Run != tk.Run {
				t.Errorf("identity of %+v", e)
			}
			n++
		}
		if n != s.Requests {
			t.Errorf("%d requests of client %d", n, client.Index)
		}
	}
}

func TestDurationEndsAClosedLoop(t *testing.T) {
	_, cfg := startServer(t)
	s := section(func(s *schemas.S3) {
		s.Requests, s.Size, s.Duration = 0, 1000, schemas.Duration(100*time.Millisecond)
		s.Wait, s.Distribution, s.Concurrency = schemas.Duration(time.Millisecond), "constant", 3
	})
	l, res := run(t, cfg, task(t, s, 2))
	if res.Issued == 0 || res.Errors != 0 {
		t.Fatal(res)
	}
	first, last := l.events[0].Intended, l.events[0].Intended
	for i := range l.events {
		at := l.events[i].Intended
		if at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	if span := last.Sub(first); span >= 100*time.Millisecond {
		t.Errorf("a request was due %s after the start", span)
	}
}

// An open loop that is cut off accounts for every arrival that had come due, in
// order, once.
func TestOpenLoopCutOff(t *testing.T) {
	srv, cfg := startServer(t)
	s := section(func(s *schemas.S3) { s.Loop, s.Rate, s.Requests, s.Size, s.Concurrency = "open", 300, 10_000, 1000, 3 })
	tk := task(t, s, 1)
	job, err := NewWorker(cfg, slog.New(slog.DiscardHandler)).Prepare(t.Context(), tk)
	if err != nil {
		t.Fatal(err)
	}
	defer job.Close()
	srv.Faults().Latency(time.Minute)
	start := time.Now().Add(20 * time.Millisecond).Round(0)
	const limit = 300 * time.Millisecond
	ctx, cancel := context.WithDeadlineCause(t.Context(), start.Add(limit), errors.New("time is over"))
	defer cancel()
	l := &log{}
	res, err := job.Run(ctx, agent.Start{At: start}, l.record, func(schemas.Progress) {})
	if err == nil || err.Error() != "time is over" {
		t.Fatal(err)
	}
	srv.Faults().Clear()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if int(res.Issued) != len(l.events) || res.Errors != res.Issued || l.statuses()["cancelled"] != len(l.events) {
		t.Fatalf("%+v, %d events, %v", res, len(l.events), l.statuses())
	}
	slices.SortFunc(l.events, func(a, b schemas.Event) int { return a.Intended.Compare(b.Intended) })
	q := plan.NewS3(tk.Seed, tk.Trial, 0, &s)
	unsent := 0
	for i := 0; ; i++ {
		r, _ := q.Next()
		if i == len(l.events) {
			if r.At < limit {
				t.Errorf("arrival %d at %s has no event", i, r.At)
			}
			break
		}
		e := &l.events[i]
		if at := e.Intended.Round(0).Sub(start); at != r.At {
			t.Fatalf("event %d is due at %s, the arrival at %s", i, at, r.At)
		}
		if e.Duration == 0 {
			unsent++
		}
	}
	if unsent != len(l.events)-3 {
		t.Errorf("%d of %d were not sent, all but 3 should not have been", unsent, len(l.events))
	}
}

func TestCancel(t *testing.T) {
	for name, change := range map[string]func(*schemas.S3){
		"reading":  func(s *schemas.S3) { s.Size = 2_000_000 },
		"ranges":   func(s *schemas.S3) { s.Size, s.PartSize = 2_000_000, 200_000 },
		"writing":  func(s *schemas.S3) { s.Size, s.Operation = 3_000_000, "put" },
		"thinking": func(s *schemas.S3) { s.Wait, s.Distribution = schemas.Duration(time.Hour), "constant" },
		"waiting":  func(s *schemas.S3) { s.Loop, s.Rate = "open", 1e-3 },
		"pausing": func(s *schemas.S3) {
			s.Retries, s.Buckets, s.Populate = 100, []string{"missing-bucket"}, "never"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, cfg := startServer(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			l := &log{seen: func(int) { cancel(errEnough) }}
			s := section(func(s *schemas.S3) { s.Requests, s.Concurrency = 1000, 4; change(s) })
			cut := make(chan time.Time, 1)
			context.AfterFunc(ctx, func() { cut <- time.Now() })
			_, err := runWith(t, ctx, cfg, task(t, s, 2), l, func() {
				switch name {
				case "reading", "ranges", "writing":
					srv.Faults().Bandwidth(20_000_000)
				case "pausing":
					srv.Faults().Add(embedded.Fault{Status: 503, Code: "SlowDown"})
					fallthrough
				case "waiting":
					// Nothing ends by itself here.
					time.AfterFunc(50*time.Millisecond, func() { cancel(errEnough) })
				}
			})
			if !errors.Is(err, errEnough) {
				t.Fatal(err)
			}
			if late := time.Since(<-cut); late > 5*time.Second {
				t.Errorf("ended %s after it was cancelled", late)
			}
			for status := range l.statuses() {
				if status != "ok" && status != "cancelled" {
					t.Errorf("statuses %v", l.statuses())
				}
			}
			srv.Faults().Clear()
		})
	}
}

var errEnough = errors.New("enough")

// An event that cannot be stored ends the task: figures with holes are none.
func TestRecorderFailure(t *testing.T) {
	_, cfg := startServer(t)
	job, err := NewWorker(cfg, slog.New(slog.DiscardHandler)).Prepare(t.Context(), task(t, section(func(s *schemas.S3) { s.Requests = 1_000_000 }), 2))
	if err != nil {
		t.Fatal(err)
	}
	defer job.Close()
	_, err = job.Run(t.Context(), agent.Start{At: time.Now()}, func(*schemas.Event) error { return errEnough }, func(schemas.Progress) {})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
}

func TestStoreThatDoesNotWork(t *testing.T) {
	srv, good := startServer(t)
	s3test.Open(t, srv, "bucket1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := "http://" + l.Addr().String()
	_ = l.Close()
	for name, c := range map[string]struct {
		config   func(*Config)
		change   func(*schemas.S3)
		prepare  string // what Prepare says when it may make what is missing
		requests string // what requests come to when it may not
	}{
		"wrong secret":   {func(c *Config) { c.SecretKey = "wrong" }, nil, "refuses the credentials", "denied"},
		"wrong key":      {func(c *Config) { c.AccessKey = "wrong" }, nil, "refuses the credentials", "denied"},
		"refused":        {func(c *Config) { c.Endpoint = refusing }, nil, "cannot be reached", "refused"},
		"missing bucket": {nil, func(s *schemas.S3) { s.Buckets = []string{"missing-bucket"} }, "", "no_bucket"},
		"missing object": {nil, func(s *schemas.S3) { s.Buckets = []string{"bucket1"} }, "", "no_object"},
		"no endpoint":    {func(c *Config) { c.Endpoint = "" }, nil, "--s3-endpoint", ""},
		"no keys":        {func(c *Config) { c.AccessKey, c.SecretKey = "", "" }, nil, EnvSecretKey, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			if c.config != nil {
				c.config(&cfg)
			}
			never := func(s *schemas.S3) {
				s.Populate = "never"
				if c.change != nil {
					c.change(s)
				}
			}
			if c.requests != "" {
				l, _ := run(t, cfg, task(t, section(never), 1))
				if got := l.statuses(); got[c.requests] != 8 {
					t.Errorf("statuses %v: %s", got, l.events[0].Error)
				}
			}
			job, err := NewWorker(cfg, slog.New(slog.DiscardHandler)).Prepare(t.Context(), task(t, section(c.change), 1))
			switch {
			case err == nil && c.prepare == "":
				_ = job.Close()
			case err == nil || c.prepare == "" || !strings.Contains(err.Error(), c.prepare):
				t.Errorf("prepare: %v, want %q", err, c.prepare)
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	_, cfg := startServer(t)
	for name, c := range map[string]struct {
		change func(*schemas.Task)
		want   string
	}{
		"no clients":  {func(t *schemas.Task) { t.Clients = nil }, "task.clients"},
		"no section":  {func(t *schemas.Task) { t.Section = []byte("[]") }, "section"},
		"bad section": {func(t *schemas.Task) { t.Section = []byte(`{"buckets":["b"],"loop":"round"}`) }, "s3.loop"},
		"too parallel": {func(t *schemas.Task) {
			t.Section = []byte(`{"buckets":["bucket1"],"requests":1,"concurrency":4096,"part_size_bytes":65536,"part_parallel":1024,"size_bytes":1000000}`)
		}, "s3.concurrency"},
		"large upload": {func(t *schemas.Task) {
			t.Section = []byte(`{"buckets":["bucket1"],"requests":1,"operation":"put","size_bytes":6000000000}`)
		}, "s3.size"},
		"many objects": {func(t *schemas.Task) { t.Section = manyObjects() }, "s3.objects"},
		"no such store": {func(t *schemas.Task) {
			t.Section = []byte(`{"buckets":["bucket1"],"requests":1,"target":{"profile":"no-such-profile"}}`)
		}, "no-such-profile"},
	} {
		t.Run(name, func(t *testing.T) {
			tk := task(t, section(nil), 1)
			c.change(tk)
			if _, err := NewWorker(cfg, slog.New(slog.DiscardHandler)).Prepare(t.Context(), tk); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func manyObjects() []byte {
	s := schemas.S3{Requests: 1, Objects: schemas.MaxS3Objects}
	for i := range 20 {
		s.Buckets = append(s.Buckets, fmt.Sprintf("bucket%d", i))
	}
	data, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return data
}

// What is there is left alone, what is missing or of another size is made, and
// only what the schedule will touch.
func TestPopulate(t *testing.T) {
	srv, cfg := startServer(t)
	store := s3test.Open(t, srv, "bucket1")
	s := section(func(s *schemas.S3) { s.Objects, s.Requests = 100, 6 })
	// Three objects of each bucket will be downloaded.
	for i, size := range []int64{int64(s.Size), 5} {
		if _, err := store.Put(t.Context(), "bucket1", s.Key(i), objectstore.NewContent(1, size), size, objectstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	before := srv.Access()
	l, _ := run(t, cfg, task(t, s, 1))
	if got := l.statuses(); got["ok"] != 6 {
		t.Fatal(got)
	}
	after, err := srv.AccessIdle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Sub(before).Total("", embedded.OpPutObject, 0).Requests; n != 5 {
		t.Errorf("%d objects made, want 5", n)
	}
	// Several agents at once, on a store without anything.
	srv2, cfg2 := startServer(t)
	var agents sync.WaitGroup
	for range 4 {
		agents.Go(func() {
			job, err := NewWorker(cfg2, slog.New(slog.DiscardHandler)).Prepare(t.Context(), task(t, s, 1))
			if err != nil {
				t.Error(err)
				return
			}
			_ = job.Close()
		})
	}
	agents.Wait()
	o, err := s3test.Open(t, srv2).Head(t.Context(), "bucket2", s.Key(2))
	if err != nil || o.Size != int64(s.Size) || o.Checksum == nil || *o.Checksum != objectstore.Checksum(contentSeed("bucket2", s.Key(2)), o.Size) {
		t.Errorf("%+v, %v", o, err)
	}
}

// An object whose content is not ours is checked against what the store says
// of it.
func TestForeignObjects(t *testing.T) {
	srv, cfg := startServer(t)
	store := s3test.Open(t, srv, "bucket1")
	s := section(func(s *schemas.S3) {
		s.Buckets, s.Populate, s.Verify, s.Objects, s.Requests = []string{"bucket1"}, "never", "checksum", 1, 2
	})
	content := objectstore.NewContent(99, int64(s.Size))
	if _, err := store.Put(t.Context(), "bucket1", s.Key(0), content, content.Size(), objectstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	l, _ := run(t, cfg, task(t, s, 1))
	if got := l.statuses(); got["ok"] != 2 {
		t.Errorf("%v: %s", got, l.events[0].Error)
	}
	// Under the same name we would have stored something else.
	s.Populate = "missing"
	l, _ = run(t, cfg, task(t, s, 1))
	if got := l.statuses(); got["corrupt"] != 2 {
		t.Errorf("%v", got)
	}
}

func TestTLS(t *testing.T) {
	donor := httptest.NewTLSServer(http.NotFoundHandler())
	defer donor.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: donor.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	_, cfg := startServer(t, func(o *embedded.Options) {
		o.TLS = &tls.Config{Certificates: donor.TLS.Certificates, MinVersion: tls.VersionTLS12}
	})
	never := section(func(s *schemas.S3) { s.Populate = "never" })
	l, _ := run(t, cfg, task(t, never, 1))
	if got := l.statuses(); got["tls"] != 8 {
		t.Fatalf("%v: %s", got, l.events[0].Error)
	}
	cfg.CAFile = ca
	for name, change := range map[string]func(*schemas.S3){
		"get":    nil,
		"ranges": func(s *schemas.S3) { s.PartSize, s.Verify, s.Size = 64<<10, "checksum", 500_000 },
		"put":    func(s *schemas.S3) { s.Operation, s.Size = "put", 3_000_000 },
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := run(t, cfg, task(t, section(change), 2))
			if got := l.statuses(); got["ok"] != 16 {
				t.Fatalf("%v: %s", got, l.events[0].Error)
			}
			if e := &l.events[0]; attr(e, "tls_ns") == "" || attr(e, "dns_ns") != "" {
				t.Errorf("attributes %v", e.Attrs)
			}
		})
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	srv, cfg := startServer(t)
	for _, change := range []func(*schemas.S3){
		nil,
		func(s *schemas.S3) { s.Loop, s.Rate = "open", 1000 },
		func(s *schemas.S3) { s.Size, s.PartSize = 1_000_000, 64<<10 },
		func(s *schemas.S3) { s.Wait, s.Distribution = schemas.Duration(time.Hour), "constant" },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		job, err := NewWorker(cfg, slog.New(slog.DiscardHandler)).Prepare(ctx, task(t, section(change), 3))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		l := &log{seen: func(int) {
			if n++; n == 2 {
				cancel()
			}
		}}
		_, _ = job.Run(ctx, agent.Start{At: time.Now()}, l.record, func(schemas.Progress) {})
		if err := job.Close(); err != nil {
			t.Error(err)
		}
		cancel()
	}
	if _, err := srv.AccessIdle(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Goroutines that were told to end may still be on their way.
	left := ""
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		if left = ours(); left == "" {
			return
		}
	}
	t.Error(left)
}

// ours are the stacks of goroutines of this package and its client, the tests'
// own left out.
func ours() string {
	buf := make([]byte, 1<<20)
	var out []string
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "/s3loader") && !strings.Contains(stack, "testing.tRunner") && !strings.Contains(stack, "testing.(*T)") {
			out = append(out, stack)
		}
	}
	return strings.Join(out, "\n\n")
}
