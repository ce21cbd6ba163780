package vision_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image/jpeg"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/footage"
	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/edge/vision/internal/nets/netstest"
	"github.com/transferlab/transferlab/edge/vision/visiontest"
	"github.com/transferlab/transferlab/schemas"
)

func detector(t testing.TB, o vision.Options) *vision.Detector {
	t.Helper()
	if o.Program == "" {
		o.Program = visiontest.Program(t)
	}
	if o.Dirs == nil {
		o.Dirs = visiontest.Models(t)
	}
	d, err := vision.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// clip makes a small clip; most tests look at the people in the street.
func clip(t testing.TB, scene, kind string) ([]byte, schemas.Clip) {
	t.Helper()
	clips, err := footage.Make(t.Context(), clipDir(), footage.Spec{
		Seed: 1, Scenes: []string{scene}, Length: 3 * time.Second, Width: 640, Height: 360, Rate: 10, Bits: 2_000_000, Type: kind,
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(clips[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	return data, schemas.Clip{ID: "clip", Type: kind, Size: int64(len(data)), SHA256: clips[0].SHA256}
}

// clipDir keeps clips from one run of the tests to the next.
func clipDir() string { return filepath.Join(os.TempDir(), "transferlab-footage") }

func clipOf(c footage.Clip) schemas.Clip {
	return schemas.Clip{ID: "clip", Type: c.Type, Size: c.Size, SHA256: c.SHA256}
}

// children are the processes that this one has started, by name.
func children(t testing.TB, name string) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		head, rest, _ := strings.Cut(string(data), " (")
		comm, rest, _ := strings.Cut(rest, ") ")
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) && strings.HasPrefix(name, comm) && fields[0] != "Z" {
			pid, err := strconv.Atoi(head)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestWhatIsThereIsSeen(t *testing.T) {
	clips, err := footage.Make(t.Context(), clipDir(), footage.Spec{Seed: 1, Clips: len(footage.Scenes()), Width: 640, Height: 360, Rate: 10, Bits: 2_000_000})
	if err != nil {
		t.Fatal(err)
	}
	d := detector(t, vision.Options{Sample: 2})
	var all footage.Result
	for _, c := range clips {
		data, err := os.ReadFile(c.Path)
		if err != nil {
			t.Fatal(err)
		}
		out, err := d.Detect(t.Context(), bytes.NewReader(data), schemas.Clip{Type: c.Type})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Frames) != 10 {
			t.Errorf("%s: %d frames in 5 s at 2 a second", c.Scene, len(out.Frames))
		}
		r := footage.Score(c, out.Frames, 50*time.Millisecond)
		t.Logf("%-9s frames %+v, clip %+v, seen %v", c.Scene, r.Frames, r.Clip, out.Labels)
		all.Frames.Add(r.Frames)
		all.Clip.Add(r.Clip)
	}
	t.Logf("labels in frames: precision %.3f, recall %.3f; in clips: precision %.3f, recall %.3f",
		all.Frames.Precision(), all.Frames.Recall(), all.Clip.Precision(), all.Clip.Recall())
	if all.Frames.Precision() < 0.85 || all.Frames.Recall() < 0.7 || all.Clip.Precision() < 0.8 || all.Clip.Recall() < 0.8 {
		t.Error("that is less than the model can do")
	}
}

// Whoever looks at a clip, in whatever container it came and with however many threads,
// sees the same.
func TestResultsAreEqual(t *testing.T) {
	mp4, meta := clip(t, "street", schemas.TypeMP4)
	remux := func(args ...string) []byte {
		cmd := exec.Command("ffmpeg", append(append([]string{"-v", "error", "-i", "pipe:0", "-c", "copy"}, args...), "pipe:1")...)
		cmd.Stdin = bytes.NewReader(mp4)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	file := filepath.Join(t.TempDir(), "index-at-end.mp4")
	cmd := exec.Command("ffmpeg", "-v", "error", "-i", "pipe:0", "-c", "copy", "-f", "mp4", file)
	cmd.Stdin = bytes.NewReader(mp4)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	plain, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	one, two := detector(t, vision.Options{Threads: 1, Nice: 1}), detector(t, vision.Options{Threads: 2})
	keys := detector(t, vision.Options{Keyframes: true})
	first := ""
	for _, c := range []struct {
		name string
		d    *vision.Detector
		data []byte
		kind string
	}{
		{"one thread", one, mp4, schemas.TypeMP4},
		{"two threads", two, mp4, schemas.TypeMP4},
		{"two threads again", two, mp4, schemas.TypeMP4},
		{"key frames", keys, mp4, schemas.TypeMP4},
		{"index at the end", one, plain, schemas.TypeMP4},
		{"MPEG-TS", one, remux("-f", "mpegts"), schemas.TypeMPEG},
		{"Matroska", one, remux("-f", "matroska"), schemas.TypeMKV},
		{"H.264", one, remux("-f", "h264"), schemas.TypeH264},
	} {
		out, err := c.d.Detect(t.Context(), bytes.NewReader(c.data), schemas.Clip{Type: c.kind})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := (&schemas.Detections{SHA256: meta.SHA256, Model: out.Model, Sample: out.Sample, Frames: out.Frames}).Hash()
		if first == "" {
			first = got
			if len(out.Frames) != 3 || out.Labels["person"] < 0.5 || out.Model.Engine == "" || len(out.Model.SHA256) != 64 || out.Model.Name != "nanodet" {
				t.Fatalf("%+v", out)
			}
			if out.Fetched.IsZero() || out.Decoded.Before(out.Fetched) || out.Inferred.Before(out.Decoded) || out.Decode <= 0 || out.Infer <= 0 {
				t.Errorf("fetched %s, decoded %s, inferred %s; decode %s, infer %s", out.Fetched, out.Decoded, out.Inferred, out.Decode, out.Infer)
			}
		}
		if got != first {
			text, _ := json.Marshal(out.Frames)
			t.Errorf("%s: another result: %s", c.name, text)
		}
	}
}

func TestBadClips(t *testing.T) {
	good, _ := clip(t, "street", schemas.TypeMP4)
	d := detector(t, vision.Options{})
	bad := vision.Status(vision.ErrUndecodable)
	for _, c := range []struct {
		name string
		data []byte
		clip schemas.Clip
		want string
	}{
		{"nothing", nil, schemas.Clip{Type: schemas.TypeMP4}, bad},
		{"no video", bytes.Repeat([]byte("no video at all "), 50_000), schemas.Clip{Type: schemas.TypeMP4}, bad},
		{"no stream", bytes.Repeat([]byte{0, 1, 2, 3}, 50_000), schemas.Clip{Type: schemas.TypeMPEG}, bad},
		{"no Matroska", good, schemas.Clip{Type: schemas.TypeMKV}, bad},
		{"no H.264", []byte("hello"), schemas.Clip{Type: schemas.TypeH264}, bad},
		{"a list of other files", []byte("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), schemas.Clip{Type: schemas.TypeMPEG}, bad},
		{"a type nobody knows", good, schemas.Clip{Type: "video/avi"}, bad},
		{"the head only", good[:1000], schemas.Clip{Type: schemas.TypeMP4}, bad},
		{"more than was said", good, schemas.Clip{Type: schemas.TypeMP4, Size: 1000}, bad},
		{"cut short", good[:len(good)*2/3], schemas.Clip{Type: schemas.TypeMP4}, schemas.StatusOK},
		{"whole", good, schemas.Clip{Type: schemas.TypeMP4}, schemas.StatusOK},
	} {
		r := bytes.NewReader(c.data)
		out, err := d.Detect(t.Context(), r, c.clip)
		if got := vision.Status(err); got != c.want {
			t.Errorf("%s: status %q, want %q: %v", c.name, got, c.want, err)
		}
		if c.want == bad && c.clip.Size == 0 && c.clip.Type != "video/avi" && r.Len() != 0 {
			t.Errorf("%s: %d bytes were not read", c.name, r.Len())
		}
		if err != nil && (len(err.Error()) > 500 || strings.Contains(err.Error(), "0x")) {
			t.Errorf("%s: a long or changing reason: %v", c.name, err)
		}
		if err == nil && len(out.Frames) == 0 {
			t.Errorf("%s: no frames", c.name)
		}
	}
	long := detector(t, vision.Options{MaxLength: time.Second})
	if _, err := long.Detect(t.Context(), bytes.NewReader(good), schemas.Clip{Type: schemas.TypeMP4}); !errors.Is(err, vision.ErrUndecodable) || !strings.Contains(err.Error(), "more than 1 frames") {
		t.Errorf("%v for a clip that is too long", err)
	}
	// Bytes that differ from the good ones here and there: any result, but no crash.
	for seed := range 5 {
		broken := bytes.Clone(good)
		for i := 3000 + 97*seed; i < len(broken); i += 4000 {
			broken[i] ^= byte(seed + 1)
		}
		if _, err := d.Detect(t.Context(), bytes.NewReader(broken), schemas.Clip{Type: schemas.TypeMP4}); err != nil && !errors.Is(err, vision.ErrUndecodable) {
			t.Errorf("%v for a clip with flipped bits", err)
		}
	}
	if n := len(children(t, "ffmpeg")); n != 0 {
		t.Errorf("%d ffmpeg left", n)
	}
}

func TestReaderThatFails(t *testing.T) {
	good, meta := clip(t, "street", schemas.TypeMP4)
	d := detector(t, vision.Options{})
	lost := errors.New("the link went down")
	_, err := d.Detect(t.Context(), io.MultiReader(bytes.NewReader(good[:len(good)/2]), failing{lost}), meta)
	if !errors.Is(err, lost) || vision.Status(err) != "" {
		t.Errorf("%v, status %q: want the reader's error, which is not the clip's fault", err, vision.Status(err))
	}
	// Neither is it if the decoder gave up before.
	_, err = d.Detect(t.Context(), io.MultiReader(strings.NewReader(strings.Repeat("no video ", 100_000)), failing{lost}), schemas.Clip{Type: schemas.TypeMKV})
	if !errors.Is(err, lost) || vision.Status(err) != "" {
		t.Errorf("%v, status %q", err, vision.Status(err))
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// slow gives half of a clip, then waits until it may go on.
func slow(ctx context.Context, data []byte) (r io.Reader, halfway, goOn chan struct{}) {
	halfway, goOn = make(chan struct{}), make(chan struct{})
	pr, pw := io.Pipe()
	context.AfterFunc(ctx, func() { pr.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, _ = pw.Write(data[:len(data)/2])
		close(halfway)
		select {
		case <-goOn:
			_, _ = pw.Write(data[len(data)/2:])
			_ = pw.Close()
		case <-ctx.Done():
		}
	}()
	return pr, halfway, goOn
}

func TestWorkerKilledInTheMiddle(t *testing.T) {
	good, meta := clip(t, "street", schemas.TypeMP4)
	d := detector(t, vision.Options{})
	for range 3 {
		r, halfway, goOn := slow(t.Context(), good)
		result := make(chan error, 1)
		go func() {
			_, err := d.Detect(t.Context(), r, meta)
			result <- err
		}()
		<-halfway
		workers := children(t, "transferlab-vision")
		if len(workers) != 1 {
			t.Fatalf("%d workers", len(workers))
		}
		if err := syscall.Kill(workers[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		close(goOn)
		if err := <-result; !errors.Is(err, vision.ErrCrashed) || vision.Status(err) != schemas.StatusCrashed || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%v, want that it crashed, and how", err)
		}
		if n := len(children(t, "ffmpeg")); n != 0 {
			t.Fatalf("%d ffmpeg left", n)
		}
	}
	if _, err := d.Detect(t.Context(), bytes.NewReader(good), meta); err != nil {
		t.Errorf("%v after crashes", err)
	}
	// One that dies while nobody needs it costs no clip.
	for _, pid := range children(t, "transferlab-vision") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for len(children(t, "transferlab-vision")) > 0 {
		runtime.Gosched()
	}
	if _, err := d.Detect(t.Context(), bytes.NewReader(good), meta); err != nil && !errors.Is(err, vision.ErrCrashed) {
		t.Errorf("%v after the death of an idle worker", err)
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	good, meta := clip(t, "street", schemas.TypeMP4)
	d := detector(t, vision.Options{})
	before := runtime.NumGoroutine()
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		r, halfway, _ := slow(ctx, good)
		result := make(chan error, 1)
		go func() {
			_, err := d.Detect(ctx, r, meta)
			result <- err
		}()
		<-halfway
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) || vision.Status(err) != "" {
			t.Fatalf("%v", err)
		}
		if n := len(children(t, "ffmpeg")); n != 0 {
			t.Errorf("%d ffmpeg left", n)
		}
	}
	// Closing ends a detection, and the worker.
	r, halfway, _ := slow(t.Context(), good)
	result := make(chan error, 1)
	go func() {
		_, err := d.Detect(t.Context(), r, meta)
		result <- err
	}()
	<-halfway
	closing := make(chan error, 1)
	go func() { closing <- d.Close() }()
	// Detect waits for the read that is under way.
	r.(*io.PipeReader).CloseWithError(io.ErrClosedPipe)
	if err := <-result; err == nil || vision.Status(err) != "" {
		t.Errorf("%v of a closed detector", err)
	}
	if err := <-closing; err != nil {
		t.Error(err)
	}
	if n := len(children(t, "transferlab-vision")) + len(children(t, "ffmpeg")); n != 0 {
		t.Errorf("%d processes left", n)
	}
	if _, err := d.Detect(t.Context(), bytes.NewReader(good), meta); err == nil {
		t.Error("a closed detector looks at clips")
	}
	for runtime.NumGoroutine() > before+2 {
		runtime.Gosched()
	}
}

func write(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestBadModels(t *testing.T) {
	good, meta := clip(t, "street", schemas.TypeMP4)
	dir := t.TempDir()
	whole, err := os.ReadFile(nanodet(t))
	if err != nil {
		t.Fatal(err)
	}
	row := []float32{32, 32, 16, 16, 0.9, 1}
	unknown := netstest.Node("Frobnicate", []string{"x"}, "out0")
	for name, data := range map[string][]byte{
		"empty.onnx":    {},
		"text.onnx":     []byte("no network"),
		"cut.onnx":      whole[:len(whole)/2],
		"flipped.onnx":  flip(whole),
		"operator.onnx": netstest.ONNX([]int64{1, 3, 64, 64}, [][]int64{{1, 10, 6}}, unknown),
		"no-kind.onnx":  netstest.ONNX([]int64{1, 3, 64, 64}, [][]int64{{1, 1000}}, nil),
		"lies.onnx":     netstest.ONNX([]int64{1, 3, 64, 64}, [][]int64{{1, 10, 6}}, nil), // its output is its input
		"classes.onnx":  netstest.Constant(64, []int64{1, 1, 6}, row),
		"classes.json":  []byte(`{"classes":["a","b"]}`),
		"text.xml":      []byte("<a/>"),
		"bad-json.onnx": netstest.Constant(64, []int64{1, 1, 6}, row),
		"bad-json.json": []byte(`{`),
		"half.cfg":      []byte(netstest.DarknetCfg),
		"short.cfg":     []byte(netstest.DarknetCfg),
		"short.weights": netstest.DarknetWeights(make([]float32, 10)),
		"layer.cfg":     []byte("[net]\nwidth=64\nheight=64\nchannels=3\n[lstm]\n"),
		"layer.weights": netstest.DarknetWeights(nil),
		"cascade.xml":   []byte("<?xml version=\"1.0\"?><opencv_storage><cascade><stages>x</stages><features/></cascade></opencv_storage>"),
		"stump.xml":     []byte("<?xml version=\"1.0\"?><opencv_storage><cascade type_id=\"opencv-cascade-classifier\"><stageType>BOOST</stageType><featureType>HAAR</featureType><height>24</height><width>24</width><stages><_><maxWeakCount>x</maxWeakCount></_></stages><features></features></cascade></opencv_storage>"),
	} {
		write(t, dir, name, data)
	}
	d := detector(t, vision.Options{Dirs: append([]string{dir}, visiontest.Models(t)...)})
	for _, name := range []string{
		"empty", "text", "cut", "flipped", "operator", "no-kind", "lies", "classes", "bad-json", "half", "short", "layer", "cascade", "stump", "not-there", "../etc",
	} {
		c := meta
		c.Detection.Model = name
		_, err := d.Detect(t.Context(), bytes.NewReader(good), c)
		t.Logf("%s: %v", name, err)
		if name == "../etc" {
			if err == nil {
				t.Error("a path taken for a name")
			}
			continue
		}
		if name == "operator" && !strings.Contains(err.Error(), "Can't create layer") {
			t.Errorf("%v does not say what OpenCV said", err)
		}
		if name == "flipped" && err == nil {
			continue // another network, if the bits were those of weights
		}
		if !errors.Is(err, vision.ErrModel) || vision.Status(err) != schemas.StatusModel {
			t.Errorf("%s: %v, want that the model is bad", name, err)
		}
	}
	if _, err := d.Detect(t.Context(), bytes.NewReader(good), meta); err != nil {
		t.Errorf("%v with a good model after the bad ones", err)
	}
	if _, err := detector(t, vision.Options{}).Detect(t.Context(), bytes.NewReader(good), schemas.Clip{Type: schemas.TypeMP4, Detection: schemas.Detection{Threshold: 1e-9, Sample: 60}}); err == nil {
		t.Error("thousands of objects a frame were taken")
	}
}

// flip changes bits all over a network, but not where its structure is.
func flip(data []byte) []byte {
	data = bytes.Clone(data)
	for i := 2000; i < len(data); i += 100_003 {
		data[i] ^= 0x55
	}
	return data
}

func nanodet(t testing.TB) string {
	t.Helper()
	for _, dir := range visiontest.Models(t) {
		for _, name := range []string{"nanodet.onnx", "nanodet/model.onnx", "nanodet-g-416-coco.onnx"} {
			if path := filepath.Join(dir, name); exists(path) {
				return path
			}
		}
	}
	t.Fatal("no file")
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// The real engine runs networks of every kind: small ones that always say the same.
func TestKindsOfModels(t *testing.T) {
	good, meta := clip(t, "street", schemas.TypeMP4)
	dir := t.TempDir()
	// Two boxes of one thing that overlap, another thing, and one that nobody believes in.
	write(t, dir, "five.onnx", netstest.Constant(64, []int64{1, 8, 7}, append([]float32{
		32, 32, 32, 32, 0.9, 0, 1,
		33, 32, 32, 32, 0.8, 0, 1,
		16, 32, 16, 16, 1, 0.75, 0,
		10, 10, 5, 5, 0.1, 1, 0,
	}, make([]float32, 28)...)))
	write(t, dir, "five.names", []byte("cat\ndog\n"))
	write(t, dir, "eight.onnx", netstest.Constant(64, []int64{1, 6, 8}, []float32{
		32, 33, 16, 10, 0, 0, 0, 0,
		32, 32, 32, 10, 0, 0, 0, 0,
		32, 32, 16, 5, 0, 0, 0, 0,
		32, 32, 16, 5, 0, 0, 0, 0,
		0, 0, 0.75, 0.1, 0, 0, 0, 0,
		0.9, 0.8, 0, 0, 0, 0, 0, 0,
	}))
	write(t, dir, "eight.json", []byte(`{"classes":["cat","dog"],"fit":"letterbox"}`))
	numbers := make([]float32, 21*3*32*32+21)
	for i := range 3 { // the biases: every box of every cell believes in nothing, but for the first
		numbers[i*7+4] = -20
	}
	numbers[4], numbers[5], numbers[6] = 20, -20, 20
	write(t, dir, "dark.cfg", []byte(netstest.DarknetCfg))
	write(t, dir, "dark.weights", netstest.DarknetWeights(numbers))
	write(t, dir, "dark.names", []byte("cat\ndog\n"))
	d := detector(t, vision.Options{Dirs: []string{dir}})
	for name, want := range map[string][]schemas.Object{
		// The picture has 64 × 36 pixels in the middle of the input.
		"five":  {{Label: "dog", Score: 0.9, Box: schemas.Box{X: 0.25, Y: 0.0556, W: 0.5, H: 0.8888}}, {Label: "cat", Score: 0.75, Box: schemas.Box{X: 0.125, Y: 0.2778, W: 0.25, H: 0.4444}}},
		"eight": {{Label: "dog", Score: 0.9, Box: schemas.Box{X: 0.25, Y: 0.0556, W: 0.5, H: 0.8888}}, {Label: "cat", Score: 0.75, Box: schemas.Box{X: 0.125, Y: 0.2778, W: 0.25, H: 0.4444}}},
		// In each of the four cells the first anchor, 8 × 8 pixels.
		"dark": {
			{Label: "dog", Score: 1, Box: schemas.Box{X: 0.1875, Y: 0.1875, W: 0.125, H: 0.125}},
			{Label: "dog", Score: 1, Box: schemas.Box{X: 0.1875, Y: 0.6875, W: 0.125, H: 0.125}},
			{Label: "dog", Score: 1, Box: schemas.Box{X: 0.6875, Y: 0.1875, W: 0.125, H: 0.125}},
			{Label: "dog", Score: 1, Box: schemas.Box{X: 0.6875, Y: 0.6875, W: 0.125, H: 0.125}},
		},
	} {
		c := meta
		c.Detection.Model = name
		out, err := d.Detect(t.Context(), bytes.NewReader(good), c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(out.Frames) != 3 || !slices.Equal(out.Frames[1].Objects, want) {
			t.Errorf("%s: %+v, want in every frame %+v", name, out.Frames, want)
		}
	}
}

// What OpenCV has of its own needs no files of ours.
func TestModelsOfTheEngine(t *testing.T) {
	d := detector(t, vision.Options{Dirs: []string{t.TempDir()}})
	if d.Model() != "hog" {
		t.Errorf("without files the model is %s", d.Model())
	}
	street, _ := clip(t, "street", schemas.TypeMP4)
	astronaut, _ := clip(t, "astronaut", schemas.TypeMP4)
	for _, c := range []struct {
		model, label string
		data         []byte
		hash         bool
	}{{"", "person", street, false}, {"haar-face", "face", astronaut, true}, {"haar-body", "", street, true}} {
		out, err := d.Detect(t.Context(), bytes.NewReader(c.data), schemas.Clip{Type: schemas.TypeMP4, Detection: schemas.Detection{Model: c.model, Sample: 2}})
		if err != nil {
			t.Errorf("%s: %v", c.model, err)
			continue
		}
		t.Logf("%s: %v, decode %s, infer %s for %d frames", out.Model.Name, out.Labels, out.Decode, out.Infer, len(out.Frames))
		if c.label != "" && out.Labels[c.label] < 0.5 || (out.Model.SHA256 != "") != c.hash {
			t.Errorf("%s: %+v saw %v, want a %s", c.model, out.Model, out.Labels, c.label)
		}
	}
}

func TestAnnotated(t *testing.T) {
	good, meta := clip(t, "street", schemas.TypeMP4)
	d := detector(t, vision.Options{})
	meta.Detection.Annotate = true
	out, err := d.Detect(t.Context(), bytes.NewReader(good), meta)
	if err != nil {
		t.Fatal(err)
	}
	img, err := jpeg.Decode(bytes.NewReader(out.Annotated))
	if err != nil || img.Bounds().Dx() != 640 || img.Bounds().Dy() != 360 {
		t.Fatalf("%v, %v: want a picture of the clip's size", err, img)
	}
	empty, _ := clip(t, "empty", schemas.TypeMP4)
	out, err = d.Detect(t.Context(), bytes.NewReader(empty), schemas.Clip{Type: schemas.TypeMP4, Detection: schemas.Detection{Annotate: true, Threshold: 0.6}})
	if err != nil || out.Annotated != nil || len(out.Labels) != 0 || len(out.Frames) != 3 {
		t.Errorf("%v: %d bytes of a picture of nothing, %v", err, len(out.Annotated), out.Labels)
	}
}

func TestSeveralAtATime(t *testing.T) {
	good, meta := clip(t, "street", schemas.TypeMP4)
	d := detector(t, vision.Options{Slots: 2, Threads: 1})
	var wg sync.WaitGroup
	hashes := make([]string, 6)
	for i := range hashes {
		wg.Go(func() {
			out, err := d.Detect(t.Context(), bytes.NewReader(good), meta)
			if err != nil {
				t.Error(err)
			}
			hashes[i] = (&schemas.Detections{Model: out.Model, Frames: out.Frames}).Hash()
		})
	}
	wg.Wait()
	if slices.ContainsFunc(hashes, func(h string) bool { return h != hashes[0] }) {
		t.Errorf("different results: %v", hashes)
	}
	if n := len(children(t, "transferlab-vision")); n < 1 || n > 2 {
		t.Errorf("%d workers, want at most 2", n)
	}
}

func TestWithoutOpenCV(t *testing.T) {
	program := filepath.Join(t.TempDir(), "transferlab-vision")
	cmd := exec.Command("go", "build", "-o", program, "./transferlab-vision")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := detector(t, vision.Options{Program: program})
	if err := d.Warm(t.Context()); err == nil || !strings.Contains(err.Error(), "task opencv") || vision.Status(err) != "" {
		t.Errorf("%v does not say what to do", err)
	}
}

// A clip is never in memory as a whole, nor does anything stay of those before.
func TestMemoryStaysFlat(t *testing.T) {
	good, meta := clip(t, "street", schemas.TypeMP4)
	d := detector(t, vision.Options{})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	look := func() {
		if _, err := d.Detect(t.Context(), bytes.NewReader(good), meta); err != nil {
			t.Fatal(err)
		}
	}
	look()
	before := heap()
	for range 10 {
		look()
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d bytes after one clip, %d after eleven", before, after)
	}
}
