package series

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	migrations "github.com/transferlab/transferlab/schemas/clickhouse"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/internal/awsfake"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

func TestMain(m *testing.M) { chtest.Main(m) }

// isolate keeps the machine's own AWS configuration out of the test.
func isolate(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/config")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/credentials")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func settings(endpoint string) Settings {
	a := awsfake.DefaultAccount()
	return Settings{AWS: api.AWS{Region: a.Region, Endpoint: endpoint}, Keys: &aws.Credentials{AccessKeyID: a.AccessKey, SecretAccessKey: a.SecretKey}, Backoff: time.Millisecond}
}

func refusal(t *testing.T, err error, status int, texts ...string) {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Status != status {
		t.Errorf("error %v, want a refusal with %d", err, status)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q, want %q in it", err, text)
		}
	}
}

// count asks for one number.
func count(t *testing.T, conn driver.Conn, query string) uint64 {
	t.Helper()
	var n uint64
	if err := conn.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestImport(t *testing.T) {
	isolate(t)
	conn := chtest.Conn(t)
	fake := awsfake.NewCloudWatch(awsfake.DefaultAccount(), 500)
	server := httptest.NewServer(fake)
	defer server.Close()
	end := time.Now().UTC().Truncate(time.Minute)
	start := end.Add(-2 * time.Hour)
	bucket := "b-" + uuid.NewString()[:8]
	dimensions := map[string]string{"BucketName": bucket, "FilterId": "EntireBucket"}
	for i := range 120 {
		at := start.Add(time.Duration(i) * time.Minute)
		if i%40 == 7 {
			continue // CloudWatch leaves minutes out
		}
		fake.Put("AWS/S3", "BytesDownloaded", "Sum", dimensions, awsfake.Point{At: at, Value: float64(1000 * i)})
		for _, statistic := range []string{"Average", "Maximum", "p50", "p90", "p99"} {
			fake.Put("AWS/S3", "TotalRequestLatency", statistic, dimensions, awsfake.Point{At: at, Value: float64(i) + .25})
		}
	}
	q := api.CloudWatchImport{Buckets: []string{bucket}, Start: start, End: end}
	for round := range 2 {
		fake.Throttle(2)
		done, err := Import(t.Context(), conn, settings(server.URL), q)
		if err != nil {
			t.Fatal(err)
		}
		if done.Points != 6*117 || done.Pages < 2 || done.Series[bucket+"/BytesDownloaded/Sum"] != 117 || done.Series[bucket+"/TotalRequestLatency/p99"] != 117 {
			t.Errorf("round %d: %+v, want 6 series of 117 points in several pages", round, done)
		}
	}
	// Importing again replaces.
	if n := count(t, conn, "SELECT count() FROM cloudwatch_metrics FINAL WHERE bucket = '"+bucket+"'"); n != 6*117 {
		t.Errorf("%d points in the table, want %d", n, 6*117)
	}
	if n := count(t, conn, fmt.Sprintf("SELECT toUInt64(value) FROM cloudwatch_metrics FINAL WHERE bucket = '%s' AND metric = 'BytesDownloaded' AND statistic = 'Sum' AND ts = toDateTime(%d, 'UTC')",
		bucket, start.Add(100*time.Minute).Unix())); n != 100_000 {
		t.Errorf("minute 100: %d, want 100000", n)
	}
	if n := count(t, conn, "SELECT toUInt64(sum(value)) FROM cloudwatch_metrics FINAL WHERE bucket = '"+bucket+"' AND metric = 'BytesDownloaded'"); n != 1000*(119*120/2-7-47-87) {
		t.Errorf("sum %d, want %d", n, 1000*(119*120/2-7-47-87))
	}
}

// A request of more series than one call takes.
func TestImportManySeries(t *testing.T) {
	isolate(t)
	conn := chtest.Conn(t)
	fake := awsfake.NewCloudWatch(awsfake.DefaultAccount(), 100_000)
	server := httptest.NewServer(fake)
	defer server.Close()
	end := time.Now().UTC().Truncate(time.Minute)
	var buckets []string
	for i := range 60 {
		b := fmt.Sprintf("many-%d", i)
		buckets = append(buckets, b)
		fake.Put("AWS/S3", "AllRequests", "Sum", map[string]string{"BucketName": b, "FilterId": "mine"}, awsfake.Point{At: end.Add(-time.Minute), Value: 1})
	}
	done, err := Import(t.Context(), conn, settings(server.URL), api.CloudWatchImport{Buckets: buckets, FilterID: "mine", Start: end.Add(-10 * time.Minute), End: end})
	if err != nil || done.Points != 60 || fake.Calls() != 3 {
		t.Errorf("%+v in %d calls, %v; want 60 points in 3", done, fake.Calls(), err)
	}
}

func TestImportRefusals(t *testing.T) {
	isolate(t)
	conn := chtest.Conn(t)
	fake := awsfake.NewCloudWatch(awsfake.DefaultAccount(), 100)
	server := httptest.NewServer(fake)
	defer server.Close()
	now := time.Now().UTC()
	good := func() api.CloudWatchImport {
		return api.CloudWatchImport{Buckets: []string{"bucket1"}, Start: now.Add(-time.Hour), End: now}
	}
	for name, c := range map[string]struct {
		change func(*api.CloudWatchImport)
		text   string
	}{
		"no buckets":   {func(q *api.CloudWatchImport) { q.Buckets = nil }, "buckets"},
		"bucket":       {func(q *api.CloudWatchImport) { q.Buckets = []string{"A"} }, "lower-case"},
		"metric":       {func(q *api.CloudWatchImport) { q.Metrics = []string{"Byte"} }, "BytesDownloaded"},
		"period":       {func(q *api.CloudWatchImport) { q.Period = 61 }, "multiple of 60"},
		"no times":     {func(q *api.CloudWatchImport) { q.Start, q.End = time.Time{}, time.Time{} }, "required"},
		"backwards":    {func(q *api.CloudWatchImport) { q.End = q.Start.Add(-time.Hour) }, "after start"},
		"future":       {func(q *api.CloudWatchImport) { q.Start, q.End = now.Add(time.Hour), now.Add(2*time.Hour) }, "future"},
		"long ago":     {func(q *api.CloudWatchImport) { q.Start = now.AddDate(-2, 0, 0) }, "455 days"},
		"old minutes":  {func(q *api.CloudWatchImport) { q.Start = now.AddDate(0, -1, 0) }, "15 days"},
		"too many":     {func(q *api.CloudWatchImport) { q.Start = now.AddDate(0, 0, -14); q.Buckets = manyBuckets() }, "at most"},
		"no such zone": {func(q *api.CloudWatchImport) { q.Period = -60 }, "period_s"},
	} {
		t.Run(name, func(t *testing.T) {
			q := good()
			c.change(&q)
			_, err := Import(t.Context(), conn, settings(server.URL), q)
			refusal(t, err, 422, c.text)
		})
	}
	t.Run("region", func(t *testing.T) {
		s := settings(server.URL)
		s.Region = "us-east-1"
		_, err := Import(t.Context(), conn, s, good())
		refusal(t, err, 403, "us-east-1", "is the region right")
	})
	t.Run("key", func(t *testing.T) {
		s := settings(server.URL)
		s.Keys.AccessKeyID = "AKIAOTHER"
		_, err := Import(t.Context(), conn, s, good())
		refusal(t, err, 403, "UnrecognizedClient")
	})
	t.Run("secret", func(t *testing.T) {
		s := settings(server.URL)
		s.Keys.SecretAccessKey = "other-secret"
		_, err := Import(t.Context(), conn, s, good())
		refusal(t, err, 403, "InvalidSignature")
		if strings.Contains(err.Error(), "other-secret") {
			t.Error("the error shows the secret")
		}
	})
	t.Run("denied", func(t *testing.T) {
		fake.Deny(true)
		defer fake.Deny(false)
		_, err := Import(t.Context(), conn, settings(server.URL), good())
		refusal(t, err, 403, "not authorized", "lack the right")
	})
	t.Run("throttled for good", func(t *testing.T) {
		fake.Throttle(1000)
		defer fake.Throttle(0)
		_, err := Import(t.Context(), conn, settings(server.URL), good())
		refusal(t, err, 429, "Rate exceeded")
	})
	t.Run("endpoint", func(t *testing.T) {
		for _, endpoint := range []string{"x", "ftp://x", "http://a:b@c"} {
			_, err := Import(t.Context(), conn, settings(endpoint), good())
			refusal(t, err, 422, "endpoint")
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		gone := httptest.NewServer(nil)
		gone.Close()
		if _, err := Import(t.Context(), conn, settings(gone.URL), good()); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%v, want connection refused", err)
		}
	})
	t.Run("no region", func(t *testing.T) {
		s := settings(server.URL)
		s.Region = ""
		_, err := Import(t.Context(), conn, s, good())
		refusal(t, err, 422, "region")
	})
	t.Run("no credentials", func(t *testing.T) {
		s := settings(server.URL)
		s.Keys = nil
		_, err := Import(t.Context(), conn, s, good())
		refusal(t, err, 403, "no AWS credentials")
	})
	t.Run("no such profile", func(t *testing.T) {
		s := settings(server.URL)
		s.Profile = "nobody"
		_, err := Import(t.Context(), conn, s, good())
		refusal(t, err, 422, `"nobody"`)
	})
}

func manyBuckets() []string {
	var all []string
	for i := range 100 {
		all = append(all, fmt.Sprintf("bucket-%d", i))
	}
	return all
}

// storeRun stores requests over some minutes and returns the run.
func storeRun(t *testing.T, minutes int) Head {
	t.Helper()
	server := chtest.Start(t)
	if err := clickhouse.Migrate(t.Context(), chtest.Conn(t), migrations.Migrations); err != nil {
		t.Fatal(err)
	}
	insert, err := clickhouse.NewInserter(server.LabDSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = insert.Close() }()
	run := Head{Run: uuid.Must(uuid.NewV7()), Name: "made"}
	block := schemas.NewBlock("p/" + run.Run.String())
	start := time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)
	seq := uint64(0)
	for i := range minutes {
		if i == 1 {
			continue // a gap, which the view fills
		}
		for j := range 3 {
			seq++
			block.Append(&schemas.Event{
				Intended: start.Add(time.Duration(i) * time.Minute), Run: run.Run, Trial: 0, Attempt: 1, Workload: "s3", Service: "s3-loader",
				Site: "oregon", Agent: "oregon-1", Kind: schemas.KindRequest, Duration: time.Duration(j+1) * time.Millisecond, Bytes: 1000, Status: schemas.StatusOK,
				Attrs: []schemas.Attr{{Key: "bucket", Value: fmt.Sprintf("bucket%d", j%2+1)}, {Key: "op", Value: "get"}},
			}, seq)
		}
	}
	data, err := block.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := insert.Insert(t.Context(), "events", run.Run.String(), [][]byte{data}); err != nil {
		t.Fatal(err)
	}
	return run
}

var quick = Timing{Backoff: time.Millisecond, Poll: time.Millisecond}

func TestExport(t *testing.T) {
	isolate(t)
	conn := chtest.ReaderConn(t)
	run := storeRun(t, 40)
	fake := awsfake.NewDynamoDB(awsfake.DefaultAccount())
	server := httptest.NewServer(fake)
	defer server.Close()
	fake.Creating(3)
	fake.LeaveUnprocessed(30)
	done, err := Export(t.Context(), conn, settings(server.URL), run, "", quick)
	if err != nil {
		t.Fatal(err)
	}
	// 40 minutes of two buckets.
	if done.Table != "s3-metrics" || !done.Created || done.Items != 80 || done.Retries < 30 {
		t.Errorf("%+v, want 80 items in a new table s3-metrics with 30 sent again", done)
	}
	items := fake.Items("s3-metrics")
	if len(items) != 80 {
		t.Fatalf("%d items, want 80", len(items))
	}
	attribute := func(item map[string]any, name, kind string) string {
		v, _ := item[name].(map[string]any)
		s, _ := v[kind].(string)
		return s
	}
	gaps := 0
	for _, item := range items {
		ts, bucket := attribute(item, "ts", "S"), attribute(item, "bucket", "S")
		if attribute(item, "series", "S") != run.Run.String()+"#"+bucket+"#oregon" || attribute(item, "name", "S") != "made" {
			t.Fatalf("item %v", item)
		}
		want := map[string]string{"bucket1": "2000", "bucket2": "1000"}[bucket]
		latency := "2" // of 1 and 3 ms, and of 2 ms
		if ts == "2026-03-01T12:01:00Z" {
			gaps++
			want, latency = "0", "0"
		}
		if attribute(item, "BytesDownloaded", "N") != want || attribute(item, "TotalRequestLatency", "N") != latency {
			t.Errorf("%s %s: %s bytes, %s ms; want %s, %s", ts, bucket, attribute(item, "BytesDownloaded", "N"), attribute(item, "TotalRequestLatency", "N"), want, latency)
		}
	}
	if gaps != 2 {
		t.Errorf("%d items of the minute without requests, want 2", gaps)
	}
	// Again: the same items, nothing twice; throttling in between passes.
	fake.Throttle(2)
	done, err = Export(t.Context(), conn, settings(server.URL), run, "s3-metrics", quick)
	if err != nil || done.Created || done.Items != 80 || len(fake.Items("s3-metrics")) != 80 {
		t.Errorf("again: %+v, %v, %d items, want the same 80", done, err, len(fake.Items("s3-metrics")))
	}
}

func TestExportRefusals(t *testing.T) {
	isolate(t)
	conn := chtest.ReaderConn(t)
	run := storeRun(t, 3)
	fake := awsfake.NewDynamoDB(awsfake.DefaultAccount())
	server := httptest.NewServer(fake)
	defer server.Close()
	t.Run("table", func(t *testing.T) {
		_, err := Export(t.Context(), conn, settings(server.URL), run, "a b", quick)
		refusal(t, err, 422, "table")
	})
	t.Run("denied", func(t *testing.T) {
		fake.Deny(true)
		defer fake.Deny(false)
		_, err := Export(t.Context(), conn, settings(server.URL), run, "", quick)
		refusal(t, err, 403, "not authorized")
	})
	t.Run("region", func(t *testing.T) {
		s := settings(server.URL)
		s.Region = "us-east-1"
		_, err := Export(t.Context(), conn, s, run, "", quick)
		refusal(t, err, 403, "is the region right")
	})
	t.Run("stuck", func(t *testing.T) {
		fake.Stick(true)
		defer fake.Stick(false)
		done, err := Export(t.Context(), conn, settings(server.URL), run, "stuck-table", Timing{Backoff: time.Microsecond, Poll: time.Millisecond})
		refusal(t, err, 429, "takes no more items", "repeated")
		if done.Items != 0 || done.Retries != 6*maxAttempts {
			t.Errorf("%+v, want no items after %d attempts", done, maxAttempts)
		}
	})
	t.Run("other keys", func(t *testing.T) {
		fake.Define("other-keys", "id", "")
		_, err := Export(t.Context(), conn, settings(server.URL), run, "other-keys", quick)
		refusal(t, err, 409, "other keys")
	})
}
