package series

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"github.com/transferlab/transferlab/services/gateway/api"
)

// Limits of an import.
const (
	queriesPerCall = 500       // CloudWatch's own
	maxPoints      = 2_000_000 // in all, by the times and metrics asked for
	maxPages       = 10_000
)

// Metric is one of CloudWatch's S3 request metrics with the statistics that
// mean something for it.
type Metric struct {
	Name       string
	Statistics []string
}

// Metrics are those that can be imported.
func Metrics() []Metric {
	sum := []string{"Sum"}
	latency := []string{"Average", "Maximum", "p50", "p90", "p99"}
	return []Metric{
		{"AllRequests", sum},
		{"GetRequests", sum},
		{"PutRequests", sum},
		{"DeleteRequests", sum},
		{"HeadRequests", sum},
		{"PostRequests", sum},
		{"ListRequests", sum},
		{"SelectRequests", sum},
		{"BytesDownloaded", []string{"Sum", "Average"}},
		{"BytesUploaded", []string{"Sum", "Average"}},
		{"4xxErrors", sum},
		{"5xxErrors", sum},
		{"FirstByteLatency", latency},
		{"TotalRequestLatency", latency},
	}
}

// usualMetrics are imported unless others are asked for.
func usualMetrics() []string {
	return []string{"AllRequests", "GetRequests", "PutRequests", "BytesDownloaded", "BytesUploaded", "4xxErrors", "5xxErrors", "FirstByteLatency", "TotalRequestLatency"}
}

// CreateTable makes the table of imported points, where that has not happened
// yet. Points that are imported again replace the earlier ones: read it with
// FINAL.
const CreateTable = `CREATE TABLE IF NOT EXISTS cloudwatch_metrics
(
    ts          DateTime('UTC')        CODEC(Delta, ZSTD(1)),
    region      LowCardinality(String),
    bucket      LowCardinality(String),
    filter_id   LowCardinality(String),
    metric      LowCardinality(String),
    statistic   LowCardinality(String),
    period_s    UInt32,
    value       Float64                CODEC(ZSTD(1)),
    imported_at DateTime64(3, 'UTC')   CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(imported_at)
ORDER BY (bucket, filter_id, metric, statistic, period_s, region, ts)`

// one is one series asked for.
type one struct{ bucket, metric, statistic string }

func (o one) String() string { return o.bucket + "/" + o.metric + "/" + o.statistic }

// plan checks a request, fills in what it leaves out and lists the series.
func plan(q *api.CloudWatchImport, now time.Time) ([]one, error) {
	bad := func(format string, args ...any) error {
		return refuse(http.StatusUnprocessableEntity, nil, format, args...)
	}
	if q.FilterID == "" {
		q.FilterID = "EntireBucket"
	}
	if q.Period == 0 {
		q.Period = 60
	}
	if len(q.Metrics) == 0 {
		q.Metrics = usualMetrics()
	}
	if q.Period < 60 || q.Period > 86400 || q.Period%60 != 0 {
		return nil, bad("period_s: %d, want a multiple of 60 up to 86400", q.Period)
	}
	if len(q.Buckets) == 0 || len(q.Buckets) > 100 {
		return nil, bad("buckets: %d, want 1 to 100", len(q.Buckets))
	}
	name := regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	for _, b := range q.Buckets {
		if !name.MatchString(b) {
			return nil, bad("buckets: %.64q, want 3 to 63 lower-case letters, digits, dots and hyphens", b)
		}
	}
	period := time.Duration(q.Period) * time.Second
	q.Start, q.End = q.Start.UTC().Truncate(period), q.End.UTC()
	switch {
	case q.Start.IsZero() || q.End.IsZero():
		return nil, bad("start, end: both are required, as 2026-11-22T10:00:00Z")
	case !q.Start.Before(q.End):
		return nil, bad("end: %s, want a time after start (%s)", q.End.Format(time.RFC3339), q.Start.Format(time.RFC3339))
	case q.Start.After(now):
		return nil, bad("start: %s is in the future", q.Start.Format(time.RFC3339))
	case now.Sub(q.Start) > 455*24*time.Hour:
		return nil, bad("start: %s, but CloudWatch keeps metrics for 455 days", q.Start.Format(time.RFC3339))
	case now.Sub(q.Start) > 15*24*time.Hour && q.Period < 300:
		return nil, bad("period_s: %d, but CloudWatch keeps points of a minute for 15 days: want 300 or more (3600 after 63 days)", q.Period)
	}
	var all []one
	for _, bucket := range slices.Compact(slices.Sorted(slices.Values(q.Buckets))) {
		for _, metric := range slices.Compact(slices.Sorted(slices.Values(q.Metrics))) {
			i := slices.IndexFunc(Metrics(), func(m Metric) bool { return m.Name == metric })
			if i < 0 {
				var names []string
				for _, m := range Metrics() {
					names = append(names, m.Name)
				}
				return nil, bad("metrics: %.64q, want some of %s", metric, strings.Join(names, ", "))
			}
			for _, statistic := range Metrics()[i].Statistics {
				all = append(all, one{bucket, metric, statistic})
			}
		}
	}
	if points := int64(len(all)) * (int64(q.End.Sub(q.Start)/period) + 1); points > maxPoints {
		return nil, bad("%d series over %s are up to %d points, at most %d are allowed: ask for less time or fewer buckets and metrics, or a longer period", len(all), q.End.Sub(q.Start), points, maxPoints)
	}
	return all, nil
}

// Import fetches series from CloudWatch and stores them in the table
// cloudwatch_metrics, through a connection that may write.
func Import(ctx context.Context, conn driver.Conn, s Settings, q api.CloudWatchImport) (api.CloudWatchImported, error) {
	done := api.CloudWatchImported{Series: map[string]int{}}
	all, err := plan(&q, time.Now())
	if err != nil {
		return done, err
	}
	cfg, err := load(ctx, s)
	if err != nil {
		return done, err
	}
	if err := conn.Exec(ctx, CreateTable); err != nil {
		return done, fmt.Errorf("create the table cloudwatch_metrics: %w", err)
	}
	client := cloudwatch.NewFromConfig(cfg)
	for chunk := range slices.Chunk(all, queriesPerCall) {
		pages := cloudwatch.NewGetMetricDataPaginator(client, request(&q, chunk))
		for pages.HasMorePages() {
			if done.Pages++; done.Pages > maxPages {
				return done, fmt.Errorf("CloudWatch answers in more than %d pages", maxPages)
			}
			page, err := pages.NextPage(ctx)
			if err != nil {
				return done, explain(err, s, cfg.Region, "read CloudWatch metrics")
			}
			if err := store(ctx, conn, &q, cfg.Region, chunk, page, &done); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

func request(q *api.CloudWatchImport, chunk []one) *cloudwatch.GetMetricDataInput {
	in := &cloudwatch.GetMetricDataInput{StartTime: &q.Start, EndTime: &q.End, ScanBy: types.ScanByTimestampAscending}
	for i, o := range chunk {
		in.MetricDataQueries = append(in.MetricDataQueries, types.MetricDataQuery{
			Id: aws.String(fmt.Sprintf("q%d", i)),
			MetricStat: &types.MetricStat{
				Metric: &types.Metric{
					Namespace: aws.String("AWS/S3"), MetricName: aws.String(o.metric),
					Dimensions: []types.Dimension{
						{Name: aws.String("BucketName"), Value: aws.String(o.bucket)},
						{Name: aws.String("FilterId"), Value: aws.String(q.FilterID)},
					},
				},
				Period: aws.Int32(int32(q.Period)), Stat: aws.String(o.statistic),
			},
		})
	}
	return in
}

func store(ctx context.Context, conn driver.Conn, q *api.CloudWatchImport, region string, chunk []one, page *cloudwatch.GetMetricDataOutput, done *api.CloudWatchImported) error {
	for _, m := range page.Messages {
		done.Partial = append(done.Partial, fmt.Sprintf("%s: %s", aws.ToString(m.Code), aws.ToString(m.Value)))
	}
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO cloudwatch_metrics")
	if err != nil {
		return fmt.Errorf("store CloudWatch points: %w", err)
	}
	defer func() { _ = batch.Close() }()
	now := time.Now().UTC()
	for _, r := range page.MetricDataResults {
		var i int
		if _, err := fmt.Sscanf(aws.ToString(r.Id), "q%d", &i); err != nil || i < 0 || i >= len(chunk) || len(r.Timestamps) != len(r.Values) {
			return fmt.Errorf("CloudWatch answers with a series %.32q of %d times and %d values that nobody asked for", aws.ToString(r.Id), len(r.Timestamps), len(r.Values))
		}
		o := chunk[i]
		switch r.StatusCode {
		case types.StatusCodeForbidden:
			return refuse(http.StatusForbidden, nil, "CloudWatch refuses the series %s", o)
		case types.StatusCodeInternalError:
			return fmt.Errorf("CloudWatch failed on the series %s", o)
		}
		if done.Points += len(r.Values); done.Points > 2*maxPoints {
			return fmt.Errorf("CloudWatch answers with more points than were asked for")
		}
		done.Series[o.String()] += len(r.Values)
		for j, ts := range r.Timestamps {
			if err := batch.Append(ts.UTC(), region, o.bucket, q.FilterID, o.metric, o.statistic, uint32(q.Period), r.Values[j], now); err != nil {
				return fmt.Errorf("store CloudWatch points: %w", err)
			}
		}
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("store CloudWatch points: %w", err)
	}
	return nil
}
