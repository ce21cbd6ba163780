package scale

import (
	"math"
	"time"
)

// ErlangC is the share of customers that wait in a queue with c servers, Poisson
// arrivals and exponential service (M/M/c), at a load in Erlang (rate of arrivals
// times mean service time). It is 1 for a load of c or more.
func ErlangC(c int, load float64) float64 {
	if load <= 0 {
		return 0
	}
	if load >= float64(c) {
		return 1
	}
	// Erlang's B by its recursion, which cannot overflow.
	b := 1.0
	for k := 1; k <= c; k++ {
		b = load * b / (float64(k) + load*b)
	}
	rho := load / float64(c)
	return b / (1 - rho*(1-b))
}

// WaitQuantile is the time that a share q of the customers of an M/M/c queue wait
// at most; the longest duration there is for a queue that grows without end.
func WaitQuantile(c int, load float64, service time.Duration, q float64) time.Duration {
	if load >= float64(c) {
		return math.MaxInt64
	}
	waiting := ErlangC(c, load)
	if waiting <= 1-q {
		return 0
	}
	w := float64(service) / (float64(c) - load) * math.Log(waiting/(1-q))
	if w >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(w)
}

// Servers is the least number of servers with which a share q of the customers
// wait no longer than wait, or most if that is not enough.
func Servers(load float64, service, wait time.Duration, q float64, most int) int {
	if load <= 0 {
		return 0
	}
	if load >= float64(most) {
		return most
	}
	for c := int(load) + 1; c < most; c++ {
		if WaitQuantile(c, load, service, q) <= wait {
			return c
		}
	}
	return most
}
