package swarmrunner

import (
	"context"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// shareEvery is how often it is looked how much leechers have, where something is
// to happen as soon as they have so much.
const shareEvery = time.Millisecond

// faults does what goes wrong on purpose, as far as it does at this agent, and
// returns when ctx ends or everything has been done.
func (j *job) faults(ctx context.Context) {
	var doing sync.WaitGroup
	defer doing.Wait()
	shares := false
	for _, f := range j.section.Faults {
		if f.Do == schemas.FaultCorruptSeeder || f.Do == schemas.FaultTruncateTorrent {
			continue // from the start on
		}
		shares = shares || f.Progress > 0
		doing.Go(func() {
			if j.awaitFault(ctx, &f) {
				j.fault(ctx, &f)
			}
		})
	}
	if shares && j.task.Agents > 1 {
		doing.Go(func() { j.tellShares(ctx) })
	}
}

// awaitFault waits for the moment of a fault; false when ctx ends before.
func (j *job) awaitFault(ctx context.Context, f *schemas.SwarmFault) bool {
	if f.Progress == 0 {
		due := time.NewTimer(time.Until(j.start.At.Add(time.Duration(f.At))))
		defer due.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-due.C:
			return true
		}
	}
	share := j.largestShare
	if f.Do == schemas.FaultKillLeecher {
		m := find(j.leechers, f.Peer)
		if m == nil {
			return false // of another agent
		}
		share = func() float64 { return j.shareOf(m) }
	}
	tick := time.NewTicker(shareEvery)
	defer tick.Stop()
	for share() < float64(f.Progress) {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

func (j *job) shareOf(m *member) float64 { return float64(m.have()) / float64(j.section.Size) }

// largestShare is the most that any leecher of the trial has.
func (j *job) largestShare() float64 {
	most := 0.0
	for _, m := range j.leechers {
		most = max(most, j.shareOf(m))
	}
	j.mu.Lock()
	k, h := j.link, j.hub
	j.mu.Unlock()
	switch {
	case h != nil:
		most = max(most, h.largest())
	case k != nil:
		most = max(most, k.largest())
	}
	return most
}

// tellShares tells the other agents how much this agent's leechers have.
func (j *job) tellShares(ctx context.Context) {
	tick := time.NewTicker(shareEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		most := 0.0
		for _, m := range j.leechers {
			most = max(most, j.shareOf(m))
		}
		j.mu.Lock()
		k, h := j.link, j.hub
		j.mu.Unlock()
		switch {
		case h != nil:
			h.sayShare(most)
		case k != nil:
			k.sayShare(most)
		}
	}
}

func (j *job) fault(ctx context.Context, f *schemas.SwarmFault) {
	switch f.Do {
	case schemas.FaultKillLeecher:
		if m := find(j.leechers, f.Peer); m != nil && j.decide(m, schemas.StatusKilled, "killed on purpose") {
			m.tell(cmdDie)
		}
	case schemas.FaultStopSeeder:
		if m := find(j.seeders, f.Peer); m != nil {
			j.mu.Lock()
			m.stopped = true
			j.mu.Unlock()
			m.tell(cmdLeave)
		}
	case schemas.FaultTrackerDown:
		if j.tracker == nil {
			return // of another agent
		}
		j.tracker.Down(true)
		if f.For == 0 {
			return
		}
		over := time.NewTimer(time.Duration(f.For))
		defer over.Stop()
		select {
		case <-ctx.Done():
		case <-over.C:
		}
		j.tracker.Down(false)
	}
}

func find(members []*member, number int) *member {
	for _, m := range members {
		if m.number == number {
			return m
		}
	}
	return nil
}
