package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
)

// Config of a gateway.
type Config struct {
	Listen string `help:"Address to serve on; an address that others can reach needs a token of at least 20 characters." env:"TRANSFERLAB_LISTEN" default:"127.0.0.1:8080"`
	// Token is the bearer token of every request. It comes from
	// TRANSFERLAB_TOKEN, never from the command line, where other users of the
	// machine would see it.
	Token            string        `kong:"-"`
	ClickHouse       string        `name:"clickhouse-reader" help:"ClickHouse as a user that may only read: clickhouse://user:password@host:9000/database, http://… or https://…" env:"TRANSFERLAB_CLICKHOUSE_READER" placeholder:"DSN"`
	ClickHouseWriter string        `name:"clickhouse" help:"ClickHouse as a user that may write; only the import of CloudWatch series needs it." env:"TRANSFERLAB_CLICKHOUSE" placeholder:"DSN"`
	Settle           time.Duration `help:"How long a report waits for the events of a run that has ended." env:"TRANSFERLAB_SETTLE" default:"15s"`
	Heavy            int           `help:"Queries, reports and exports in work at a time; more are refused." env:"TRANSFERLAB_HEAVY" default:"8"`
	Streams          int           `help:"Event streams open at a time; more are refused." env:"TRANSFERLAB_STREAMS" default:"64"`
	Rate             float64       `help:"Requests a second on average; more are refused." env:"TRANSFERLAB_RATE" default:"200"`

	Clips ClipsConfig `embed:"" prefix:"clip-"`
}

// DefaultConfig is what the flags default to; the token and ClickHouse have to
// be given.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:8080", Settle: 15 * time.Second, Heavy: 8, Streams: 64, Rate: 200, Clips: DefaultClipsConfig()}
}

// minToken is the shortest token for an address that others can reach.
const minToken = 20

// Validate reports every fault.
func (c *Config) Validate() error {
	var errs []error
	host, _, err := net.SplitHostPort(c.Listen)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("--listen: %q, want host:port such as 127.0.0.1:8080", c.Listen))
	case c.Token == "":
		errs = append(errs, errors.New("TRANSFERLAB_TOKEN: not set, want a secret that every request has to show"))
	case !loopback(host) && len(c.Token) < minToken:
		errs = append(errs, fmt.Errorf("--listen: %s can be reached by others; TRANSFERLAB_TOKEN has %d characters, want at least %d", c.Listen, len(c.Token), minToken))
	}
	if c.ClickHouse == "" {
		errs = append(errs, errors.New("--clickhouse-reader: missing, want a DSN such as clickhouse://reader:password@host:9000/transferlab"))
	} else if _, err := clickhouse.ParseDSN(c.ClickHouse); err != nil {
		errs = append(errs, fmt.Errorf("--clickhouse-reader: %w", err))
	}
	if c.ClickHouseWriter != "" {
		if _, err := clickhouse.ParseDSN(c.ClickHouseWriter); err != nil {
			errs = append(errs, fmt.Errorf("--clickhouse: %w", err))
		}
	}
	if c.Settle < 0 || c.Settle > 10*time.Minute {
		errs = append(errs, fmt.Errorf("--settle: %s, want 0s to 10m", c.Settle))
	}
	if c.Heavy < 1 || c.Heavy > 1024 {
		errs = append(errs, fmt.Errorf("--heavy: %d, want 1 to 1024", c.Heavy))
	}
	if c.Streams < 1 || c.Streams > 65536 {
		errs = append(errs, fmt.Errorf("--streams: %d, want 1 to 65536", c.Streams))
	}
	if !(c.Rate > 0 && c.Rate <= 1e6) {
		errs = append(errs, fmt.Errorf("--rate: %g, want above 0, up to 1000000", c.Rate))
	}
	errs = append(errs, c.Clips.Validate())
	return errors.Join(errs...)
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// Service is the gateway's entry in the list of services.
func Service() node.Service {
	cfg := DefaultConfig()
	// Before the flags are there: whoever reads them validates all of it.
	cfg.Token = os.Getenv("TRANSFERLAB_TOKEN")
	cfg.Clips = cfg.Clips.withEnvironment()
	return node.Service{
		Name: "gateway", Short: "HTTP API", Role: bus.RoleGateway, Config: &cfg,
		Run: func(ctx context.Context, n *node.Node) error { return New(cfg, n).Run(ctx) },
	}
}
