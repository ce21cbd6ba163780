package prober

import (
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

func TestClockOffset(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		own, peer     schemas.Clock
		age           time.Duration
		offset, bound time.Duration
	}{
		{schemas.Clock{}, schemas.Clock{}, 0, 0, 0},
		// Ours is 5 ms behind the scheduler's, the peer's 2 ms: it is 3 ms ahead of us.
		{schemas.Clock{Offset: 5 * ms, Bound: ms}, schemas.Clock{Offset: 2 * ms, Bound: 2 * ms}, 0, -3 * ms, 3 * ms},
		{schemas.Clock{Offset: -5 * ms}, schemas.Clock{Offset: 2 * ms}, 0, 7 * ms, 0},
		{schemas.Clock{Bound: ms}, schemas.Clock{Bound: ms}, 100 * time.Second, 0, 5 * ms},
		{schemas.Clock{Bound: ms}, schemas.Clock{Bound: ms}, -time.Second, 0, 2 * ms},
	} {
		if offset, bound := clockOffset(c.own, c.peer, c.age); offset != c.offset || bound != c.bound {
			t.Errorf("%+v: %s ± %s", c, offset, bound)
		}
	}
}

func TestOneWay(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	for _, c := range []struct {
		name                   string
		raw, correction, bound time.Duration
		delay                  time.Duration
		known                  bool
	}{
		{"one clock", 30 * us, 0, 0, 30 * us, true},
		{"no time at all", 0, 0, 0, 0, true},
		{"before it was sent", -1, 0, 0, -1, false},
		{"a tenth", 10 * ms, 0, ms, 10 * ms, true},
		{"a little more", 10 * ms, 0, ms + 1, 10 * ms, false},
		{"a clock ahead of ours", 1070 * ms, -time.Second, ms, 70 * ms, true},
		{"a clock behind ours", -930 * ms, time.Second, ms, 70 * ms, true},
		{"the correction makes it negative", 10 * ms, -20 * ms, 0, -10 * ms, false},
	} {
		if delay, known := oneWay(c.raw, c.correction, c.bound); delay != c.delay || known != c.known {
			t.Errorf("%s: %s, %t", c.name, delay, known)
		}
	}
}

// Whatever the clocks are, the corrections of the two directions cancel out:
// their sum is the round trip.
func TestOneWaysSumUp(t *testing.T) {
	own, peer := schemas.Clock{Offset: 5 * time.Second, Bound: time.Microsecond}, schemas.Clock{Offset: -3 * time.Second, Bound: time.Microsecond}
	offset, bound := clockOffset(own, peer, 0)
	// The scheduler's clock is 0 when we send; the peer has it 70 ms later, we
	// have it back 71 ms after that.
	t1, t2, t4 := -own.Offset, 70*time.Millisecond-peer.Offset, 141*time.Millisecond-own.Offset
	forward, ok1 := oneWay(t2-t1, offset, bound)
	backward, ok2 := oneWay(t4-t2, -offset, bound)
	if !ok1 || !ok2 || forward != 70*time.Millisecond || backward != 71*time.Millisecond {
		t.Errorf("%s, %s", forward, backward)
	}
}
