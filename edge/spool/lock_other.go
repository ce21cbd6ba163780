//go:build !unix

package spool

import (
	"errors"
	"fmt"
	"os"
)

func lock(path string) (*os.File, error) {
	return nil, fmt.Errorf("lock %s: %w", path, errors.ErrUnsupported)
}
