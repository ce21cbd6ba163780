package swarmrunner

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// store is where a peer keeps its file.
type store struct{ data []byte }

// newMemory takes memory. It comes from the system and goes back to it, so that
// a trial does not work in what the garbage of the one before has left.
func newMemory(size int64) (*store, error) {
	data, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("take %d bytes of memory: %w", size, err)
	}
	return &store{data: touched(data)}, nil
}

// newFile makes a file in dir. All its blocks are taken now: on a disk that is
// full that is an error, where a write to the mapping would end the process. It
// has no name, so that the system removes it however this process ends.
func newFile(dir string, size int64) (_ *store, err error) {
	f, err := unnamed(dir)
	if err != nil {
		return nil, fmt.Errorf("make a file in %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := allocate(f, size); err != nil {
		return nil, fmt.Errorf("take %d bytes in %s: %w", size, dir, err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map a file in %s: %w", dir, err)
	}
	return &store{data: touched(data)}, nil
}

func newStore(storage, dir string, size int64) (*store, error) {
	if storage == "file" {
		return newFile(dir, size)
	}
	return newMemory(size)
}

// touched has every page there before the start: what is timed is the transfer,
// not the kernel's clearing of memory.
func touched(data []byte) []byte {
	for i := 0; i < len(data); i += os.Getpagesize() {
		data[i] = 0
	}
	return data
}

// close gives the memory back. Nobody may use it any more.
func (s *store) close() error {
	if s == nil || s.data == nil {
		return nil
	}
	data := s.data
	s.data = nil
	if err := unix.Munmap(data); err != nil {
		return fmt.Errorf("give memory back: %w", err)
	}
	return nil
}

// namedThenNot makes a file and takes its name away.
func namedThenNot(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "transferlab-swarm-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// writeZeros takes blocks where the system has no other way to.
func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 1<<20)
	for size > 0 {
		n, err := f.Write(zeros[:min(size, int64(len(zeros)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}
