package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// A reader and an interpreter of ONNX, for what the converter writes. They know
// nothing of how it was written: they follow the standard.

type value struct {
	shape []int
	data  []float32
	ints  []int64
}

// fields calls f with each field of a message; v is a number, or raw a content.
func fields(b []byte, f func(field protowire.Number, v uint64, raw []byte) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var v uint64
		var raw []byte
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var w uint32
			w, n = protowire.ConsumeFixed32(b)
			v = uint64(w)
		case protowire.BytesType:
			raw, n = protowire.ConsumeBytes(b)
		default:
			return fmt.Errorf("field %d has kind %d", field, kind)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(field, v, raw); err != nil {
			return err
		}
	}
	return nil
}

func parseModel(b []byte) (*onnxModel, error) {
	m := &onnxModel{}
	err := fields(b, func(field protowire.Number, v uint64, raw []byte) error {
		switch field {
		case 1:
			if v != onnxIRVersion {
				return fmt.Errorf("IR version %d", v)
			}
		case 2:
		case 7:
			return m.parseGraph(raw)
		case 8:
			return fields(raw, func(field protowire.Number, v uint64, raw []byte) error {
				if field == 2 && v != onnxOpset || field == 1 && len(raw) > 0 {
					return fmt.Errorf("opset %d %q", v, raw)
				}
				return nil
			})
		default:
			return fmt.Errorf("model has a field %d", field)
		}
		return nil
	})
	return m, err
}

func (m *onnxModel) parseGraph(b []byte) error {
	return fields(b, func(field protowire.Number, _ uint64, raw []byte) error {
		switch field {
		case 1:
			n := &onnxNode{}
			m.nodes = append(m.nodes, n)
			return fields(raw, func(field protowire.Number, _ uint64, raw []byte) error {
				switch field {
				case 1:
					n.inputs = append(n.inputs, string(raw))
				case 2:
					n.outputs = append(n.outputs, string(raw))
				case 4:
					n.op = string(raw)
				case 5:
					return n.parseAttribute(raw)
				}
				return nil
			})
		case 5:
			t := onnxTensor{}
			err := fields(raw, func(field protowire.Number, v uint64, raw []byte) error {
				switch field {
				case 1:
					t.shape = append(t.shape, int(v))
				case 2:
					t.dataType = v
				case 8:
					t.name = string(raw)
				case 9:
					t.raw = raw
				}
				return nil
			})
			m.initializers = append(m.initializers, t)
			return err
		case 11, 12:
			v := onnxValue{}
			err := fields(raw, func(field protowire.Number, _ uint64, raw []byte) error {
				if field == 1 {
					v.name = string(raw)
					return nil
				}
				return fields(raw, func(_ protowire.Number, _ uint64, raw []byte) error { // tensor_type
					return fields(raw, func(field protowire.Number, kind uint64, raw []byte) error {
						if field == 1 {
							if kind != onnxFloat {
								return fmt.Errorf("%s has element type %d", v.name, kind)
							}
							return nil
						}
						return fields(raw, func(_ protowire.Number, _ uint64, raw []byte) error { // dim
							return fields(raw, func(_ protowire.Number, d uint64, _ []byte) error {
								v.shape = append(v.shape, int(d))
								return nil
							})
						})
					})
				})
			})
			if field == 11 {
				m.inputs = append(m.inputs, v)
			} else {
				m.outputs = append(m.outputs, v)
			}
			return err
		}
		return nil
	})
}

func (n *onnxNode) parseAttribute(b []byte) error {
	a := onnxAttribute{}
	err := fields(b, func(field protowire.Number, v uint64, raw []byte) error {
		switch field {
		case 1:
			a.name = string(raw)
		case 2:
			a.f = math.Float32frombits(uint32(v))
		case 3:
			a.i = int(v)
		case 4:
			a.s = string(raw)
		case 8:
			a.ints = append(a.ints, int(v))
		case 20:
			a.kind = v
		}
		return nil
	})
	n.attributes = append(n.attributes, a)
	return err
}

func (n *onnxNode) attribute(name string) onnxAttribute {
	for _, a := range n.attributes {
		if a.name == name {
			return a
		}
	}
	return onnxAttribute{}
}

// check fails if a name is used before, or defined more than once.
func (m *onnxModel) check() error {
	known := map[string]bool{}
	define := func(name string) error {
		if name == "" || known[name] {
			return fmt.Errorf("%q is empty or defined twice", name)
		}
		known[name] = true
		return nil
	}
	for _, v := range m.inputs {
		if err := define(v.name); err != nil {
			return err
		}
	}
	for _, t := range m.initializers {
		if err := define(t.name); err != nil {
			return err
		}
		n := 1
		for _, d := range t.shape {
			n *= d
		}
		if size := map[uint64]int{onnxFloat: 4, onnxInt64: 8}[t.dataType]; size*n != len(t.raw) {
			return fmt.Errorf("%s has %d bytes, shape %v", t.name, len(t.raw), t.shape)
		}
	}
	for _, n := range m.nodes {
		for _, name := range n.inputs {
			if !known[name] {
				return fmt.Errorf("%s uses %q before it is known", n.op, name)
			}
		}
		for _, name := range n.outputs {
			if err := define(name); err != nil {
				return err
			}
		}
	}
	for _, v := range m.outputs {
		if !known[v.name] {
			return fmt.Errorf("output %q is not computed", v.name)
		}
	}
	return nil
}

// run evaluates the model and returns its outputs.
func (m *onnxModel) run(t *testing.T, inputs map[string]value) map[string]value {
	t.Helper()
	values := inputs
	for _, k := range m.initializers {
		v := value{shape: k.shape}
		if k.dataType == onnxInt64 {
			for b := k.raw; len(b) > 0; b = b[8:] {
				v.ints = append(v.ints, int64(binary.LittleEndian.Uint64(b)))
			}
		} else {
			for b := k.raw; len(b) > 0; b = b[4:] {
				v.data = append(v.data, math.Float32frombits(binary.LittleEndian.Uint32(b)))
			}
		}
		values[k.name] = v
	}
	for _, n := range m.nodes {
		in := make([]value, len(n.inputs))
		for i, name := range n.inputs {
			in[i] = values[name]
		}
		for i, v := range evaluate(t, n, in) {
			values[n.outputs[i]] = v
		}
	}
	outputs := map[string]value{}
	for _, o := range m.outputs {
		v := values[o.name]
		if !slices.Equal(v.shape, o.shape) {
			t.Errorf("output %s has the shape %v, %v is declared", o.name, v.shape, o.shape)
		}
		outputs[o.name] = v
	}
	return outputs
}

func evaluate(t *testing.T, n *onnxNode, in []value) []value {
	t.Helper()
	x := in[0]
	each := func(f func(float32) float32) []value {
		y := value{shape: x.shape, data: make([]float32, len(x.data))}
		for i, v := range x.data {
			y.data[i] = f(v)
		}
		return []value{y}
	}
	switch n.op {
	case "Identity":
		return in
	case "LeakyRelu":
		alpha := n.attribute("alpha").f
		return each(func(v float32) float32 { return max(v, 0) + alpha*min(v, 0) })
	case "Sigmoid":
		return each(func(v float32) float32 { return float32(1 / (1 + math.Exp(-float64(v)))) })
	case "Conv":
		return []value{slide(n, x, in[1].shape[0], func(patch []int, o int) float32 {
			w := in[1]
			per := w.shape[2] * w.shape[3]
			sum := 0.0
			plane := x.shape[2] * x.shape[3]
			for c := range w.shape[1] {
				for k, at := range patch {
					if at >= 0 {
						sum += float64(x.data[c*plane+at]) * float64(w.data[(o*w.shape[1]+c)*per+k])
					}
				}
			}
			return float32(sum)
		})}
	case "MaxPool":
		return []value{slide(n, x, x.shape[1], func(patch []int, o int) float32 {
			most := float32(math.Inf(-1))
			for _, at := range patch {
				if at >= 0 {
					most = max(most, x.data[o*x.shape[2]*x.shape[3]+at])
				}
			}
			return most
		})}
	case "Add":
		b := in[1]
		return []value{generate(x.shape, func(i int, index []int) float32 {
			at := 0
			for a, d := range b.shape {
				at *= d
				if d > 1 {
					at += index[len(index)-len(b.shape)+a]
				}
			}
			return x.data[i] + b.data[at]
		})}
	case "Transpose":
		perm := n.attribute("perm").ints
		shape := make([]int, len(perm))
		for i, p := range perm {
			shape[i] = x.shape[p]
		}
		from := make([]int, len(perm))
		return []value{generate(shape, func(_ int, index []int) float32 {
			for i, p := range perm {
				from[p] = index[i]
			}
			return x.data[offset(x.shape, from)]
		})}
	case "Reshape":
		y := value{data: x.data}
		for _, d := range in[1].ints {
			y.shape = append(y.shape, int(d))
		}
		return []value{y}
	case "Concat":
		axis := n.attribute("axis").i
		shape := slices.Clone(x.shape)
		shape[axis] = 0
		for _, v := range in {
			shape[axis] += v.shape[axis]
		}
		return []value{generate(shape, func(_ int, index []int) float32 {
			at := slices.Clone(index)
			for _, v := range in {
				if at[axis] < v.shape[axis] {
					return v.data[offset(v.shape, at)]
				}
				at[axis] -= v.shape[axis]
			}
			return 0
		})}
	case "Split":
		axis, before := n.attribute("axis").i, 0
		var parts []value
		for _, size := range n.attribute("split").ints {
			shape := slices.Clone(x.shape)
			shape[axis] = size
			parts = append(parts, generate(shape, func(_ int, index []int) float32 {
				at := slices.Clone(index)
				at[axis] += before
				return x.data[offset(x.shape, at)]
			}))
			before += size
		}
		return parts
	case "Resize":
		if n.attribute("mode").s != "linear" || n.attribute("coordinate_transformation_mode").s != "half_pixel" {
			t.Fatalf("Resize %v", n.attributes)
		}
		scales := in[2].data
		shape := make([]int, 4)
		for i := range shape {
			shape[i] = int(float32(x.shape[i]) * scales[i])
		}
		// The two places along an axis between which a place lies, and how far.
		between := func(axis, i int) (int, int, float32) {
			at := (float64(i)+0.5)/float64(scales[axis]) - 0.5
			low := math.Floor(at)
			last := float64(x.shape[axis] - 1)
			return int(max(low, 0)), int(min(low+1, last)), float32(at - low)
		}
		return []value{generate(shape, func(_ int, index []int) float32 {
			y0, y1, fy := between(2, index[2])
			x0, x1, fx := between(3, index[3])
			pixel := func(y, xx int) float32 { return x.data[offset(x.shape, []int{index[0], index[1], y, xx})] }
			top := pixel(y0, x0)*(1-fx) + pixel(y0, x1)*fx
			bottom := pixel(y1, x0)*(1-fx) + pixel(y1, x1)*fx
			return top*(1-fy) + bottom*fy
		})}
	}
	t.Fatalf("the interpreter has no %s", n.op)
	return nil
}

func offset(shape, index []int) int {
	at := 0
	for i, d := range shape {
		at = at*d + index[i]
	}
	return at
}

func generate(shape []int, f func(i int, index []int) float32) value {
	n := 1
	for _, d := range shape {
		n *= d
	}
	v := value{shape: shape, data: make([]float32, n)}
	index := make([]int, len(shape))
	for i := range v.data {
		v.data[i] = f(i, index)
		for a := len(shape) - 1; a >= 0; a-- {
			if index[a]++; index[a] < shape[a] {
				break
			}
			index[a] = 0
		}
	}
	return v
}

// slide calls f for every place of a window and every output channel, with the
// offsets within a channel that the window covers, -1 for padding.
func slide(n *onnxNode, x value, channels int, f func(patch []int, channel int) float32) value {
	kernel, strides, dilations, pads := n.attribute("kernel_shape").ints, n.attribute("strides").ints, n.attribute("dilations").ints, n.attribute("pads").ints
	if dilations == nil {
		dilations = []int{1, 1}
	}
	if pads == nil {
		pads = []int{0, 0, 0, 0}
	}
	size := func(a int) int {
		return (x.shape[2+a]+pads[a]+pads[2+a]-(kernel[a]-1)*dilations[a]-1)/strides[a] + 1
	}
	y := value{shape: []int{1, channels, size(0), size(1)}}
	plane := y.shape[2] * y.shape[3]
	y.data = make([]float32, channels*plane)
	patch := make([]int, kernel[0]*kernel[1])
	for place := range plane {
		for k := range patch {
			row := place/y.shape[3]*strides[0] - pads[0] + k/kernel[1]*dilations[0]
			column := place%y.shape[3]*strides[1] - pads[1] + k%kernel[1]*dilations[1]
			patch[k] = -1
			if row >= 0 && row < x.shape[2] && column >= 0 && column < x.shape[3] {
				patch[k] = row*x.shape[3] + column
			}
		}
		for c := range channels {
			y.data[c*plane+place] = f(patch, c)
		}
	}
	return y
}
