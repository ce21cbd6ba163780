package collector

import (
	"bytes"
	"context"
	"net/url"

	schema "github.com/transferlab/transferlab/schemas/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
)

// openStore connects to the database and brings its schema up to date.
func openStore(ctx context.Context, dsn string) (store, error) {
	conn, err := clickhouse.Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := clickhouse.Migrate(ctx, conn, schema.Migrations); err != nil {
		return nil, err
	}
	inserter, err := clickhouse.NewInserter(dsn)
	if err != nil {
		return nil, err
	}
	if overHTTP(dsn) {
		return inserter, nil
	}
	return wholeBlocks{inserter}, nil
}

// overHTTP reports whether inserts go over HTTP, which takes bytes as they come.
func overHTTP(dsn string) bool {
	u, err := url.Parse(dsn)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https" || u.Query().Has("http_url"))
}

// wholeBlocks joins the segments of a block for the native protocol, which has
// to find the columns in it.
type wholeBlocks struct{ *clickhouse.Inserter }

func (w wholeBlocks) Insert(ctx context.Context, table, token string, data [][]byte) error {
	return w.Inserter.Insert(ctx, table, token, [][]byte{bytes.Join(data, nil)})
}
