//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/netlab"
)

// emulated is a mesh of three agents at two sites, far enough apart that the 2 %
// of the checks before the run are more than a busy machine adds: what it does to
// times is not what these tests are about.
const emulated = `name: emulated
workload: probe
seed: 5
sites: {near: {rtt: 30ms}, far: {}}
links: {near-far: {rtt: 80ms}}
groups:
  - {site: near, agents: 2, clients: 2}
  - {site: far}
health: {dispatch_lag_p99: 1m}
trials: {retries: 20}
probe: {protocols: [icmp, udp], interval: 20ms, count: COUNT}
`

func writeEmulated(t *testing.T, dir string, count int) (path string) {
	t.Helper()
	if err := netlab.Available(); err != nil {
		t.Fatalf("this test makes network namespaces: %v", err)
	}
	path = filepath.Join(dir, "emulated.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(emulated, "COUNT", strconv.Itoa(count))), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEmulatedNetwork(t *testing.T) {
	dir := t.TempDir()
	out, err := program(t, "--dir", dir, "run", writeEmulated(t, dir, 50)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Inside far there is one agent, so nothing to check.
	for _, want := range []string{"held", "2 of 2 checks before the run held", "far against near"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in the output:\n%s", want, out)
		}
	}
	for query, want := range map[string]string{
		"SELECT count(), countIf(status = 'ok') FROM probe_packets WHERE final":                                                                    "600\t600",
		"SELECT countIf(NOT fit), count() > 1 FROM netlab_checks":                                                                                  "0\ttrue",
		"SELECT sum(lost), sum(dropped), sum(packets) > 1000 FROM netlab_links":                                                                    "0\t0\ttrue",
		"SELECT DISTINCT src_site, dst_site, quantileExact(rtt_ns) BETWEEN 78e6 AND 120e6 FROM probe_packets WHERE dst_site = 'far' GROUP BY 1, 2": "near\tfar\ttrue",
	} {
		out, err := program(t, "--dir", dir, "sql", query+" FORMAT TSV").CombinedOutput()
		got := strings.ReplaceAll(strings.TrimSpace(string(out)), "\t1", "\ttrue")
		if err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%s\n%s (%v), want %s", query, out, err, want)
		}
	}
	if out, err := program(t, "--dir", dir, "report", "latest").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// family is the processes that came from one, held so that their end can be
// waited for however their numbers are used again.
type family map[int]int // pidfd by process

func childrenOf(t *testing.T, pid int, all family) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range tasks {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(data)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := unix.PidfdOpen(child, 0)
			if err != nil {
				continue // it has ended
			}
			all[child] = fd
			childrenOf(t, child, all)
		}
	}
}

// await returns when all have ended.
func (f family) await(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for pid, fd := range f {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				t.Errorf("process %d is still there: %q (%v)", pid, line, err)
			}
			break
		}
		_ = unix.Close(fd)
	}
}

// commands are the families' command lines that hold a text.
func (f family) with(text string) (pids []int) {
	for pid := range f {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), text) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// begin submits the file to a lab that is up and returns once its probes flow.
func begin(t *testing.T, dir, file string, l *up) schemas.Run {
	t.Helper()
	out, err := program(t, "--dir", dir, "--json", "run", "--detach", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	var run schemas.Run
	if err := json.Unmarshal(out, &run); err != nil {
		t.Fatal(err)
	}
	awaitRun(t, l, run, func(p schemas.RunProgress) bool { return p.Progress.Done > 10 })
	return run
}

// awaitRun follows a run until it is as it should be.
func awaitRun(t *testing.T, l *up, run schemas.Run, enough func(schemas.RunProgress) bool) {
	t.Helper()
	c, err := client.New(l.env["TRANSFERLAB_URL"], l.env["TRANSFERLAB_TOKEN"])
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 90*time.Second)
	defer stop()
	reached := false
	_, err = c.Watch(ctx, run.ID.String(), client.Watcher{Progress: func(p schemas.RunProgress) {
		if enough(p) {
			reached = true
			stop()
		}
	}})
	if !reached {
		t.Fatalf("the run did not get that far: %v", err)
	}
}

// The lab is killed with its emulated network up: nothing of it stays, and the
// next start goes on with the run.
func TestEmulatedNetworkIsKilled(t *testing.T) {
	dir := t.TempDir()
	file := writeEmulated(t, dir, 150)
	l := startUp(t, dir, "--port-nats", "0")
	run := begin(t, dir, file, l)
	all := family{}
	childrenOf(t, l.cmd.Process.Pid, all)
	if len(all.with("--site")) != 3 || len(all.with(netlab.RelayCommand)) != 1 {
		t.Fatalf("%d agents and %d relays, want 3 and 1", len(all.with("--site")), len(all.with(netlab.RelayCommand)))
	}
	if err := l.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = l.cmd.Wait()
	<-l.out
	all.await(t)

	l = startUp(t, dir, "--port-nats", "0")
	c, err := client.New(l.env["TRANSFERLAB_URL"], l.env["TRANSFERLAB_TOKEN"])
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	ended, err := c.Watch(ctx, run.ID.String(), client.Watcher{})
	if err != nil || ended.State != schemas.RunDone {
		t.Fatalf("run %s: %s, %v", ended.State, ended.Error, err)
	}
	all = family{}
	childrenOf(t, l.cmd.Process.Pid, all)
	if left := all.with("--site"); len(left) > 0 {
		t.Errorf("agents %v are there after the run's end", left)
	}
}

// A run that is cancelled and resumed at once finds its network made anew.
func TestEmulatedNetworkIsResumed(t *testing.T) {
	dir := t.TempDir()
	l := startUp(t, dir, "--port-nats", "0")
	run := begin(t, dir, writeEmulated(t, dir, 200), l)
	c, err := client.New(l.env["TRANSFERLAB_URL"], l.env["TRANSFERLAB_TOKEN"])
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	if _, err := c.Cancel(ctx, run.ID.String()); err != nil {
		t.Fatal(err)
	}
	if ended, err := c.Watch(ctx, run.ID.String(), client.Watcher{}); err != nil || ended.State != schemas.RunCancelled {
		t.Fatalf("run %s: %s, %v", ended.State, ended.Error, err)
	}
	if _, err := c.Resume(ctx, run.ID.String()); err != nil {
		t.Fatal(err)
	}
	if ended, err := c.Watch(ctx, run.ID.String(), client.Watcher{}); err != nil || ended.State != schemas.RunDone {
		t.Fatalf("run %s: %s, %v", ended.State, ended.Error, err)
	}
}

// Ctrl-C ends the trial, the agents and the network.
func TestEmulatedNetworkIsInterrupted(t *testing.T) {
	dir := t.TempDir()
	file := writeEmulated(t, dir, 5000)
	cmd := program(t, "--dir", dir, "run", file)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := bufio.NewReader(pipe)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := family{}
	said := readUntil(stderr, func(line string) bool { return strings.Contains(line, "probes") })
	childrenOf(t, cmd.Process.Pid, all)
	if len(all.with("--site")) != 3 {
		t.Errorf("agents %v, want 3: %s", all.with("--site"), said)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest := readUntil(stderr, func(string) bool { return false })
	err = cmd.Wait()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 || !strings.Contains(rest, "resume") {
		t.Errorf("%v, want exit code 1 and how to go on:\n%s", err, rest)
	}
	all.await(t)
}

// An agent that disappears in the middle is a finding of the others: the run
// ends, what they saw has a name, and the report says that it is not all.
func TestAgentDisappears(t *testing.T) {
	dir := t.TempDir()
	l := startUp(t, dir, "--port-nats", "0")
	run := begin(t, dir, writeEmulated(t, dir, 900), l)
	all := family{}
	childrenOf(t, l.cmd.Process.Pid, all)
	victim := all.with("--site far")
	if len(victim) != 1 {
		t.Fatalf("agents at far: %v", victim)
	}
	if err := syscall.Kill(victim[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd := program(t, "--dir", dir, "report", "latest")
	c, err := client.New(l.env["TRANSFERLAB_URL"], l.env["TRANSFERLAB_TOKEN"])
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	ended, err := c.Watch(ctx, run.ID.String(), client.Watcher{})
	if err != nil || ended.State != schemas.RunDone {
		t.Fatalf("run %s: %s, %v", ended.State, ended.Error, err)
	}
	out, err := cmd.CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != exitInvalid || !strings.Contains(string(out), "netlab-far-1 ") {
		t.Errorf("%v, want exit code %d and the agent named:\n%s", err, exitInvalid, out)
	}
	table, err := program(t, "--dir", dir, "sql", "SELECT DISTINCT status FROM probe_packets WHERE src_site = 'near' AND dst_site = 'far' ORDER BY status FORMAT TSV").Output()
	statuses := strings.Fields(string(table))
	if err != nil || !slices.Contains(statuses, schemas.StatusOK) || len(statuses) < 2 {
		t.Errorf("what the others saw of it: %v, %v", statuses, err)
	}
}

// readUntil reads lines until one is the one, or until their end.
func readUntil(r *bufio.Reader, is func(line string) bool) string {
	var said strings.Builder
	for {
		line, err := r.ReadString('\n')
		said.WriteString(line)
		if err != nil || is(line) {
			return said.String()
		}
	}
}
