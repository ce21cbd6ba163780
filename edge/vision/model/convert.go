package model

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Name says what an input or an output of a tfjs graph is called in the ONNX file.
type Name struct{ Graph, ONNX string }

// Convert makes an ONNX model of a tfjs graph model: graph is its JSON, weights
// the files of its manifest one after the other. The result is a serialised
// ModelProto of opset 11; inputs and outputs keep the shapes of the graph's signature.
//
// Names give inputs and outputs other names; outputs come in the order of names,
// those that are not named keep theirs and follow in alphabetical order.
//
// What cannot be converted exactly is an error. A result that is nil never comes
// without one.
func Convert(graph []byte, weights io.Reader, names []Name) ([]byte, error) {
	g, err := parseGraph(graph)
	if err != nil {
		return nil, err
	}
	constants, err := readWeights(g, weights)
	if err != nil {
		return nil, err
	}
	c := &converter{
		constants: constants,
		nodes:     map[string]*graphNode{},
		done:      map[string][]tensor{},
		taken:     map[string]bool{},
		rename:    map[string]string{},
		left:      maxElements,
		out:       onnxModel{name: "model"},
	}
	if err := c.convert(g, names); err != nil {
		return nil, err
	}
	return c.out.marshal(), nil
}

// tensor is what an output of a graph's node has become. A constant has only
// its value; everything else has a name in the ONNX graph.
type tensor struct {
	constant *constant

	name string
	// shape is what TensorFlow sees, before the padding. perm says how the ONNX
	// graph holds it: axis i of shape is its axis perm[i]. So a transposition costs
	// nothing, and what TensorFlow has as NHWC is NCHW in the file.
	shape []int
	perm  []int
	// pads is padding not yet applied, before and after each axis of shape: in
	// ONNX it belongs to the convolution or pooling that follows. nil if none.
	pads     [][2]int
	padValue float32
}

type converter struct {
	constants map[string]constant
	nodes     map[string]*graphNode
	done      map[string][]tensor // by node; nil while its inputs are converted
	taken     map[string]bool     // names in the ONNX graph
	rename    map[string]string
	left      int // elements that constants may still have
	out       onnxModel
}

// nhwc as perm: what TensorFlow has in this order is held as NCHW.
func nhwc() []int { return []int{0, 2, 3, 1} }

func identity(rank int) []int {
	p := make([]int, rank)
	for i := range p {
		p[i] = i
	}
	return p
}

func (c *converter) convert(g *graphFile, names []Name) error {
	for _, n := range g.ModelTopology.Node {
		if n == nil || n.Name == "" {
			return errors.New("the graph has a node without a name")
		}
		if c.nodes[n.Name] != nil {
			return fmt.Errorf("node %.100q: defined twice", n.Name)
		}
		c.nodes[n.Name] = n
	}
	outputs := map[string]graphTensor{}
	for _, name := range slices.Sorted(maps.Keys(g.Signature.Outputs)) {
		o := g.Signature.Outputs[name]
		if o.Name == "" {
			o.Name = name
		}
		o.Name = tensorName(o.Name)
		if _, twice := outputs[o.Name]; twice {
			return fmt.Errorf("output %.100q: in the signature twice", o.Name)
		}
		outputs[o.Name] = o
	}
	var order []string
	for _, n := range names {
		c.rename[n.Graph] = n.ONNX
		if _, is := outputs[n.Graph]; is {
			order = append(order, n.Graph)
		} else if node := c.nodes[n.Graph]; node == nil || node.Op != "Placeholder" {
			return fmt.Errorf("the graph has no input or output %.100q", n.Graph)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(outputs)) {
		if !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	// The names of outputs are taken first, whatever comes up on the way to them.
	for _, name := range order {
		if err := c.take(c.external(name)); err != nil {
			return fmt.Errorf("output %.100q: %w", name, err)
		}
	}
	for _, name := range order {
		if err := c.output(outputs[name]); err != nil {
			return fmt.Errorf("output %.100q: %w", name, err)
		}
	}
	return nil
}

func (c *converter) external(name string) string {
	if other, is := c.rename[name]; is {
		return other
	}
	return name
}

func (c *converter) take(name string) error {
	if name == "" || c.taken[name] {
		return fmt.Errorf("the name %.100q is empty or used twice", name)
	}
	c.taken[name] = true
	return nil
}

func (c *converter) fresh(prefix string) string {
	for i := len(c.taken); ; i++ {
		name := prefix + strconv.Itoa(i)
		if c.take(name) == nil {
			return name
		}
	}
}

func (c *converter) output(o graphTensor) error {
	t, err := c.tensor(o.Name)
	if err != nil {
		return err
	}
	if t, err = c.arrange(t, identity(len(t.shape))); err != nil {
		return err
	}
	if o.TensorShape != nil {
		if declared, err := o.TensorShape.dims(); err != nil || !slices.Equal(declared, t.shape) {
			return fmt.Errorf("the signature's shape is %v, the graph's %v: %w", declared, t.shape, errors.Join(err, errShape))
		}
	}
	name := c.external(o.Name)
	c.out.nodes = append(c.out.nodes, &onnxNode{op: "Identity", inputs: []string{t.name}, outputs: []string{name}})
	c.out.outputs = append(c.out.outputs, onnxValue{name: name, shape: t.shape})
	return nil
}

var errShape = errors.New("shapes do not fit")

// tensor converts what a reference names, "node" or "node:output", and everything
// it depends on.
func (c *converter) tensor(reference string) (tensor, error) {
	name, index := reference, 0
	if at := strings.LastIndexByte(reference, ':'); at >= 0 {
		i, err := strconv.ParseUint(reference[at+1:], 10, 16)
		if err != nil {
			return tensor{}, fmt.Errorf("%.100q is not a node's output", reference)
		}
		name, index = reference[:at], int(i)
	}
	results, known := c.done[name]
	if !known {
		n := c.nodes[name]
		if n == nil {
			return tensor{}, fmt.Errorf("there is no node %.100q", name)
		}
		c.done[name] = nil
		var err error
		if results, err = c.node(n); err != nil {
			// The chain of nodes that use this one would bury it.
			var located *nodeError
			if !errors.As(err, &located) {
				err = &nodeError{node: n.Name, op: n.Op, err: err}
			}
			return tensor{}, err
		}
		c.done[name] = results
	} else if results == nil {
		return tensor{}, fmt.Errorf("node %.100q depends on itself", name)
	}
	if index >= len(results) {
		return tensor{}, fmt.Errorf("node %.100q has no output %d", name, index)
	}
	return results[index], nil
}

// nodeError says where a graph cannot be converted.
type nodeError struct {
	node, op string
	err      error
}

func (e *nodeError) Error() string {
	return fmt.Sprintf("node %.100q (%.40s): %v", e.node, e.op, e.err)
}

func (e *nodeError) Unwrap() error { return e.err }

var errUnknownOp = errors.New("this operation cannot be converted")

func (c *converter) node(n *graphNode) ([]tensor, error) {
	switch n.Op {
	case "Const":
		w, is := c.constants[n.Name]
		if !is {
			return nil, errors.New("the manifest has no such weight")
		}
		return []tensor{{constant: &w, shape: w.shape}}, nil
	case "Placeholder":
		return c.placeholder(n)
	}
	inputs := map[string]int{
		"Identity": 1, "Transpose": 2, "Pad": 2, "PadV2": 3, "Conv2D": 2, "MaxPool": 1, "Add": 2, "AddV2": 2,
		"LeakyRelu": 1, "Sigmoid": 1, "SplitV": 3, "ResizeBilinear": 2, "Reshape": 2, "SparseToDense": 4,
	}
	want, is := inputs[n.Op]
	switch {
	case n.Op == "ConcatV2":
		if len(n.Input) < 2 {
			return nil, errors.New("it has nothing to join")
		}
	case !is:
		return nil, errUnknownOp
	case len(n.Input) != want:
		return nil, fmt.Errorf("it has %d inputs, %d are expected", len(n.Input), want)
	}
	in := make([]tensor, len(n.Input))
	for i, reference := range n.Input {
		var err error
		if in[i], err = c.tensor(reference); err != nil {
			return nil, err
		}
	}
	if n.Op == "SplitV" {
		return c.split(in)
	}
	t, err := c.single(n, in)
	if err != nil {
		return nil, err
	}
	if _, err := elements(t.shape, maxActivation); err != nil {
		return nil, err
	}
	return []tensor{t}, nil
}

// single converts the operations that have one output.
func (c *converter) single(n *graphNode, in []tensor) (tensor, error) {
	switch n.Op {
	case "Identity":
		return in[0], nil
	case "Transpose":
		return transpose(in[0], in[1])
	case "Pad":
		return pad(in[0], in[1], 0)
	case "PadV2":
		if in[2].constant == nil || len(in[2].constant.floats) != 1 {
			return tensor{}, errors.New("what it pads with must be one constant number")
		}
		return pad(in[0], in[1], in[2].constant.floats[0])
	case "Conv2D":
		return c.conv(n, in[0], in[1])
	case "MaxPool":
		return c.maxPool(n, in[0])
	case "Add", "AddV2":
		return c.add(in[0], in[1])
	case "LeakyRelu":
		alpha := n.Attr["alpha"].F
		if alpha == nil {
			return tensor{}, errors.New("alpha: must be a number")
		}
		return c.elementwise("LeakyRelu", in[0], floatAttribute("alpha", *alpha))
	case "Sigmoid":
		return c.elementwise("Sigmoid", in[0])
	case "ConcatV2":
		return c.concat(in[:len(in)-1], in[len(in)-1])
	case "ResizeBilinear":
		return c.resize(n, in[0], in[1])
	case "Reshape":
		return c.reshape(in[0], in[1])
	case "SparseToDense":
		return sparseToDense(in)
	}
	return tensor{}, errUnknownOp
}

// emit adds a node with one output and returns it as a tensor.
func (c *converter) emit(op string, inputs []string, shape, perm []int, attributes ...onnxAttribute) tensor {
	name := c.fresh(strings.ToLower(op))
	node := &onnxNode{op: op, inputs: inputs, outputs: []string{name}, attributes: attributes}
	c.out.nodes = append(c.out.nodes, node)
	return tensor{name: name, shape: shape, perm: perm}
}

// initializer adds a constant and returns its name. One that is used often is
// written often, which the limit bounds.
func (c *converter) initializer(t onnxTensor) (string, error) {
	n := 1
	for _, d := range t.shape {
		n *= d
	}
	if c.left -= n; c.left < 0 {
		return "", fmt.Errorf("the constants have more than %d elements", maxElements)
	}
	c.out.initializers = append(c.out.initializers, t)
	return t.name, nil
}

func (c *converter) ints(prefix string, values []int) (string, error) {
	t := onnxTensor{name: c.fresh(prefix), dataType: onnxInt64, shape: []int{len(values)}}
	for _, v := range values {
		t.raw = binary.LittleEndian.AppendUint64(t.raw, uint64(v))
	}
	return c.initializer(t)
}

// plain fails for what is not a computed tensor without pending padding.
func plain(t tensor) error {
	switch {
	case t.constant != nil:
		return errors.New("its input is a constant, only computed tensors are expected")
	case t.pads != nil:
		return errors.New("its input is padded, only Conv2D and MaxPool may follow a Pad")
	}
	return nil
}

// arrange returns t held in the order perm.
func (c *converter) arrange(t tensor, perm []int) (tensor, error) {
	if err := plain(t); err != nil {
		return tensor{}, err
	}
	if slices.Equal(t.perm, perm) {
		return t, nil
	}
	order := make([]int, len(perm))
	for i, p := range perm {
		order[p] = t.perm[i]
	}
	return c.emit("Transpose", []string{t.name}, t.shape, perm, intsAttribute("perm", order...)), nil
}

// constInts returns a constant list (or number, for length 1) of integers.
func constInts(t tensor, length int, what string) ([]int, error) {
	if t.constant == nil || t.constant.ints == nil || len(t.constant.ints) != length {
		return nil, fmt.Errorf("%s must be %d constant integers", what, length)
	}
	return t.constant.ints, nil
}

// axisOf returns the constant axis of a tensor with rank axes.
func axisOf(t tensor, rank int) (int, error) {
	v, err := constInts(t, 1, "the axis")
	if err != nil {
		return 0, err
	}
	axis := v[0]
	if axis < 0 {
		axis += rank
	}
	if axis < 0 || axis >= rank {
		return 0, fmt.Errorf("axis %d of %d axes", v[0], rank)
	}
	return axis, nil
}

func (c *converter) placeholder(n *graphNode) ([]tensor, error) {
	if kind := n.Attr["dtype"].Type; kind != "DT_FLOAT" {
		return nil, fmt.Errorf("dtype: %.40s, only DT_FLOAT can be converted", kind)
	}
	shape, err := n.Attr["shape"].Shape.dims()
	if err != nil {
		return nil, err
	}
	name := c.external(n.Name)
	if err := c.take(name); err != nil {
		return nil, err
	}
	c.out.inputs = append(c.out.inputs, onnxValue{name: name, shape: shape})
	return []tensor{{name: name, shape: shape, perm: identity(len(shape))}}, nil
}

func transpose(t, order tensor) (tensor, error) {
	if t.constant != nil {
		return tensor{}, errors.New("its input is a constant, only computed tensors are expected")
	}
	axes, err := constInts(order, len(t.shape), "the order of axes")
	if err != nil {
		return tensor{}, err
	}
	sorted := slices.Sorted(slices.Values(axes))
	if !slices.Equal(sorted, identity(len(axes))) {
		return tensor{}, fmt.Errorf("%v is not an order of axes", axes)
	}
	r := t
	r.shape, r.perm, r.pads = nil, nil, nil
	for _, a := range axes {
		r.shape, r.perm = append(r.shape, t.shape[a]), append(r.perm, t.perm[a])
		if t.pads != nil {
			r.pads = append(r.pads, t.pads[a])
		}
	}
	return r, nil
}

func pad(t, sizes tensor, value float32) (tensor, error) {
	if err := plain(t); err != nil {
		return tensor{}, err
	}
	v, err := constInts(sizes, 2*len(t.shape), "the padding")
	if err != nil {
		return tensor{}, err
	}
	t.padValue, t.pads = value, make([][2]int, len(t.shape))
	for i := range t.pads {
		before, after := v[2*i], v[2*i+1]
		if before < 0 || after < 0 || before > maxDim || after > maxDim {
			return tensor{}, fmt.Errorf("padding %v: each size must be 0 to %d", v, maxDim)
		}
		t.pads[i] = [2]int{before, after}
	}
	return t, nil
}

// window is what Conv2D and MaxPool have in common.
type window struct {
	input      tensor
	attributes []onnxAttribute
	height     int
	width      int
}

// window brings an NHWC input with its padding into the form that ONNX's
// operations have, and computes the height and width that come out.
func (c *converter) window(n *graphNode, t tensor, kernel, strides, dilations []int, filler float32) (window, error) {
	if err := errors.Join(n.must("data_format", "NHWC"), n.must("padding", "VALID")); err != nil {
		return window{}, err
	}
	if len(t.shape) != 4 {
		return window{}, fmt.Errorf("its input has the shape %v, four axes are expected", t.shape)
	}
	var pads [4]int // top, left, bottom, right
	if t.pads != nil {
		if t.pads[0] != [2]int{} || t.pads[3] != [2]int{} || t.padValue != filler {
			return window{}, fmt.Errorf("its input is padded by %v with %v; height and width with %v are expected", t.pads, t.padValue, filler)
		}
		pads = [4]int{t.pads[1][0], t.pads[2][0], t.pads[1][1], t.pads[2][1]}
		t.pads = nil
	}
	t, err := c.arrange(t, nhwc())
	if err != nil {
		return window{}, err
	}
	var size [2]int
	for i := range size {
		in, covered := t.shape[1+i]+pads[i]+pads[i+2], (kernel[i]-1)*dilations[i]+1
		if kernel[i] < 1 || covered > in {
			return window{}, fmt.Errorf("a kernel that covers %d is larger than what it is applied to, %d", covered, in)
		}
		// ONNX's pooling wants every window to see something that is not padding.
		if pads[i] >= covered || pads[i+2] >= covered {
			return window{}, fmt.Errorf("padding %v must be smaller than what the kernel covers, %d", pads, covered)
		}
		size[i] = (in-covered)/strides[i] + 1
	}
	w := window{input: t, height: size[0], width: size[1]}
	w.attributes = []onnxAttribute{intsAttribute("kernel_shape", kernel...), intsAttribute("strides", strides...)}
	if pads != [4]int{} {
		w.attributes = append(w.attributes, intsAttribute("pads", pads[:]...))
	}
	return w, nil
}

func (c *converter) conv(n *graphNode, t, kernel tensor) (tensor, error) {
	if kernel.constant == nil || kernel.constant.floats == nil || len(kernel.shape) != 4 {
		return tensor{}, errors.New("its kernel must be a constant with four axes")
	}
	strides, err := n.spatial("strides")
	if err != nil {
		return tensor{}, err
	}
	dilations, err := n.spatial("dilations")
	if err != nil {
		return tensor{}, err
	}
	w, err := c.window(n, t, kernel.shape[:2], strides, dilations, 0)
	if err != nil {
		return tensor{}, err
	}
	if w.input.shape[3] != kernel.shape[2] {
		return tensor{}, fmt.Errorf("its kernel is for %d channels, the input has %d: %w", kernel.shape[2], w.input.shape[3], errShape)
	}
	// TensorFlow has height, width, in, out; ONNX out, in, height, width.
	weights, err := c.initializer(floatTensor(c.fresh("weights"), kernel.constant.floats, kernel.shape, []int{2, 3, 1, 0}))
	if err != nil {
		return tensor{}, err
	}
	return c.emit("Conv", []string{w.input.name, weights}, []int{w.input.shape[0], w.height, w.width, kernel.shape[3]}, nhwc(),
		append(w.attributes, intsAttribute("dilations", dilations...), intAttribute("group", 1))...), nil
}

func (c *converter) maxPool(n *graphNode, t tensor) (tensor, error) {
	kernel, err := n.spatial("ksize")
	if err != nil {
		return tensor{}, err
	}
	strides, err := n.spatial("strides")
	if err != nil {
		return tensor{}, err
	}
	w, err := c.window(n, t, kernel, strides, []int{1, 1}, float32(math.Inf(-1)))
	if err != nil {
		return tensor{}, err
	}
	return c.emit("MaxPool", []string{w.input.name}, []int{w.input.shape[0], w.height, w.width, w.input.shape[3]}, nhwc(), w.attributes...), nil
}

func (c *converter) elementwise(op string, t tensor, attributes ...onnxAttribute) (tensor, error) {
	if err := plain(t); err != nil {
		return tensor{}, err
	}
	return c.emit(op, []string{t.name}, t.shape, t.perm, attributes...), nil
}

func (c *converter) add(a, b tensor) (tensor, error) {
	switch {
	case a.constant != nil && b.constant != nil:
		return addConstants(a, b)
	case a.constant != nil:
		return c.addConstant(b, *a.constant)
	case b.constant != nil:
		return c.addConstant(a, *b.constant)
	}
	if !slices.Equal(a.shape, b.shape) {
		return tensor{}, fmt.Errorf("%v and %v: %w", a.shape, b.shape, errShape)
	}
	if err := plain(a); err != nil {
		return tensor{}, err
	}
	b, err := c.arrange(b, a.perm)
	if err != nil {
		return tensor{}, err
	}
	return c.emit("Add", []string{a.name, b.name}, a.shape, a.perm), nil
}

func addConstants(a, b tensor) (tensor, error) {
	x, y := a.constant, b.constant
	if x.ints == nil || y.ints == nil || !slices.Equal(x.shape, y.shape) {
		return tensor{}, fmt.Errorf("of two constants %v and %v only integers of one shape can be added", x.shape, y.shape)
	}
	sum := &constant{shape: x.shape, ints: make([]int, len(x.ints))}
	for i := range sum.ints {
		sum.ints[i] = int(int32(x.ints[i]) + int32(y.ints[i]))
	}
	return tensor{constant: sum, shape: sum.shape}, nil
}

func (c *converter) addConstant(t tensor, k constant) (tensor, error) {
	if err := plain(t); err != nil {
		return tensor{}, err
	}
	if k.floats == nil || len(k.shape) > len(t.shape) {
		return tensor{}, fmt.Errorf("the constant's shape is %v, the tensor's %v: %w", k.shape, t.shape, errShape)
	}
	shape := slices.Repeat([]int{1}, len(t.shape)-len(k.shape))
	shape = append(shape, k.shape...)
	for i, d := range shape {
		if d != 1 && d != t.shape[i] {
			return tensor{}, fmt.Errorf("the constant's shape is %v, the tensor's %v: %w", k.shape, t.shape, errShape)
		}
	}
	// A bias stays an addition: importers make one operation of it and the
	// convolution before it, and nothing is faster if it is one in the file.
	name, err := c.initializer(floatTensor(c.fresh("addend"), k.floats, shape, t.perm))
	if err != nil {
		return tensor{}, err
	}
	return c.emit("Add", []string{t.name, name}, t.shape, t.perm), nil
}

func (c *converter) concat(in []tensor, axis tensor) (tensor, error) {
	first := in[0]
	if err := plain(first); err != nil {
		return tensor{}, err
	}
	a, err := axisOf(axis, len(first.shape))
	if err != nil {
		return tensor{}, err
	}
	shape := slices.Clone(first.shape)
	names := []string{first.name}
	for _, t := range in[1:] {
		if len(t.shape) != len(shape) {
			return tensor{}, fmt.Errorf("%v and %v: %w", first.shape, t.shape, errShape)
		}
		for i := range shape {
			if i != a && t.shape[i] != shape[i] {
				return tensor{}, fmt.Errorf("%v and %v: %w", first.shape, t.shape, errShape)
			}
		}
		if shape[a] += t.shape[a]; shape[a] > maxDim {
			return tensor{}, fmt.Errorf("axis %d is longer than %d", a, maxDim)
		}
		if t, err = c.arrange(t, first.perm); err != nil {
			return tensor{}, err
		}
		names = append(names, t.name)
	}
	return c.emit("Concat", names, shape, first.perm, intAttribute("axis", first.perm[a])), nil
}

func (c *converter) split(in []tensor) ([]tensor, error) {
	t := in[0]
	if err := plain(t); err != nil {
		return nil, err
	}
	a, err := axisOf(in[2], len(t.shape))
	if err != nil {
		return nil, err
	}
	if in[1].constant == nil || len(in[1].constant.ints) == 0 {
		return nil, errors.New("the sizes of the parts must be constant integers")
	}
	sizes := in[1].constant.ints
	left := t.shape[a]
	for _, s := range sizes {
		if s < 1 || s > left {
			return nil, fmt.Errorf("parts %v of axis %d with %d: %w", sizes, a, t.shape[a], errShape)
		}
		left -= s
	}
	if left != 0 {
		return nil, fmt.Errorf("parts %v of axis %d with %d: %w", sizes, a, t.shape[a], errShape)
	}
	node := &onnxNode{
		op: "Split", inputs: []string{t.name},
		attributes: []onnxAttribute{intAttribute("axis", t.perm[a]), intsAttribute("split", sizes...)},
	}
	c.out.nodes = append(c.out.nodes, node)
	var parts []tensor
	for _, s := range sizes {
		part := tensor{name: c.fresh("split"), shape: slices.Clone(t.shape), perm: t.perm}
		part.shape[a] = s
		node.outputs = append(node.outputs, part.name)
		parts = append(parts, part)
	}
	return parts, nil
}

func (c *converter) resize(n *graphNode, t, size tensor) (tensor, error) {
	if n.flag("align_corners") || !n.flag("half_pixel_centers") {
		return tensor{}, errors.New("only half_pixel_centers without align_corners can be converted")
	}
	if len(t.shape) != 4 {
		return tensor{}, fmt.Errorf("its input has the shape %v, four axes are expected", t.shape)
	}
	t, err := c.arrange(t, nhwc())
	if err != nil {
		return tensor{}, err
	}
	to, err := constInts(size, 2, "the new size")
	if err != nil {
		return tensor{}, err
	}
	scales := []float32{1, 1, 0, 0}
	for i, d := range to {
		if d < 1 || d > maxDim {
			return tensor{}, fmt.Errorf("size %v: each must be 1 to %d", to, maxDim)
		}
		// ONNX computes the size from the scale and rounds down.
		scales[2+i] = float32(d) / float32(t.shape[1+i])
		if scales[2+i]*float32(t.shape[1+i]) != float32(d) {
			return tensor{}, fmt.Errorf("from %d to %d is not a scale that float32 has exactly", t.shape[1+i], d)
		}
	}
	// The region is for another mode, but opset 11 has it before the scales.
	region, err := c.initializer(onnxTensor{name: c.fresh("region"), dataType: onnxFloat, shape: []int{0}})
	if err != nil {
		return tensor{}, err
	}
	scale, err := c.initializer(floatTensor(c.fresh("scales"), scales, []int{4}, []int{0}))
	if err != nil {
		return tensor{}, err
	}
	return c.emit("Resize", []string{t.name, region, scale}, []int{t.shape[0], to[0], to[1], t.shape[3]}, nhwc(),
		stringAttribute("mode", "linear"), stringAttribute("coordinate_transformation_mode", "half_pixel")), nil
}

func (c *converter) reshape(t, to tensor) (tensor, error) {
	if err := plain(t); err != nil {
		return tensor{}, err
	}
	if to.constant == nil || len(to.constant.ints) == 0 || len(to.constant.ints) > maxRank {
		return tensor{}, fmt.Errorf("the new shape must be 1 to %d constant integers", maxRank)
	}
	total := 1
	for _, d := range t.shape {
		total *= d
	}
	shape := slices.Clone(to.constant.ints)
	known, open := 1, -1
	for i, d := range shape {
		switch {
		case d == -1 && open < 0:
			open = i
		case d < 1 || d > total:
			return tensor{}, fmt.Errorf("%v to %v: %w", t.shape, to.constant.ints, errShape)
		default:
			if known *= d; known > total {
				return tensor{}, fmt.Errorf("%v to %v: %w", t.shape, to.constant.ints, errShape)
			}
		}
	}
	if open >= 0 {
		shape[open] = total / known
		known *= shape[open]
	}
	if known != total {
		return tensor{}, fmt.Errorf("%v to %v: %w", t.shape, to.constant.ints, errShape)
	}
	// Its elements are in the order that TensorFlow sees.
	t, err := c.arrange(t, identity(len(t.shape)))
	if err != nil {
		return tensor{}, err
	}
	name, err := c.ints("shape", shape)
	if err != nil {
		return tensor{}, err
	}
	return c.emit("Reshape", []string{t.name, name}, shape, identity(len(shape))), nil
}

// sparseToDense computes a list of integers from constants: exporters write so
// what to add to a shape, mostly nothing.
func sparseToDense(in []tensor) (tensor, error) {
	for _, t := range in {
		if t.constant == nil || t.constant.ints == nil {
			return tensor{}, errors.New("all its inputs must be constant integers")
		}
	}
	indices, values := in[0].constant.ints, in[2].constant.ints
	size, err := constInts(in[1], 1, "its size")
	if err != nil {
		return tensor{}, err
	}
	filler, err := constInts(in[3], 1, "what it is filled with")
	if err != nil {
		return tensor{}, err
	}
	if size[0] < 0 || size[0] > maxRank || len(values) != len(indices) && len(values) != 1 {
		return tensor{}, fmt.Errorf("%d values for %d places in a list of %d, at most %d: %w", len(values), len(indices), size[0], maxRank, errShape)
	}
	dense := &constant{shape: []int{size[0]}, ints: slices.Repeat(filler, size[0])}
	for i, at := range indices {
		if at < 0 || at >= size[0] {
			return tensor{}, fmt.Errorf("place %d in a list of %d: %w", at, size[0], errShape)
		}
		dense.ints[at] = values[min(i, len(values)-1)]
	}
	return tensor{constant: dense, shape: dense.shape}, nil
}
