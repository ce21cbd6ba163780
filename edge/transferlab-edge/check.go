package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/edge"
	"github.com/transferlab/transferlab/edge/camera"
	"github.com/transferlab/transferlab/edge/motion"
	"github.com/transferlab/transferlab/edge/uplink"
	"github.com/transferlab/transferlab/edge/vision"
)

// errNotInOrder is told by the lines of the check.
var errNotInOrder = errors.New("not everything is in order")

type checkCmd struct {
	configFlag `embed:""`
}

func (c *checkCmd) Run(ctx context.Context, out console) error {
	return check(ctx, c.Config, os.Getenv, out)
}

// fault says what is wrong and what to do about it.
type fault struct {
	error
	cure string
}

func wrong(cure, format string, args ...any) error {
	return fault{fmt.Errorf(format, args...), cure}
}

// checkTime bounds each check.
const checkTime = 20 * time.Second

// check prints one line for each thing that an edge needs. Without a
// configuration there is nothing else to look at.
func check(ctx context.Context, path string, env func(string) string, out io.Writer) error {
	failed := false
	say := func(name string, f func(context.Context) (string, error)) {
		ctx, cancel := context.WithTimeout(ctx, checkTime)
		defer cancel()
		result, err := f(ctx)
		if err == nil {
			_, _ = fmt.Fprintf(out, "ok    %-10s %s\n", name, oneLine(result))
			return
		}
		failed = true
		var f2 fault
		if errors.As(err, &f2) {
			_, _ = fmt.Fprintf(out, "FAIL  %-10s %s; %s\n", name, oneLine(err.Error()), f2.cure)
			return
		}
		_, _ = fmt.Fprintf(out, "FAIL  %-10s %s\n", name, oneLine(err.Error()))
	}
	var cfg edge.Config
	say("config", func(context.Context) (string, error) {
		var err error
		cfg, err = edge.Load(path, env)
		return path, err
	})
	if failed {
		return errNotInOrder
	}
	say("clock", func(context.Context) (string, error) { return clock() })
	say("programs", func(ctx context.Context) (string, error) { return programs(ctx, cfg) })
	say("source", func(ctx context.Context) (string, error) { return source(ctx, cfg) })
	if cfg.Motion.Kind == motion.KindGPIO {
		say("sensor", func(context.Context) (string, error) {
			line, err := motion.OpenLine(cfg.Motion)
			if err != nil {
				return "", wrong("is the chip right (gpiodetect), the line free, and this user in the group gpio?", "%w", err)
			}
			return fmt.Sprintf("line %d of %s", cfg.Motion.Line, cfg.Motion.Chip), line.Close()
		})
	}
	say("spool", func(context.Context) (string, error) { return room(cfg) })
	say("gateway", func(ctx context.Context) (string, error) { return gateway(ctx, cfg) })
	if cfg.NATS.URL != "" {
		say("bus", func(ctx context.Context) (string, error) {
			conn, err := bus.Connect(ctx, busOptions(cfg, slog.New(slog.DiscardHandler)))
			if err != nil {
				return "", wrong("check nats in the configuration, and the way there", "%w", err)
			}
			return camera.Redact(cfg.NATS.URL), conn.Close(ctx)
		})
	}
	if cfg.Local.Enabled {
		say("detector", func(ctx context.Context) (string, error) { return detector(ctx, cfg) })
	}
	if failed {
		return errNotInOrder
	}
	return nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// programs starts each once.
func programs(ctx context.Context, cfg edge.Config) (string, error) {
	found, err := cfg.Source.Programs()
	if err != nil {
		return "", err
	}
	var said []string
	for path, flag := range map[string]string{found.FFmpeg: "-version", found.FFprobe: "-version", found.Rpicam: "--version"} {
		if path == "" {
			continue
		}
		out, err := exec.CommandContext(ctx, path, flag).Output()
		if err != nil {
			return "", wrong("install it again", "%s does not run: %w", path, err)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		said = append(said, first[:min(len(first), 40)])
	}
	if len(said) == 0 {
		return "none needed", nil
	}
	return strings.Join(said, ", "), nil
}

// source looks whether there is something to record.
func source(ctx context.Context, cfg edge.Config) (string, error) {
	c := cfg.Source
	switch {
	case c.Kind == camera.KindDirectory:
		// Files are moved away from there.
		f, err := os.CreateTemp(c.Path, ".transferlab-check-")
		if err != nil {
			return "", wrong("create it, and give this user the right to write there: files that are taken are removed", "%w", err)
		}
		return c.Path, errors.Join(f.Close(), os.Remove(f.Name()))
	case c.Kind == camera.KindFile:
		f, err := os.Open(c.Path)
		if err != nil {
			return "", wrong("set source.path to a video", "%w", err)
		}
		return c.Path, f.Close()
	case c.Kind == camera.KindRTSP:
		u, err := url.Parse(c.URL)
		if err != nil {
			return "", errors.New("source.url cannot be read")
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"rtsp": "554", "rtsps": "322"}[u.Scheme]
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
		if err != nil {
			return "", wrong("is the camera on, and source.url right?", "%w", err)
		}
		return camera.Redact(c.URL) + " answers", conn.Close()
	case strings.HasPrefix(c.Device, "/dev/"):
		f, err := os.OpenFile(c.Device, os.O_RDWR, 0)
		if err != nil {
			return "", wrong("is the camera there (v4l2-ctl --list-devices), and this user in the group video?", "%w", err)
		}
		return c.Device, f.Close()
	}
	found, err := c.Programs()
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, found.Rpicam, "--list-cameras").CombinedOutput()
	if err != nil {
		return "", wrong("is this user in the groups video and render?", "%s --list-cameras: %w", found.Rpicam, err)
	}
	return cameras(string(out), c.Device)
}

// cameras looks for one in what rpicam-vid lists: lines such as `0 : imx219
// [3280x2464 …] (/base/soc/…)`.
func cameras(list, device string) (string, error) {
	if device == "" {
		device = "0"
	}
	for line := range strings.Lines(list) {
		if number, name, found := strings.Cut(strings.TrimSpace(line), " : "); found && number == device {
			return "camera " + number + ": " + name, nil
		}
	}
	return "", wrong("is the ribbon cable right, in both connectors? rpicam-hello --list-cameras shows what is found", "rpicam-vid finds no camera %s", device)
}

// room looks whether the spool can be written and has the room that it is
// allowed.
func room(cfg edge.Config) (string, error) {
	dir := cfg.Spool.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", wrong("create it for this user, or set spool.dir", "%w", err)
	}
	f, err := os.CreateTemp(dir, ".transferlab-check-")
	if err != nil {
		return "", wrong("give this user the right to write there", "%w", err)
	}
	_, err = f.Write(make([]byte, 64<<10))
	err = errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	if err != nil {
		return "", wrong("is the disk full, or broken?", "%w", err)
	}
	free, err := freeBytes(dir)
	if err != nil {
		return "", err
	}
	used, err := usedBytes(dir)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%s, %.1f GB free, %.1f GB used of at most %s", dir, float64(free)/1e9, float64(used)/1e9, cfg.Spool.MaxBytes)
	if free+used < int64(cfg.Spool.MaxBytes) {
		return "", wrong("set spool.max_bytes to less, or use a larger disk", "%s: less is free than spool.max_bytes promises", text)
	}
	return text, nil
}

func usedBytes(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil // confirmed meanwhile
		}
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

// gateway asks the lab with the token.
func gateway(ctx context.Context, cfg edge.Config) (string, error) {
	lab, err := uplink.New(uplinkOptions(cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return "", err
	}
	defer lab.Close()
	state, err := lab.State(ctx)
	if err != nil {
		return "", wrong("check gateway, ca_file and the way there; if it says that the token is wrong, get one by `transferlab edge add NAME`", "%s: %w", cfg.Gateway, err)
	}
	text := fmt.Sprintf("%s lets us in, %d detectors' slots, %d clips waiting", cfg.Gateway, state.Slots, state.Waiting)
	if offset, bound, ok := lab.Clock(); ok {
		text += fmt.Sprintf(", its clock is %s ahead ± %s", offset.Round(time.Millisecond), bound.Round(time.Millisecond))
		if offset.Abs() > time.Minute {
			return "", wrong("set the clock: systemctl restart systemd-timesyncd", "%s", text)
		}
	}
	return text, nil
}

// detector has the model loaded by the worker process.
func detector(ctx context.Context, cfg edge.Config) (string, error) {
	d, err := vision.New(visionOptions(cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return "", wrong("install transferlab-vision beside this program, or set local.enabled to false and policy.kind to cloud", "%w", err)
	}
	err = d.Warm(ctx)
	text := "model " + d.Model() + " loaded"
	err = errors.Join(err, d.Close())
	if err != nil {
		return "", wrong("check local.models and detection.model; set local.enabled to false and policy.kind to cloud to do without", "%w", err)
	}
	return text, nil
}
