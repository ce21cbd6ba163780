package detector

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	tries                       *prometheus.CounterVec
	bytes                       prometheus.Counter
	fetch, decode, infer, store prometheus.Histogram
	busy                        prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	seconds := func(name, help string) prometheus.Histogram {
		return register(r, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "transferlab_detector_" + name + "_seconds", Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 18),
		}))
	}
	return &metrics{
		tries: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "transferlab_detector_tries_total", Help: "Tries at clips, by what they came to.",
		}, []string{"status"})),
		bytes:  register(r, prometheus.NewCounter(prometheus.CounterOpts{Name: "transferlab_detector_fetched_bytes_total", Help: "Bytes of clips that came from the store."})),
		fetch:  seconds("fetch", "Time from taking a clip until all its bytes were here."),
		decode: seconds("decode", "Time spent on decoding a clip, by itself."),
		infer:  seconds("infer", "Time spent on inference for a clip, by itself."),
		store:  seconds("store", "Time from the last frame until result and state of a clip were stored."),
		busy:   register(r, prometheus.NewGauge(prometheus.GaugeOpts{Name: "transferlab_detector_clips_in_work", Help: "Clips in work, those included that are only fetched."})),
	}
}

// register returns m, or what a former detector of this process has registered
// under its name.
func register[M prometheus.Collector](r prometheus.Registerer, m M) M {
	var there prometheus.AlreadyRegisteredError
	if err := r.Register(m); errors.As(err, &there) {
		if former, ok := there.ExistingCollector.(M); ok {
			return former
		}
	}
	return m
}
