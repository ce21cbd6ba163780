package plan

import (
	"encoding/binary"
	"fmt"
	"hash"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Path is one line of probes: from a client to a client or to a target.
type Path struct {
	Index    int // in the trial
	Protocol string
	From     int // index of the client that probes
	To       int // index of the client that is probed; -1 for a target
	Target   int // index in the section's targets; -1 for a client
	// Phase is when the first probe is due after the start; the others follow
	// at the section's interval.
	Phase time.Duration
}

// Paths are the lines of probes of a trial, those of a client next to each
// other. Their phases spread the probes of all over the interval, by the seed:
// each client's own paths evenly (so that none bursts), clients at random
// against each other. clients are the groups' names by client.
func Paths(seed uint64, trial uint32, clients []string, p *schemas.Probe) []Path {
	var all []Path
	for from := range clients {
		first := len(all)
		for to := range clients {
			if !meets(p, from, to, clients[from], clients[to]) {
				continue
			}
			for _, protocol := range p.Protocols {
				all = append(all, Path{Index: len(all), Protocol: protocol, From: from, To: to, Target: -1})
			}
		}
		for i, text := range p.Targets {
			target, err := schemas.ParseTarget(text)
			if err != nil {
				continue // the section's check has said so
			}
			all = append(all, Path{Index: len(all), Protocol: target.Protocol, From: from, To: -1, Target: i})
		}
		spread(seed, trial, from, all[first:], time.Duration(p.Interval))
	}
	return all
}

// members are the groups' names by client.
func members(groups []schemas.Group) []string {
	var clients []string
	for _, g := range groups {
		for range g.Clients {
			clients = append(clients, g.Name)
		}
	}
	return clients
}

func meets(p *schemas.Probe, from, to int, fromGroup, toGroup string) bool {
	switch p.Mesh {
	case "full":
		return from != to || p.Self
	case "pairs":
		for _, pair := range p.Pairs {
			if pair[0] == fromGroup && pair[1] == toGroup && from != to {
				return true
			}
		}
	}
	return false
}

func spread(seed uint64, trial uint32, client int, paths []Path, interval time.Duration) {
	if len(paths) == 0 {
		return
	}
	random := source(seed, fmt.Sprintf("probe trial %d client %d", trial, client))
	offset := random.Float64()
	for slot, i := range random.Perm(len(paths)) {
		paths[i].Phase = time.Duration((float64(slot) + offset) / float64(len(paths)) * float64(interval))
	}
}

func probeSize(p *schemas.Probe, groups []schemas.Group) float64 {
	return float64(len(Paths(0, 0, members(groups), p))) * float64(p.Probes(0))
}

func hashProbe(h hash.Hash, seed uint64, trial uint32, groups []schemas.Group, p *schemas.Probe) {
	var buf [40]byte
	for _, path := range Paths(seed, trial, members(groups), p) {
		binary.LittleEndian.PutUint64(buf[0:], uint64(path.From))
		binary.LittleEndian.PutUint64(buf[8:], uint64(path.To))
		binary.LittleEndian.PutUint64(buf[16:], uint64(path.Target))
		binary.LittleEndian.PutUint64(buf[24:], uint64(path.Phase))
		binary.LittleEndian.PutUint64(buf[32:], uint64(p.Probes(path.Phase)))
		h.Write(append(buf[:], path.Protocol...))
	}
}
