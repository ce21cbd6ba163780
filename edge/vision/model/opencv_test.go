//go:build opencv

package model

import (
	"bytes"
	"slices"
	"testing"

	"gocv.io/x/gocv"
)

// opencv returns the outputs of a model as OpenCV computes them.
func opencv(t *testing.T, onnx []byte, x value, names ...string) map[string]value {
	t.Helper()
	net, err := gocv.ReadNetFromONNXBytes(onnx)
	if err != nil || net.Empty() {
		t.Fatalf("OpenCV does not read the model: %v", err)
	}
	defer func() { _ = net.Close() }()
	raw := make([]byte, 4*len(x.data))
	for i, v := range x.data {
		putFloat(raw[4*i:], v)
	}
	blob, err := gocv.NewMatWithSizesFromBytes(x.shape, gocv.MatTypeCV32F, raw)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = blob.Close() }()
	net.SetInput(blob, "images")
	outputs := map[string]value{}
	for i, m := range net.ForwardLayers(names) {
		data, err := m.DataPtrFloat32()
		if err != nil {
			t.Fatal(err)
		}
		outputs[names[i]] = value{shape: m.Size(), data: slices.Clone(data)}
		_ = m.Close()
	}
	return outputs
}

func TestOpenCVComputesWhatTensorFlowDoes(t *testing.T) {
	onnx, err := Convert(testdata(t, "tiny.json"), bytes.NewReader(testdata(t, "tiny.bin")), tinyNames())
	if err != nil {
		t.Fatal(err)
	}
	most := compare(t, "tiny.tfjs.json", 1, opencv(t, onnx, input(1, 3, 16, 20), "one", "second", "third"))
	t.Logf("largest difference from TensorFlow.js %.1e", most)
}
