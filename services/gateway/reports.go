package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/compare"
	"github.com/transferlab/transferlab/services/gateway/measure"
	"github.com/transferlab/transferlab/services/internal/report"
)

// How long a report may take beyond the wait for events.
const reportPatience = 2 * time.Minute

type reportInput struct {
	ID     string `path:"id" maxLength:"64" doc:"Id of a run, the unique beginning of one, or latest."`
	Format string `query:"format" enum:"json,csv,table" default:"json"`
}

type compareInput struct {
	A         string  `query:"a" required:"true" maxLength:"64" doc:"Run to compare with."`
	B         string  `query:"b" required:"true" maxLength:"64" doc:"Run that is judged."`
	Format    string  `query:"format" enum:"json,csv,table" default:"json"`
	MinEffect float64 `query:"min_effect" exclusiveMinimum:"0" maximum:"10" default:"0.05" doc:"Smallest relative difference of interest."`
	Alpha     float64 `query:"alpha" exclusiveMinimum:"0" maximum:"0.5" default:"0.05" doc:"Level of the tests, after Holm's correction."`
}

// rendered is a document in the format that was asked for.
type rendered struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func (g *Gateway) registerReports() {
	text := func(o huma.Operation, schema *huma.Schema) huma.Operation {
		o.Responses = map[string]*huma.Response{"200": {
			Description: "The document in the format asked for.",
			Content: map[string]*huma.MediaType{
				"application/json": {Schema: schema}, "text/csv": {}, "text/plain": {},
			},
		}}
		return o
	}
	registry := g.api.OpenAPI().Components.Schemas
	huma.Register(g.api, text(operation("report", http.MethodGet, "/v1/runs/{id}/report", "reports", "What a run measured, and whether it may be believed"),
		huma.SchemaFromType(registry, reflect.TypeFor[report.Report]())),
		func(ctx context.Context, in *reportInput) (*rendered, error) {
			release, err := g.take(g.heavy, "queries, reports and exports")
			if err != nil {
				return nil, err
			}
			defer release()
			ctx, cancel := context.WithTimeout(ctx, g.cfg.Settle+reportPatience)
			defer cancel()
			r, err := g.report(ctx, in.ID)
			if err != nil {
				return nil, g.explain(ctx, err)
			}
			return render(r.Write, in.Format)
		})
	huma.Register(g.api, text(operation("compare", http.MethodGet, "/v1/compare", "reports", "Whether run B is better or worse than run A, metric by metric"),
		huma.SchemaFromType(registry, reflect.TypeFor[report.Comparison]())),
		func(ctx context.Context, in *compareInput) (*rendered, error) {
			release, err := g.take(g.heavy, "queries, reports and exports")
			if err != nil {
				return nil, err
			}
			defer release()
			ctx, cancel := context.WithTimeout(ctx, 2*g.cfg.Settle+reportPatience)
			defer cancel()
			c, err := g.compare(ctx, in)
			if err != nil {
				return nil, g.explain(ctx, err)
			}
			return render(c.Write, in.Format)
		})
}

func render(write func(io.Writer, string) error, format string) (*rendered, error) {
	var b bytes.Buffer
	if err := write(&b, format); err != nil {
		return nil, fmt.Errorf("render as %s: %w", format, err)
	}
	types := map[string]string{
		report.FormatJSON: "application/json", report.FormatCSV: "text/csv; charset=utf-8", report.FormatTable: "text/plain; charset=utf-8",
	}
	return &rendered{ContentType: types[format], Body: b.Bytes()}, nil
}

// input gathers what a report needs beside the events.
func (g *Gateway) input(ctx context.Context, reference string) (measure.Input, error) {
	in := measure.Input{Machine: g.machine, Version: g.node.Version, Settle: g.cfg.Settle}
	var err error
	if in.Run, err = g.run(ctx, reference); err != nil {
		return in, err
	}
	if !slices.Contains(schemas.Workloads(), in.Run.Workload) {
		return in, problem(http.StatusUnprocessableEntity, "run %s is of workload %q: this version reports on %s", in.Run.ID, in.Run.Workload, strings.Join(schemas.Workloads(), ", "))
	}
	states, err := g.tasks.List(ctx, "task."+in.Run.ID.String()+".>")
	if err != nil {
		return in, err
	}
	for _, e := range states {
		_, trial, attempt, err := measure.ParseTaskKey(e.Key)
		if err != nil {
			return in, err
		}
		in.Accounts = append(in.Accounts, measure.Account{Trial: trial, Attempt: attempt, State: e.Value})
	}
	in.Agents, err = g.presentAgents(ctx)
	return in, err
}

func (g *Gateway) presentAgents(ctx context.Context) ([]schemas.Agent, error) {
	entries, err := g.agents.List(ctx, ">")
	if err != nil {
		return nil, err
	}
	agents := make([]schemas.Agent, len(entries))
	for i, e := range entries {
		agents[i] = e.Value
	}
	return agents, nil
}

func (g *Gateway) report(ctx context.Context, reference string) (*report.Report, error) {
	conn, err := g.db()
	if err != nil {
		return nil, err
	}
	in, err := g.input(ctx, reference)
	if err != nil {
		return nil, err
	}
	return measure.NewSource(conn).Report(ctx, in)
}

func (g *Gateway) compare(ctx context.Context, in *compareInput) (*report.Comparison, error) {
	conn, err := g.db()
	if err != nil {
		return nil, err
	}
	a, err := g.input(ctx, in.A)
	if err != nil {
		return nil, err
	}
	b, err := g.input(ctx, in.B)
	if err != nil {
		return nil, err
	}
	if a.Run.ID == b.Run.ID {
		return nil, problem(http.StatusUnprocessableEntity, "a and b are both run %s: want two runs", a.Run.ID)
	}
	if a.Run.Workload != b.Run.Workload {
		return nil, problem(http.StatusUnprocessableEntity, "run a is of workload %s and run b of %s: want two of the same", a.Run.Workload, b.Run.Workload)
	}
	for _, r := range []schemas.Run{a.Run, b.Run} {
		if !r.Ended() {
			return nil, problem(http.StatusConflict, "run %s is %s: runs are compared when they have ended", r.ID, r.State)
		}
	}
	return compare.Runs(ctx, measure.NewSource(conn), a, b, compare.Options{Alpha: in.Alpha, MinEffect: in.MinEffect})
}
