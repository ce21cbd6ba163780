package collector

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	events, batches, bytes, rejected, missing, retries prometheus.Counter
	inserts                                            prometheus.Histogram
	lag, position, backlog, held                       prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return register(r, prometheus.NewCounter(prometheus.CounterOpts{Name: "transferlab_collector_" + name, Help: help}))
	}
	gauge := func(name, help string) prometheus.Gauge {
		return register(r, prometheus.NewGauge(prometheus.GaugeOpts{Name: "transferlab_collector_" + name, Help: help}))
	}
	return &metrics{
		events:   counter("events_total", "Events stored in the database."),
		batches:  counter("batches_total", "Batches stored in the database."),
		bytes:    counter("bytes_total", "Bytes, as the bus carries them, of the messages stored in the database."),
		rejected: counter("rejected_total", "Messages kept as dead letters."),
		missing:  counter("missing_total", "Messages that were removed from the event stream before they were read."),
		retries:  counter("insert_retries_total", "Inserts that failed and were tried again."),
		inserts: register(r, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "transferlab_collector_insert_seconds", Help: "Time one insert takes, failed ones included.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13),
		})),
		lag:      gauge("lag_messages", "Messages of the event stream that are not stored yet."),
		position: gauge("position", "Last message of the event stream up to which every one is stored."),
		held:     gauge("held_events", "Events read and not stored yet."),
		backlog:  gauge("stream_bytes", "Bytes the event stream holds, stored ones that are kept for duplicates included."),
	}
}

// register returns m, or what a former collector of this process has
// registered under its name.
func register[M prometheus.Collector](r prometheus.Registerer, m M) M {
	var there prometheus.AlreadyRegisteredError
	if err := r.Register(m); errors.As(err, &there) {
		if former, ok := there.ExistingCollector.(M); ok {
			return former
		}
	}
	return m
}
