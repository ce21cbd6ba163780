// Package chtest gives tests the real ClickHouse engine in two lines:
//
//	func TestMain(m *testing.M) { chtest.Main(m) }
//
//	func TestX(t *testing.T) { conn := chtest.Conn(t) … }
//
// All tests of a package share one engine, started at first use in a temporary
// directory. The engine's library comes from the user's cache and is fetched if
// it is not there; where that is impossible the tests fail.
package chtest

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
)

// Passwords of the engines started here; DSNs contain them.
const (
	LabPassword    = "lab-password"
	ReaderPassword = "reader-password"
)

// fetchTimeout bounds the first run on a machine: 178 MB over a slow line.
const fetchTimeout = 15 * time.Minute

type engine struct {
	once   sync.Once
	dir    string
	server *clickhouse.Server
	err    error
}

// shared is the package's one engine: a test binary is one process, and
// TestMain, which has to end it, can hand nothing to the tests.
var shared engine

// Main is a TestMain: it runs the engine where this process is the engine's
// host, else the tests, and ends the shared engine after them. It does not
// return.
func Main(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == clickhouse.HostCommand {
		os.Exit(clickhouse.RunHost(os.Args[2:]))
	}
	code := m.Run()
	shared.close()
	os.Exit(code)
}

// close ends the engine the quick way: its data goes with it.
func (e *engine) close() {
	if e.server != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = e.server.Close(ctx)
	}
	if e.dir != "" {
		_ = os.RemoveAll(e.dir)
	}
}

// Start returns the engine that all tests of the package share.
func Start(t testing.TB) *clickhouse.Server {
	t.Helper()
	shared.once.Do(func() {
		library, err := library()
		if err != nil {
			shared.err = err
			return
		}
		if shared.dir, shared.err = os.MkdirTemp("", "chtest-"); shared.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shared.server, shared.err = clickhouse.Start(ctx, Options(shared.dir, library))
	})
	if shared.err != nil {
		t.Fatalf("the ClickHouse engine for tests: %v", shared.err)
	}
	return shared.server
}

// StartOwn starts an engine for this test only, with options changed by edit
// (which may be nil), and ends it with the test.
func StartOwn(t testing.TB, edit func(*clickhouse.Options)) *clickhouse.Server {
	t.Helper()
	opt := Options(t.TempDir(), Library(t))
	if edit != nil {
		edit(&opt)
	}
	server, err := clickhouse.Start(t.Context(), opt)
	if err != nil {
		t.Fatalf("start ClickHouse: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = server.Close(ctx)
	})
	return server
}

// Library returns the path of the engine's library, fetching it if needed.
func Library(t testing.TB) string {
	t.Helper()
	path, err := library()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func library() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	return clickhouse.EnsureLibrary(ctx, clickhouse.FetchOptions{
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

// Options are those of a test engine on dir: any free ports, known passwords,
// a memory cap that leaves room for tests of other packages.
func Options(dir, library string) clickhouse.Options {
	return clickhouse.Options{
		Dir:         dir,
		Library:     library,
		Credentials: clickhouse.Credentials{Lab: LabPassword, Reader: ReaderPassword},
		MemoryLimit: 4 << 30,
	}
}

// Conn opens a connection of the read-write user to the shared engine and
// closes it with the test. Its database exists and is shared by all tests of
// the package.
func Conn(t testing.TB) driver.Conn {
	t.Helper()
	return open(t, Start(t).LabDSN())
}

// ReaderConn is Conn for the read-only user.
func ReaderConn(t testing.TB) driver.Conn {
	t.Helper()
	return open(t, Start(t).ReaderDSN())
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
