package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
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
	Format string   `help:"csv, tsv, json, ndjson, parquet, arrow or native; of a swarm run also source-csv: the three files of the source experiment." default:"csv"`
	Out    string   `help:"File to write; - is standard output. With source-csv a directory." default:"-"`
	Kind   []string `help:"Only events of these kinds, such as request."`
	View   string   `help:"events, s3_requests, s3_metrics_1m, s3_metrics_1s, probe_packets, netlab_checks, netlab_links, swarm_transfers, swarm_pieces, swarm_wire, swarm_interfaces, swarm_copies, swarm_seeds, offload_clips or offload_decisions; if not given swarm_transfers of a swarm run, offload_clips of an offload run, else events."`
}

// sourceCSV is the format that is files of their own.
const sourceCSV = "source-csv"

func (e *exportCmd) Run(ctx context.Context, c *cli) error {
	if e.Format == sourceCSV {
		return e.source(ctx, c)
	}
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	options := client.ExportOptions{Format: e.Format, Kinds: e.Kind, View: e.View}
	if e.Out == "-" {
		return s.Export(ctx, e.runRef.Run, options, os.Stdout)
	}
	return writeFiles([]string{e.Out}, func(_ string, w io.Writer) error { return s.Export(ctx, e.runRef.Run, options, w) })
}

// source writes the files of the source experiment of a swarm run.
func (e *exportCmd) source(ctx context.Context, c *cli) error {
	switch {
	case e.Out == "-" || e.Out == "":
		return usage("--out: missing, want a directory: --format %s writes %s into it", sourceCSV, strings.Join(api.SourceFiles(), ", "))
	case len(e.Kind) > 0 || e.View != "":
		return usage("--kind and --view choose rows of other formats: %s has its own", sourceCSV)
	}
	if info, err := os.Stat(e.Out); err == nil && !info.IsDir() {
		return usage("--out: %s is a file, want a directory", e.Out)
	}
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	run, err := s.Run(ctx, e.runRef.Run)
	if err != nil {
		return err
	}
	if run.Workload != schemas.WorkloadSwarm {
		return usage("--format %s: run %s is of workload %s, and only runs of %s have these files", sourceCSV, run.ID, run.Workload, schemas.WorkloadSwarm)
	}
	if err := os.MkdirAll(e.Out, 0o755); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	var paths []string
	for _, name := range api.SourceFiles() {
		paths = append(paths, filepath.Join(e.Out, name))
	}
	return writeFiles(paths, func(path string, w io.Writer) error {
		return s.ExportSource(ctx, run.ID.String(), filepath.Base(path), w)
	})
}

// writeFiles writes files under other names and gives them theirs when all are
// complete: nobody shall take half a file for the whole.
func writeFiles(paths []string, write func(path string, w io.Writer) error) error {
	const unfinished = ".part"
	defer func() {
		for _, path := range paths {
			_ = os.Remove(path + unfinished)
		}
	}()
	for _, path := range paths {
		f, err := os.Create(path + unfinished)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		err = write(path, f)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("export to %s: %w", path, err)
		}
	}
	for _, path := range paths {
		if err := os.Rename(path+unfinished, path); err != nil {
			return fmt.Errorf("export: %w", err)
		}
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		say("%s: %s", path, humanize.Bytes(uint64(info.Size())))
	}
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
