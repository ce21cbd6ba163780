package edgerunner

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"

	"github.com/transferlab/transferlab/services/internal/agent"
)

// EnvToken names the variable with the token of the edges' account.
const EnvToken = "TRANSFERLAB_EDGE_TOKEN"

// Config of the edge-runner.
type Config struct {
	agent.Config `embed:""`

	Gateway string `name:"gateway" help:"URL of the gateway that takes the clips; the token of an edge's account comes from TRANSFERLAB_EDGE_TOKEN." env:"TRANSFERLAB_GATEWAY" placeholder:"URL"`
	CAFile  string `name:"gateway-ca" help:"Certificate authority of the gateway (PEM)." env:"TRANSFERLAB_GATEWAY_CA" type:"path"`
	Store   string `name:"store-address" help:"host:port at which the store of the presigned URLs is reached from here; theirs if not given." env:"TRANSFERLAB_STORE_ADDRESS" placeholder:"HOST:PORT"`
	Account string `name:"edge-account" help:"Name of the edge's account that the token belongs to." env:"TRANSFERLAB_EDGE_ACCOUNT" default:"lab"`
	State   string `name:"edge-state" help:"Directory for spools and made clips; a folder in the user's cache if not given." env:"TRANSFERLAB_EDGE_STATE" type:"path"`
	Token   string `kong:"-"`
}

// DefaultConfig stands in for any site.
func DefaultConfig() Config { return Config{Config: agent.DefaultConfig(), Account: "lab"} }

// Validate reports every fault.
func (c *Config) Validate() error {
	errs := []error{c.Config.Validate()}
	if u, err := url.Parse(c.Gateway); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
		errs = append(errs, fmt.Errorf("--gateway: %q, want http://host:port or https://host:port", c.Gateway))
	}
	if c.Token == "" {
		errs = append(errs, fmt.Errorf("%s: not set, want the token that `transferlab edge add NAME` has shown", EnvToken))
	}
	if c.Store != "" {
		if _, _, err := net.SplitHostPort(c.Store); err != nil {
			errs = append(errs, fmt.Errorf("--store-address: %q, want host:port", c.Store))
		}
	}
	return errors.Join(errs...)
}

func (c Config) withEnvironment() Config {
	if c.Token == "" {
		c.Token = os.Getenv(EnvToken)
	}
	return c
}
