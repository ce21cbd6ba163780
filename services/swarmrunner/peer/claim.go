package peer

import (
	"slices"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// place is the memory of a block.
func (p *Peer) place(q request) []byte {
	at := int64(q.piece)*p.t.PieceLength + int64(q.begin)
	return p.opt.Store[at : at+int64(q.n) : at+int64(q.n)]
}

// claim takes a block that comes as the connection's to write: nil when it was
// not asked for, or has come from elsewhere.
func (c *conn) claim(index, begin uint32, n int) (request, []byte) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	k := slices.IndexFunc(c.pending, func(q request) bool {
		return q.piece == int32(index) && q.begin == int32(begin) && q.n == int32(n)
	})
	if k < 0 {
		return request{}, nil
	}
	q := c.pending[k]
	c.pending = slices.Delete(c.pending, k, k+1)
	if p.report.FirstByte.IsZero() {
		p.report.FirstByte = time.Now()
	}
	if !p.take(q) {
		c.over(q)
		return q, nil
	}
	return q, p.place(q)
}

// take marks a block that is missing as one that is being written; p.mu is held.
func (p *Peer) take(q request) bool {
	pc := &p.pieces[q.piece]
	if pc.state != active || pc.blocks[q.begin/wire.BlockSize] != blockMissing {
		return false
	}
	pc.blocks[q.begin/wire.BlockSize] = blockReceiving
	return true
}

// over ends a request; p.mu is held.
func (c *conn) over(q request) {
	c.inFlight -= int64(q.n)
	c.p.inFlight -= int64(q.n)
}

// giveBack makes a block missing again that was being written; p.mu is held.
func (c *conn) giveBack(q request) {
	c.p.pieces[q.piece].blocks[q.begin/wire.BlockSize] = blockMissing
}

// relinquish frees the pieces of blocks that have come, if nothing more of them
// is to come from who is asked for them: another may refuse the rest of a piece
// (BEP 6) before the block that was on its way is there. p.mu is held.
func (p *Peer) relinquish(blocks []request) {
	free := p.unpicked
	for k, r := range blocks {
		i := int(r.piece)
		pc := &p.pieces[i]
		if pc.state != active || k+1 < len(blocks) && blocks[k+1].piece == r.piece {
			continue
		}
		of := func(q request) bool { return q.piece == r.piece }
		for o := len(pc.owners) - 1; o >= 0; o-- {
			if c := pc.owners[o]; !slices.ContainsFunc(c.pending, of) && !slices.Contains(pc.blocks, blockReceiving) {
				p.disown(i, c)
			}
		}
	}
	if p.unpicked > free {
		p.ask(nil)
	}
}
