package clickhouse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

func inserters(t testing.TB, server *clickhouse.Server) map[string]*clickhouse.Inserter {
	t.Helper()
	all := map[string]*clickhouse.Inserter{}
	for name, dsn := range map[string]string{"http": server.LabDSN(), "native": withoutHTTP(server.LabDSN())} {
		in, err := clickhouse.NewInserter(dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = in.Close() })
		all[name] = in
	}
	return all
}

func numbers(t testing.TB, column string, values ...uint64) []byte {
	t.Helper()
	data := proto.ColUInt64(values)
	var b proto.Buffer
	if err := (proto.Block{Columns: 1, Rows: len(values)}).EncodeRawBlock(&b, 0, proto.Input{{Name: column, Data: data}}); err != nil {
		t.Fatal(err)
	}
	return b.Buf
}

func TestInsertStoresWhatWasEncoded(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	conn := chtest.Conn(t)
	const rows = 3000
	blocks := [][]byte{eventsBlock(t, rows, 0), append(eventsBlock(t, rows, rows), eventsBlock(t, rows, 2*rows)...)}
	var sums []uint64
	for name, in := range inserters(t, server) {
		table := "insert_" + name
		create(t, conn, table, eventsTable)
		if err := in.Insert(t.Context(), table, "a", blocks); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var n, parts, sum uint64
		if err := conn.QueryRow(t.Context(), "SELECT count(), sum(cityHash64(tuple(*))) FROM "+table).Scan(&n, &sum); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM system.parts WHERE table = ?", table).Scan(&parts); err != nil {
			t.Fatal(err)
		}
		if n != 3*rows || parts != 1 {
			t.Errorf("%s: %d rows in %d parts, want %d in 1", name, n, parts, 3*rows)
		}
		sums = append(sums, sum)
	}
	if sums[0] != sums[1] {
		t.Error("the two protocols stored different rows")
	}
}

func TestInsertTokenMakesRepeatingHarmless(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	conn := chtest.Conn(t)
	for name, in := range inserters(t, server) {
		table := "token_" + name
		create(t, conn, table, "(n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100")
		create(t, conn, table+"_sums", "(n UInt64) ENGINE = SummingMergeTree ORDER BY () SETTINGS non_replicated_deduplication_window = 100")
		run(t, conn, "CREATE MATERIALIZED VIEW "+table+"_view TO "+table+"_sums AS SELECT n FROM "+table)
		defer run(t, conn, "DROP VIEW "+table+"_view SYNC")
		block := numbers(t, "n", 1, 2, 3)
		for range 3 {
			if err := in.Insert(t.Context(), table, "same", [][]byte{block}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if n := count(t, conn, table); n != 3 {
			t.Errorf("%s: %d rows after the same token, want 3", name, n)
		}
		var sum uint64
		if err := conn.QueryRow(t.Context(), "SELECT sum(n) FROM "+table+"_sums").Scan(&sum); err != nil || sum != 6 {
			t.Errorf("%s: the view has %d, want 6 (%v)", name, sum, err)
		}
		// Same rows, other token: other events that look alike.
		if err := in.Insert(t.Context(), table, "other", [][]byte{block}); err != nil {
			t.Fatal(err)
		}
		if n := count(t, conn, table); n != 6 {
			t.Errorf("%s: %d rows after another token, want 6", name, n)
		}
	}
}

func TestInsertErrorsSayWhetherToRepeat(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	conn := chtest.Conn(t)
	create(t, conn, "errors", "(n UInt64) ENGINE = MergeTree ORDER BY n")
	create(t, conn, "errors_parts", "(n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS parts_to_throw_insert = 2, parts_to_delay_insert = 2, max_delay_to_insert = 1, min_delay_to_insert_ms = 1")
	run(t, conn, "SYSTEM STOP MERGES errors_parts")
	good := numbers(t, "n", 1)
	big := bytes.Repeat([]byte{0xff}, 20<<20)
	for name, in := range inserters(t, server) {
		for i := range 3 {
			if err := in.Insert(t.Context(), "errors_parts", fmt.Sprint(name, i), [][]byte{good}); err != nil && clickhouse.Code(err) != 252 {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, c := range []struct {
			what, table string
			blocks      [][]byte
			permanent   bool
		}{
			{"no table", "no_such_table", [][]byte{good}, true},
			{"no column", "errors", [][]byte{numbers(t, "x", 1)}, true},
			{"garbage", "errors", [][]byte{[]byte("\x01\x01\x01nsomething else")}, true},
			{"much garbage", "errors", [][]byte{big}, true},
			{"good, then much garbage", "errors", [][]byte{good, big}, true},
			{"cut", "errors", [][]byte{good[:len(good)-1]}, true},
			{"other columns in the second", "errors", [][]byte{good, numbers(t, "m", 1)}, true},
			{"table with a backquote", "a`b", [][]byte{good}, true},
			{"too many parts", "errors_parts", [][]byte{good}, false},
		} {
			err := in.Insert(t.Context(), c.table, "", c.blocks)
			if err == nil || clickhouse.IsPermanent(err) != c.permanent {
				t.Errorf("%s, %s: permanent %t: %v", name, c.what, clickhouse.IsPermanent(err), err)
			}
			if c.what == "too many parts" && clickhouse.Code(err) != 252 {
				t.Errorf("%s, %s: %v", name, c.what, err)
			}
		}
		if err := in.Insert(t.Context(), "errors", "", nil); err != nil {
			t.Errorf("%s: nothing to insert: %v", name, err)
		}
	}
	if n := count(t, conn, "errors"); n != 0 {
		t.Errorf("%d rows of refused inserts are stored", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, dsn := range []string{"clickhouse://lab:secret-word@127.0.0.1:1/d", "http://lab:secret-word@127.0.0.1:1/d"} {
		in, err := clickhouse.NewInserter(dsn)
		if err != nil {
			t.Fatal(err)
		}
		err = in.Insert(t.Context(), "t", "x", [][]byte{good})
		if err == nil || clickhouse.IsPermanent(err) || strings.Contains(err.Error(), "secret-word") {
			t.Errorf("refused connection: %v", err)
		}
		if err := in.Insert(ctx, "t", "x", [][]byte{good}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		_ = in.Close()
	}
}

func TestInsertsAtOnce(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	conn := chtest.Conn(t)
	for name, in := range inserters(t, server) {
		table := "at_once_" + name
		create(t, conn, table, "(n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 1000")
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for i := range 10 {
					n := uint64(worker*10 + i)
					if err := in.Insert(t.Context(), table, fmt.Sprint(n), [][]byte{numbers(t, "n", n)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		var n, distinct uint64
		if err := conn.QueryRow(t.Context(), "SELECT count(), uniqExact(n) FROM "+table).Scan(&n, &distinct); err != nil || n != 80 || distinct != 80 {
			t.Errorf("%s: %d rows, %d distinct, want 80 (%v)", name, n, distinct, err)
		}
	}
}

// A server that takes part of an insert and goes away, or answers with
// something else, must not look like success.
func TestInsertNeedsAnAnswer(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"closes":            "",
		"empty bad gateway": "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
		"redirect":          "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
		"half an answer":    "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"late exception":    "HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n__exception__\r\nCode: 241. DB::Exception: out. (MEMORY_LIMIT)",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, answer)
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}
		}()
		in, err := clickhouse.NewInserter("http://u:p@" + l.Addr().String() + "/d")
		if err != nil {
			t.Fatal(err)
		}
		err = in.Insert(t.Context(), "t", "token", [][]byte{numbers(t, "n", 1)})
		if err == nil || clickhouse.IsPermanent(err) {
			t.Errorf("%s: %v", name, err)
		}
		_ = l.Close()
	}
}

// The server's verdict must reach us though it stopped reading long before we
// had sent everything.
func TestInsertHearsAnEarlyRefusal(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-ClickHouse-Exception-Code", "16")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, "Code: 16. DB::Exception: No such column. (NO_SUCH_COLUMN_IN_TABLE)")
	}))
	defer server.Close()
	in, err := clickhouse.NewInserter("http://u:p@" + server.Listener.Addr().String() + "/d")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		err := in.Insert(ctx, "t", "", [][]byte{make([]byte, 32<<20)})
		cancel()
		if !clickhouse.IsPermanent(err) {
			t.Fatalf("error is %v", err)
		}
	}
}
