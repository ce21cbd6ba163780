package clickhouse_test

import (
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func TestMigrate(t *testing.T) {
	t.Parallel()
	server := chtest.StartOwn(t, nil)
	conn := open(t, server.LabDSN())
	files := fstest.MapFS{
		"0001_create_things.sql": file("-- the table; with a semicolon\nCREATE TABLE IF NOT EXISTS things (n UInt64, s String DEFAULT ';') ENGINE = MergeTree ORDER BY n;\n" +
			"CREATE OR REPLACE VIEW thing_count AS SELECT count() AS c FROM things;\n-- end\n"),
		"0002_add_column.sql": file("ALTER TABLE things ADD COLUMN IF NOT EXISTS extra String DEFAULT 'it''s; \\'quoted\\''"),
		"README.md":           file("not a migration"),
		"reports/latency.sql": file("SELECT 1"),
	}
	for range 2 {
		if err := clickhouse.Migrate(t.Context(), conn, files); err != nil {
			t.Fatal(err)
		}
	}
	run(t, conn, "INSERT INTO things (n) VALUES (1)")
	var s, extra string
	if err := conn.QueryRow(t.Context(), "SELECT s, extra FROM things").Scan(&s, &extra); err != nil || s != ";" || extra != "it's; 'quoted'" {
		t.Errorf("%q, %q, %v", s, extra, err)
	}
	if n := count(t, conn, "schema_migrations"); n != 2 {
		t.Errorf("%d records after two runs, want 2", n)
	}

	changed := fstest.MapFS{"0001_create_things.sql": file("SELECT 1"), "0002_add_column.sql": files["0002_add_column.sql"]}
	if err := clickhouse.Migrate(t.Context(), conn, changed); err == nil || !strings.Contains(err.Error(), "0001_create_things.sql was changed") {
		t.Errorf("changed file: %v", err)
	}
	missing := fstest.MapFS{"0002_add_column.sql": files["0002_add_column.sql"]}
	if err := clickhouse.Migrate(t.Context(), conn, missing); err == nil || !strings.Contains(err.Error(), "0001") {
		t.Errorf("missing file: %v", err)
	}
	older := fstest.MapFS{"0001_create_things.sql": files["0001_create_things.sql"]}
	if err := clickhouse.Migrate(t.Context(), conn, older); err != nil {
		t.Errorf("a database that is ahead: %v", err)
	}

	files["0003_break_things.sql"] = file("CREATE OR REPLACE VIEW fine AS SELECT 1;\nCREATE TABLE broken (n Nonsense) ENGINE = Memory")
	err := clickhouse.Migrate(t.Context(), conn, files)
	if clickhouse.Code(err) != 50 || !strings.Contains(err.Error(), "0003_break_things.sql, statement 2 of 2") {
		t.Errorf("broken statement: %v", err)
	}
	files["0003_break_things.sql"] = file("CREATE OR REPLACE VIEW fine AS SELECT 1;\nCREATE TABLE IF NOT EXISTS broken (n UInt8) ENGINE = Memory")
	if err := clickhouse.Migrate(t.Context(), conn, files); err != nil {
		t.Errorf("mended, it is applied: %v", err)
	}
}

func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	server := chtest.StartOwn(t, nil)
	run(t, open(t, server.LabDSN()), "DROP DATABASE transferlab SYNC")
	files := fstest.MapFS{
		"0001_create_things.sql": file("CREATE TABLE IF NOT EXISTS things (n UInt64) ENGINE = MergeTree ORDER BY n"),
		"0002_add_column.sql":    file("ALTER TABLE things ADD COLUMN IF NOT EXISTS a String; ALTER TABLE things ADD COLUMN IF NOT EXISTS b String"),
		"0003_create_view.sql":   file("CREATE OR REPLACE VIEW v AS SELECT a, b FROM things"),
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			conn, err := clickhouse.Open(t.Context(), server.LabDSN())
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			if err := clickhouse.Migrate(t.Context(), conn, files); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	conn := open(t, server.LabDSN())
	if err := clickhouse.Migrate(t.Context(), conn, files); err != nil {
		t.Error(err)
	}
	var n uint64
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM schema_migrations FINAL").Scan(&n); err != nil || n != 3 {
		t.Errorf("%d migrations recorded, want 3 (%v)", n, err)
	}
}

func TestMigrationNamesAreAllChecked(t *testing.T) {
	t.Parallel()
	err := clickhouse.Migrate(t.Context(), nil, fstest.MapFS{
		"1_create_a.sql":    file("SELECT 1"),
		"0002_Create_b.sql": file("SELECT 1"),
		"0003_create.sql":   file("SELECT 1"),
		"0004_create_c.sql": file("SELECT 1"),
		"0004_create_d.sql": file("SELECT 1"),
		"0005_create_e.sql": file("SELECT 'open"),
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"1_create_a.sql", "0002_Create_b.sql", "0003_create.sql", "same number", "0005_create_e.sql", "never closed"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %q: %v", want, err)
		}
	}
}
