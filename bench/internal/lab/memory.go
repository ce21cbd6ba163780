package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Memory is what /proc/PID/status says, in bytes.
type Memory struct {
	Peak int64 // the most that was resident since the start
	Anon int64 // of what is resident now: the process's own
	File int64 // and pages of its program, which others may share
}

// MemoryOf asks the kernel for the memory of a running process. It is known on
// Linux only.
func MemoryOf(pid int) (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("memory: %w", err)
	}
	var m Memory
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		into := map[string]*int64{"VmHWM": &m.Peak, "RssAnon": &m.Anon, "RssFile": &m.File}[name]
		if into == nil {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 40)
		if err != nil {
			return Memory{}, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		*into = kb << 10
	}
	if m.Peak == 0 {
		return Memory{}, fmt.Errorf("memory of process %d: the kernel does not tell", pid)
	}
	return m, nil
}
