package wire

import (
	"context"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

func BenchmarkSign(b *testing.B) {
	store, err := objectstore.Open(b.Context(), objectstore.Target{Endpoint: "http://127.0.0.1:1", PathStyle: true}, objectstore.Static("key", "secret", ""))
	if err != nil {
		b.Fatal(err)
	}
	c := New(Options{Store: store})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.signer.sign(context.Background(), headKey{bucket: "bucket", key: "transferlab/1MB/000001.bin"}, 0, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	text := []byte("HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: 1000000\r\nContent-Type: application/octet-stream\r\n" +
		"Date: Sun, 22 Nov 2026 12:00:00 GMT\r\nEtag: \"d41d8cd98f00b204e9800998ecf8427e\"\r\nLast-Modified: Sun, 22 Nov 2026 12:00:00 GMT\r\n" +
		"Server: AmazonS3\r\nX-Amz-Id-2: abc\r\nX-Amz-Meta-Transferlab-Crc64nvme: AAAAAAAAAAA=\r\nX-Amz-Request-Id: 0123456789ABCDEF\r\n\r\n")
	b.ReportAllocs()
	var h head
	for b.Loop() {
		if err := h.parse(text[:headEnd(text)], false); err != nil {
			b.Fatal(err)
		}
	}
}
