//go:build !linux

package s3loader

import "time"

// sleeper waits for moments.
type sleeper struct{ fall fallbackSleeper }

func newSleeper(bool) *sleeper { return &sleeper{fall: newFallback()} }

// until returns at t, or earlier and with false when the sleeper is woken.
func (s *sleeper) until(t time.Time) bool { return s.fall.sleep(time.Until(t)) }

// wake ends this and all further waits at once. It may be called from another
// goroutine.
func (s *sleeper) wake() { s.fall.wake() }

func (*sleeper) close() error { return nil }
