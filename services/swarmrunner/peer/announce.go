package peer

import (
	"context"
	"time"
)

// Bounds on how often the tracker is told.
const (
	firstRetry   = 100 * time.Millisecond // after an announce that failed
	lastRetry    = 5 * time.Second
	firstLonely  = 250 * time.Millisecond // as long as there are too few others
	fewOthers    = 4
	announceWait = 10 * time.Second // for an answer
)

// account is what the tracker is told; p.mu is held.
func (p *Peer) account(event string) Announcement {
	return Announcement{Event: event, Uploaded: p.uploaded, Downloaded: p.report.Have, Left: p.t.Length - p.report.Have}
}

// announce tells the tracker of the peer, again and again. A tracker that does
// not answer is asked less and less often, and so is one that knows nobody:
// small swarms are over before the interval that trackers ask for.
func (p *Peer) announce() {
	event, retry, lonely := "started", firstRetry, firstLonely
	completed := p.complete
	if p.opt.Seed {
		completed = nil
	}
	for {
		p.mu.Lock()
		a := p.account(event)
		p.mu.Unlock()
		ctx, cancel := context.WithTimeout(p.ctx, announceWait)
		others, interval, err := p.opt.Announce(ctx, a)
		cancel()
		now := time.Now()
		wait := max(interval, time.Second)
		p.mu.Lock()
		p.report.TrackerError = err
		if err != nil {
			wait, retry = retry, min(retry*2, lastRetry)
		} else {
			if p.report.Announced.IsZero() {
				p.report.Announced = now
			}
			event, retry = "", firstRetry
			p.learn(others)
			p.dialOthers()
			if p.missing > 0 && len(p.known) < fewOthers {
				wait, lonely = min(lonely, wait), min(lonely*2, wait)
			}
		}
		p.mu.Unlock()
		again := time.NewTimer(wait)
		select {
		case <-p.ctx.Done():
			again.Stop()
			return
		case <-completed:
			event, completed = "completed", nil
			again.Stop()
		case <-again.C:
		}
	}
}
