package nets

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

// Kinds of models.
const (
	KindNanoDet = "nanodet" // ONNX: classes and box sides as distributions, on several grids
	KindYOLOv5  = "yolov5"  // ONNX: one output of rows: centre, size, objectness, classes
	KindYOLOv8  = "yolov8"  // ONNX: one output of columns: centre, size, classes
	KindDarknet = "darknet" // cfg and weights with yolo or region layers
	KindHOG     = "hog"     // OpenCV's people detector
	KindHaar    = "haar"    // a cascade of OpenCV
)

// Kinds lists them.
func Kinds() []string {
	return []string{KindNanoDet, KindYOLOv5, KindYOLOv8, KindDarknet, KindHOG, KindHaar}
}

// Ways of bringing a picture to a network's input.
const (
	FitStretch   = "stretch"   // to exactly the input, whatever its shape
	FitLetterbox = "letterbox" // into the middle of the input, grey around it
	FitInside    = "inside"    // no larger than the input, which has no fixed size
)

// Spec says what a network wants and means: the file model.json or NAME.json beside a
// model. What is left out is the kind's own.
type Spec struct {
	Kind    string   `json:"kind,omitempty"`
	Classes []string `json:"classes,omitempty"`
	// Width and Height of the input in pixels.
	Width  int    `json:"width,omitempty"`
	Height int    `json:"height,omitempty"`
	Fit    string `json:"fit,omitempty"`
	// Order of the colours: `bgr` or `rgb`.
	Order string `json:"order,omitempty"`
	// Mean is taken off each colour (0 to 255, in Order), the rest multiplied by
	// Scale.
	Mean  *[3]float64 `json:"mean,omitempty"`
	Scale *[3]float64 `json:"scale,omitempty"`
	// Threshold is the least score of an object if nobody says otherwise.
	Threshold float64 `json:"threshold,omitempty"`
	// Overlap (intersection over union) from which on the lower of two boxes of
	// one class is dropped.
	Overlap float64 `json:"overlap,omitempty"`
}

// Limits of a spec.
const (
	MaxSpecBytes = 256 << 10
	MaxClasses   = 10_000
	minSide      = 16
)

// ParseSpec reads a spec and reports all its faults.
func ParseSpec(data []byte) (Spec, error) {
	var s Spec
	if len(data) > MaxSpecBytes {
		return s, fmt.Errorf("%d bytes, want at most %d", len(data), MaxSpecBytes)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, err
	}
	if _, err := d.Token(); err != io.EOF {
		return s, errors.New("text after the end")
	}
	return s, s.Validate()
}

// Validate reports all faults of what is given.
func (s *Spec) Validate() error {
	var errs []error
	if s.Kind != "" && !slices.Contains(Kinds(), s.Kind) {
		errs = append(errs, fmt.Errorf("kind: %q, want one of %s", s.Kind, strings.Join(Kinds(), ", ")))
	}
	if len(s.Classes) > MaxClasses {
		errs = append(errs, fmt.Errorf("classes: %d, want at most %d", len(s.Classes), MaxClasses))
	} else {
		for i, c := range s.Classes {
			if c == "" || len(c) > wire.MaxLabel {
				errs = append(errs, fmt.Errorf("classes[%d]: %d bytes, want 1 to %d", i, len(c), wire.MaxLabel))
				break
			}
		}
	}
	for _, side := range []struct {
		name string
		n    int
	}{{"width", s.Width}, {"height", s.Height}} {
		if side.n != 0 && (side.n < minSide || side.n > wire.MaxSide) {
			errs = append(errs, fmt.Errorf("%s: %d, want %d to %d", side.name, side.n, minSide, wire.MaxSide))
		}
	}
	if !slices.Contains([]string{"", FitStretch, FitLetterbox, FitInside}, s.Fit) {
		errs = append(errs, fmt.Errorf("fit: %q, want %s or %s", s.Fit, FitStretch, FitLetterbox))
	}
	if s.Order != "" && s.Order != "bgr" && s.Order != "rgb" {
		errs = append(errs, fmt.Errorf("order: %q, want bgr or rgb", s.Order))
	}
	if s.Mean != nil {
		for _, v := range s.Mean {
			if !(math.Abs(v) <= 255) {
				errs = append(errs, fmt.Errorf("mean: %g, want -255 to 255", v))
			}
		}
	}
	if s.Scale != nil {
		for _, v := range s.Scale {
			if !(v > 0 && v <= 1000) {
				errs = append(errs, fmt.Errorf("scale: %g, want more than 0, at most 1000", v))
			}
		}
	}
	for _, share := range []struct {
		name string
		v    float64
	}{{"threshold", s.Threshold}, {"overlap", s.Overlap}} {
		if !(share.v >= 0 && share.v <= 1) {
			errs = append(errs, fmt.Errorf("%s: %g, want 0 to 1", share.name, share.v))
		}
	}
	return errors.Join(errs...)
}

// complete fills in what the kind has of its own.
func (s Spec) complete() Spec {
	own := Spec{Fit: FitLetterbox, Order: "rgb", Mean: &[3]float64{}, Scale: &[3]float64{1. / 255, 1. / 255, 1. / 255}, Threshold: 0.4, Overlap: 0.45}
	switch s.Kind {
	case KindNanoDet:
		own = Spec{
			Fit: FitStretch, Order: "bgr", Mean: &[3]float64{103.53, 116.28, 123.675}, Scale: &[3]float64{1 / 57.3, 1 / 57.3, 1 / 57.3},
			Threshold: 0.45, Overlap: 0.5,
		}
	case KindDarknet:
		own.Fit = FitStretch
	case KindHOG:
		own = Spec{Width: 800, Height: 800, Fit: FitInside, Order: "rgb", Threshold: 0.65, Overlap: 0.4, Classes: []string{"person"}}
	case KindHaar:
		own = Spec{Width: 800, Height: 800, Fit: FitInside, Order: "rgb", Threshold: 0.5, Overlap: 0.4}
	}
	set := func(n *int, to int) {
		if *n == 0 {
			*n = to
		}
	}
	set(&s.Width, own.Width)
	set(&s.Height, own.Height)
	if s.Fit == "" {
		s.Fit = own.Fit
	}
	if s.Order == "" {
		s.Order = own.Order
	}
	if s.Mean == nil {
		s.Mean = own.Mean
	}
	if s.Scale == nil {
		s.Scale = own.Scale
	}
	if s.Threshold == 0 {
		s.Threshold = own.Threshold
	}
	if s.Overlap == 0 {
		s.Overlap = own.Overlap
	}
	if s.Classes == nil {
		s.Classes = own.Classes
	}
	return s
}

// coco are the 80 classes of the COCO data set in the order that every detector
// trained on it has them.
func coco() []string {
	return strings.Split("person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,bird,cat,dog,horse,"+
		"sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,"+
		"skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"+
		"chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,"+
		"scissors,teddy bear,hair drier,toothbrush", ",")
}

// classesFor names n classes for which nobody has given names.
func classesFor(n int) []string {
	if n == 80 {
		return coco()
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("class-%d", i)
	}
	return names
}
