//go:build !linux

package swarmrunner

import "os"

func unnamed(dir string) (*os.File, error) { return namedThenNot(dir) }

func allocate(f *os.File, size int64) error { return writeZeros(f, size) }

// availableMemory is not known here.
func availableMemory() (int64, bool) { return 0, false }
