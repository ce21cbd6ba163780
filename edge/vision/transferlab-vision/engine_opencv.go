//go:build opencv && cgo

package main

import (
	"errors"
	"fmt"
	"unsafe"

	"gocv.io/x/gocv"

	"github.com/transferlab/transferlab/edge/vision/internal/nets"
	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

/*
#include "opencv.h"
*/
import "C"

func engine() string { return "opencv " + gocv.OpenCVVersion() }

func open(m *nets.Model, threads int) (network, error) {
	C.vision_last_words()
	if threads > 0 {
		C.vision_threads(C.int(min(threads, 256)))
	}
	switch m.Spec.Kind {
	case nets.KindHOG:
		return openHOG(m.Spec)
	case nets.KindHaar:
		return openCascade(m)
	}
	return openNet(m)
}

// net is a network run by OpenCV's dnn module.
type net struct {
	spec    nets.Spec
	input   *nets.Input
	net     gocv.Net
	blob    gocv.Mat
	values  []float32 // of blob
	outputs []string
}

func openNet(m *nets.Model) (network, error) {
	n := &net{spec: m.Spec, input: nets.NewInput(m.Spec)}
	var err error
	if m.Spec.Kind == nets.KindDarknet {
		n.net, err = gocv.ReadNetBytes("darknet", m.Weights, m.Data)
	} else {
		n.net, err = gocv.ReadNetFromONNXBytes(m.Data)
	}
	if err != nil {
		return nil, err
	}
	if n.net.Empty() {
		return nil, errors.New("OpenCV makes no network of it")
	}
	if err := errors.Join(n.net.SetPreferableBackend(gocv.NetBackendOpenCV), n.net.SetPreferableTarget(gocv.NetTargetCPU)); err != nil {
		return nil, err
	}
	for _, id := range n.net.GetUnconnectedOutLayers() {
		layer := n.net.GetLayer(id)
		n.outputs = append(n.outputs, layer.GetName())
		layer.Close()
	}
	n.blob = gocv.NewMatWithSizes([]int{1, 3, m.Spec.Height, m.Spec.Width}, gocv.MatTypeCV32F)
	// A Mat of more than two dimensions reports no length that the slice could
	// be made from.
	p, err := n.blob.DataPtrUint8()
	if err != nil {
		return nil, err
	}
	n.values = unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(p))), 3*m.Spec.Height*m.Spec.Width)
	return n, nil
}

func (n *net) objects(f wire.Frame) ([]wire.Object, error) {
	at, err := n.input.Fill(f, n.values)
	if err != nil {
		return nil, err
	}
	n.net.SetInput(n.blob, "")
	mats := n.net.ForwardLayers(n.outputs)
	defer func() {
		for i := range mats {
			mats[i].Close()
		}
	}()
	outputs := make([]nets.Tensor, len(mats))
	for i := range mats {
		dims := mats[i].Size()
		if mats[i].Type() != gocv.MatTypeCV32F || !mats[i].IsContinuous() {
			return nil, fmt.Errorf("output %s is not of 32-bit numbers", n.outputs[i])
		}
		size := 1
		for _, d := range dims {
			size *= d
		}
		p, err := mats[i].DataPtrUint8()
		if err != nil {
			return nil, err
		}
		if size == 0 || len(p) == 0 {
			return nil, fmt.Errorf("output %s is empty", n.outputs[i])
		}
		outputs[i] = nets.Tensor{Name: n.outputs[i], Dims: dims, Data: unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(p))), size)}
	}
	return nets.Objects(n.spec, outputs, at, float64(f.Threshold))
}

func (n *net) close() {
	n.blob.Close()
	n.net.Close()
}

// classic is a detector that OpenCV has had since before networks.
type classic struct {
	spec   nets.Spec
	handle unsafe.Pointer
}

func openHOG(s nets.Spec) (network, error) {
	return newClassic(s, func(fault *C.char, size C.int) unsafe.Pointer { return C.vision_hog(fault, size) })
}

func openCascade(m *nets.Model) (network, error) {
	return newClassic(m.Spec, func(fault *C.char, size C.int) unsafe.Pointer {
		return C.vision_cascade((*C.char)(unsafe.Pointer(unsafe.SliceData(m.Data))), C.int(len(m.Data)), fault, size)
	})
}

const faultBytes = 512

func newClassic(s nets.Spec, make func(*C.char, C.int) unsafe.Pointer) (network, error) {
	var fault [faultBytes]C.char
	handle := make(&fault[0], faultBytes)
	if handle == nil {
		return nil, errors.New(C.GoString(&fault[0]))
	}
	return &classic{spec: s, handle: handle}, nil
}

func (c *classic) objects(f wire.Frame) ([]wire.Object, error) {
	var fault [faultBytes]C.char
	var boxes [wire.MaxObjects]C.struct_vision_box
	n := C.vision_detect(c.handle, (*C.uchar)(unsafe.Pointer(unsafe.SliceData(f.Pix))), C.int(f.Width), C.int(f.Height),
		&boxes[0], wire.MaxObjects, &fault[0], faultBytes)
	if n < 0 {
		return nil, errors.New(C.GoString(&fault[0]))
	}
	var rects [][4]float64
	var scores []float64
	for _, b := range boxes[:n] {
		rects = append(rects, [4]float64{float64(b.x), float64(b.y), float64(b.w), float64(b.h)})
		scores = append(scores, float64(b.score))
	}
	return nets.Boxes(c.spec, f.Width, f.Height, float64(f.Threshold), rects, scores), nil
}

func (c *classic) close() { C.vision_close(c.handle) }
