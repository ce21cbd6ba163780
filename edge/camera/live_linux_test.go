package camera

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/motion"
	"github.com/transferlab/transferlab/schemas"
)

// A file in real time: one motion, one clip, which begins with a key frame
// before the motion and plays to its end.
func TestMotionMakesOneClip(t *testing.T) {
	t.Parallel()
	for _, encode := range []bool{false, true} {
		t.Run(fmt.Sprintf("encoded here %v", encode), func(t *testing.T) {
			t.Parallel()
			o := options(t)
			o.Source.Kind, o.Source.Path = KindFile, footage(t, 6, 2.5, 3.2)
			if encode {
				o.Source.Encoder = "libx264"
			}
			o.Motion.Cooldown = schemas.Duration(time.Second)
			s, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			sink := newStore()
			begun := time.Now()
			if err := s.Run(t.Context(), sink); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took < 5*time.Second {
				t.Errorf("a video of 6 s was played in %s", took)
			}
			if len(sink.clips) != 1 {
				t.Fatalf("%d clips of one motion", len(sink.clips))
			}
			c := sink.clips[0]
			if err := schemas.ClipID(c.Start.ID); err != nil {
				t.Error(err)
			}
			if !strings.HasPrefix(c.Start.ID, "pi-1-"+c.Start.Trigger.UTC().Format("20060102T150405")) {
				t.Errorf("clip %s of a trigger at %s", c.Start.ID, c.Start.Trigger)
			}
			if c.Start.Type != schemas.TypeMPEG || c.End.Truncated {
				t.Errorf("%+v %+v", c.Start, c.End)
			}
			p := play(t, c)
			if p.first != "I" || p.faultily != "" {
				t.Errorf("the first frame is a %s; decoding says %q", p.first, p.faultily)
			}
			// Pre-roll and length, to which a group of pictures (half a second in the
			// file, one here) and the encoder's and decoder's time come.
			if p.length < 1500*time.Millisecond || p.length > 4*time.Second {
				t.Errorf("it plays %s, want about 2 s", p.length)
			}
			if d := c.End.Length - p.length; d < 0 || d > 200*time.Millisecond {
				t.Errorf("it plays %s and a frame, but is said to be %s long", p.length, c.End.Length)
			}
			if after := c.End.Recorded.Sub(c.Start.Trigger); after < 900*time.Millisecond || after > 5*time.Second {
				t.Errorf("recorded until %s after the trigger, want 1 s", after)
			}
		})
	}
}

func TestFileThatIsNone(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Source.Kind, o.Source.Path = KindFile, filepath.Join(t.TempDir(), "absent.mp4")
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), newStore()); err == nil || !strings.Contains(err.Error(), "absent.mp4") {
		t.Fatalf("%v, want an error that names the file", err)
	}
}

// Without motion detection clips follow each other; the end of the program does
// not lose the one under way.
func TestClipsThatFollowEachOther(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Source.Kind, o.Source.Path = KindFile, footage(t, 20, 30, 30)
	o.Motion.Kind = motion.KindNone
	o.Clip.PreRoll = 0
	sink := newStore()
	stop := started(t, o, sink)
	first, second := sink.wait(t), sink.wait(t)
	if gap := second.Start.Trigger.Sub(first.End.Recorded); gap < 0 || gap > time.Second {
		t.Errorf("the second clip began %s after the first one's end", gap)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, c := range sink.clips {
		if p := play(t, c); p.first != "I" || p.faultily != "" {
			t.Errorf("clip %s: first frame %s, %q", c.Start.ID, p.first, p.faultily)
		}
	}
}

func TestRpicam(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Source.Program, o.Source.Device = fakeRpicam(t, footage(t, 9, 5, 6)), "1"
	sink := newStore()
	stop := started(t, o, sink)
	c := sink.wait(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(filepath.Dir(o.Source.Program), "args"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "-t 0 -n --codec h264 --inline --flush --width 640 --height 360 --framerate 20 --bitrate 2000000 --intra 20 -o - --camera 1"; string(got) != want {
		t.Errorf("rpicam-vid %s\nwant       %s", got, want)
	}
	if p := play(t, c); p.first != "I" || p.faultily != "" || p.length < 1500*time.Millisecond {
		t.Errorf("%+v", p)
	}
}

// line is a sensor that the test works.
type line chan time.Time

func (l line) Wait(ctx context.Context) (time.Time, error) {
	select {
	case at := <-l:
		return at, nil
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
}

func (l line) Close() error { return nil }

func TestSensor(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Source.Kind, o.Source.Path, o.Source.Loop = KindFile, footage(t, 2, 9, 9), true
	o.Motion.Kind, o.Motion.Line = motion.KindGPIO, 17
	o.Clip.PreRoll = 0
	sensor := make(line)
	o.Line = sensor
	sink := newStore()
	stop := started(t, o, sink)
	// The sensor is there before the stream is.
	sent := map[int64]bool{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var c *clip
	for c == nil {
		select {
		case c = <-sink.committed:
		case <-tick.C:
			at := time.Now()
			sent[at.UnixNano()] = true
			sensor <- at
		}
	}
	if !sent[c.Start.Trigger.UnixNano()] {
		t.Errorf("stamped %s, which is none of the sensor's times", c.Start.Trigger)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// A camera that fails or hangs is started again.
func TestCameraIsStartedAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, video, said string }{
		{"ends", footage(t, 1.5, 9, 9), "the camera is started again"},
		{"hangs", "", "silent for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			o.Source.Program = fakeRpicam(t, c.video)
			logged := newLog()
			o.Log = slog.New(slog.NewTextHandler(logged, nil))
			l := newLive(o)
			l.first, l.stall = 10*time.Millisecond, time.Second
			stop := runs(t, l, newStore())
			logged.await(t, c.said)
			logged.await(t, c.said)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestChildrenDieWithTheirParent(t *testing.T) {
	t.Parallel()
	c := exec.CommandContext(t.Context(), program(t, "parent"))
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var child int
	for _, path := range tasks {
		if data, err := os.ReadFile(path); err == nil && len(data) > 0 {
			if _, err := fmt.Sscan(string(data), &child); err != nil {
				t.Fatal(err)
			}
		}
	}
	if child == 0 {
		t.Fatal("no child")
	}
	fd, err := pidfd(child)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := c.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if err := gone(fd, 10*time.Second); err != nil {
		t.Fatalf("the child outlived its parent: %v", err)
	}
}

func TestStderrIsBoundedAndClean(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	logged := newLog()
	ended := make(chan string)
	go func() {
		s := stderr{name: "ffmpeg", secrets: secrets("rtsp://joe:s3%40cret@cam/x"), log: slog.New(slog.NewTextHandler(logged, nil))}
		ended <- s.copy(r)
	}()
	_, _ = fmt.Fprintln(w, strings.Repeat("x", 100_000))
	_, _ = fmt.Fprintln(w, "cannot open rtsp://joe:s3%40cret@cam/x with s3@cret")
	for range 1000 {
		_, _ = fmt.Fprintln(w, "again")
	}
	_, _ = fmt.Fprint(w, "the end")
	_ = w.Close()
	if last := <-ended; last != "the end" {
		t.Errorf("last line %q", last)
	}
	text := logged.String()
	if strings.Contains(text, "cret") || !strings.Contains(text, "rtsp://***@cam/x with ***") {
		t.Errorf("a password is in the log: %s", text)
	}
	if len(text) > 10_000 {
		t.Errorf("%d bytes logged", len(text))
	}
}

func TestPlan(t *testing.T) {
	o := options(t)
	o.Source.Program, o.Source.Device, o.Source.Format = "ffmpeg", "/dev/video7", "mjpeg"
	p, err := plan(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Join(p.args, " ")
	for _, want := range []string{"-f v4l2 -framerate 20 -video_size 640x360 -input_format mjpeg -i /dev/video7", "-g 20", "-b:v 2000000", "pipe:3"} {
		if !strings.Contains(args, want) {
			t.Errorf("%s lacks %s", args, want)
		}
	}
	o.Source.Format, o.Motion.Kind = "h264", motion.KindNone
	if p, err = plan(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if args = strings.Join(p.args, " "); !strings.Contains(args, "-c:v copy") || strings.Contains(args, "pipe:3") {
		t.Error(args)
	}
	o.Source.Program = "/no/such/program"
	if _, err = plan(t.Context(), o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want that the program is not there", err)
	}
}
