package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func firstLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(line)
}

func load() string { return firstLine("/proc/loadavg") }

// machine is what does not change between scenarios.
func machine() []condition {
	return []condition{
		{"goos", runtime.GOOS},
		{"goarch", runtime.GOARCH},
		{"kernel", firstLine("/proc/sys/kernel/osrelease")},
		{"cpu", processor()},
		{"cores", strconv.Itoa(runtime.NumCPU())},
		{"go", runtime.Version()},
		{"ping-group-range", strings.ReplaceAll(firstLine("/proc/sys/net/ipv4/ping_group_range"), "\t", " ")},
	}
}

func processor() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(data)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// tick is the unit of times in /proc/PID/stat on every architecture Go runs on.
const tick = 10 * time.Millisecond

// stat is what /proc/PID/stat says of a process.
type stat struct {
	parent int
	cpu    time.Duration // user and system, of threads that have ended too
}

func parseStat(text []byte) (stat, error) {
	// The name stands in parentheses and may contain anything.
	_, after, found := bytes.Cut(text, []byte("("))
	end := bytes.LastIndexByte(after, ')')
	if !found || end < 0 {
		return stat{}, errors.New("no name in stat")
	}
	fields := strings.Fields(string(after[end+1:]))
	if len(fields) < 13 {
		return stat{}, fmt.Errorf("%d fields in stat", len(fields))
	}
	var n [3]int64
	for i, at := range []int{1, 11, 12} { // ppid, utime, stime
		v, err := strconv.ParseInt(fields[at], 10, 32)
		if err != nil || v < 0 {
			return stat{}, fmt.Errorf("field %q in stat", fields[at])
		}
		n[i] = v
	}
	return stat{parent: int(n[0]), cpu: time.Duration(n[1]+n[2]) * tick}, nil
}

func processorTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	s, err := parseStat(text)
	if err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return s.cpu, nil
}

// familyTime is that of a process and its children.
func familyTime(pid int) (time.Duration, error) {
	total, err := processorTime(pid)
	if err != nil {
		return 0, err
	}
	others, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, path := range others {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if s, err := parseStat(text); err == nil && s.parent == pid {
			total += s.cpu
		}
	}
	return total, nil
}

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
