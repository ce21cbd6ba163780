//go:build linux

package drive

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// childAttributes gives a child a group of its own, so that Ctrl-C at the terminal
// reaches the lab alone, and has the kernel end it when this process dies.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// maxEnviron is how much of a process's environment is looked at.
const maxEnviron = 2 << 20

// marked lists the processes, this one aside, that have a variable in their
// environment.
func marked(variable string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Those of others cannot be read, and those that end meanwhile are not ours
		// to end.
		environ, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || len(environ) > maxEnviron {
			continue
		}
		if slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool { return string(v) == variable }) {
			found = append(found, pid)
		}
	}
	return found, nil
}
