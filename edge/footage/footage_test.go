package footage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

func tiny() Spec {
	return Spec{Seed: 3, Clips: 3, Scenes: []string{"street", "cat", "empty"}, Length: time.Second, Width: 320, Height: 180, Rate: 10, Bits: 600_000}
}

func TestEqualSpecsMakeEqualClips(t *testing.T) {
	a, err := Make(t.Context(), t.TempDir(), tiny())
	if err != nil {
		t.Fatal(err)
	}
	other := tiny()
	other.Seed++
	dir := t.TempDir()
	b, err := Make(t.Context(), dir, tiny())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Make(t.Context(), dir, other)
	if err != nil {
		t.Fatal(err)
	}
	for i := range a {
		if a[i].SHA256 != b[i].SHA256 || a[i].SHA256 == c[i].SHA256 {
			t.Errorf("%s: %s, %s again, %s with another seed", a[i].Scene, a[i].SHA256, b[i].SHA256, c[i].SHA256)
		}
	}
}

func TestClipsAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	made, err := Make(t.Context(), dir, tiny())
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(made[1].Path)
	if err != nil {
		t.Fatal(err)
	}
	// One that is not whole is made again.
	if err := os.Truncate(made[0].Path, 100); err != nil {
		t.Fatal(err)
	}
	again, err := Make(t.Context(), dir, tiny())
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(made[1].Path)
	if err != nil {
		t.Fatal(err)
	}
	if !before.ModTime().Equal(after.ModTime()) {
		t.Error("a clip that was there was made again")
	}
	got, _ := json.Marshal(again)
	want, _ := json.Marshal(made)
	if !bytes.Equal(got, want) {
		t.Errorf("%s the second time, %s before", got, want)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 6 {
		t.Errorf("%v, %v: want three clips and their truths", entries, err)
	}
}

// The numbers are those of the clips that the benches move about.
func TestSize(t *testing.T) {
	for _, kind := range schemas.ClipTypes() {
		clips, err := Make(t.Context(), t.TempDir(), Spec{Scenes: []string{"empty"}, Length: 2 * time.Second, Width: 640, Height: 360, Bits: 4_000_000, Type: kind})
		if err != nil {
			t.Fatal(err)
		}
		if want := 1_000_000.; math.Abs(float64(clips[0].Size)-want) > 0.03*want {
			t.Errorf("%s: %d bytes, want %.0f ± 3 %%", kind, clips[0].Size, want)
		}
		out, err := exec.Command("ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "frame=pict_type", "-of", "csv=p=0", clips[0].Path).Output()
		if err != nil {
			t.Fatal(err)
		}
		kinds := strings.ReplaceAll(strings.ReplaceAll(string(out), ",", ""), "side_data", "")
		kinds = strings.ReplaceAll(kinds, "\n", "")
		if want := strings.Repeat("I"+strings.Repeat("P", 29), 2); kinds != want {
			t.Errorf("%s: frames %s, want %s", kind, kinds, want)
		}
	}
}

func TestDefaultIsTheCamerasClip(t *testing.T) {
	clips, err := Make(t.Context(), t.TempDir(), Spec{Scenes: []string{"street"}})
	if err != nil {
		t.Fatal(err)
	}
	if n := clips[0].Size; n < 10_185_000 || n > 10_815_000 {
		t.Errorf("%d bytes, want 10.5 MB ± 3 %%", n)
	}
	out, err := exec.Command("ffprobe", "-v", "error", "-show_entries", "stream=width,height,r_frame_rate,nb_read_frames", "-count_frames", "-of", "csv=p=0", clips[0].Path).Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != "1920,1080,30/1,150" {
		t.Errorf("%s, %v: want 150 frames of 1920 × 1080, 30 a second", got, err)
	}
}

// What is said of a picture's times is true of the clip's frames: the lawn is grey, the
// picture is not.
func TestTruthIsWhenPicturesAreThere(t *testing.T) {
	s := Spec{Seed: 5, Scenes: []string{"astronaut"}, Length: 2 * time.Second, Width: 320, Height: 180, Rate: 20, Bits: 1_000_000}
	clips, err := Make(t.Context(), t.TempDir(), s)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ffmpeg", "-nostdin", "-v", "error", "-i", clips[0].Path, "-vf",
		"signalstats,metadata=print:key=lavfi.signalstats.SATAVG:file=-", "-f", "null", "-").Output()
	if err != nil {
		t.Fatal(err)
	}
	truth, frames := clips[0].Truth[0], 0
	var at time.Duration
	for _, word := range strings.Fields(string(out)) {
		if text, ok := strings.CutPrefix(word, "pts_time:"); ok {
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			at = time.Duration(v * float64(time.Second))
		}
		if text, ok := strings.CutPrefix(word, "lavfi.signalstats.SATAVG="); ok {
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			frames++
			if there := v > 5; there != (at >= truth.From && at < truth.To) {
				t.Errorf("at %s: saturation %g, truth %+v", at, v, truth)
			}
		}
	}
	if frames != 40 {
		t.Errorf("%d frames, want 40", frames)
	}
}

func TestMakeRefuses(t *testing.T) {
	_, err := Make(t.Context(), t.TempDir(), Spec{Clips: -1, Width: 3, Height: 65, Scenes: []string{"unicorn"}, Type: "video/avi", Rate: 1000, Bits: 1, Length: 1})
	for _, want := range []string{"clips", "width", "even", "unicorn", "video/avi", "rate", "bits", "length"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if err := source(darknet + "gone.jpg"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "darknet") {
		t.Errorf("%v does not say which package is missing", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := Make(ctx, dir, tiny()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v after the end of the context", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v left behind", entries, err)
	}
	broken := tiny()
	broken.FFmpeg = "false"
	if _, err := Make(t.Context(), dir, broken); err == nil {
		t.Error("a failing ffmpeg made clips")
	}
}

func TestScore(t *testing.T) {
	c := Clip{Length: 5 * time.Second, Truth: []Span{
		{Label: "dog", From: time.Second, To: 3 * time.Second},
		{Label: "car", From: time.Second, To: 3 * time.Second, Optional: true},
	}}
	frame := func(at time.Duration, labels ...string) schemas.Frame {
		f := schemas.Frame{At: at}
		for _, l := range labels {
			f.Objects = append(f.Objects, schemas.Object{Label: l})
		}
		return f
	}
	r := Score(c, []schemas.Frame{
		frame(0, "dog"), // false: it is not there yet
		frame(1*time.Second + 10*time.Millisecond), // too close to tell
		frame(1500*time.Millisecond, "dog", "dog"), // found, once
		frame(2*time.Second, "car"),                // missed; the car is there
		frame(4*time.Second, "cat", "car"),         // both false
	}, 50*time.Millisecond)
	if want := (Result{Frames: Counts{Found: 1, Missed: 1, False: 3}, Clip: Counts{Found: 1, False: 1}}); r != want {
		t.Errorf("%+v, want %+v", r, want)
	}
	if p, q := r.Frames.Precision(), r.Frames.Recall(); p != 0.25 || q != 0.5 {
		t.Errorf("precision %g, recall %g", p, q)
	}
	if (Counts{}).Precision() != 1 || (Counts{}).Recall() != 1 {
		t.Error("nothing of nothing is not all")
	}
}
