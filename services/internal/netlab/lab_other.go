//go:build !linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
)

// Lab is a running emulated network; there is none on this system.
type Lab struct{}

// Node is an emulated machine.
type Node struct {
	Name, Site   string
	Addr4, Addr6 netip.Addr
}

// Process runs in a node.
type Process struct{}

// Available tells in plain words what this machine lacks for emulated sites.
func Available() error {
	return fmt.Errorf("emulated sites need Linux (network namespaces and TUN devices), this is %s: run the lab in a Linux machine or container: %w", runtime.GOOS, errors.ErrUnsupported)
}

// RunRelay is the whole main of the relay's process.
func RunRelay([]string) int {
	fmt.Fprintln(os.Stderr, Available())
	return 1
}

// Reap has nothing to do: no lab ever ran here.
func Reap(context.Context, string) error { return nil }

// Start fails.
func Start(context.Context, Options) (*Lab, error) { return nil, Available() }

// Node gives a node by its name.
func (*Lab) Node(string) (*Node, bool) { return nil, false }

// Nodes gives all nodes.
func (*Lab) Nodes() []*Node { return nil }

// LabAddr is this machine's address as the nodes see it.
func (*Lab) LabAddr() netip.Addr { return netip.Addr{} }

// LabAddr6 is this machine's IPv6 address as the nodes see it.
func (*Lab) LabAddr6() netip.Addr { return netip.Addr{} }

// Done is closed when packets no longer flow.
func (*Lab) Done() <-chan struct{} { return nil }

// Err tells why.
func (*Lab) Err() error { return nil }

// Stats fails.
func (*Lab) Stats(context.Context) (Stats, error) { return Stats{}, Available() }

// Gate fails.
func (*Lab) Gate(context.Context) ([]Check, error) { return nil, Available() }

// Close does nothing.
func (*Lab) Close() error { return nil }

// Do fails.
func (*Node) Do(func() error) error { return Available() }

// Start fails.
func (*Node) Start(context.Context, Command) (*Process, error) { return nil, Available() }

// PID is the process's number.
func (*Process) PID() int { return 0 }

// Done is closed when the process has ended.
func (*Process) Done() <-chan struct{} { return nil }

// Err is how it ended.
func (*Process) Err() error { return nil }

// Stop fails.
func (*Process) Stop(context.Context) error { return Available() }

// Kill does nothing.
func (*Process) Kill() {}
