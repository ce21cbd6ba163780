package gateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/gateway/measure"
	"github.com/transferlab/transferlab/services/internal/plan"
)

// How long the scheduler may take to answer; planning a large experiment takes
// seconds.
const schedulerPatience = 60 * time.Second

// maxFile leaves room for the refusal of a file that is just too large to name
// its size.
const maxFile = schemas.MaxExperimentBytes + 4096

type fileInput struct {
	Seed    uint64 `query:"seed" doc:"Replaces the file's seed; 0 or none takes the file's."`
	RawBody []byte `contentType:"application/yaml" doc:"The experiment file."`
}

type runInput struct {
	ID string `path:"id" maxLength:"64" doc:"Id of a run, the unique beginning of one (4 characters or more), or latest."`
}

type runOutput struct{ Body schemas.Run }

func operation(id, method, path, tag, summary string) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: method, Path: path, Tags: []string{tag}, Summary: summary,
		// patientBody watches the pace of bodies.
		BodyReadTimeout: -1,
	}
}

func (g *Gateway) registerRuns() {
	validate := operation("validate", http.MethodPost, "/v1/validate", "runs", "Check an experiment file and say what it would do")
	validate.MaxBodyBytes = maxFile
	huma.Register(g.api, validate, func(ctx context.Context, in *fileInput) (*struct{ Body api.Validation }, error) {
		release, err := g.take(g.heavy, "heavy requests")
		if err != nil {
			return nil, err
		}
		defer release()
		v, err := g.validate(ctx, in)
		if err != nil {
			return nil, err
		}
		return &struct{ Body api.Validation }{v}, nil
	})

	submit := operation("submit", http.MethodPost, "/v1/runs", "runs", "Start a run of an experiment file")
	submit.MaxBodyBytes, submit.DefaultStatus = maxFile, http.StatusCreated
	huma.Register(g.api, submit, func(ctx context.Context, in *fileInput) (*runOutput, error) {
		r, err := g.submit(ctx, in)
		if err != nil {
			return nil, g.explain(ctx, err)
		}
		return &runOutput{r}, nil
	})

	huma.Register(g.api, operation("list-runs", http.MethodGet, "/v1/runs", "runs", "List runs, newest first, without their files"), g.listRuns)

	huma.Register(g.api, operation("get-run", http.MethodGet, "/v1/runs/{id}", "runs", "One run with its file"),
		func(ctx context.Context, in *runInput) (*runOutput, error) {
			r, err := g.run(ctx, in.ID)
			if err != nil {
				return nil, g.explain(ctx, err)
			}
			return &runOutput{r}, nil
		})

	for _, verb := range []struct{ name, subject, summary string }{
		{"cancel", bus.SubjectCancel, "Cancel a run that has not ended"},
		{"resume", bus.SubjectResume, "Go on with a run that failed or was cancelled"},
	} {
		huma.Register(g.api, operation(verb.name+"-run", http.MethodPost, "/v1/runs/{id}/"+verb.name, "runs", verb.summary),
			func(ctx context.Context, in *runInput) (*runOutput, error) {
				id, err := g.index.find(in.ID)
				if err != nil {
					return nil, err
				}
				ctx, cancel := context.WithTimeout(ctx, schedulerPatience)
				defer cancel()
				r, err := bus.Request[schemas.Run](ctx, g.node.Bus, verb.subject, &schemas.RunRef{Run: id})
				if err != nil {
					return nil, g.explain(ctx, err)
				}
				return &runOutput{r}, nil
			})
	}

	events := operation("run-events", http.MethodGet, "/v1/runs/{id}/events", "runs", "Follow a run: server-sent events until it has ended")
	events.Responses = map[string]*huma.Response{"200": {
		Description: "Events `run` (the run without its file: at once, and at every change), `progress` (how far it is) and `end` (the run, once it has ended).",
		Content:     map[string]*huma.MediaType{"text/event-stream": {}},
	}}
	huma.Register(g.api, events, g.follow)
}

func (g *Gateway) validate(ctx context.Context, in *fileInput) (api.Validation, error) {
	e, err := parse(in.RawBody)
	if err != nil {
		return api.Validation{}, err
	}
	v, err := measure.Validate(e, in.Seed)
	if err != nil {
		return api.Validation{}, g.explain(ctx, err)
	}
	return v, nil
}

func parse(file []byte) (*schemas.Experiment, error) {
	if len(file) == 0 {
		return nil, problem(http.StatusUnprocessableEntity, "no experiment file: the body is empty, want its YAML text")
	}
	e, err := schemas.ParseExperiment(file)
	if err != nil {
		return nil, invalidFile(err)
	}
	return e, nil
}

func (g *Gateway) submit(ctx context.Context, in *fileInput) (schemas.Run, error) {
	// Here first: the scheduler's refusal is one line of text.
	e, err := parse(in.RawBody)
	if err != nil {
		return schemas.Run{}, err
	}
	if err := plan.CheckSize(e); err != nil {
		return schemas.Run{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, schedulerPatience)
	defer cancel()
	r, err := bus.Request[schemas.Run](ctx, g.node.Bus, bus.SubjectSubmit, &schemas.Submit{File: string(in.RawBody), Seed: in.Seed})
	if err != nil {
		return r, err
	}
	g.index.add(r)
	return r, nil
}

type listInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"50" doc:"Runs on a page."`
	Before string `query:"before" maxLength:"36" doc:"Id of the last run of the page before: the field next."`
	Name   string `query:"name" maxLength:"63" doc:"Only runs of the experiment of this name."`
	State  string `query:"state" enum:"queued,running,cancelling,cancelled,failed,done" doc:"Only runs in this state."`
}

func (g *Gateway) listRuns(_ context.Context, in *listInput) (*struct{ Body api.Runs }, error) {
	all := g.index.newest(func(r *schemas.Run) bool {
		return (in.Name == "" || r.Name == in.Name) && (in.State == "" || r.State == in.State)
	})
	if in.Before != "" {
		before, err := uuid.Parse(in.Before)
		if err != nil {
			return nil, problem(http.StatusUnprocessableEntity, "before: %q, want the id of a run", in.Before)
		}
		at := slices.IndexFunc(all, func(r schemas.Run) bool { return r.ID == before })
		if at < 0 {
			return nil, problem(http.StatusNotFound, "before: no run %s among these", before)
		}
		all = all[at+1:]
	}
	page := api.Runs{Runs: all}
	if len(all) > in.Limit {
		page.Runs = all[:in.Limit]
		page.Next = page.Runs[in.Limit-1].ID.String()
	}
	return &struct{ Body api.Runs }{page}, nil
}

type scheduleInput struct {
	Name    string `path:"name" maxLength:"63" pattern:"^[a-z0-9][a-z0-9-]*$" doc:"Name of the recurring experiment."`
	Cron    string `query:"cron" required:"true" maxLength:"128" doc:"Minute hour day month weekday, or @every 10m."`
	Zone    string `query:"zone" maxLength:"64" doc:"Time zone such as Europe/Berlin; UTC if not given."`
	Seed    uint64 `query:"seed" doc:"Replaces the file's seed."`
	RawBody []byte `contentType:"application/yaml" doc:"The experiment file."`
}

func (g *Gateway) putSchedule(ctx context.Context, in *scheduleInput) (*struct{ Body schemas.Recurring }, error) {
	e, err := parse(in.RawBody)
	if err != nil {
		return nil, err
	}
	if err := plan.CheckSize(e); err != nil {
		return nil, g.explain(ctx, err)
	}
	cron := strings.TrimSpace(in.Cron)
	if cron == "" {
		return nil, problem(http.StatusUnprocessableEntity, "cron: empty, want minute hour day month weekday, or @every 10m")
	}
	if in.Zone != "" {
		if _, err := time.LoadLocation(in.Zone); err != nil {
			return nil, problem(http.StatusUnprocessableEntity, "zone: %q is not known, want a name such as Europe/Berlin", in.Zone)
		}
	}
	r, err := g.askSchedule(ctx, &schemas.Recurring{Name: in.Name, Cron: cron, Zone: in.Zone, File: string(in.RawBody), Seed: in.Seed})
	if err != nil {
		return nil, g.explain(ctx, err)
	}
	return &struct{ Body schemas.Recurring }{r}, nil
}

func (g *Gateway) askSchedule(ctx context.Context, r *schemas.Recurring) (schemas.Recurring, error) {
	ctx, cancel := context.WithTimeout(ctx, schedulerPatience)
	defer cancel()
	return bus.Request[schemas.Recurring](ctx, g.node.Bus, bus.SubjectSchedule, r)
}

func (g *Gateway) deleteSchedule(ctx context.Context, in *struct {
	Name string `path:"name" maxLength:"63" pattern:"^[a-z0-9][a-z0-9-]*$"`
},
) (*struct{}, error) {
	if _, err := g.schedules.Get(ctx, bus.Token(in.Name)); err != nil {
		return nil, g.explain(ctx, fmt.Errorf("schedule %s: %w", in.Name, err))
	}
	if _, err := g.askSchedule(ctx, &schemas.Recurring{Name: in.Name}); err != nil {
		return nil, g.explain(ctx, err)
	}
	return nil, nil
}
