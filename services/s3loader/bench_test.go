package s3loader

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// BenchmarkGet compares the engine with net/http and a buffer of 1 MiB on the
// same server. Client and server share the process, so that only rates can be
// compared; bench/s3 measures processor time.
func BenchmarkGet(b *testing.B) {
	srv := s3test.Start(b)
	store := s3test.Open(b, srv, "bucket1")
	for _, size := range []schemas.Size{1 << 20, 100 << 20} {
		s := schemas.S3{Buckets: []string{"bucket1"}, Size: size, Requests: 1, Concurrency: 8}
		s.SetDefaults()
		for _, mode := range []string{"kernel", "copy", "checksum", "nethttp"} {
			b.Run(fmt.Sprintf("size=%s/client=%s", size, mode), func(b *testing.B) {
				b.SetBytes(int64(size))
				s, cfg := s, config(srv)
				s.Requests = b.N
				cfg.Copy = mode == "copy"
				if mode == "checksum" {
					s.Verify = "checksum"
				}
				job, err := NewWorker(cfg, slog.New(slog.DiscardHandler)).Prepare(b.Context(), task(b, s, 1))
				if err != nil {
					b.Fatal(err)
				}
				defer job.Close()
				b.ReportAllocs()
				b.ResetTimer()
				if mode == "nethttp" {
					bareGets(b, store, &s)
					return
				}
				res, err := job.Run(context.Background(), agent.Start{At: time.Now()}, func(*schemas.Event) error { return nil }, func(schemas.Progress) {})
				if err != nil || res.Errors > 0 || res.Bytes != uint64(b.N)*uint64(size) {
					b.Fatal(res, err)
				}
			})
		}
	}
}

func bareGets(b *testing.B, store *objectstore.Store, s *schemas.S3) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8, DisableCompression: true}}
	defer client.CloseIdleConnections()
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			buf := make([]byte, 1<<20)
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				req, err := store.NewGet(context.Background(), "bucket1", s.Key(int(i)%4), objectstore.Range{}, time.Now())
				if err != nil {
					b.Error(err)
					return
				}
				resp, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf)
				if err != nil || n != int64(s.Size) || resp.Body.Close() != nil {
					b.Error(n, err)
					return
				}
			}
		})
	}
	workers.Wait()
}
