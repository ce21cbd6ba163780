package clickhouse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

func TestStartServesBothProtocolsAndStops(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	server := chtest.StartOwn(t, func(o *clickhouse.Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	for _, dsn := range []string{
		server.LabDSN(),
		"http://lab:" + chtest.LabPassword + "@" + server.HTTPAddr() + "/transferlab",
	} {
		conn, err := clickhouse.Open(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		var user, database, version string
		if err := conn.QueryRow(t.Context(), "SELECT currentUser(), currentDatabase(), version()").Scan(&user, &database, &version); err != nil {
			t.Fatal(err)
		}
		if user != clickhouse.LabUser || database != clickhouse.Database || version != server.Version() {
			t.Errorf("%s: user %q, database %q, version %q, server says %q", clickhouse.Redact(dsn), user, database, version, server.Version())
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	pid := server.PID()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := server.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("wait: %v", err)
	}
	if err := server.Close(ctx); err != nil {
		t.Errorf("close again: %v", err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the engine's process is still there: %v", err)
	}
	if c, err := net.Dial("tcp", server.TCPAddr()); err == nil {
		_ = c.Close()
		t.Error("the native port is still open")
	}
	for _, secret := range []string{chtest.LabPassword, chtest.ReaderPassword} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log contains a password: %s", log.String())
		}
	}
}

func TestDataSurvivesRestartOfTheLab(t *testing.T) {
	t.Parallel()
	opt := chtest.Options(t.TempDir(), chtest.Library(t))
	for round := range 2 {
		server, err := clickhouse.Start(t.Context(), opt)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := clickhouse.Open(t.Context(), server.LabDSN())
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			run(t, conn, "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")
			run(t, conn, "INSERT INTO kept SELECT number FROM numbers(1000)")
		} else if n := count(t, conn, "kept"); n != 1000 {
			t.Errorf("%d rows after the restart, want 1000", n)
		}
		_ = conn.Close()
		if err := server.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecretsStayInPrivateFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	credentials, err := clickhouse.LoadOrCreateCredentials(t.Context(), filepath.Join(dir, "ch"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := clickhouse.LoadOrCreateCredentials(t.Context(), filepath.Join(dir, "ch"))
	if err != nil || again != credentials {
		t.Errorf("second start: %v, passwords differ: %t", err, again != credentials)
	}
	if len(credentials.Lab) < 20 || len(credentials.Reader) < 20 || credentials.Lab == credentials.Reader {
		t.Error("passwords are too weak")
	}
	if s := fmt.Sprintf("%v %+v %#v", credentials, credentials, credentials); strings.Contains(s, credentials.Lab) {
		t.Errorf("printed: %s", s)
	}
	server := chtest.StartOwn(t, func(o *clickhouse.Options) {
		o.Dir, o.Credentials = filepath.Join(dir, "ch"), credentials
	})
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return nil // the engine removes temporary files under our feet
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		if info.Mode().Perm()&0o077 != 0 && entry.Type() != fs.ModeSymlink {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if entry.Type().IsRegular() && entry.Name() != "credentials.json" {
			content, err := os.ReadFile(path)
			if err == nil && (bytes.Contains(content, []byte(credentials.Lab)) || bytes.Contains(content, []byte(credentials.Reader))) {
				t.Errorf("%s contains a password", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cmdline", "environ"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", server.PID(), name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, []byte(credentials.Lab)) {
			t.Errorf("%s contains a password", name)
		}
		if name == "environ" && bytes.Contains(content, []byte("PWD=")) {
			t.Errorf("the engine has got the whole environment: %q", content)
		}
	}
}

func TestSecondEngineOnADirectoryIsRefused(t *testing.T) {
	t.Parallel()
	opt := chtest.Options(t.TempDir(), chtest.Library(t))
	first := chtest.StartOwn(t, func(o *clickhouse.Options) { o.Dir = opt.Dir })
	_, err := clickhouse.Start(t.Context(), opt)
	if !errors.Is(err, clickhouse.ErrDirLocked) || !strings.Contains(err.Error(), opt.Dir) {
		t.Errorf("error is %v", err)
	}
	// The first one must not have noticed.
	conn, err := clickhouse.Open(t.Context(), first.LabDSN())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if first.Restarts() != 0 {
		t.Error("the first engine was restarted")
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := taken.Addr().(*net.TCPAddr).Port
	for protocol, edit := range map[string]func(*clickhouse.Options){
		"native": func(o *clickhouse.Options) { o.TCPPort = port },
		"http":   func(o *clickhouse.Options) { o.HTTPPort = port },
	} {
		opt := chtest.Options(t.TempDir(), chtest.Library(t))
		edit(&opt)
		_, err := clickhouse.Start(t.Context(), opt)
		var port *clickhouse.PortTakenError
		if !errors.As(err, &port) || port.Protocol != protocol || port.Port != taken.Addr().(*net.TCPAddr).Port {
			t.Errorf("%s: error is %v", protocol, err)
		}
	}
}

func TestHostSaysWhoCanReachIt(t *testing.T) {
	t.Parallel()
	for host, reachable := range map[string]bool{"": false, "0.0.0.0": true} {
		server := chtest.StartOwn(t, func(o *clickhouse.Options) { o.Host = host })
		for _, addr := range []string{server.TCPAddr(), server.HTTPAddr()} {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			// Another address of this machine stands for another machine.
			c, err := net.Dial("tcp", "127.0.0.2:"+port)
			if (err == nil) != reachable {
				t.Errorf("host %q: %v", host, err)
			}
			if err == nil {
				_ = c.Close()
			}
		}
		if reachable {
			_, port, _ := net.SplitHostPort(server.HTTPAddr())
			if status, body := post(t, "http://127.0.0.2:"+port, "", "", "SELECT 1"); status == 200 {
				t.Errorf("host %q: anybody may ask: %s", host, body)
			}
			if status, body := post(t, "http://127.0.0.2:"+port, clickhouse.LabUser, chtest.LabPassword, "SELECT 1"); status != 200 {
				t.Errorf("host %q: lab may not ask: %s", host, body)
			}
		}
		if err := open(t, server.LabDSN()).Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestBadOptionsAreAllReported(t *testing.T) {
	t.Parallel()
	_, err := clickhouse.Start(t.Context(), clickhouse.Options{Host: "localhost", TCPPort: 70000, HTTPPort: -1, MemoryLimit: 5})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"directory", "library", "70000", "-1", "localhost", "memory limit", "user lab", "user reader"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %q: %v", want, err)
		}
	}
}

func TestUnusableLibraryShowsWhatWasSaid(t *testing.T) {
	t.Parallel()
	library := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(library, []byte("not a library"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := clickhouse.Start(t.Context(), chtest.Options(t.TempDir(), library))
	if err == nil || !strings.Contains(err.Error(), "load the engine") {
		t.Errorf("error is %v", err)
	}
}

func TestEngineDiesWithItsOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	library := chtest.Library(t)
	for range 2 { // the second run proves that nothing holds the directory
		owner := startOwner(t, dir, library)
		pid := owner.enginePID
		if err := owner.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = owner.cmd.Wait()
		waitGone(t, pid)
	}
}

func TestKilledEngineComesBackOnItsPorts(t *testing.T) {
	t.Parallel()
	server := chtest.StartOwn(t, nil)
	conn, err := clickhouse.Open(t.Context(), server.LabDSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	run(t, conn, "CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n")
	run(t, conn, "INSERT INTO t SELECT number FROM numbers(10)")
	addr, pid := server.TCPAddr(), server.PID()
	kill(t, pid)
	waitRestart(t, server, 1)
	if server.TCPAddr() != addr || server.PID() == pid {
		t.Errorf("was %s pid %d, is %s pid %d", addr, pid, server.TCPAddr(), server.PID())
	}
	again, err := clickhouse.Open(t.Context(), server.LabDSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if n := count(t, again, "t"); n != 10 {
		t.Errorf("%d rows, want 10", n)
	}
}

func TestEngineThatKeepsDyingIsGivenUp(t *testing.T) {
	t.Parallel()
	server := chtest.StartOwn(t, func(o *clickhouse.Options) { o.MaxRestarts = 1 })
	kill(t, server.PID())
	waitRestart(t, server, 1)
	kill(t, server.PID())
	select {
	case <-server.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("still trying")
	}
	if err := server.Wait(); err == nil || !strings.Contains(err.Error(), "2 times") || !strings.Contains(err.Error(), "killed") {
		t.Errorf("error is %v", err)
	}
}

func TestCloseDuringRestart(t *testing.T) {
	t.Parallel()
	server := chtest.StartOwn(t, nil)
	kill(t, server.PID())
	waitGone(t, server.PID())
	if err := server.Close(t.Context()); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestNothingAcknowledgedIsLostByKill(t *testing.T) {
	t.Parallel()
	for name, dsn := range map[string]func(*clickhouse.Server) string{
		"http":   (*clickhouse.Server).LabDSN,
		"native": func(s *clickhouse.Server) string { return withoutHTTP(s.LabDSN()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			insertUnderKills(t, dsn)
		})
	}
}

func insertUnderKills(t *testing.T, dsn func(*clickhouse.Server) string) {
	const (
		rounds   = 3
		perRound = 25
		rows     = 2000
	)
	server := chtest.StartOwn(t, func(o *clickhouse.Options) { o.MaxRestarts = 2 * rounds })
	conn := open(t, server.LabDSN())
	run(t, conn, "CREATE TABLE events "+eventsTable)
	in, err := clickhouse.NewInserter(dsn(server))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	batch, repeated := 0, 0
	for round := range rounds {
		killed := make(chan struct{})
		for i := range perRound {
			if i == perRound/2 {
				go func() {
					defer close(killed)
					kill(t, server.PID())
				}()
			}
			block := eventsBlock(t, rows, uint64(batch*rows))
			for {
				err := in.Insert(t.Context(), "events", fmt.Sprint("batch-", batch), [][]byte{block})
				if err == nil {
					break
				}
				if clickhouse.IsPermanent(err) {
					t.Fatalf("batch %d: %v", batch, err)
				}
				repeated++
				_ = open(t, server.LabDSN()) // waits until it answers
			}
			batch++
		}
		<-killed
		waitRestart(t, server, round+1)
	}
	conn = open(t, server.LabDSN())
	var total, distinct, last uint64
	if err := conn.QueryRow(t.Context(), "SELECT count(), uniqExact(seq), max(seq) + 1 FROM events").Scan(&total, &distinct, &last); err != nil {
		t.Fatal(err)
	}
	if want := uint64(batch * rows); total != want || distinct != want || last != want {
		t.Errorf("%d rows, %d distinct, last %d: want %d of each", total, distinct, last, want)
	}
	t.Logf("%d batches acknowledged over %d kills, %d inserts repeated", batch, rounds, repeated)
}

func open(t testing.TB, dsn string) driver.Conn {
	t.Helper()
	conn, err := clickhouse.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func run(t testing.TB, conn driver.Conn, query string, args ...any) {
	t.Helper()
	if err := conn.Exec(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// create creates a table in the engine that tests share, for this test only.
func create(t testing.TB, conn driver.Conn, table, definition string) {
	t.Helper()
	run(t, conn, "CREATE TABLE "+table+" "+definition)
	t.Cleanup(func() {
		if err := conn.Exec(context.Background(), "DROP TABLE "+table+" SYNC"); err != nil {
			t.Error(err)
		}
	})
}

func count(t testing.TB, conn driver.Conn, table string) uint64 {
	t.Helper()
	var n uint64
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

type owner struct {
	cmd       *exec.Cmd
	enginePID int
}

func startOwner(t *testing.T, dir, library string) owner {
	t.Helper()
	cmd := exec.Command(os.Args[0], library)
	cmd.Env = append(os.Environ(), ownerEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var (
		pid  int
		addr string
	)
	if _, err := fmt.Fscanln(out, &pid, &addr); err != nil {
		t.Fatalf("the owner did not start its engine: %v", err)
	}
	return owner{cmd: cmd, enginePID: pid}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill %d: %v", pid, err)
	}
}

// waitGone returns when there is no such process.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("process %d is still there", pid)
		}
	}
}

// waitRestart returns when the server has been restarted at least n times.
func waitRestart(t *testing.T, server *clickhouse.Server, n int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(30 * time.Second)
	for server.Restarts() < n {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("no restart, %d so far", server.Restarts())
		case <-server.Done():
			t.Fatalf("the server gave up: %v", server.Wait())
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
