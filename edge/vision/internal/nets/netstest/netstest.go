// Package netstest makes small networks for tests, whose answers are known since they do
// not depend on the picture.
package netstest

import (
	"encoding/binary"
	"math"
)

// DarknetCfg is a network of 64 × 64 pixels with four cells of three boxes each, and
// two classes.
const DarknetCfg = `[net]
width=64
height=64
channels=3

# as many weights as 21 × 3 × 32 × 32 and a bias for each filter
[convolutional]
filters=21
size=32
stride=32
pad=0
activation=linear

[yolo]
mask=0,1,2
anchors=8,8, 16,16, 32,32
classes=2
num=3
`

// DarknetWeights is a weights file with these numbers.
func DarknetWeights(numbers []float32) []byte {
	data := binary.LittleEndian.AppendUint32(nil, 0)
	data = binary.LittleEndian.AppendUint32(data, 2)
	data = binary.LittleEndian.AppendUint32(data, 0)
	data = binary.LittleEndian.AppendUint64(data, 0)
	for _, v := range numbers {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return data
}

func field(n int, b []byte) []byte {
	data := binary.AppendUvarint(nil, uint64(n)<<3|2)
	data = binary.AppendUvarint(data, uint64(len(b)))
	return append(data, b...)
}

func number(n int, v int64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(n)<<3), uint64(v))
}

func value(name string, dims []int64) []byte {
	var shape []byte
	for _, d := range dims {
		shape = append(shape, field(1, number(1, d))...)
	}
	tensor := append(number(1, 1), field(2, shape)...)
	return append(field(1, []byte(name)), field(2, field(1, tensor))...)
}

// ONNX is a model with an input x of the shape in, and outputs out0, out1, … of these
// shapes; graph is further fields of its graph, such as Node makes. There is a node in any
// case.
func ONNX(in []int64, outputs [][]int64, graph []byte) []byte {
	g := append(field(11, value("x", in)), graph...)
	if len(graph) == 0 {
		g = append(g, Node("Identity", []string{"x"}, "out0")...)
	}
	for i, dims := range outputs {
		g = append(g, field(12, value("out"+string(rune('0'+i)), dims))...)
	}
	g = append(g, field(2, []byte("graph"))...)
	return append(append(number(1, 7), field(8, number(2, 11))...), field(7, g)...)
}

// Node is a field of a graph: an operator with attributes, such as Ints makes.
func Node(op string, inputs []string, output string, attributes ...[]byte) []byte {
	var n []byte
	for _, in := range inputs {
		n = append(n, field(1, []byte(in))...)
	}
	n = append(n, field(2, []byte(output))...)
	n = append(n, field(3, []byte(output+"_node"))...)
	n = append(n, field(4, []byte(op))...)
	for _, a := range attributes {
		n = append(n, field(5, a)...)
	}
	return field(1, n)
}

// Ints is an attribute of a node.
func Ints(name string, values ...int64) []byte {
	a := field(1, []byte(name))
	for _, v := range values {
		a = append(a, number(8, v)...)
	}
	return append(a, number(20, 7)...)
}

// Floats is a field of a graph: a constant of 32-bit numbers.
func Floats(name string, dims []int64, values []float32) []byte {
	var t, raw []byte
	for _, d := range dims {
		t = append(t, number(1, d)...)
	}
	t = append(t, number(2, 1)...)
	t = append(t, field(8, []byte(name))...)
	for _, v := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	return field(5, append(t, field(9, raw)...))
}

// Integers is a field of a graph: a constant of 64-bit integers.
func Integers(name string, values ...int64) []byte {
	t := number(1, int64(len(values)))
	t = append(t, number(2, 7)...)
	t = append(t, field(8, []byte(name))...)
	var raw []byte
	for _, v := range values {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
	}
	return field(5, append(t, field(9, raw)...))
}

// Constant is a model that answers every picture of side × side pixels with one output of
// this shape and these values: the picture is pooled to one pixel, taken times nothing, and
// the values are what is added.
func Constant(side int64, dims []int64, values []float32) []byte {
	n := int64(len(values))
	graph := Node("MaxPool", []string{"x"}, "pooled", Ints("kernel_shape", side, side), Ints("strides", side, side))
	graph = append(graph, Floats("w", []int64{n, 3, 1, 1}, make([]float32, 3*n))...)
	graph = append(graph, Floats("b", []int64{n}, values)...)
	graph = append(graph, Node("Conv", []string{"pooled", "w", "b"}, "flat", Ints("kernel_shape", 1, 1))...)
	graph = append(graph, Integers("shape", dims...)...)
	graph = append(graph, Node("Reshape", []string{"flat", "shape"}, "out0")...)
	return ONNX([]int64{1, 3, side, side}, [][]int64{dims}, graph)
}
