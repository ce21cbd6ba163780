//go:build !linux

package packet

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"
)

// errPlatform: stamps of both directions are a thing of Linux.
var errPlatform = errors.New("ICMP and STAMP probes need Linux")

// Engine sends the probes of a set of flows once; on Linux only.
type Engine struct{}

// NewEngine fails.
func NewEngine(Options, []Flow) (*Engine, error) { return nil, errPlatform }

// Run fails.
func (*Engine) Run(context.Context, time.Time, func(*Result)) (Account, error) {
	return Account{}, errPlatform
}

// Lag is 0.
func (*Engine) Lag() (p50, p99, most time.Duration) { return 0, 0, 0 }

// Close does nothing.
func (*Engine) Close() error { return nil }

// Reflector answers STAMP test packets; on Linux only.
type Reflector struct{}

// NewReflector fails.
func NewReflector(netip.AddrPort, *slog.Logger) (*Reflector, error) { return nil, errPlatform }

// Port is 0.
func (*Reflector) Port() uint16 { return 0 }

// SetKey does nothing.
func (*Reflector) SetKey([]byte) {}

// Disable does nothing.
func (*Reflector) Disable() {}

// Stats are empty.
func (*Reflector) Stats() ReflectorStats { return ReflectorStats{} }

// Run fails.
func (*Reflector) Run(context.Context) error { return errPlatform }

// Close does nothing.
func (*Reflector) Close() error { return nil }
