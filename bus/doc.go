// Package bus is how services meet: NATS JetStream behind a handful of calls.
// No other package imports nats.go.
//
// Everything that is on the bus stands on one page, topics.go.
package bus
