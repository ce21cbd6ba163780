package clickhouse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	chgo "github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// insertSettings make one insert one block, so one part per partition, so all
// or nothing; and have the server refuse what it does not know instead of
// leaving it out.
var insertSettings = map[string]string{
	"async_insert":                                       "0",
	"insert_deduplicate":                                 "1",
	"min_insert_block_size_rows":                         "1000000000",
	"min_insert_block_size_bytes":                        "17179869184",
	"max_insert_threads":                                 "1",
	"input_format_skip_unknown_fields":                   "0",
	"deduplicate_blocks_in_dependent_materialized_views": "1",
}

const (
	insertIdleConns = 4
	insertIdleTime  = 30 * time.Second
)

// BlockError is a block that cannot be inserted anywhere: a permanent error
// found before anything was sent.
type BlockError struct {
	Index int // of the block in the slice given to Insert
	Err   error
}

func (e *BlockError) Error() string { return fmt.Sprintf("block %d: %v", e.Index, e.Err) }

// Unwrap gives the reason.
func (e *BlockError) Unwrap() error { return e.Err }

// Permanent is always true: the block will not get better.
func (*BlockError) Permanent() bool { return true }

// Inserter inserts blocks that are already encoded, without decoding them. It
// speaks HTTP where the DSN says where (an http DSN, or http_url), else the
// native protocol. Safe for concurrent use.
type Inserter struct {
	dsn    DSN
	native bool

	mu     sync.Mutex
	idle   []idleConn
	closed bool
}

type idleConn struct {
	client *chgo.Client
	since  time.Time
}

// NewInserter prepares inserts into the DSN's server and database; it does not
// connect.
func NewInserter(dsn string) (*Inserter, error) {
	d, err := ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	return &Inserter{dsn: d, native: d.Native && !d.httpGiven}, nil
}

// Insert sends blocks, each one or several concatenated blocks in the Native
// format, as one INSERT into table, and returns when the server has stored all
// of it. Within one partition of the table it is all or nothing. token makes
// repeating it harmless on a table with a deduplication window; empty means the
// server's own hash of the data.
//
// IsPermanent tells an error that repeating cannot cure (*ServerError about the
// data, *BlockError) from one that may pass.
func (in *Inserter) Insert(ctx context.Context, table, token string, blocks [][]byte) error {
	if len(blocks) == 0 {
		return nil
	}
	var err error
	if in.native {
		err = in.insertNative(ctx, table, token, blocks)
	} else {
		err = in.insertHTTP(ctx, table, token, blocks)
	}
	if err != nil {
		return fmt.Errorf("insert into %s: %w", table, serverError(err))
	}
	return nil
}

// Close ends idle connections. Inserts after it fail.
func (in *Inserter) Close() error {
	in.mu.Lock()
	idle := in.idle
	in.idle, in.closed = nil, true
	in.mu.Unlock()
	var errs []error
	for _, c := range idle {
		errs = append(errs, c.client.Close())
	}
	return errors.Join(errs...)
}

func (in *Inserter) insertHTTP(ctx context.Context, table, token string, blocks [][]byte) error {
	values := url.Values{
		"database":          {in.dsn.Database},
		"query":             {"INSERT INTO " + quoteTable(table) + " FORMAT Native"},
		"wait_end_of_query": {"1"},
	}
	for name, value := range insertSettings {
		values.Set(name, value)
	}
	if token != "" {
		values.Set("insert_deduplication_token", token)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(&blocksReader{blocks: blocks}), nil }
	body, _ := open()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.dsn.HTTPURL+"/?"+values.Encode(), body)
	if err != nil {
		return errors.New("malformed HTTP URL")
	}
	for _, b := range blocks {
		req.ContentLength += int64(len(b))
	}
	// Lets the transport repeat the request on a connection that turned out to
	// be dead, which the token makes harmless.
	if token != "" {
		req.GetBody = open
		req.Header["Idempotency-Key"] = nil
	}
	in.dsn.authenticate(req)
	resp, err := in.dsn.client.Do(req)
	if err != nil {
		return in.dsn.networkError(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if resp.StatusCode != http.StatusOK || resp.Header.Get(exceptionCodeHeader) != "" || bytes.Contains(text, []byte(exceptionMarker)) {
		return in.dsn.responseError(resp, text)
	}
	if err != nil {
		return in.dsn.networkError(err)
	}
	return nil
}

// blocksReader streams blocks without joining them.
type blocksReader struct {
	blocks [][]byte
	pos    int
}

func (r *blocksReader) Read(p []byte) (int, error) {
	var n int
	for n < len(p) && len(r.blocks) > 0 {
		copied := copy(p[n:], r.blocks[0][r.pos:])
		n += copied
		if r.pos += copied; r.pos == len(r.blocks[0]) {
			r.blocks, r.pos = r.blocks[1:], 0
		}
	}
	if n == 0 && len(r.blocks) == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (in *Inserter) insertNative(ctx context.Context, table, token string, blocks [][]byte) (err error) {
	var parsed []block
	for i, raw := range blocks {
		for len(raw) > 0 {
			var b block
			if b, raw, err = parseBlock(raw); err != nil {
				return &BlockError{Index: i, Err: err}
			}
			if len(parsed) > 0 && !sameColumns(b, parsed[0]) {
				return &BlockError{Index: i, Err: errors.New("its columns are not those of the block before it")}
			}
			if b.Rows > 0 {
				parsed = append(parsed, b)
			}
		}
	}
	if len(parsed) == 0 {
		return nil
	}
	client, err := in.acquire(ctx)
	if err != nil {
		return err
	}
	settings := make([]chgo.Setting, 0, len(insertSettings)+1)
	for name, value := range insertSettings {
		settings = append(settings, chgo.Setting{Key: name, Value: value, Important: true})
	}
	if token != "" {
		settings = append(settings, chgo.Setting{Key: "insert_deduplication_token", Value: token, Important: true})
	}
	columns := make([]*rawColumn, len(parsed[0].Columns))
	input := make(proto.Input, len(columns))
	names := make([]string, len(columns))
	for i, c := range parsed[0].Columns {
		columns[i] = &rawColumn{}
		input[i] = proto.InputColumn{Name: c.Name, Data: columns[i]}
		names[i] = quoteIdentifier(c.Name)
	}
	next := 0
	load := func() {
		for i, c := range columns {
			*c = rawColumn{kind: proto.ColumnType(parsed[next].Columns[i].Type), rows: parsed[next].Rows, data: parsed[next].Columns[i].Data}
		}
		next++
	}
	load()
	err = client.Do(ctx, chgo.Query{
		Body:     "INSERT INTO " + quoteTable(table) + " (" + strings.Join(names, ", ") + ") VALUES",
		Settings: settings,
		Input:    input,
		OnInput: func(context.Context) error {
			if next == len(parsed) {
				for _, c := range columns {
					*c = rawColumn{kind: c.kind}
				}
				return io.EOF
			}
			load()
			return nil
		},
	})
	if err != nil {
		// The connection may be in the middle of anything.
		_ = client.Close()
		return err
	}
	in.release(client)
	return nil
}

func sameColumns(a, b block) bool {
	if len(a.Columns) != len(b.Columns) {
		return false
	}
	for i := range a.Columns {
		if a.Columns[i].Name != b.Columns[i].Name || a.Columns[i].Type != b.Columns[i].Type {
			return false
		}
	}
	return true
}

// rawColumn passes a column's bytes through the native protocol as they are.
type rawColumn struct {
	kind proto.ColumnType
	rows int
	data []byte
}

func (c *rawColumn) Type() proto.ColumnType       { return c.kind }
func (c *rawColumn) Rows() int                    { return c.rows }
func (c *rawColumn) EncodeColumn(b *proto.Buffer) { b.PutRaw(c.data) }
func (c *rawColumn) WriteColumn(w *proto.Writer)  { w.ChainWrite(c.data) }

func (in *Inserter) acquire(ctx context.Context) (*chgo.Client, error) {
	in.mu.Lock()
	if in.closed {
		in.mu.Unlock()
		return nil, errors.New("the inserter is closed")
	}
	var stale []idleConn
	for len(in.idle) > 0 {
		last := in.idle[len(in.idle)-1]
		in.idle = in.idle[:len(in.idle)-1]
		if time.Since(last.since) < insertIdleTime && !last.client.IsClosed() {
			in.mu.Unlock()
			return last.client, nil
		}
		stale = append(stale, last)
	}
	in.mu.Unlock()
	for _, c := range stale {
		_ = c.client.Close()
	}
	options := chgo.Options{
		Address:     in.dsn.Addr,
		Database:    in.dsn.Database,
		User:        in.dsn.User,
		Password:    in.dsn.password,
		DialTimeout: dialTimeout,
		ReadTimeout: readTimeout,
		ClientName:  "transferlab",
		Compression: chgo.CompressionDisabled,
	}
	if in.dsn.TLS {
		options.TLS = in.dsn.options.TLS
	}
	client, err := chgo.Dial(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", in.dsn, err)
	}
	return client, nil
}

func (in *Inserter) release(client *chgo.Client) {
	in.mu.Lock()
	if !in.closed && len(in.idle) < insertIdleConns {
		in.idle = append(in.idle, idleConn{client: client, since: time.Now()})
		client = nil
	}
	in.mu.Unlock()
	if client != nil {
		_ = client.Close()
	}
}

// quoteTable quotes table or database.table.
func quoteTable(name string) string {
	database, table, found := strings.Cut(name, ".")
	if !found {
		return quoteIdentifier(name)
	}
	return quoteIdentifier(database) + "." + quoteIdentifier(table)
}
