//go:build !unix

package vision

import "os/exec"

// start starts a child. Its share of the time cannot be bounded here.
func (d *Detector) start(c *exec.Cmd) error { return c.Start() }
