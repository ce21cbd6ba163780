package series

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/uuid"

	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/measure"
)

// DefaultTable is where the source's consumers look.
const DefaultTable = "s3-metrics"

// Keys of the table: one item is one minute of one bucket and site of one run.
// Writing it again replaces it by itself.
const (
	partitionKey = "series" // <run>#<bucket>#<site>
	sortKey      = "ts"     // 2026-11-22T10:00:00Z
)

// Limits of an export.
const (
	itemsPerCall = 25 // DynamoDB's own
	maxItems     = 500_000
	maxAttempts  = 12 // of a call that makes no progress
	maxBackoff   = 5 * time.Second
)

// Timing of an export; the zero value is right but for tests.
type Timing struct {
	Backoff time.Duration // after the first call that leaves items; 50 ms
	Poll    time.Duration // between looks at a table that is being made; 500 ms
}

// Head is what every item says of its run.
type Head struct {
	Run  uuid.UUID
	Name string
}

// Export writes a run's 1-minute series, read through conn, to a DynamoDB
// table.
func Export(ctx context.Context, conn driver.Conn, s Settings, run Head, table string, timing Timing) (api.DynamoDBExported, error) {
	if table == "" {
		table = DefaultTable
	}
	if timing.Backoff == 0 {
		timing.Backoff = 50 * time.Millisecond
	}
	if timing.Poll == 0 {
		timing.Poll = 500 * time.Millisecond
	}
	done := api.DynamoDBExported{Table: table}
	if !regexp.MustCompile(`^[A-Za-z0-9_.-]{3,255}$`).MatchString(table) {
		return done, refuse(http.StatusUnprocessableEntity, nil, "table: %.64q, want 3 to 255 letters, digits, hyphens, underscores and dots", table)
	}
	cfg, err := load(ctx, s)
	if err != nil {
		return done, err
	}
	e := &exporter{
		client: dynamodb.NewFromConfig(cfg), settings: s, region: cfg.Region, timing: timing, done: &done,
	}
	all, err := read(ctx, conn, run)
	if err != nil {
		return done, err
	}
	if err := e.table(ctx); err != nil {
		return done, err
	}
	for chunk := range slices.Chunk(all, itemsPerCall) {
		var items []types.WriteRequest
		for i := range chunk {
			items = append(items, types.WriteRequest{PutRequest: &types.PutRequest{Item: chunk[i].item(run)}})
		}
		if err := e.write(ctx, items); err != nil {
			return done, err
		}
	}
	return done, nil
}

type exporter struct {
	client   *dynamodb.Client
	settings Settings
	region   string
	timing   Timing
	done     *api.DynamoDBExported
}

func (e *exporter) explain(err error, format string, args ...any) error {
	return explain(err, e.settings, e.region, fmt.Sprintf(format, args...))
}

// table makes sure that the table is there with the right keys.
func (e *exporter) table(ctx context.Context) error {
	name := e.done.Table
	described, err := e.client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &name})
	var missing *types.ResourceNotFoundException
	switch {
	case errors.As(err, &missing):
		if err := e.create(ctx); err != nil {
			return err
		}
	case err != nil:
		return e.explain(err, "describe the table %s", name)
	default:
		if err := checkKeys(described.Table); err != nil {
			return err
		}
		if described.Table.TableStatus == types.TableStatusActive || described.Table.TableStatus == types.TableStatusUpdating {
			return nil
		}
	}
	waiter := dynamodb.NewTableExistsWaiter(e.client, func(o *dynamodb.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = e.timing.Poll, max(e.timing.Poll, 2*time.Second)
	})
	const patience = 2 * time.Minute
	active, err := waiter.WaitForOutput(ctx, &dynamodb.DescribeTableInput{TableName: &name}, patience)
	if err != nil {
		return e.explain(err, "wait for the table %s", name)
	}
	return checkKeys(active.Table)
}

func (e *exporter) create(ctx context.Context) error {
	name := e.done.Table
	_, err := e.client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: &name, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: aws.String(partitionKey), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: aws.String(sortKey), AttributeType: types.ScalarAttributeTypeS},
		},
		KeySchema: []types.KeySchemaElement{
			{AttributeName: aws.String(partitionKey), KeyType: types.KeyTypeHash},
			{AttributeName: aws.String(sortKey), KeyType: types.KeyTypeRange},
		},
	})
	var exists *types.ResourceInUseException
	switch {
	case errors.As(err, &exists): // another export was faster
		return nil
	case err != nil:
		return e.explain(err, "create the table %s", name)
	}
	e.done.Created = true
	return nil
}

func checkKeys(t *types.TableDescription) error {
	want := map[types.KeyType]string{types.KeyTypeHash: partitionKey, types.KeyTypeRange: sortKey}
	right := len(t.KeySchema) == len(want)
	for _, k := range t.KeySchema {
		right = right && want[k.KeyType] == aws.ToString(k.AttributeName)
	}
	for _, a := range t.AttributeDefinitions {
		if name := aws.ToString(a.AttributeName); name == partitionKey || name == sortKey {
			right = right && a.AttributeType == types.ScalarAttributeTypeS
		}
	}
	if !right {
		return refuse(http.StatusConflict, nil, "the table %s has other keys: want the strings %s (partition) and %s (sort); choose another table", aws.ToString(t.TableName), partitionKey, sortKey)
	}
	return nil
}

const minutes = `SELECT toUnixTimestamp(ts) AS at, toString(bucket) AS of_bucket, toString(site) AS of_site,
    toUInt64(BytesDownloaded) AS downloaded, toUInt64(BytesUploaded) AS uploaded, toFloat64(TotalRequestLatency) AS latency,
    toFloat64(TotalRequestLatency_p50) AS p50, toFloat64(TotalRequestLatency_p90) AS p90, toFloat64(TotalRequestLatency_p99) AS p99,
    toUInt64(requests) AS n, toUInt64(errors) AS failed
FROM s3_metrics_1m WHERE run = {run:UUID} ORDER BY of_bucket, of_site, at`

// minute is one row of the view.
type minute struct {
	at                             uint32
	bucket, site                   string
	downloaded, uploaded, n, wrong uint64
	latency, p50, p90, p99         float64
}

// read fetches the whole series first: DynamoDB may be slow, and the database
// bounds how long a query takes.
func read(ctx context.Context, conn driver.Conn, run Head) ([]minute, error) {
	ctx, cancel := measure.WithoutDeadline(ctx)
	defer cancel()
	rows, err := conn.Query(clickhouse.Context(ctx, clickhouse.WithParameters(clickhouse.Parameters{"run": run.Run.String()})), minutes)
	if err != nil {
		return nil, fmt.Errorf("read the series: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var all []minute
	for rows.Next() {
		var m minute
		if err := rows.Scan(&m.at, &m.bucket, &m.site, &m.downloaded, &m.uploaded, &m.latency, &m.p50, &m.p90, &m.p99, &m.n, &m.wrong); err != nil {
			return nil, fmt.Errorf("read the series: %w", err)
		}
		if len(all) >= maxItems {
			return nil, refuse(http.StatusRequestEntityTooLarge, nil, "the series has more than %d minutes", maxItems)
		}
		all = append(all, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the series: %w", err)
	}
	return all, nil
}

func (m *minute) item(run Head) map[string]types.AttributeValue {
	text := func(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
	whole := func(v uint64) types.AttributeValue {
		return &types.AttributeValueMemberN{Value: strconv.FormatUint(v, 10)}
	}
	real := func(v float64) types.AttributeValue {
		return &types.AttributeValueMemberN{Value: strconv.FormatFloat(v, 'f', -1, 64)}
	}
	return map[string]types.AttributeValue{
		partitionKey: text(run.Run.String() + "#" + m.bucket + "#" + m.site),
		sortKey:      text(time.Unix(int64(m.at), 0).UTC().Format(time.RFC3339)),
		"run":        text(run.Run.String()), "name": text(run.Name), "bucket": text(m.bucket), "site": text(m.site),
		"BytesDownloaded": whole(m.downloaded), "BytesUploaded": whole(m.uploaded), "TotalRequestLatency": real(m.latency),
		"TotalRequestLatency_p50": real(m.p50), "TotalRequestLatency_p90": real(m.p90), "TotalRequestLatency_p99": real(m.p99),
		"requests": whole(m.n), "errors": whole(m.wrong),
	}
}

// write puts items and repeats what the service leaves, ever more slowly,
// until it has gone nowhere for too long.
func (e *exporter) write(ctx context.Context, items []types.WriteRequest) error {
	idle, wait := 0, e.timing.Backoff
	for len(items) > 0 {
		out, err := e.client.BatchWriteItem(ctx, &dynamodb.BatchWriteItemInput{RequestItems: map[string][]types.WriteRequest{e.done.Table: items}})
		if err != nil {
			return e.explain(err, "write to the table %s after %d items", e.done.Table, e.done.Items)
		}
		left := out.UnprocessedItems[e.done.Table]
		e.done.Items += len(items) - len(left)
		if len(left) == 0 {
			return nil
		}
		e.done.Retries += len(left)
		if len(left) < len(items) {
			idle, wait = 0, e.timing.Backoff
		} else if idle++; idle >= maxAttempts {
			return refuse(http.StatusTooManyRequests, nil, "the table %s takes no more items: %d are written, %d were left %d times; the export can be repeated",
				e.done.Table, e.done.Items, len(left), idle)
		}
		items = left
		select {
		case <-ctx.Done():
			return fmt.Errorf("write to the table %s after %d items: %w", e.done.Table, e.done.Items, ctx.Err())
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, maxBackoff)
	}
	return nil
}
