package embedded

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is something to go wrong, for tests of clients. The zero Fault does nothing to every request.
type Fault struct {
	Op     string // only this operation; "" any
	Bucket string // only this bucket; "" any
	Skip   int    // let so many matching requests pass first
	Count  int    // affect so many, then be gone; 0: all

	Latency time.Duration // wait before doing anything
	Drop    bool          // close the connection (RST) without an answer
	Status  int           // answer this HTTP status; nothing is read or stored
	Code    string        // S3 code that goes with Status; by default one that fits

	// Of a response body's first AfterBytes bytes and the rest:
	AfterBytes  int64
	Truncate    bool // send only the former, then close the connection in order (FIN)
	Reset       bool // send only the former, then RST
	CorruptByte bool // flip one bit of byte AfterBytes
}

// affectsBody reports whether f is applied to the bytes of a response.
func (f *Fault) affectsBody() bool { return f.Truncate || f.Reset || f.CorruptByte }

// Faults make a server misbehave, for tests. Nothing is wrong until something is added; then requests meet the first
// fault that matches. Safe for concurrent use.
type Faults struct {
	active atomic.Bool // whether anything below is set: the hot path looks at nothing else

	mu      sync.Mutex
	faults  []*Fault
	stalled time.Time // no response byte leaves before
	rate    int64     // of all responses together, bytes/s; 0 unlimited
	next    time.Time // when the next byte may leave at that rate
	hits    int64
}

// Add adds a fault behind those there are.
func (f *Faults) Add(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &fault)
	f.active.Store(true)
}

// Stall holds back everything the server would send, for d from now: responses not begun and those under way.
func (f *Faults) Stall(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stalled = time.Now().Add(d)
	f.active.Store(true)
}

// Bandwidth limits all responses together to rate bytes a second; 0 removes the limit.
func (f *Faults) Bandwidth(rate int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rate, f.next = rate, time.Time{}
	f.active.Store(true)
}

// Latency delays every request by d.
func (f *Faults) Latency(d time.Duration) { f.Add(Fault{Latency: d}) }

// FailNext answers the next n requests with an HTTP status and an S3 code, such as 503 SlowDown.
func (f *Faults) FailNext(n, status int, code string) {
	f.Add(Fault{Count: n, Status: status, Code: code})
}

// TruncateNext ends the next n GetObject responses in order, but after so many bytes of what they announce.
func (f *Faults) TruncateNext(n int, after int64) {
	f.Add(Fault{Op: OpGetObject, Count: n, AfterBytes: after, Truncate: true})
}

// ResetNext resets the connection of the next n GetObject responses after so many bytes.
func (f *Faults) ResetNext(n int, after int64) {
	f.Add(Fault{Op: OpGetObject, Count: n, AfterBytes: after, Reset: true})
}

// CorruptNext flips a bit of the byte at offset in the next n GetObject responses.
func (f *Faults) CorruptNext(n int, offset int64) {
	f.Add(Fault{Op: OpGetObject, Count: n, AfterBytes: offset, CorruptByte: true})
}

// Clear ends all faults. What a stall holds back stays held until the stall's end.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.stalled, f.rate = nil, time.Time{}, 0
	f.active.Store(false)
}

// Hits is how many requests have met a fault added by Add or one of the short forms of it.
func (f *Faults) Hits() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hits
}

// meet returns the fault that a request runs into, nil if none.
func (f *Faults) meet(op, bucket string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, fault := range f.faults {
		if (fault.Op != "" && fault.Op != op) || (fault.Bucket != "" && fault.Bucket != bucket) {
			continue
		}
		if fault.Skip > 0 {
			fault.Skip--
			continue
		}
		met := *fault
		if fault.Count > 0 {
			if fault.Count--; fault.Count == 0 {
				f.faults = append(f.faults[:i:i], f.faults[i+1:]...)
			}
		}
		f.hits++
		return &met
	}
	return nil
}

// pace waits until n more bytes may leave.
func (f *Faults) pace(ctx context.Context, n int64) error {
	f.mu.Lock()
	now := time.Now()
	at := f.stalled
	if f.rate > 0 && n > 0 {
		if f.next.Before(now) {
			f.next = now
		}
		f.next = f.next.Add(time.Duration(float64(n) / float64(f.rate) * float64(time.Second)))
		if f.next.After(at) {
			at = f.next
		}
	}
	f.mu.Unlock()
	return wait(ctx, at.Sub(now))
}

// limited reports whether bytes are being rationed, so that they should leave in small pieces.
func (f *Faults) limited() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rate > 0
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
