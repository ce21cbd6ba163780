package provisioner

import (
	"errors"
	"fmt"
	"net/url"
	"os"

	"github.com/transferlab/transferlab/services/internal/fleet"
)

// Config of the provisioner.
type Config struct {
	State string `name:"state" help:"Directory for the journals of fleets and the traces of emulated networks." env:"TRANSFERLAB_PROVISIONER_STATE" type:"path" default:"transferlab-provisioner"`

	// How the agents that it starts reach the bus; passwords come from the
	// environment: a command line can be read by everybody on the machine.
	AgentBus    string `name:"agent-bus" help:"Address of the bus for agents in emulated networks, as seen from this machine." env:"TRANSFERLAB_NATS"`
	AgentUser   string `name:"agent-user" help:"User of these agents on the bus; the password comes from TRANSFERLAB_AGENT_PASSWORD." env:"TRANSFERLAB_AGENT_USER" default:"agent"`
	AgentCA     string `name:"agent-ca" help:"Certificate authority of the bus (PEM)." env:"TRANSFERLAB_NATS_CA" type:"path"`
	AgentSecret string `kong:"-"`
	FleetBus    string `name:"fleet-bus" help:"Address of the bus as cloud instances reach it: tls://host:port." env:"TRANSFERLAB_FLEET_BUS"`
	S3Endpoint  string `name:"s3-endpoint" help:"URL of the lab's own store; agents in emulated networks reach it at the site lab. Keys come from TRANSFERLAB_S3_ACCESS_KEY and TRANSFERLAB_S3_SECRET_KEY." env:"TRANSFERLAB_S3_ENDPOINT"`
	S3Region    string `name:"s3-region" help:"Region of the lab's own store." env:"TRANSFERLAB_S3_REGION" default:"us-east-1"`
	Gateway     string `name:"gateway" help:"URL of the gateway; edges in emulated networks reach it at the site lab. The token of their account comes from TRANSFERLAB_EDGE_TOKEN." env:"TRANSFERLAB_GATEWAY"`
	EdgeToken   string `kong:"-"`
	EdgeAccount string `name:"edge-account" help:"Name of the edges' account." env:"TRANSFERLAB_EDGE_ACCOUNT" default:"lab"`
	S3AccessKey string `kong:"-"`
	S3SecretKey string `kong:"-"`
	Program     string `kong:"-"` // transferlab's binary; this process's own if empty
	Users       Users  `kong:"-"` // nil: fleets join as AgentUser
	FleetCA     []byte `kong:"-"`
}

// Users makes credentials for one fleet alone.
type Users interface {
	AddUser(name, role string) (password string, err error)
	RemoveUser(name string) error
}

// EnvAgentPassword names the variable with the agents' password on the bus.
const EnvAgentPassword = "TRANSFERLAB_AGENT_PASSWORD"

// DefaultConfig keeps its state beside the working directory.
func DefaultConfig() Config {
	return Config{State: "transferlab-provisioner", AgentUser: "agent", S3Region: "us-east-1", EdgeAccount: "lab"}
}

// Validate reports every fault.
func (c *Config) Validate() error {
	var errs []error
	for _, f := range []struct{ flag, value string }{{"--agent-bus", c.AgentBus}, {"--fleet-bus", c.FleetBus}, {"--s3-endpoint", c.S3Endpoint}, {"--gateway", c.Gateway}} {
		if f.value == "" {
			continue
		}
		if u, err := url.Parse(f.value); err != nil || u.Hostname() == "" || u.Port() == "" || u.User != nil {
			errs = append(errs, fmt.Errorf("%s: want scheme://host:port without credentials", f.flag))
		}
	}
	if c.State == "" {
		errs = append(errs, errors.New("--state: empty, want a directory"))
	}
	return errors.Join(errs...)
}

// withEnvironment adds the secrets that the environment has.
func (c Config) withEnvironment() (Config, error) {
	for _, f := range []struct {
		field *string
		name  string
	}{{&c.AgentSecret, EnvAgentPassword}, {&c.S3AccessKey, "TRANSFERLAB_S3_ACCESS_KEY"}, {&c.S3SecretKey, "TRANSFERLAB_S3_SECRET_KEY"}, {&c.EdgeToken, "TRANSFERLAB_EDGE_TOKEN"}} {
		if *f.field == "" {
			*f.field = os.Getenv(f.name)
		}
	}
	if len(c.FleetCA) == 0 && c.AgentCA != "" {
		pem, err := os.ReadFile(c.AgentCA)
		if err != nil {
			return c, fmt.Errorf("--agent-ca: %w", err)
		}
		c.FleetCA = pem
	}
	if c.Program == "" {
		program, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("find this program: %w", err)
		}
		c.Program = program
	}
	return c, nil
}

func (c *Config) fleetBus(user, password string) fleet.BusAccess {
	return fleet.BusAccess{URL: c.FleetBus, CA: string(c.FleetCA), User: user, Password: password}
}
