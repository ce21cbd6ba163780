package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/measure"
	"github.com/transferlab/transferlab/services/gateway/series"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
)

// How long an exchange with AWS may take.
const awsPatience = 10 * time.Minute

func (g *Gateway) registerSeries() {
	huma.Register(g.api, operation("import-cloudwatch", http.MethodPost, "/v1/import/cloudwatch", "data", "Import CloudWatch's S3 request metrics into the table cloudwatch_metrics"),
		func(ctx context.Context, in *struct{ Body api.CloudWatchImport }) (*struct{ Body api.CloudWatchImported }, error) {
			release, err := g.take(g.heavy, "queries, reports and exports")
			if err != nil {
				return nil, err
			}
			defer release()
			ctx, cancel := context.WithTimeout(ctx, awsPatience)
			defer cancel()
			done, err := g.importCloudWatch(ctx, in.Body)
			if err != nil {
				return nil, g.explainAWS(ctx, err)
			}
			return &struct{ Body api.CloudWatchImported }{done}, nil
		})
	huma.Register(g.api, operation("export-dynamodb", http.MethodPost, "/v1/runs/{id}/export/dynamodb", "data", "Write a run's 1-minute series to a DynamoDB table"),
		func(ctx context.Context, in *struct {
			ID   string `path:"id" maxLength:"64" doc:"Id of a run, the unique beginning of one, or latest."`
			Body api.DynamoDBExport
		},
		) (*struct{ Body api.DynamoDBExported }, error) {
			release, err := g.take(g.heavy, "queries, reports and exports")
			if err != nil {
				return nil, err
			}
			defer release()
			ctx, cancel := context.WithTimeout(ctx, awsPatience)
			defer cancel()
			done, err := g.exportDynamoDB(ctx, in.ID, in.Body)
			if err != nil {
				return nil, g.explainAWS(ctx, err)
			}
			return &struct{ Body api.DynamoDBExported }{done}, nil
		})
}

func (g *Gateway) explainAWS(ctx context.Context, err error) error {
	var refusal *series.Refusal
	if errors.As(err, &refusal) {
		return problem(refusal.Status, "%s", err)
	}
	return g.explain(ctx, err)
}

func (g *Gateway) importCloudWatch(ctx context.Context, q api.CloudWatchImport) (api.CloudWatchImported, error) {
	if g.cfg.ClickHouseWriter == "" {
		return api.CloudWatchImported{}, problem(http.StatusConflict, "this gateway may not write to ClickHouse: start it with --clickhouse")
	}
	conn, err := clickhouse.Open(ctx, g.cfg.ClickHouseWriter)
	if err != nil {
		return api.CloudWatchImported{}, err
	}
	defer func() { _ = conn.Close() }()
	return series.Import(ctx, conn, series.Settings{AWS: q.AWS}, q)
}

func (g *Gateway) exportDynamoDB(ctx context.Context, reference string, q api.DynamoDBExport) (api.DynamoDBExported, error) {
	conn, err := g.db()
	if err != nil {
		return api.DynamoDBExported{}, err
	}
	in, err := g.input(ctx, reference)
	if err != nil {
		return api.DynamoDBExported{}, err
	}
	run := in.Run
	if !run.Ended() {
		return api.DynamoDBExported{}, problem(http.StatusConflict, "run %s is %s: its series is exported when it has ended", run.ID, run.State)
	}
	// It waits for the events of a run that has just ended.
	if _, _, _, err := measure.NewSource(conn).Select(ctx, in); err != nil {
		return api.DynamoDBExported{}, err
	}
	done, err := series.Export(ctx, conn, series.Settings{AWS: q.AWS}, series.Head{Run: run.ID, Name: run.Name}, q.Table, series.Timing{})
	if err != nil {
		return done, fmt.Errorf("export run %s: %w", run.ID, err)
	}
	return done, nil
}
