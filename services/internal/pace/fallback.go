package pace

import (
	"sync"
	"time"
)

// fallbackSleeper waits with the runtime's timers.
type fallbackSleeper struct {
	once *sync.Once
	end  chan struct{}
}

func newFallback() fallbackSleeper {
	return fallbackSleeper{once: &sync.Once{}, end: make(chan struct{})}
}

func (f fallbackSleeper) wake() { f.once.Do(func() { close(f.end) }) }

func (f fallbackSleeper) woken() bool {
	select {
	case <-f.end:
		return true
	default:
		return false
	}
}

func (f fallbackSleeper) sleep(d time.Duration) bool {
	if d <= 0 {
		return !f.woken()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return !f.woken()
	case <-f.end:
		return false
	}
}
