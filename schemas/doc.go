// Package schemas holds everything that crosses a boundary: the experiment
// file, the messages on the bus, the event row and its column encoding, and
// (in schemas/clickhouse) the database migrations, views and reports.
//
// It depends on nothing of ours, so that every other package can depend on it.
package schemas
