//go:build !linux

package camera

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

type watcher struct{}

func watch(string) (*watcher, error) { return nil, errors.New("no watcher on this system") }

func (*watcher) close() {}

func (*watcher) run(context.Context, chan<- string) {}

// openRegular opens a file, but no link.
func openRegular(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("open it: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open it: %s, want a regular file", info.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open it: %w", err)
	}
	return f, nil
}

func inode(fs.FileInfo) uint64 { return 0 }
