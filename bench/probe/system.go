package main

import (
	"strings"

	"github.com/transferlab/transferlab/bench/internal/figures"
)

// machine is what does not change between scenarios.
func machine() []figures.Condition {
	return append(figures.Machine(),
		figures.Condition{Name: "ping-group-range", Value: strings.ReplaceAll(figures.FirstLine(pingGroups), "\t", " ")})
}

// pingGroups is where the kernel says which groups may send echo requests without
// a raw socket.
const pingGroups = "/proc/sys/net/ipv4/ping_group_range"
