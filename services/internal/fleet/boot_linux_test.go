package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/awsfake"
)

// TestMain lets the test binary be the program that instances run.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "service" {
		if err := runAgent(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runAgent announces itself on the bus, as an agent does, until it is ended.
func runAgent(args []string) error {
	if len(args) != 7 || args[0] != "prober" || args[1] != "--site" || args[3] != "--name" || args[5] != "--placement" || args[6] != "ec2" {
		return fmt.Errorf("arguments %q", args)
	}
	ctx := context.Background()
	labels, address, err := Placement(ctx)
	if err != nil {
		return err
	}
	run, err := uuid.Parse(os.Getenv("TRANSFERLAB_RUN"))
	if err != nil {
		return err
	}
	c, err := bus.Connect(ctx, bus.Options{
		URL: os.Getenv("TRANSFERLAB_NATS"), User: os.Getenv("TRANSFERLAB_NATS_USER"), Password: os.Getenv("TRANSFERLAB_NATS_PASSWORD"),
		CAFile: os.Getenv("TRANSFERLAB_NATS_CA"), Name: args[4], Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	agents, err := bus.OpenBucket[schemas.Agent](ctx, c, bus.BucketAgents)
	if err != nil {
		return err
	}
	_, err = agents.Put(ctx, bus.Token(args[4]), schemas.Agent{
		Name: args[4], Start: "1", Service: "prober", Site: args[2], Labels: labels, Workloads: []string{"probe"}, Version: "0", CPUs: 1, Seen: time.Now(),
		Run: run, Address: address.String(),
	})
	if err != nil {
		return err
	}
	select {}
}

// machines boots instances of the fake for real: each executes its user-data
// in a directory of its own, with its own metadata service.
type machines struct {
	t    *testing.T
	fake *awsfake.EC2
	bin  string // stand-ins for what a test must not do
	mu   sync.Mutex
	on   map[string]*exec.Cmd
	imds []*httptest.Server
	wait sync.WaitGroup
}

func (m *machines) boot(i awsfake.InstanceInfo, userData string) {
	m.wait.Add(1)
	defer m.wait.Done()
	dir := filepath.Join(m.t.TempDir(), i.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		m.t.Error(err)
		return
	}
	script := filepath.Join(dir, "user-data")
	if err := os.WriteFile(script, []byte(userData), 0o600); err != nil {
		m.t.Error(err)
		return
	}
	imds := httptest.NewServer(m.fake.IMDS(i.ID))
	cmd := exec.Command("bash", script)
	cmd.Env = []string{
		"PATH=" + m.bin + ":" + os.Getenv("PATH"), "TRANSFERLAB_ROOT=" + filepath.Join(dir, "root"), "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + imds.URL,
		"SHUTDOWN_LOG=" + filepath.Join(dir, "shutdown"),
	}
	cmd.Stdout, cmd.Stderr = m.t.Output(), m.t.Output()
	m.mu.Lock()
	m.imds = append(m.imds, imds)
	m.on[i.ID] = cmd
	m.mu.Unlock()
	if err := cmd.Run(); err != nil {
		m.t.Errorf("user-data of %s: %v", i.ID, err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "shutdown")); err != nil || string(data) != "-h +240\n" {
		m.t.Errorf("the end of %s is not set: %q, %v", i.ID, data, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "root", "env")); err != nil || info.Mode().Perm() != 0o600 {
		m.t.Errorf("credentials on the instance: %v, %v", info, err)
	}
}

// end kills the processes that an instance has left running.
func (m *machines) end() {
	m.wait.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.imds {
		s.Close()
	}
	for id := range m.on {
		pids, _ := os.ReadDir("/proc")
		for _, p := range pids {
			environ, err := os.ReadFile(filepath.Join("/proc", p.Name(), "environ"))
			if err != nil || !bytes.Contains(environ, []byte("TRANSFERLAB_ROOT=")) || !bytes.Contains(environ, []byte("/"+id+"/root")) {
				continue
			}
			var pid int
			if _, err := fmt.Sscan(p.Name(), &pid); err == nil && pid != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// Instances that are started execute their user-data: they fetch the program,
// check it, say where they are and join the bus by TLS with the fleet's own
// credentials.
func TestInstancesJoinTheBus(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(program)
	downloads := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, self) }))
	defer downloads.Close()

	lab, err := embedded.Start(t.Context(), embedded.Options{Dir: t.TempDir(), Host: "127.0.0.1", Advertise: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	operator, err := bus.Connect(t.Context(), lab.Options(bus.RoleOperator, "test", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = operator.Close(context.WithoutCancel(t.Context())) }()
	if err := operator.Provision(t.Context(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	password, err := lab.AddUser("fleet-mesh", bus.RoleAgent)
	if err != nil {
		t.Fatal(err)
	}

	m := &machines{t: t, on: map[string]*exec.Cmd{}, bin: t.TempDir()}
	if err := os.WriteFile(filepath.Join(m.bin, "shutdown"), []byte("#!/bin/sh\necho \"$@\" >\"$SHUTDOWN_LOG\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	fake := account(t, awsfake.EC2Options{OnLaunch: m.boot})
	m.fake = fake
	t.Cleanup(m.end)

	o := options(t, false)
	o.Run = uuid.Must(uuid.NewV7())
	o.Spec.Agent = schemas.FleetAgent{URL: downloads.URL + "/transferlab", SHA256: hex.EncodeToString(sum[:])}
	o.Bus = BusAccess{URL: lab.PublicURL(), CA: string(lab.CA()), User: "fleet-mesh", Password: password}
	f, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	agents, err := bus.OpenBucket[schemas.Agent](t.Context(), operator, bus.BucketAgents)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var joined []schemas.Agent
	err = agents.Watch(ctx, ">", func(e bus.Entry[schemas.Agent]) error {
		if joined = append(joined, e.Value); len(joined) == 4 {
			cancel()
		}
		return nil
	})
	if len(joined) != 4 {
		t.Fatalf("%d agents have joined, want 4: %v", len(joined), err)
	}
	for _, a := range joined {
		at := slices.IndexFunc(f.Members, func(m Member) bool { return m.Agent == a.Name })
		if at < 0 {
			t.Errorf("agent %s is no member", a.Name)
			continue
		}
		if err := f.Expect(a); err != nil {
			t.Error(err)
		}
		if member := f.Members[at]; a.Address != member.Public.String() || a.Labels[LabelInstance] != member.InstanceID || a.Labels[LabelZone] != member.Zone || a.Labels[LabelType] != member.Type || a.Run != o.Run {
			t.Errorf("agent %+v of member %+v", a, member)
		}
	}
	moved := joined[0]
	moved.Labels = map[string]string{LabelRegion: "ap-south-1", LabelInstance: moved.Labels[LabelInstance]}
	if err := f.Expect(moved); err == nil || !strings.Contains(err.Error(), `says it is in region "ap-south-1"`) {
		t.Errorf("an agent elsewhere: %v", err)
	}
	moved = joined[0]
	moved.Labels = map[string]string{LabelRegion: moved.Labels[LabelRegion], LabelInstance: "i-0"}
	if err := f.Expect(moved); err == nil {
		t.Error("an agent on a machine that is not the fleet's")
	}
	if _, err := Down(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	empty(t, fake)
}
