package plan

import (
	"encoding/binary"
	"fmt"
	"hash"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Arrivals are when the leechers of a swarm come, after the start of the trial.
func Arrivals(seed uint64, trial uint32, leechers int, s *schemas.Swarm) []time.Duration {
	all := make([]time.Duration, leechers)
	random := source(seed, fmt.Sprintf("swarm trial %d arrivals", trial))
	at := time.Duration(0)
	for i := range all {
		switch s.Arrival {
		case "staggered":
			all[i] = time.Duration(i) * time.Duration(s.Every)
		case "poisson":
			at += time.Duration(random.ExpFloat64() * float64(s.Every))
			all[i] = at
		}
	}
	return all
}

// Leechers are the indices of the clients that fetch the file, and of those
// that have it. Seeders beside the groups' clients have no index.
func Leechers(groups []string, s *schemas.Swarm) (leechers, seeders []int) {
	for i, name := range groups {
		if s.Seeds(name) {
			seeders = append(seeders, i)
		} else {
			leechers = append(leechers, i)
		}
	}
	return leechers, seeders
}

func swarmSize(s *schemas.Swarm, groups []schemas.Group) float64 {
	leechers, _ := Leechers(members(groups), s)
	return float64(len(leechers)) * (float64(s.Size)/float64(s.PieceLength()) + 1)
}

func hashSwarm(h hash.Hash, seed uint64, trial uint32, groups []schemas.Group, s *schemas.Swarm) {
	leechers, _ := Leechers(members(groups), s)
	// The file's content follows from the seed, whatever else does.
	var buf [16]byte
	binary.LittleEndian.PutUint64(buf[:], seed)
	h.Write(buf[:8])
	for i, at := range Arrivals(seed, trial, len(leechers), s) {
		binary.LittleEndian.PutUint64(buf[0:], uint64(leechers[i]))
		binary.LittleEndian.PutUint64(buf[8:], uint64(at))
		h.Write(buf[:])
	}
}
