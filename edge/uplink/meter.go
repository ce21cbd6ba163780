package uplink

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Headers of the gateway's answers: when it had read the request's head and
// when it wrote the answer's, in ns by its clock.
const (
	headerReceived = "Transferlab-Received"
	headerTime     = "Transferlab-Time"
)

const (
	rateSamples  = 5
	fixedSamples = 7
	clockSamples = 64
	clockAge     = 10 * time.Minute
	// sampleTime is the longest time that one sample of the rate is about, so
	// that a link that has become slow shows before a transfer has ended.
	sampleTime = time.Second
	// sampleBytes is the least that tells a rate once there is nothing left to send.
	sampleBytes = 64 << 10
)

// meter keeps what exchanges tell of the path. Latency and rate are apart: a clip
// takes the one plus its size by the other.
type meter struct {
	mu     sync.Mutex
	active int // transfers
	since  time.Time
	bytes  int64
	rates  []float64       // bytes per second, the last ones
	fixed  []time.Duration // what uploads took beside sending
	clocks []clock
}

// clock is one comparison of the two clocks.
type clock struct {
	at     time.Time // with the monotonic reading
	offset time.Duration
	delay  time.Duration
}

func newMeter() *meter { return &meter{} }

func (m *meter) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active == 0 {
		m.since, m.bytes = time.Now(), 0
	}
	m.active++
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += n
	if now := time.Now(); m.active > 0 && now.Sub(m.since) >= sampleTime {
		m.sample(now, 0)
	}
}

// end ends a transfer; rtt is what the last answer was waited for with nothing to
// send.
func (m *meter) end(n int64, rtt time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += n
	m.active--
	if m.active == 0 && m.bytes >= sampleBytes {
		m.sample(time.Now(), rtt)
	}
}

func (m *meter) sample(now time.Time, idle time.Duration) {
	took := now.Sub(m.since)
	busy := max(took-idle, took/4, time.Microsecond)
	m.rates = append(m.rates, float64(m.bytes)/busy.Seconds())
	if len(m.rates) > rateSamples {
		m.rates = m.rates[1:]
	}
	m.since, m.bytes = now, 0
}

func (m *meter) rate() (float64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.rates) == 0 {
		return 0, false
	}
	return median(m.rates), true
}

// uploaded is told how long an upload took that had the uplink for itself.
func (m *meter) uploaded(bytes int64, took time.Duration) {
	rate, ok := m.rate()
	if !ok || rate <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fixed = append(m.fixed, max(took-time.Duration(float64(bytes)/rate*1e9), 0))
	if len(m.fixed) > fixedSamples {
		m.fixed = m.fixed[1:]
	}
}

func (m *meter) latency() (time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.fixed) == 0 {
		return 0, false
	}
	return median(m.fixed), true
}

func median[T float64 | time.Duration](v []T) T {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// stamp compares the clocks by an answer: sent and got are when the request's head
// went and the answer's came.
func (m *meter) stamp(sent, got time.Time, h http.Header) {
	written, err := strconv.ParseInt(h.Get(headerTime), 10, 64)
	if err != nil || sent.IsZero() || got.IsZero() {
		return
	}
	received, err := strconv.ParseInt(h.Get(headerReceived), 10, 64)
	if err != nil || received > written || written-received > int64(time.Hour) {
		received = written
	}
	const year2000, year2261 = 946684800e9, 9183110400e9
	if received < year2000 || written > year2261 {
		return
	}
	delay := got.Sub(sent) - time.Duration(written-received)
	if delay < 0 {
		return
	}
	s := clock{at: got, delay: delay}
	s.offset = time.Duration(received/2+written/2-sent.UnixNano()/2-got.UnixNano()/2) + time.Duration((received&1+written&1-sent.UnixNano()&1-got.UnixNano()&1)/2)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clocks = append(m.clocks, s)
	if len(m.clocks) > clockSamples {
		m.clocks = m.clocks[1:]
	}
}

// best is the comparison with the shortest delay of the recent ones, by Cristian's
// rule the one with the least error; the last one if all are old.
func (m *meter) best(now time.Time) (clock, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.clocks) == 0 {
		return clock{}, false
	}
	b := m.clocks[len(m.clocks)-1]
	for _, s := range m.clocks {
		if now.Sub(s.at) <= clockAge && s.delay < b.delay {
			b = s
		}
	}
	return b, true
}

// setBack is by how much the edge's clock was set, forward above 0, between two
// times.
func setBack(from, to time.Time) time.Duration {
	return to.Round(0).Sub(from.Round(0)) - to.Sub(from)
}

// drift bounds by how much two clocks part in a while: crystals keep 100 ppm.
func drift(d time.Duration) time.Duration { return d / 10_000 }

// Clock is the lab's clock: its time is the edge's plus offset, within bound. It holds
// when the edge's clock is set in between.
func (c *Client) Clock() (offset, bound time.Duration, ok bool) {
	now := time.Now()
	b, ok := c.meter.best(now)
	if !ok {
		return 0, 0, false
	}
	return b.offset - setBack(b.at, now), b.delay/2 + drift(now.Sub(b.at)), true
}

// RTT is the shortest time that an exchange with the gateway took lately, without
// what the gateway took itself.
func (c *Client) RTT() (time.Duration, bool) {
	b, ok := c.meter.best(time.Now())
	return b.delay, ok
}

func (c *Client) shortest() time.Duration {
	rtt, _ := c.RTT()
	return rtt
}

// Rate is the uplink's rate in bytes per second, from transfers.
func (c *Client) Rate() (float64, bool) { return c.meter.rate() }

// Estimate is how long an upload of so many bytes would take if it was begun
// now, behind those that are under way; not known before the first transfer.
func (c *Client) Estimate(bytes int64) (time.Duration, bool) {
	rate, ok := c.Rate()
	if !ok {
		return 0, false
	}
	latency, ok := c.meter.latency()
	if !ok {
		latency = 3 * c.shortest()
	}
	// A stalled link has no rate: a month stands for never.
	const never = 30 * 24 * time.Hour
	seconds := float64(bytes+max(c.pending.Load(), 0)) / max(rate, 1)
	if seconds > never.Seconds() {
		return never, true
	}
	return latency + time.Duration(seconds*1e9), true
}
