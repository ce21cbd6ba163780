package gateway

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/schemas/clickhouse/reports"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/measure"
)

// maxQuery is the longest query, in bytes; ClickHouse's own default is a
// quarter of it.
const maxQuery = 1 << 20

type sqlInput struct {
	Format  string `query:"format" maxLength:"64" pattern:"^[A-Za-z][A-Za-z0-9]*$" doc:"ClickHouse's output format where the query names none; TabSeparated if not given."`
	RawBody []byte `contentType:"text/plain" doc:"One query."`
}

func (g *Gateway) registerSQL() {
	query := operation("sql", http.MethodPost, "/v1/sql", "data", "Ask ClickHouse as a user that may only read; the answer is passed on as it is")
	query.MaxBodyBytes = maxQuery + 4096
	query.Responses = streamed("What ClickHouse answers, in the format of the query or of the parameter.", "text/tab-separated-values")
	huma.Register(g.api, query, func(_ context.Context, in *sqlInput) (*huma.StreamResponse, error) {
		text := string(in.RawBody)
		if strings.TrimSpace(text) == "" {
			return nil, problem(http.StatusUnprocessableEntity, "no query: the body is empty, want its text")
		}
		if len(text) > maxQuery {
			return nil, problem(http.StatusRequestEntityTooLarge, "the query has %d bytes, at most %d are allowed", len(text), maxQuery)
		}
		settings := map[string]string{}
		format := formatOf(text)
		if in.Format != "" {
			settings["default_format"] = in.Format
			if format == "" {
				format = in.Format
			}
		}
		return g.passOn(text, settings, contentType(format), "")
	})

	export := operation("export-run", http.MethodGet, "/v1/runs/{id}/export", "data", "All events of a run, as a file")
	export.Responses = streamed("The rows of the run.", "application/octet-stream")
	huma.Register(g.api, export, g.export)

	source := operation("export-source", http.MethodGet, "/v1/runs/{id}/export/source/{file}", "data", "One of the files that the source experiment of a swarm wrote")
	source.Responses = streamed("The file, with a header.", "text/csv")
	huma.Register(g.api, source, g.exportSource)
}

func streamed(description, mediaType string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {
		Description: description,
		Content:     map[string]*huma.MediaType{mediaType: {Schema: &huma.Schema{Type: "string", Format: "binary"}}},
	}}
}

// passOn streams ClickHouse's answer. An error before the first byte becomes a
// problem; one after it breaks the connection, so that nobody takes half an
// answer for a whole one.
func (g *Gateway) passOn(query string, settings map[string]string, contentType, file string) (*huma.StreamResponse, error) {
	release, err := g.take(g.heavy, "queries, reports and exports")
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer release()
		_, w := humago.Unwrap(hctx)
		out := &patientWriter{w: w, control: http.NewResponseController(w), begin: func(h http.Header) {
			h.Set("Content-Type", contentType)
			h.Set("Cache-Control", "no-store")
			if file != "" {
				h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", file))
			}
		}}
		ctx := hctx.Context()
		err := g.dsn.Query(ctx, query, settings, nil, out)
		switch {
		case err == nil && !out.begun:
			_, _ = out.Write(nil)
		case err == nil || ctx.Err() != nil:
		case out.begun:
			g.log.Warn("answer broken off", "error", err)
			panic(http.ErrAbortHandler)
		default:
			g.refuse(hctx, g.explain(ctx, err))
		}
	}}, nil
}

// refuse answers with a problem from within a stream that has not begun.
func (g *Gateway) refuse(ctx huma.Context, err error) {
	p := asProblem(err)
	ctx.SetHeader("Content-Type", "application/problem+json")
	ctx.SetStatus(p.Status)
	if err := g.api.Marshal(ctx.BodyWriter(), "application/json", p); err != nil {
		g.log.Debug("answer", "error", err)
	}
}

var formatClause = regexp.MustCompile(`(?i)\bFORMAT\s+([A-Za-z][A-Za-z0-9]*)\s*(?:SETTINGS\b[^;]*)?;?\s*$`)

// formatOf is the format a query names at its end, or "". It only labels the
// answer: what is in it is up to ClickHouse.
func formatOf(query string) string {
	if m := formatClause.FindStringSubmatch(query); m != nil {
		return m[1]
	}
	return ""
}

// contentType is the media type of one of ClickHouse's formats.
func contentType(format string) string {
	f := strings.ToLower(format)
	switch {
	case f == "", strings.HasPrefix(f, "tsv"), strings.HasPrefix(f, "tabseparated"):
		return "text/tab-separated-values; charset=utf-8"
	case strings.HasPrefix(f, "csv"):
		return "text/csv; charset=utf-8"
	case strings.HasPrefix(f, "jsoneachrow"), strings.HasPrefix(f, "jsoncompacteachrow"), f == "jsonlines", f == "ndjson", strings.HasPrefix(f, "jsonstringseachrow"):
		return "application/x-ndjson; charset=utf-8"
	case strings.HasPrefix(f, "json"):
		return "application/json; charset=utf-8"
	case f == "xml":
		return "application/xml; charset=utf-8"
	case f == "markdown":
		return "text/markdown; charset=utf-8"
	case strings.HasPrefix(f, "pretty"), f == "vertical", f == "values":
		return "text/plain; charset=utf-8"
	case f == "parquet":
		return "application/vnd.apache.parquet"
	case f == "arrow", f == "arrowstream":
		return "application/vnd.apache.arrow.stream"
	}
	return "application/octet-stream"
}

type exportInput struct {
	ID     string   `path:"id" maxLength:"64" doc:"Id of a run, the unique beginning of one, or latest."`
	Format string   `query:"format" enum:"csv,tsv,json,ndjson,parquet,arrow,native" default:"csv" doc:"csv and tsv have a header; json is one array; ndjson one object a line."`
	Kinds  []string `query:"kind,explode" maxItems:"32" doc:"Only events of these kinds, such as request, task, trial; all if not given."`
	View   string   `query:"view" enum:"events,s3_requests,s3_metrics_1m,s3_metrics_1s,probe_packets,netlab_checks,netlab_links,swarm_transfers,swarm_pieces,swarm_wire,swarm_interfaces,swarm_copies,swarm_seeds,offload_clips,offload_decisions" doc:"The table or view whose rows of the run are wanted; if not given, swarm_transfers or offload_clips of such a run of which no kinds are asked for, else events."`
}

// exportFormats are ClickHouse's names, with the settings that make them what
// other programs read.
func exportFormats(name string) (format string, settings map[string]string) {
	settings = map[string]string{"output_format_json_quote_64bit_integers": "0", "output_format_json_escape_forward_slashes": "0"}
	switch name {
	case "csv":
		return "CSVWithNames", settings
	case "tsv":
		return "TSVWithNames", settings
	case "json":
		settings["output_format_json_array_of_rows"] = "1"
		return "JSONEachRow", settings
	case "ndjson":
		return "JSONEachRow", settings
	case "parquet":
		// Strings, not byte arrays: else pandas shows bytes.
		settings["output_format_parquet_string_as_string"] = "1"
		return "Parquet", settings
	case "arrow":
		settings["output_format_arrow_string_as_string"] = "1"
		return "Arrow", settings
	}
	return "Native", settings
}

var kindWord = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

func (g *Gateway) export(ctx context.Context, in *exportInput) (*huma.StreamResponse, error) {
	run, err := g.run(ctx, in.ID)
	if err != nil {
		return nil, g.explain(ctx, err)
	}
	format, settings := exportFormats(in.Format)
	settings["param_run"] = run.ID.String()
	where, order := "run = {run:UUID}", ""
	view := in.View
	switch {
	case view != "":
	case run.Workload == schemas.WorkloadSwarm && len(in.Kinds) == 0:
		view = "swarm_transfers"
	case run.Workload == schemas.WorkloadOffload && len(in.Kinds) == 0:
		view = "offload_clips"
	default:
		view = "events"
	}
	if len(in.Kinds) > 0 {
		for _, k := range in.Kinds {
			if !kindWord.MatchString(k) {
				return nil, problem(http.StatusUnprocessableEntity, "kind: %.64q, want a lower-case word such as request", k)
			}
		}
		if view != "events" {
			return nil, problem(http.StatusUnprocessableEntity, "kind: only the view events has kinds, not %s", view)
		}
		settings["param_kinds"] = "['" + strings.Join(slices.Compact(slices.Sorted(slices.Values(in.Kinds))), "','") + "']"
		where += " AND kind IN {kinds:Array(String)}"
	}
	if view == "events" {
		// The table's own order: rows come as they are read.
		order = " ORDER BY run, trial, producer, seq"
	}
	query := "SELECT * FROM " + view + " WHERE " + where + order + " FORMAT " + format
	media := contentType(format)
	if in.Format == "json" {
		media = "application/json; charset=utf-8"
	}
	return g.passOn(query, settings, media, fmt.Sprintf("%s-%s.%s", run.Name, run.ID, in.Format))
}

type sourceInput struct {
	ID   string `path:"id" maxLength:"64" doc:"Id of a run, the unique beginning of one, or latest."`
	File string `path:"file" enum:"all_leechers_results.csv,leechers_performance_comparison.csv,all_leechers_summary.csv" doc:"Which of the files."`
}

// exportSource streams one of the source experiment's files. Iterations are
// counted, so the run must have ended and its events be there.
func (g *Gateway) exportSource(ctx context.Context, in *sourceInput) (*huma.StreamResponse, error) {
	run, err := g.run(ctx, in.ID)
	if err != nil {
		return nil, g.explain(ctx, err)
	}
	switch {
	case run.Workload != schemas.WorkloadSwarm:
		return nil, problem(http.StatusUnprocessableEntity, "run %s is of workload %s: only runs of %s have the source's files", run.ID, run.Workload, schemas.WorkloadSwarm)
	case !run.Ended():
		return nil, problem(http.StatusConflict, "run %s is %s: the source's files are made of runs that have ended", run.ID, run.State)
	}
	if err := g.awaitEvents(ctx, run.ID.String()); err != nil {
		return nil, g.explain(ctx, err)
	}
	name := map[string]string{
		api.SourceResults: reports.SwarmSourceResults, api.SourceComparison: reports.SwarmSourceComparison, api.SourceSummary: reports.SwarmSourceSummary,
	}[in.File]
	query, err := reports.Query(name)
	if err != nil {
		return nil, err
	}
	format, settings := exportFormats("csv")
	settings["param_run"] = run.ID.String()
	// What does not exist is an empty field, as in the files of the source.
	settings["format_csv_null_representation"] = ""
	return g.passOn(query+" FORMAT "+format, settings, contentType(format), in.File)
}

// awaitEvents returns when all events of a run that has ended are stored, or have
// had the time a report waits for them.
func (g *Gateway) awaitEvents(ctx context.Context, reference string) error {
	release, err := g.take(g.heavy, "queries, reports and exports")
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, g.cfg.Settle+reportPatience)
	defer cancel()
	conn, err := g.db()
	if err != nil {
		return err
	}
	in, err := g.input(ctx, reference)
	if err != nil {
		return err
	}
	_, _, _, err = measure.NewSource(conn).Select(ctx, in)
	return err
}
