package camera

import (
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Kinds of sources.
const (
	KindCamera    = "camera"    // rpicam-vid, or ffmpeg with a V4L2 device
	KindRTSP      = "rtsp"      // a network camera
	KindDirectory = "directory" // finished files that something else puts there
	KindFile      = "file"      // a video, in real time
)

// Kinds lists them.
func Kinds() []string { return []string{KindCamera, KindRTSP, KindDirectory, KindFile} }

// Config is where clips come from.
type Config struct {
	Kind string `yaml:"kind"`
	// Device is the number of a Raspberry Pi camera (0, 1), or a V4L2 device
	// such as /dev/video0.
	Device string `yaml:"device"`
	URL    string `yaml:"url"`  // of rtsp
	Path   string `yaml:"path"` // of directory and file
	Loop   bool   `yaml:"loop"` // of file: begins anew at its end

	Width   int             `yaml:"width"`
	Height  int             `yaml:"height"`
	FPS     int             `yaml:"fps"`
	Bitrate schemas.BitRate `yaml:"bitrate"`
	// Format is what a V4L2 device shall give: mjpeg, yuyv422, h264 (copied as it
	// is); empty leaves it to ffmpeg.
	Format string `yaml:"format"`
	// Encoder is ffmpeg's, where it has to encode; empty takes the hardware's
	// where there is one, else libx264.
	Encoder string `yaml:"encoder"`
	// Program is rpicam-vid or ffmpeg, as a name or a path; empty takes ffmpeg for
	// a device of V4L2 and for other sources, and rpicam-vid otherwise.
	Program string `yaml:"program"`
	// Quiet is how long a file of a directory must be unchanged to be complete,
	// when nobody was seen closing it or moving it in.
	Quiet schemas.Duration `yaml:"quiet"`
}

// DefaultConfig is a Raspberry Pi camera with the clips of the published
// experiment: 1080p, about 10 MB for 5 s.
func DefaultConfig() Config {
	return Config{
		Kind: KindCamera, Width: 1920, Height: 1080, FPS: 30, Bitrate: 16_000_000,
		Quiet: schemas.Duration(5 * time.Second),
	}
}

// ClipConfig is how clips are cut.
type ClipConfig struct {
	Length   schemas.Duration `yaml:"length"`   // after the trigger
	PreRoll  schemas.Duration `yaml:"pre_roll"` // before it
	MaxBytes schemas.Size     `yaml:"max_bytes"`
}

// DefaultClipConfig is the published experiment's length, with a pre-roll.
func DefaultClipConfig() ClipConfig {
	return ClipConfig{Length: schemas.Duration(5 * time.Second), PreRoll: schemas.Duration(2 * time.Second), MaxBytes: 64 << 20}
}

const (
	maxLength  = 10 * time.Minute
	maxPreRoll = 30 * time.Second
)

// Check reports every fault; at is the path of this section.
func (c *Config) Check(at string) []schemas.Fault {
	var faults []schemas.Fault
	add := func(field, format string, args ...any) {
		faults = append(faults, schemas.Fault{Path: at + "." + field, Text: fmt.Sprintf(format, args...)})
	}
	if !slices.Contains(Kinds(), c.Kind) {
		add("kind", "%q, want %s", c.Kind, strings.Join(Kinds(), ", "))
	}
	switch c.Kind {
	case KindRTSP:
		if u, err := url.Parse(c.URL); err != nil || (u.Scheme != "rtsp" && u.Scheme != "rtsps") || u.Host == "" || strings.ContainsAny(c.URL, "'\\\r\n") {
			add("url", "%q, want rtsp://[user:password@]host[:port]/path", Redact(c.URL))
		}
	case KindDirectory, KindFile:
		if c.Path == "" {
			add("path", "%q, want the path of a %s", c.Path, c.Kind)
		}
	case KindCamera:
		if c.v4l2() && !strings.HasPrefix(c.Device, "/dev/") {
			add("device", "%q, want a device such as /dev/video0 for program %s", c.Device, c.Program)
		}
		if !c.v4l2() && c.Device != "" && strings.Trim(c.Device, "0123456789") != "" {
			add("device", "%q, want the number of a Raspberry Pi camera (0, 1), or a V4L2 device such as /dev/video0 and program ffmpeg", c.Device)
		}
	}
	if c.Kind == KindCamera || c.Kind == KindFile {
		if c.Width < 64 || c.Width > 7680 || c.Width%2 != 0 {
			add("width", "%d, want an even number of pixels, 64 to 7680", c.Width)
		}
		if c.Height < 64 || c.Height > 4320 || c.Height%2 != 0 {
			add("height", "%d, want an even number of pixels, 64 to 4320", c.Height)
		}
		if c.FPS < 1 || c.FPS > 120 {
			add("fps", "%d, want 1 to 120 frames a second", c.FPS)
		}
		if c.Bitrate < 100_000 || c.Bitrate > 200_000_000 {
			add("bitrate", "%s, want 100kbit to 200mbit", c.Bitrate)
		}
	}
	if c.Encoder != "" && !word(c.Encoder) {
		add("encoder", "%q, want the name of an H.264 encoder of ffmpeg, such as libx264 or h264_v4l2m2m", c.Encoder)
	}
	if c.Format != "" && !word(c.Format) {
		add("format", "%q, want a format of V4L2 devices as ffmpeg calls it: mjpeg, yuyv422, h264", c.Format)
	}
	if c.Kind == KindDirectory {
		if d := time.Duration(c.Quiet); d < 100*time.Millisecond || d > time.Hour {
			add("quiet", "%s, want 100ms to 1h", d)
		}
	}
	return faults
}

func word(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// v4l2 reports whether a camera is read by ffmpeg.
func (c *Config) v4l2() bool {
	return strings.HasPrefix(c.Device, "/dev/") || c.Program != "" && !strings.Contains(base(c.Program), "vid")
}

// base is the last part of a path.
func base(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// Check reports every fault; at is the path of this section.
func (c *ClipConfig) Check(at string) []schemas.Fault {
	var faults []schemas.Fault
	add := func(field, format string, args ...any) {
		faults = append(faults, schemas.Fault{Path: at + "." + field, Text: fmt.Sprintf(format, args...)})
	}
	if d := time.Duration(c.Length); d < 100*time.Millisecond || d > maxLength {
		add("length", "%s, want 100ms to %s", d, maxLength)
	}
	if d := time.Duration(c.PreRoll); d < 0 || d > maxPreRoll {
		add("pre_roll", "%s, want 0s to %s (it is kept in memory)", d, maxPreRoll)
	}
	if c.MaxBytes < 64<<10 || c.MaxBytes > schemas.MaxClipBytes {
		add("max_bytes", "%s, want 64KiB to %s", c.MaxBytes, schemas.Size(schemas.MaxClipBytes))
	}
	return faults
}

// Redact replaces user and password in a URL, also in one that cannot be parsed.
func Redact(address string) string {
	scheme, rest, found := strings.Cut(address, "://")
	if !found {
		return address
	}
	end := strings.IndexAny(rest, "/?# ")
	if end < 0 {
		end = len(rest)
	}
	at := strings.LastIndexByte(rest[:end], '@')
	if at < 0 {
		// A password with a slash in it is not a URL's, but must not be shown either.
		if at = strings.LastIndexByte(rest, '@'); at < 0 {
			return address
		}
	}
	return scheme + "://***@" + rest[at+1:]
}

// encoder is ffmpeg's for H.264 here.
func (c *Config) encoder(exists func(string) bool) string {
	// The Raspberry Pi's encoder up to the Pi 4 is this device.
	if c.Encoder == "" && runtime.GOARCH == "arm64" && exists("/dev/video11") {
		return "h264_v4l2m2m"
	}
	if c.Encoder == "" {
		return "libx264"
	}
	return c.Encoder
}
