package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Files get their names when all are complete; else none is there, and what was
// there before still is.
func TestWriteFiles(t *testing.T) {
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "a.csv"), filepath.Join(dir, "b.csv")}
	if err := os.WriteFile(paths[0], []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken off")
	names := func() string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, e.Name()+"="+string(data))
		}
		return strings.Join(all, " ")
	}
	err := writeFiles(paths, func(path string, w io.Writer) error {
		_, _ = io.WriteString(w, "half")
		if path == paths[1] {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || names() != "a.csv=before" {
		t.Errorf("%v, and there is %s, want only what was", err, names())
	}
	if err := writeFiles(paths, func(path string, w io.Writer) error {
		_, err := io.WriteString(w, filepath.Base(path))
		return err
	}); err != nil || names() != "a.csv=a.csv b.csv=b.csv" {
		t.Errorf("%v, and there is %s, want both", err, names())
	}
}

// What is asked for in the wrong way is said before any lab is started.
func TestSourceUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, e := range map[string]exportCmd{
		"want a directory: --format source-csv writes all_leechers_results.csv": {Format: sourceCSV, Out: "-"},
		"is a file, want a directory":                                           {Format: sourceCSV, Out: file},
		"--kind and --view":                                                     {Format: sourceCSV, Out: t.TempDir(), View: "events"},
	} {
		var exit *exitError
		if err := e.Run(t.Context(), &cli{}); !errors.As(err, &exit) || exit.code != exitUsage || !strings.Contains(exit.text, want) {
			t.Errorf("%+v: %v, want a usage error with %q", e, err, want)
		}
	}
}
