package peer

import (
	"cmp"
	"slices"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// A swarm in a lab lives for seconds: rechoking every ten, as BEP 3 has it for
// downloads of hours, would leave its first choice standing to the end.
const rechokeEvery = time.Second

// How many rechokes an optimistic choice stays.
const optimisticRounds = 3

// grant lets an interested other have a slot that is free; p.mu is held.
func (p *Peer) grant(c *conn) {
	if !c.choking || !c.interested {
		return
	}
	if p.opt.Slots > 0 {
		taken := 0
		for _, o := range p.conns {
			if !o.choking && o.interested {
				taken++
			}
		}
		if taken >= p.opt.Slots {
			return
		}
	}
	c.unchoke()
}

// rechoke gives the slots to those that give most (a seeder: to those that take
// most), and one of them to somebody by chance; p.mu is held.
func (p *Peer) rechoke() {
	var wanting []*conn
	for _, c := range p.conns {
		c.rate = c.moved - c.movedBefore
		c.movedBefore = c.moved
		if c.interested {
			wanting = append(wanting, c)
		}
	}
	if len(wanting) <= p.opt.Slots {
		for _, c := range wanting {
			c.unchoke()
		}
		return
	}
	slices.SortStableFunc(wanting, func(a, b *conn) int { return cmp.Compare(b.rate, a.rate) })
	regular := max(p.opt.Slots-1, 1)
	chosen := slices.Clone(wanting[:regular])
	if rest := wanting[regular:]; p.opt.Slots > 1 {
		at := slices.IndexFunc(rest, func(c *conn) bool { return c.optimistic > 0 })
		if at < 0 {
			at = p.random.IntN(len(rest))
			rest[at].optimistic = optimisticRounds
		}
		rest[at].optimistic--
		chosen = append(chosen, rest[at])
	}
	for _, c := range wanting {
		if slices.Contains(chosen, c) {
			c.unchoke()
		} else {
			c.choke()
		}
	}
}

// unchoke lets the other ask; p.mu is held.
func (c *conn) unchoke() {
	if c.choking {
		c.choking = false
		c.say(wire.Message{ID: wire.IDUnchoke})
	}
}

// choke refuses what the other has asked for and not got; p.mu is held.
func (c *conn) choke() {
	if c.choking {
		return
	}
	c.choking = true
	c.say(wire.Message{ID: wire.IDChoke})
	if c.fast {
		for _, r := range c.requests {
			c.say(wire.Message{ID: wire.IDReject, Index: uint32(r.piece), Begin: uint32(r.begin), Length: uint32(r.n)})
		}
	}
	c.requests = c.requests[:0]
}
