// Package decide chooses who looks at a clip: its edge, or a detector of the
// lab. It is arithmetic on what is known; knowing is the caller's business.
package decide

import (
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Situation is what is known when a clip has to be decided on. Times that are
// not known are 0.
type Situation struct {
	// The edge: clips decided for it and not looked at yet, those in work
	// included; clips that it looks at at a time (0: it cannot); what one takes;
	// and for how long the one in work longest has been.
	Busy    int
	Slots   int
	Service time.Duration
	Spent   time.Duration

	// The way: whether the lab answers, the round trip, and what storing the
	// clip would take from now on.
	Online bool
	RTT    time.Duration
	Upload time.Duration

	// The lab: what it said last (nil: nothing yet), and clips decided for it
	// that it cannot know of yet.
	Lab  *schemas.OffloadState
	Sent int
}

// Choice is who looks at the clip, and why. Edge and Cloud are what each way is
// predicted to take from now to the result, 0 where that is not known.
type Choice struct {
	Where       string // schemas.WhereEdge or schemas.WhereCloud
	Edge, Cloud time.Duration
	Reason      string
}

// By applies a policy. Overflow has none here, since the queue decides; it takes
// the source's rule while there is no queue to ask.
func By(policy string, s Situation) Choice {
	c := Choice{Edge: s.edge(), Cloud: s.cloud()}
	switch {
	case s.Slots == 0:
		c.Where, c.Reason = schemas.WhereCloud, "the edge cannot look at clips"
	case policy == schemas.PolicyLocal:
		c.Where, c.Reason = schemas.WhereEdge, "always"
	case policy == schemas.PolicyCloud:
		c.Where, c.Reason = schemas.WhereCloud, "always"
	case policy == schemas.PolicyAdaptive:
		c.adapt(s)
	case s.Busy >= s.Slots:
		c.Where, c.Reason = schemas.WhereCloud, "the edge is busy"
	default:
		c.Where, c.Reason = schemas.WhereEdge, "the edge is free"
	}
	return c
}

func (c *Choice) adapt(s Situation) {
	c.Where = schemas.WhereEdge
	switch {
	case !s.Online:
		c.Reason = "the lab does not answer"
	case s.Lab != nil && s.Lab.Slots == 0:
		c.Reason = "the lab has no detector"
	case c.Edge == 0 || c.Cloud == 0:
		// Somebody has to be the first to find out, and not all at once: both get their
		// share as if they were alike.
		g := s.guessed()
		if c.Reason = "the shorter queue, as what each takes is not known yet"; g.cloud() < g.edge() {
			c.Where = schemas.WhereCloud
		}
	case c.Edge <= c.Cloud:
		c.Reason = "the edge is predicted to be faster"
	default:
		c.Where, c.Reason = schemas.WhereCloud, "the lab is predicted to be faster"
	}
}

// guessed is the situation with what is not known taken for what the other takes,
// or for anything, and an upload for little.
func (s Situation) guessed() Situation {
	if s.Lab == nil {
		s.Lab = &schemas.OffloadState{Slots: 1}
	}
	if s.Service == 0 {
		s.Service = s.Lab.Service
	}
	if s.Service == 0 {
		s.Service = time.Second
	}
	s.Upload = max(s.Upload, 1)
	return s
}

// edge predicts the result of the edge: what is before the clip, the clip, and
// one round trip to store the result.
func (s Situation) edge() time.Duration {
	if s.Service == 0 || s.Slots == 0 {
		return 0
	}
	return wait(s.Busy, s.Slots, s.Service, s.Spent) + s.Service + s.RTT
}

// cloud predicts the result of the lab: the upload, during which the queue goes
// on, what is left of the queue, and the clip.
func (s Situation) cloud() time.Duration {
	if s.Lab == nil || s.Lab.Slots == 0 || s.Upload == 0 {
		return 0
	}
	service := s.Lab.Service
	if service == 0 {
		service = s.Service
	}
	if service == 0 {
		return 0
	}
	before := wait(s.Lab.Waiting+s.Lab.InWork+s.Sent, s.Lab.Slots, service, 0)
	return s.Upload + max(0, before-s.Upload) + service
}

// wait is until one of the slots is free for a clip that has so many before it.
func wait(before, slots int, service, spent time.Duration) time.Duration {
	if before < slots {
		return 0
	}
	rounds := (before-slots)/slots + 1
	return max(0, time.Duration(rounds)*service-min(spent, service))
}
