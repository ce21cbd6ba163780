package fleet

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/awsfake"
)

// account starts an account and points the SDK at it.
func account(t *testing.T, o awsfake.EC2Options) *awsfake.EC2 {
	t.Helper()
	a := awsfake.DefaultAccount()
	fake := awsfake.NewEC2(a, o)
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	setenv(t, a, server.URL)
	return fake
}

func setenv(t *testing.T, a awsfake.Account, url string) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": a.AccessKey, "AWS_SECRET_ACCESS_KEY": a.SecretKey,
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
}

func spec(key bool) schemas.Fleet {
	f := schemas.Fleet{
		Sites: map[string]schemas.FleetSite{"oregon": {Region: "us-west-2", Count: 2}, "dublin": {Region: "eu-west-1"}, "near": {Region: "us-west-2", Image: "ami-0fedcba9876543210"}},
		Agent: schemas.FleetAgent{URL: "https://example.com/transferlab", SHA256: strings.Repeat("0", 64)},
		Bus:   "tls://lab.example.com:4222",
	}
	if key {
		f.KeyPair, f.SSHFrom = true, "198.51.100.7/32"
	}
	return f
}

func options(t *testing.T, key bool) Options {
	return Options{
		Dir: t.TempDir(), Name: "mesh", Spec: spec(key), Bus: BusAccess{User: "fleet-mesh", Password: "secret"}, Settle: 50 * time.Millisecond,
		Progress: func(text string) { t.Log(text) },
	}
}

// empty fails the test if anything is left.
func empty(t *testing.T, fake *awsfake.EC2) {
	t.Helper()
	if left := fake.Left(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func TestUpAndDown(t *testing.T) {
	for _, c := range []struct {
		name string
		key  bool
		o    awsfake.EC2Options
	}{
		{"at once", false, awsfake.EC2Options{}},
		{"with a key, slowly, by pages", true, awsfake.EC2Options{Transition: 300 * time.Millisecond, Page: 1}},
		{"new things are not listed at first", true, awsfake.EC2Options{Invisible: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := account(t, c.o)
			o := options(t, c.key)
			if c.o.Invisible > 0 {
				o.Settle = 10 * time.Second
			}
			f, err := Up(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if f.State != StateUp || len(f.Members) != 4 || len(fake.Instances()) != 4 {
				t.Fatalf("%s with %d members, %d instances", f.State, len(f.Members), len(fake.Instances()))
			}
			names := map[string]bool{}
			for _, m := range f.Members {
				names[m.Agent] = true
				if !m.Public.IsValid() || !m.Private.IsValid() || f.Spec.Sites[m.Site].Region != m.Region || m.Launched.IsZero() {
					t.Errorf("member %+v", m)
				}
			}
			if !names[f.ID+"-oregon-0"] || !names[f.ID+"-oregon-1"] || !names[f.ID+"-dublin-0"] || !names[f.ID+"-near-0"] {
				t.Errorf("names %v", names)
			}
			checkInstances(t, fake, f)
			checkRules(t, fake, f, c.key)
			keys, _ := filepath.Glob(filepath.Join(fleetsDir(o.Dir), f.ID, "key-*.pem"))
			if want := map[bool]int{true: 2}[c.key]; len(keys) != want {
				t.Errorf("%d private keys, want %d", len(keys), want)
			}
			for _, k := range keys {
				if info, err := os.Stat(k); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", k, info.Mode(), err)
				}
				if out, err := exec.Command("ssh-keygen", "-y", "-P", "", "-f", k).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "ssh-ed25519 ") {
					t.Errorf("ssh-keygen reads the private key: %v\n%s", err, out)
				}
			}

			again, err := Up(t.Context(), o)
			if err != nil || again.ID != f.ID || fake.Launched() != 4 {
				t.Fatalf("up again: %v, %d instances ever", err, fake.Launched())
			}
			live, err := Live(t.Context(), "", []string{"us-west-2", "eu-west-1", "us-east-1"})
			if want := 4 + 2 + len(keys); err != nil || len(live) != want {
				t.Errorf("%d resources listed, want %d: %v", len(live), want, err)
			}

			s, err := Down(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			empty(t, fake)
			if len(s.Instances) != 4 || s.Ran <= 0 || s.Cost.USD <= 0 || len(s.Cost.Unknown) > 0 {
				t.Errorf("summary %+v", s)
			}
			for _, name := range []string{fileAccess, "key-us-west-2.pem", "key-eu-west-1.pem"} {
				if _, err := os.Stat(filepath.Join(fleetsDir(o.Dir), f.ID, name)); err == nil {
					t.Errorf("%s is still there", name)
				}
			}
			if _, err := Down(t.Context(), o); !errors.Is(err, ErrNotFound) {
				t.Errorf("down again: %v", err)
			}
			if all, err := List(o.Dir); err != nil || len(all) != 1 || all[0].State != StateClosed || all[0].Summary == nil {
				t.Errorf("list: %+v, %v", all, err)
			}
		})
	}
}

func checkInstances(t *testing.T, fake *awsfake.EC2, f *Fleet) {
	t.Helper()
	for _, i := range fake.Instances() {
		if i.HTTPTokens != "required" || i.Shutdown != "terminate" || i.Tags[TagFleet] != f.ID || i.Tags[TagSite] == "" || i.Tags["Name"] == "" {
			t.Errorf("instance %+v", i)
		}
		if i.Tags[TagSite] == "near" && i.Image != "ami-0fedcba9876543210" || i.Tags[TagSite] != "near" && i.Image != awsfake.FakeImage {
			t.Errorf("instance of site %s has image %s", i.Tags[TagSite], i.Image)
		}
	}
}

// checkRules knows every rule that may be there.
func checkRules(t *testing.T, fake *awsfake.EC2, f *Fleet, key bool) {
	t.Helper()
	for _, region := range f.Regions() {
		var want []string
		for _, m := range f.Members {
			for _, p := range []string{"icmp -1--1", "udp 0-65535", "tcp 0-65535"} {
				want = append(want, p+" "+m.Public.String()+"/32")
			}
		}
		if key {
			want = append(want, "tcp 22-22 198.51.100.7/32")
		}
		var got []string
		within := 0
		for _, r := range fake.Rules(region) {
			if strings.Contains(r, " sg-") {
				within++
				continue
			}
			got = append(got, r)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) || within != 3 {
			t.Errorf("%s lets in\n%s\nand %d by group, want\n%s\nand 3", region, strings.Join(got, "\n"), within, strings.Join(want, "\n"))
		}
	}
}

// A fleet that is interrupted at any call, on the way up or down, is gone on
// with or removed, whether the call was carried out or not.
func TestEveryCallCutOff(t *testing.T) {
	a := awsfake.DefaultAccount()
	for _, down := range []bool{false, true} {
		for _, answered := range []bool{false, true} {
			step := int64(1)
			if down {
				step = 2
			}
			for at := int64(1); ; at += step {
				fake := awsfake.NewEC2(a, awsfake.EC2Options{})
				cut := &cutter{inner: fake, at: at, answered: answered}
				server := httptest.NewServer(cut)
				setenv(t, a, server.URL)
				o := options(t, true)
				o.Progress = nil
				ctx, cancel := context.WithCancel(t.Context())
				cut.do = cancel
				if down {
					cut.off.Store(true)
					if _, err := Up(t.Context(), o); err != nil {
						t.Fatal(err)
					}
					cut.off.Store(false)
					_, _ = Down(ctx, o)
				} else {
					_, _ = Up(ctx, o)
				}
				cancel()
				cut.off.Store(true)
				if !down && at%2 == 0 {
					if _, err := Up(t.Context(), o); err != nil {
						t.Errorf("call %d: up again: %v", at, err)
					}
					if n := fake.Launched(); n != 4 {
						t.Errorf("call %d: %d instances ever, want 4", at, n)
					}
				}
				if _, err := Down(t.Context(), o); err != nil && !errors.Is(err, ErrNotFound) {
					t.Errorf("call %d: down: %v", at, err)
				}
				empty(t, fake)
				server.Close()
				if !cut.was.Load() {
					t.Logf("down %v, carried out %v: %d calls", down, answered, at-1)
					break
				}
			}
		}
	}
}

// cutter ends what is going on at one request, before or after the server has
// acted on it.
type cutter struct {
	inner    http.Handler
	at       int64
	seen     atomic.Int64
	answered bool
	do       func()
	off      atomic.Bool
	was      atomic.Bool
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.off.Load() || c.seen.Add(1) != c.at {
		c.inner.ServeHTTP(w, r)
		return
	}
	c.was.Store(true)
	if c.answered {
		c.inner.ServeHTTP(httptest.NewRecorder(), r)
	}
	c.do()
	panic(http.ErrAbortHandler)
}
