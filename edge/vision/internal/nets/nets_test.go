package nets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/edge/vision/internal/nets/netstest"
	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

func TestSpecNamesAllFaults(t *testing.T) {
	_, err := ParseSpec([]byte(`{"kind":"resnet","classes":["a",""],"width":3,"height":9999,"fit":"tight","order":"yuv","mean":[0,0,999],"scale":[0,1,1],"threshold":2,"overlap":-1}`))
	for _, want := range []string{"kind", "classes[1]", "width", "height", "fit", "order", "mean", "scale", "threshold", "overlap"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	for _, text := range []string{``, `{}{}`, `{"clases":[]}`, `[]`, strings.Repeat(" ", MaxSpecBytes+1)} {
		if s, err := ParseSpec([]byte(text)); err == nil {
			t.Errorf("%.20q taken as %+v", text, s)
		}
	}
}

func TestFind(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	put := func(dir string, names ...string) {
		for _, n := range names {
			path := filepath.Join(dir, n)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(a, "one.onnx", "one.json", "half.cfg", "nanodet-g-416-coco.onnx")
	put(b, "one.onnx", "two/model.cfg", "two/model.weights", "two/model.names", "three.xml")
	dirs := []string{filepath.Join(a, "gone"), a, b}
	for name, want := range map[string]wire.Load{
		"one":     {Name: "one", Model: filepath.Join(a, "one.onnx"), Spec: filepath.Join(a, "one.json")},
		"two":     {Name: "two", Model: filepath.Join(b, "two/model.cfg"), Weights: filepath.Join(b, "two/model.weights"), Names: filepath.Join(b, "two/model.names")},
		"three":   {Name: "three", Model: filepath.Join(b, "three.xml")},
		"nanodet": {Name: "nanodet", Model: filepath.Join(a, "nanodet-g-416-coco.onnx")},
		"hog":     {Name: "hog", Kind: KindHOG},
	} {
		if got, err := Find(name, dirs); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
	}
	if _, err := Find("half", dirs); err == nil || !strings.Contains(err.Error(), "half.weights") {
		t.Errorf("%v does not say what is missing", err)
	}
	if _, err := Find("four", dirs); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), a) {
		t.Errorf("%v does not say where it looked", err)
	}
	for _, name := range []string{"../one", "", ".one", "a/b"} {
		if _, err := Find(name, dirs); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v, want that it is no name", name, err)
		}
	}
}

// The configurations that Darknet ships are read, with the sizes that its authors'
// weights have.
func TestDarknetsOwn(t *testing.T) {
	for name, want := range map[string]Darknet{
		"yolov3-tiny": {416, 416, 80, (35434956 - 20) / 4},
		"yolov3":      {608, 608, 80, (248007048 - 20) / 4},
		"yolov2-tiny": {416, 416, 80, (44948600 - 20) / 4},
		"yolov2-voc":  {416, 416, 20, 0},
	} {
		data, err := os.ReadFile("/usr/share/darknet/cfg/" + name + ".cfg")
		if err != nil {
			t.Fatalf("Debian's package darknet has it: %v", err)
		}
		got, err := ParseDarknet(data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want.Weights == 0 {
			want.Weights = got.Weights
		}
		if *got != want {
			t.Errorf("%s: %+v, want %+v", name, *got, want)
		}
	}
}

func TestDarknetFaults(t *testing.T) {
	good := netstest.DarknetCfg
	if _, err := ParseDarknet([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"[net]", "[convolutional]", "want [net]"},
		{"[net]", "", "below a [layer]"},
		{"width=64", "width=sixty", "want a number"},
		{"width=64", "width=100000", "want 16 to 1920"},
		{"channels=3", "channels=1", "want 3 to 3"},
		{"filters=21", "filters=20", "want 21"},
		{"mask=0,1,2", "mask=0,1,7", "want 0 to 2"},
		{"anchors=8,8, 16,16, 32,32", "anchors=8,8", "want 6"},
		{"stride=32", "stride=0", "want 1 to 64"},
		{"size=32", "size=99999", "want 1 to 64"},
		{"[yolo]", "[yolo9]", "no layer that is known"},
		{"[yolo]", "[softmax]", "detects nothing"},
		{"activation=linear", "activation=magic", "want one of"},
		{"[yolo]", "[route]\nlayers=-9\n[yolo]", "not before it"},
		{"[yolo]", "[shortcut]\nfrom=7\n[yolo]", "not before it"},
		{"[yolo]", "[upsample]\nstride=64\n[upsample]\nstride=64\n[upsample]\nstride=64\n[yolo]", "more than"},
		{"[yolo]", "[yolo\n", "want [layer]"},
	} {
		_, err := ParseDarknet([]byte(strings.Replace(good, c.old, c.new, 1)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v, want %q", c.new, c.old, err, c.want)
		}
	}
	net, err := ParseDarknet([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	whole := netstest.DarknetWeights(make([]float32, net.Weights))
	if err := net.CheckWeights(whole); err != nil {
		t.Error(err)
	}
	for _, data := range [][]byte{nil, whole[:len(whole)-4], append(bytes.Clone(whole), 0, 0, 0, 0), bytes.Repeat([]byte{0xff}, len(whole))} {
		if err := net.CheckWeights(data); err == nil {
			t.Errorf("%d bytes taken for weights", len(data))
		}
	}
}

func TestONNX(t *testing.T) {
	for _, c := range []struct {
		outputs [][]int64
		want    string // kind, or a part of the error
		classes int
	}{
		{[][]int64{{1, 25200, 85}}, KindYOLOv5, 80},
		{[][]int64{{1, 84, 8400}}, KindYOLOv8, 80},
		{[][]int64{{2704, 80}, {676, 80}, {2704, 44}, {676, 44}}, KindNanoDet, 80},
		{[][]int64{{1, 2704, 20}, {1, 2704, 32}}, KindNanoDet, 20},
		{[][]int64{{1, 1000}}, "no known kind", 0},
		{[][]int64{{1, 0, 0}}, "no known kind", 0},
		{nil, "0 outputs", 0},
	} {
		data := netstest.ONNX([]int64{1, 3, 416, 416}, c.outputs, []byte{})
		net, err := ParseONNX(data)
		var s Spec
		if err == nil {
			s, err = net.spec(Spec{})
		}
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: %v, want %q", c.outputs, err, c.want)
			}
			continue
		}
		if s.Kind != c.want || len(s.Classes) != c.classes || s.Width != 416 {
			t.Errorf("%v: %s with %d classes, want %s with %d", c.outputs, s.Kind, len(s.Classes), c.want, c.classes)
		}
	}
	good := netstest.ONNX([]int64{1, 3, 64, 64}, [][]int64{{1, 10, 85}}, []byte{})
	for i := range good {
		// Never a panic, and never a network without its end.
		if net, err := ParseONNX(good[:i]); err == nil && len(net.Outputs) != 1 {
			t.Errorf("%d of %d bytes taken for a network without outputs", i, len(good))
		}
	}
	for _, in := range [][]int64{{3, 64, 64}, {1, 1, 64, 64}, {8, 3, 64, 64}} {
		net, err := ParseONNX(netstest.ONNX(in, [][]int64{{1, 10, 85}}, []byte{}))
		if err == nil {
			_, err = net.spec(Spec{})
		}
		if err == nil || !strings.Contains(err.Error(), "want 1 × 3") {
			t.Errorf("input %v: %v", in, err)
		}
	}
}

func TestReadChecksSpecAgainstFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	onnx := write("m.onnx", netstest.ONNX([]int64{1, 3, 64, 64}, [][]int64{{1, 10, 7}}, []byte{}))
	plain, err := Read(wire.Load{Name: "m", Model: onnx})
	if err != nil || plain.Spec.Kind != KindYOLOv5 || plain.Spec.Classes[1] != "class-1" || plain.Spec.Fit != FitLetterbox {
		t.Fatalf("%+v, %v", plain, err)
	}
	same, err := Read(wire.Load{Name: "m", Model: onnx, Spec: write("same.json", []byte(`{"kind":"yolov5","width":64}`))})
	if err != nil || same.SHA256 != plain.SHA256 {
		t.Errorf("a spec that says nothing new: %v, hash %s, want %s", err, same.SHA256, plain.SHA256)
	}
	named, err := Read(wire.Load{Name: "m", Model: onnx, Names: write("m.names", []byte("cat\ndog\n\n"))})
	if err != nil || named.SHA256 == plain.SHA256 || named.Spec.Classes[1] != "dog" {
		t.Errorf("names: %v, %+v", err, named)
	}
	for text, want := range map[string]string{
		`{"kind":"nanodet"}`:         "kind",
		`{"width":128}`:              "size",
		`{"classes":["a","b","c"]}`:  "classes",
		`{"fit":"inside"}`:           "fit",
		`{"threshold":7}`:            "threshold",
		`{"kind":"haar","width":32}`: "kind",
	} {
		if _, err := Read(wire.Load{Name: "m", Model: onnx, Spec: write("bad.json", []byte(text))}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for _, xml := range []string{"", "<a>", "<opencv_storage><cascade/></opencv_storage>", strings.Repeat("<a>", 100)} {
		if _, err := Read(wire.Load{Name: "x", Model: write("x.xml", []byte(xml))}); err == nil {
			t.Errorf("%.40q taken for a cascade", xml)
		}
	}
	if _, err := Read(wire.Load{Name: "x", Model: dir}); err == nil {
		t.Error("a directory taken for a model")
	}
}

func TestFill(t *testing.T) {
	s := Spec{Kind: KindYOLOv8, Width: 16, Height: 16}.complete()
	in := NewInput(s)
	dst := make([]float32, 3*16*16)
	pix := bytes.Repeat([]byte{255, 0, 51}, 16*8)
	at, err := in.Fill(wire.Frame{Width: 16, Height: 8, Pix: pix}, dst)
	if err != nil || at != (Placement{0, 4, 16, 8}) {
		t.Fatalf("%v, %v", at, err)
	}
	for _, c := range []struct {
		plane, y int
		want     float64
	}{{0, 0, 114. / 255}, {0, 4, 1}, {1, 4, 0}, {2, 11, 0.2}, {2, 12, 114. / 255}} {
		if got := dst[c.plane*256+c.y*16+15]; math.Abs(float64(got)-c.want) > 1e-6 {
			t.Errorf("plane %d, row %d: %g, want %g", c.plane, c.y, got, c.want)
		}
	}
	nano := Spec{Kind: KindNanoDet, Width: 16, Height: 16}.complete()
	if _, err := NewInput(nano).Fill(wire.Frame{Width: 16, Height: 8, Pix: pix}, dst); err == nil {
		t.Error("a picture of the wrong size stretched itself")
	}
	if _, err := NewInput(nano).Fill(wire.Frame{Width: 16, Height: 16, Pix: append(pix, pix...)}, dst); err != nil {
		t.Fatal(err)
	}
	if want := (51 - 103.53) / 57.3; math.Abs(float64(dst[0])-want) > 1e-5 {
		t.Errorf("the first plane is %g, want blue: %g", dst[0], want)
	}
}

func TestNanoDet(t *testing.T) {
	s := Spec{Kind: KindNanoDet, Width: 64, Height: 64, Classes: []string{"cat", "dog"}}.complete()
	cells := func(n, columns int) Tensor { return Tensor{Dims: []int{n, columns}, Data: make([]float32, n*columns)} }
	cls8, reg8, cls16, reg16 := cells(64, 2), cells(64, 44), cells(16, 2), cells(16, 44)
	// Cell (3, 2) of the grid of 8: centre 28, 20; all sides with all weight on bin 2: 16 pixels.
	cell := 2*8 + 3
	cls8.Data[cell*2+1] = 0.9
	cls8.Data[(cell+1)*2+1] = 0.8 // a neighbour that says nearly the same
	cls8.Data[(cell+1)*2] = 0.1
	for i := range 4 {
		reg8.Data[cell*44+i*11+2] = 100
		reg8.Data[(cell+1)*44+i*11+2] = 100
	}
	objects, err := Objects(s, []Tensor{cls8, cls16, reg8, reg16}, Placement{0, 0, 64, 64}, 0.5)
	want := wire.Object{Label: "dog", Score: 0.9, X: 12. / 64, Y: 4. / 64, W: 0.5, H: 0.5}
	want.X, want.Y = round(want.X), round(want.Y)
	if err != nil || len(objects) != 1 || objects[0] != want {
		t.Errorf("%+v, %v, want %+v", objects, err, want)
	}
	for _, bad := range [][]Tensor{nil, {cls8}, {cls8, reg8, cells(7, 2)}, {{Dims: []int{3}, Data: make([]float32, 3)}}, {{Dims: []int{64, 2}}}} {
		if _, err := Objects(s, bad, Placement{0, 0, 64, 64}, 0.5); err == nil {
			t.Errorf("%d outputs taken for grids", len(bad))
		}
	}
}

func TestNumbersThatAreNone(t *testing.T) {
	s := Spec{Kind: KindYOLOv5, Width: 64, Height: 64, Classes: []string{"cat"}}.complete()
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	rows := Tensor{Dims: []int{1, 5, 6}, Data: []float32{
		nan, 1, 10, 10, 1, 1,
		32, 32, inf, 10, 1, 1,
		32, 32, 10, 10, nan, 1,
		32, 32, 10, 10, 1, inf,
		32, 32, 16, 16, 0.9, 1,
	}}
	objects, err := Objects(s, []Tensor{rows}, Placement{0, 16, 64, 32}, 0.5)
	want := wire.Object{Label: "cat", Score: 0.9, X: 0.375, Y: 0.25, W: 0.25, H: 0.5}
	if err != nil || len(objects) != 1 || objects[0] != want {
		t.Errorf("%+v, %v, want %+v", objects, err, want)
	}
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"kind":"nanodet","classes":["a"],"width":416,"height":416,"fit":"stretch","order":"bgr","mean":[1,2,3],"scale":[1,1,1],"threshold":0.4,"overlap":0.5}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSpec(data)
		if err != nil {
			return
		}
		if len(canonical(s.complete())) == 0 {
			t.Errorf("%s cannot be written", data)
		}
	})
}

func FuzzDarknet(f *testing.F) {
	f.Add([]byte(netstest.DarknetCfg))
	for _, name := range []string{"yolov3-tiny", "yolov2-tiny"} {
		if data, err := os.ReadFile("/usr/share/darknet/cfg/" + name + ".cfg"); err == nil {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		net, err := ParseDarknet(data)
		if err == nil && (net.Weights < 0 || net.Classes < 1 || net.Width < minSide) {
			t.Errorf("%+v", net)
		}
	})
}

func FuzzONNX(f *testing.F) {
	f.Add(netstest.ONNX([]int64{1, 3, 64, 64}, [][]int64{{1, 10, 85}}, []byte{}))
	f.Add(netstest.ONNX([]int64{1, 3, 416, 416}, [][]int64{{2704, 80}, {2704, 44}}, []byte{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		net, err := ParseONNX(data)
		if err != nil {
			return
		}
		if s, err := net.spec(Spec{}); err == nil && (len(s.Classes) == 0 || len(s.Classes) > MaxClasses) {
			t.Errorf("%d classes", len(s.Classes))
		}
	})
}

// Whatever a network answers, the objects are within bounds.
func FuzzObjects(f *testing.F) {
	f.Add([]byte{0, 0, 128, 63, 0, 0, 128, 63}, uint8(0), uint8(6))
	f.Fuzz(func(t *testing.T, data []byte, kind, cols uint8) {
		if cols == 0 {
			return
		}
		var values []float32
		for len(data) >= 4 {
			values = append(values, math.Float32frombits(binary.LittleEndian.Uint32(data)))
			data = data[4:]
		}
		rows := len(values) / int(cols)
		s := Spec{Kind: Kinds()[int(kind)%4], Width: 32, Height: 32, Classes: []string{"a", "b"}}.complete()
		objects, err := Objects(s, []Tensor{{Dims: []int{rows, int(cols)}, Data: values[:rows*int(cols)]}}, Placement{0, 4, 32, 24}, 0.25)
		if err != nil {
			return
		}
		for _, o := range objects {
			for _, v := range []float64{o.Score, o.X, o.Y, o.W, o.H} {
				if !(v >= 0 && v <= 1) {
					t.Fatalf("%+v", o)
				}
			}
		}
	})
}
