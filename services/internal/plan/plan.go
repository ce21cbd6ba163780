// Package plan turns an experiment and a seed into what will happen: the
// trials, in their order, and for every client what it will do and when. Same file and seed, same plan, byte for byte.
package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"math/rand/v2"

	"github.com/transferlab/transferlab/schemas"
)

// Trial is one execution of one cell.
type Trial struct {
	Index   uint32 // position in the order of execution, from 0
	Cell    int    // which cell
	Repeat  int    // which repetition of it, from 0
	Values  []schemas.Attr
	Section any // the workload's: *schemas.S3, *schemas.Probe, …
	Groups  []schemas.Group
}

// Plan is everything a run will do.
type Plan struct {
	Seed   uint64
	Trials []Trial
	Cells  int
	// Hash identifies the plan: SHA-256 over every trial and every client's
	// schedule, in hexadecimal.
	Hash string
}

// maxPlanned bounds the planned operations of an experiment: going through them
// takes some seconds of one CPU.
const maxPlanned = 100_000_000

// TooLargeError says that an experiment is too large to be planned.
type TooLargeError struct{ Operations float64 }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the experiment plans about %.3g requests, probes, pieces or clips in all its trials and clients, at most %d are allowed: fewer trials, clients or requests", e.Operations, maxPlanned)
}

// CheckSize refuses experiments that are too large to plan ([*TooLargeError]).
func CheckSize(e *schemas.Experiment) error {
	cells, err := e.Cells()
	if err != nil {
		return fmt.Errorf("expand the matrix: %w", err)
	}
	var planned float64
	for _, c := range cells {
		trials := float64(e.RepeatsOf(c.Values))
		switch s := c.Section.(type) {
		case *schemas.S3:
			planned += s3Size(s, c.Groups) * trials
		case *schemas.Probe:
			planned += probeSize(s, c.Groups) * trials
		case *schemas.Swarm:
			planned += swarmSize(s, c.Groups) * trials
		case *schemas.Offload:
			planned += offloadSize(s, c.Groups) * trials
		}
	}
	if planned > maxPlanned {
		return &TooLargeError{Operations: planned}
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
	p := &Plan{Seed: seed, Cells: len(cells)}
	random := source(seed, "order")
	for repeat, left := 0, true; left; repeat++ {
		first := len(p.Trials)
		for i, c := range cells {
			if repeat < e.RepeatsOf(c.Values) {
				p.Trials = append(p.Trials, Trial{Cell: i, Repeat: repeat, Values: c.Values, Section: c.Section, Groups: c.Groups})
			}
		}
		round := p.Trials[first:]
		left = len(round) > 0
		if e.Trials.Order == "shuffled" {
			// Each repetition is shuffled on its own, so that every cell has run n
			// times before any runs n+1 times.
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

func (t *Trial) hash(h hash.Hash, seed uint64) error {
	fmt.Fprintf(h, "trial %d cell %d repeat %d %q\n", t.Index, t.Cell, t.Repeat, t.Values)
	clients := 0
	for _, g := range t.Groups {
		fmt.Fprintf(h, "group %q %q %v %d\n", g.Name, g.Site, g.Labels, g.Clients)
		clients += g.Clients
	}
	// The JSON form follows pointers and has a fixed order.
	section, err := json.Marshal(t.Section)
	if err != nil {
		return fmt.Errorf("encode section: %w", err)
	}
	switch s := t.Section.(type) {
	case *schemas.S3:
		fmt.Fprintf(h, "s3 %s\n", section)
		hashS3(h, seed, t.Index, clients, s)
	case *schemas.Probe:
		fmt.Fprintf(h, "probe %s\n", section)
		hashProbe(h, seed, t.Index, t.Groups, s)
	case *schemas.Swarm:
		fmt.Fprintf(h, "swarm %s\n", section)
		hashSwarm(h, seed, t.Index, t.Groups, s)
	case *schemas.Offload:
		fmt.Fprintf(h, "offload %s\n", section)
		hashOffload(h, seed, t.Index, clients, s)
	}
	return nil
}

// source is the random stream of one purpose under a seed: ChaCha8 keyed by
// their hash, so that streams are independent and adding one changes no other.
func source(seed uint64, purpose string) *rand.Rand {
	key := sha256.Sum256(fmt.Appendf(nil, "transferlab 1 %d %s", seed, purpose))
	return rand.New(rand.NewChaCha8(key))
}
