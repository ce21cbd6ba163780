//go:build !linux

package pace

import "time"

// Sleeper waits for moments.
type Sleeper struct{ fall fallbackSleeper }

func NewSleeper(bool) *Sleeper { return &Sleeper{fall: newFallback()} }

// Until returns at t, or earlier and with false when the Sleeper is woken.
func (s *Sleeper) Until(t time.Time) bool { return s.fall.sleep(time.Until(t)) }

// Wake ends this and all further waits at once. It may be called from another
// goroutine.
func (s *Sleeper) Wake() { s.fall.wake() }

func (*Sleeper) Close() error { return nil }
