package prober

import (
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// driftRate is how fast two clocks may part: 15 ppm each, as NTP assumes (PHI of
// RFC 5905). What was measured before the start is worth less with every second.
const driftRate = 2 * 15e-6

// clockOffset is what to add to a peer's time to get ours, and how wrong that may
// be when the measurements of both are as old as age.
func clockOffset(own, peer schemas.Clock, age time.Duration) (offset, bound time.Duration) {
	drift := time.Duration(float64(max(age, 0)) * driftRate)
	return peer.Offset - own.Offset, own.Bound + peer.Bound + drift
}

// oneWay is a delay in one direction and whether it is known well enough: a
// bound beyond a tenth of it says that it is not. correction is added to the
// difference of the two clocks' readings.
func oneWay(raw, correction, bound time.Duration) (delay time.Duration, known bool) {
	delay = raw + correction
	return delay, delay >= 0 && bound <= delay/10
}
