package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRunRefuses is about what ends before anything is fetched.
func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TRANSFERLAB_MODELS", dir)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("HOME", dir)
	t.Setenv("PATH", dir)
	t.Setenv("NPM_CONFIG_REGISTRY", "")
	t.Setenv("npm_config_registry", "")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"yolo"}, "known: nanodet"},
		{[]string{"--dir", dir, "yolo"}, "known: nanodet"},
		{[]string{"nanodet", "yolo"}, "one model at a time"},
		{[]string{"--folder", dir}, "not defined"},
		{nil, "NPM_CONFIG_REGISTRY"},
	} {
		var stdout, stderr bytes.Buffer
		err := run(t.Context(), c.args, &stdout, &stderr)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: error is %v, want one with %q", c.args, err, c.want)
		}
		if stdout.Len() > 0 {
			t.Errorf("%v: printed %s", c.args, stdout.String())
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "nanodet-g-416-coco.onnx")); err == nil {
		t.Error("there is a model")
	}
}
