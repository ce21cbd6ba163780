package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/transferlab/transferlab/bench/internal/figures"
)

// machine is what does not change between scenarios.
func machine() []figures.Condition {
	return append(figures.Machine(),
		figures.Condition{Name: "ping-group-range", Value: strings.ReplaceAll(figures.FirstLine(pingGroups), "\t", " ")})
}

// pingGroups is where the kernel says which groups may send echo requests without
// a raw socket.
const pingGroups = "/proc/sys/net/ipv4/ping_group_range"

// memory is what /proc/PID/status says, in bytes.
type memory struct {
	peak int64 // the most that was resident since the start
	anon int64 // of what is resident now: the process's own
	file int64 // and pages of its program, which others may share
}

func memoryOf(pid int) (memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, fmt.Errorf("memory: %w", err)
	}
	var m memory
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		into := map[string]*int64{"VmHWM": &m.peak, "RssAnon": &m.anon, "RssFile": &m.file}[name]
		if into == nil {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 40)
		if err != nil {
			return memory{}, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		*into = kb << 10
	}
	if m.peak == 0 {
		return memory{}, fmt.Errorf("memory of process %d: the kernel does not tell", pid)
	}
	return m, nil
}
