// Package visiontest gives tests what package vision needs beside itself.
package visiontest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/transferlab/transferlab/edge/vision/internal/nets"

	"github.com/transferlab/transferlab/edge/vision"
)

var program = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("TRANSFERLAB_VISION"); path != "" {
		return path, nil
	}
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("no source files here")
	}
	// One for every checkout, replaced as a whole: tests of other packages run it
	// at the same time. Go's build cache makes building it again cheap.
	dir, err := os.MkdirTemp("", "transferlab-vision-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "transferlab-vision")
	out, err := exec.Command("sh", filepath.Join(filepath.Dir(here), "..", "transferlab-vision", "build.sh"), path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build transferlab-vision (OpenCV's packages come with `task opencv`): %w\n%s", err, out)
	}
	return path, nil
})

// Program returns transferlab-vision: that of TRANSFERLAB_VISION, or one built here, once for
// all tests of the process.
func Program(t testing.TB) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Models returns the directories of models, and fails if nanodet is in none.
func Models(t testing.TB) []string {
	t.Helper()
	dirs := vision.ModelDirs()
	if _, err := nets.Find(nets.NameNanoDet, dirs); err != nil {
		t.Fatalf("%v: set TRANSFERLAB_MODELS to a directory that has it", err)
	}
	return dirs
}
