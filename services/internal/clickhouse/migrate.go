package clickhouse

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

var migrationName = regexp.MustCompile(`^(\d{4})_[a-z0-9]+(_[a-z0-9]+)+\.sql$`)

// migration is one file NNNN_verb_noun.sql.
type migration struct {
	version    uint32
	name       string
	checksum   string // sha256 of the file, hex
	statements []string
}

// ErrMigrations is wrapped by errors that trying again cannot mend: the
// database was made by other files than these.
var ErrMigrations = errors.New("the database and the migrations disagree")

// Migrate applies the files NNNN_verb_noun.sql at the root of files, in order,
// each once, to the connection's database, which it creates if needed. What
// was applied is recorded with its checksum in the table schema_migrations;
// other files are ignored.
//
// A file that was applied and has changed since is an error, as is a recorded
// one that is missing while a higher one is present: both mean that this binary
// and that database do not belong together. A database that is ahead (a newer
// binary migrated it) is left alone.
//
// ClickHouse has no transaction over DDL and no lock to take: statements must
// therefore be repeatable (IF NOT EXISTS, OR REPLACE), and then neither a crash
// in the middle of a file nor two processes that migrate at once do harm.
func Migrate(ctx context.Context, conn driver.Conn, files fs.FS) error {
	migrations, err := readMigrations(files)
	if err != nil {
		return fmt.Errorf("migrate ClickHouse: %w", err)
	}
	if err := migrate(ctx, conn, migrations); err != nil {
		return fmt.Errorf("migrate ClickHouse: %w", err)
	}
	return nil
}

func migrate(ctx context.Context, conn driver.Conn, migrations []migration) error {
	var database string
	if err := conn.QueryRow(ctx, "SELECT currentDatabase()").Scan(&database); err != nil {
		return fmt.Errorf("ask for the current database: %w", serverError(err))
	}
	for _, statement := range []string{
		"CREATE DATABASE IF NOT EXISTS " + quoteIdentifier(database),
		// The newest record of a version counts: two processes may both write one.
		`CREATE TABLE IF NOT EXISTS schema_migrations
		(
			version UInt32,
			name String,
			checksum String,
			applied_at DateTime64(3, 'UTC')
		) ENGINE = ReplacingMergeTree(applied_at) ORDER BY version`,
	} {
		if err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("prepare %s.schema_migrations: %w", database, serverError(err))
		}
	}
	applied, err := appliedMigrations(ctx, conn)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range migrations {
		if sum, ok := applied[m.version]; ok && sum != m.checksum {
			errs = append(errs, fmt.Errorf("%w: %s was changed after it was applied: put it back and write a new file instead", ErrMigrations, m.name))
		}
	}
	for version := range applied {
		known := slices.ContainsFunc(migrations, func(m migration) bool { return m.version == version })
		if !known && len(migrations) > 0 && version < migrations[len(migrations)-1].version {
			errs = append(errs, fmt.Errorf("the database has migration %04d, this program does not know it", version))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, m := range migrations {
		if _, ok := applied[m.version]; ok {
			continue
		}
		for i, statement := range m.statements {
			if err := conn.Exec(ctx, statement); err != nil {
				return fmt.Errorf("%s, statement %d of %d: %w", m.name, i+1, len(m.statements), serverError(err))
			}
		}
		if err := conn.Exec(ctx, "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)", m.version, m.name, m.checksum, time.Now().UTC()); err != nil {
			return fmt.Errorf("record %s: %w", m.name, serverError(err))
		}
	}
	return nil
}

func appliedMigrations(ctx context.Context, conn driver.Conn) (map[uint32]string, error) {
	rows, err := conn.Query(ctx, "SELECT version, checksum FROM schema_migrations FINAL")
	if err != nil {
		return nil, fmt.Errorf("read what was applied: %w", serverError(err))
	}
	defer func() { _ = rows.Close() }()
	applied := make(map[uint32]string)
	for rows.Next() {
		var (
			version  uint32
			checksum string
		)
		if err := rows.Scan(&version, &checksum); err != nil {
			return nil, fmt.Errorf("read what was applied: %w", err)
		}
		applied[version] = checksum
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read what was applied: %w", serverError(err))
	}
	return applied, nil
}

// readMigrations returns the files in order of their versions, and reports
// every fault in their names.
func readMigrations(files fs.FS) ([]migration, error) {
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var (
		migrations []migration
		errs       []error
		names      = make(map[uint32]string)
	)
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() || !strings.HasSuffix(name, ".sql") {
			continue
		}
		match := migrationName.FindStringSubmatch(name)
		if match == nil {
			errs = append(errs, fmt.Errorf("migration %q: names look like 0001_create_events.sql", name))
			continue
		}
		number, err := strconv.ParseUint(match[1], 10, 32)
		if err != nil {
			errs = append(errs, fmt.Errorf("migration %q: %w", name, err))
			continue
		}
		version := uint32(number)
		if other, ok := names[version]; ok {
			errs = append(errs, fmt.Errorf("migrations %q and %q have the same number", other, name))
			continue
		}
		names[version] = name
		text, err := fs.ReadFile(files, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("read migration: %w", err))
			continue
		}
		statements, err := splitStatements(string(text))
		if err != nil {
			errs = append(errs, fmt.Errorf("migration %q: %w", name, err))
			continue
		}
		sum := sha256.Sum256(text)
		migrations = append(migrations, migration{version: version, name: name, checksum: hex.EncodeToString(sum[:]), statements: statements})
	}
	slices.SortFunc(migrations, func(a, b migration) int { return int(a.version) - int(b.version) })
	return migrations, errors.Join(errs...)
}

// splitStatements cuts a script at the semicolons that end a statement, and
// drops what is only comments and space. It knows ClickHouse's lexical rules:
// quotes of three kinds with both escapes, heredocs ($tag$…$tag$), -- and #
// comments, and /* comments */, which do not nest.
func splitStatements(script string) ([]string, error) {
	var (
		statements []string
		start      int
		content    bool // anything but space and comments since start
	)
	for i := 0; i < len(script); {
		switch c := script[i]; {
		case c == ';':
			if content {
				statements = append(statements, strings.TrimSpace(script[start:i]))
			}
			i++
			start, content = i, false
		case c == '\'' || c == '"' || c == '`':
			end := quoteEnd(script, i)
			if end < 0 {
				return nil, fmt.Errorf("line %d: %c is never closed", lineOf(script, i), c)
			}
			i, content = end, true
		case strings.HasPrefix(script[i:], "--"),
			strings.HasPrefix(script[i:], "# "), strings.HasPrefix(script[i:], "#!"):
			if end := strings.IndexByte(script[i:], '\n'); end >= 0 {
				i += end + 1
			} else {
				i = len(script)
			}
		case strings.HasPrefix(script[i:], "/*"):
			end := strings.Index(script[i+2:], "*/")
			if end < 0 {
				return nil, fmt.Errorf("line %d: comment is never closed", lineOf(script, i))
			}
			i += 2 + end + 2
		case c == '$' && heredocTag(script, i) != "":
			tag := heredocTag(script, i)
			end := strings.Index(script[i+len(tag):], tag)
			if end < 0 {
				return nil, fmt.Errorf("line %d: %s is never closed", lineOf(script, i), tag)
			}
			i += len(tag) + end + len(tag)
			content = true
		default:
			if c != ' ' && c != '\t' && c != '\n' && c != '\r' && c != '\f' && c != '\v' {
				content = true
			}
			i++
		}
	}
	if content {
		statements = append(statements, strings.TrimSpace(script[start:]))
	}
	return statements, nil
}

// quoteEnd returns the index after the quoted text that starts at i, or -1. A
// doubled quote needs no special case: it reads as two quoted texts in a row.
func quoteEnd(s string, i int) int {
	for j := i + 1; j < len(s); j++ {
		switch s[j] {
		case '\\':
			j++
		case s[i]:
			return j + 1
		}
	}
	return -1
}

// heredocTag returns the $tag$ that starts at i, or "". A dollar inside an
// identifier starts none.
func heredocTag(s string, i int) string {
	if i > 0 && isWord(s[i-1]) {
		return ""
	}
	for j := i + 1; j < len(s); j++ {
		if s[j] == '$' {
			return s[i : j+1]
		}
		if !isWord(s[j]) {
			return ""
		}
	}
	return ""
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func lineOf(s string, i int) int { return 1 + strings.Count(s[:i], "\n") }
