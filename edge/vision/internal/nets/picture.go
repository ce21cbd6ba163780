package nets

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

// grey is what a letterbox has around the picture.
const grey = 114

// Placement is where a picture lies in a network's input, in pixels.
type Placement struct{ X, Y, W, H float64 }

// Input turns pictures into a network's input: three planes of 32-bit numbers.
type Input struct {
	spec  Spec
	table [3][256]float32 // by colour in the order of planes
}

// NewInput makes the conversion a complete spec asks for.
func NewInput(s Spec) *Input {
	in := &Input{spec: s}
	for c := range in.table {
		for v := range in.table[c] {
			in.table[c][v] = float32((float64(v) - s.Mean[c]) * s.Scale[c])
		}
	}
	return in
}

// Fill writes a picture into dst, which has 3 × height × width numbers.
func (in *Input) Fill(f wire.Frame, dst []float32) (Placement, error) {
	w, h := in.spec.Width, in.spec.Height
	plane := w * h
	if len(dst) != 3*plane || len(f.Pix) != 3*f.Width*f.Height {
		return Placement{}, errors.New("picture or input of the wrong size")
	}
	left, top := 0, 0
	if in.spec.Fit == FitLetterbox {
		left, top = (w-f.Width)/2, (h-f.Height)/2
	}
	if in.spec.Fit == FitStretch && (f.Width != w || f.Height != h) || f.Width > w || f.Height > h {
		return Placement{}, fmt.Errorf("picture of %d × %d for an input of %d × %d", f.Width, f.Height, w, h)
	}
	colours := [3]int{0, 1, 2}
	if in.spec.Order == "bgr" {
		colours = [3]int{2, 1, 0}
	}
	for p, c := range colours {
		table, out := &in.table[p], dst[p*plane:(p+1)*plane]
		if f.Width != w || f.Height != h {
			edge := table[grey]
			for i := range out {
				out[i] = edge
			}
		}
		for y := range f.Height {
			row := f.Pix[3*y*f.Width+c : 3*(y+1)*f.Width-2+c]
			to := out[(top+y)*w+left:][:f.Width]
			for x := range to {
				to[x] = table[row[3*x]]
			}
		}
	}
	return Placement{float64(left), float64(top), float64(f.Width), float64(f.Height)}, nil
}

// candidate is a box in pixels of the input.
type candidate struct {
	class          int
	score          float64
	x0, y0, x1, y1 float64
}

const maxCandidates = 3000

// finish drops boxes that others overlap and turns the rest into shares of the
// picture, best first, in an order and with a precision that do not depend on who computed
// them.
func finish(found []candidate, s Spec, at Placement) []wire.Object {
	found = slices.DeleteFunc(found, func(c candidate) bool {
		return !(c.score >= 0) || c.score > 1+1e-6 || !finite(c.x0) || !finite(c.y0) || !finite(c.x1) || !finite(c.y1) || c.class < 0 || c.class >= len(s.Classes)
	})
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.class, b.class), cmp.Compare(a.x0, b.x0), cmp.Compare(a.y0, b.y0))
	})
	found = found[:min(len(found), maxCandidates)]
	var kept []candidate
	for _, c := range found {
		if !slices.ContainsFunc(kept, func(k candidate) bool { return k.class == c.class && overlap(k, c) > s.Overlap }) {
			if kept = append(kept, c); len(kept) == wire.MaxObjects {
				break
			}
		}
	}
	objects := make([]wire.Object, 0, len(kept))
	for _, c := range kept {
		x0, x1 := share(c.x0, at.X, at.W), share(c.x1, at.X, at.W)
		y0, y1 := share(c.y0, at.Y, at.H), share(c.y1, at.Y, at.H)
		if x1 > x0 && y1 > y0 {
			objects = append(objects, wire.Object{
				Label: s.Classes[c.class], Score: round(min(c.score, 1)),
				X: x0, Y: y0, W: round(x1 - x0), H: round(y1 - y0),
			})
		}
	}
	slices.SortStableFunc(objects, func(a, b wire.Object) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Label, b.Label), cmp.Compare(a.X, b.X), cmp.Compare(a.Y, b.Y))
	})
	return objects
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func share(v, from, size float64) float64 { return round(min(max((v-from)/size, 0), 1)) }

// round to four decimals: what remains is the same wherever and with however many
// threads it was computed, unless it lay on an edge.
func round(v float64) float64 { return math.Round(v*1e4) / 1e4 }

func overlap(a, b candidate) float64 {
	w, h := min(a.x1, b.x1)-max(a.x0, b.x0), min(a.y1, b.y1)-max(a.y0, b.y0)
	if w <= 0 || h <= 0 {
		return 0
	}
	common := w * h
	return common / ((a.x1-a.x0)*(a.y1-a.y0) + (b.x1-b.x0)*(b.y1-b.y0) - common)
}

// Boxes turns what a detector of OpenCV's own found, in pixels of the picture, into
// objects. It is not dropped where it overlaps: these detectors have done that.
func Boxes(s Spec, width, height int, threshold float64, boxes [][4]float64, scores []float64) []wire.Object {
	var found []candidate
	for i, b := range boxes {
		if i < len(scores) && scores[i] >= threshold {
			found = append(found, candidate{0, scores[i], b[0], b[1], b[0] + b[2], b[1] + b[3]})
		}
	}
	return finish(found, s, Placement{0, 0, float64(width), float64(height)})
}
