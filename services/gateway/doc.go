// Package gateway is the lab's HTTP interface: everything the command line
// does, as an API with an OpenAPI document.
//
// It consumes the buckets RUNS, TRIALS, AGENTS and RECURRING and the
// announcements progress.run.v1.<run>; it asks the scheduler on
// scheduler.submit, .cancel, .resume and .schedule, and ClickHouse as a user
// that may only read. For edges it receives clips and their results into the
// object store, keeps their states in CLIPSTATES, publishes their jobs on
// clips.waiting.v1.<edge> and their events on events.batch.v1.edge; accounts of
// edges are in EDGES. It keeps nothing itself: any number of gateways may run
// beside each other.
//
// What it promises: no answer but /healthz and /openapi.json without the token;
// every error is an RFC 9457 problem whose text says what would be right;
// requests, their bodies, their number at a time and the time they take are
// bounded; what ClickHouse answers is passed on byte for byte, and an answer
// that fails in the middle ends as a broken connection, never as a short
// success.
//
// Of edges: a token opens the clip API and nothing else, until it is revoked; a
// clip streams to the store while it is received and becomes visible only when
// all of its request has been found right; every request may be repeated, and
// does what an earlier one left undone.
//
// Reports, comparisons and exports are computed from the events in ClickHouse
// (sub-packages measure, compare and series) and rendered by package report.
package gateway
