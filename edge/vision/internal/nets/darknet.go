package nets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Darknet is a network as a cfg file describes it.
type Darknet struct {
	Width, Height int
	Classes       int
	Weights       int64 // numbers that the weights file must have
}

const (
	maxDarknetBytes   = 1 << 20
	maxDarknetLayers  = 2000
	maxDarknetNumbers = 1 << 28 // weights, or values of all layers together
	maxDarknetSide    = 1 << 20
)

type section struct {
	name string
	line int
	opts map[string]string
}

// darknetShape is what goes from a layer to the next.
type darknetShape struct{ c, h, w int }

// ParseDarknet reads a cfg file and follows the shapes through its layers: what the
// engine would abort on is refused with the layer and its line.
func ParseDarknet(data []byte) (*Darknet, error) {
	if len(data) > maxDarknetBytes {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(data), maxDarknetBytes)
	}
	sections, err := darknetSections(data)
	if err != nil {
		return nil, err
	}
	head := sections[0]
	if head.name != "net" && head.name != "network" {
		return nil, fmt.Errorf("line %d: begins with [%s], want [net]", head.line, head.name)
	}
	p := &darknetParser{section: head}
	net := &Darknet{Width: p.number("width", 0, minSide, 1920), Height: p.number("height", 0, minSide, 1920)}
	channels := p.number("channels", 0, 3, 3)
	if p.err != nil {
		return nil, p.err
	}
	p.shape = darknetShape{channels, net.Height, net.Width}
	if len(sections) == 1 {
		return nil, errors.New("no layers")
	}
	for _, s := range sections[1:] {
		p.section = s
		p.layer()
		if p.err != nil {
			return nil, p.err
		}
		if p.shape.c < 1 || p.shape.h < 1 || p.shape.w < 1 || p.shape.c > maxDarknetSide {
			return nil, fmt.Errorf("line %d: [%s] has an output of %d × %d × %d", s.line, s.name, p.shape.c, p.shape.h, p.shape.w)
		}
		p.values += int64(p.shape.c) * int64(p.shape.h) * int64(p.shape.w)
		if p.weights > maxDarknetNumbers || p.values > maxDarknetNumbers {
			return nil, fmt.Errorf("line %d: more than %d weights or values", s.line, maxDarknetNumbers)
		}
		p.layers = append(p.layers, p.shape)
	}
	if p.classes == 0 {
		return nil, errors.New("no [yolo] or [region] layer: this network detects nothing")
	}
	net.Classes, net.Weights = p.classes, p.weights
	return net, nil
}

func darknetSections(data []byte) ([]section, error) {
	var sections []section
	n := 0
	for line := range bytes.Lines(data) {
		n++
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' || text[0] == ';' {
			continue
		}
		if text[0] == '[' {
			name, ok := strings.CutSuffix(text[1:], "]")
			if !ok || name == "" || len(name) > 32 {
				return nil, fmt.Errorf("line %d: want [layer]", n)
			}
			if len(sections) > maxDarknetLayers {
				return nil, fmt.Errorf("line %d: more than %d layers", n, maxDarknetLayers)
			}
			sections = append(sections, section{name: name, line: n, opts: map[string]string{}})
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		if !ok || len(sections) == 0 {
			return nil, fmt.Errorf("line %d: want key=value below a [layer]", n)
		}
		opts := sections[len(sections)-1].opts
		if opts[strings.TrimSpace(key)] = strings.TrimSpace(value); len(opts) > 100 {
			return nil, fmt.Errorf("line %d: more than 100 settings", n)
		}
	}
	if len(sections) == 0 {
		return nil, errors.New("no [net]: not a Darknet cfg file")
	}
	return sections, nil
}

type darknetParser struct {
	section
	shape   darknetShape
	layers  []darknetShape
	weights int64
	values  int64
	classes int
	err     error
}

func (p *darknetParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("line %d: [%s] %s", p.line, p.name, fmt.Sprintf(format, args...))
	}
}

// number is a setting that must lie between two bounds; 0 as the usual value with a
// larger lower bound makes it required.
func (p *darknetParser) number(key string, usual, from, to int) int {
	text, ok := p.opts[key]
	n := usual
	if ok {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			p.fail("%s=%.40s, want a number", key, text)
			return from
		}
	}
	if n < from || n > to {
		p.fail("%s=%d, want %d to %d", key, n, from, to)
		return from
	}
	return n
}

func (p *darknetParser) list(key string) []int {
	text, ok := p.opts[key]
	if !ok {
		return nil
	}
	parts := strings.Split(text, ",")
	if len(parts) > 1000 {
		p.fail("%s has %d numbers, want at most 1000", key, len(parts))
		return nil
	}
	var list []int
	for _, part := range parts {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		f, err := strconv.ParseFloat(part, 64)
		if err != nil || !(math.Abs(f) < 1e6) {
			p.fail("%s=%.40s, want numbers with commas between", key, text)
			return nil
		}
		list = append(list, int(f))
	}
	return list
}

// from resolves a layer that another refers to.
func (p *darknetParser) from(ref int) darknetShape {
	if ref < 0 {
		ref += len(p.layers)
	}
	if ref < 0 || ref >= len(p.layers) {
		p.fail("refers to a layer that is not before it")
		return darknetShape{1, 1, 1}
	}
	return p.layers[ref]
}

func (p *darknetParser) activation() {
	known := []string{"linear", "leaky", "relu", "mish", "swish", "logistic", "tanh"}
	if a, ok := p.opts["activation"]; ok && !slices.Contains(known, a) {
		p.fail("activation=%.40s, want one of %s", a, strings.Join(known, ", "))
	}
}

func (p *darknetParser) layer() {
	in := p.shape
	switch p.name {
	case "convolutional":
		filters := p.number("filters", 0, 1, 1<<16)
		size := p.number("size", 0, 1, 64)
		stride := p.number("stride", 1, 1, 64)
		pad := p.number("padding", 0, 0, 64)
		if p.number("pad", 0, 0, 1) == 1 {
			pad = size / 2
		}
		groups := p.number("groups", 1, 1, 1<<16)
		normalised := p.number("batch_normalize", 0, 0, 1)
		p.activation()
		if in.c%groups != 0 || filters%groups != 0 {
			p.fail("groups=%d, want a divisor of %d channels and %d filters", groups, in.c, filters)
		}
		p.shape = darknetShape{filters, (in.h+2*pad-size)/stride + 1, (in.w+2*pad-size)/stride + 1}
		if in.h+2*pad < size || in.w+2*pad < size {
			p.shape.h = 0
		}
		p.weights += int64(filters)*int64(1+3*normalised) + int64(in.c/groups)*int64(filters)*int64(size*size)
	case "connected":
		out := p.number("output", 0, 1, 1<<20)
		normalised := p.number("batch_normalize", 0, 0, 1)
		p.activation()
		p.weights += int64(out)*int64(1+3*normalised) + int64(in.c)*int64(in.h)*int64(in.w)*int64(out)
		p.shape = darknetShape{out, 1, 1}
	case "maxpool":
		stride := p.number("stride", 1, 1, 64)
		size := p.number("size", stride, 1, 64)
		pad := p.number("padding", size-1, 0, 64)
		p.shape = darknetShape{in.c, (in.h+pad-size)/stride + 1, (in.w+pad-size)/stride + 1}
		if in.h+pad < size || in.w+pad < size {
			p.shape.h = 0
		}
	case "avgpool":
		p.shape = darknetShape{in.c, 1, 1}
	case "softmax", "dropout", "cost":
	case "route":
		refs := p.list("layers")
		if len(refs) == 0 && p.err == nil {
			p.fail("has no layers")
		}
		groups := p.number("groups", 1, 1, 1<<16)
		p.number("group_id", 0, 0, groups-1)
		var out darknetShape
		for i, ref := range refs {
			s := p.from(ref)
			if i == 0 {
				out = darknetShape{0, s.h, s.w}
			}
			if s.h != out.h || s.w != out.w {
				p.fail("joins layers of %d × %d and %d × %d", out.h, out.w, s.h, s.w)
			}
			if s.c%groups != 0 {
				p.fail("groups=%d, want a divisor of %d channels", groups, s.c)
			}
			out.c += s.c / groups
		}
		p.shape = out
	case "shortcut":
		refs := p.list("from")
		if len(refs) != 1 && p.err == nil {
			p.fail("has %d layers in from, want one", len(refs))
			return
		}
		p.activation()
		if len(refs) == 1 {
			if s := p.from(refs[0]); s != in && p.err == nil {
				p.fail("adds %d × %d × %d to %d × %d × %d", s.c, s.h, s.w, in.c, in.h, in.w)
			}
		}
	case "scale_channels", "sam":
		refs := p.list("from")
		if len(refs) != 1 {
			p.fail("has %d layers in from, want one", len(refs))
			return
		}
		p.shape = p.from(refs[0])
		if p.shape.c != in.c {
			p.fail("multiplies %d channels by %d", p.shape.c, in.c)
		}
	case "reorg":
		stride := p.number("stride", 1, 1, 64)
		if in.h%stride != 0 || in.w%stride != 0 {
			p.fail("stride=%d, want a divisor of %d and %d", stride, in.h, in.w)
		}
		p.shape = darknetShape{in.c * stride * stride, in.h / stride, in.w / stride}
	case "upsample":
		stride := p.number("stride", 1, 1, 64)
		p.shape = darknetShape{in.c, in.h * stride, in.w * stride}
	case "yolo", "region":
		classes := p.number("classes", 0, 1, MaxClasses)
		num := p.number("num", 0, 1, 1000)
		boxes := num
		if p.name == "yolo" {
			mask := p.list("mask")
			boxes = len(mask)
			for _, m := range mask {
				if m < 0 || m >= num {
					p.fail("mask has %d, want 0 to %d", m, num-1)
				}
			}
			if boxes == 0 {
				p.fail("has no mask")
			}
		}
		if anchors := p.list("anchors"); len(anchors) != 2*num && p.err == nil {
			p.fail("%d numbers in anchors, want %d", len(anchors), 2*num)
		}
		if want := boxes * (5 + classes); in.c != want && p.err == nil {
			p.fail("gets %d channels, want %d: %d boxes of 5 + %d classes", in.c, want, boxes, classes)
		}
		if p.classes != 0 && p.classes != classes {
			p.fail("has %d classes, one before it %d", classes, p.classes)
		}
		p.classes = classes
	default:
		p.fail("is no layer that is known here")
	}
}

// CheckWeights reports whether a weights file has as many numbers as the network
// needs.
func (d *Darknet) CheckWeights(data []byte) error {
	if len(data) < 16 {
		return fmt.Errorf("%d bytes: not a Darknet weights file", len(data))
	}
	major, minor := int32(binary.LittleEndian.Uint32(data)), int32(binary.LittleEndian.Uint32(data[4:]))
	if major < 0 || major > 100 || minor < 0 || minor > 100 {
		return fmt.Errorf("version %d.%d: not a Darknet weights file", major, minor)
	}
	head := int64(16)
	if major*10+minor >= 2 {
		head = 20
	}
	if want := head + 4*d.Weights; int64(len(data)) != want {
		return fmt.Errorf("%d bytes, the network has %d", len(data), want)
	}
	return nil
}
