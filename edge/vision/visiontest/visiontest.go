// Package visiontest gives tests what package vision needs beside itself.
package visiontest

import (
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/edge/vision/internal/nets"
)

var program = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("TRANSFERLAB_VISION"); path != "" {
		return path, nil
	}
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("no source files here")
	}
	dir, err := os.MkdirTemp("", "transferlab-vision-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	built := filepath.Join(dir, "transferlab-vision")
	out, err := exec.Command("sh", filepath.Join(filepath.Dir(here), "..", "transferlab-vision", "build.sh"), built).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build transferlab-vision (OpenCV's packages come with `task opencv`): %w\n%s", err, out)
	}
	// One for every checkout, replaced as a whole: other packages' tests run it at the same
	// time, and it shall not pile up.
	sum := fnv.New64a()
	_, _ = io.WriteString(sum, here)
	path := filepath.Join(os.TempDir(), fmt.Sprintf("transferlab-vision-%x", sum.Sum64()))
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", err
	}
	path = filepath.Join(path, "transferlab-vision")
	return path, os.Rename(built, path)
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
