package spool

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// later goes on after d by the clock of a synctest bubble, which runs ahead as
// soon as all in the bubble wait: nobody really does.
func later(d time.Duration) { <-time.After(d) }

// childEnv makes this binary a process that records clips in the directory it names
// until it is killed.
const childEnv = "SPOOL_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		record(dir)
	}
	os.Exit(m.Run())
}

// record tells on standard output what it has been promised.
func record(dir string) {
	s, err := Open(context.Background(), Options{Dir: dir, MinBytes: 1})
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	have := s.Stats()
	next := have.Records + int(have.Reported+have.Dropped)
	for i := next; ; i++ {
		id := fmt.Sprintf("clip-%d-%d", os.Getpid(), i)
		err := add(s, id, 20_000)
		if err == nil {
			fmt.Println("committed", id)
			err = s.Decide(id, Decision{Where: schemas.WhereCloud})
		}
		if err == nil && i%2 == 0 {
			fmt.Println("ending", id)
			err = errors.Join(s.Confirmed(time.Now(), done(id)), s.Reported(id))
		}
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
	}
}

func done(id string) schemas.ClipState {
	return schemas.ClipState{Clip: schemas.Clip{ID: id}, State: schemas.ClipDone}
}

func add(s *Spool, id string, n int) error {
	w, err := s.Create(Meta{ID: id, Type: schemas.TypeMPEG, Trigger: t0, Expect: int64(n)})
	if err != nil {
		return err
	}
	if _, err := w.Write(bytesOf(id, n)); err != nil {
		return errors.Join(err, w.Abort())
	}
	_, err = w.Commit(5*time.Second, t0, false)
	return err
}

func openDir(t testing.TB, o Options) *Spool {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestKilledProcess(t *testing.T) {
	dir := t.TempDir()
	committed, ending := map[string]bool{}, map[string]bool{}
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			what, id, _ := strings.Cut(lines.Text(), " ")
			switch what {
			case "committed":
				committed[id] = true
			case "ending":
				ending[id] = true
			default:
				t.Fatal(lines.Text())
			}
			if n == 5+round*3 {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
	}
	s := openDir(t, Options{Dir: dir, MinBytes: 1})
	for id := range committed {
		r, err := s.Get(id)
		if err != nil && ending[id] && errors.Is(err, ErrUnknown) || err == nil && r.State == Confirmed {
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		in, err := s.Clip(id)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err := errors.Join(err, in.Close()); err != nil || !bytes.Equal(data, bytesOf(id, 20_000)) {
			t.Errorf("%s: %d bytes, %v", id, len(data), err)
		}
	}
	if len(committed) < 30 {
		t.Errorf("only %d clips", len(committed))
	}
}

func TestLocked(t *testing.T) {
	s := openDir(t, Options{})
	if _, err := Open(t.Context(), Options{Dir: s.opts.Dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openDir(t, Options{Dir: s.opts.Dir})
}

func TestTakeAndRelease(t *testing.T) {
	s := openDir(t, Options{})
	ctx := t.Context()
	got := make(chan Record)
	go func() {
		r, err := s.Take(ctx, StepDecide, OldestFirst)
		if err != nil {
			t.Error(err)
		}
		got <- r
	}()
	for _, id := range []string{"a", "b", "c"} {
		if err := add(s, id, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(s, "a", 1000); !errors.Is(err, ErrExists) || !errors.Is(err, fs.ErrExist) {
		t.Errorf("the same again: %v", err)
	}
	if r := <-got; r.Clip.ID != "a" {
		t.Errorf("took %s", r.Clip.ID)
	}
	if r, err := s.Take(ctx, StepDecide, NewestFirst); err != nil || r.Clip.ID != "c" {
		t.Errorf("took %s, %v", r.Clip.ID, err)
	}
	for id, where := range map[string]string{"a": schemas.WhereEdge, "b": schemas.WhereCloud, "c": schemas.WhereEdge} {
		if err := s.Decide(id, Decision{Where: where}); err != nil {
			t.Fatal(err)
		}
		s.Release(id)
	}
	if err := s.Uploading("a", Upload{}); !errors.Is(err, ErrState) {
		t.Errorf("upload before the result: %v", err)
	}
	result := &schemas.Detections{Version: 1, Clip: "a", Status: schemas.StatusOK}
	if err := s.Detected("a", result, Stamps{Taken: t0}); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Result("a"); err != nil || d.Clip != "a" {
		t.Errorf("result: %+v, %v", d, err)
	}
	for step, want := range map[Step]string{StepArchive: "a", StepUpload: "b", StepDetect: "c"} {
		if r, err := s.Take(ctx, step, OldestFirst); err != nil || r.Clip.ID != want {
			t.Errorf("step %d: took %s, %v", step, r.Clip.ID, err)
		}
		s.Release(want)
	}
	// A result that is gone is made again.
	if err := os.Remove(filepath.Join(s.opts.Dir, "results", "a.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Result("a"); !errors.Is(err, ErrState) {
		t.Errorf("a lost result: %v", err)
	}
	if r, err := s.Get("a"); err != nil || r.State != Decided || r.Result != "" {
		t.Errorf("after that: %+v, %v", r, err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Take(ended, StepConfirm, OldestFirst); !errors.Is(err, context.Canceled) {
		t.Errorf("take without time: %v", err)
	}
	closed := make(chan error)
	go func() {
		_, err := s.Take(ctx, StepConfirm, OldestFirst)
		closed <- err
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-closed; !errors.Is(err, ErrClosed) {
		t.Errorf("take from a closed spool: %v", err)
	}
}

func TestFull(t *testing.T) {
	for _, policy := range []string{PolicyRefuse, PolicyDrop} {
		t.Run(policy, func(t *testing.T) {
			s := openDir(t, Options{MaxBytes: 1 << 20, Policy: policy})
			for i := range 10 {
				if err := add(s, fmt.Sprint(i), 100_000); err != nil {
					t.Fatal(err)
				}
			}
			if r, err := s.Take(t.Context(), StepDecide, OldestFirst); err != nil || r.Clip.ID != "0" {
				t.Fatal(err)
			}
			err := add(s, "x", 100_000)
			st := s.Stats()
			if policy == PolicyRefuse {
				if !errors.Is(err, ErrFull) || st.Refused != 1 || st.Clips[Spooled] != 10 {
					t.Errorf("%v, %+v", err, st)
				}
				return
			}
			// Not 0, which someone works on.
			r, getErr := s.Get("1")
			if err != nil || getErr != nil || r.State != Expired || r.Status != schemas.StatusExpired || st.Clips[Spooled] != 10 || st.Expired != 1 || st.Bytes > 1<<20 {
				t.Errorf("%v, %v, %+v, %+v", err, getErr, r, st)
			}
			if r, err := s.Take(t.Context(), StepReport, OldestFirst); err != nil || r.Clip.ID != "1" {
				t.Errorf("to report: %+v, %v", r, err)
			}
		})
	}
}

func TestManyRecords(t *testing.T) {
	s := openDir(t, Options{MaxClips: 4, Policy: PolicyDrop})
	for i := range 10 {
		if err := add(s, fmt.Sprint(i), 1000); err != nil {
			t.Fatal(err)
		}
	}
	if st := s.Stats(); st.Records != 4 || st.Forgotten != 6 || st.Expired != 6 {
		t.Errorf("%+v", st)
	}
	for _, id := range []string{"6", "7", "8", "9"} {
		if r, err := s.Get(id); err != nil || r.State != Spooled {
			t.Errorf("%s: %+v, %v", id, r, err)
		}
	}
}

func TestOldClips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDisk()
		s, err := open(t.Context(), Options{MaxAge: time.Hour, MinBytes: 1}, d, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"a", "b"} {
			if err := add(s, id, 1000); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Stored("b", schemas.ClipState{State: schemas.ClipQueued}, time.Now()); err != nil {
			t.Fatal(err)
		}
		later(time.Hour + 2*time.Minute)
		synctest.Wait()
		a, err := s.Get("a")
		b, errB := s.Get("b")
		if err != nil || errB != nil || a.State != Expired || b.State != Stored {
			t.Errorf("a is %s, b is %s: %v", a.State, b.State, errors.Join(err, errB))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The disk, not the bound, is full: what is there is kept, and the way out of it, which
// needs lines in the journal, stays open.
func TestDiskFull(t *testing.T) {
	d := newMemDisk()
	d.room = 300_000
	s, err := open(t.Context(), Options{Dir: "memory", MinBytes: 1}, d, 16<<10)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; err == nil; n++ {
		err = add(s, fmt.Sprintf("c-%d", n), 20_000)
	}
	if !errors.Is(err, ErrFull) || n < 10 {
		t.Fatalf("after %d clips: %v", n, err)
	}
	// Filled to the last byte, by others too.
	d.mu.Lock()
	var used int64
	for _, f := range d.names {
		used += int64(len(f.data))
	}
	d.names["other"] = &memData{data: make([]byte, max(0, d.room-used))}
	d.mu.Unlock()
	if err := s.Decide("c-0", Decision{Where: schemas.WhereCloud}); err != nil {
		t.Errorf("decide on a full disk: %v", err)
	}
	if err := s.Confirmed(t0, done("c-0")); err != nil {
		t.Fatalf("confirm on a full disk: %v", err)
	}
	if err := add(s, "y", 10_000); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A recorder, a decider, uploaders and the rest, all at once, with the journal
// written anew all the time.
func TestConcurrently(t *testing.T) {
	s := openDir(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const clips = 60
	var wait sync.WaitGroup
	stage := func(step Step, do func(id string) error) {
		wait.Go(func() {
			for {
				r, err := s.Take(ctx, step, OldestFirst)
				if err != nil {
					return
				}
				if err := do(r.Clip.ID); err != nil {
					t.Error(err)
				}
				s.Release(r.Clip.ID)
				if err := s.compact(); err != nil && !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
				if s.Stats().Reported == clips {
					cancel()
				}
			}
		})
	}
	stage(StepDecide, func(id string) error { return s.Decide(id, Decision{Where: schemas.WhereCloud}) })
	for range 2 {
		stage(StepUpload, func(id string) error {
			return s.Stored(id, schemas.ClipState{State: schemas.ClipQueued}, time.Now())
		})
	}
	stage(StepConfirm, func(id string) error { return s.Confirmed(time.Now(), done(id)) })
	stage(StepReport, s.Reported)
	for i := range clips {
		if err := add(s, fmt.Sprint(i), 5000); err != nil {
			t.Fatal(err)
		}
	}
	wait.Wait()
	if st := s.Stats(); st.Records != 0 || st.Reported != clips || st.Bytes != 0 {
		t.Errorf("%+v", st)
	}
}

// A week without a link: 100 000 clips cost no more memory than their entries.
func TestBacklogMemory(t *testing.T) {
	d := newMemDisk()
	s := openMem(t, d, Options{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const clips = 100_000
	for i := range clips {
		s.put(fmt.Sprintf("clip-of-some-edge-%d", i), uint64(i+1), Decided, schemas.WhereCloud, 10_500_000, t0, int64(i)*800, 800)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / clips
	t.Logf("%d bytes a clip", each)
	if each > 200 {
		t.Errorf("%d bytes a clip", each)
	}
	runtime.KeepAlive(s)
}

func TestOptions(t *testing.T) {
	_, err := Open(t.Context(), Options{MaxBytes: 1, MaxClips: -1, MaxAge: 1, Policy: "x", MinBytes: -1})
	for _, want := range []string{"spool.dir", "spool.max_bytes", "spool.max_clips", "spool.max_age", "spool.policy", "spool.min_bytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell of %s", err, want)
		}
	}
}

func FuzzJournal(f *testing.F) {
	d := newMemDisk()
	s, err := open(f.Context(), Options{Dir: "memory", MinBytes: 1}, d, 0)
	if err != nil {
		f.Fatal(err)
	}
	if err := work(s, book{}); err != nil {
		f.Fatal(err)
	}
	f.Add(d.names[journalName].data, true)
	f.Add([]byte(`{"record":{"clip":{"id":"a","size_bytes":1},"seq":1,"state":"spooled"}}`), false)
	f.Add([]byte(`{"record":{"clip":{"id":"../a"},"seq":18446744073709551615,"state":"stored"}}`), false)
	f.Add([]byte(`{"tally":{"refused":1},"next":5}`), false)
	f.Fuzz(func(t *testing.T, data []byte, raw bool) {
		if !raw {
			// Past the checksum.
			var out []byte
			for _, l := range bytes.Split(data, []byte("\n")) {
				out = append(out, fmt.Sprintf("%x %s\n", sum(l), l)...)
			}
			data = out
		}
		d := newMemDisk()
		d.names[journalName] = &memData{data: data}
		d.names[dirClips+"/e.1763812800000000000.ts"] = &memData{data: []byte("e")}
		s, err := open(t.Context(), Options{Dir: "memory", MinBytes: 1}, d, 0)
		if err != nil {
			return
		}
		for step := range steps {
			if _, err := s.List(step, OldestFirst, 100); err != nil {
				t.Fatal(err)
			}
		}
		_ = s.compact()
		_ = s.Close()
		for name := range d.names {
			if strings.Contains(name, "..") {
				t.Fatal(name)
			}
		}
	})
}
