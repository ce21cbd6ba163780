package main

import (
	"cmp"
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

// shape is what the rows of the benchmark look like: requests of the s3
// workload, open loop, as they leave the s3-loader. Everything random is drawn
// per row; nothing is rounded.
type shape struct {
	Rate    float64 // requests a second over all agents: Poisson arrivals
	Agents  int     // one producer each, half of them at a second site
	Clients int     // of each agent
	Buckets int     // in a cycle
	Objects int     // of each bucket, picked at random
	Wait    lognormal
	First   lognormal // sent to first byte
	Body    lognormal // first byte to done
}

// lognormal is a distribution by its median and the sigma of its logarithm.
type lognormal struct {
	Median time.Duration
	Sigma  float64
}

func (l lognormal) draw(r *rand.Rand) time.Duration {
	return time.Duration(float64(l.Median) * math.Exp(l.Sigma*r.NormFloat64()))
}

func defaultShape() shape {
	return shape{
		Rate: 20_000, Agents: 2, Clients: 4, Buckets: 3, Objects: 4,
		Wait:  lognormal{60 * time.Microsecond, 0.6},
		First: lognormal{2 * time.Millisecond, 0.5},
		Body:  lognormal{3 * time.Millisecond, 0.4},
	}
}

// agentRows draws n events of agent number a in the order in which they end,
// which is the order in which they are recorded.
func agentRows(s shape, seed uint64, a, n int, start time.Time, run uuid.UUID) []schemas.Event {
	r := rand.New(rand.NewPCG(seed, uint64(a)))
	site, instance := "oregon", "t3.small"
	if a%2 == 1 {
		site, instance = "dublin", "t2.micro"
	}
	rate := s.Rate / float64(s.Agents*s.Clients)
	next := make(arrivals, s.Clients)
	requests := make([]int, s.Clients)
	for c := range next {
		next[c] = arrival{at: start.Add(exponential(r, rate)), client: c}
	}
	heap.Init(&next)
	events := make([]schemas.Event, n)
	for i := range events {
		at, c := next[0].at, next[0].client
		k := requests[c]
		requests[c]++
		next[0].at = at.Add(exponential(r, rate))
		heap.Fix(&next, 0)
		first := s.First.draw(r)
		events[i] = schemas.Event{
			Intended: at, Run: run, Trial: 1, Attempt: 1, Workload: schemas.WorkloadS3, Service: "s3-loader",
			Site: site, Agent: site + "-1", Kind: schemas.KindRequest,
			Wait: s.Wait.draw(r), FirstByte: first, Duration: first + s.Body.draw(r), Bytes: 1_000_000, Status: schemas.StatusOK,
			Attrs: []schemas.Attr{
				{Key: "bucket", Value: "bucket" + strconv.Itoa(k%s.Buckets+1)},
				{Key: "object", Value: "transferlab/1MB/00000" + strconv.Itoa(r.IntN(s.Objects)) + ".bin"},
				{Key: "op", Value: "get"},
				{Key: "size", Value: "1MB"},
				{Key: "client", Value: strconv.Itoa(a*s.Clients + c)},
				{Key: "instance_type", Value: instance},
			},
		}
	}
	slices.SortStableFunc(events, func(x, y schemas.Event) int {
		return cmp.Compare(x.Intended.Add(x.Wait+x.Duration).UnixNano(), y.Intended.Add(y.Wait+y.Duration).UnixNano())
	})
	return events
}

func exponential(r *rand.Rand, rate float64) time.Duration {
	return time.Duration(r.ExpFloat64() / rate * float64(time.Second))
}

// arrivals is a heap of the clients' next requests.
type arrivals []arrival

type arrival struct {
	at     time.Time
	client int
}

func (a arrivals) Len() int           { return len(a) }
func (a arrivals) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a arrivals) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *arrivals) Push(x any)        { *a = append(*a, x.(arrival)) }
func (a *arrivals) Pop() any          { x := (*a)[len(*a)-1]; *a = (*a)[:len(*a)-1]; return x }
