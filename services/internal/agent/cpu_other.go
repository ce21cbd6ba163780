//go:build !unix

package agent

import "time"

// processCPU is not known here; a share of 0 is reported.
func processCPU() time.Duration { return 0 }
