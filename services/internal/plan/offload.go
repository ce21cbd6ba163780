package plan

import (
	"encoding/binary"
	"fmt"
	"hash"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Trigger is one planned motion in front of an edge.
type Trigger struct {
	At time.Duration // after the start of the trial
	// Scene numbers what the clip shows; who makes the clips knows how many
	// scenes there are.
	Scene int
}

// Triggers are what happens in front of edge number client of a trial, in order.
func Triggers(seed uint64, trial uint32, client int, o *schemas.Offload) []Trigger {
	random := source(seed, fmt.Sprintf("offload trial %d edge %d", trial, client))
	all, at := make([]Trigger, o.Clips), time.Duration(0)
	// Edges do not all begin with the same scene.
	first := random.IntN(1 << 16)
	for i := range all {
		if o.Arrival == "poisson" {
			at += time.Duration(random.ExpFloat64() * float64(o.Every))
		}
		all[i] = Trigger{At: at, Scene: first + i}
		if o.Arrival == "constant" {
			at += time.Duration(o.Every)
		}
	}
	return all
}

func offloadSize(o *schemas.Offload, groups []schemas.Group) float64 {
	edges := 0
	for _, g := range groups {
		edges += g.Clients
	}
	return float64(edges) * float64(o.Clips)
}

func hashOffload(h hash.Hash, seed uint64, trial uint32, clients int, o *schemas.Offload) {
	var buf [16]byte
	for c := range clients {
		for _, t := range Triggers(seed, trial, c, o) {
			binary.LittleEndian.PutUint64(buf[0:], uint64(t.At))
			binary.LittleEndian.PutUint64(buf[8:], uint64(t.Scene))
			h.Write(buf[:])
		}
	}
}
