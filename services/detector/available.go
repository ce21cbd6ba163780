package detector

import (
	"fmt"

	"github.com/transferlab/transferlab/edge/vision"
)

// Available says why a detector of this configuration cannot look at clips on
// this machine; nil when it can.
func Available(cfg Config) error {
	cfg = cfg.complete()
	v, err := vision.New(vision.Options{Dirs: cfg.dirs(), Program: cfg.Program})
	if err != nil {
		return fmt.Errorf("detector: %w", err)
	}
	return v.Close()
}
