package model

import (
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// The parts of ONNX's protocol buffers that the converter writes. Numbers in
// append calls are those of onnx.proto.

const (
	onnxFloat = 1 // TensorProto.DataType
	onnxInt64 = 7

	onnxIRVersion = 7
	onnxOpset     = 11
)

type onnxModel struct {
	name            string
	nodes           []*onnxNode
	initializers    []onnxTensor
	inputs, outputs []onnxValue
}

type onnxNode struct {
	op              string
	inputs, outputs []string
	attributes      []onnxAttribute
}

// onnxAttribute has one of its values, told apart by kind: AttributeProto's type.
type onnxAttribute struct {
	name string
	kind uint64
	f    float32
	i    int
	s    string
	ints []int
}

func floatAttribute(name string, v float32) onnxAttribute {
	return onnxAttribute{name: name, kind: 1, f: v}
}

func intAttribute(name string, v int) onnxAttribute {
	return onnxAttribute{name: name, kind: 2, i: v}
}

func stringAttribute(name, v string) onnxAttribute {
	return onnxAttribute{name: name, kind: 3, s: v}
}

func intsAttribute(name string, v ...int) onnxAttribute {
	return onnxAttribute{name: name, kind: 7, ints: v}
}

// onnxTensor is a constant: raw is little endian.
type onnxTensor struct {
	name     string
	dataType uint64
	shape    []int
	raw      []byte
}

// onnxValue is an input or an output, always float32.
type onnxValue struct {
	name  string
	shape []int
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendMessage(b []byte, field protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
}

// marshal returns a ModelProto.
func (m *onnxModel) marshal() []byte {
	size := 0
	for _, t := range m.initializers {
		size += len(t.raw)
	}
	// The weights are nearly all of the file: growing by doubling would copy them often.
	graph := make([]byte, 0, size+256*(len(m.nodes)+len(m.initializers))+4096)
	for _, n := range m.nodes {
		graph = appendMessage(graph, 1, n.marshal())
	}
	graph = appendString(graph, 2, m.name)
	for _, t := range m.initializers {
		graph = appendMessage(graph, 5, t.marshal())
	}
	for _, v := range m.inputs {
		graph = appendMessage(graph, 11, v.marshal())
	}
	for _, v := range m.outputs {
		graph = appendMessage(graph, 12, v.marshal())
	}
	b := make([]byte, 0, len(graph)+64)
	b = appendVarint(b, 1, onnxIRVersion)
	b = appendString(b, 2, "transferlab")
	b = appendMessage(b, 7, graph)
	return appendMessage(b, 8, appendVarint(appendString(nil, 1, ""), 2, onnxOpset))
}

func (n *onnxNode) marshal() []byte {
	var b []byte
	for _, s := range n.inputs {
		b = appendString(b, 1, s)
	}
	for _, s := range n.outputs {
		b = appendString(b, 2, s)
	}
	b = appendString(b, 4, n.op)
	for _, a := range n.attributes {
		b = appendMessage(b, 5, a.marshal())
	}
	return b
}

func (a onnxAttribute) marshal() []byte {
	b := appendString(nil, 1, a.name)
	switch a.kind {
	case 1:
		b = protowire.AppendFixed32(protowire.AppendTag(b, 2, protowire.Fixed32Type), math.Float32bits(a.f))
	case 2:
		b = appendVarint(b, 3, uint64(a.i))
	case 3:
		b = appendString(b, 4, a.s)
	case 7:
		for _, v := range a.ints {
			b = appendVarint(b, 8, uint64(v))
		}
	}
	return appendVarint(b, 20, a.kind)
}

func (t onnxTensor) marshal() []byte {
	b := make([]byte, 0, len(t.raw)+len(t.name)+8*len(t.shape)+32)
	for _, d := range t.shape {
		b = appendVarint(b, 1, uint64(d))
	}
	b = appendVarint(b, 2, t.dataType)
	b = appendString(b, 8, t.name)
	return appendMessage(b, 9, t.raw)
}

func (v onnxValue) marshal() []byte {
	var shape []byte
	for _, d := range v.shape {
		shape = appendMessage(shape, 1, appendVarint(nil, 1, uint64(d)))
	}
	tensor := appendMessage(appendVarint(nil, 1, onnxFloat), 2, shape)
	return appendMessage(appendString(nil, 1, v.name), 2, appendMessage(nil, 1, tensor))
}

// floatTensor is a constant whose axes are put in another order: axis i of
// shape becomes axis perm[i].
func floatTensor(name string, values []float32, shape, perm []int) onnxTensor {
	held := make([]int, len(shape))
	for i, p := range perm {
		held[p] = shape[i]
	}
	stride := make([]int, len(shape)) // of axis i of shape in the result
	step := 1
	for p := len(held) - 1; p >= 0; p-- {
		stride[slices.Index(perm, p)] = step
		step *= held[p]
	}
	raw := make([]byte, 4*len(values))
	index := make([]int, len(shape))
	at := 0
	for _, v := range values {
		putFloat(raw[4*at:], v)
		for i := len(shape) - 1; i >= 0; i-- {
			index[i]++
			at += stride[i]
			if index[i] < shape[i] {
				break
			}
			at -= stride[i] * shape[i]
			index[i] = 0
		}
	}
	return onnxTensor{name: name, dataType: onnxFloat, shape: held, raw: raw}
}
