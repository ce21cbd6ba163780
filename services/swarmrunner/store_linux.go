package swarmrunner

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	// Not every file system has files without a name.
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return namedThenNot(dir)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)")), nil
}

func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return writeZeros(f, size)
	}
	return err
}

// availableMemory is how many bytes can be taken without hurting others, as far
// as the system says.
func availableMemory() (int64, bool) {
	available, known := entry("/proc/meminfo", "MemAvailable:")
	available <<= 10
	// A container's limit, which /proc/meminfo does not know of. What it holds of
	// files it gives up when it must.
	limit, limited := entry("/sys/fs/cgroup/memory.max", "")
	used, counted := entry("/sys/fs/cgroup/memory.current", "")
	if limited && counted {
		files, _ := entry("/sys/fs/cgroup/memory.stat", "inactive_file")
		if left := max(limit-used+files, 0); !known || left < available {
			available, known = left, true
		}
	}
	return available, known
}

// entry is the number behind a word at the beginning of a line, or the first of a
// file that has nothing else.
func entry(path, name string) (int64, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for text := range strings.Lines(string(data)) {
		fields := strings.Fields(text)
		if name != "" {
			if len(fields) == 0 || fields[0] != name {
				continue
			}
			fields = fields[1:]
		}
		if len(fields) == 0 {
			return 0, false
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		return n, err == nil
	}
	return 0, false
}
