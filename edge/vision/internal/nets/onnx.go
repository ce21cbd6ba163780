package nets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// ONNX is what the outside of a network in ONNX's file format says.
type ONNX struct {
	Opset   int64
	Nodes   int
	Inputs  []Value // without constants
	Outputs []Value
}

// Value is an input or output of a network.
type Value struct {
	Name string
	Dims []int64 // 0 where the file leaves it open
}

const (
	maxONNXValues = 100_000
	maxONNXName   = 1024
)

var errTruncated = errors.New("cut short")

// ParseONNX reads the outside of a network. Only what is needed to refuse files that
// are not ONNX, or not whole, or networks that are no detector, is looked at.
func ParseONNX(data []byte) (*ONNX, error) {
	n := &ONNX{}
	var graph []byte
	graphs := 0
	err := fields(data, func(field int, v uint64, b []byte) error {
		switch {
		case field == 7 && b != nil:
			graph = b
			graphs++
		case field == 8 && b != nil:
			return fields(b, func(field int, v uint64, b []byte) error {
				if field == 2 && b == nil {
					n.Opset = max(n.Opset, int64(min(v, math.MaxInt32)))
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("not an ONNX file, or not whole: %w", err)
	}
	if graphs != 1 || n.Opset == 0 {
		return nil, errors.New("not an ONNX file: it has no graph or no set of operators")
	}
	constants := map[string]bool{}
	var inputs []Value
	values := 0
	err = fields(graph, func(field int, _ uint64, b []byte) error {
		if b == nil {
			return nil
		}
		if values++; values > maxONNXValues {
			return fmt.Errorf("more than %d nodes and values", maxONNXValues)
		}
		switch field {
		case 1:
			n.Nodes++
			return fields(b, func(int, uint64, []byte) error { return nil })
		case 5:
			name, err := initializer(b)
			constants[name] = true
			return err
		case 11, 12:
			v, err := value(b)
			if err != nil {
				return err
			}
			if field == 11 {
				inputs = append(inputs, v)
			} else {
				n.Outputs = append(n.Outputs, v)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("not an ONNX file, or not whole: %w", err)
	}
	for _, v := range inputs {
		if !constants[v.Name] {
			n.Inputs = append(n.Inputs, v)
		}
	}
	switch {
	case n.Nodes == 0:
		return nil, errors.New("a network without nodes")
	case len(n.Inputs) != 1:
		return nil, fmt.Errorf("%d inputs, want one picture", len(n.Inputs))
	case len(n.Outputs) == 0 || len(n.Outputs) > 64:
		return nil, fmt.Errorf("%d outputs, want 1 to 64", len(n.Outputs))
	}
	return n, nil
}

func initializer(b []byte) (string, error) {
	name, external := "", false
	err := fields(b, func(field int, v uint64, b []byte) error {
		switch {
		case field == 8 && b != nil:
			name = string(b[:min(len(b), maxONNXName)])
		case field == 14 && b == nil:
			external = v == 1
		}
		return nil
	})
	if err == nil && external {
		err = fmt.Errorf("the constant %q lies in another file: store the model as one file", name)
	}
	return name, err
}

func value(b []byte) (Value, error) {
	var v Value
	err := fields(b, func(field int, _ uint64, b []byte) error {
		if b == nil {
			return nil
		}
		switch field {
		case 1:
			v.Name = string(b[:min(len(b), maxONNXName)])
		case 2:
			return inner(b, 1, func(tensor []byte) error {
				return inner(tensor, 2, func(shape []byte) error {
					return inner(shape, 1, func(dim []byte) error {
						var size int64
						err := fields(dim, func(field int, n uint64, b []byte) error {
							if field == 1 && b == nil {
								size = int64(min(n, math.MaxInt32))
							}
							return nil
						})
						if v.Dims = append(v.Dims, size); len(v.Dims) > 8 {
							return errors.New("a value of more than 8 dimensions")
						}
						return err
					})
				})
			})
		}
		return nil
	})
	return v, err
}

func inner(b []byte, want int, f func([]byte) error) error {
	return fields(b, func(field int, _ uint64, b []byte) error {
		if field == want && b != nil {
			return f(b)
		}
		return nil
	})
}

// fields walks through a message in the encoding of protocol buffers. Fields that hold
// bytes have them (never nil), others the number.
func fields(b []byte, f func(field int, v uint64, b []byte) error) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 == 0 || tag>>3 > 1<<29 {
			return errTruncated
		}
		b = b[n:]
		var v uint64
		var bytes []byte
		switch tag & 7 {
		case 0:
			if v, n = binary.Uvarint(b); n <= 0 {
				return errTruncated
			}
		case 1:
			n = 8
		case 5:
			n = 4
		case 2:
			size, m := binary.Uvarint(b)
			if m <= 0 || size > uint64(len(b)-m) {
				return errTruncated
			}
			n = m + int(size)
			bytes = b[m:n:n]
		default:
			return errTruncated
		}
		if n > len(b) {
			return errTruncated
		}
		if err := f(int(tag>>3), v, bytes); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// spec says what kind of detector this is.
func (n *ONNX) spec(given Spec) (Spec, error) {
	in := n.Inputs[0].Dims
	if len(in) != 4 || in[0] > 1 || in[1] != 3 && in[1] != 0 {
		return Spec{}, fmt.Errorf("input %s of shape %s, want 1 × 3 × height × width", n.Inputs[0].Name, shape(in))
	}
	s := Spec{Height: int(in[2]), Width: int(in[3])}
	var shapes []string
	for _, o := range n.Outputs {
		shapes = append(shapes, o.Name+" "+shape(o.Dims))
	}
	last := func(v Value, back int) int64 {
		if len(v.Dims) < back {
			return 0
		}
		return v.Dims[len(v.Dims)-back]
	}
	classes := int64(0)
	switch {
	case len(n.Outputs) == 1 && len(n.Outputs[0].Dims) == 3:
		rows, cols := last(n.Outputs[0], 2), last(n.Outputs[0], 1)
		s.Kind = given.Kind
		if s.Kind == "" {
			// A grid has more cells than there are classes.
			if s.Kind = KindYOLOv5; rows != 0 && cols != 0 && rows < cols {
				s.Kind = KindYOLOv8
			}
		}
		switch s.Kind {
		case KindYOLOv5:
			classes = cols - 5
		case KindYOLOv8:
			classes = rows - 4
		}
		if classes < 0 && len(given.Classes) > 0 {
			classes = int64(len(given.Classes))
		}
	case len(n.Outputs) >= 2 && len(n.Outputs)%2 == 0:
		s.Kind = KindNanoDet
		// Each grid has two outputs with a row for each cell: scores of the classes and
		// distributions of the sides. Which is which shows in the columns: those of the
		// sides are four times a number of bins, and the names say so where that is not enough.
		var columns []int64
		for _, o := range n.Outputs {
			if c := last(o, 1); !slices.Contains(columns, c) {
				columns = append(columns, c)
			}
		}
		if len(columns) == 2 {
			classes = columns[0]
			if sides := columns[1]; sides%4 != 0 || strings.Contains(strings.ToLower(firstWith(n.Outputs, classes)), "reg") || strings.Contains(strings.ToLower(firstWith(n.Outputs, classes)), "dis") {
				classes = sides
			}
		}
	}
	if classes < 1 || classes > MaxClasses {
		return Spec{}, fmt.Errorf("outputs %s are those of no known kind of detector (%s, %s, %s)", strings.Join(shapes, ", "), KindNanoDet, KindYOLOv5, KindYOLOv8)
	}
	s.Classes = classesFor(int(classes))
	return s, nil
}

func firstWith(values []Value, columns int64) string {
	for _, v := range values {
		if len(v.Dims) > 0 && v.Dims[len(v.Dims)-1] == columns {
			return v.Name
		}
	}
	return ""
}

func shape(dims []int64) string {
	if len(dims) == 0 {
		return "of no known shape"
	}
	parts := make([]string, len(dims))
	for i, d := range dims {
		if parts[i] = fmt.Sprint(d); d == 0 {
			parts[i] = "?"
		}
	}
	return strings.Join(parts, " × ")
}
