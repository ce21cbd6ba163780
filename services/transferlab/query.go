package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/client"
)

type sqlCmd struct {
	Query  string `arg:"" help:"One query; - reads it from standard input."`
	Format string `help:"ClickHouse output format, if the query names none." default:"PrettyCompactMonoBlock"`
}

func (q *sqlCmd) Run(ctx context.Context, c *cli) error {
	query := q.Query
	if query == "-" {
		data, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
		if err != nil {
			return fmt.Errorf("read query: %w", err)
		}
		query = string(data)
	}
	format := q.Format
	if c.JSON {
		format = "JSON"
	}
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return s.SQL(ctx, query, format, os.Stdout)
}

type exportCmd struct {
	runRef
	Format string   `help:"csv, tsv, json, ndjson, parquet, arrow or native." default:"csv"`
	Out    string   `help:"File to write; - is standard output." default:"-"`
	Kind   []string `help:"Only events of these kinds, such as request."`
	View   string   `help:"events, s3_requests, s3_metrics_1m, s3_metrics_1s, probe_packets, netlab_checks or netlab_links." default:"events"`
}

func (e *exportCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	options := client.ExportOptions{Format: e.Format, Kinds: e.Kind, View: e.View}
	if e.Out == "-" {
		return s.Export(ctx, e.runRef.Run, options, os.Stdout)
	}
	// Nobody shall take half a file for the whole.
	temporary := e.Out + ".part"
	f, err := os.Create(temporary)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	err = s.Export(ctx, e.runRef.Run, options, f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temporary, e.Out)
	}
	if err != nil {
		_ = os.Remove(temporary)
		return fmt.Errorf("export to %s: %w", e.Out, err)
	}
	info, err := os.Stat(e.Out)
	if err != nil {
		return fmt.Errorf("export to %s: %w", e.Out, err)
	}
	say("%s: %s", e.Out, humanize.Bytes(uint64(info.Size())))
	return nil
}

type statusCmd struct{}

func (*statusCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.up(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	status, err := s.Status(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return show(os.Stdout, status)
	}
	printStatus(os.Stdout, &status)
	if !status.Healthy {
		return &exitError{code: exitFailure}
	}
	return nil
}

func printStatus(w io.Writer, s *api.Status) {
	health := "healthy"
	if !s.Healthy {
		health = "NOT healthy"
	}
	fmt.Fprintf(w, "transferlab %s, %s\n\nservices\n", s.Version, health)
	for _, v := range s.Services {
		fmt.Fprintf(w, "  %-12s %-10s %s\n", v.Name, v.Version, v.Error)
	}
	fmt.Fprintln(w, "\nagents")
	for _, a := range s.Agents {
		fmt.Fprintf(w, "  %-24s site %-12s %v, %d CPUs, %d tasks, labels %v\n", a.Name, a.Site, a.Workloads, a.CPUs, a.Busy, a.Labels)
	}
	lag := "unknown"
	if s.Events.Lag != nil {
		lag = fmt.Sprint(*s.Events.Lag)
	}
	fmt.Fprintf(w, "\nbus         %s of %s, %s batches not yet in the database\n",
		humanize.Bytes(s.Events.Bytes), humanize.Bytes(uint64(max(s.Events.MaxBytes, 0))), lag)
	fmt.Fprintf(w, "database    ClickHouse %s, %s events, %s on disk %s\n",
		s.ClickHouse.Version, humanize.Comma(int64(s.ClickHouse.Events)), humanize.Bytes(s.ClickHouse.Bytes), s.ClickHouse.Error)
	fmt.Fprintf(w, "runs        %v\n", s.Runs)
}

type scheduleCmd struct {
	Set scheduleSetCmd `cmd:"" help:"Let an experiment run by itself."`
	Ls  scheduleLsCmd  `cmd:"" help:"List them."`
	Rm  scheduleRmCmd  `cmd:"" help:"Stop one."`
}

type scheduleSetCmd struct {
	Name string `arg:"" help:"Name of the schedule."`
	Cron string `arg:"" help:"Minute hour day month weekday, or @every 10m, @hourly, @daily."`
	File string `arg:"" help:"Experiment file (YAML)."`
	Zone string `help:"Time zone of the expression." default:"UTC"`
	Seed uint64 `help:"Instead of the file's seed."`
}

func (r *scheduleSetCmd) Run(ctx context.Context, c *cli) error {
	data, _, err := readExperiment(r.File)
	if err != nil {
		return err
	}
	s, err := c.up(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	q := schemas.Recurring{Name: r.Name, Cron: r.Cron, Zone: r.Zone, File: string(data), Seed: r.Seed}
	if _, err := s.PutSchedule(ctx, q); err != nil {
		return err
	}
	say("%s runs %s (%s)", r.Name, r.Cron, r.Zone)
	return nil
}

type scheduleLsCmd struct{}

func (*scheduleLsCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	all, err := s.Schedules(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return show(os.Stdout, all)
	}
	for _, r := range all {
		fmt.Printf("%-24s %-20s %s\n", r.Name, r.Cron, r.Zone)
	}
	return nil
}

type scheduleRmCmd struct {
	Name string `arg:"" help:"Name of the schedule."`
}

func (r *scheduleRmCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return s.DeleteSchedule(ctx, r.Name)
}

// awsFlags say which account and where; credentials come from the lab's own
// environment, profile or role.
type awsFlags struct {
	Region   string `help:"AWS region."`
	Profile  string `help:"Profile of the shared AWS configuration."`
	Endpoint string `help:"URL that replaces the service's own."`
}

func (a awsFlags) aws() api.AWS {
	return api.AWS{Region: a.Region, Profile: a.Profile, Endpoint: a.Endpoint}
}

type seriesCmd struct {
	Import seriesImportCmd `cmd:"" help:"Bring S3 request metrics from CloudWatch beside the lab's own series."`
	Export seriesExportCmd `cmd:"" help:"Write a run's 1-minute series to a DynamoDB table."`
}

type seriesImportCmd struct {
	Buckets []string  `arg:"" help:"Buckets with request metrics switched on."`
	Start   time.Time `required:"" help:"First minute, RFC 3339."`
	End     time.Time `required:"" help:"Last minute, RFC 3339."`
	Filter  string    `help:"Id of the metrics configuration." default:"EntireBucket"`
	awsFlags
}

func (r *seriesImportCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	done, err := s.ImportCloudWatch(ctx, api.CloudWatchImport{AWS: r.aws(), Buckets: r.Buckets, FilterID: r.Filter, Start: r.Start, End: r.End})
	if err != nil {
		return err
	}
	return show(os.Stdout, done)
}

type seriesExportCmd struct {
	runRef
	Table string `help:"Table, made if it is missing." default:"s3-metrics"`
	awsFlags
}

func (r *seriesExportCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	done, err := s.ExportDynamoDB(ctx, r.runRef.Run, api.DynamoDBExport{AWS: r.aws(), Table: r.Table})
	if err != nil {
		return err
	}
	return show(os.Stdout, done)
}
