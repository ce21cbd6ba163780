package peer

import (
	"context"

	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// maxRequests bounds what another may ask for at a time.
const maxRequests = 4096

// asked takes note of a request of another; p.mu is held.
func (c *conn) asked(m wire.Message) error {
	p := c.p
	r := request{piece: int32(m.Index), begin: int32(m.Begin), n: int32(m.Length)}
	if !p.within(m.Index, m.Begin, m.Length) || m.Length > wire.MaxBlock {
		return errRequest
	}
	if c.choking || !p.have.Has(int(m.Index)) || len(c.requests) >= maxRequests {
		if c.fast {
			c.say(wire.Message{ID: wire.IDReject, Index: m.Index, Begin: m.Begin, Length: m.Length})
		}
		return nil
	}
	c.requests = append(c.requests, r)
	if p.up != nil {
		p.uploads.Signal()
	} else {
		c.wake.Signal()
	}
	return nil
}

// within reports whether a block is one of the file's.
func (p *Peer) within(index, begin, n uint32) bool {
	return int64(index) < int64(len(p.pieces)) && n > 0 && int64(begin)+int64(n) <= p.t.PieceSize(int(index))
}

// sendLimited shares a limited rate out among those that ask: a whole piece to
// each in turn. Were it block by block, all would have parts of pieces at the
// same time, and nobody anything to pass on.
func (p *Peer) sendLimited() {
	ctx := p.ctx
	var serving *conn
	var serves int32
	for {
		p.mu.Lock()
		for !p.ended && !p.askedFor() {
			p.uploads.Wait()
		}
		if p.ended {
			p.mu.Unlock()
			return
		}
		if serving == nil || !serving.waits() || serving.requests[0].piece != serves {
			serving = p.next()
			serves = serving.requests[0].piece
		}
		r := serving.requests[0]
		p.mu.Unlock()
		if !take(ctx, p.up, int(r.n)) {
			return
		}
		p.mu.Lock()
		// It may have been cancelled in the meantime: then this much was saved
		// for the next.
		if len(serving.requests) > 0 && !serving.closed {
			serving.granted = append(serving.granted, serving.requests[0])
			serving.requests = append(serving.requests[:0], serving.requests[1:]...)
			serving.wake.Signal()
		}
		p.mu.Unlock()
	}
}

// take waits until n bytes are allowed; false when ctx ends before.
func take(ctx context.Context, l interface {
	WaitN(context.Context, int) error
	Burst() int
}, n int,
) bool {
	for n > 0 {
		part := min(n, l.Burst())
		if l.WaitN(ctx, part) != nil {
			return false
		}
		n -= part
	}
	return true
}

// maxGranted bounds what is under way to one that takes it slowly, so that the
// rate is not spent on it.
const maxGranted = 16

// waits reports whether something can be sent to c; p.mu is held.
func (c *conn) waits() bool { return !c.closed && len(c.requests) > 0 && len(c.granted) < maxGranted }

// askedFor reports whether anybody waits for something; p.mu is held.
func (p *Peer) askedFor() bool {
	for _, c := range p.conns {
		if c.waits() {
			return true
		}
	}
	return false
}

// next is whose turn it is of those that wait; there is one. p.mu is held.
func (p *Peer) next() *conn {
	for range p.conns {
		p.turn++
		if c := p.conns[p.turn%len(p.conns)]; c.waits() {
			return c
		}
	}
	return nil
}

// Super-seeding (BEP 16): a seeder says that it has nothing, and then shows each
// other a piece that it has shown nobody yet, and the next as soon as that is
// sent. Its limited uploads carry no piece twice before all have gone out once.
// Unlike in the BEP the next piece does not wait until the last one is seen
// elsewhere: in a lab nobody keeps pieces to himself.

// revealAhead is how many pieces another is shown that are not sent yet.
const revealAhead = 2

// reveal shows c pieces; p.mu is held.
func (p *Peer) reveal(c *conn) {
	for !p.open && c.shown < revealAhead {
		best := -1
		var least, ties int
		for i := range p.pieces {
			if c.bits.Has(i) || c.shows.Has(i) {
				continue
			}
			rarity := p.revealed[i] + int(p.pieces[i].available)
			switch {
			case best < 0 || rarity < least:
				best, least, ties = i, rarity, 1
			case rarity == least:
				if ties++; p.random.IntN(ties) == 0 {
					best = i
				}
			}
		}
		if best < 0 {
			return
		}
		p.revealed[best]++
		c.shows.Set(best)
		c.shown++
		c.say(wire.Message{ID: wire.IDHave, Index: uint32(best)})
	}
}

// unveil ends super-seeding once every piece has been shown and seen elsewhere;
// p.mu is held.
func (p *Peer) unveil() {
	if p.open {
		return
	}
	for i := range p.pieces {
		if p.revealed[i] == 0 || p.pieces[i].available == 0 {
			return
		}
	}
	p.open = true
	for _, c := range p.conns {
		for i := range p.pieces {
			if !c.bits.Has(i) && !c.shows.Has(i) {
				c.say(wire.Message{ID: wire.IDHave, Index: uint32(i)})
			}
		}
	}
}
