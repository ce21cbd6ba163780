//go:build opencv

package detector

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/edge/vision/visiontest"
	"github.com/transferlab/transferlab/schemas"
)

// film makes a clip of people who walk about.
func film(t testing.TB, seconds int, size, rate string) []byte {
	t.Helper()
	const source = "/usr/share/doc/opencv-doc/examples/data/vtest.avi"
	out := filepath.Join(t.TempDir(), "clip.mp4")
	text, err := exec.Command("ffmpeg", "-v", "error", "-ss", "5", "-t", fmt.Sprint(seconds), "-i", source,
		"-vf", "crop=768:432,scale="+size, "-r", "25", "-c:v", "libx264", "-preset", "ultrafast",
		"-b:v", rate, "-minrate", rate, "-maxrate", rate, "-bufsize", rate, "-x264-params", "nal-hrd=cbr", "-g", "25", "-movflags", "+faststart", out).CombinedOutput()
	if err != nil {
		t.Fatalf("ffmpeg: %v: %s (the packages ffmpeg and opencv-doc are needed)", err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// seeing is a configuration with the real thing.
func (r *rig) seeing(t testing.TB, name string) Config {
	cfg := r.config(name)
	cfg.Program, cfg.Model = visiontest.Program(t), "hog"
	return cfg
}

// bare looks at a clip without a detector around it.
func bare(t testing.TB, cfg Config) func(data []byte) vision.Outcome {
	t.Helper()
	v, err := vision.New(vision.Options{Program: cfg.Program, Model: cfg.Model, Threads: cfg.threads()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return func(data []byte) vision.Outcome {
		t.Helper()
		out, err := v.Detect(t.Context(), bytes.NewReader(data), jobOf("a", data).Clip)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

// What is stored is what the same eyes see without a detector around them; what
// they cannot see has a name; nobody waits behind it.
func TestRealVision(t *testing.T) {
	r := newRig(t)
	cfg := r.seeing(t, "one")
	if err := Available(cfg); err != nil {
		t.Error(err)
	}
	data := film(t, 2, "640:360", "2M")
	r.start(t, cfg, nil)
	r.offer(t, "walkers", data, func(j *schemas.ClipJob) { j.Clip.Detection = schemas.Detection{Annotate: true, Sample: 2} })
	r.offer(t, "noise", content('V', 1, 500_000))
	r.offer(t, "cut", data[:len(data)/3])
	r.offer(t, "unknown-model", data, func(j *schemas.ClipJob) { j.Clip.Detection.Model = "no-such-model" })
	r.offer(t, "again", data)

	s := r.await(t, "walkers", acknowledged)
	if s.State != schemas.ClipDone || s.Result.Labels["person"] == 0 || s.Result.Decode <= 0 || s.Result.Infer <= 0 {
		t.Errorf("%+v", s.Result)
	}
	if found := r.stored(t, "walkers"); len(found.Frames) != 4 || found.Sample != 2 || found.Model.Name != "hog" || found.Model.Engine == "" {
		t.Errorf("%+v", found.Detections)
	}
	if o, err := r.st.Head(t.Context(), "results", "walkers.jpg"); err != nil || o.Size < 1000 {
		t.Errorf("annotated frame %+v: %v", o, err)
	}
	for id, status := range map[string]string{"noise": schemas.StatusUndecodable, "unknown-model": schemas.StatusModel} {
		if s := r.await(t, id, ended); s.State != schemas.ClipDead || s.Result.Status != status {
			t.Errorf("%s: %+v", id, s.Result)
		}
	}
	if s := r.await(t, "cut", ended); s.Result.Status != schemas.StatusUndecodable && s.Result.Status != schemas.StatusOK {
		t.Errorf("cut: %+v", s.Result)
	}
	if s := r.await(t, "again", acknowledged); s.State != schemas.ClipDone {
		t.Errorf("%+v", s.Result)
	}
	seen := bare(t, cfg)(data)
	want := schemas.Detections{SHA256: jobOf("again", data).Clip.SHA256, Model: seen.Model, Sample: seen.Sample, Frames: seen.Frames}
	if got := r.stored(t, "again"); got.Hash() != want.Hash() {
		t.Errorf("%+v in the lab, %+v without", got.Detections, want)
	}
	r.empty(t)
}

// The real thing is killed while clips flow, too; whatever process it had
// started ends with it.
func TestRealVisionKilled(t *testing.T) {
	data := film(t, 1, "320:180", "500k")
	program := visiontest.Program(t)
	const clips, kills = 10, 10
	r := killAtRandom(t, clips, kills, 0, 400*time.Millisecond, func(c *childConfig) {
		c.Real, c.Config.Program, c.Config.Model = true, program, "hog"
	}, func(r *rig, i int) { r.offer(t, fmt.Sprintf("c%d", i), data) })
	hashes := map[string]bool{}
	for i := range clips {
		hashes[r.stored(t, fmt.Sprintf("c%d", i)).Hash()] = true
	}
	if len(hashes) != 1 {
		t.Errorf("%d different results of equal clips", len(hashes))
	}
}

// BenchmarkOverhead is what a clip of 10.5 MB costs beside decoding and
// inference, over loopback.
func BenchmarkOverhead(b *testing.B) {
	r := newRig(b)
	data := film(b, 5, "1920:1080", "17M")
	b.Run("alone", func(b *testing.B) {
		// Eyes that only read: every stage of the detector, one after the other.
		cfg := r.config("alone")
		cfg.Prefetch = 64 << 20
		d := r.start(b, cfg, &fakeEyes{})
		measure(b, r, d, data, func() time.Duration { return 0 })
		d.cancel()
		<-d.ended
	})
	b.Run("with-vision", func(b *testing.B) {
		cfg := r.seeing(b, "seeing")
		cfg.Prefetch = 64 << 20
		look := bare(b, cfg)
		look(data)
		d := r.start(b, cfg, nil)
		measure(b, r, d, data, func() time.Duration {
			begun := time.Now()
			look(data)
			return time.Since(begun)
		})
		d.cancel()
		<-d.ended
	})
}

// measure has clips looked at one by one. It reports fetch, store, state and
// acknowledgement together (overhead), as if none of it overlapped decoding, and
// how much longer a clip took than bare does, which is measured in turn.
func measure(b *testing.B, r *rig, d *running, data []byte, bare func() time.Duration) {
	var over, more, fetch, store []time.Duration
	for b.Loop() {
		alone := bare()
		id := fmt.Sprintf("c%x", rand.Uint64())
		r.offer(b, id, data)
		s := r.await(b, id, acknowledged)
		t := s.Stamps
		over = append(over, t.Fetched.Sub(t.Taken)+t.Acknowledged.Sub(t.Inferred))
		more = append(more, t.Acknowledged.Sub(t.Taken)-alone)
		fetch = append(fetch, t.Fetched.Sub(t.Taken))
		store = append(store, t.Acknowledged.Sub(t.Inferred))
	}
	for name, values := range map[string][]time.Duration{"overhead": over, "more-than-bare": more, "taken-to-fetched": fetch, "inferred-to-acknowledged": store} {
		slices.Sort(values)
		b.ReportMetric(float64(values[len(values)/2])/1e6, name+"-p50-ms")
		b.ReportMetric(float64(values[len(values)*95/100])/1e6, name+"-p95-ms")
	}
	b.ReportMetric(float64(len(data))/1e6, "MB")
}
