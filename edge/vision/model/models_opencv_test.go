//go:build models && opencv

package model

import (
	"math"
	"os"
	"slices"
	"testing"
)

// referenceEnv names the path of the model made by another converter, whose
// sum is the first of Accepted.
const referenceEnv = "TRANSFERLAB_REFERENCE_MODEL"

func nanodetOutputs() []string {
	return []string{"cls8", "reg8", "cls16", "reg16", "cls32", "reg32"}
}

func TestNanoDetInOpenCVComputesWhatTFJSDoes(t *testing.T) {
	most := compare(t, "nanodet.tfjs.json", 97, opencv(t, fetched(t), input(1, 3, 416, 416), nanodetOutputs()...))
	t.Logf("largest difference from TensorFlow.js %.1e", most)
}

func TestNanoDetInOpenCVComputesWhatTheReferenceDoes(t *testing.T) {
	reference, err := os.ReadFile(os.Getenv(referenceEnv))
	if err != nil {
		t.Fatalf("%s must be the path of the reference: %v", referenceEnv, err)
	}
	if sum := (Sum{SHA256: hexSum(reference), Size: int64(len(reference))}); !slices.Contains(Known()[0].Accepted, sum) {
		t.Fatalf("%s: %v is not the reference", referenceEnv, sum)
	}
	x := input(1, 3, 416, 416)
	got, want := opencv(t, fetched(t), x, nanodetOutputs()...), opencv(t, reference, x, nanodetOutputs()...)
	for _, name := range nanodetOutputs() {
		g, w := got[name], want[name]
		if !slices.Equal(g.shape, w.shape) {
			t.Fatalf("%s: shape %v, the reference's is %v", name, g.shape, w.shape)
		}
		most := 0.0
		for i := range w.data {
			most = max(most, math.Abs(float64(g.data[i]-w.data[i])))
		}
		if !(most <= 1e-4) {
			t.Errorf("%s differs by %g", name, most)
		}
		t.Logf("%s: %d numbers, largest difference %.1e", name, len(w.data), most)
	}
}
