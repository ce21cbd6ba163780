package clickhouse_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

// hello is the native protocol's first packet.
func hello(user, password, database string) []byte {
	var b proto.Buffer
	proto.ClientHello{Name: "test", Major: 1, Minor: 1, ProtocolVersion: 54460, Database: database, User: user, Password: password}.Encode(&b)
	return b.Buf
}

// No client may end the engine, whatever it sends and however it leaves.
func TestEngineOutlivesItsClients(t *testing.T) {
	t.Parallel()
	var dir string
	server := chtest.StartOwn(t, func(o *clickhouse.Options) { dir = o.Dir })
	pid := server.PID()
	garbage := make([]byte, 4096)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range garbage {
		garbage[i] = byte(random.Uint32())
	}
	good := hello(clickhouse.LabUser, chtest.LabPassword, clickhouse.Database)
	for name, send := range map[string][]byte{
		"nothing":              nil,
		"wrong password":       hello(clickhouse.LabUser, "wrong", clickhouse.Database),
		"unknown user":         hello("nobody", "x", clickhouse.Database),
		"unknown database":     hello(clickhouse.LabUser, chtest.LabPassword, "nowhere"),
		"half a hello":         good[:len(good)/2],
		"hello":                good,
		"hello, then garbage":  append(bytes.Clone(good), garbage...),
		"garbage":              garbage,
		"a huge string":        {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"http":                 []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"http, bad length":     []byte("POST /?query=SELECT+1 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"),
		"http, half a chunk":   []byte("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nSELE"),
		"http, endless header": append([]byte("GET / HTTP/1.1\r\n"), bytes.Repeat([]byte("a: b\r\n"), 100_000)...),
	} {
		for _, addr := range []string{server.TCPAddr(), server.HTTPAddr()} {
			for _, reset := range []bool{false, true} {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatalf("%s, reset %t: the engine is gone: %v", name, reset, err)
				}
				_, _ = c.Write(send)
				if reset {
					_ = c.(*net.TCPConn).SetLinger(0)
				} else {
					// The answer, or the end, says that it was dealt with.
					_ = c.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, c)
				}
				_ = c.Close()
			}
		}
	}
	// Clients that vanish in the middle of a query.
	for _, query := range []string{
		"SELECT number FROM system.numbers",
		"SELECT sleepEachRow(0.01) FROM numbers(100) SETTINGS max_block_size = 1",
	} {
		for _, reset := range []bool{false, true} {
			relay := startRelay(t, server.TCPAddr())
			conn := open(t, "clickhouse://lab:"+chtest.LabPassword+"@"+relay.addr()+"/transferlab")
			rows, err := conn.Query(t.Context(), query)
			if err != nil {
				t.Fatal(err)
			}
			rows.Next()
			relay.cut(reset)
			for rows.Next() {
			}
			if rows.Err() == nil {
				t.Errorf("%s: ended without an error", query)
			}
			_ = rows.Close()
		}
	}
	conn := open(t, server.LabDSN())
	run(t, conn, "CREATE TABLE abused (n UInt64) ENGINE = MergeTree ORDER BY n")
	for _, reset := range []bool{false, true} {
		relay := startRelay(t, server.TCPAddr())
		cut := open(t, "clickhouse://lab:"+chtest.LabPassword+"@"+relay.addr()+"/transferlab")
		batch, err := cut.PrepareBatch(t.Context(), "INSERT INTO abused")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10_000 {
			if err := batch.Append(uint64(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := batch.Flush(); err != nil {
			t.Fatal(err)
		}
		relay.cut(reset)
		if err := batch.Send(); err == nil {
			t.Error("an insert over a cut connection was acknowledged")
		}
	}
	for _, dsn := range []string{server.LabDSN(), "http://lab:" + chtest.LabPassword + "@" + server.HTTPAddr() + "/transferlab"} {
		if err := open(t, dsn).Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if server.Restarts() != 0 || server.PID() != pid {
		t.Errorf("the engine was restarted %d times", server.Restarts())
	}
	log, err := os.ReadFile(filepath.Join(dir, "log", "engine.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "<Fatal>") {
			t.Errorf("the engine's log: %s", line)
		}
	}
}

// relay passes one connection on until it is cut on the server's side.
type relay struct {
	listener net.Listener
	mu       sync.Mutex
	server   []*net.TCPConn
}

func startRelay(t *testing.T, target string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := (&net.Dialer{}).DialContext(context.WithoutCancel(t.Context()), "tcp", target)
			if err != nil {
				_ = client.Close()
				return
			}
			r.mu.Lock()
			r.server = append(r.server, server.(*net.TCPConn))
			r.mu.Unlock()
			go func() {
				_, _ = io.Copy(server, client)
			}()
			go func() {
				_, _ = io.Copy(client, server)
				_ = client.Close()
			}()
		}
	}()
	return r
}

func (r *relay) addr() string { return r.listener.Addr().String() }

func (r *relay) cut(reset bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.server {
		if reset {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
	}
}
