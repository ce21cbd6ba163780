package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// group is a control group with a limit of processor time.
type group struct {
	dir     string
	version int
}

const period = 100 * time.Millisecond

// newGroup makes one under the root of the hierarchy that has the cpu controller.
func newGroup(name string, cpus float64) (_ *group, err error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	root, version := controllerRoot(string(mounts), func(dir string) bool {
		have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		return err == nil && strings.Contains(" "+strings.TrimSpace(string(have))+" ", " cpu ")
	})
	if root == "" {
		return nil, errors.New("no hierarchy of control groups with the cpu controller is mounted")
	}
	g := &group{dir: filepath.Join(root, name), version: version}
	if version == 2 {
		if err := put(filepath.Join(root, "cgroup.subtree_control"), "+cpu"); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a control group (needs root and a writable hierarchy): %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	quota := strconv.Itoa(int(cpus * float64(period.Microseconds())))
	length := strconv.Itoa(int(period.Microseconds()))
	if version == 2 {
		return g, put(filepath.Join(g.dir, "cpu.max"), quota+" "+length)
	}
	if err := put(filepath.Join(g.dir, "cpu.cfs_period_us"), length); err != nil {
		return nil, err
	}
	return g, put(filepath.Join(g.dir, "cpu.cfs_quota_us"), quota)
}

// controllerRoot finds where limits of processor time are set.
func controllerRoot(mounts string, hasCPU func(dir string) bool) (dir string, version int) {
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		switch f[2] {
		case "cgroup":
			if strings.Contains(","+f[3]+",", ",cpu,") {
				return f[1], 1
			}
		case "cgroup2":
			if hasCPU(f[1]) {
				dir, version = f[1], 2
			}
		}
	}
	return dir, version
}

func put(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("set %q: %w", text, err)
	}
	return nil
}

// enter moves a process with all its threads.
func (g *group) enter(pid int) error {
	return put(filepath.Join(g.dir, "cgroup.procs"), strconv.Itoa(pid))
}

// throttled is how many periods there were and in how many the limit stopped the
// group.
func (g *group) throttled() (stopped, periods int64, err error) {
	text, err := os.ReadFile(filepath.Join(g.dir, "cpu.stat"))
	if err != nil {
		return 0, 0, fmt.Errorf("throttling: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch name {
		case "nr_periods":
			periods, err = strconv.ParseInt(number, 10, 64)
		case "nr_throttled":
			stopped, err = strconv.ParseInt(number, 10, 64)
		}
		if err != nil {
			return 0, 0, fmt.Errorf("throttling: %w", err)
		}
	}
	return stopped, periods, nil
}

// close removes the group, whose processes must have ended: the kernel lets go of
// them a little later.
func (g *group) close() error {
	var err error
	for range 100 {
		if err = os.Remove(g.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove the control group: %w", err)
}

const spinArgument = "spin"

// spin is the busy loop's process. It ends by itself should nobody end it.
func spin() {
	for begin := time.Now(); time.Since(begin) < 10*time.Minute; {
	}
}
