package nets

import (
	"fmt"
	"math"

	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

// Tensor is an output of a network.
type Tensor struct {
	Name string
	Dims []int
	Data []float32
}

// matrix is a tensor of rows, whatever dimensions of size 1 stand before them.
func (t *Tensor) matrix() (rows, cols int, err error) {
	dims := t.Dims
	for len(dims) > 2 && dims[0] == 1 {
		dims = dims[1:]
	}
	if len(dims) != 2 || dims[0] < 1 || dims[1] < 1 || len(t.Data) != dims[0]*dims[1] {
		return 0, 0, fmt.Errorf("output %s of shape %v with %d numbers, want rows", t.Name, t.Dims, len(t.Data))
	}
	return dims[0], dims[1], nil
}

// Objects reads a network's answer for a picture that lay where at says.
func Objects(s Spec, outputs []Tensor, at Placement, threshold float64) ([]wire.Object, error) {
	var found []candidate
	var err error
	switch s.Kind {
	case KindNanoDet:
		found, err = nanoDet(s, outputs, float32(threshold))
	case KindYOLOv5:
		found, err = yoloRows(s, outputs, float32(threshold))
	case KindYOLOv8:
		found, err = yoloColumns(s, outputs, float32(threshold))
	case KindDarknet:
		found, err = darknetRows(s, outputs, float32(threshold))
	default:
		err = fmt.Errorf("a model of kind %q has no outputs", s.Kind)
	}
	if err != nil {
		return nil, err
	}
	return finish(found, s, at), nil
}

// best is the class with the highest score.
func best(scores []float32) (int, float32) {
	class, top := 0, scores[0]
	for i, v := range scores[1:] {
		if v > top {
			class, top = i+1, v
		}
	}
	return class, top
}

// nanoDet reads grids: of each cell the scores of the classes, and for each side of the
// box its distance from the cell's centre as a distribution over bins of one
// stride each.
func nanoDet(s Spec, outputs []Tensor, threshold float32) ([]candidate, error) {
	classes := len(s.Classes)
	type grid struct{ scores, sides *Tensor }
	grids := map[int]*grid{}
	for i := range outputs {
		t := &outputs[i]
		rows, cols, err := t.matrix()
		if err != nil {
			return nil, err
		}
		g := grids[rows]
		if g == nil {
			g = &grid{}
			grids[rows] = g
		}
		if cols == classes && g.scores == nil {
			g.scores = t
		} else {
			g.sides = t
		}
	}
	var found []candidate
	matched := 0
	for _, stride := range []int{8, 16, 32, 64, 128} {
		across, down := (s.Width+stride-1)/stride, (s.Height+stride-1)/stride
		g := grids[across*down]
		if g == nil {
			continue
		}
		if g.scores == nil || g.sides == nil {
			return nil, fmt.Errorf("grid of %d × %d: want an output of %d classes and one of sides", across, down, classes)
		}
		matched++
		_, cols, _ := g.sides.matrix()
		if cols%4 != 0 {
			return nil, fmt.Errorf("output %s with %d columns, want a multiple of 4", g.sides.Name, cols)
		}
		bins := cols / 4
		for cell := range across * down {
			class, score := best(g.scores.Data[cell*classes:][:classes])
			if !(score >= threshold) {
				continue
			}
			var side [4]float64
			for i := range side {
				side[i] = expectation(g.sides.Data[cell*cols+i*bins:][:bins]) * float64(stride)
			}
			x, y := (float64(cell%across)+0.5)*float64(stride), (float64(cell/across)+0.5)*float64(stride)
			found = append(found, candidate{class, float64(score), x - side[0], y - side[1], x + side[2], y + side[3]})
		}
	}
	if matched == 0 || matched != len(grids) {
		return nil, fmt.Errorf("%d outputs that are no grids of an input of %d × %d", len(outputs), s.Width, s.Height)
	}
	return found, nil
}

// expectation of the distribution whose logarithms these are.
func expectation(logs []float32) float64 {
	top := float64(logs[0])
	for _, v := range logs[1:] {
		top = max(top, float64(v))
	}
	var sum, weighted float64
	for i, v := range logs {
		e := math.Exp(float64(v) - top)
		sum += e
		weighted += e * float64(i)
	}
	return weighted / sum
}

func yoloRows(s Spec, outputs []Tensor, threshold float32) ([]candidate, error) {
	var found []candidate
	for i := range outputs {
		rows, cols, err := outputs[i].matrix()
		if err != nil {
			return nil, err
		}
		if cols != 5+len(s.Classes) {
			return nil, fmt.Errorf("output %s with %d columns, want 5 and %d classes", outputs[i].Name, cols, len(s.Classes))
		}
		for r := range rows {
			row := outputs[i].Data[r*cols:][:cols]
			if !(row[4] >= threshold) {
				continue
			}
			class, score := best(row[5:])
			if score *= row[4]; score >= threshold {
				found = append(found, centred(class, score, row[0], row[1], row[2], row[3], 1, 1))
			}
		}
	}
	return found, nil
}

func yoloColumns(s Spec, outputs []Tensor, threshold float32) ([]candidate, error) {
	if len(outputs) != 1 {
		return nil, fmt.Errorf("%d outputs, want one", len(outputs))
	}
	t := &outputs[0]
	rows, cells, err := t.matrix()
	if err != nil {
		return nil, err
	}
	if rows != 4+len(s.Classes) {
		return nil, fmt.Errorf("output %s with %d rows, want 4 and %d classes", t.Name, rows, len(s.Classes))
	}
	at := func(row, cell int) float32 { return t.Data[row*cells+cell] }
	var found []candidate
	for cell := range cells {
		class, score := 0, at(4, cell)
		for c := 1; c < len(s.Classes); c++ {
			if v := at(4+c, cell); v > score {
				class, score = c, v
			}
		}
		if score >= threshold {
			found = append(found, centred(class, score, at(0, cell), at(1, cell), at(2, cell), at(3, cell), 1, 1))
		}
	}
	return found, nil
}

// darknetRows reads what OpenCV makes of Darknet's layers: rows with boxes in shares of
// the input and scores that have the objectness in them.
func darknetRows(s Spec, outputs []Tensor, threshold float32) ([]candidate, error) {
	var found []candidate
	for i := range outputs {
		rows, cols, err := outputs[i].matrix()
		if err != nil {
			return nil, err
		}
		if cols != 5+len(s.Classes) {
			return nil, fmt.Errorf("output %s with %d columns, want 5 and %d classes", outputs[i].Name, cols, len(s.Classes))
		}
		for r := range rows {
			row := outputs[i].Data[r*cols:][:cols]
			if class, score := best(row[5:]); score >= threshold {
				found = append(found, centred(class, score, row[0], row[1], row[2], row[3], float64(s.Width), float64(s.Height)))
			}
		}
	}
	return found, nil
}

func centred(class int, score, x, y, w, h float32, sx, sy float64) candidate {
	cx, cy, hw, hh := float64(x)*sx, float64(y)*sy, float64(w)*sx/2, float64(h)*sy/2
	return candidate{class, float64(score), cx - hw, cy - hh, cx + hw, cy + hh}
}
