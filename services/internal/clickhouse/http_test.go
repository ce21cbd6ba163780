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
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

func parse(t testing.TB, dsn string) clickhouse.DSN {
	t.Helper()
	d, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestQueryPassesTheAnswerOn(t *testing.T) {
	t.Parallel()
	d := parse(t, chtest.Start(t).LabDSN())
	for _, c := range []struct {
		query    string
		settings map[string]string
		want     string
	}{
		{query: "SELECT 1, 'a\tb' FORMAT TSV", want: "1\ta\\tb\n"},
		{query: "SELECT currentDatabase(), currentUser() FORMAT CSV", want: "\"transferlab\",\"lab\"\n"},
		{query: "SELECT {n:UInt64} + 1", settings: map[string]string{"param_n": "41"}, want: "42\n"},
		{query: "SELECT number FROM numbers(3)", settings: map[string]string{"default_format": "JSONEachRow"}, want: "{\"number\":0}\n{\"number\":1}\n{\"number\":2}\n"},
		{query: "SELECT '\r\n__exception__\r\naaaaaaaaaaaaaaaa\r\nCode: 1. x' FORMAT RawBLOB", want: "\r\n__exception__\r\naaaaaaaaaaaaaaaa\r\nCode: 1. x"},
		{query: "SELECT 1 WHERE 0", want: ""},
	} {
		var out bytes.Buffer
		if err := d.Query(t.Context(), c.query, c.settings, nil, &out); err != nil || out.String() != c.want {
			t.Errorf("%s: %q, %v", c.query, out.String(), err)
		}
	}
	// A long answer, whole.
	hash := &lineCounter{}
	if err := d.Query(t.Context(), "SELECT number FROM numbers(3000000) FORMAT TSV", nil, nil, hash); err != nil || hash.lines != 3_000_000 {
		t.Errorf("%d lines, %v", hash.lines, err)
	}
}

type lineCounter struct{ lines int }

func (c *lineCounter) Write(p []byte) (int, error) {
	c.lines += bytes.Count(p, []byte("\n"))
	return len(p), nil
}

func TestQuerySendsABody(t *testing.T) {
	t.Parallel()
	d := parse(t, chtest.Start(t).LabDSN())
	var out bytes.Buffer
	create(t, chtest.Conn(t), "http_body", "(a UInt32, b String) ENGINE = MergeTree ORDER BY a")
	if err := d.Query(t.Context(), "INSERT INTO http_body FORMAT CSV", nil, strings.NewReader("1,x\n2,y\n"), io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := d.Query(t.Context(), "SELECT sum(a), max(b) FROM http_body", nil, nil, &out); err != nil || out.String() != "3\ty\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestQueryErrors(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	d := parse(t, server.LabDSN())
	for _, c := range []struct {
		query     string
		code      int
		name      string
		permanent bool
	}{
		{"SELECT nothing", 47, "UNKNOWN_IDENTIFIER", true},
		{"SELEC 1", 62, "SYNTAX_ERROR", true},
		{"SELECT * FROM no_such_table", 60, "UNKNOWN_TABLE", true},
		{"SELECT sleep(3) SETTINGS max_execution_time = 0.1", 159, "TIMEOUT_EXCEEDED", false},
		{"SELECT groupArray(number) FROM numbers(1000000000) SETTINGS max_memory_usage = 10000000", 241, "MEMORY_LIMIT_EXCEEDED", false},
	} {
		err := d.Query(t.Context(), c.query, nil, nil, io.Discard)
		var server *clickhouse.ServerError
		if !errors.As(err, &server) || server.Code != c.code || server.Name != c.name || clickhouse.IsPermanent(err) != c.permanent || clickhouse.Code(err) != c.code {
			t.Errorf("%s: %#v", c.query, err)
		}
		if err != nil && (strings.Contains(err.Error(), "version 2") || strings.Contains(err.Error(), "DB::Exception: DB::")) {
			t.Errorf("noise in the message: %v", err)
		}
	}
	err := clickhouse.HTTPQuery(t.Context(), "http://"+server.HTTPAddr(), "lab", "wrong-one", "SELECT 1", nil, nil, io.Discard)
	if clickhouse.Code(err) != 516 || strings.Contains(err.Error(), "wrong-one") {
		t.Errorf("wrong password: %v", err)
	}
	if err := clickhouse.HTTPQuery(t.Context(), "http://127.0.0.1:1", "lab", "secret-word", "SELECT 1", nil, nil, io.Discard); err == nil || clickhouse.IsPermanent(err) || strings.Contains(err.Error(), "secret-word") {
		t.Errorf("refused connection: %v", err)
	}
}

func TestLateFailureIsAnErrorAndNotData(t *testing.T) {
	t.Parallel()
	d := parse(t, chtest.Start(t).LabDSN())
	for _, format := range []string{"TSV", "JSONEachRow", "JSON", "Native", "CSV", "Parquet", "XML"} {
		var out bytes.Buffer
		query := "SELECT number, throwIf(number = 500000, 'too late') AS x FROM numbers(1000000) FORMAT " + format + " SETTINGS max_block_size = 1000, output_format_parallel_formatting = 0, output_format_parquet_row_group_size = 1000"
		err := d.Query(t.Context(), query, nil, nil, &out)
		if clickhouse.Code(err) != 395 || !strings.Contains(err.Error(), "too late") {
			t.Errorf("%s: %v", format, err)
		}
		if bytes.Contains(out.Bytes(), []byte("exception")) || bytes.Contains(out.Bytes(), []byte("too late")) {
			t.Errorf("%s: the answer has the error in it", format)
		}
		if out.Len() == 0 {
			t.Errorf("%s: the error did not come late", format)
		}
	}
}

// The block may arrive cut anywhere.
func TestLateFailureInPieces(t *testing.T) {
	t.Parallel()
	const (
		tag  = "abcdefghijklmnop"
		data = "1\n2\n\r\n__exception__\r\nnot the tag\r\n3\r\n__exc"
		text = "Code: 395. DB::Exception: too late. (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO) (version 26.7.2.1)"
	)
	whole := data + "\r\n__exception__\r\n" + tag + "\r\n" + text + "\n" + fmt.Sprint(len(text)+1) + " " + tag + "\r\n__exception__\r\n"
	for piece := 1; piece < len(whole); piece++ {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-ClickHouse-Exception-Tag", tag)
			for rest := whole; rest != ""; {
				n := min(piece, len(rest))
				_, _ = io.WriteString(w, rest[:n])
				w.(http.Flusher).Flush()
				rest = rest[n:]
			}
		}))
		var out bytes.Buffer
		err := clickhouse.HTTPQuery(t.Context(), server.URL, "u", "p", "SELECT 1", nil, nil, &out)
		server.Close()
		if clickhouse.Code(err) != 395 || out.String() != data {
			t.Fatalf("in pieces of %d: %q, %v", piece, out.String(), err)
		}
	}
}

func TestCancelledQueryEndsOnTheServer(t *testing.T) {
	t.Parallel()
	d := parse(t, chtest.Start(t).LabDSN())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := d.Query(ctx, "SELECT number FROM system.numbers FORMAT TSV", map[string]string{"query_id": "cancel-me"}, nil, writerFunc(func(p []byte) (int, error) {
		cancel()
		return len(p), nil
	}))
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error is %v", err)
	}
	conn := chtest.Conn(t)
	deadline := time.Now().Add(20 * time.Second)
	for {
		var n uint64
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM system.processes WHERE query_id = 'cancel-me'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the query still runs")
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestFailingWriterEndsTheQuery(t *testing.T) {
	t.Parallel()
	d := parse(t, chtest.Start(t).LabDSN())
	full := errors.New("full")
	err := d.Query(t.Context(), "SELECT number FROM system.numbers FORMAT TSV", nil, nil, writerFunc(func([]byte) (int, error) { return 0, full }))
	if !errors.Is(err, full) {
		t.Errorf("error is %v", err)
	}
}

func TestServerThatClosesInTheMiddle(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 64<<10))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n1\n2\n")
			_ = c.Close()
		}
	}()
	err = clickhouse.HTTPQuery(t.Context(), "http://"+l.Addr().String(), "u", "p", "SELECT 1", nil, nil, io.Discard)
	if !errors.Is(err, io.ErrUnexpectedEOF) || clickhouse.IsPermanent(err) {
		t.Errorf("error is %v", err)
	}
}
