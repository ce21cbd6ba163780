package vision_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/transferlab/transferlab/edge/footage"
	"github.com/transferlab/transferlab/edge/vision"
)

// The camera's clip: 5 s, 1080p, 10.5 MB, one frame a second. bench/offload/barecv
// does the same with gocv alone.
func BenchmarkDetect(b *testing.B) {
	clips, err := footage.Make(b.Context(), clipDir(), footage.Spec{Scenes: []string{"street"}})
	if err != nil {
		b.Fatal(err)
	}
	data, err := os.ReadFile(clips[0].Path)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    vision.Options
	}{{"all frames", vision.Options{}}, {"key frames", vision.Options{Keyframes: true}}} {
		b.Run(c.name, func(b *testing.B) {
			d := detector(b, c.o)
			if err := d.Warm(b.Context()); err != nil {
				b.Fatal(err)
			}
			var decode, infer float64
			for b.Loop() {
				out, err := d.Detect(b.Context(), bytes.NewReader(data), clipOf(clips[0]))
				if err != nil {
					b.Fatal(err)
				}
				decode += out.Decode.Seconds()
				infer += out.Infer.Seconds()
			}
			b.ReportMetric(decode/float64(b.N)*1e3, "decode-ms/op")
			b.ReportMetric(infer/float64(b.N)*1e3, "infer-ms/op")
		})
	}
}
