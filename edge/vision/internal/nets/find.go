package nets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/transferlab/transferlab/edge/vision/internal/wire"
	"github.com/transferlab/transferlab/schemas"
)

// Names of models that need no file of the user's.
const (
	NameNanoDet  = "nanodet"
	NameHOG      = "hog"
	NameHaarFace = "haar-face"
	NameHaarBody = "haar-body"
	// nanoDetFile is what the file of NameNanoDet is called where it comes from.
	nanoDetFile = "nanodet-g-416-coco"
)

// cascades are where Debian's and others' opencv-data put the cascades.
func cascades() []string {
	return []string{"/usr/share/opencv4/haarcascades", "/usr/share/opencv/haarcascades", "/usr/local/share/opencv4/haarcascades", "/opt/homebrew/share/opencv4/haarcascades"}
}

// ErrNotFound says that no directory has a model.
var ErrNotFound = errors.New("no such model")

// Find returns where the files of a model are: in the first of the directories that has
//
//	NAME/       with model.onnx, or model.cfg and model.weights, or model.xml
//	NAME.onnx, or NAME.cfg and NAME.weights, or NAME.xml
//
// each with a spec (model.json, NAME.json) and names of classes, one a line
// (model.names, NAME.names), beside it if need be.
func Find(name string, dirs []string) (wire.Load, error) {
	if !schemas.ModelName(name) {
		return wire.Load{}, fmt.Errorf("model %q: want lower-case letters, digits, dots, hyphens and underscores, at most 64", name)
	}
	if name == NameHOG {
		return wire.Load{Name: name, Kind: KindHOG}, nil
	}
	stems := []string{name}
	if name == NameNanoDet {
		stems = append(stems, nanoDetFile)
	}
	for _, dir := range dirs {
		for _, stem := range stems {
			for _, base := range []string{filepath.Join(dir, stem, "model"), filepath.Join(dir, stem)} {
				load, err := filesOf(base)
				if errors.Is(err, ErrNotFound) {
					continue
				}
				load.Name = name
				return load, err
			}
		}
	}
	cascade := map[string]string{NameHaarFace: "haarcascade_frontalface_default.xml", NameHaarBody: "haarcascade_fullbody.xml"}[name]
	if cascade != "" {
		for _, dir := range cascades() {
			if path := filepath.Join(dir, cascade); isFile(path) {
				return wire.Load{Name: name, Kind: KindHaar, Model: path}, nil
			}
		}
		return wire.Load{}, fmt.Errorf("%w: %s (%s; Debian's opencv-data has it)", ErrNotFound, name, cascade)
	}
	where := "no directory of models is known"
	if len(dirs) > 0 {
		where = "looked in " + strings.Join(dirs, ", ")
	}
	return wire.Load{}, fmt.Errorf("%w: %s (%s)", ErrNotFound, name, where)
}

func filesOf(base string) (wire.Load, error) {
	var load wire.Load
	for _, ext := range []string{".onnx", ".cfg", ".xml"} {
		if isFile(base + ext) {
			load.Model = base + ext
			break
		}
	}
	if load.Model == "" {
		return load, ErrNotFound
	}
	for ext, to := range map[string]*string{".json": &load.Spec, ".names": &load.Names, ".weights": &load.Weights} {
		if isFile(base + ext) {
			*to = base + ext
		}
	}
	if strings.HasSuffix(load.Model, ".cfg") && load.Weights == "" {
		return load, fmt.Errorf("%s: there is no %s beside it", load.Model, filepath.Base(base)+".weights")
	}
	return load, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// read returns a file's bytes if they are not too many.
func read(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a file")}
	}
	if info.Size() > most {
		return nil, fmt.Errorf("%s: %d bytes, want at most %d", path, info.Size(), most)
	}
	data := make([]byte, info.Size())
	for n := 0; n < len(data); {
		m, err := f.Read(data[n:])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		n += m
	}
	return data, nil
}
