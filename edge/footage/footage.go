// Package footage makes clips of which is known what is to be seen in them and when, by
// ffmpeg from pictures and a film that Debian ships: for tests and benchmarks of
// detection.
//
// A clip is either a piece of a film of people in a street, or a lawn that a camera pans
// over until a picture takes its place, and after a while the lawn that of the picture: so
// there are frames without an object, too. Which piece, when and which way are drawn by
// the seed: equal specs make equal clips with equal programs.
//
// The pictures are encoded as a surveillance camera would: constant bit rate (padded
// where the picture needs less), a key frame a second, no frames that refer to later
// ones. The container is MP4 in fragments unless asked otherwise: it can be written,
// sent and decoded as it comes, and one that breaks off loses its last second only; times
// are exact and the overhead is a thousandth, where a transport stream has three
// hundredths.
package footage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Spec says what clips to make. Zero values are those of a Raspberry Pi's camera: 5 s,
// 1920 × 1080, 30 frames and 16.8 Mbit a second, which is 10.5 MB.
type Spec struct {
	Seed   uint64
	Clips  int      // 0 is 1
	Scenes []string // clip i shows scene i, from the start again after the last; nil is all
	Length time.Duration
	Width  int
	Height int
	Rate   int   // frames a second
	Bits   int64 // a second, of the file
	Type   string
	FFmpeg string `json:"-"` // "" is that in PATH
}

func (s Spec) withDefaults() Spec {
	set := func(n *int, usual int) {
		if *n == 0 {
			*n = usual
		}
	}
	set(&s.Clips, 1)
	set(&s.Width, 1920)
	set(&s.Height, 1080)
	set(&s.Rate, 30)
	if s.Scenes == nil {
		s.Scenes = Scenes()
	}
	if s.Length == 0 {
		s.Length = 5 * time.Second
	}
	if s.Bits == 0 {
		s.Bits = 16_800_000
	}
	if s.Type == "" {
		s.Type = schemas.TypeMP4
	}
	if s.FFmpeg == "" {
		s.FFmpeg = "ffmpeg"
	}
	return s
}

// Validate reports every fault.
func (s *Spec) Validate() error {
	var errs []error
	bound := func(name string, n, from, to int64) {
		if n != 0 && (n < from || n > to) {
			errs = append(errs, fmt.Errorf("%s: %d, want 0 (the usual) or %d to %d", name, n, from, to))
		}
	}
	bound("clips", int64(s.Clips), 1, 10_000)
	bound("width", int64(s.Width), 64, 7680)
	bound("height", int64(s.Height), 64, 4320)
	bound("rate", int64(s.Rate), 1, 120)
	bound("bits", s.Bits, 10_000, 1_000_000_000)
	bound("length", int64(s.Length), int64(100*time.Millisecond), int64(time.Hour))
	if s.Width%2 != 0 || s.Height%2 != 0 {
		errs = append(errs, fmt.Errorf("size: %d × %d, want even numbers", s.Width, s.Height))
	}
	for _, name := range s.Scenes {
		if !slices.Contains(Scenes(), name) {
			errs = append(errs, fmt.Errorf("scenes: %q, want one of %s", name, strings.Join(Scenes(), ", ")))
		}
	}
	if s.Type != "" && muxer(s.Type) == nil {
		errs = append(errs, fmt.Errorf("type: %q, want one of %s", s.Type, strings.Join(schemas.ClipTypes(), ", ")))
	}
	return errors.Join(errs...)
}

// Clip is a clip that has been made.
type Clip struct {
	Path   string        `json:"-"`
	Scene  string        `json:"scene"`
	Type   string        `json:"type"`
	Size   int64         `json:"size_bytes"`
	SHA256 string        `json:"sha256"`
	Length time.Duration `json:"length_ns"`
	Truth  []Span        `json:"truth"`
}

// Span is a time in which something is to be seen.
type Span struct {
	Label string        `json:"label"`
	From  time.Duration `json:"from_ns"`
	To    time.Duration `json:"to_ns"`
	// Optional is what is there but need not be found: less than a two-hundredth
	// of the picture, or of a kind that is a matter of opinion.
	Optional bool `json:"optional,omitempty"`
}

const (
	film     = "/usr/share/doc/opencv-doc/examples/data/vtest.avi"
	filmEnds = 70 * time.Second
	darknet  = "/usr/share/darknet/data/"
	skimage  = "/usr/lib/python3/dist-packages/skimage/data/"
)

// scene is a picture and what can be seen in it.
type scene struct {
	name, file string
	labels     []string
	optional   []string
	// stretch it to the frame's shape: cutting it would take what is to be seen.
	stretch bool
}

func scenes() []scene {
	return []scene{
		{name: "street", file: film, labels: []string{"person"}, optional: []string{"car", "truck"}},
		{name: "dog", file: darknet + "dog.jpg", labels: []string{"dog", "bicycle"}, optional: []string{"car", "truck", "potted plant"}},
		{name: "person", file: darknet + "person.jpg", labels: []string{"person", "dog", "horse"}, optional: []string{"sheep", "cow"}},
		{name: "horses", file: darknet + "horses.jpg", labels: []string{"horse"}, optional: []string{"sheep", "cow"}},
		{name: "kite", file: darknet + "kite.jpg", optional: []string{"kite", "person", "bird", "surfboard"}},
		{name: "eagle", file: darknet + "eagle.jpg", labels: []string{"bird"}},
		{name: "giraffe", file: darknet + "giraffe.jpg", labels: []string{"giraffe", "zebra"}, stretch: true},
		{name: "astronaut", file: skimage + "astronaut.png", labels: []string{"person"}, stretch: true},
		{name: "cat", file: skimage + "chelsea.png", labels: []string{"cat"}},
		{name: "coffee", file: skimage + "coffee.png", labels: []string{"cup"}, optional: []string{"spoon", "dining table", "bowl"}},
		{name: "empty"},
	}
}

// Scenes lists what clips can show.
func Scenes() []string {
	var names []string
	for _, s := range scenes() {
		names = append(names, s.name)
	}
	return names
}

const lawn = skimage + "grass.png"

// source checks that a file is there, and says where it comes from if not.
func source(path string) error {
	_, err := os.Stat(path)
	if err == nil {
		return nil
	}
	pack := map[string]string{filepath.Dir(film) + "/": "opencv-doc", darknet: "darknet", skimage: "python3-skimage"}[filepath.Dir(path)+"/"]
	return fmt.Errorf("footage is made from what Debian's package %s ships: %w", pack, err)
}

// Make returns the clips of a spec, which are made in dir unless they are there already. Their
// truth lies beside each as JSON.
func Make(ctx context.Context, dir string, s Spec) ([]Clip, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("footage: %w", err)
	}
	s = s.withDefaults()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("footage: %w", err)
	}
	clips := make([]Clip, s.Clips)
	for i := range clips {
		var err error
		if clips[i], err = one(ctx, dir, s, i); err != nil {
			return nil, fmt.Errorf("footage: clip %d: %w", i, err)
		}
	}
	return clips, nil
}

// generation is part of the names of clips: raise it when the same spec makes other
// clips than before.
const generation = 3

func one(ctx context.Context, dir string, s Spec, i int) (Clip, error) {
	name := s.Scenes[i%len(s.Scenes)]
	s.Scenes, s.Clips = []string{name}, 0
	key, err := json.Marshal(struct {
		Generation, Index int
		Spec              Spec
	}{generation, i, s})
	if err != nil {
		return Clip{}, err
	}
	hash := sha256.Sum256(key)
	base := filepath.Join(dir, name+"-"+hex.EncodeToString(hash[:6]))
	clip := Clip{Path: base + muxer(s.Type).ext, Scene: name, Type: s.Type, Length: s.Length, Truth: []Span{}}
	if made, err := cached(base+".json", clip); err == nil {
		return made, nil
	}

	random := rand.New(rand.NewPCG(s.Seed, uint64(i)))
	k := slices.IndexFunc(scenes(), func(c scene) bool { return c.name == name })
	shot := scenes()[k]
	args := []string{"-nostdin", "-hide_banner", "-v", "error", "-y"}
	var input []string
	if shot.file == film {
		input, err = street(s, random)
		clip.Truth = append(clip.Truth, spans(shot, 0, s.Length)...)
	} else {
		from := time.Duration((0.15 + 0.2*random.Float64()) * float64(s.Length))
		to := time.Duration((0.65 + 0.2*random.Float64()) * float64(s.Length))
		input, err = picture(s, shot, from, to, random)
		clip.Truth = append(clip.Truth, spans(shot, from, to)...)
	}
	if err != nil {
		return Clip{}, err
	}
	tmp, err := os.CreateTemp(dir, ".making-*")
	if err != nil {
		return Clip{}, err
	}
	_ = tmp.Close()
	defer os.Remove(tmp.Name())
	args = append(append(args, input...), encoding(s)...)
	out, err := exec.CommandContext(ctx, s.FFmpeg, append(args, tmp.Name())...).CombinedOutput()
	if err != nil {
		if ctx.Err() != nil {
			return Clip{}, ctx.Err()
		}
		return Clip{}, fmt.Errorf("ffmpeg: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if clip.Size, clip.SHA256, err = digest(tmp.Name()); err != nil {
		return Clip{}, err
	}
	if err := os.Chmod(tmp.Name(), 0o644); err != nil {
		return Clip{}, err
	}
	if err := os.Rename(tmp.Name(), clip.Path); err != nil {
		return Clip{}, err
	}
	// After the clip, and as a whole: where the truth lies, so does the clip.
	data, err := json.MarshalIndent(clip, "", "  ")
	if err == nil {
		if err = os.WriteFile(tmp.Name(), append(data, '\n'), 0o644); err == nil {
			err = os.Rename(tmp.Name(), base+".json")
		}
	}
	return clip, err
}

func cached(truth string, want Clip) (Clip, error) {
	data, err := os.ReadFile(truth)
	if err != nil {
		return Clip{}, err
	}
	clip := Clip{}
	if err := json.Unmarshal(data, &clip); err != nil {
		return Clip{}, err
	}
	clip.Path = want.Path
	info, err := os.Stat(clip.Path)
	if err == nil && info.Size() != clip.Size {
		err = errors.New("not whole")
	}
	return clip, err
}

func digest(path string) (int64, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return n, hex.EncodeToString(h.Sum(nil)), err
}

func spans(s scene, from, to time.Duration) []Span {
	var all []Span
	for _, l := range s.labels {
		all = append(all, Span{Label: l, From: from, To: to})
	}
	for _, l := range s.optional {
		all = append(all, Span{Label: l, From: from, To: to, Optional: true})
	}
	return all
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.6f", d.Seconds()) }

// street is a piece of the film, which has the shape 4:3 and its sky cut off.
func street(s Spec, random *rand.Rand) ([]string, error) {
	start := time.Duration(random.Float64() * float64(max(filmEnds-s.Length, 0)))
	return []string{
		"-stream_loop", "-1", "-ss", seconds(start), "-i", film, "-t", seconds(s.Length),
		"-vf", fmt.Sprintf("crop=iw:iw*9/16:0:ih-oh-72,scale=%d:%d,fps=%d", s.Width, s.Height, s.Rate),
	}, source(film)
}

// picture is a lawn that the camera pans over, with a picture in its place for some time,
// over which it pans, too.
func picture(s Spec, shot scene, from, to time.Duration, random *rand.Rand) ([]string, error) {
	pan := func(path string, larger float64, stretch bool) ([]string, string) {
		w, h := 2*int(float64(s.Width)*larger/2), 2*int(float64(s.Height)*larger/2)
		way := [2]string{"t", "(" + seconds(s.Length) + "-t)"}
		fit := ":force_original_aspect_ratio=increase"
		if stretch {
			fit = ""
		}
		return []string{"-loop", "1", "-framerate", fmt.Sprint(s.Rate), "-i", path},
			fmt.Sprintf("scale=%d:%d%s,crop=%d:%d:x='(iw-ow)*%s/%s':y='(ih-oh)*%s/%s',format=yuv420p",
				w, h, fit, s.Width, s.Height, way[random.IntN(2)], seconds(s.Length), way[random.IntN(2)], seconds(s.Length))
	}
	// Where in the lawn, too: else all clips began with one of four frames.
	args, graph := pan(lawn, 1.2+0.4*random.Float64(), false)
	err := source(lawn)
	graph = "[0:v]" + graph
	if shot.file != "" {
		more, filter := pan(shot.file, 1.06, shot.stretch)
		args = append(args, more...)
		graph += fmt.Sprintf("[lawn];[1:v]%s[picture];[lawn][picture]overlay=enable='gte(t,%s)*lt(t,%s)'", filter, seconds(from), seconds(to))
		err = errors.Join(err, source(shot.file))
	}
	return append(args, "-t", seconds(s.Length), "-filter_complex", graph+"[out]", "-map", "[out]"), err
}

type format struct {
	ext  string
	args []string
	// share of the file that is the pictures'.
	share float64
}

func muxer(kind string) *format {
	switch kind {
	case schemas.TypeMP4:
		return &format{".mp4", []string{"-movflags", "+frag_keyframe+empty_moov+default_base_moof", "-f", "mp4"}, 1}
	case schemas.TypeMPEG:
		return &format{".ts", []string{"-f", "mpegts"}, 0.955}
	case schemas.TypeH264:
		return &format{".h264", []string{"-f", "h264"}, 1}
	case schemas.TypeMKV:
		return &format{".mkv", []string{"-f", "matroska"}, 1}
	}
	return nil
}

func encoding(s Spec) []string {
	m := muxer(s.Type)
	bits := int64(math.Round(float64(s.Bits) * m.share))
	rate, buffer := fmt.Sprint(bits), fmt.Sprint(bits*2/5)
	return append([]string{
		"-an", "-r", fmt.Sprint(s.Rate), "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "veryfast", "-bf", "0",
		"-g", fmt.Sprint(s.Rate), "-keyint_min", fmt.Sprint(s.Rate), "-sc_threshold", "0",
		"-b:v", rate, "-minrate", rate, "-maxrate", rate, "-bufsize", buffer, "-x264-params", "nal-hrd=cbr",
		// With more threads the encoder's rate control depends on which is faster.
		"-threads", "1", "-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact",
	}, m.args...)
}
