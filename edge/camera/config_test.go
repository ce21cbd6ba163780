package camera

import (
	"strings"
	"testing"

	"github.com/transferlab/transferlab/schemas"
)

func TestConfigReportsEveryFault(t *testing.T) {
	source, cut := DefaultConfig(), DefaultClipConfig()
	if faults := append(source.Check("source"), cut.Check("clip")...); len(faults) > 0 {
		t.Fatal(faults)
	}
	for _, c := range []struct {
		change func(*Config)
		fields string
	}{
		{func(c *Config) { c.Kind = "webcam" }, "kind"},
		{func(c *Config) { c.Kind, c.URL = KindRTSP, "http://cam" }, "url"},
		{func(c *Config) { c.Kind, c.URL = KindRTSP, "rtsp://cam/'\noption x" }, "url"},
		{func(c *Config) { c.Kind = KindFile }, "path"},
		{func(c *Config) { c.Kind = KindDirectory; c.Quiet = 0 }, "path quiet"},
		{func(c *Config) { c.Device = "front" }, "device"},
		{func(c *Config) { c.Program = "ffmpeg" }, "device"},
		{func(c *Config) { c.Width, c.Height, c.FPS, c.Bitrate = 641, 0, 0, 1 }, "width height fps bitrate"},
		{func(c *Config) { c.Encoder, c.Format = "libx264 -y /etc/passwd", "a b" }, "encoder format"},
	} {
		source := DefaultConfig()
		c.change(&source)
		var fields []string
		for _, f := range source.Check("source") {
			fields = append(fields, strings.TrimPrefix(f.Path, "source."))
		}
		if got := strings.Join(fields, " "); got != c.fields {
			t.Errorf("%+v: faults in %q, want %q", source, got, c.fields)
		}
	}
	cut = ClipConfig{Length: 0, PreRoll: -1, MaxBytes: schemas.MaxClipBytes + 1}
	if faults := cut.Check("clip"); len(faults) != 3 {
		t.Errorf("%v, want 3 faults", faults)
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"rtsp://cam/x":                "rtsp://cam/x",
		"rtsp://cam/x@y":              "rtsp://***@y",
		"rtsp://u:p@cam:554/x":        "rtsp://***@cam:554/x",
		"rtsp://u:p/w@cam/x":          "rtsp://***@cam/x",
		"rtsp://u:p@w@cam":            "rtsp://***@cam",
		"nats://u:p@one:4222,two:422": "nats://***@one:4222,two:422",
		"no address":                  "no address",
	} {
		if got := Redact(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
