package clickhouse_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

// post is what curl -u user:password -d query URL does.
func post(t *testing.T, url, user, password, query string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(query))
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestWrongPasswordIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	if status, body := post(t, "http://"+server.HTTPAddr(), clickhouse.LabUser, "wrong-one", "SELECT 1"); status != http.StatusForbidden || !strings.Contains(body, "516") {
		t.Errorf("status %d: %s", status, body)
	}
	for _, dsn := range []string{
		"clickhouse://lab:wrong-one@" + server.TCPAddr() + "/transferlab",
		"http://lab:wrong-one@" + server.HTTPAddr() + "/transferlab",
	} {
		start := time.Now()
		_, err := clickhouse.Open(t.Context(), dsn)
		if !clickhouse.IsPermanent(err) || clickhouse.Code(err) != 516 {
			t.Errorf("error is %v", err)
		}
		if strings.Contains(fmt.Sprint(err), "wrong-one") {
			t.Errorf("error contains the password: %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
	}
}

func TestNobodyIsDefaultOverTheNetwork(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	base := "http://" + server.HTTPAddr() + "/"
	for _, url := range []string{
		base,
		base + "?user=default",
		base + "?max_sessions_for_user=0",
		base + "?user=default&max_sessions_for_user=1000&session_id=x",
		base + "?profile=default&profile=reader",
	} {
		for _, query := range []string{"SELECT 1", "SELECT file('/etc/hostname')", "SYSTEM STOP LISTEN HTTP"} {
			if status, body := post(t, url, "", "", query); status == http.StatusOK {
				t.Errorf("%s: %s: answered %q", url, query, body)
			}
		}
	}
	for _, dsn := range []string{
		"clickhouse://default@" + server.TCPAddr() + "/system",
		"clickhouse://default@" + server.TCPAddr() + "/system?max_sessions_for_user=0",
		"http://default@" + server.HTTPAddr() + "/system",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if conn, err := clickhouse.Open(ctx, dsn); err == nil {
			_ = conn.Close()
			t.Errorf("%s: connected", dsn)
		}
		cancel()
	}
	// The lab itself has more than one session at a time.
	for range 3 {
		if err := chtest.Conn(t).Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// forbidden is what no SQL user may do: leave the database.
func forbidden(t *testing.T) map[string]string {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("treasure"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	return map[string]string{
		"scalar file()":          "SELECT file('" + secret + "')",
		"scalar file(), default": "SELECT throwIf(file('" + secret + "', 'none') = 'none')",
		"file of another user":   "SELECT file('/etc/passwd')",
		"environment of parent":  fmt.Sprintf("SELECT file('/proc/%d/environ')", os.Getpid()),
		"file()":                 "SELECT * FROM file('" + secret + "', 'LineAsString')",
		"file() to write":        "INSERT INTO FUNCTION file('" + out + "', 'TSV', 'a UInt8') VALUES (1)",
		"url()":                  "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
		"s3()":                   "SELECT * FROM s3('http://127.0.0.1:1/bucket/key', 'CSV', 'a Int32')",
		"remote()":               "SELECT * FROM remote('127.0.0.1:9000', system.one)",
		"mysql()":                "SELECT * FROM mysql('127.0.0.1:3306', 'a', 'b', 'c', 'd')",
		"sqlite()":               "SELECT * FROM sqlite('" + out + "', 't')",
		"executable()":           "SELECT * FROM executable('id', 'LineAsString', 'a String')",
		"INTO OUTFILE":           "SELECT 1 INTO OUTFILE '" + out + "'",
		"File engine":            "CREATE TABLE transferlab.f (a String) ENGINE = File('LineAsString', '" + secret + "')",
		"URL engine":             "CREATE TABLE transferlab.u (a String) ENGINE = URL('http://127.0.0.1:1/', 'LineAsString')",
		"Executable engine":      "CREATE TABLE transferlab.e (a String) ENGINE = Executable('id', 'LineAsString')",
		"dictionary":             "CREATE DICTIONARY transferlab.d (a UInt64, b String) PRIMARY KEY a SOURCE(EXECUTABLE(COMMAND 'id' FORMAT 'TSV')) LAYOUT(FLAT()) LIFETIME(0)",
		"other database":         "CREATE DATABASE other",
		"backup":                 "BACKUP TABLE transferlab.schema_migrations TO File('" + out + "')",
		"create user":            "CREATE USER someone",
		"grant":                  "GRANT ALL ON *.* TO reader",
		"function":               "CREATE FUNCTION f AS x -> x",
		"shutdown":               "SYSTEM SHUTDOWN",
		"stop listening":         "SYSTEM STOP LISTEN TCP",
	}
}

func TestLabStaysInsideItsDatabase(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	for name, query := range forbidden(t) {
		if status, body := post(t, "http://"+server.HTTPAddr(), clickhouse.LabUser, chtest.LabPassword, query); status == http.StatusOK {
			t.Errorf("%s is allowed: %s", name, body)
		}
	}
	conn := chtest.Conn(t)
	for _, query := range []string{
		"CREATE TABLE lab_rights (n UInt64, s LowCardinality(String)) ENGINE = MergeTree ORDER BY n",
		"CREATE MATERIALIZED VIEW lab_rights_view ENGINE = AggregatingMergeTree ORDER BY s AS SELECT s, countState() AS c FROM lab_rights GROUP BY s",
		"INSERT INTO lab_rights SELECT number, 'x' FROM numbers(10)",
		"ALTER TABLE lab_rights ADD COLUMN extra String DEFAULT ''",
		"ALTER TABLE lab_rights UPDATE extra = 'y' WHERE n < 5 SETTINGS mutations_sync = 2",
		"ALTER TABLE lab_rights DELETE WHERE n = 1 SETTINGS mutations_sync = 2",
		"OPTIMIZE TABLE lab_rights FINAL",
		"CREATE OR REPLACE VIEW lab_rights_plain AS SELECT n FROM lab_rights",
		"RENAME TABLE lab_rights_plain TO lab_rights_renamed",
		"DROP VIEW lab_rights_renamed",
		"DROP TABLE lab_rights_view SYNC",
		"TRUNCATE TABLE lab_rights",
		"DROP TABLE lab_rights SYNC",
		"SELECT count() FROM system.merges",
	} {
		run(t, conn, query)
	}
}

func TestReaderOnlyReads(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	lab := chtest.Conn(t)
	create(t, lab, "reader_rights", "(n UInt64) ENGINE = MergeTree ORDER BY n")
	run(t, lab, "INSERT INTO reader_rights SELECT number FROM numbers(10)")
	run(t, lab, "CREATE OR REPLACE VIEW reader_rights_view AS SELECT sum(n) AS s FROM reader_rights")
	denied := forbidden(t)
	for name, query := range map[string]string{
		"insert":               "INSERT INTO transferlab.reader_rights VALUES (1)",
		"create":               "CREATE TABLE transferlab.x (n UInt64) ENGINE = Memory",
		"temporary table":      "CREATE TEMPORARY TABLE x (n UInt64)",
		"alter":                "ALTER TABLE transferlab.reader_rights ADD COLUMN m UInt64",
		"delete":               "DELETE FROM transferlab.reader_rights WHERE 1",
		"drop":                 "DROP TABLE transferlab.reader_rights",
		"truncate":             "TRUNCATE TABLE transferlab.reader_rights",
		"optimize":             "OPTIMIZE TABLE transferlab.reader_rights",
		"users":                "SELECT * FROM system.users",
		"others' queries":      "SELECT * FROM system.processes",
		"kill":                 "KILL QUERY WHERE 1",
		"end of readonly":      "SET readonly = 0",
		"more time":            "SELECT 1 SETTINGS max_execution_time = 3600",
		"unlimited time":       "SELECT 1 SETTINGS max_execution_time = 0",
		"more memory":          "SELECT 1 SETTINGS max_memory_usage = 1000000000000",
		"unlimited rows":       "SELECT 1 SETTINGS max_result_rows = 0",
		"too many rows":        "SELECT number FROM numbers(60000000) FORMAT Null",
		"another profile":      "SET profile = 'default'",
		"the engine's profile": "SET profile = 'engine'",
	} {
		denied[name] = query
	}
	for name, query := range denied {
		if status, body := post(t, "http://"+server.HTTPAddr(), clickhouse.ReaderUser, chtest.ReaderPassword, query); status == http.StatusOK && !strings.Contains(body, "__exception__") {
			t.Errorf("%s is allowed: %.200s", name, body)
		}
	}
	for _, settings := range []string{"profile=default", "profile=default&max_execution_time=600", "profile=engine&max_memory_usage=0", "max_result_rows=0"} {
		if status, body := post(t, "http://"+server.HTTPAddr()+"/?"+settings, clickhouse.ReaderUser, chtest.ReaderPassword, "SELECT 1"); status == http.StatusOK {
			t.Errorf("%s is allowed: %s", settings, body)
		}
	}
	reader := chtest.ReaderConn(t)
	var sum uint64
	if err := reader.QueryRow(t.Context(), "SELECT s FROM reader_rights_view").Scan(&sum); err != nil || sum != 45 {
		t.Errorf("view: %d, %v", sum, err)
	}
	for _, query := range []string{
		"SELECT count() FROM transferlab.reader_rights SETTINGS max_threads = 1, max_execution_time = 10",
		"SELECT number FROM numbers(10)",
		"SELECT name, type FROM system.columns WHERE database = 'transferlab'",
		"SELECT sum(bytes_on_disk) FROM system.parts",
		"SELECT name FROM system.tables",
		"SELECT name FROM system.databases",
		"SELECT name FROM system.functions",
		"SELECT table_name FROM information_schema.tables",
		"SHOW TABLES FROM transferlab",
		"SHOW CREATE TABLE transferlab.reader_rights",
		"DESCRIBE TABLE transferlab.reader_rights",
		"EXPLAIN SELECT count() FROM transferlab.reader_rights",
	} {
		var out bytes.Buffer
		err := clickhouse.HTTPQuery(t.Context(), "http://"+server.HTTPAddr(), clickhouse.ReaderUser, chtest.ReaderPassword, query, nil, nil, &out)
		if err != nil {
			t.Errorf("%s: %v", query, err)
		}
	}
}

func TestReaderLimits(t *testing.T) {
	t.Parallel()
	server := chtest.StartOwn(t, func(o *clickhouse.Options) {
		o.Reader = clickhouse.ReaderLimits{MaxSeconds: 1, MaxMemoryBytes: 64 << 20, MaxResultRows: 1000, MaxResultBytes: 1 << 20}
	})
	d := parse(t, server.ReaderDSN())
	for query, code := range map[string]int{
		"SELECT sum(number) FROM system.numbers":                                159,
		"SELECT length(groupArray(number)) FROM numbers(100000000)":             241,
		"SELECT number FROM numbers(2000) SETTINGS max_block_size = 100":        396,
		"SELECT repeat(toString(number), 10000) FROM numbers(500)":              396,
		"SELECT number FROM numbers(100) SETTINGS result_overflow_mode='break'": 0,
	} {
		err := d.Query(t.Context(), query, nil, nil, io.Discard)
		if clickhouse.Code(err) != code {
			t.Errorf("%s: %v, want code %d", query, err, code)
		}
	}
}
