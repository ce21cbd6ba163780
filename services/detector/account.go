package detector

import (
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// account is what a detector knows of its own work. The zero value is that of
// one that has not been used: begin it.
type account struct {
	mu     sync.Mutex
	busy   int
	since  time.Time // nothing in work since then
	clips  uint64
	recent [16]work
}

// work is what one clip took.
type work struct{ service, decode, infer time.Duration }

// enter and leave are called around whatever is done for a clip.
func (c *account) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy++
}

func (c *account) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy--; c.busy == 0 {
		c.since = time.Now()
	}
}

func (c *account) done(w work) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recent[c.clips%uint64(len(c.recent))] = w
	c.clips++
}

// idle is for how long nothing has been in work.
func (c *account) idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.since.IsZero() {
		c.since = time.Now()
	}
	if c.busy > 0 {
		return 0
	}
	return time.Since(c.since)
}

func (c *account) status() schemas.DetectorStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := schemas.DetectorStatus{Busy: c.busy, Clips: c.clips}
	if c.busy == 0 {
		if c.since.IsZero() {
			c.since = time.Now()
		}
		s.Idle = c.since
	}
	n := min(c.clips, uint64(len(c.recent)))
	if n == 0 {
		return s
	}
	for _, w := range c.recent[:n] {
		s.Service += w.service
		s.Decode += w.decode
		s.Infer += w.infer
	}
	s.Service /= time.Duration(n)
	s.Decode /= time.Duration(n)
	s.Infer /= time.Duration(n)
	return s
}
