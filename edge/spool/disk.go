package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// disk is what the spool asks of a file system; names are relative to the
// spool's directory. It is what tests cut the power of.
type disk interface {
	// open opens a file to read and write.
	open(name string, how mode) (file, error)
	rename(from, to string) error
	remove(name string) error
	// each calls visit for the files of a directory, in no order.
	each(dir string, visit func(name string, size int64, changed time.Time) error) error
	// sync makes the names in a directory durable.
	sync(dir string) error
}

// mode says what becomes of a file that is opened.
type mode int

const (
	there mode = iota // must be there
	kept              // is made if need be
	fresh             // is empty
)

// file is an open file.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
	size() (int64, error)
	// writeBack begins to write to the medium, so that a later Sync has less to do.
	writeBack(offset, n int64)
}

// Directories of a spool.
const (
	dirRoot    = "."
	dirClips   = "clips"
	dirResults = "results"
)

// osDisk is the real one.
type osDisk struct{ dir string }

func newOSDisk(dir string) (*osDisk, error) {
	for _, d := range []string{dir, filepath.Join(dir, dirClips), filepath.Join(dir, dirResults)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make %s: %w", d, err)
		}
	}
	d := &osDisk{dir: dir}
	return d, errors.Join(d.sync(dirRoot), syncPath(filepath.Dir(filepath.Clean(dir))))
}

func (d *osDisk) path(name string) string { return filepath.Join(d.dir, filepath.FromSlash(name)) }

func (d *osDisk) open(name string, how mode) (file, error) {
	flag := os.O_RDWR
	switch how {
	case kept:
		flag |= os.O_CREATE
	case fresh:
		flag |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(d.path(name), flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d *osDisk) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }
func (d *osDisk) remove(name string) error     { return os.Remove(d.path(name)) }
func (d *osDisk) sync(dir string) error        { return syncPath(d.path(dir)) }

func (d *osDisk) each(dir string, visit func(name string, size int64, changed time.Time) error) error {
	f, err := os.Open(d.path(dir))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for {
		// A backlog may be 100 000 files: never all of their names at once.
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
				continue
			}
			if err != nil {
				return err
			}
			if err := visit(e.Name(), info.Size(), info.ModTime()); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func syncPath(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("make names in %s durable: %w", dir, err)
	}
	return nil
}

type osFile struct{ *os.File }

func (f osFile) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// noRoom reports whether an error is that of a full disk.
func noRoom(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
