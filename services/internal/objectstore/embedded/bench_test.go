package embedded_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// BenchmarkGet downloads whole objects with bare net/http and a 1 MiB buffer, from the server and, as the ceiling, from
// net/http serving the same bytes from a file.
func BenchmarkGet(b *testing.B) {
	for _, c := range []struct {
		name       string
		size       int64
		n, workers int
	}{{"1MiBx2000/c=8", 1 << 20, 2000, 8}, {"100MiBx16/c=8", 100 << 20, 16, 8}, {"1GiBx1/c=1", 1 << 30, 1, 1}, {"1GiBx4/c=4", 1 << 30, 4, 4}} {
		b.Run("s3/"+c.name, func(b *testing.B) {
			srv := s3test.Start(b)
			st := s3test.Open(b, srv, "bench")
			if _, err := st.Put(b.Context(), "bench", "o", objectstore.NewContent(1, c.size), c.size, objectstore.PutOptions{}); err != nil {
				b.Fatal(err)
			}
			benchGet(b, c.size, c.n, c.workers, func() (*http.Request, error) {
				return st.NewGet(context.Background(), "bench", "o", objectstore.Range{}, time.Now())
			})
		})
		b.Run("file/"+c.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "o")
			f, err := os.Create(path)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(f, objectstore.NewContent(1, c.size)); err != nil {
				b.Fatal(err)
			}
			f.Close()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }))
			defer srv.Close()
			benchGet(b, c.size, c.n, c.workers, func() (*http.Request, error) { return http.NewRequest("GET", srv.URL, nil) })
		})
	}
}

func benchGet(b *testing.B, size int64, n, workers int, request func() (*http.Request, error)) {
	tr := &http.Transport{MaxIdleConnsPerHost: workers, DisableCompression: true, ReadBufferSize: 64 << 10}
	defer tr.CloseIdleConnections()
	b.SetBytes(size * int64(n))
	b.ReportAllocs()
	for b.Loop() {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				buf := make([]byte, 1<<20)
				for next.Add(1) <= int64(n) {
					if err := getOnce(tr, request, buf, size); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func getOnce(tr *http.Transport, request func() (*http.Request, error), buf []byte, size int64) error {
	req, err := request()
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return objectstore.ReadError(resp)
	}
	var got int64
	for {
		n, err := resp.Body.Read(buf)
		got += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if got != size {
		return fmt.Errorf("%d of %d bytes", got, size)
	}
	return nil
}

func BenchmarkSign(b *testing.B) {
	srv := s3test.Start(b)
	st := s3test.Open(b, srv)
	b.ReportAllocs()
	now := time.Now()
	for b.Loop() {
		if _, err := st.NewGet(b.Context(), "bucket", "some/key", objectstore.Range{}, now); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSmall measures requests rather than bytes.
func BenchmarkSmall(b *testing.B) {
	srv := s3test.Start(b)
	st := s3test.Open(b, srv, "bench")
	if _, err := st.Put(b.Context(), "bench", "o", objectstore.NewContent(1, 1024), 1024, objectstore.PutOptions{}); err != nil {
		b.Fatal(err)
	}
	benchGet(b, 1024, 5000, 8, func() (*http.Request, error) {
		return st.NewGet(context.Background(), "bench", "o", objectstore.Range{}, time.Now())
	})
}

func BenchmarkPut(b *testing.B) {
	const size = 512 << 20
	for _, part := range []int64{0, 64 << 20} {
		b.Run(fmt.Sprintf("parts=%dMiB", part>>20), func(b *testing.B) {
			srv := s3test.Start(b)
			st := s3test.Open(b, srv, "bench")
			b.SetBytes(size)
			sum := objectstore.Checksum(1, size)
			for b.Loop() {
				opts := objectstore.PutOptions{PartBytes: part, Checksum: &sum}
				if _, err := st.Put(b.Context(), "bench", "o", objectstore.NewContent(1, size), size, opts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
