package model

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Limits on what is read. The largest model that detects at the edge is an order of
// magnitude below each of them.
const (
	maxGraphBytes = 8 << 20
	maxNodes      = 20_000
	maxRank       = 6
	maxDim        = 1 << 20
	// maxElements bounds all the weights of a file together, and the constants of
	// what is made of them: 256 MiB as float32.
	maxElements = 1 << 26
	// maxActivation bounds a tensor that is computed.
	maxActivation = 1 << 28
)

// graphFile is a tfjs graph model's JSON, as far as it is used.
type graphFile struct {
	Format    string `json:"format"`
	Signature struct {
		Inputs  map[string]graphTensor `json:"inputs"`
		Outputs map[string]graphTensor `json:"outputs"`
	} `json:"signature"`
	ModelTopology struct {
		Node []*graphNode `json:"node"`
	} `json:"modelTopology"`
	WeightsManifest []struct {
		Weights []graphWeight `json:"weights"`
	} `json:"weightsManifest"`
}

type graphTensor struct {
	Name        string      `json:"name"`
	TensorShape *graphShape `json:"tensorShape"`
}

type graphShape struct {
	Dim []struct {
		Size json.Number `json:"size"`
	} `json:"dim"`
}

type graphNode struct {
	Name  string               `json:"name"`
	Op    string               `json:"op"`
	Input []string             `json:"input"`
	Attr  map[string]graphAttr `json:"attr"`
}

// graphAttr is TensorFlow's AttrValue: 64-bit integers are strings in JSON,
// which json.Number takes as well, and strings are base64.
type graphAttr struct {
	S     []byte      `json:"s"`
	I     json.Number `json:"i"`
	F     *float32    `json:"f"`
	B     *bool       `json:"b"`
	Type  string      `json:"type"`
	Shape *graphShape `json:"shape"`
	List  *struct {
		I []json.Number `json:"i"`
	} `json:"list"`
}

type graphWeight struct {
	Name         string `json:"name"`
	Shape        []int  `json:"shape"`
	Dtype        string `json:"dtype"`
	Quantization *struct {
		Dtype string `json:"dtype"`
	} `json:"quantization"`
}

// constant is a weight: floats or ints, whichever is not nil.
type constant struct {
	shape  []int
	floats []float32
	ints   []int
}

func parseGraph(raw []byte) (*graphFile, error) {
	if len(raw) > maxGraphBytes {
		return nil, fmt.Errorf("the graph has %d bytes, at most %d are read", len(raw), maxGraphBytes)
	}
	var g graphFile
	if err := json.Unmarshal(raw, &g); err != nil {
		return nil, fmt.Errorf("read the graph: %w", err)
	}
	switch {
	case g.Format != "graph-model":
		return nil, fmt.Errorf("the format is %.40q, only graph-model can be converted", g.Format)
	case len(g.ModelTopology.Node) == 0:
		return nil, errors.New("the graph has no nodes")
	case len(g.ModelTopology.Node) > maxNodes:
		return nil, fmt.Errorf("the graph has %d nodes, at most %d are read", len(g.ModelTopology.Node), maxNodes)
	case len(g.Signature.Outputs) == 0:
		return nil, errors.New("the graph's signature has no outputs")
	}
	return &g, nil
}

// readWeights reads the manifest's weights in their order; r must end with the
// last of them.
func readWeights(g *graphFile, r io.Reader) (map[string]constant, error) {
	weights := map[string]constant{}
	left := maxElements
	for _, group := range g.WeightsManifest {
		for _, w := range group.Weights {
			if _, twice := weights[w.Name]; twice {
				return nil, fmt.Errorf("weight %.100q: defined twice", w.Name)
			}
			n, err := elements(w.Shape, left)
			if err != nil {
				return nil, fmt.Errorf("weight %.100q: %w", w.Name, err)
			}
			left -= n
			c, err := readWeight(w, n, r)
			if err != nil {
				return nil, fmt.Errorf("weight %.100q: %w", w.Name, err)
			}
			weights[w.Name] = c
		}
	}
	if n, err := io.ReadFull(r, make([]byte, 1)); n > 0 {
		return nil, errors.New("the weights go on after the last one of the manifest")
	} else if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the weights: %w", err)
	}
	return weights, nil
}

func readWeight(w graphWeight, n int, r io.Reader) (constant, error) {
	kind := w.Dtype
	if w.Quantization != nil {
		kind += " as " + w.Quantization.Dtype
	}
	size := 4
	switch kind {
	case "float32", "int32":
	case "float32 as float16":
		size = 2
	default:
		return constant{}, fmt.Errorf("its type is %.60s; float32, float32 as float16 and int32 can be converted", kind)
	}
	// Memory grows with what comes, not with what the manifest promises.
	raw, err := io.ReadAll(io.LimitReader(r, int64(n)*int64(size)))
	if err != nil {
		return constant{}, fmt.Errorf("read it: %w", err)
	}
	if len(raw) != n*size {
		return constant{}, fmt.Errorf("the weights end within it: %w", io.ErrUnexpectedEOF)
	}
	c := constant{shape: w.Shape}
	if w.Dtype == "int32" {
		c.ints = make([]int, n)
		for i := range c.ints {
			c.ints[i] = int(int32(binary.LittleEndian.Uint32(raw[4*i:])))
		}
		return c, nil
	}
	c.floats = make([]float32, n)
	for i := range c.floats {
		if size == 2 {
			c.floats[i] = float16(binary.LittleEndian.Uint16(raw[2*i:]))
		} else {
			c.floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
	}
	return c, nil
}

// float16 returns the value of an IEEE 754 half.
func float16(h uint16) float32 {
	sign, exponent, fraction := uint32(h>>15)<<31, uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch {
	case exponent == 0x1f:
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	case exponent == 0:
		// Exact: a subnormal half is a small multiple of 2⁻²⁴.
		v := float32(fraction) * (1.0 / (1 << 24))
		return math.Float32frombits(sign | math.Float32bits(v))
	default:
		return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
	}
}

func putFloat(b []byte, v float32) { binary.LittleEndian.PutUint32(b, math.Float32bits(v)) }

// elements returns the number of elements of a shape, at most limit. Empty
// tensors are allowed: a shape that adds nothing is written with one.
func elements(shape []int, limit int) (int, error) {
	if len(shape) > maxRank {
		return 0, fmt.Errorf("%d axes, at most %d can be converted", len(shape), maxRank)
	}
	n := 1
	for _, d := range shape {
		if d < 0 || d > maxDim {
			return 0, fmt.Errorf("shape %v: each size must be 0 to %d", shape, maxDim)
		}
		// Both factors are at most 2²⁸: no overflow.
		if n *= d; n > limit {
			return 0, fmt.Errorf("shape %v has more than the %d elements that are left of the limit", shape, limit)
		}
	}
	return n, nil
}

// dims returns a shape that is known in full.
func (s *graphShape) dims() ([]int, error) {
	if s == nil {
		return nil, errors.New("its shape is not known")
	}
	shape := make([]int, len(s.Dim))
	for i, d := range s.Dim {
		v, err := d.Size.Int64()
		if err != nil || v < 1 || v > maxDim {
			return nil, fmt.Errorf("size %.40q of axis %d: must be 1 to %d", d.Size, i, maxDim)
		}
		shape[i] = int(v)
	}
	if _, err := elements(shape, maxActivation); err != nil {
		return nil, err
	}
	return shape, nil
}

// ints returns the attribute's list of small integers that are not negative.
func (n *graphNode) ints(name string, length int) ([]int, error) {
	a := n.Attr[name]
	if a.List == nil || len(a.List.I) != length {
		return nil, fmt.Errorf("%s: must be a list of %d integers", name, length)
	}
	v := make([]int, length)
	for i, s := range a.List.I {
		d, err := s.Int64()
		if err != nil || d < 0 || d > maxDim {
			return nil, fmt.Errorf("%s: %.40q must be an integer, 0 to %d", name, s, maxDim)
		}
		v[i] = int(d)
	}
	return v, nil
}

// spatial returns the two middle values of an attribute for NHWC, of which the
// others must be 1.
func (n *graphNode) spatial(name string) ([]int, error) {
	v, err := n.ints(name, 4)
	if err != nil {
		return nil, err
	}
	if v[0] != 1 || v[3] != 1 || v[1] < 1 || v[2] < 1 {
		return nil, fmt.Errorf("%s: %v must be positive along height and width, 1 elsewhere", name, v)
	}
	return v[1:3], nil
}

// must fails if a text attribute is not want.
func (n *graphNode) must(name, want string) error {
	if got := string(n.Attr[name].S); got != want {
		return fmt.Errorf("%s: %.40q, only %s can be converted", name, got, want)
	}
	return nil
}

// flag returns a truth attribute; absent is false.
func (n *graphNode) flag(name string) bool {
	b := n.Attr[name].B
	return b != nil && *b
}

// tensorName drops the output number that signatures write even where it is 0.
func tensorName(s string) string { return strings.TrimSuffix(s, ":0") }
