// Package examples holds the experiments of the swarm workload that come with
// the lab.
package examples

import "embed"

// Files are the experiment files.
//
//go:embed *.yaml
var Files embed.FS
