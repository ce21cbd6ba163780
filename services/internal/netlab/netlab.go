package netlab

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"

	"github.com/transferlab/transferlab/schemas"
)

const (
	// RelayCommand is the hidden first argument with which the binary
	// re-executes itself to carry packets: a main (or a TestMain) that finds it
	// in os.Args[1] must do nothing but os.Exit(RunRelay(os.Args[2:])).
	RelayCommand = "netlab-relay"
	// EnvLab is the variable by which processes of a lab are recognised, and
	// their children too. Its value is the lab's random id.
	EnvLab = "TRANSFERLAB_NETLAB"
	// MTU of every device, in bytes.
	MTU = 1500
)

// NodeSpec is one emulated machine.
type NodeSpec struct {
	Name string
	Site string // one of Topology.Sites
}

// Options of a lab.
type Options struct {
	// Dir is where the journal of processes is kept; it is made if need be. One
	// lab at a time can use a directory.
	Dir      string
	Topology schemas.Topology
	Nodes    []NodeSpec
	Log      *slog.Logger
}

// Validate reports all faults.
func (o Options) Validate() error {
	var faults []error
	if o.Dir == "" {
		faults = append(faults, errors.New("netlab: dir: empty, want a directory for the journal"))
	}
	if o.Log == nil {
		faults = append(faults, errors.New("netlab: log: nil, want a logger"))
	}
	if len(o.Nodes) == 0 || len(o.Nodes) > schemas.MaxEmulatedAgents {
		faults = append(faults, fmt.Errorf("netlab: nodes: %d, want 1 to %d", len(o.Nodes), schemas.MaxEmulatedAgents))
	}
	if len(o.Topology.Sites) > schemas.MaxEmulatedSites {
		faults = append(faults, fmt.Errorf("netlab: sites: %d, want at most %d", len(o.Topology.Sites), schemas.MaxEmulatedSites))
	}
	seen := map[string]bool{schemas.SiteLab: true}
	for _, n := range o.Nodes {
		if n.Name == "" || seen[n.Name] {
			faults = append(faults, fmt.Errorf("netlab: node %q: want a name of its own, not %q", n.Name, schemas.SiteLab))
		}
		seen[n.Name] = true
		if _, known := o.Topology.Sites[n.Site]; !known {
			faults = append(faults, fmt.Errorf("netlab: node %q: site %q is not one of the topology", n.Name, n.Site))
		}
	}
	for _, l := range o.Topology.Links {
		for _, site := range []string{l.A, l.B} {
			if _, known := o.Topology.Sites[site]; !known && site != schemas.SiteLab {
				faults = append(faults, fmt.Errorf("netlab: link %s-%s: site %q is not one of the topology", l.A, l.B, site))
			}
		}
		if l.A >= l.B {
			faults = append(faults, fmt.Errorf("netlab: link %s-%s: want two sites in alphabetical order", l.A, l.B))
		}
	}
	return errors.Join(faults...)
}

// Command is a process to start in a node.
type Command struct {
	Path string
	Args []string // without the program's own name
	Env  []string // nil: this process's
	Dir  string
	// Stdout and Stderr may be nil.
	Stdout, Stderr io.Writer
}

func (c Command) environ(id string) []string {
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	return append(env[:len(env):len(env)], EnvLab+"="+id)
}

// Check is one thing that the fidelity gate held against its setting.
type Check struct {
	Link      string  // `dublin-oregon`, or `oregon` for the network inside a site
	What      string  // WhatRTT or WhatRate
	Direction string  // `oregon>dublin` for rate
	Set       float64 // in Unit
	Measured  float64 // in Unit
	Tolerance float64 // largest difference allowed, in Unit
	Unit      string  // `ns` or `bit/s`
	Samples   int     // packets that the figure rests on
	Tries     int     // how often it was measured until it held, or in all
	OK        bool
	Text      string // one line for people
}

// What a Check is about.
const (
	WhatRTT  = "rtt"
	WhatRate = "rate"
)

// Stats is what the links did since the lab was started.
type Stats struct {
	Links []LinkStats `json:"links"`
	// Overrun are packets that nodes sent faster than the relay could take
	// them, or that found its memory full: losses nobody asked for. A run with
	// any is not one over the links that were set.
	Overrun int64 `json:"overrun"`
	// Malformed are packets that no sound kernel sends; Unreachable those for
	// which there is no link or no node; Ignored multicast and broadcast.
	Malformed   int64 `json:"malformed"`
	Unreachable int64 `json:"unreachable"`
	Ignored     int64 `json:"ignored"`
	// WriteErrors are packets that the receiving device did not take.
	WriteErrors int64 `json:"write_errors"`
	// CPUNanos is the processor time the relay took.
	CPUNanos int64 `json:"cpu_ns"`
	// RealTime tells whether the relay may run before ordinary processes; without
	// (in a container that forbids it) packets are late more often.
	RealTime bool `json:"real_time"`
}

// LinkStats is one direction of a link, or the port of one node inside a site.
type LinkStats struct {
	From string `json:"from"` // a site, or a node's name inside a site
	To   string `json:"to"`   // a site
	// Packets and Bytes are IP packets that entered the link; of these, Lost by
	// the loss set, Dropped at a full queue. Duplicated and Reordered count
	// packets that came out twice or late.
	Packets    int64 `json:"packets"`
	Bytes      int64 `json:"bytes"`
	Lost       int64 `json:"lost"`
	Dropped    int64 `json:"dropped"`
	Duplicated int64 `json:"duplicated"`
	Reordered  int64 `json:"reordered"`
	// Late is how long after their time packets were handed to the receiving
	// kernel, in nanoseconds.
	LateP50 int64 `json:"late_p50_ns"`
	LateP99 int64 `json:"late_p99_ns"`
	LateMax int64 `json:"late_max_ns"`
}

// address plan: one block of addresses per lab.
type addressBlock struct {
	v4 netip.Prefix // a /22
	v6 netip.Prefix // a /64
}

const (
	// hostIndex is the lab's own number in a block; nodes follow it.
	hostIndex = 1
	// routerIndex is the number of the address that errors come from.
	routerIndex = 1022
	blockSize   = 1024
)

// addr4 and addr6 give the address with a number, 1 to 1022.
func (b addressBlock) addr4(i int) netip.Addr {
	a := b.v4.Addr().As4()
	a[2] |= byte(i >> 8)
	a[3] = byte(i)
	return netip.AddrFrom4(a)
}

func (b addressBlock) addr6(i int) netip.Addr {
	a := b.v6.Addr().As16()
	a[14], a[15] = byte(i>>8), byte(i)
	return netip.AddrFrom16(a)
}

// blocks is how many address blocks there are to choose from.
const blocks = 64 + 128

// block gives the k-th address block: a /22 of 10.73.0.0/16, private addresses
// that few networks use, or, where a host has a route for all of 10.0.0.0/8, of
// 198.18.0.0/15, which is set aside for benchmarks (RFC 2544); and a unique
// local /64.
func block(k int) addressBlock {
	a := netip.AddrFrom4([4]byte{10, 73, byte(k % 64 * 4), 0})
	if k >= 64 {
		a = netip.AddrFrom4([4]byte{198, byte(18 + (k-64)/64), byte(k % 64 * 4), 0})
	}
	return addressBlock{
		v4: netip.PrefixFrom(a, 22),
		v6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x74, 0x6c, 0x61, 0x62, 0, 0, byte(k)}), 64),
	}
}
