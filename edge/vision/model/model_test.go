package model

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestKnown(t *testing.T) {
	isSum := func(s Sum) bool {
		b, err := hex.DecodeString(s.SHA256)
		return err == nil && len(b) == 32 && s.Size > 0
	}
	names := map[string]bool{}
	for _, s := range Known() {
		if names[s.Name] || s.Name == "" || s.License == "" || s.Source == "" || filepath.Base(s.File) != s.File {
			t.Errorf("%+v", s)
		}
		names[s.Name] = true
		for _, sum := range append(slices.Clone(s.Accepted), Sum{s.SHA256, s.Size}, s.npm.graph.Sum, s.npm.weights.Sum) {
			if !isSum(sum) {
				t.Errorf("%s: %v identifies nothing", s.Name, sum)
			}
		}
	}
	if !names["nanodet"] {
		t.Error("the default is not known")
	}
	Known()[0].Name = "changed"
	if Known()[0].Name == "changed" {
		t.Error("callers can change what is known")
	}
}

func TestFind(t *testing.T) {
	other := []byte("the same network, made elsewhere")
	good := []byte("the model")
	spec := Spec{
		Name: "m", File: "m.onnx", SHA256: hexSum(good), Size: int64(len(good)),
		Accepted: []Sum{{SHA256: hexSum(other), Size: int64(len(other))}},
	}
	folder := func(content []byte) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "m.onnx"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	missing := filepath.Join(t.TempDir(), "missing")
	asFolder := t.TempDir()
	if err := os.Mkdir(filepath.Join(asFolder, "m.onnx"), 0o700); err != nil {
		t.Fatal(err)
	}
	damaged, truncated := folder([]byte("The model")), folder(good[:3])
	for _, content := range [][]byte{good, other} {
		want := folder(content)
		got, err := find(t.Context(), spec, []string{missing, asFolder, damaged, truncated, want, folder(good)})
		if err != nil || got != filepath.Join(want, "m.onnx") {
			t.Errorf("found %s: %v", got, err)
		}
	}
	_, err := find(t.Context(), spec, []string{missing, asFolder, damaged, truncated})
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("error is %v", err)
	}
	for _, want := range []string{"task opencv", DirEnv, "m.onnx", missing, asFolder, damaged + "/m.onnx: its sha256", truncated + "/m.onnx: not a file of an accepted size"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %s: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "missing/m.onnx") {
		t.Errorf("a folder without the file is not a fault: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := find(ctx, spec, []string{folder(good)}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestUnknownNames(t *testing.T) {
	if _, err := Find(t.Context(), "yolo", nil); err == nil || !strings.Contains(err.Error(), "known: nanodet") {
		t.Errorf("error is %v", err)
	}
	if _, err := Fetch(t.Context(), "yolo", t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "known: nanodet") {
		t.Errorf("error is %v", err)
	}
}

func TestDirs(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", home)
	t.Setenv("HOME", home)
	t.Setenv(DirEnv, "")
	cache, err := CacheDir()
	if err != nil || !strings.HasPrefix(cache, home) || filepath.Base(cache) != "models" {
		t.Fatalf("%s: %v", cache, err)
	}
	if got := Dirs(); !slices.Equal(got, []string{cache}) {
		t.Errorf("folders %v", got)
	}
	t.Setenv(DirEnv, "/a"+string(filepath.ListSeparator)+string(filepath.ListSeparator)+"b")
	if got := Dirs(); !slices.Equal(got, []string{"/a", "b", cache}) {
		t.Errorf("folders %v", got)
	}
}
