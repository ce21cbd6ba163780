package s3loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// Config of the s3-loader.
type Config struct {
	agent.Config `embed:""`

	Endpoint string `name:"s3-endpoint" help:"URL of the lab's own store, for experiments that name no target. Its keys come from TRANSFERLAB_S3_ACCESS_KEY and TRANSFERLAB_S3_SECRET_KEY." env:"TRANSFERLAB_S3_ENDPOINT"`
	Region   string `name:"s3-region" help:"Region of the lab's own store." env:"TRANSFERLAB_S3_REGION" default:"us-east-1"`
	CAFile   string `name:"s3-ca-file" help:"Certificate authorities (PEM) to trust beside the system's." env:"TRANSFERLAB_S3_CA_FILE" type:"path"`
	Copy     bool   `name:"s3-copy" help:"Read every byte of downloads into memory, where the kernel could count and drop them." env:"TRANSFERLAB_S3_COPY"`

	// Keys of the lab's own store. They are no flags: a command line can be
	// read by everybody on the machine.
	AccessKey string `kong:"-"`
	SecretKey string `kong:"-"`
}

// Environment variables of the lab's own store.
const (
	EnvAccessKey = "TRANSFERLAB_S3_ACCESS_KEY"
	EnvSecretKey = "TRANSFERLAB_S3_SECRET_KEY"
)

// DefaultConfig stands in for any site and knows no store.
func DefaultConfig() Config {
	return Config{Config: agent.DefaultConfig(), Region: "us-east-1"}
}

// Validate reports every fault.
func (c *Config) Validate() error {
	errs := []error{c.Config.Validate()}
	if c.Endpoint != "" || c.Region != "" {
		t := objectstore.Target{Endpoint: c.Endpoint, Region: c.Region}
		if err := t.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("--s3-endpoint, --s3-region: %w", err))
		}
	}
	if c.CAFile != "" {
		if _, err := os.Stat(c.CAFile); err != nil {
			errs = append(errs, fmt.Errorf("--s3-ca-file: %q, want a readable PEM file: %w", c.CAFile, err))
		}
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		errs = append(errs, fmt.Errorf("%s, %s: one is set without the other, want both or neither", EnvAccessKey, EnvSecretKey))
	}
	return errors.Join(errs...)
}

// withEnvironment adds the keys that the environment has.
func (c Config) withEnvironment() Config {
	if c.AccessKey == "" && c.SecretKey == "" {
		c.AccessKey, c.SecretKey = os.Getenv(EnvAccessKey), os.Getenv(EnvSecretKey)
	}
	return c
}
