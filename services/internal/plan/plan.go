// Package plan turns an experiment and a seed into what will happen: the
// trials, in their order, and for every client the requests it will make and
// when. Same file and seed, same plan, byte for byte.
package plan

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"math"
	"math/rand/v2"
	"time"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/transferlab/transferlab/schemas"
)

// Trial is one execution of one cell.
type Trial struct {
	Index   uint32 // position in the order of execution, from 0
	Cell    int    // which cell
	Repeat  int    // which repetition of it, from 0
	Values  []schemas.Attr
	Section any // *schemas.S3
	Groups  []schemas.Group
}

// Plan is everything a run will do.
type Plan struct {
	Seed   uint64
	Trials []Trial
	// Hash identifies the plan: SHA-256 over every trial and every client's
	// schedule, in hexadecimal.
	Hash string
}

// maxPlanned bounds the planned requests of an experiment: going through them
// takes some seconds of one CPU.
const maxPlanned = 100_000_000

// TooLargeError says that an experiment is too large to be planned.
type TooLargeError struct{ Requests float64 }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the experiment plans about %.3g requests in all its trials and clients, at most %d are allowed: fewer trials, clients or requests", e.Requests, maxPlanned)
}

// CheckSize refuses experiments that are too large to plan ([*TooLargeError]).
func CheckSize(e *schemas.Experiment) error {
	cells, err := e.Cells()
	if err != nil {
		return fmt.Errorf("expand the matrix: %w", err)
	}
	var planned float64
	for _, c := range cells {
		requests := hashedRequests
		if s, ok := c.Section.(*schemas.S3); ok && s.Requests > 0 {
			requests = min(requests, s.Requests)
		}
		for _, g := range c.Groups {
			planned += float64(g.Clients) * float64(requests) * float64(e.Trials.Repeat)
		}
	}
	if planned > maxPlanned {
		return &TooLargeError{Requests: planned}
	}
	return nil
}

// New plans an experiment; seed 0 takes the experiment's own.
func New(e *schemas.Experiment, seed uint64) (*Plan, error) {
	if seed == 0 {
		seed = e.Seed
	}
	if err := CheckSize(e); err != nil {
		return nil, err
	}
	cells, err := e.Cells()
	if err != nil {
		return nil, fmt.Errorf("expand the matrix: %w", err)
	}
	p := &Plan{Seed: seed}
	for repeat := range e.Trials.Repeat {
		for i, c := range cells {
			p.Trials = append(p.Trials, Trial{Cell: i, Repeat: repeat, Values: c.Values, Section: c.Section, Groups: c.Groups})
		}
	}
	if e.Trials.Order == "shuffled" {
		// Each repetition is shuffled on its own, so that every cell has run n
		// times before any runs n+1 times.
		random := source(seed, "order")
		for at := 0; at < len(p.Trials); at += len(cells) {
			round := p.Trials[at : at+len(cells)]
			random.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		}
	}
	h := sha256.New()
	for i := range p.Trials {
		p.Trials[i].Index = uint32(i)
		if err := p.Trials[i].hash(h, seed); err != nil {
			return nil, fmt.Errorf("trial %d: %w", i, err)
		}
	}
	p.Hash = hex.EncodeToString(h.Sum(nil))
	return p, nil
}

// A schedule that has no last request is hashed up to this many requests of a
// client; the generator's state after them is fixed by the seed anyway.
const hashedRequests = 4096

func (t *Trial) hash(h hash.Hash, seed uint64) error {
	var buf [32]byte
	fmt.Fprintf(h, "trial %d cell %d repeat %d %q\n", t.Index, t.Cell, t.Repeat, t.Values)
	clients := 0
	for _, g := range t.Groups {
		fmt.Fprintf(h, "group %q %q %v %d\n", g.Name, g.Site, g.Labels, g.Clients)
		clients += g.Clients
	}
	if s, ok := t.Section.(*schemas.S3); ok {
		// The JSON form follows pointers and has a fixed order.
		section, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("encode section: %w", err)
		}
		fmt.Fprintf(h, "s3 %s\n", section)
		for c := range clients {
			requests := NewS3(seed, t.Index, c, s)
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
				h.Write(buf[:25])
			}
		}
	}
	return nil
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

// source is the random stream of one purpose under a seed: ChaCha8 keyed by
// their hash, so that streams are independent and adding one changes no other.
func source(seed uint64, purpose string) *rand.Rand {
	key := sha256.Sum256(fmt.Appendf(nil, "transferlab 1 %d %s", seed, purpose))
	return rand.New(rand.NewChaCha8(key))
}
