package fleet

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/google/uuid"

	"github.com/transferlab/transferlab/services/internal/awsfake"
)

func TestNobodyElseIsLetIn(t *testing.T) {
	for _, source := range []string{"0.0.0.0/0", "::/0", "0.0.0.0/1", "10.0.0.0/7", "::/7"} {
		if _, err := rule("tcp", 22, 22, netip.MustParsePrefix(source), ""); err == nil {
			t.Errorf("a rule lets %s in", source)
		}
		p := types.IpPermission{IpProtocol: aws.String("tcp")}
		if strings.Contains(source, ":") {
			p.Ipv6Ranges = []types.Ipv6Range{{CidrIpv6: aws.String(source)}}
		} else {
			p.IpRanges = []types.IpRange{{CidrIp: aws.String(source)}}
		}
		// Also for rules that came about in another way; there is no server.
		if err := (&cloud{}).authorize(t.Context(), "sg-1", []types.IpPermission{p}); err == nil {
			t.Errorf("%s was authorized", source)
		}
	}
	if _, err := rule("tcp", 22, 22, netip.Prefix{}, ""); err == nil {
		t.Error("a rule without a source")
	}
	for _, address := range []netip.Addr{{}, netip.IPv4Unspecified()} {
		if _, err := betweenRules([]Member{{Public: address}}); err == nil {
			t.Errorf("rules for a member at %s", address)
		}
	}
	rules, err := betweenRules([]Member{{Public: netip.MustParseAddr("203.0.113.5")}, {Public: netip.MustParseAddr("2001:db8::5")}})
	if err != nil || len(rules) != 6 || *rules[0].IpRanges[0].CidrIp != "203.0.113.5/32" || *rules[3].Ipv6Ranges[0].CidrIpv6 != "2001:db8::5/128" {
		t.Errorf("%+v, %v", rules, err)
	}
	p := &plan{Spec: spec(true)}
	p.Spec.SSHFrom = "0.0.0.0/0"
	if _, err := p.withinRules("sg-1"); err == nil {
		t.Error("everybody may log in")
	}
}

func TestOptionsReportEveryFault(t *testing.T) {
	_, err := Up(t.Context(), Options{Dir: t.TempDir(), Name: "No", Service: "a b", Lifetime: time.Second, Settle: -1, Regions: []string{"moon"}, Bus: BusAccess{URL: "nats://x", CA: "no"}})
	var wrong *UsageError
	if !errors.As(err, &wrong) {
		t.Fatal(err)
	}
	for _, want := range []string{"fleet name", "fleet.sites", "fleet.agent.url", "service", "lifetime 1s", "settle", "tls://", "user and password", "certificate authority", `region "moon"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q:\n%v", want, err)
		}
	}
}

func TestOtherSpecificationIsRefused(t *testing.T) {
	account(t, awsfake.EC2Options{})
	o := options(t, false)
	if _, err := Up(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	other := o
	other.Spec.Agent.SHA256 = strings.Repeat("1", 64)
	other.Bus.Password = "other"
	other.Run = uuid.Must(uuid.NewV7())
	_, err := Up(t.Context(), other)
	var wrong *UsageError
	if !errors.As(err, &wrong) || !strings.Contains(err.Error(), "another specification") || !strings.Contains(err.Error(), "another bus access") || !strings.Contains(err.Error(), "another run") {
		t.Error(err)
	}
	if _, err := Down(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func TestFleetsOfOneNameFollowEachOther(t *testing.T) {
	fake := account(t, awsfake.EC2Options{})
	o := options(t, false)
	var ids []string
	for range 2 {
		f, err := Up(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, f.ID)
		if _, err := Down(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	empty(t, fake)
	if ids[0] == ids[1] || fake.Launched() != 8 {
		t.Errorf("fleets %v, %d instances", ids, fake.Launched())
	}
	if err := Remove(o.Dir, ids[0]); err != nil {
		t.Fatal(err)
	}
	if all, err := List(o.Dir); err != nil || len(all) != 1 || all[0].ID != ids[1] {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestInstanceThatEndsByItself(t *testing.T) {
	fake := account(t, awsfake.EC2Options{})
	o := options(t, false)
	if _, err := Up(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	fake.SetState(fake.Instances()[0].ID, "terminated")
	if _, err := Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), "is terminated: ") {
		t.Errorf("up again: %v", err)
	}
	s, err := Down(t.Context(), o)
	if err != nil || len(s.Instances) != 4 {
		t.Errorf("%+v, %v", s, err)
	}
	empty(t, fake)
}

func TestThrottled(t *testing.T) {
	fake := account(t, awsfake.EC2Options{})
	o := options(t, false)
	fake.Throttle(1)
	if _, err := Up(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	fake.Throttle(1)
	if _, err := Down(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	empty(t, fake)
}

func TestAnotherRegionFails(t *testing.T) {
	fake := account(t, awsfake.EC2Options{Regions: []string{"us-west-2"}})
	o := options(t, false)
	_, err := Up(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "eu-west-1: ") || !strings.Contains(err.Error(), "is not up") {
		t.Errorf("up: %v", err)
	}
	// What can be removed is, and what cannot be looked at is said.
	if _, err := Down(t.Context(), o); err == nil || !strings.Contains(err.Error(), "is not gone: eu-west-1: ") {
		t.Errorf("down: %v", err)
	}
	empty(t, fake)
	if f, err := Load(o.Dir, o.Name); err != nil || f.State != StateEnding {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), "is being removed") {
		t.Errorf("up while it is being removed: %v", err)
	}
}

func TestTwoAtOnce(t *testing.T) {
	account(t, awsfake.EC2Options{})
	o := options(t, false)
	unlock, err := lockName(o.Dir, o.Name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
	unlock()
}

// What a killed process has written of a line is cut off; what is wrong before
// that is an error.
func TestTornJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{stepImage, stepGroup} {
		if err := j.add(entry{Region: "us-west-2", Step: step, Phase: phaseIntent}); err != nil {
			t.Fatal(err)
		}
	}
	j.close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(whole, '\n') + 1
	for cut := first; cut < len(whole); cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(path)
		if err != nil || len(j.all()) != 1 {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if err := j.add(entry{Step: stepUp, Phase: phaseDone}); err != nil {
			t.Fatal(err)
		}
		j.close()
		if j, err = openJournal(path); err != nil || len(j.all()) != 2 || j.all()[1].Step != stepUp {
			t.Fatalf("cut at %d, then gone on: %v", cut, err)
		}
		j.close()
	}
	if err := os.WriteFile(path, append(append([]byte{}, whole...), make([]byte, 100)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if j, err := openJournal(path); err != nil || len(j.all()) != 2 {
		t.Fatalf("zeros at the end: %v", err)
	} else {
		j.close()
	}
	if err := os.WriteFile(path, append([]byte("nonsense\n"), whole...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(path); err == nil {
		t.Error("nonsense in the middle was read")
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte("{\"step\":\"group\",\"phase\":\"intent\",\"region\":\"us-west-2\"}\n{\"step\":\"gro"))
	f.Add([]byte("{\"step\":\"run\",\"item\":\"oregon\",\"phase\":\"done\",\"ids\":[\"i-1\"],\"members\":[{\"instance_id\":\"i-1\",\"public\":\"1.2.3.4\"}]}\n\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, whole, err := parseJournal(data)
		if err != nil {
			return
		}
		if whole > len(data) || whole > 0 && data[whole-1] != '\n' {
			t.Fatalf("%d of %d bytes are whole lines", whole, len(data))
		}
		again, same, err := parseJournal(data[:whole])
		if err != nil || same != whole || len(again) != len(entries) {
			t.Fatalf("read again: %d entries of %d, %v", len(again), len(entries), err)
		}
		_ = members(entries)
		_ = state(entries)
		_ = unanswered(entries, "us-west-2")
	})
}

// printed is what a shell makes of a command that prints words.
func printed(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %q", err, script)
	}
	return string(out)
}

func FuzzShellQuote(f *testing.F) {
	for _, s := range []string{"", "'", `'\''`, "$(reboot)", "a b\n\tc", "`x`", "\\", "!!", "-n", "é\xff\x80", "$HOME", "\r\n", "x'y\"z", "%s\\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsRune(s, 0) || len(s) > 4096 {
			return
		}
		// As a word, and as a word inside a word, as the user-data has it.
		if got := printed(t, "printf '%s.' "+shellQuote(s)); got != s+"." {
			t.Fatalf("%q became %q", s, got)
		}
		if got := printed(t, "eval "+shellQuote("printf '%s.' "+shellQuote(s))); got != s+"." {
			t.Fatalf("%q became %q inside another", s, got)
		}
	})
}

// The values that the user-data carries reach the program's environment.
func FuzzUserData(f *testing.F) {
	f.Add("fleet-x", "pass'word $(touch /tmp/x) `id`\n\\", "tls://lab.example.com:4222")
	f.Fuzz(func(t *testing.T, user, password, url string) {
		p := &plan{ID: "mesh-abcdef", Spec: spec(false), Service: "prober", Lifetime: time.Hour, access: BusAccess{URL: url, User: user, Password: password}}
		script, err := p.userData("oregon")
		if err != nil {
			if !strings.ContainsRune(user+password+url, 0) && len(user+password+url) < 1000 {
				t.Fatal(err)
			}
			return
		}
		at := strings.Index(script, "printf '%s' 'TRANSFERLAB_NATS=")
		end := strings.Index(script, ` >"$root/env"`)
		if at < 0 || end < at {
			return // the values look like the script
		}
		got := printed(t, "set -a; eval \"$("+script[at:end]+")\"; printf '%s.%s.%s.' \"$TRANSFERLAB_NATS\" \"$TRANSFERLAB_NATS_USER\" \"$TRANSFERLAB_NATS_PASSWORD\"")
		if got != url+"."+user+"."+password+"." {
			t.Fatalf("%q %q %q became %q", url, user, password, got)
		}
	})
}

func TestUserDataIsAShellScript(t *testing.T) {
	p := &plan{ID: "mesh-abcdef", Spec: spec(false), Service: "prober", Lifetime: 90 * time.Minute, access: BusAccess{URL: "tls://lab:4222", User: "u", Password: "p'w"}}
	script, err := p.userData("oregon")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, script)
	}
	if !strings.Contains(script, "shutdown -h +90\n") || !strings.Contains(script, "--proto '=https'") {
		t.Error(script)
	}
	if again, err := p.userData("oregon"); err != nil || again != script {
		t.Error("the script is another one each time")
	}
	shown, err := p.redacted("oregon")
	if err != nil || strings.Contains(shown, "p'w") || strings.Contains(shown, shellQuote(shellQuote("p'w"))) {
		t.Error(shown)
	}
	p.access.CA = strings.Repeat("x", maxUserData)
	if _, err := p.userData("oregon"); err == nil {
		t.Error("user-data above EC2's limit")
	}
}

func TestAgentNamesFit(t *testing.T) {
	long := agentPrefix(strings.Repeat("n", 31), strings.Repeat("s", 63))
	other := agentPrefix(strings.Repeat("n", 31), strings.Repeat("s", 62)+"t")
	if len(long) != 58 || long == other || agentPrefix("mesh-abcdef", "oregon") != "mesh-abcdef-oregon" {
		t.Error(long, other)
	}
}

func TestEstimate(t *testing.T) {
	var e Estimate
	e.add("us-west-2", "t3.micro", 2, time.Hour)
	e.add("us-west-2", "x9.huge", 1, time.Hour)
	e.add("mars-1", "t3.micro", 1, time.Second)
	if want := 2*0.0104 + 3*0.005 + 0.005/60; e.USD < want-1e-9 || e.USD > want+1e-9 || len(e.Unknown) != 2 {
		t.Errorf("%+v, want %v", e, want)
	}
	if !strings.Contains(e.String(), "x9.huge in us-west-2 costs: unknown here") {
		t.Error(e)
	}
}
