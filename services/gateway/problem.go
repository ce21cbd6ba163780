package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/plan"
)

func problem(status int, format string, args ...any) *api.Problem {
	return &api.Problem{Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

func writeProblem(w http.ResponseWriter, p *api.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

// asProblem is the problem in an error, which [Gateway.explain] has put there.
func asProblem(err error) *api.Problem {
	var p *api.Problem
	if errors.As(err, &p) {
		return p
	}
	return problem(http.StatusInternalServerError, "%s", err)
}

// invalidFile lists every fault of an experiment file.
func invalidFile(err error) *api.Problem {
	p := problem(http.StatusUnprocessableEntity, "the experiment file is not valid")
	p.Faults = faults(err)
	return p
}

func faults(err error) []api.Fault {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		var all []api.Fault
		for _, e := range joined.Unwrap() {
			all = append(all, faults(e)...)
		}
		return all
	}
	var f schemas.Fault
	if errors.As(err, &f) {
		return []api.Fault{{Line: f.Line, Column: f.Column, Path: f.Path, Text: f.Text}}
	}
	return []api.Fault{{Text: err.Error()}}
}

// explain turns any error into what the caller is told.
func (g *Gateway) explain(ctx context.Context, err error) error {
	var (
		known    *api.Problem
		refused  *bus.RequestError
		tooLarge *plan.TooLargeError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.As(err, &refused):
		return problem(refusalStatus(refused.Code), "%s", refused.Text)
	case errors.As(err, &tooLarge):
		return problem(http.StatusUnprocessableEntity, "%s", tooLarge)
	case errors.Is(err, bus.ErrNotFound):
		return problem(http.StatusNotFound, "%s", err)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return problem(http.StatusGatewayTimeout, "no answer in time: %s", err)
	case clickhouse.Code(err) != 0:
		p := problem(databaseStatus(clickhouse.Code(err)), "%s", err)
		p.Code = clickhouse.Code(err)
		return p
	}
	if ctx.Err() == nil {
		g.log.Error("request failed", "error", err)
	}
	return problem(http.StatusServiceUnavailable, "%s", err)
}

func refusalStatus(code string) int {
	switch code {
	case "invalid":
		return http.StatusUnprocessableEntity
	case "not_found":
		return http.StatusNotFound
	case "conflict":
		return http.StatusConflict
	}
	return http.StatusBadGateway
}

// databaseStatus is the HTTP status of one of ClickHouse's error codes: the
// query's fault is the caller's, the server's load is not.
func databaseStatus(code int) int {
	switch code {
	case 164, 497, 291, 452: // READONLY, ACCESS_DENIED, DATABASE_ACCESS_DENIED, SETTING_CONSTRAINT_VIOLATION
		return http.StatusForbidden
	case 60, 81: // UNKNOWN_TABLE, UNKNOWN_DATABASE
		return http.StatusNotFound
	case 159, 160: // TIMEOUT_EXCEEDED, TOO_SLOW
		return http.StatusRequestTimeout
	case 158, 241, 307, 396: // TOO_MANY_ROWS, MEMORY_LIMIT_EXCEEDED, TOO_MANY_BYTES, TOO_MANY_ROWS_OR_BYTES
		return http.StatusRequestEntityTooLarge
	case 202, 745: // TOO_MANY_SIMULTANEOUS_QUERIES, SERVER_OVERLOADED
		return http.StatusTooManyRequests
	case 194, 516: // REQUIRED_PASSWORD, AUTHENTICATION_FAILED: ours, not the caller's
		return http.StatusBadGateway
	}
	return http.StatusBadRequest
}
