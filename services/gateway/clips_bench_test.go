package gateway

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

const clipBytes = 10_500_000

// BenchmarkClip is one clip from call to queued, by the gateway and directly to
// the store; client, gateway, store and bus share the machine.
func BenchmarkClip(b *testing.B) {
	for _, path := range []string{"gateway", "direct"} {
		b.Run(path, func(b *testing.B) {
			r := newClipRig(b, nil)
			var took []time.Duration
			b.SetBytes(clipBytes)
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				clip, content := footage(fmt.Sprintf("c%d", i), clipBytes)
				body, kind := encode(pieces(clip, content, nil))
				b.StartTimer()
				began := time.Now()
				if path == "gateway" {
					if resp, text := r.ask(r.token, "POST", "/v1/clips", bytes.NewReader(body), "Content-Type", kind); resp.StatusCode != 201 {
						b.Fatal(resp.StatusCode, string(text))
					}
				} else if s := r.upload(clip, content, nil); s.State != schemas.ClipQueued {
					b.Fatal(s.State)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		})
	}
}

// BenchmarkCheck is what it costs to read a stored clip back and hash it.
func BenchmarkCheck(b *testing.B) {
	r := newClipRig(b, nil)
	clip, content := footage("check", clipBytes)
	r.upload(clip, content, nil)
	b.SetBytes(clipBytes)
	for b.Loop() {
		if err := r.gateway.clips.check(b.Context(), testEdge, &clip); err != nil {
			b.Fatal(err)
		}
	}
}

// Many clips at a time: memory follows their number by little, their size not at
// all.
func TestMemoryOfUploads(t *testing.T) {
	r := newClipRig(t, func(c *Config) { c.Clips.EdgeUploads = 64 })
	const uploads, size = 64, 4_000_000
	clip, content := footage("memory", size)
	var all sync.WaitGroup
	before := heap()
	var peak uint64
	stop, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapInuse)
			}
		}
	}()
	for i := range uploads {
		all.Go(func() {
			// The bytes are shared: only the heads differ.
			own := clip
			own.ID = fmt.Sprintf("memory-%d", i)
			frame, kind := encode(pieces(own, nil, nil))
			cut := bytes.LastIndex(frame, []byte("\r\n--"))
			body := io.MultiReader(bytes.NewReader(frame[:cut]), bytes.NewReader(content), bytes.NewReader(frame[cut:]))
			resp, text := r.ask(r.token, "POST", "/v1/clips", body, "Content-Type", kind)
			if resp.StatusCode != 201 {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
		})
	}
	all.Wait()
	close(stop)
	<-watched
	t.Logf("%d uploads of %d bytes: heap %d MB before, %d MB at most", uploads, size, before>>20, peak>>20)
	if peak > before+128<<20 {
		t.Errorf("heap %d MB, %d MB before", peak>>20, before>>20)
	}
}
