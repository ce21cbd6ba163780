package collector

import (
	"errors"
	"fmt"
	"time"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
)

// Config of a collector.
type Config struct {
	ClickHouse string        `name:"clickhouse" help:"ClickHouse to store events in: clickhouse://user:password@host:9000/database, http://… or https://…" env:"TRANSFERLAB_CLICKHOUSE" placeholder:"DSN"`
	MaxRows    int           `help:"Events an insert holds at most." env:"TRANSFERLAB_COLLECTOR_MAX_ROWS" default:"524288"`
	MaxBytes   int           `help:"Bytes an insert holds at most." env:"TRANSFERLAB_COLLECTOR_MAX_BYTES" default:"134217728"`
	MaxAge     time.Duration `help:"How long an event waits at most for others to share its insert." env:"TRANSFERLAB_COLLECTOR_MAX_AGE" default:"400ms"`
	Lanes      int           `help:"Inserts under way at a time." env:"TRANSFERLAB_COLLECTOR_LANES" default:"1"`
	Lease      time.Duration `help:"How long another collector must have been silent before this one takes its place." env:"TRANSFERLAB_COLLECTOR_LEASE" default:"10s"`
}

// DefaultConfig is what the flags default to; only ClickHouse has to be given.
func DefaultConfig() Config {
	return Config{MaxRows: 1 << 19, MaxBytes: 128 << 20, MaxAge: 400 * time.Millisecond, Lanes: 1, Lease: 10 * time.Second}
}

// Bounds of the configuration. An insert must stay one block of the database
// (min_insert_block_size_rows, 1,048,449 by default) to be stored as a whole or
// not at all.
const (
	maxRows  = 1_000_000
	maxBytes = 256 << 20
	maxLanes = 4
)

// Validate reports every fault.
func (c *Config) Validate() error {
	var errs []error
	if c.ClickHouse == "" {
		errs = append(errs, errors.New("--clickhouse: missing, want a DSN such as clickhouse://user:password@host:9000/transferlab"))
	} else if _, err := clickhouse.ParseDSN(c.ClickHouse); err != nil {
		errs = append(errs, fmt.Errorf("--clickhouse: %w", err))
	}
	if c.MaxRows < 1 || c.MaxRows > maxRows {
		errs = append(errs, fmt.Errorf("--max-rows: %d, want 1 to %d", c.MaxRows, maxRows))
	}
	if c.MaxBytes < 1<<20 || c.MaxBytes > maxBytes {
		errs = append(errs, fmt.Errorf("--max-bytes: %d, want %d to %d", c.MaxBytes, 1<<20, maxBytes))
	}
	if c.MaxAge < time.Millisecond || c.MaxAge > time.Minute {
		errs = append(errs, fmt.Errorf("--max-age: %s, want 1ms to 1m", c.MaxAge))
	}
	if c.Lanes < 1 || c.Lanes > maxLanes {
		errs = append(errs, fmt.Errorf("--lanes: %d, want 1 to %d", c.Lanes, maxLanes))
	}
	if c.Lease < 100*time.Millisecond || c.Lease > 10*time.Minute {
		errs = append(errs, fmt.Errorf("--lease: %s, want 100ms to 10m", c.Lease))
	}
	return errors.Join(errs...)
}
