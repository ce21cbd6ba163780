package swarmrunner

import (
	"errors"
	"fmt"
	"os"

	"github.com/transferlab/transferlab/services/internal/agent"
)

// Config of the swarm-runner.
type Config struct {
	agent.Config `embed:""`

	WorkDir string `name:"swarm-dir" help:"Directory for the files of peers with storage: file; the system's for temporary files if not given. They have no names there." env:"TRANSFERLAB_SWARM_DIR" type:"path"`
}

// DefaultConfig stands in for any site.
func DefaultConfig() Config { return Config{Config: agent.DefaultConfig()} }

// Validate reports every fault.
func (c *Config) Validate() error {
	errs := []error{c.Config.Validate()}
	if c.WorkDir != "" {
		if info, err := os.Stat(c.WorkDir); err != nil || !info.IsDir() {
			errs = append(errs, fmt.Errorf("--swarm-dir: %q, want a directory that is there: %w", c.WorkDir, err))
		}
	}
	return errors.Join(errs...)
}
