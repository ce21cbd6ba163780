package motion_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/motion"
)

// scene makes gray pictures: a background with texture and noise.
type scene struct {
	random *rand.Rand
	base   []byte
	light  float64
	waving bool
	n      int
}

func newScene(seed uint64) *scene {
	s := &scene{random: rand.New(rand.NewPCG(seed, 1)), base: make([]byte, motion.Width*motion.Height)}
	for i := range s.base {
		x, y := i%motion.Width, i/motion.Width
		s.base[i] = byte(100 + 40*math.Sin(float64(x)/9) + 30*math.Cos(float64(y)/7))
	}
	return s
}

// picture draws the scene with a box of the given size, none if it is 0.
func (s *scene) picture(x, y, size int) []byte {
	out := make([]byte, len(s.base))
	s.n++
	for i := range out {
		px, py := i%motion.Width, i/motion.Width
		v := float64(s.base[i]) + s.light + s.random.NormFloat64()*4
		if px >= x && px < x+size && py >= y && py < y+size {
			v = 235
		}
		// A screen in the corner that flickers between two pictures.
		if s.waving && px > 130 && px < 150 && py > 10 && py < 25 && s.n%3 == 0 {
			v += 70
		}
		out[i] = byte(min(max(v, 0), 255))
	}
	return out
}

func detectors() map[string]func() motion.Detector {
	all := map[string]func() motion.Detector{}
	for _, kind := range []string{motion.KindFrame, motion.KindMixture} {
		c := motion.DefaultConfig()
		c.Kind = kind
		all[kind] = func() motion.Detector { return motion.New(c) }
	}
	return all
}

func TestDetectors(t *testing.T) {
	least := motion.DefaultConfig().MinArea
	for kind, fresh := range detectors() {
		t.Run(kind, func(t *testing.T) {
			still := func(d motion.Detector, s *scene, pictures int, what string) {
				t.Helper()
				for i := range pictures {
					if area := d.Look(s.picture(0, 0, 0)); area >= least {
						t.Fatalf("%s: picture %d: motion of %g where there is none", what, i, area)
					}
				}
			}
			t.Run("still", func(t *testing.T) { still(fresh(), newScene(1), 300, "noise only") })
			t.Run("something moves", func(t *testing.T) {
				d, s := fresh(), newScene(2)
				still(d, s, 50, "before")
				for i := range 20 {
					if area := d.Look(s.picture(10+5*i, 40, 12)); area < least {
						t.Fatalf("picture %d: %g of a box of %g seen", i, area, 144./float64(motion.Width*motion.Height))
					}
				}
			})
			t.Run("the first picture is no motion", func(t *testing.T) {
				d, s := fresh(), newScene(3)
				if area := d.Look(s.picture(20, 20, 30)); area != 0 {
					t.Fatalf("motion of %g in the first picture", area)
				}
			})
			t.Run("light switched on", func(t *testing.T) {
				d, s := fresh(), newScene(4)
				still(d, s, 30, "before")
				s.light = 80
				still(d, s, 50, "after")
			})
			t.Run("what stays becomes background", func(t *testing.T) {
				d, s := fresh(), newScene(5)
				still(d, s, 60, "before")
				var area float64
				for range 400 {
					area = d.Look(s.picture(60, 30, 20))
				}
				if area >= least {
					t.Fatalf("still %g after 80 s", area)
				}
			})
			t.Run("pictures of another size", func(t *testing.T) {
				if area := fresh().Look(make([]byte, 7)); area != 0 {
					t.Fatalf("motion of %g", area)
				}
			})
		})
	}
}

// What a running average cannot learn a mixture can: two usual values.
func TestFlickerIsBackgroundOfAMixture(t *testing.T) {
	d, s := motion.NewMixture(motion.Width, motion.Height, motion.DefaultConfig().Threshold), newScene(6)
	s.waving = true
	for range 60 {
		d.Look(s.picture(0, 0, 0))
	}
	for i := range 100 {
		if area := d.Look(s.picture(0, 0, 0)); area >= motion.DefaultConfig().MinArea {
			t.Fatalf("picture %d: the flickering screen is motion of %g", i, area)
		}
	}
	if area := d.Look(s.picture(40, 40, 15)); area < motion.DefaultConfig().MinArea {
		t.Fatalf("a box beside it is not seen: %g", area)
	}
}

func TestExposureThatAdapts(t *testing.T) {
	c := motion.DefaultConfig()
	d, s := motion.New(c), newScene(7)
	for i := range 200 {
		s.light = 25 * math.Sin(float64(i)/8)
		if area := d.Look(s.picture(0, 0, 0)); area >= c.MinArea {
			t.Fatalf("picture %d: motion of %g by light alone", i, area)
		}
	}
}

// A minute of encoded video with known motion: every motion is seen, nothing
// else is.
func TestKnownMotionInAVideo(t *testing.T) {
	moving := []struct{ from, to float64 }{{8, 11}, {20, 21.5}, {33, 36}, {50, 53}}
	var enable []string
	for _, m := range moving {
		enable = append(enable, fmt.Sprintf("between(t,%g,%g)", m.from, m.to))
	}
	graph := "color=c=0x607060:s=640x360:r=10:d=60,noise=alls=12:allf=t[b];color=c=white:s=48x80:r=10:d=60[m];" +
		"[b][m]overlay=x='mod(t*90,590)':y='120+60*sin(t)':enable='" + strings.Join(enable, "+") + "'"
	dir := t.TempDir()
	run := func(args ...string) []byte {
		c := exec.CommandContext(t.Context(), "ffmpeg", append([]string{"-hide_banner", "-loglevel", "error", "-y"}, args...)...)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("ffmpeg: %v: %s", err, stderr.String())
		}
		return out
	}
	run("-filter_complex", graph, "-c:v", "libx264", "-preset", "ultrafast", "-b:v", "2M", dir+"/v.mp4")
	const rate = 5
	pictures := run("-i", dir+"/v.mp4", "-vf", fmt.Sprintf("fps=%d,scale=%d:%d,format=gray", rate, motion.Width, motion.Height), "-f", "rawvideo", "-")
	for kind, fresh := range detectors() {
		d := fresh()
		seen := make([]bool, len(moving))
		size := motion.Width * motion.Height
		total, wrong := 0, 0
		for i := 0; (i+1)*size <= len(pictures); i++ {
			total++
			if d.Look(pictures[i*size:(i+1)*size]) < motion.DefaultConfig().MinArea {
				continue
			}
			at, known := float64(i)/rate, false
			for k, m := range moving {
				// The picture that follows shows the place that the box has left.
				if at >= m.from-0.3 && at <= m.to+0.5 {
					seen[k], known = true, true
				}
			}
			if !known {
				wrong++
				t.Errorf("%s: motion at %.1f s where there is none", kind, at)
			}
		}
		for k, m := range moving {
			if !seen[k] {
				t.Errorf("%s: the motion from %g s to %g s was not seen", kind, m.from, m.to)
			}
		}
		t.Logf("%s: %d of %d motions seen, %d of %d pictures wrongly", kind, len(moving), len(moving), wrong, total)
	}
}

func TestConfigReportsEveryFault(t *testing.T) {
	good := motion.DefaultConfig()
	if faults := good.Check("motion"); len(faults) > 0 {
		t.Fatal(faults)
	}
	bad := motion.Config{Kind: motion.KindGPIO, Line: -1, Bias: "left", Debounce: -1, Cooldown: -1}
	if faults := bad.Check("motion"); len(faults) != 5 {
		t.Fatalf("%d faults, want 5: %v", len(faults), faults)
	}
	bad = motion.Config{Kind: motion.KindFrame, Threshold: math.NaN(), MinArea: math.NaN(), Rate: math.NaN()}
	if faults := bad.Check("motion"); len(faults) != 4 {
		t.Fatalf("%d faults, want 4: %v", len(faults), faults)
	}
}

func event(at time.Time, id uint32) []byte {
	b := make([]byte, 48)
	binary.NativeEndian.PutUint64(b, uint64(at.UnixNano()))
	binary.NativeEndian.PutUint32(b[8:], id)
	return b
}

// The kernel's line is stood in for by a pipe with the same events.
func TestLine(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	now := time.Now()
	line := motion.LineOf(r, func() time.Time { return now })
	defer line.Close()
	want := now.Add(-3 * time.Millisecond)
	for _, e := range [][]byte{event(want, 2), event(want, 1), event(now.Add(-time.Hour), 1)} {
		if _, err := w.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	if at, err := line.Wait(t.Context()); err != nil || !at.Equal(want) {
		t.Fatalf("%v, %v, want the rising edge at %v", at, err, want)
	}
	if at, err := line.Wait(t.Context()); err != nil || !at.Equal(now) {
		t.Fatalf("%v, %v, want our time instead of another clock's", at, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	context.AfterFunc(t.Context(), cancel)
	ended := make(chan error)
	go func() {
		_, err := line.Wait(ctx)
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want the context's end", err)
	}
}

func TestLineThatGoesAway(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	line := motion.LineOf(r, time.Now)
	defer line.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := line.Wait(t.Context()); !errors.Is(err, io.EOF) {
		t.Fatalf("%v, want EOF", err)
	}
}

func TestOpenLineOfNoChip(t *testing.T) {
	c := motion.DefaultConfig()
	c.Chip, c.Line = "/dev/null", 4
	if _, err := motion.OpenLine(c); err == nil {
		t.Fatal("a line of /dev/null was opened")
	}
}

func BenchmarkLook(b *testing.B) {
	s := newScene(8)
	picture := s.picture(30, 30, 20)
	for kind, fresh := range detectors() {
		b.Run(kind, func(b *testing.B) {
			d := fresh()
			for b.Loop() {
				d.Look(picture)
			}
		})
	}
}
