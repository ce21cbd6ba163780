package gateway

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/awsfake"
)

// The two exchanges with AWS through the API, with credentials from the
// environment as a user has them.
func TestAWS(t *testing.T) {
	account := awsfake.DefaultAccount()
	for name, value := range map[string]string{
		"AWS_PROFILE": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_SESSION_TOKEN": "", "AWS_ENDPOINT_URL": "", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": t.TempDir() + "/c", "AWS_SHARED_CREDENTIALS_FILE": t.TempDir() + "/s",
		"AWS_ACCESS_KEY_ID": account.AccessKey, "AWS_SECRET_ACCESS_KEY": account.SecretKey,
	} {
		t.Setenv(name, value)
	}
	r := newRig(t, nil)
	watch := awsfake.NewCloudWatch(account, 100)
	dynamo := awsfake.NewDynamoDB(account)
	watchServer, dynamoServer := httptest.NewServer(watch), httptest.NewServer(dynamo)
	defer watchServer.Close()
	defer dynamoServer.Close()

	end := time.Now().UTC().Truncate(time.Minute)
	watch.Put("AWS/S3", "BytesDownloaded", "Sum", map[string]string{"BucketName": "bucket1", "FilterId": "EntireBucket"}, awsfake.Point{At: end.Add(-5 * time.Minute), Value: 7})
	at := api.AWS{Region: account.Region, Endpoint: watchServer.URL}
	q := api.CloudWatchImport{AWS: at, Buckets: []string{"bucket1"}, Start: end.Add(-time.Hour), End: end}
	if done, err := r.client.ImportCloudWatch(t.Context(), q); err != nil || done.Points != 1 {
		t.Errorf("import: %+v, %v, want 1 point", done, err)
	}
	var b strings.Builder
	if err := r.client.SQL(t.Context(), "SELECT value FROM cloudwatch_metrics FINAL WHERE bucket = 'bucket1' FORMAT TSV", "", &b); err != nil || b.String() != "7\n" {
		t.Errorf("imported: %q, %v, want 7", b.String(), err)
	}
	wrong := q
	wrong.Region = "us-east-1"
	if _, err := r.client.ImportCloudWatch(t.Context(), wrong); client.Status(err) != 403 || !strings.Contains(err.Error(), "region") {
		t.Errorf("wrong region: %v, want 403", err)
	}
	for _, body := range []string{"", "{", "{}", `{"buckets": []}`, `{"buckets": ["b"], "start": "x", "end": "y"}`, `{"buckets": ["bucket1"], "secret": 1}`} {
		if resp := r.request("POST", "/v1/import/cloudwatch", body, "Content-Type", "application/json"); resp.StatusCode != 422 && resp.StatusCode != 400 {
			t.Errorf("import %q: %s, want 400 or 422", body, resp.Status)
		}
	}

	r.make(making{file: madeFile, requests: 10})
	done, err := r.client.ExportDynamoDB(t.Context(), "latest", api.DynamoDBExport{AWS: api.AWS{Region: account.Region, Endpoint: dynamoServer.URL}})
	if err != nil || !done.Created || done.Items == 0 || len(dynamo.Items("s3-metrics")) != done.Items {
		t.Errorf("export: %+v, %v", done, err)
	}
	running := r.make(making{file: madeFile, requests: 1, edit: func(x *made) { x.run.State = schemas.RunRunning }})
	if _, err := r.client.ExportDynamoDB(t.Context(), running.run.ID.String(), api.DynamoDBExport{}); client.Status(err) != 409 {
		t.Errorf("export of a run that goes on: %v, want 409", err)
	}
}

// A gateway that may only read says so.
func TestImportNeedsWriter(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ClickHouseWriter = "" })
	_, err := r.client.ImportCloudWatch(t.Context(), api.CloudWatchImport{Buckets: []string{"bucket1"}, Start: time.Now().Add(-time.Hour), End: time.Now()})
	if client.Status(err) != 409 || !strings.Contains(err.Error(), "--clickhouse") {
		t.Errorf("%v, want 409", err)
	}
}
