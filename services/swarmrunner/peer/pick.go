package peer

import (
	"crypto/sha1" // BEP 3 hashes pieces with it
	"net/netip"
	"slices"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/peer/lanes"
	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// States of a piece.
const (
	lacking  = iota // nobody is asked for it
	active          // some of its blocks are asked for or there
	hashing         // all are there
	verified        // and right
)

// piece is one piece of the file.
type piece struct {
	state     uint8
	solo      bool  // it was wrong once: all of it shall come from one other, who is to blame then
	available int32 // others that have it
	blocks    []block
	received  int
	asked     time.Time
	last      time.Time // when something of it came or was asked for
	owners    []*conn   // that are asked for it
	givers    []giver   // that sent some of it
}

// giver is who sent something; it may be gone when that turns out to be wrong.
type giver struct {
	conn *conn
	id   [20]byte
	addr netip.AddrPort
}

// block states.
const (
	blockMissing   = iota
	blockReceiving // a connection is writing it into the store
	blockReceived
)

type block uint8

// Delays beyond the round trip that say whether what is asked for ahead is too
// little or too much: a block that comes sooner than enough after it was asked
// for may have more asked for behind it; one that comes later than tooLate waits
// in somebody's queue, where no other can help with it.
const (
	enough  = 25 * time.Millisecond
	tooLate = 100 * time.Millisecond
)

// Bounds on bytes asked for ahead.
const (
	initialWindow = 1 << 20 // of all others together
	firstWindow   = 256 << 10
	mostWindow    = 16 << 20 // of one other
	mostInFlight  = 64 << 20
)

// leastInFlight is what is asked of all others together at least: few pieces, so
// that which piece is asked of whom is decided late.
func (p *Peer) leastInFlight() int64 { return max(12*p.t.PieceLength, 64<<10) }

// leastWindow is what is asked of one other at least: the next piece before the
// last one is there, and more where few others could help.
func (p *Peer) leastWindow() int64 {
	if len(p.conns) <= fewOthers {
		return max(p.t.PieceLength/2, firstWindow)
	}
	return max(p.t.PieceLength/2, 2*wire.BlockSize)
}

// adapt follows how long blocks take; p.mu is held.
func (c *conn) adapt(n int64, took time.Duration) {
	p := c.p
	switch {
	case took < c.roundTrip+enough:
		p.window = min(p.window+n, mostInFlight)
		c.window = min(c.window+n, mostWindow)
	case took > c.roundTrip+tooLate:
		p.window = max(p.window-n, p.leastInFlight())
		c.window = max(c.window-n, p.leastWindow())
	}
	if p.opt.Window > 0 {
		c.window = p.opt.Window
		p.window = mostInFlight
	}
}

// mayAsk reports whether more can be asked of c; p.mu is held.
func (c *conn) mayAsk() bool {
	return !c.choked && c.wanted > 0 && c.inFlight < c.window && c.p.inFlight < c.p.window
}

// ask asks for what c can give: first more of c itself, which has just shown
// that it is there, then of others that are idle; p.mu is held.
func (p *Peer) ask(c *conn) {
	if p.ended || p.missing == 0 {
		return
	}
	busy := p.verify > tooLate
	if c != nil && !busy {
		for c.mayAsk() && p.askOne(c) {
		}
	}
	if p.unpicked == 0 || p.inFlight >= p.window {
		return
	}
	// Who waits in long queues spreads what it asks for over all others.
	for _, i := range p.random.Perm(len(p.conns)) {
		o := p.conns[i]
		if busy && o.inFlight > 0 {
			continue
		}
		for o.mayAsk() && p.askOne(o) && !busy {
		}
	}
	if c != nil && busy {
		for c.mayAsk() && p.askOne(c) {
		}
	}
}

// askOne asks c for one piece, the rarest; false when it has none that others
// are not asked for already; p.mu is held.
func (p *Peer) askOne(c *conn) bool {
	best, ties := -1, 0
	for i := range p.pieces {
		pc := &p.pieces[i]
		if pc.state > active || !c.bits.Has(i) || len(pc.owners) > 0 {
			continue
		}
		if pc.state == active {
			// Begun and left behind by somebody who is gone.
			best = i
			break
		}
		switch {
		case best < 0 || pc.available < p.pieces[best].available:
			best, ties = i, 1
		case pc.available == p.pieces[best].available:
			if ties++; p.random.IntN(ties) == 0 {
				best = i
			}
		}
	}
	if best < 0 {
		return false
	}
	p.askFor(c, best)
	return true
}

// askFor asks c for the blocks of a piece that are missing; p.mu is held.
func (p *Peer) askFor(c *conn, i int) {
	pc, now := &p.pieces[i], time.Now()
	size := p.t.PieceSize(i)
	if pc.state == lacking {
		pc.state, pc.asked = active, now
		pc.blocks = make([]block, (size+wire.BlockSize-1)/wire.BlockSize)
	}
	if len(pc.owners) == 0 {
		p.unpicked--
	}
	pc.last = now
	pc.owners = append(pc.owners, c)
	for b, state := range pc.blocks {
		if state != blockMissing {
			continue
		}
		begin := int64(b) * wire.BlockSize
		n := min(size-begin, wire.BlockSize)
		c.say(wire.Message{ID: wire.IDRequest, Index: uint32(i), Begin: uint32(begin), Length: uint32(n)})
		c.pending = append(c.pending, request{piece: int32(i), begin: int32(begin), n: int32(n), at: now})
		c.inFlight += n
		p.inFlight += n
	}
}

// Bounds on how long a piece may stand still before another is asked for it
// too. Asking twice costs bytes, and where everything is slow because there is
// much of it it makes everything slower: before the end it is for others that
// are stuck; at the end, with nothing else to ask for, for what is late.
const (
	stuckLeast  = 2 * time.Second
	stuckFactor = 8
	lateLeast   = 200 * time.Millisecond
	lateFactor  = 1.5
)

// rescue asks others for pieces that do not come; p.mu is held.
func (p *Peer) rescue(now time.Time) {
	if p.missing == 0 || p.ended {
		return
	}
	p.ask(nil)
	patience := max(stuckLeast, stuckFactor*p.verify)
	if p.unpicked == 0 {
		patience = max(lateLeast, time.Duration(lateFactor*float64(p.verify)))
	}
	for i := range p.pieces {
		pc := &p.pieces[i]
		if pc.state != active || pc.solo || len(pc.owners) == 0 || now.Sub(pc.last) < patience {
			continue
		}
		var second *conn
		for _, c := range p.conns {
			if !c.choked && c.inFlight == 0 && c.bits.Has(i) && !slices.Contains(pc.owners, c) {
				second = c
				break
			}
		}
		if second != nil && len(pc.owners) < 2 {
			p.askFor(second, i)
		}
	}
}

// release makes what c was asked for free for others; p.mu is held.
func (p *Peer) release(c *conn) {
	for _, r := range c.pending {
		c.over(r)
	}
	c.pending = c.pending[:0]
	for i := range p.pieces {
		pc := &p.pieces[i]
		if pc.state == active {
			p.disown(i, c)
		}
	}
}

// disown ends c's part in a piece; p.mu is held.
func (p *Peer) disown(i int, c *conn) {
	pc := &p.pieces[i]
	at := slices.Index(pc.owners, c)
	if at < 0 {
		return
	}
	pc.owners = slices.Delete(pc.owners, at, at+1)
	if len(pc.owners) > 0 {
		return
	}
	p.unpicked++
	// A piece that was wrong once is not put together from several again.
	if pc.solo {
		for b := range pc.blocks {
			pc.blocks[b] = blockMissing
		}
		pc.received, pc.givers = 0, nil
	}
	if pc.received == 0 {
		pc.state, pc.blocks, pc.givers = lacking, nil, nil
	}
}

// got takes note of blocks that c has written into the store; p.mu is held.
func (p *Peer) got(c *conn, blocks []request) {
	now := time.Now()
	for _, r := range blocks {
		i := int(r.piece)
		pc := &p.pieces[i]
		pc.blocks[r.begin/wire.BlockSize] = blockReceived
		pc.received++
		pc.last, p.report.LastBlock = now, now
		c.over(r)
		c.moved += int64(r.n)
		if c.seed {
			p.report.FromSeeds += int64(r.n)
		}
		c.adapt(int64(r.n), now.Sub(r.at))
		if len(pc.givers) == 0 || pc.givers[len(pc.givers)-1].conn != c {
			pc.givers = append(pc.givers, giver{c, c.id, c.remote})
		}
		for _, o := range pc.owners {
			if o != c {
				o.cancel(r)
			}
		}
		if pc.received == len(pc.blocks) {
			pc.state, pc.owners = hashing, nil
			p.check(i)
		}
	}
	p.ask(c)
}

// smallPiece is hashed where it came in: to hand it to another goroutine takes
// as long.
const smallPiece = 64 << 10

// gatherMost is how long a piece waits for others to be hashed with it: sixteen
// take hardly longer than four. Only pieces that come faster than that wait.
const gatherMost = time.Millisecond

// check hashes a piece that is there; p.mu is held.
func (p *Peer) check(i int) {
	if p.t.PieceSize(i) <= smallPiece {
		var sum [1][sha1.Size]byte
		lanes.Sums([][]byte{p.content(i)}, sum[:])
		p.checked(i, sum[0])
		return
	}
	now := time.Now()
	p.rapid = now.Sub(p.lastWhole) < gatherMost
	p.lastWhole = now
	p.whole = append(p.whole, i)
	if len(p.whole) < lanes.Width && p.rapid && p.inFlight > 0 && lanes.Available() {
		if !p.gathering {
			p.gathering = true
			time.AfterFunc(gatherMost, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.gathering = false
				p.hash()
			})
		}
		return
	}
	p.hash()
}

// hash hashes pieces that are there, on a goroutine of its own; p.mu is held.
func (p *Peer) hash() {
	if p.hashing || p.ended || len(p.whole) == 0 {
		return
	}
	p.hashing = true
	batch := slices.Clone(p.whole[:min(len(p.whole), lanes.Width)])
	p.whole = slices.Delete(p.whole, 0, len(batch))
	p.tasks.Go(func() {
		pieces, sums := make([][]byte, len(batch)), make([][sha1.Size]byte, len(batch))
		for k, i := range batch {
			pieces[k] = p.content(i)
		}
		lanes.Sums(pieces, sums)
		p.mu.Lock()
		defer p.mu.Unlock()
		for k, i := range batch {
			p.checked(i, sums[k])
		}
		p.hashing = false
		if !p.gathering {
			p.hash()
		}
	})
}

// content is the memory of a piece.
func (p *Peer) content(i int) []byte {
	begin := int64(i) * p.t.PieceLength
	return p.opt.Store[begin : begin+p.t.PieceSize(i)]
}

// checked goes on with a piece whose hash is known; p.mu is held.
func (p *Peer) checked(i int, sum [sha1.Size]byte) {
	pc, now := &p.pieces[i], time.Now()
	if string(sum[:]) != string(p.t.Hash(i)) {
		p.wrong(i)
		return
	}
	size := p.t.PieceSize(i)
	last := pc.givers[len(pc.givers)-1]
	pc.state, pc.blocks, pc.givers = verified, nil, nil
	p.have.Set(i)
	p.missing--
	r := &p.report
	r.Have += size
	r.Pieces = append(r.Pieces, Piece{Index: i, Asked: pc.asked, Verified: now, From: last.addr, FromID: last.id})
	took := now.Sub(pc.asked)
	if p.verify == 0 {
		p.verify = took
	}
	p.verify += (took - p.verify) / 8
	if r.FirstPiece.IsZero() {
		r.FirstPiece = now
	}
	for p.deciles < len(r.Deciles) && r.Have*10 >= int64(p.deciles+1)*r.Bytes {
		r.Deciles[p.deciles] = now
		p.deciles++
	}
	for _, c := range p.conns {
		if c.bits.Has(i) {
			c.wanted--
		}
	}
	p.haves = append(p.haves, i)
	if p.missing > 0 {
		p.tell()
		return
	}
	r.Completed = now
	close(p.complete)
	p.tellNow()
	for _, c := range p.conns {
		if c.bits.Count() == len(p.pieces) {
			// Neither has anything for the other.
			c.finish()
		} else if c.interesting {
			c.interesting = false
			c.say(wire.Message{ID: wire.IDNotInterested})
		}
	}
}

// wrong starts a piece again that is not what the torrent says; who alone sent
// it is not asked again. p.mu is held.
func (p *Peer) wrong(i int) {
	pc := &p.pieces[i]
	p.report.HashFailures++
	p.report.Wasted += p.t.PieceSize(i)
	if len(pc.givers) == 1 {
		g := pc.givers[0]
		if !p.banned[g.id] {
			p.banned[g.id] = true
			p.report.Banned++
		}
		g.conn.shut(true)
	}
	*pc = piece{available: pc.available, solo: true}
	p.unpicked++
	p.ask(nil)
}

// With many others, what is told of several pieces at once costs a fraction.
const (
	manyOthers = 8
	tellAfter  = 4 * time.Millisecond
)

// tell lets the others know of pieces, soon; p.mu is held.
func (p *Peer) tell() {
	if len(p.conns) < manyOthers {
		p.tellNow()
		return
	}
	if p.telling {
		return
	}
	p.telling = true
	time.AfterFunc(tellAfter, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.telling = false
		p.tellNow()
	})
}

// tellNow lets those know of pieces who lack them; p.mu is held.
func (p *Peer) tellNow() {
	for _, c := range p.conns {
		for _, i := range p.haves {
			if !c.bits.Has(i) {
				c.say(wire.Message{ID: wire.IDHave, Index: uint32(i)})
			}
		}
	}
	p.haves = p.haves[:0]
}
