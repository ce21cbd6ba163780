package swarmrunner

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
)

// role is one peer of a trial: where it is and which client.
type role struct {
	agent  string
	client *schemas.Client // nil for a seeder beside the clients
}

// cast is who is who in a trial, the same at every agent.
type cast struct {
	leechers, seeders []role
	// hub is the agent of the first seeder: the tracker is there.
	hub string
	// receiver is the agent of the first leecher: it gets the plain copy.
	receiver string
	address  map[string]netip.Addr // of agents
	ports    map[string]map[string]uint16
}

// casting finds out who is who from the agents of the trial.
func casting(s *schemas.Swarm, agents []schemas.Peer) (*cast, error) {
	c := &cast{address: map[string]netip.Addr{}, ports: map[string]map[string]uint16{}}
	var all []role
	for _, p := range agents {
		addr, err := netip.ParseAddr(p.Endpoint.Address)
		if err != nil {
			return nil, fmt.Errorf("agent %s has the address %q, want an IP address", p.Agent, p.Endpoint.Address)
		}
		if _, twice := c.address[p.Agent]; twice {
			return nil, fmt.Errorf("agent %s takes part twice", p.Agent)
		}
		c.address[p.Agent], c.ports[p.Agent] = addr, p.Endpoint.Ports
		for i := range p.Clients {
			all = append(all, role{p.Agent, &p.Clients[i]})
		}
	}
	slices.SortFunc(all, func(a, b role) int { return cmp.Compare(a.client.Index, b.client.Index) })
	groups := make([]string, len(all))
	for i, r := range all {
		if r.client.Index != i {
			return nil, fmt.Errorf("the trial's clients are not numbered from 0 without gaps: %d instead of %d", r.client.Index, i)
		}
		groups[i] = r.client.Group
	}
	leechers, seeders := plan.Leechers(groups, s)
	for _, i := range leechers {
		c.leechers = append(c.leechers, all[i])
	}
	for _, i := range seeders {
		c.seeders = append(c.seeders, all[i])
	}
	if len(c.leechers) == 0 {
		return nil, errors.New("nobody is left to fetch the file")
	}
	for range s.Seeders {
		c.seeders = append(c.seeders, role{agent: all[0].agent})
	}
	if len(c.seeders) == 0 {
		return nil, errors.New("nobody has the file")
	}
	c.hub, c.receiver = c.seeders[0].agent, c.leechers[0].agent
	return c, nil
}

// here are the clients of a task by their roles. What it does not say is how
// those of other agents are numbered.
func here(s *schemas.Swarm, t *schemas.Task) (leechers, seeders []*schemas.Client) {
	clients := slices.Clone(t.Clients)
	slices.SortFunc(clients, func(a, b schemas.Client) int { return cmp.Compare(a.Index, b.Index) })
	for i := range clients {
		c := &clients[i]
		if s.Seeds(c.Group) {
			seeders = append(seeders, c)
		} else {
			leechers = append(leechers, c)
		}
	}
	if len(clients) > 0 && clients[0].Index == 0 {
		seeders = append(seeders, make([]*schemas.Client, s.Seeders)...)
	}
	return leechers, seeders
}

// peerID is how a peer calls itself to others: the client and its version in
// the manner of BEP 20, then what follows from the trial, so that every agent
// knows whose it is.
func peerID(key [32]byte, seeder bool, number int) [20]byte {
	id := [20]byte{}
	copy(id[:], "-TL0100-")
	sum := digestText(fmt.Sprintf("%x %s", key, peerName(seeder, number)))
	copy(id[8:], sum[:12])
	return id
}

// homeAddress is the address of a peer in a network that is one agent's: one of
// its own, of the 16 million that the loopback interface has.
func homeAddress(seeder bool, number int) netip.Addr {
	const perBlock = 250
	block := 1 + number/perBlock
	if seeder {
		block += 100
	}
	return loopback(byte(block), byte(1+number%perBlock))
}
