//go:build unix

package vision

import (
	"os/exec"
	"syscall"
	"time"
)

// sharePeriod is how often a child is stopped and let go on: often enough that a
// frame takes many periods.
const sharePeriod = 40 * time.Millisecond

// start starts a child, which from then on runs for its share of the time.
func (d *Detector) start(c *exec.Cmd) error {
	if err := c.Start(); err != nil {
		return err
	}
	if d.o.CPU <= 0 || d.o.CPU >= 1 {
		return nil
	}
	run := time.Duration(float64(sharePeriod) * d.o.CPU)
	go func() {
		for {
			time.Sleep(run)
			if c.Process.Signal(syscall.SIGSTOP) != nil {
				return // it is gone
			}
			time.Sleep(sharePeriod - run)
			if c.Process.Signal(syscall.SIGCONT) != nil {
				return
			}
		}
	}()
	return nil
}
