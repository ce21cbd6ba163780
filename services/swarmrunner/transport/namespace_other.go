//go:build !linux

package transport

import (
	"errors"
	"fmt"
	"runtime"
)

// namespace is Linux's alone.
type namespace struct{}

func newNamespace() (*namespace, error) {
	return nil, fmt.Errorf("%w: it is a network namespace of Linux, and this is %s", ErrNotPermitted, runtime.GOOS)
}

func (*namespace) do(f func()) error {
	f()
	return nil
}

func (*namespace) close() error { return nil }

func (n *Network) control(purpose) control { return nil }

// Counters reads those of all interfaces in the network.
func (n *Network) Counters() (Counters, error) {
	return Counters{}, fmt.Errorf("interfaces' counters on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
