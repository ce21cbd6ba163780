package collector

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	schema "github.com/transferlab/transferlab/schemas/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
)

// table is where events go.
const table = "events"

// store is the database.
type store interface {
	// Insert stores data of the Native format, given in segments, and stores it
	// only once under one token.
	Insert(ctx context.Context, table, token string, data [][]byte) error
	// Holds reports whether every event of the blocks is stored.
	Holds(ctx context.Context, blocks []schemas.BatchInfo) (bool, error)
	Close() error
}

// database is the store in ClickHouse.
type database struct {
	*clickhouse.Inserter
	conn driver.Conn
	// whole says that inserts go over the native protocol, which has to find the
	// columns in a block; HTTP takes bytes as they come.
	whole bool
}

// openStore connects to the database and brings its schema up to date.
func openStore(ctx context.Context, dsn string) (store, error) {
	conn, err := clickhouse.Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	inserter, err := clickhouse.NewInserter(dsn)
	if err == nil {
		err = clickhouse.Migrate(ctx, conn, schema.Migrations)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &database{Inserter: inserter, conn: conn, whole: !overHTTP(dsn)}, nil
}

func overHTTP(dsn string) bool {
	u, err := url.Parse(dsn)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https" || u.Query().Has("http_url"))
}

func (d *database) Insert(ctx context.Context, table, token string, data [][]byte) error {
	if d.whole {
		data = [][]byte{bytes.Join(data, nil)}
	}
	return d.Inserter.Insert(ctx, table, token, data)
}

func (d *database) Close() error { return errors.Join(d.Inserter.Close(), d.conn.Close()) }

// Bounds of one query of Holds.
const (
	maxRanges = 500
	maxRuns   = 100
)

func (d *database) Holds(ctx context.Context, blocks []schemas.BatchInfo) (bool, error) {
	filter, args := "1", []any(nil)
	// The run leads the sorting key; without it the table is read from end to end.
	if runs := runsOf(blocks); len(runs) <= maxRuns {
		filter, args = "run IN (?)", []any{runs}
	}
	for ranges := range slices.Chunk(rangesOf(blocks), maxRanges) {
		var want, have uint64
		conditions := make([]string, len(ranges))
		all := slices.Clone(args)
		for i, r := range ranges {
			conditions[i] = "(producer = ? AND seq BETWEEN ? AND ?)"
			all = append(all, r.producer, r.first, r.last)
			want += r.last - r.first + 1
		}
		query := fmt.Sprintf("SELECT uniqExact(producer, seq) FROM %s WHERE %s AND (%s)", table, filter, strings.Join(conditions, " OR "))
		if err := d.conn.QueryRow(ctx, query, all...).Scan(&have); err != nil {
			return false, fmt.Errorf("look for events %d to %d of %s: %w", ranges[0].first, ranges[0].last, ranges[0].producer, err)
		}
		if have < want {
			return false, nil
		}
	}
	return true, nil
}

// span is consecutive events of a producer.
type span struct {
	producer    string
	first, last uint64
}

// rangesOf joins what the blocks hold to as few ranges as it takes.
func rangesOf(blocks []schemas.BatchInfo) []span {
	spans := make([]span, len(blocks))
	for i, b := range blocks {
		spans[i] = span{b.Producer, b.FirstSeq, b.LastSeq}
	}
	slices.SortFunc(spans, func(x, y span) int { return cmp.Or(cmp.Compare(x.producer, y.producer), cmp.Compare(x.first, y.first)) })
	joined := spans[:0]
	for _, s := range spans {
		if n := len(joined); n > 0 && joined[n-1].producer == s.producer && s.first <= joined[n-1].last+1 {
			joined[n-1].last = max(joined[n-1].last, s.last)
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

func runsOf(blocks []schemas.BatchInfo) []uuid.UUID {
	var runs []uuid.UUID
	seen := map[[16]byte]bool{}
	for _, b := range blocks {
		for column := b.Columns[columnRun]; len(column) > 0 && len(runs) <= maxRuns; column = column[16:] {
			if wire := [16]byte(column); !seen[wire] {
				seen[wire] = true
				var id uuid.UUID
				binary.BigEndian.PutUint64(id[:8], binary.LittleEndian.Uint64(wire[:8]))
				binary.BigEndian.PutUint64(id[8:], binary.LittleEndian.Uint64(wire[8:]))
				runs = append(runs, id)
			}
		}
	}
	return runs
}
