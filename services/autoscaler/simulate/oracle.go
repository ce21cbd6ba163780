package simulate

import (
	"container/heap"
	"math"
	"time"

	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

// Oracle is what could have been done by who knew what comes.
type Oracle struct {
	// Instances is the smallest steady number whose 95th percentile of waits is
	// acceptable at the plateau, by Erlang's C; Theory is that percentile.
	Instances int
	Theory    time.Duration
	// Steady has this number ready for the first clip and released after the last.
	Steady Result
	// AtOnce asks for the cap at the first clip.
	AtOnce Result
	// Bound has the waits of the cap ready all the time and the cost of the work
	// and one boot alone.
	Bound Result
}

func oracleSize(t *Trace, w World) int {
	slots := max(1, w.Slots)
	c := scale.Servers(t.Load, t.Service, w.Wait, 0.95, w.Cap*slots)
	return (c + slots - 1) / slots
}

// Foresee says what the trace allows.
func Foresee(t *Trace, w World) Oracle {
	w.Slots = max(1, w.Slots)
	o := Oracle{Instances: oracleSize(t, w)}
	o.Theory = scale.WaitQuantile(o.Instances*w.Slots, t.Load, t.Service, 0.95)
	first := t.Clips[0].At
	o.Steady = steady(t, w, o.Instances, first)
	o.AtOnce = steady(t, w, w.Cap, first+w.Boot)
	o.Bound = steady(t, w, w.Cap, first)
	var work time.Duration
	for _, c := range t.Clips {
		work += c.Service
	}
	o.Bound.Cost = work/time.Duration(w.Slots) + w.Boot
	o.Bound.Peak, o.Bound.Started = 1, 1
	return o
}

// free are the times at which slots become so.
type free []time.Duration

func (f free) Len() int           { return len(f) }
func (f free) Less(i, j int) bool { return f[i] < f[j] }
func (f free) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *free) Push(x any)        { *f = append(*f, x.(time.Duration)) }

func (f *free) Pop() any {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return last
}

// steady is a number of instances that take clips from a time on, each until there
// is none left for it.
func steady(t *Trace, w World, n int, from time.Duration) Result {
	slots := make(free, n*w.Slots)
	for i := range slots {
		slots[i] = from
	}
	waits := make([]time.Duration, 0, len(t.Clips))
	for _, c := range t.Clips {
		begin := max(c.At, slots[0])
		waits = append(waits, begin-c.At)
		slots[0] = begin + c.Service
		heap.Fix(&slots, 0)
	}
	last := t.Clips[len(t.Clips)-1].At
	var cost time.Duration
	for _, end := range slots {
		cost += max(end, last) - (from - w.Boot)
	}
	r := Result{Clips: len(waits), Cost: cost / time.Duration(w.Slots), Peak: n, Started: n, Reversals: 1}
	r.P50, r.P95, r.Max = spread(waits)
	return r
}

// ratio of two durations; of nothing to nothing it is 1.
func ratio(a, b time.Duration) float64 {
	if a == b {
		return 1
	}
	if b == 0 {
		return math.Inf(1)
	}
	return float64(a) / float64(b)
}
