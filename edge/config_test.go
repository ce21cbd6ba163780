package edge

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/camera"
	"github.com/transferlab/transferlab/schemas"
)

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func noEnv(string) string { return "" }

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "token", "secret-of-the-file\n")
	path := write(t, dir, "edge.yaml", `
name: garden
gateway: https://lab.example:8443
token_file: token
source: {kind: rtsp, url: "rtsp://cam/1"}
motion:
  kind: mixture
  cooldown: 1m
clip:
  length: 10s
spool:
  max_bytes: 2GB
log_level: debug
`)
	c, err := Load(path, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if c.Token != "secret-of-the-file" || time.Duration(c.Clip.Length) != 10*time.Second || time.Duration(c.Clip.PreRoll) != 2*time.Second ||
		c.Spool.MaxBytes != 2e9 || c.LogLevel != -4 || c.Uplink.Connections != 4 || time.Duration(c.Motion.Cooldown) != time.Minute {
		t.Errorf("%+v", c)
	}
	c, err = Load(path, func(name string) string {
		return map[string]string{EnvToken: "secret-of-the-environment", EnvSourceURL: "rtsp://u:p@cam/2", EnvNATSPassword: "x"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Token != "secret-of-the-environment" || c.Source.URL != "rtsp://u:p@cam/2" || c.NATS.Password != "x" {
		t.Errorf("%+v", c)
	}
}

// The configuration that is shipped differs from the defaults only where it
// says so, and lacks nothing but the token.
func TestShippedConfig(t *testing.T) {
	c, err := Load("../compose/edge/edge.yaml", func(name string) string { return map[string]string{EnvToken: "t"}[name] })
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	if c.Source != want.Source || c.Motion != want.Motion || c.Clip != want.Clip || c.Spool != want.Spool || c.Policy != want.Policy ||
		c.Detection != want.Detection || c.Uplink != want.Uplink {
		t.Errorf("the shipped file says %+v\nthe defaults are    %+v", c, want)
	}
}

func TestEveryFaultWithItsLine(t *testing.T) {
	path := write(t, t.TempDir(), "edge.yaml", `name: "No good"
gateway: lab.example
token_file: absent
source:
  kind: webcam
motion:
  kind: frame
  threshold: 300
clip:
  length: 0s
policy:
  kind: overflow
detection:
  sample_per_s: 99
local:
  slots: 0
uplink:
  order: random
`)
	_, err := Load(path, noEnv)
	if err == nil {
		t.Fatal("no fault")
	}
	for _, want := range []string{
		`line 1: name: "No good", want`, `line 2: gateway: "lab.example", want http`, "line 3: token_file: ", `line 5: source.kind: "webcam", want camera, rtsp, directory, file`,
		"line 8: motion.threshold: 300, want 1 to 254", "line 10: clip.length: 0s, want 100ms", "nats.url: none, want nats://",
		"line 14: detection.sample_per_s: 99, want", "line 16: local.slots: 0, want 1 to 64", `line 18: uplink.order: "random", want oldest, newest`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
}

func TestUnknownFields(t *testing.T) {
	_, err := Parse([]byte("name: a\ncolour: red\nspool:\n  dir: /x\n  maximum: 3\n"))
	if err == nil || !strings.Contains(err.Error(), "line 2: colour: there is no such field, want name, gateway") ||
		!strings.Contains(err.Error(), "line 5: spool.maximum: there is no such field, want dir, max_bytes") {
		t.Fatalf("%v", err)
	}
	for text, want := range map[string]string{
		"spool:\n  max_bytes: lots\n": "line 2", "local:\n  slots: many\n": "line 2", "spool: 7\n": "line 1: spool", "name: [\n": "line 1", "name: a\nname: b\n": "line 2",
		"": "documents", "- a\n": "fields",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}

func TestPasswordsAreNotInFaults(t *testing.T) {
	c := DefaultConfig()
	c.Gateway, c.NATS.URL = "https://user:hidden@lab", "nats://user:hidden@lab"
	c.Source.Kind, c.Source.URL = camera.KindRTSP, "http://user:hidden@cam"
	err := c.Validate()
	if err == nil || strings.Contains(err.Error(), "hidden") {
		t.Fatalf("%v", err)
	}
	var fault schemas.Fault
	if !errors.As(err, &fault) {
		t.Errorf("%T", err)
	}
}

func FuzzConfig(f *testing.F) {
	shipped, err := os.ReadFile("../compose/edge/edge.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(shipped)
	f.Add([]byte("name: a\nsource: {kind: file, path: x}\nlocal: {models: [a, b]}\n"))
	f.Add([]byte("a: &a [*a]\n<<: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err == nil {
			_ = c.Validate()
		}
	})
}
