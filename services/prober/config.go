package prober

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/transferlab/transferlab/services/internal/agent"
)

// Config of the prober.
type Config struct {
	agent.Config `embed:""`

	CAFile string `name:"probe-ca-file" help:"Certificate authorities (PEM) to trust beside the system's, for tls and https targets." env:"TRANSFERLAB_PROBE_CA_FILE" type:"path"`
}

// DefaultConfig stands in for any site.
func DefaultConfig() Config { return Config{Config: agent.DefaultConfig()} }

// Validate reports every fault.
func (c *Config) Validate() error {
	errs := []error{c.Config.Validate()}
	if _, err := c.roots(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// roots are the authorities to trust; nil stands for the system's.
func (c *Config) roots() (*x509.CertPool, error) {
	if c.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("--probe-ca-file: %q, want a readable PEM file: %w", c.CAFile, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--probe-ca-file: %q, want PEM with at least one certificate", c.CAFile)
	}
	return pool, nil
}
