package plan

import (
	"encoding/binary"
	"fmt"
	"hash"
	"math"
	"math/rand/v2"
	"time"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/transferlab/transferlab/schemas"
)

// A schedule that has no last request is hashed up to this many requests of a
// client; the generator's state after them is fixed by the seed anyway.
const hashedRequests = 4096

func s3Size(s *schemas.S3, groups []schemas.Group) float64 {
	requests, planned := hashedRequests, 0.0
	if s.Requests > 0 {
		requests = min(requests, s.Requests)
	}
	for _, g := range groups {
		planned += float64(g.Clients) * float64(requests)
	}
	return planned
}

func hashS3(h hash.Hash, seed uint64, trial uint32, clients int, s *schemas.S3) {
	var buf [25]byte
	for c := range clients {
		requests := NewS3(seed, trial, c, s)
		for range hashedRequests {
			r, ok := requests.Next()
			if !ok {
				break
			}
			binary.LittleEndian.PutUint64(buf[0:], uint64(r.At))
			binary.LittleEndian.PutUint64(buf[8:], uint64(r.Bucket))
			binary.LittleEndian.PutUint64(buf[16:], uint64(r.Object))
			buf[24] = 0
			if r.Put {
				buf[24] = 1
			}
			h.Write(buf[:])
		}
	}
}

// Request is one planned request of a client.
type Request struct {
	// At is when: in an open loop the time from the start of the trial, in a
	// closed loop the think time before the request.
	At     time.Duration
	Bucket int // index in the section's buckets
	Object int // index of the object of the section's size
	Put    bool
}

// S3Requests is a client's schedule. It is not safe for concurrent use.
type S3Requests struct {
	s       *schemas.S3
	random  *rand.Rand
	poisson distuv.Poisson
	n       int
	clock   time.Duration // open loop: the last arrival
	thought time.Duration // closed loop: think times so far
}

// NewS3 returns the schedule of client number client of a trial.
func NewS3(seed uint64, trial uint32, client int, s *schemas.S3) *S3Requests {
	random := source(seed, fmt.Sprintf("s3 trial %d client %d", trial, client))
	return &S3Requests{
		s: s, random: random,
		poisson: distuv.Poisson{Lambda: time.Duration(s.Wait).Seconds(), Src: random},
	}
}

// Next returns the next request, or false after the last one.
func (q *S3Requests) Next() (Request, bool) {
	s := q.s
	if s.Requests > 0 && q.n >= s.Requests {
		return Request{}, false
	}
	var r Request
	if s.Loop == "open" {
		q.clock += time.Duration(q.random.ExpFloat64() / s.Rate * float64(time.Second))
		r.At = q.clock
		if s.Duration > 0 && q.clock >= time.Duration(s.Duration) {
			return Request{}, false
		}
	} else {
		// The source's clients download first and wait between downloads.
		if q.n > 0 {
			r.At = q.think()
		}
		// Requests take time, so this many think times are never all used.
		q.thought += r.At
		if s.Duration > 0 && q.thought >= time.Duration(s.Duration) {
			return Request{}, false
		}
	}
	r.Bucket = q.n % len(s.Buckets)
	if s.Pick == "random" {
		r.Object = q.random.IntN(s.Objects)
	} else {
		r.Object = q.n / len(s.Buckets) % s.Objects
	}
	switch s.Operation {
	case "put":
		r.Put = true
	case "mixed":
		r.Put = q.random.Float64() < s.PutShare
	}
	q.n++
	return r, true
}

func (q *S3Requests) think() time.Duration {
	mean := time.Duration(q.s.Wait)
	if mean == 0 {
		return 0
	}
	switch q.s.Distribution {
	case "exponential":
		return time.Duration(math.Min(q.random.ExpFloat64()*float64(mean), float64(24*time.Hour)))
	case "constant":
		return mean
	}
	return time.Duration(q.poisson.Rand()) * time.Second
}
