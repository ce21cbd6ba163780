package netlab

import (
	"crypto/sha256"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// source returns random numbers that depend on the seed and the purpose alone.
func source(seed uint64, purpose string) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "transferlab 1 %d %s", seed, purpose)))
}

// chance decides with a fixed probability. Every decision has its own source,
// so that changing one setting leaves what the others decide as it is.
type chance struct {
	src    *rand.ChaCha8 // nil: never
	always bool
	below  uint64
}

func newChance(p schemas.Share, seed uint64, purpose string) chance {
	switch {
	case !(p > 0):
		return chance{}
	case p >= 1:
		return chance{src: source(seed, purpose), always: true}
	}
	return chance{src: source(seed, purpose), below: uint64(math.Ldexp(float64(p), 64))}
}

func (c *chance) hit() bool {
	return c.src != nil && (c.src.Uint64() < c.below || c.always)
}

// minHold is how long at least a packet held back waits for one to overtake it.
const minHold = 10 * time.Millisecond

// direction is one direction of a link. It is pure: time comes in as
// nanoseconds of any clock that does not go back. Not safe for concurrent use.
type direction struct {
	from, to string

	delay, jitter int64 // ns
	rate          int64 // bit/s; 0: unlimited
	queue         int64 // bytes
	hold          int64 // ns
	loss          chance
	duplicate     chance
	reorder       chance
	spread        *rand.ChaCha8 // nil: no jitter

	busyUntil int64 // when the rate has sent all it took
	rest      int64 // of the division that gave busyUntil, in 1/rate ns
	last      int64 // when the last packet that keeps its order leaves

	held []*held // waiting for a packet to overtake them

	packets, bytes, lost, dropped, duplicated, reordered int64

	late *lateness
}

// held is a packet held back; released tells that another took it along.
type held struct {
	item     item
	released bool
}

func newDirection(seed uint64, from, to string, l schemas.Link) *direction {
	purpose := func(what string) string { return "netlab " + from + ">" + to + " " + what }
	d := &direction{
		from: from, to: to,
		delay: int64(l.OneWay()), jitter: int64(l.Jitter), rate: int64(l.Rate), queue: l.QueueBytes(),
		hold:      max(int64(minHold), int64(l.OneWay())),
		loss:      newChance(l.Loss, seed, purpose("loss")),
		duplicate: newChance(l.Duplicate, seed, purpose("duplicate")),
		reorder:   newChance(l.Reorder, seed, purpose("reorder")),
	}
	if d.jitter > 0 {
		d.spread = source(seed, purpose("jitter"))
	}
	return d
}

// uniform tells that packets which enter together leave together, so that they
// need not be looked at one by one.
func (d *direction) uniform() bool {
	return d.rate == 0 && d.spread == nil && d.loss.src == nil && d.duplicate.src == nil && d.reorder.src == nil
}

// fate is what happens to a packet.
type fate struct {
	drop      bool
	at        int64 // when it leaves
	hold      bool  // it waits for the next one, until at
	duplicate bool
}

// pass decides about a packet of size bytes that enters at now.
func (d *direction) pass(now int64, size int) fate {
	d.packets++
	d.bytes += int64(size)
	if d.loss.hit() {
		d.lost++
		return fate{drop: true}
	}
	sent := now
	if d.rate > 0 {
		if d.busyUntil > now {
			waiting, _ := mulDiv(d.busyUntil-now, d.rate, 8e9)
			if waiting+int64(size) > d.queue {
				d.dropped++
				return fate{drop: true}
			}
		} else {
			d.busyUntil, d.rest = now, 0
		}
		// bits × 10⁹ / rate; at most 64 KiB × 8 × 10⁹, far below 2⁶³.
		total := int64(size)*8e9 + d.rest
		d.busyUntil += total / d.rate
		d.rest = total % d.rate
		sent = d.busyUntil
	}
	at := sent + d.delay
	if d.spread != nil {
		at += int64(d.spread.Uint64()%uint64(2*d.jitter+1)) - d.jitter
	}
	at = max(at, d.last)
	f := fate{at: at, duplicate: d.duplicate.hit()}
	if f.duplicate {
		d.duplicated++
	}
	if d.reorder.hit() {
		d.reordered++
		f.hold = true
		f.at += d.hold
		return f
	}
	d.last = at
	return f
}

// mulDiv is a×b/c for non-negative numbers whose product may exceed 64 bits; a
// quotient beyond 63 bits becomes the largest number.
func mulDiv(a, b, c int64) (quotient, rest int64) {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return math.MaxInt64 / 2, 0
	}
	q, r := bits.Div64(hi, lo, uint64(c))
	if q > math.MaxInt64/2 {
		return math.MaxInt64 / 2, 0
	}
	return int64(q), int64(r)
}

// lateness is a histogram of nanoseconds whose buckets are at most 1/16 wide.
type lateness struct {
	counts [latenessBuckets]uint32
	total  uint64
	max    int64
}

const (
	latenessSub     = 16 // buckets per power of two
	latenessBuckets = 40 * latenessSub
)

func (l *lateness) add(ns int64, n int) {
	ns = max(ns, 0)
	l.max = max(l.max, ns)
	l.total += uint64(n)
	l.counts[latenessBucket(ns)] += uint32(n)
}

func latenessBucket(ns int64) int {
	if ns < latenessSub {
		return int(ns)
	}
	shift := bits.Len64(uint64(ns)) - 5 // leaves 16 to 31
	return min(latenessBuckets-1, (shift+1)*latenessSub+int(ns>>shift)-latenessSub)
}

// quantile gives the upper edge of the bucket that holds it, so that it is
// never flattering.
func (l *lateness) quantile(q float64) int64 {
	if l.total == 0 {
		return 0
	}
	want := uint64(math.Ceil(q * float64(l.total)))
	sum := uint64(0)
	for i, n := range l.counts {
		sum += uint64(n)
		if sum < want {
			continue
		}
		if i < latenessSub {
			return int64(i)
		}
		shift := i/latenessSub - 1
		return min(l.max, (int64(i%latenessSub)+latenessSub+1)<<shift-1)
	}
	return l.max
}

func (d *direction) stats() LinkStats {
	s := LinkStats{
		From: d.from, To: d.to, Packets: d.packets, Bytes: d.bytes,
		Lost: d.lost, Dropped: d.dropped, Duplicated: d.duplicated, Reordered: d.reordered,
	}
	if d.late != nil {
		s.LateP50, s.LateP99, s.LateMax = d.late.quantile(0.50), d.late.quantile(0.99), d.late.max
	}
	return s
}
