//go:build opencv

// Command barecv does what a program of thirty lines with gocv would do with a clip: read it
// with OpenCV's VideoCapture, skip to a frame a second, run the network. What package
// vision adds is held against it.
//
//	sh edge/vision/transferlab-vision/build.sh .build/barecv bench/offload/barecv
//	.build/barecv --model nanodet-g-416-coco.onnx [--n 7] [--sample 1] CLIP
//
// It prints a line of JSON for each run: how long it took from opening the file to the last
// answer, and how much of it decoding and the network. The network is loaded
// once, before.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"image"
	"os"
	"time"

	"gocv.io/x/gocv"
)

// #cgo LDFLAGS: -lopencv_videoio -lopencv_imgcodecs
import "C"

// run is what one run took.
type run struct {
	Total  time.Duration `json:"total_ns"`
	Decode time.Duration `json:"decode_ns"`
	Infer  time.Duration `json:"infer_ns"`
	Frames int           `json:"frames"`
	Best   float32       `json:"best_score"`
	OpenCV string        `json:"opencv"`
}

func main() {
	model := flag.String("model", "", "NanoDet's ONNX file")
	n := flag.Int("n", 1, "runs")
	sample := flag.Float64("sample", 1, "frames a second")
	flag.Parse()
	if flag.NArg() != 1 || *model == "" || *n < 1 || !(*sample > 0) {
		flag.Usage()
		os.Exit(2)
	}
	if err := bench(*model, flag.Arg(0), *n, *sample); err != nil {
		fmt.Fprintln(os.Stderr, "barecv:", err)
		os.Exit(1)
	}
}

func bench(model, clip string, n int, sample float64) error {
	if _, err := os.Stat(model); err != nil {
		return err
	}
	net := gocv.ReadNetFromONNX(model)
	defer net.Close()
	var outputs []string
	for _, id := range net.GetUnconnectedOutLayers() {
		layer := net.GetLayer(id)
		outputs = append(outputs, layer.GetName())
		layer.Close()
	}
	warm := gocv.NewMatWithSize(416, 416, gocv.MatTypeCV8UC3)
	look(&net, warm, outputs)
	warm.Close()
	out := json.NewEncoder(os.Stdout)
	for range n {
		r, err := once(&net, outputs, clip, sample)
		if err != nil {
			return err
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func once(net *gocv.Net, outputs []string, clip string, sample float64) (run, error) {
	r := run{OpenCV: gocv.OpenCVVersion()}
	start := time.Now()
	video, err := gocv.OpenVideoCapture(clip)
	if err != nil {
		return r, err
	}
	defer video.Close()
	rate := video.Get(gocv.VideoCaptureFPS)
	if !(rate > 0) {
		return r, errors.New("no frame rate")
	}
	frame := gocv.NewMat()
	defer frame.Close()
	next := 0
	for at := 0; ; at++ {
		skip := int(float64(at)*rate/sample) - next
		began := time.Now()
		if skip > 0 {
			video.Grab(skip)
		}
		ok := video.Read(&frame)
		r.Decode += time.Since(began)
		if !ok || frame.Empty() {
			break
		}
		next += skip + 1
		began = time.Now()
		r.Best = max(r.Best, look(net, frame, outputs))
		r.Infer += time.Since(began)
		r.Frames++
	}
	r.Total = time.Since(start)
	return r, nil
}

// look runs the network and returns the best score of any class.
func look(net *gocv.Net, frame gocv.Mat, outputs []string) float32 {
	blob := gocv.BlobFromImage(frame, 1/57.3, image.Pt(416, 416), gocv.NewScalar(103.53, 116.28, 123.675, 0), false, false)
	defer blob.Close()
	net.SetInput(blob, "")
	var best float32
	mats := net.ForwardLayers(outputs)
	for i := range mats {
		size := mats[i].Size()
		if data, err := mats[i].DataPtrFloat32(); err == nil && size[len(size)-1] == 80 {
			for _, v := range data {
				best = max(best, v)
			}
		}
		mats[i].Close()
	}
	return best
}
