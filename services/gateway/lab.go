package gateway

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
)

// How long the parts of the lab may take to say how they are.
const statusPatience = 3 * time.Second

func (g *Gateway) registerLab() {
	huma.Register(g.api, operation("list-agents", http.MethodGet, "/v1/agents", "lab", "Agents that are present"),
		func(ctx context.Context, _ *struct{}) (*struct{ Body []schemas.Agent }, error) {
			agents, err := g.presentAgents(ctx)
			if err != nil {
				return nil, g.explain(ctx, err)
			}
			slices.SortFunc(agents, func(a, b schemas.Agent) int { return strings.Compare(a.Name, b.Name) })
			return &struct{ Body []schemas.Agent }{agents}, nil
		})
	huma.Register(g.api, operation("status", http.MethodGet, "/v1/status", "lab", "State of services, agents, event stream and database"),
		func(ctx context.Context, _ *struct{}) (*struct{ Body api.Status }, error) {
			return &struct{ Body api.Status }{g.status(ctx)}, nil
		})
	huma.Register(g.api, operation("integrity", http.MethodGet, "/v1/integrity", "lab", "Events lost and duplicated, by producer"),
		func(ctx context.Context, in *struct {
			Producer string `query:"producer" maxLength:"256" doc:"Only this producer."`
		},
		) (*struct{ Body []api.Integrity }, error) {
			release, err := g.take(g.heavy, "queries, reports and exports")
			if err != nil {
				return nil, err
			}
			defer release()
			all, err := g.integrity(ctx, in.Producer)
			if err != nil {
				return nil, g.explain(ctx, err)
			}
			return &struct{ Body []api.Integrity }{all}, nil
		})

	huma.Register(g.api, operation("list-schedules", http.MethodGet, "/v1/schedules", "schedules", "Recurring experiments"),
		func(ctx context.Context, _ *struct{}) (*struct{ Body []schemas.Recurring }, error) {
			entries, err := g.schedules.List(ctx, ">")
			if err != nil {
				return nil, g.explain(ctx, err)
			}
			all := make([]schemas.Recurring, len(entries))
			for i, e := range entries {
				all[i] = e.Value
			}
			slices.SortFunc(all, func(a, b schemas.Recurring) int { return strings.Compare(a.Name, b.Name) })
			return &struct{ Body []schemas.Recurring }{all}, nil
		})
	put := operation("put-schedule", http.MethodPut, "/v1/schedules/{name}", "schedules", "Let an experiment recur")
	put.MaxBodyBytes = maxFile
	huma.Register(g.api, put, g.putSchedule)
	huma.Register(g.api, operation("delete-schedule", http.MethodDelete, "/v1/schedules/{name}", "schedules", "Let an experiment recur no more"), g.deleteSchedule)
}

// integrity asks the view of that name.
func (g *Gateway) integrity(ctx context.Context, producer string) ([]api.Integrity, error) {
	ctx, cancel := context.WithTimeout(ctx, reportPatience)
	defer cancel()
	where, settings := "", map[string]string{}
	if producer != "" {
		where, settings["param_producer"] = " WHERE producer = {producer:String}", producer
	}
	query := "SELECT toString(producer) AS producer, toUInt64(received) AS received, toUInt64(lost) AS lost, toUInt64(duplicated) AS duplicated FROM integrity" +
		where + " ORDER BY producer LIMIT 10000 FORMAT JSONEachRow"
	all := []api.Integrity{}
	return all, g.lines(ctx, query, settings, func(line []byte) error {
		var row api.Integrity
		if err := json.Unmarshal(line, &row); err != nil {
			return err
		}
		all = append(all, row)
		return nil
	})
}

// lines asks ClickHouse for JSON lines.
func (g *Gateway) lines(ctx context.Context, query string, settings map[string]string, row func([]byte) error) error {
	settings["output_format_json_quote_64bit_integers"] = "0"
	var b bytes.Buffer
	if err := g.dsn.Query(ctx, query, settings, nil, &b); err != nil {
		return err
	}
	lines := bufio.NewScanner(&b)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := row(lines.Bytes()); err != nil {
			return fmt.Errorf("read ClickHouse's answer: %w", err)
		}
	}
	return lines.Err()
}

// status asks every part at once; a part that does not answer is a line of the
// status, not an error.
func (g *Gateway) status(ctx context.Context) api.Status {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	s := api.Status{Version: g.node.Version, Agents: []schemas.Agent{}, Runs: map[string]int{}}
	for _, r := range g.index.newest(nil) {
		s.Runs[r.State]++
	}
	var parts sync.WaitGroup
	parts.Go(func() { s.Services = g.services(ctx) })
	parts.Go(func() { s.Events = g.eventStream(ctx) })
	parts.Go(func() { s.ClickHouse = g.databaseStatus(ctx) })
	parts.Go(func() {
		if agents, err := g.presentAgents(ctx); err == nil {
			s.Agents = agents
		}
	})
	parts.Wait()
	s.Healthy = s.Events.Error == "" && s.ClickHouse.Error == ""
	for _, service := range s.Services {
		s.Healthy = s.Healthy && service.Error == ""
	}
	return s
}

// serviceStats is a service's answer to the statistics request that every
// micro service of NATS serves (ADR-32).
type serviceStats struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	Endpoints []struct {
		Requests uint64 `json:"num_requests"`
		Errors   uint64 `json:"num_errors"`
	} `json:"endpoints"`
}

// empty is a request without content.
type empty struct{}

func (*empty) Validate() error { return nil }

// optionalService is one that a lab can do without: where nobody makes sites,
// those that are there can be measured.
const optionalService = "provisioner"

// services asks those that every lab has and those that agents announce.
func (g *Gateway) services(ctx context.Context) []api.ServiceStatus {
	names := []string{"collector", "gateway", optionalService, "scheduler"}
	if agents, err := g.presentAgents(ctx); err == nil {
		for _, a := range agents {
			if !slices.Contains(names, a.Service) {
				names = append(names, a.Service)
			}
		}
	}
	all := make([]api.ServiceStatus, len(names))
	var asked sync.WaitGroup
	for i, name := range names {
		asked.Go(func() {
			all[i].Name = name
			stats, err := bus.Request[serviceStats](ctx, g.node.Bus, "$SRV.STATS."+name, &empty{})
			if err != nil {
				all[i].Error = err.Error()
				return
			}
			all[i].ID, all[i].Version, all[i].Started = stats.ID, stats.Version, stats.Started
			for _, e := range stats.Endpoints {
				all[i].Requests += e.Requests
				all[i].Errors += e.Errors
			}
		})
	}
	asked.Wait()
	all = slices.DeleteFunc(all, func(s api.ServiceStatus) bool { return s.Name == optionalService && s.Error != "" })
	slices.SortFunc(all, func(a, b api.ServiceStatus) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func (g *Gateway) eventStream(ctx context.Context) api.EventsStatus {
	state, err := g.node.Bus.EventStream(ctx)
	if err != nil {
		return api.EventsStatus{Error: err.Error()}
	}
	s := api.EventsStatus{Bytes: state.Bytes, MaxBytes: state.MaxBytes}
	if state.Last >= state.First {
		s.Batches = state.Last - state.First + 1
	}
	if p, err := g.collected(ctx); err != nil {
		g.log.Debug("ask how far the collector is", "error", err)
	} else if p.Created.Equal(state.Created) && p.Done <= state.Last {
		lag := state.Last - p.Done
		s.Lag = &lag
	}
	return s
}

// position is the part of the collector's memory that tells its lag.
type position struct {
	Created time.Time `json:"stream_created"`
	Done    uint64    `json:"done"`
}

func (g *Gateway) collected(ctx context.Context) (position, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	b, err := bus.OpenBucket[position](ctx, g.node.Bus, bus.BucketCollector)
	if err != nil {
		return position{}, err
	}
	e, err := b.Get(ctx, "events")
	return e.Value, err
}

func (g *Gateway) databaseStatus(ctx context.Context) api.ClickHouseStatus {
	var s api.ClickHouseStatus
	conn, err := g.db()
	if err != nil {
		s.Error = err.Error()
		return s
	}
	if err := conn.QueryRow(ctx, "SELECT version()").Scan(&s.Version); err != nil {
		s.Error = err.Error()
		return s
	}
	rows, err := conn.Query(ctx, `SELECT name, toInt64(coalesce(total_rows, 0)), toUInt64(coalesce(total_bytes, 0))
FROM system.tables WHERE database = currentDatabase() AND total_rows IS NOT NULL AND NOT startsWith(name, '.') ORDER BY name LIMIT 1000`)
	if err != nil {
		s.Error = err.Error()
		return s
	}
	defer func() { _ = rows.Close() }()
	s.Tables = map[string]int64{}
	for rows.Next() {
		var (
			name  string
			count int64
			size  uint64
		)
		if err := rows.Scan(&name, &count, &size); err != nil {
			s.Error = err.Error()
			return s
		}
		s.Tables[name] = count
		if name == "events" {
			s.Events, s.Bytes = uint64(count), size
		}
	}
	if err := rows.Err(); err != nil {
		s.Error = err.Error()
	}
	return s
}
