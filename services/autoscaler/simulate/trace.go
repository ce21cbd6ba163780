package simulate

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"
)

// Clip comes at a time after the start and is in work for another.
type Clip struct{ At, Service time.Duration }

// Trace is what comes, in the order of coming.
type Trace struct {
	Clips []Clip
	// Load is the plateau's, in Erlang: rate of arrivals times mean service time.
	Load float64
	// Service is the mean time in work.
	Service time.Duration
}

// Distribution draws times.
type Distribution func(r *rand.Rand) time.Duration

// Exponential draws from an exponential distribution.
func Exponential(mean time.Duration) Distribution {
	return func(r *rand.Rand) time.Duration { return time.Duration(r.ExpFloat64() * float64(mean)) }
}

// Deterministic always draws the same.
func Deterministic(d time.Duration) Distribution {
	return func(*rand.Rand) time.Duration { return d }
}

// Empirical draws what has been measured, each as likely as the other. It must be
// given at least one.
func Empirical(measured []time.Duration) Distribution {
	measured = slices.Clone(measured)
	return func(r *rand.Rand) time.Duration { return measured[r.IntN(len(measured))] }
}

// Burst is arrivals at a steady rate for a while and nothing before and after.
type Burst struct {
	Quiet   time.Duration // before
	Length  time.Duration
	Load    float64 // in Erlang
	Mean    time.Duration
	Service Distribution // its mean is Mean
}

func (b Burst) trace(r *rand.Rand, gap func() time.Duration) Trace {
	t := Trace{Load: b.Load, Service: b.Mean}
	for at := b.Quiet + gap(); at < b.Quiet+b.Length; at += gap() {
		t.Clips = append(t.Clips, Clip{at, b.Service(r)})
	}
	return t
}

// Poisson makes the burst's arrivals independent of each other.
func (b Burst) Poisson(r *rand.Rand) Trace {
	between := Exponential(time.Duration(float64(b.Mean) / b.Load))
	return b.trace(r, func() time.Duration { return between(r) })
}

// Step makes the burst's arrivals regular.
func (b Burst) Step(r *rand.Rand) Trace {
	gap := time.Duration(float64(b.Mean) / b.Load)
	return b.trace(r, func() time.Duration { return gap })
}

// Limits of a recorded trace.
const (
	maxClips = 1_000_000
	maxTime  = 366 * 24 * time.Hour
)

// ReadTrace reads a recorded trace: CSV with a header; the column at_s has the times
// of arrival in seconds from any moment on, service_s, if there is one, the times in
// work; otherwise these are drawn.
func ReadTrace(from io.Reader, r *rand.Rand, service Distribution) (Trace, error) {
	in := csv.NewReader(from)
	in.ReuseRecord = true
	header, err := in.Read()
	if err != nil {
		return Trace{}, fmt.Errorf("trace: read the header: %w", err)
	}
	at, work := slices.Index(header, "at_s"), slices.Index(header, "service_s")
	if at < 0 {
		return Trace{}, errors.New("trace: no column at_s")
	}
	if work < 0 && service == nil {
		return Trace{}, errors.New("trace: no column service_s, and no distribution to draw from")
	}
	var t Trace
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Trace{}, fmt.Errorf("trace: %w", err)
		}
		if len(t.Clips) == maxClips {
			return Trace{}, fmt.Errorf("trace: more than %d clips", maxClips)
		}
		line, _ := in.FieldPos(at)
		var c Clip
		if c.At, err = seconds(record[at]); err != nil {
			return Trace{}, fmt.Errorf("trace: line %d: at_s: %w", line, err)
		}
		if work < 0 {
			c.Service = service(r)
		} else if c.Service, err = seconds(record[work]); err != nil {
			return Trace{}, fmt.Errorf("trace: line %d: service_s: %w", line, err)
		}
		t.Clips = append(t.Clips, c)
	}
	if len(t.Clips) < 2 {
		return Trace{}, fmt.Errorf("trace: %d clips, want at least 2", len(t.Clips))
	}
	slices.SortStableFunc(t.Clips, func(a, b Clip) int { return int(a.At - b.At) })
	first, last := t.Clips[0].At, t.Clips[len(t.Clips)-1].At
	var total time.Duration
	for i := range t.Clips {
		t.Clips[i].At -= first
		total += t.Clips[i].Service / time.Duration(len(t.Clips))
	}
	if last == first || total == 0 {
		return Trace{}, errors.New("trace: all clips come at once, or none takes any time")
	}
	t.Service = total
	t.Load = total.Seconds() * float64(len(t.Clips)-1) / (last - first).Seconds()
	return t, nil
}

func seconds(text string) (time.Duration, error) {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || v < 0 || v > maxTime.Seconds() {
		return 0, fmt.Errorf("%.64q, want seconds from 0 to %.0f", text, maxTime.Seconds())
	}
	return time.Duration(v * float64(time.Second)), nil
}
