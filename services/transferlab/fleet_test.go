//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/services/internal/awsfake"
	"github.com/transferlab/transferlab/services/internal/fleet"
)

const fleetFile = `name: killed
workload: s3
groups: [{site: oregon, agents: 2, clients: 2}, {site: dublin}]
s3: {buckets: [alpha], size: 1kB, objects: 8, duration: 2s}
fleet:
  sites:
    oregon: {region: us-west-2, count: 2}
    dublin: {region: eu-west-1, type: t3.small}
  agent: {url: "https://example.com/transferlab", sha256: "%s"}
  bus: tls://lab.example.com:4222
  key_pair: true
  ssh_from: 198.51.100.7/32
`

// fleetRig is an account of its own for one state directory.
type fleetRig struct {
	fake   *awsfake.EC2
	server *httptest.Server
	killer *fleetKiller
	dir    string
	file   string
	env    []string
}

func newFleetRig(t *testing.T, o awsfake.EC2Options) *fleetRig {
	t.Helper()
	account := awsfake.DefaultAccount()
	r := &fleetRig{fake: awsfake.NewEC2(account, o), dir: t.TempDir()}
	r.killer = &fleetKiller{inner: r.fake}
	r.server = httptest.NewServer(r.killer)
	t.Cleanup(r.server.Close)
	r.file = filepath.Join(r.dir, "experiment.yaml")
	if err := os.WriteFile(r.file, fmt.Appendf(nil, fleetFile, strings.Repeat("0", 64)), 0o600); err != nil {
		t.Fatal(err)
	}
	r.env = []string{
		"AWS_ENDPOINT_URL=" + r.server.URL, "AWS_ACCESS_KEY_ID=" + account.AccessKey, "AWS_SECRET_ACCESS_KEY=" + account.SecretKey,
		"AWS_CONFIG_FILE=" + os.DevNull, "AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull, "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=",
		"TRANSFERLAB_FLEET_BUS_USER=fleet-killed", "TRANSFERLAB_FLEET_BUS_PASSWORD=secret", "TRANSFERLAB_FLEET_SETTLE=300ms",
	}
	return r
}

// withoutAWS leaves out what would name another account.
func withoutAWS(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "AWS_") })
}

// command is `transferlab fleet …` on the account.
func (r *fleetRig) command(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := program(t, append([]string{"--dir", r.dir, "fleet"}, args...)...)
	cmd.Env = append(withoutAWS(cmd.Env), r.env...)
	separate(cmd)
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

func (r *fleetRig) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd, out := r.command(t, args...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("fleet %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out.String()
}

func (r *fleetRig) empty(t *testing.T, when string) {
	t.Helper()
	if left := r.fake.Left(); len(left) > 0 {
		t.Errorf("%s: left behind:\n%s", when, strings.Join(left, "\n"))
	}
}

// listed counts what the AWS CLI lists in both regions: an independent client
// must see what we say.
func (r *fleetRig) listed(t *testing.T) (instances, groups, keys int) {
	t.Helper()
	path, err := exec.LookPath("aws")
	if err != nil {
		t.Fatal("the AWS CLI is missing: an independent client must show that nothing is left; the task setup installs it (Debian's package is awscli)")
	}
	count := func(into *int, region, query string, args ...string) error {
		cmd := exec.CommandContext(t.Context(), path, append([]string{"--endpoint-url", r.server.URL, "--region", region, "--output", "text", "--query", query, "ec2"}, args...)...)
		cmd.Env = append(withoutAWS(os.Environ()), r.env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("aws %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		*into, err = strconv.Atoi(strings.TrimSpace(string(out)))
		return err
	}
	var all [2][3]int
	var clients errgroup.Group
	for n, region := range []string{"us-west-2", "eu-west-1"} {
		clients.Go(func() error {
			return errors.Join(
				count(&all[n][0], region, "length(Reservations[].Instances[])", "describe-instances", "--filters", "Name=instance-state-name,Values=pending,running,shutting-down,stopping,stopped"),
				count(&all[n][1], region, "length(SecurityGroups)", "describe-security-groups", "--filters", "Name=tag-key,Values=transferlab:fleet"),
				count(&all[n][2], region, "length(KeyPairs)", "describe-key-pairs"))
		})
	}
	if err := clients.Wait(); err != nil {
		t.Fatal(err)
	}
	return all[0][0] + all[1][0], all[0][1] + all[1][1], all[0][2] + all[1][2]
}

// Moments of a request at which a client can be killed.
const (
	killBefore   = "before it is carried out"
	killDone     = "carried out, unanswered"
	killAnswered = "answered"
	killJournal  = "journalled"
)

// fleetKiller passes requests on and kills the client at one of them.
type fleetKiller struct {
	inner  http.Handler
	seen   atomic.Int64
	at     atomic.Int64 // 0: never
	moment atomic.Value
	mu     sync.Mutex
	victim *victim
}

// victim is a process that is to be killed.
type victim struct {
	cmd  *exec.Cmd
	gone chan struct{}
	hit  atomic.Bool
}

// kill ends the process and returns once it is gone.
func (v *victim) kill() {
	v.hit.Store(true)
	_ = syscall.Kill(-v.cmd.Process.Pid, syscall.SIGKILL)
	<-v.gone
}

func (k *fleetKiller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := k.seen.Add(1)
	moment, _ := k.moment.Load().(string)
	if n != k.at.Load() {
		k.inner.ServeHTTP(w, r)
		return
	}
	k.mu.Lock()
	v := k.victim
	k.mu.Unlock()
	switch moment {
	case killBefore:
		v.kill()
		panic(http.ErrAbortHandler)
	case killDone:
		k.inner.ServeHTTP(httptest.NewRecorder(), r)
		v.kill()
		panic(http.ErrAbortHandler)
	default:
		k.inner.ServeHTTP(w, r)
		_ = http.NewResponseController(w).Flush()
		v.kill()
	}
}

// point is where a command is killed.
type point struct {
	command string // up or down
	moment  string
	at      int64 // which request, or how many lines of the journal
}

// killedAt runs a command and kills it at the point; false if it ended before.
func (r *fleetRig) killedAt(t *testing.T, p point) bool {
	t.Helper()
	args := map[string][]string{"up": {"up", r.file}, "down": {"down", "killed"}}[p.command]
	cmd, out := r.command(t, args...)
	v := &victim{cmd: cmd, gone: make(chan struct{})}
	r.killer.mu.Lock()
	r.killer.victim = v
	r.killer.seen.Store(0)
	r.killer.moment.Store(p.moment)
	r.killer.at.Store(0)
	if p.moment != killJournal {
		r.killer.at.Store(p.at)
	}
	err := cmd.Start()
	r.killer.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait(); close(v.gone) }()
	if p.moment == killJournal {
		r.watchJournal(v, p.at)
	}
	<-v.gone
	r.killer.at.Store(0)
	if !v.hit.Load() && !cmd.ProcessState.Success() {
		t.Errorf("%s %d: fleet %s failed:\n%s", p.moment, p.at, p.command, out)
	}
	return v.hit.Load()
}

// lines counts the lines of all journals.
func (r *fleetRig) lines() (n int64) {
	journals, _ := filepath.Glob(filepath.Join(r.dir, "fleets", "*", "journal"))
	for _, j := range journals {
		data, _ := os.ReadFile(j)
		n += int64(bytes.Count(data, []byte{'\n'}))
	}
	return n
}

// watchJournal kills as soon as the command has written so many lines.
func (r *fleetRig) watchJournal(v *victim, lines int64) {
	began := r.lines()
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case <-v.gone:
			return
		case <-tick.C:
			if r.lines() >= began+lines {
				v.kill()
				return
			}
		}
	}
}

// points lists every place where up and down can be killed, by a run that is
// left alone.
func points(t *testing.T) []point {
	r := newFleetRig(t, awsfake.EC2Options{})
	var all []point
	for _, command := range []string{"up", "down"} {
		r.killer.seen.Store(0)
		before := r.lines()
		if command == "up" {
			r.run(t, "up", r.file)
			if i, g, k := r.listed(t); i != 3 || g != 2 || k != 2 {
				t.Fatalf("the AWS CLI lists %d instances, %d groups, %d keys of a fleet that is up, want 3, 2, 2", i, g, k)
			}
			r.killer.seen.Add(-6)
		} else {
			r.run(t, "down", "killed")
		}
		for n := range r.killer.seen.Load() {
			for _, moment := range []string{killBefore, killDone, killAnswered} {
				all = append(all, point{command, moment, n + 1})
			}
		}
		for n := range r.lines() - before {
			all = append(all, point{command, killJournal, n + 1})
		}
	}
	r.empty(t, "left alone")
	return all
}

// `fleet up` and `fleet down` are killed at every call and every line of the
// journal; then, in turn, `fleet down` removes the rest, or `fleet up` goes on
// and doubles nothing. TRANSFERLAB_FLEET_KILLS says how many of the places are
// tried, evenly spread; with more than there are, some are tried again.
func TestFleetKilled(t *testing.T) {
	runs := 12
	if text := os.Getenv("TRANSFERLAB_FLEET_KILLS"); text != "" {
		var err error
		if runs, err = strconv.Atoi(text); err != nil || runs < 1 {
			t.Fatalf("TRANSFERLAB_FLEET_KILLS: %q, want a number above 0", text)
		}
	}
	all := points(t)
	kills, begun := map[string]int{}, time.Now()
	for i := range runs {
		// Seven is no divisor of the number of moments: all kinds come early on.
		p := all[(i*max(len(all)/runs, 1)+i*7%max(len(all)/runs, 1))%len(all)]
		r := newFleetRig(t, awsfake.EC2Options{Transition: time.Duration(i%3) * 20 * time.Millisecond, Invisible: []int{0, 0, 1}[i%3]})
		if p.command == "down" {
			r.run(t, "up", r.file)
		}
		if r.killedAt(t, p) {
			kills[p.command+", "+p.moment]++
		}
		when := fmt.Sprintf("fleet %s killed at %d, %s", p.command, p.at, p.moment)
		if p.command == "up" && i%2 == 1 {
			r.run(t, "up", r.file)
			if n := r.fake.Launched(); n != 3 {
				t.Errorf("%s, then up again: %d instances were started in all, want 3", when, n)
			}
		}
		// A process that was killed before its plan was on disk has left nothing
		// to remove.
		if fleets, err := fleet.List(r.dir); err != nil {
			t.Fatal(err)
		} else if slices.ContainsFunc(fleets, func(f fleet.Fleet) bool { return f.State != fleet.StateClosed }) {
			r.run(t, "down", "killed")
		}
		r.empty(t, when)
		if i == runs-1 || i%25 == 24 {
			if i, g, k := r.listed(t); i != 0 || g != 0 || k != 0 {
				t.Errorf("%s: the AWS CLI lists %d instances, %d groups, %d keys", when, i, g, k)
			}
		}
		r.server.Close()
		if t.Failed() {
			t.Fatal(when)
		}
	}
	t.Logf("%d places, %d runs in %s, kills: %v", len(all), runs, time.Since(begun).Round(time.Millisecond), kills)
}

func TestFleetCommands(t *testing.T) {
	r := newFleetRig(t, awsfake.EC2Options{})
	out := r.run(t, "up", "--dry-run", r.file)
	for _, want := range []string{"us-west-2      start 2 × t3.micro for site oregon", "estimate: about 0.0586 USD an hour", "198.51.100.7/32", "user-data of site dublin"} {
		if !strings.Contains(out, want) {
			t.Errorf("the plan lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "secret") || r.killer.seen.Load() != 0 {
		t.Errorf("the plan shows the password, or %d calls were made:\n%s", r.killer.seen.Load(), out)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "fleets")); err == nil {
		t.Error("a dry run has left files")
	}
	r.run(t, "up", r.file)
	var listing struct {
		Fleets []fleet.Fleet
		Live   []fleet.Resource
	}
	cmd := program(t, "--dir", r.dir, "--json", "fleet", "ls", "--regions", "us-east-1")
	cmd.Env = append(withoutAWS(cmd.Env), r.env...)
	data, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &listing); err != nil {
		t.Fatal(err)
	}
	if len(listing.Fleets) != 1 || listing.Fleets[0].State != fleet.StateUp || len(listing.Live) != 7 {
		t.Errorf("listed: %s", data)
	}
	// Somebody else's machine has no journal.
	elsewhere := *r
	elsewhere.dir = t.TempDir()
	if out := elsewhere.run(t, "down", "--all", "--regions", "us-west-2,eu-west-1"); !strings.Contains(out, listing.Fleets[0].ID+" is gone") {
		t.Error(out)
	}
	r.empty(t, "down by regions")
	if out := r.run(t, "down", "killed"); !strings.Contains(out, "is gone: 3 instances ran for") {
		t.Error(out)
	}
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"down"}, exitUsage, "want either a name or --all"},
		{[]string{"down", "nothing"}, exitFailure, "no such fleet"},
		{[]string{"down", "killed", "--regions", "moon"}, exitUsage, `region "moon"`},
		{[]string{"up", filepath.Join(r.dir, "none.yaml")}, exitUsage, "no such file"},
		{[]string{"up", r.file, "--name", "Not A Name"}, exitUsage, "fleet name"},
		{[]string{"up", r.file, "--lifetime", "1s"}, exitUsage, "lifetime 1s, want"},
		{[]string{"up", r.file, "--bus", "nats://lab:4222"}, exitUsage, "want tls://"},
	} {
		cmd, out := r.command(t, c.args...)
		_ = cmd.Run()
		if cmd.ProcessState.ExitCode() != c.code || !strings.Contains(out.String(), c.text) {
			t.Errorf("fleet %v: exit code %d, want %d:\n%s", c.args, cmd.ProcessState.ExitCode(), c.code, out)
		}
	}
}
