//go:build !linux || noengine

package clickhouse

import (
	"fmt"
	"os"
	"runtime"
)

// RunHost is the whole main of the engine's process where there is an engine.
// This build has none.
func RunHost([]string) int {
	fmt.Fprintf(os.Stderr, "this build for %s/%s has no embedded ClickHouse engine: use an external ClickHouse by its DSN\n", runtime.GOOS, runtime.GOARCH)
	return exitUsage
}
