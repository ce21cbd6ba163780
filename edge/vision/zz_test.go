package vision_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/schemas"
)

func TestZZ(t *testing.T) {
	data, _ := os.ReadFile("/tmp/s4/a.mp4")
	ds := map[string]*vision.Detector{"ours": detector(t, vision.Options{}), "ours 1 thread": detector(t, vision.Options{Threads: 1}), "keyframes": detector(t, vision.Options{Keyframes: true})}
	res := map[string][]float64{}
	dec := map[string][]float64{}
	inf := map[string][]float64{}
	for i := 0; i < 12; i++ {
		b, err := exec.Command("/tmp/s4/barecv", "--model", nanodet(t), "--n", "1", "/tmp/s4/a.mp4").Output()
		if err != nil {
			t.Fatal(err)
		}
		var r struct{ Total_ns, Decode_ns, Infer_ns float64 }
		json.Unmarshal(b, &r)
		res["bare"] = append(res["bare"], r.Total_ns/1e6)
		dec["bare"] = append(dec["bare"], r.Decode_ns/1e6)
		inf["bare"] = append(inf["bare"], r.Infer_ns/1e6)
		for _, k := range []string{"ours", "ours 1 thread", "keyframes"} {
			if i == 0 {
				ds[k].Warm(t.Context())
			}
			t0 := time.Now()
			out, err := ds[k].Detect(t.Context(), bytes.NewReader(data), schemas.Clip{Type: schemas.TypeMP4})
			if err != nil {
				t.Fatal(err)
			}
			res[k] = append(res[k], time.Since(t0).Seconds()*1e3)
			dec[k] = append(dec[k], out.Decode.Seconds()*1e3)
			inf[k] = append(inf[k], out.Infer.Seconds()*1e3)
		}
	}
	med := func(v []float64) string {
		sort.Float64s(v)
		return fmt.Sprintf("median %.0f (min %.0f, max %.0f)", v[len(v)/2], v[0], v[len(v)-1])
	}
	for k := range res {
		t.Logf("%-14s total %s decode %s infer %s", k, med(res[k]), med(dec[k]), med(inf[k]))
	}
	for _, n := range []string{"self"} {
		b, _ := os.ReadFile("/proc/" + n + "/status")
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(l, "VmHWM") || strings.HasPrefix(l, "VmRSS") {
				t.Log("parent", l)
			}
		}
	}
	for _, pid := range children(t, "transferlab-vision") {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(l, "VmHWM") || strings.HasPrefix(l, "VmRSS") {
				t.Log("child", l)
			}
		}
	}
}
