// Package measure computes a run's figures from the events in ClickHouse and
// from what agents said of their tasks. The queries are the files of
// schemas/clickhouse/reports; nothing is computed from anything but events.
package measure

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/schemas/clickhouse/reports"
)

// Source is a database with events in it.
type Source struct{ conn driver.Conn }

// NewSource returns a source on a connection that may read events.
func NewSource(conn driver.Conn) *Source { return &Source{conn: conn} }

func (s *Source) query(ctx context.Context, name string, parameters clickhouse.Parameters, row func(driver.Rows) error) error {
	text, err := reports.Query(name)
	if err != nil {
		return err
	}
	ctx, cancel := WithoutDeadline(ctx)
	defer cancel()
	rows, err := s.conn.Query(clickhouse.Context(ctx, clickhouse.WithParameters(parameters), clickhouse.WithSettings(settings())), text)
	if err != nil {
		return fmt.Errorf("query %s: %w", name, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := row(rows); err != nil {
			return fmt.Errorf("query %s: %w", name, err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("query %s: %w", name, err)
	}
	return nil
}

// settings of reports. Compiling a comparison of a column of few values fails in
// ClickHouse 26.7 once a query has been executed a few times ("Invalid cast from
// LowCardinality(UInt8) to native type"), and gains nothing here.
func settings() clickhouse.Settings { return clickhouse.Settings{"compile_expressions": 0} }

// WithoutDeadline keeps ctx's cancellation and hides its deadline, of which the
// client would make a setting that a user who may only read cannot choose.
func WithoutDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	return inner, func() { stop(); cancel(nil) }
}

func array[T uint16 | uint32 | uint64](values []T) string {
	var b strings.Builder
	b.WriteByte('[')
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(uint64(v), 10))
	}
	b.WriteByte(']')
	return b.String()
}

// Attempt is what is stored of one attempt of one trial from one producer.
type Attempt struct {
	Producer string
	Trial    uint32
	Attempt  uint16
	Stored   uint64
	Distinct uint64 // below Stored: duplicates
	Requests uint64
	Closed   uint64 // the scheduler's statement that the trial is done
}

// Attempts returns what is stored of a run whose operations are of a kind.
func (s *Source) Attempts(ctx context.Context, run uuid.UUID, kind string) ([]Attempt, error) {
	var all []Attempt
	err := s.query(ctx, reports.Attempts, clickhouse.Parameters{"run": run.String(), "kind": kind}, func(r driver.Rows) error {
		var a Attempt
		if err := r.Scan(&a.Producer, &a.Trial, &a.Attempt, &a.Stored, &a.Distinct, &a.Requests, &a.Closed); err != nil {
			return err
		}
		all = append(all, a)
		return nil
	})
	return all, err
}

// Statement is what an agent or the scheduler said at the end of a task or
// trial.
type Statement struct {
	Trial    uint32
	Attempt  uint16
	Kind     string
	Agent    string
	Producer string
	Status   string
	Error    string
	Attrs    map[string]string
}

func (s *Statement) number(key string) uint64 {
	n, err := strconv.ParseUint(s.Attrs[key], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (s *Statement) signed(key string) int64 {
	n, err := strconv.ParseInt(s.Attrs[key], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (s *Statement) real(key string) float64 {
	v, err := strconv.ParseFloat(s.Attrs[key], 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// Statements returns the closing statements of a run's tasks and trials.
func (s *Source) Statements(ctx context.Context, run uuid.UUID) ([]Statement, error) {
	var all []Statement
	err := s.query(ctx, reports.Statements, clickhouse.Parameters{"run": run.String()}, func(r driver.Rows) error {
		var st Statement
		if err := r.Scan(&st.Trial, &st.Attempt, &st.Kind, &st.Agent, &st.Producer, &st.Status, &st.Error, &st.Attrs); err != nil {
			return err
		}
		all = append(all, st)
		return nil
	})
	return all, err
}

// Selection says which attempt of each trial counts and which cell each trial
// belongs to, by the trial's index.
type Selection struct {
	Run      uuid.UUID
	Kind     string // of the operations
	Cells    []uint32
	Attempts []uint16 // 0: none counts
}

func (s Selection) parameters() clickhouse.Parameters {
	return clickhouse.Parameters{"run": s.Run.String(), "kind": s.Kind, "cells": array(s.Cells), "attempts": array(s.Attempts)}
}

type cellFigures struct {
	cell                                uint32
	requests, ok, payload, answered     uint64
	corrected, service, firstByte, wait []uint64
}

func (s *Source) cells(ctx context.Context, sel Selection) ([]cellFigures, error) {
	var all []cellFigures
	err := s.query(ctx, reports.Cells, sel.parameters(), func(r driver.Rows) error {
		var c cellFigures
		if err := r.Scan(&c.cell, &c.requests, &c.ok, &c.payload, &c.corrected, &c.service, &c.answered, &c.firstByte, &c.wait); err != nil {
			return err
		}
		all = append(all, c)
		return nil
	})
	return all, err
}

func (s *Source) statuses(ctx context.Context, sel Selection) (map[uint32]map[string]uint64, error) {
	all := map[uint32]map[string]uint64{}
	err := s.query(ctx, reports.Statuses, sel.parameters(), func(r driver.Rows) error {
		var (
			cell   uint32
			status string
			n      uint64
		)
		if err := r.Scan(&cell, &status, &n); err != nil {
			return err
		}
		if all[cell] == nil {
			all[cell] = map[string]uint64{}
		}
		all[cell][status] = n
		return nil
	})
	return all, err
}

func (s *Source) elapsed(ctx context.Context, sel Selection) (map[uint32]int64, error) {
	all := map[uint32]int64{}
	parameters := clickhouse.Parameters{"run": sel.Run.String(), "kind": sel.Kind, "attempts": array(sel.Attempts)}
	err := s.query(ctx, reports.Elapsed, parameters, func(r driver.Rows) error {
		var (
			trial uint32
			ns    int64
		)
		if err := r.Scan(&trial, &ns); err != nil {
			return err
		}
		all[trial] = ns
		return nil
	})
	return all, err
}

// Trial is one trial's summary.
type Trial struct {
	Trial                         uint32
	Ends                          string // of probes: protocol, source and destination
	OK, Bytes, Answered           uint64
	Corrected, Service, FirstByte uint64 // medians, nanoseconds; of transfers FirstByte is the first piece
	Elapsed                       int64  // nanoseconds
}

// Trials returns the summaries of a run's trials, of probes one for each pair of
// ends.
func (s *Source) Trials(ctx context.Context, sel Selection) ([]Trial, error) {
	elapsed, err := s.elapsed(ctx, sel)
	if err != nil {
		return nil, err
	}
	var all []Trial
	parameters := clickhouse.Parameters{"run": sel.Run.String(), "kind": sel.Kind, "attempts": array(sel.Attempts)}
	err = s.query(ctx, reports.Trials, parameters, func(r driver.Rows) error {
		var t Trial
		if err := r.Scan(&t.Trial, &t.Ends, &t.OK, &t.Bytes, &t.Corrected, &t.Service, &t.Answered, &t.FirstByte); err != nil {
			return err
		}
		t.Elapsed = elapsed[t.Trial]
		all = append(all, t)
		return nil
	})
	return all, err
}

// Sample is one successful request.
type Sample struct {
	Cell, Trial                   uint32
	Ends                          string // as of [Trial]
	Corrected, Service, FirstByte uint64 // as of [Trial]
}

// Samples returns at most about limit requests of each cell, the same at every
// call. counts are the successful requests by cell.
func (s *Source) Samples(ctx context.Context, sel Selection, counts []uint64, limit int) ([]Sample, error) {
	thresholds := make([]uint64, len(counts))
	for i, n := range counts {
		thresholds[i] = 1<<64 - 1
		if n > uint64(limit) {
			thresholds[i] = uint64(float64(limit) / float64(n) * (1 << 63) * 2)
		}
	}
	parameters := sel.parameters()
	parameters["thresholds"] = array(thresholds)
	// The share is met on average only; twice the limit is out of reach.
	parameters["rows"] = strconv.Itoa(2 * limit * max(len(counts), 1))
	var all []Sample
	err := s.query(ctx, reports.Samples, parameters, func(r driver.Rows) error {
		var x Sample
		if err := r.Scan(&x.Cell, &x.Trial, &x.Ends, &x.Corrected, &x.Service, &x.FirstByte); err != nil {
			return err
		}
		all = append(all, x)
		return nil
	})
	return all, err
}

// Acting is an agent that acted at a site.
type Acting struct {
	Site, Agent string
	Requests    uint64
}

// Placements returns which agents acted at which sites.
func (s *Source) Placements(ctx context.Context, run uuid.UUID, kind string) ([]Acting, error) {
	var all []Acting
	err := s.query(ctx, reports.Placements, clickhouse.Parameters{"run": run.String(), "kind": kind}, func(r driver.Rows) error {
		var a Acting
		if err := r.Scan(&a.Site, &a.Agent, &a.Requests); err != nil {
			return err
		}
		all = append(all, a)
		return nil
	})
	return all, err
}

// Version is the database's version.
func (s *Source) Version(ctx context.Context) (string, error) {
	ctx, cancel := WithoutDeadline(ctx)
	defer cancel()
	var v string
	if err := s.conn.QueryRow(ctx, "SELECT version()").Scan(&v); err != nil {
		return "", fmt.Errorf("ask for ClickHouse's version: %w", err)
	}
	return v, nil
}

// Account is one task's account of itself, from its state on the bus.
type Account struct {
	Trial   uint32
	Attempt uint16
	State   schemas.TaskState
}

// ParseTaskKey reads a key of the bucket of trials, `task.<run>.<trial>.
// <attempt>.<agent>`.
func ParseTaskKey(key string) (run uuid.UUID, trial uint32, attempt uint16, err error) {
	parts := strings.SplitN(key, ".", 5)
	if len(parts) != 5 || parts[0] != "task" {
		return run, 0, 0, fmt.Errorf("key %q, want task.<run>.<trial>.<attempt>.<agent>", key)
	}
	if run, err = uuid.Parse(parts[1]); err != nil {
		return run, 0, 0, fmt.Errorf("key %q: %w", key, err)
	}
	t, err := strconv.ParseUint(parts[2], 10, 32)
	if err != nil {
		return run, 0, 0, fmt.Errorf("key %q: %w", key, err)
	}
	a, err := strconv.ParseUint(parts[3], 10, 16)
	if err != nil {
		return run, 0, 0, fmt.Errorf("key %q: %w", key, err)
	}
	return run, uint32(t), uint16(a), nil
}
