package nets

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

// MaxModelBytes is the largest file of a model.
const MaxModelBytes = 1 << 30

// Model is a model whose files have been looked at.
type Model struct {
	Name string
	Spec Spec // complete
	// SHA256 identifies the files: of one file its own; empty if there are none. A spec or
	// names that say something else than the model alone would are part of it.
	SHA256 string
	// Data and Weights are the files' bytes: those that were looked at and hashed are
	// those that are run.
	Data, Weights []byte
	// Path of Data, for engines that read it themselves.
	Path string
}

// Read reads a model's files and reports what is wrong with them.
func Read(load wire.Load) (*Model, error) {
	m := &Model{Name: load.Name, Path: load.Model}
	if load.Kind == KindHOG {
		m.Spec = Spec{Kind: KindHOG}.complete()
		return m, nil
	}
	var given Spec
	if load.Spec != "" {
		data, err := read(load.Spec, MaxSpecBytes)
		if err != nil {
			return nil, err
		}
		if given, err = ParseSpec(data); err != nil {
			return nil, fmt.Errorf("%s: %w", load.Spec, err)
		}
	}
	if load.Names != "" && given.Classes == nil {
		data, err := read(load.Names, MaxSpecBytes)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); line != "" {
				given.Classes = append(given.Classes, line)
			}
		}
		if err := given.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", load.Names, err)
		}
	}
	var err error
	if m.Data, err = read(load.Model, MaxModelBytes); err != nil {
		return nil, err
	}
	hash := sha256.Sum256(m.Data)
	if load.Weights != "" {
		if m.Weights, err = read(load.Weights, MaxModelBytes); err != nil {
			return nil, err
		}
		weights := sha256.Sum256(m.Weights)
		hash = sha256.Sum256(append(hash[:], weights[:]...))
	}

	var plain Spec
	plain, err = inspect(load, m.Data, m.Weights, given)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", load.Model, err)
	}
	m.Spec, err = merge(plain, given)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", load.Model, err)
	}
	if said, alone := canonical(m.Spec), canonical(plain.complete()); !bytes.Equal(said, alone) {
		hash = sha256.Sum256(append(hash[:], said...))
	}
	m.SHA256 = hex.EncodeToString(hash[:])
	return m, nil
}

func canonical(s Spec) []byte {
	data, err := json.Marshal(s)
	if err != nil {
		// Validate has refused what is no number.
		return nil
	}
	return data
}

// inspect finds out what a model's files say of themselves.
func inspect(load wire.Load, data, weights []byte, given Spec) (Spec, error) {
	switch filepath.Ext(load.Model) {
	case ".cfg":
		net, err := ParseDarknet(data)
		if err != nil {
			return Spec{}, err
		}
		if err := net.CheckWeights(weights); err != nil {
			return Spec{}, fmt.Errorf("%s: %w", filepath.Base(load.Weights), err)
		}
		return Spec{Kind: KindDarknet, Width: net.Width, Height: net.Height, Classes: classesFor(net.Classes)}, nil
	case ".xml":
		label := "object"
		if l, ok := map[string]string{NameHaarFace: "face", NameHaarBody: "person"}[load.Name]; ok {
			label = l
		}
		return Spec{Kind: KindHaar, Classes: []string{label}}, checkCascade(data)
	default:
		net, err := ParseONNX(data)
		if err != nil {
			return Spec{}, err
		}
		return net.spec(given)
	}
}

// merge lays what a spec says over what the files say. The kind's own comes last.
func merge(plain, given Spec) (Spec, error) {
	var errs []error
	if given.Kind != "" && given.Kind != plain.Kind {
		errs = append(errs, fmt.Errorf("kind: the spec says %s, the file is %s", given.Kind, plain.Kind))
	}
	if given.Width != 0 && plain.Width != 0 && given.Width != plain.Width && plain.Kind != KindHaar ||
		given.Height != 0 && plain.Height != 0 && given.Height != plain.Height && plain.Kind != KindHaar {
		errs = append(errs, fmt.Errorf("size: the spec says %d × %d, the file is for %d × %d", given.Width, given.Height, plain.Width, plain.Height))
	}
	if given.Classes != nil && len(given.Classes) != len(plain.Classes) {
		errs = append(errs, fmt.Errorf("classes: %d are named, the model has %d", len(given.Classes), len(plain.Classes)))
	}
	network := plain.Kind != KindHaar
	if given.Fit != "" && (given.Fit == FitInside) == network {
		errs = append(errs, fmt.Errorf("fit: %s is nothing for a model of kind %s", given.Fit, plain.Kind))
	}
	given.Kind = plain.Kind
	if given.Width == 0 || plain.Width != 0 {
		given.Width = plain.Width
	}
	if given.Height == 0 || plain.Height != 0 {
		given.Height = plain.Height
	}
	if given.Classes == nil {
		given.Classes = plain.Classes
	}
	s := given.complete()
	if s.Width < minSide || s.Height < minSide || s.Width > wire.MaxSide || s.Height > wire.MaxSide {
		errs = append(errs, fmt.Errorf("input of %d × %d pixels, want sides of %d to %d (the spec can say width and height if the file leaves them open)", s.Width, s.Height, minSide, wire.MaxSide))
	}
	return s, errors.Join(errs...)
}

// checkCascade refuses what OpenCV's reader of cascades would throw at: text that
// is no XML, or not that of a cascade.
func checkCascade(data []byte) error {
	const most = 16 << 20
	if len(data) > most {
		return fmt.Errorf("%d bytes, want at most %d", len(data), most)
	}
	d := xml.NewDecoder(bytes.NewReader(data))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	var path []string
	var seen []string
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		switch e := token.(type) {
		case xml.StartElement:
			if path = append(path, e.Name.Local); len(path) > 64 {
				return errors.New("elements nested more than 64 deep")
			}
			if len(path) <= 3 {
				seen = append(seen, strings.Join(path, "/"))
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		}
	}
	for _, want := range []string{"opencv_storage", "opencv_storage/cascade", "opencv_storage/cascade/stages", "opencv_storage/cascade/features"} {
		if !slices.Contains(seen, want) {
			return fmt.Errorf("no cascade of OpenCV: it has no element %s", want)
		}
	}
	return nil
}
