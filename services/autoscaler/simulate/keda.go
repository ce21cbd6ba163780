package simulate

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

// KEDA models a ScaledObject with the nats-jetstream scaler and the horizontal pod
// autoscaler behind it, with their defaults: the operator looks every 30 s whether
// there is anything and then goes from none to one; from one on the autoscaler goes,
// every 15 s, to the lag by the threshold, unless that is within a tenth of what is
// there; upwards at once, though at most by four or by double; downwards to the most
// of the last 300 s; from one to none 300 s after the lag was last above 0. The lag
// is what waits and what is in work, as the scaler counts it.
//
// Flattering it: a pod that is to go finishes its clip first, however long that is.
type KEDA struct {
	Threshold int // lag for each pod
	Cap       int

	steps  int
	active time.Time
	advice []scaleAdvice
}

type scaleAdvice struct {
	at   time.Time
	pods int
}

const (
	kedaSync     = 15 * time.Second
	kedaPoll     = 30 * time.Second
	kedaWindow   = 300 * time.Second
	kedaCooldown = 300 * time.Second
	kedaNear     = 0.1
)

// Every is the pod autoscaler's pace, of which the operator's is a multiple.
func (k *KEDA) Every() time.Duration { return kedaSync }

// Step is one of the pod autoscaler and, every other time, one of the operator.
func (k *KEDA) Step(v View) Order {
	poll := k.steps%int(kedaPoll/kedaSync) == 0
	k.steps++
	lag := v.Waiting + v.InWork
	var pods []scale.Instance
	for _, i := range v.Instances {
		if i.Phase != scale.Draining {
			pods = append(pods, i)
		}
	}
	n := len(pods)
	if poll && lag > 0 {
		k.active = v.At
	}
	if n == 0 {
		k.advice = nil
		if poll && lag > 0 {
			return Order{Start: 1}
		}
		return Order{}
	}
	want := n
	if ratio := float64(lag) / float64(k.Threshold) / float64(n); math.Abs(ratio-1) > kedaNear {
		want = (lag + k.Threshold - 1) / k.Threshold
	}
	want = min(max(want, 1), k.Cap)
	k.advice = slices.DeleteFunc(k.advice, func(a scaleAdvice) bool { return v.At.Sub(a.at) > kedaWindow })
	k.advice = append(k.advice, scaleAdvice{v.At, want})
	switch {
	case want > n:
		return Order{Start: min(want, max(2*n, n+4)) - n}
	case want < n:
		for _, a := range k.advice {
			want = max(want, a.pods)
		}
		want = min(want, n)
	}
	if poll && lag == 0 && v.At.Sub(k.active) >= kedaCooldown {
		want = 0
	}
	// Those that are not ready go first, then the newest.
	slices.SortStableFunc(pods, func(a, b scale.Instance) int {
		if a.Phase == scale.Starting != (b.Phase == scale.Starting) {
			if a.Phase == scale.Starting {
				return -1
			}
			return 1
		}
		return number(b.ID) - number(a.ID)
	})
	var o Order
	for _, i := range pods[:n-want] {
		o.Drain = append(o.Drain, i.ID)
	}
	return o
}

func number(id string) int {
	n, err := strconv.Atoi(id)
	if err != nil {
		return 0
	}
	return n
}
