//go:build linux

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/awsfake"
)

// computers boot the emulator's instances for real: each executes its user-data
// in a directory of its own, beside its own metadata service, until it is
// terminated.
type computers struct {
	t    *testing.T
	fake *awsfake.EC2
	dir  string // what they stand in, and stand-ins for what a test must not do
	mu   sync.Mutex
	on   map[string]*computer
	wait sync.WaitGroup
}

type computer struct {
	metadata *httptest.Server
	root     string
}

func (c *computers) boot(i awsfake.InstanceInfo, userData string) {
	c.wait.Add(1)
	defer c.wait.Done()
	root := filepath.Join(c.dir, i.ID)
	script := filepath.Join(root, "user-data")
	if err := os.MkdirAll(root, 0o700); err != nil {
		c.t.Error(err)
		return
	}
	if err := os.WriteFile(script, []byte(userData), 0o600); err != nil {
		c.t.Error(err)
		return
	}
	metadata := httptest.NewServer(c.fake.IMDS(i.ID))
	c.mu.Lock()
	c.on[i.ID] = &computer{metadata: metadata, root: root}
	c.mu.Unlock()
	cmd := exec.Command("bash", script)
	cmd.Env = []string{
		"PATH=" + c.dir + ":" + os.Getenv("PATH"), "TRANSFERLAB_ROOT=" + filepath.Join(root, "root"), "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + metadata.URL,
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Errorf("user-data of %s: %v\n%s", i.ID, err, out)
	}
}

// off ends what an instance runs, as its termination would.
func (c *computers) off(root string) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Error(err)
	}
	for _, e := range entries {
		environ, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !strings.Contains(string(environ), "TRANSFERLAB_ROOT="+root) {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func (c *computers) end() {
	c.wait.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.on {
		m.metadata.Close()
		c.off(filepath.Join(m.root, "root"))
	}
}

// A run with a fleet of its own: instances in two regions start, fetch the
// program, join the bus by TLS as the fleet's own user, say that they are where
// they should be, measure, and are gone before the run has ended.
func TestRunOnAFleet(t *testing.T) {
	self, err := exec.LookPath("transferlab")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	file, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := io.Copy(sum, file); err != nil {
		t.Fatal(err)
	}
	downloads := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, self) }))
	defer downloads.Close()

	c := &computers{t: t, dir: t.TempDir(), on: map[string]*computer{}}
	if err := os.WriteFile(filepath.Join(c.dir, "shutdown"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := newFleetRig(t, awsfake.EC2Options{OnLaunch: c.boot, OnTerminate: func(id string) { c.off(filepath.Join(c.dir, id, "root")) }})
	c.fake = r.fake
	t.Cleanup(c.end)
	experiment := fmt.Sprintf(`name: fleet
workload: probe
groups: [{site: oregon, agents: 2, clients: 2}, {site: dublin}]
health: {dispatch_lag_p99: 1m}
fleet:
  sites:
    oregon: {region: us-west-2, count: 2}
    dublin: {region: eu-west-1, type: t3.small}
  agent: {url: %q, sha256: %s}
probe:
  mesh: none
  targets: ["icmp://127.0.0.1"]
  interval: 20ms
  count: 20
`, downloads.URL+"/transferlab", hex.EncodeToString(sum.Sum(nil)))
	path := filepath.Join(r.dir, "fleet.yaml")
	if err := os.WriteFile(path, []byte(experiment), 0o600); err != nil {
		t.Fatal(err)
	}
	lab := program(t, "--dir", r.dir, "up", "--advertise", "127.0.0.1", "--port-nats", "0", "--port-clickhouse", "0", "--port-s3", "0", "--port-http", "0")
	lab.Env = append(withoutAWS(lab.Env), r.env...)
	startUpBy(t, r.dir, lab)
	cmd := program(t, "--dir", r.dir, "run", path)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"estimated at about 0.0", "the fleet is gone: 3 instances ran", "verdict       held", "probes: 60 issued, 60 stored", "-oregon-0", "-oregon-1", "-dublin-0"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	// Their rows are on their way when the run has ended.
	used := ""
	for deadline := time.Now().Add(20 * time.Second); used != "3\t2\t1\n" && time.Now().Before(deadline); {
		answer, err := program(t, "--dir", r.dir, "sql", "SELECT count(), uniqExact(region), min(ran_ns) > 0 FROM fleet_instances FORMAT TSV").Output()
		if err != nil {
			t.Fatal(err)
		}
		used = string(answer)
	}
	if used != "3\t2\t1\n" {
		t.Errorf("instances in the database: %q", used)
	}
	r.empty(t, "after the run")
	if instances, groups, keys := r.listed(t); instances+groups+keys > 0 {
		t.Errorf("the AWS CLI lists %d instances, %d groups, %d keys", instances, groups, keys)
	}
	if n := r.fake.Launched(); n != 3 {
		t.Errorf("%d instances were launched, want 3", n)
	}
}
