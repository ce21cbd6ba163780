package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Process is a program in the background.
type Process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// StartProcess starts a program with env beside this process's environment. Its
// output goes to the file log.
func StartProcess(log string, env []string, program string, args ...string) (*Process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("make a log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	p := &Process{cmd, make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait()
	}()
	return p, nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed once the process is gone.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Stop interrupts the process, kills it if it does not end within half a minute,
// and returns once it is gone. Stopping again does nothing.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop process %d: %w", p.PID(), err)
	}
	kill := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	<-p.ended
	return nil
}

// Kill ends the process without asking it, and returns once it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
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

// ProcessorTime is the user and system time of a process so far, in steps of
// 10 ms, threads that have ended included. It is known on Linux only.
func ProcessorTime(pid int) (time.Duration, error) {
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

// FamilyTime is the ProcessorTime of a process, and that of its living children
// together.
func FamilyTime(pid int) (own, children time.Duration, err error) {
	if own, err = ProcessorTime(pid); err != nil {
		return 0, 0, err
	}
	others, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("list processes: %w", err)
	}
	for _, path := range others {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if s, err := parseStat(text); err == nil && s.parent == pid {
			children += s.cpu
		}
	}
	return own, children, nil
}
