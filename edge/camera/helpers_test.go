package camera

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/motion"
	"github.com/transferlab/transferlab/schemas"
)

// TestMain lets this binary stand in for programs that are not here.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "rpicam-vid":
		rpicam()
	case "parent":
		parent()
	}
	os.Exit(m.Run())
}

// rpicam writes what rpicam-vid does: H.264 without a container, at the rate of
// a camera.
func rpicam() {
	dir := filepath.Dir(os.Args[0])
	if err := os.WriteFile(filepath.Join(dir, "args"), []byte(strings.Join(os.Args[1:], " ")), 0o600); err != nil {
		os.Exit(3)
	}
	video := filepath.Join(dir, "video.mp4")
	if _, err := os.Stat(video); err != nil {
		// Without cgo the runtime ends a process in which nothing can ever happen.
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, syscall.SIGTERM)
		<-asked
		os.Exit(0)
	}
	program, err := exec.LookPath("ffmpeg")
	if err != nil {
		os.Exit(3)
	}
	err = syscall.Exec(program, []string{
		"ffmpeg", "-loglevel", "error", "-re", "-i", video, "-c", "copy", "-bsf:v", "h264_mp4toannexb", "-f", "h264", "-flush_packets", "1", "-",
	}, os.Environ())
	_, _ = os.Stderr.WriteString(err.Error())
	os.Exit(3)
}

// parent starts what a source starts and is killed.
func parent() {
	wait, err := run(command(context.Background(), "sleep", []string{"600"}), stderr{name: "sleep", log: slog.New(slog.DiscardHandler)})
	if err != nil {
		os.Exit(1)
	}
	fmt.Println("started")
	_ = wait()
}

func program(t *testing.T, name string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// fakeRpicam is a camera that shows a video, or that hangs if there is none.
func fakeRpicam(t *testing.T, video string) string {
	t.Helper()
	path := program(t, "rpicam-vid")
	if video != "" {
		if err := os.Symlink(video, filepath.Join(filepath.Dir(path), "video.mp4")); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func ffmpeg(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ffmpeg", append([]string{"-hide_banner", "-loglevel", "error", "-y"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ffmpeg %v: %v: %s", args, err, out)
	}
}

// footage is a still, noisy scene of the given length in which a box crosses
// during the given time: H.264 with a key frame every half second.
func footage(t *testing.T, length, from, to float64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "footage.mp4")
	f := func(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
	graph := "color=c=0x607060:s=640x360:r=20:d=" + f(length) + ",noise=alls=10:allf=t[b];color=c=white:s=64x96:r=20:d=" + f(length) +
		"[m];[b][m]overlay=x='mod(t*160,560)':y=120:enable='between(t," + f(from) + "," + f(to) + ")'"
	ffmpeg(t, "-filter_complex", graph, "-c:v", "libx264", "-preset", "ultrafast", "-b:v", "2M", "-g", "10", "-keyint_min", "10", "-sc_threshold", "0", "-bf", "0", path)
	return path
}

// store is a sink that keeps clips in memory.
type store struct {
	mu        sync.Mutex
	clips     []*clip
	aborted   int
	committed chan *clip
	begin     func(Start) error
	write     func(*clip) error
}

type clip struct {
	s     *store
	Start Start
	End   End
	bytes.Buffer
}

func newStore() *store { return &store{committed: make(chan *clip, 100)} }

func (s *store) Begin(_ context.Context, start Start) (Recording, error) {
	if s.begin != nil {
		if err := s.begin(start); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.clips {
		if c.Start.ID == start.ID {
			return nil, fs.ErrExist
		}
	}
	return &clip{s: s, Start: start}, nil
}

func (c *clip) Write(b []byte) (int, error) {
	if c.s.write != nil {
		if err := c.s.write(c); err != nil {
			return 0, err
		}
	}
	return c.Buffer.Write(b)
}

func (c *clip) Commit(_ context.Context, e End) error {
	c.End = e
	c.s.mu.Lock()
	c.s.clips = append(c.s.clips, c)
	c.s.mu.Unlock()
	c.s.committed <- c
	return nil
}

func (c *clip) Abort() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.aborted++
	return nil
}

func (s *store) wait(t *testing.T) *clip {
	t.Helper()
	select {
	case c := <-s.committed:
		return c
	case <-time.After(60 * time.Second):
		t.Fatal("no clip in a minute")
		return nil
	}
}

// played is what ffprobe and ffmpeg make of a clip.
type played struct {
	frames   int
	first    string // type of the first frame
	length   time.Duration
	faultily string
}

func play(t *testing.T, c *clip) played {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clip.ts")
	if err := os.WriteFile(path, c.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "ffprobe", "-v", "error", "-select_streams", "v:0",
		"-show_entries", "frame=pict_type,pts_time", "-of", "json", path).Output()
	if err != nil {
		t.Fatalf("ffprobe: %v", err)
	}
	var seen struct {
		Frames []struct {
			Type string `json:"pict_type"`
			At   string `json:"pts_time"`
		} `json:"frames"`
	}
	if err := json.Unmarshal(out, &seen); err != nil {
		t.Fatal(err)
	}
	if len(seen.Frames) == 0 {
		t.Fatalf("no frame in a clip of %d bytes", c.Len())
	}
	at := func(i int) float64 {
		v, err := strconv.ParseFloat(seen.Frames[i].At, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	p := played{frames: len(seen.Frames), first: seen.Frames[0].Type}
	p.length = time.Duration((at(p.frames-1) - at(0)) * float64(time.Second))
	said, err := exec.CommandContext(t.Context(), "ffmpeg", "-v", "error", "-i", path, "-f", "null", "-").CombinedOutput()
	if err != nil {
		t.Fatalf("decode: %v: %s", err, said)
	}
	p.faultily = strings.TrimSpace(string(said))
	return p
}

func options(t *testing.T) Options {
	o := Options{Name: "pi-1", Source: DefaultConfig(), Clip: DefaultClipConfig(), Motion: motion.DefaultConfig(), Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
	o.Clip.Length, o.Clip.PreRoll = schemas.Duration(time.Second), schemas.Duration(time.Second)
	o.Motion.Cooldown = 0
	o.Source.Width, o.Source.Height, o.Source.FPS, o.Source.Bitrate = 640, 360, 20, 2_000_000
	return o
}

// started runs a source until the test ends or stop is called.
func started(t *testing.T, o Options, sink Sink) (stop func() error) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return runs(t, s, sink)
}

func runs(t *testing.T, s Source, sink Sink) (stop func() error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, sink) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			select {
			case err = <-ended:
			case <-time.After(30 * time.Second):
				err = errors.New("the source did not end")
			}
		})
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}
