// Package api holds the messages of the gateway's HTTP interface that are not
// messages of the bus, for the server and its client.
package api

import (
	"fmt"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Validation is what a valid experiment file would do.
type Validation struct {
	Name         string `json:"name"`
	Workload     string `json:"workload"`
	Seed         uint64 `json:"seed"`
	Trials       int    `json:"trials"`
	Cells        int    `json:"cells"`
	ScheduleHash string `json:"schedule_hash"`
}

// Fault is one thing wrong with an experiment file; Line and Column count from
// 1 and are 0 when unknown.
type Fault struct {
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Path   string `json:"path"`
	Text   string `json:"text"`
}

// Problem is an error as RFC 9457 defines it, with the extensions faults (of an
// experiment file) and code (of ClickHouse's exception).
type Problem struct {
	Title  string        `json:"title" doc:"The HTTP status as text."`
	Status int           `json:"status"`
	Detail string        `json:"detail" doc:"What is wrong, and what would be right."`
	Errors []ProblemItem `json:"errors,omitempty" doc:"Each faulty parameter or field."`
	Faults []Fault       `json:"faults,omitempty" doc:"Every fault of an experiment file."`
	Code   int           `json:"code,omitempty" doc:"ClickHouse's error code."`
}

// ProblemItem is one faulty parameter.
type ProblemItem struct {
	Message  string `json:"message,omitempty"`
	Location string `json:"location,omitempty"`
	Value    any    `json:"value,omitempty"`
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Detail)
	if p.Detail == "" {
		b.WriteString(p.Title)
	}
	for _, f := range p.Faults {
		fmt.Fprintf(&b, "\n%s", schemas.Fault{Line: f.Line, Column: f.Column, Path: f.Path, Text: f.Text}.Error())
	}
	for _, e := range p.Errors {
		fmt.Fprintf(&b, "\n%s: %s", e.Location, e.Message)
	}
	return b.String()
}

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is the media type of RFC 9457.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// Runs is one page of runs, newest first, without their files.
type Runs struct {
	Runs []schemas.Run `json:"runs"`
	// Next is the parameter `before` of the next page; empty on the last.
	Next string `json:"next,omitempty"`
}

// Events of a run's stream. Every event's data is one JSON object.
const (
	EventRun      = "run"      // schemas.Run without its file: at once, and at every change
	EventProgress = "progress" // schemas.RunProgress
	EventEnd      = "end"      // schemas.Run: it has ended, the stream ends
)

// Status is the state of the whole lab.
type Status struct {
	Version    string           `json:"version"`
	Healthy    bool             `json:"healthy"`
	Services   []ServiceStatus  `json:"services"`
	Agents     []schemas.Agent  `json:"agents"`
	Events     EventsStatus     `json:"events"`
	ClickHouse ClickHouseStatus `json:"clickhouse"`
	Runs       map[string]int   `json:"runs"` // number by state
}

// ServiceStatus is one service as it answers on the bus.
type ServiceStatus struct {
	Name     string    `json:"name"`
	ID       string    `json:"id,omitempty"`
	Version  string    `json:"version,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Requests uint64    `json:"requests"`
	Errors   uint64    `json:"errors"`
	Error    string    `json:"error,omitempty"` // why it does not answer
}

// EventsStatus is how full the event stream is and how far the collector is
// behind.
type EventsStatus struct {
	Batches  uint64 `json:"batches"` // in the stream, stored ones included until they are purged
	Bytes    uint64 `json:"bytes"`
	MaxBytes int64  `json:"max_bytes"`
	// Lag is how many batches the collector has not stored yet; null when it
	// does not say.
	Lag   *uint64 `json:"lag_batches"`
	Error string  `json:"error,omitempty"`
}

// ClickHouseStatus is the database's version and size.
type ClickHouseStatus struct {
	Version string           `json:"version,omitempty"`
	Events  uint64           `json:"events"`
	Bytes   uint64           `json:"bytes_on_disk"`
	Tables  map[string]int64 `json:"tables,omitempty"` // rows by table
	Error   string           `json:"error,omitempty"`
}

// Integrity of one producer's events.
type Integrity struct {
	Producer   string `json:"producer"`
	Received   uint64 `json:"received"`
	Lost       uint64 `json:"lost"`
	Duplicated uint64 `json:"duplicated"`
}

// Files that the source experiment of the swarm workload wrote.
const (
	SourceResults    = "all_leechers_results.csv"            // a row for each leecher and iteration
	SourceComparison = "leechers_performance_comparison.csv" // for each size and leecher
	SourceSummary    = "all_leechers_summary.csv"            // for each size
)

// SourceFiles are their names.
func SourceFiles() []string { return []string{SourceResults, SourceComparison, SourceSummary} }

// AWS says which account and where. Credentials come from the gateway's own
// environment, profile or role, never over the API.
type AWS struct {
	Region   string `json:"region,omitempty" maxLength:"64" doc:"Region; the profile's or environment's if not given."`
	Profile  string `json:"profile,omitempty" maxLength:"128" doc:"Profile of the shared configuration on the gateway."`
	Endpoint string `json:"endpoint,omitempty" maxLength:"512" doc:"URL that replaces the service's own."`
}

// CloudWatchImport asks for S3 request metrics of buckets from CloudWatch.
type CloudWatchImport struct {
	AWS
	Buckets  []string  `json:"buckets" minItems:"1" maxItems:"100"`
	FilterID string    `json:"filter_id,omitempty" maxLength:"64" doc:"Id of the buckets' metrics configuration; EntireBucket if not given."`
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	Metrics  []string  `json:"metrics,omitempty" maxItems:"17" doc:"Names of metrics; the usual ones if not given."`
	Period   int       `json:"period_s,omitempty" doc:"Seconds of one point, a multiple of 60; 60 if not given."`
}

// CloudWatchImported says what was imported.
type CloudWatchImported struct {
	Points  int            `json:"points"`
	Series  map[string]int `json:"series"` // points by `bucket/metric/statistic`
	Pages   int            `json:"pages"`
	Partial []string       `json:"partial,omitempty"` // what CloudWatch said it left out
}

// DynamoDBExport asks for a run's 1-minute series in a DynamoDB table.
type DynamoDBExport struct {
	AWS
	Table string `json:"table,omitempty" maxLength:"255" doc:"Name of the table, made if it is missing; s3-metrics if not given."`
}

// DynamoDBExported says what was written.
type DynamoDBExported struct {
	Table   string `json:"table"`
	Created bool   `json:"created"`
	Items   int    `json:"items"`
	Retries int    `json:"retries"` // items the service asked to send again
}
