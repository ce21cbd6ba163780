package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// testdata is read as a test begins: a missing file is a failure, not a panic.
func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// input returns the numbers that testdata/tfjs.js gives to models: xorshift32,
// -2 to 2.
func input(shape ...int) value {
	s := uint32(2463534242)
	return generate(shape, func(int, []int) float32 {
		s ^= s << 13
		s ^= s >> 17
		s ^= s << 5
		return float32(float64(s>>8)/16777216*4 - 2)
	})
}

// compare fails unless every every-th number of the outputs is what TensorFlow.js
// has computed, and returns the largest difference.
func compare(t *testing.T, file string, every int, got map[string]value) float64 {
	t.Helper()
	var want map[string]struct {
		Shape  []int     `json:"shape"`
		Values []float64 `json:"values"`
	}
	if err := json.Unmarshal(testdata(t, file), &want); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%d outputs, want %d", len(got), len(want))
	}
	most := 0.0
	for name, w := range want {
		g := got[name]
		if !slices.Equal(g.shape, w.Shape) || len(w.Values) != (len(g.data)+every-1)/every {
			t.Errorf("%s: shape %v, %d numbers; want %v and %d of each %d", name, g.shape, len(g.data), w.Shape, len(w.Values), every)
			continue
		}
		for i, v := range w.Values {
			d := math.Abs(float64(g.data[i*every]) - v)
			if !(d <= 1e-4) {
				t.Errorf("%s[%d] is %g, want %g", name, i*every, g.data[i*every], v)
				break
			}
			most = max(most, d)
		}
	}
	return most
}

func tinyNames() []Name { return []Name{{"x", "images"}, {"first", "one"}} }

func TestConvertedComputesWhatTensorFlowDoes(t *testing.T) {
	onnx, err := Convert(testdata(t, "tiny.json"), bytes.NewReader(testdata(t, "tiny.bin")), tinyNames())
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseModel(onnx)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.check(); err != nil {
		t.Fatal(err)
	}
	if len(m.inputs) != 1 || m.inputs[0].name != "images" || !slices.Equal(m.inputs[0].shape, []int{1, 3, 16, 20}) {
		t.Errorf("inputs %v", m.inputs)
	}
	var outputs, ops []string
	for _, o := range m.outputs {
		outputs = append(outputs, o.name)
	}
	if got := strings.Join(outputs, " "); got != "one second third" {
		t.Errorf("outputs %s", got)
	}
	// Those that are left: before a Reshape of an NHWC tensor, where an NHWC tensor
	// meets an NCHW one (both ways), and before an output.
	for _, n := range m.nodes {
		if n.op == "Transpose" {
			ops = append(ops, n.op)
		}
	}
	if len(ops) != 4 {
		t.Errorf("%d transpositions", len(ops))
	}
	most := compare(t, "tiny.tfjs.json", 1, m.run(t, map[string]value{"images": input(1, 3, 16, 20)}))
	t.Logf("largest difference from TensorFlow.js %.1e", most)
}

func TestConvertIsDeterministic(t *testing.T) {
	graph, weights := testdata(t, "tiny.json"), testdata(t, "tiny.bin")
	first, err := Convert(graph, bytes.NewReader(weights), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := Convert(graph, bytes.NewReader(weights), nil)
		if err != nil || !bytes.Equal(first, again) {
			t.Fatalf("a second conversion differs: %v", err)
		}
	}
}

func TestConvertRefuses(t *testing.T) {
	graph, weights := string(testdata(t, "tiny.json")), testdata(t, "tiny.bin")
	b64 := map[string]string{"VALID": `"VkFMSUQ="`, "SAME": `"U0FNRQ=="`, "NHWC": `"TkhXQw=="`, "NCHW": `"TkNIVw=="`}
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown operation": {`"op":"Sigmoid"`, `"op":"Tanh"`, `node "sigmoid" (Tanh): this operation cannot be converted`},
		"long operation":    {`"op":"Sigmoid"`, `"op":"` + strings.Repeat("Q", 1e5) + `"`, `node "sigmoid" (QQQ`},
		"format":            {`"format":"graph-model"`, `"format":"layers-model"`, "layers-model"},
		"no nodes":          {`"node":[`, `"node":[],"other":[`, "no nodes"},
		"no outputs":        {`"outputs":`, `"results":`, "no outputs"},
		"null node":         {`"node":[`, `"node":[null,`, "without a name"},
		"node twice":        {`"node":[`, `"node":[{"name":"pad"},`, `"pad": defined twice`},
		"weight twice":      {`"weights":[`, `"weights":[{"name":"axis1","shape":[0],"dtype":"int32"},`, `"axis1": defined twice`},
		"cycle":             {`"op":"Pad","input":["x"`, `"op":"Pad","input":["leaky"`, "depends on itself"},
		"dangling":          {`"op":"Pad","input":["x"`, `"op":"Pad","input":["y"`, `there is no node "y"`},
		"no such output":    {`"parts:1"`, `"parts:2"`, `"parts" has no output 2`},
		"strange reference": {`"parts:1"`, `"parts:-1"`, "is not a node's output"},
		"inputs missing":    {`"op":"Pad","input":["x",`, `"op":"Pad","input":[`, `node "pad" (Pad): it has 1 inputs`},
		"padding":           {b64["VALID"], b64["SAME"], "padding: \"SAME\""},
		"layout":            {b64["NHWC"], b64["NCHW"], "data_format: \"NCHW\""},
		"alignment":         {`"align_corners":{"b":false}`, `"align_corners":{"b":true}`, "half_pixel_centers"},
		"strides":           {`"list":{"i":["1","2","2","1"]}`, `"list":{"i":["1","0","2","1"]}`, "strides"},
		"huge strides":      {`"list":{"i":["1","2","2","1"]}`, `"list":{"i":["1","2","99999999999999999999","1"]}`, "strides"},
		"placeholder shape": {`{"dim":[{"size":"1"},{"size":"3"},{"size":"16"}`, `{"dim":[{"size":"1"},{"size":"3"},{"size":"-1"}`, `node "x" (Placeholder): size "-1"`},
		"large placeholder": {`{"dim":[{"size":"1"},{"size":"3"},{"size":"16"},{"size":"20"}`, `{"dim":[{"size":"1"},{"size":"3"},{"size":"1000000"},{"size":"1000000"}`, `node "x" (Placeholder): shape`},
		"channels":          {`{"dim":[{"size":"1"},{"size":"3"}`, `{"dim":[{"size":"1"},{"size":"5"}`, "kernel is for 3 channels, the input has 5"},
		"signature":         {`{"dim":[{"size":"1"},{"size":"42"}`, `{"dim":[{"size":"1"},{"size":"43"}`, "the signature's shape is [1 43 20]"},
		"pad without conv":  {`"op":"Sigmoid","input":["wide/b"]`, `"op":"Sigmoid","input":["pad"]`, "only Conv2D and MaxPool may follow a Pad"},
		"pad by zeros":      {`"op":"PadV2","input":["leaky","by1","lowest"]`, `"op":"Pad","input":["leaky","by1"]`, `node "pool" (MaxPool): its input is padded`},
		"other shapes":      {`"input":["rows","leaky/t"]`, `"input":["pool","leaky/t"]`, "shapes do not fit"},
		"constant argument": {`"op":"LeakyRelu","input":["conv/t"]`, `"op":"LeakyRelu","input":["bias"]`, "constant"},
		"computed argument": {`"input":["x","by1"]`, `"input":["x","x"]`, "constant integers"},
		"quantized":         {`"dtype":"float16"`, `"dtype":"uint8"`, "float32 as uint8"},
		"huge weight":       {`"name":"conv/w","shape":[3,3,3,4]`, `"name":"conv/w","shape":[1048576,1048576,3,4]`, `weight "conv/w": shape`},
		"negative weight":   {`"name":"conv/w","shape":[3,3,3,4]`, `"name":"conv/w","shape":[-3,-3,3,4]`, `weight "conv/w": shape`},
		"long weight":       {`"name":"wide/w","shape":[3,2,4,8]`, `"name":"wide/w","shape":[30,2,4,80]`, "the weights end within it"},
		"short weight":      {`"name":"wide/w","shape":[3,2,4,8]`, `"name":"wide/w","shape":[3,2,4,7]`, "weights go on"},
		"weight missing":    {`"name":"wide/w","shape"`, `"name":"wide/v","shape"`, `node "wide/w" (Const): the manifest has no such weight`},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.ReplaceAll(graph, c.old, c.new)
			if changed == graph {
				t.Fatalf("the graph has no %s", c.old)
			}
			onnx, err := Convert([]byte(changed), bytes.NewReader(weights), tinyNames())
			if err == nil || onnx != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d bytes, error %v, want one with %q", len(onnx), err, c.want)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
	if _, err := Convert([]byte(graph), io.MultiReader(bytes.NewReader(weights), strings.NewReader("x")), nil); err == nil {
		t.Error("a byte after the last weight is accepted")
	}
	broken := errors.New("broken")
	if _, err := Convert([]byte(graph), io.MultiReader(bytes.NewReader(weights), errReader{broken}), nil); !errors.Is(err, broken) {
		t.Errorf("a reader that breaks gives %v", err)
	}
	if _, err := Convert(make([]byte, maxGraphBytes+1), nil, nil); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a graph that is too large gives %v", err)
	}
	for _, names := range [][]Name{{{"y", "images"}}, {{"pad", "images"}}, {{"x", "one"}, {"first", "one"}}, {{"first", ""}}} {
		if _, err := Convert([]byte(graph), bytes.NewReader(weights), names); err == nil {
			t.Errorf("names %v are accepted", names)
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestFloat16(t *testing.T) {
	for h, want := range map[uint16]float64{
		0: 0, 0x3c00: 1, 0xc000: -2, 0x3555: 0.333251953125, 0x7bff: 65504, 0x0001: math.Pow(2, -24),
		0x03ff: 1023 * math.Pow(2, -24), 0x0400: math.Pow(2, -14), 0x7c00: math.Inf(1), 0xfc00: math.Inf(-1),
	} {
		if got := float64(float16(h)); got != want {
			t.Errorf("%#04x is %g, want %g", h, got, want)
		}
	}
	if !math.IsNaN(float64(float16(0x7e00))) {
		t.Error("NaN is lost")
	}
	if got := float16(0x8000); got != 0 || !math.Signbit(float64(got)) {
		t.Error("-0 is lost")
	}
}

// FuzzConvert: whatever comes, there is an error, or a model in which every name is
// defined before it is used.
func FuzzConvert(f *testing.F) {
	graph, weights := testdata(f, "tiny.json"), testdata(f, "tiny.bin")
	f.Add(graph, weights)
	f.Add(bytes.ReplaceAll(graph, []byte(`"float16"`), []byte(`"float32"`)), weights[:100])
	f.Add([]byte(`{"format":"graph-model","signature":{"outputs":{"a":{}}},"modelTopology":{"node":[{"name":"a","op":"Identity","input":["a:0"]}]}}`), []byte{})
	f.Fuzz(func(t *testing.T, graph, weights []byte) {
		onnx, err := Convert(graph, bytes.NewReader(weights), nil)
		if err != nil {
			if onnx != nil || len(err.Error()) > 20_000 {
				t.Fatalf("%d bytes with an error of %d", len(onnx), len(err.Error()))
			}
			return
		}
		m, err := parseModel(onnx)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.check(); err != nil {
			t.Fatal(err)
		}
		if len(m.outputs) == 0 {
			t.Fatal("no outputs")
		}
	})
}
