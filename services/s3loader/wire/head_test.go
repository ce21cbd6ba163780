package wire

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

func TestHead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       head
	}{
		{"plain", "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", head{status: 200, length: 12}},
		{"bare line ends", "HTTP/1.1 200 OK\ncontent-LENGTH:12 \n\n", head{status: 200, length: 12}},
		{"no reason", "HTTP/1.1 204\r\n\r\n", head{status: 204, length: -1}},
		{"1.0", "HTTP/1.0 200 OK\r\n\r\n", head{status: 200, length: -1, close: true}},
		{"1.0 kept", "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", head{status: 200, length: -1}},
		{"close", "HTTP/1.1 200 OK\r\nConnection: foo, Close\r\n\r\n", head{status: 200, length: -1, close: true}},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", head{status: 200, length: -1, chunked: true}},
		{"twice the same", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", head{status: 200, length: 3}},
		{
			"range", "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/100\r\nContent-Length: 5\r\n\r\n",
			head{status: 206, length: 5, ranged: true, first: 5, last: 9, all: 100},
		},
		{"unsatisfiable", "HTTP/1.1 416 no\r\nContent-Range: bytes */100\r\n\r\n", head{status: 416, length: -1}},
		{
			"checksum", "HTTP/1.1 200 OK\r\nx-amz-meta-transferlab-crc64nvme: " + objectstore.EncodeCRC64(77) + "\r\n\r\n",
			head{status: 200, length: -1, sum: 77, summed: true},
		},
		{
			"composite checksum", "HTTP/1.1 200 OK\r\nX-Amz-Checksum-Crc64nvme: " + objectstore.EncodeCRC64(77) + "-3\r\n\r\n",
			head{status: 200, length: -1},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n := headEnd([]byte(c.text + "rest")); n != len(c.text) {
				t.Fatalf("head ends at %d of %d", n, len(c.text))
			}
			var h head
			c.want.want = true
			if err := h.parse([]byte(c.text), true); err != nil || h != c.want {
				t.Fatalf("%+v, %v, want %+v", h, err, c.want)
			}
		})
	}
}

func TestMalformedHead(t *testing.T) {
	for _, text := range []string{
		"", "HTTP/2 200\r\n\r\n", "HTTP/1.1 20\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 099 OK\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n\r\n",
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
		"HTTP/1.1 200 OK\r\n: nameless\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
		"HTTP/1.1 206 OK\r\nContent-Range: bytes 9-5/100\r\n\r\n",
		"HTTP/1.1 206 OK\r\nContent-Range: lines 1-5/100\r\n\r\n",
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxHeadLines+1) + "\r\n",
	} {
		var h head
		if err := h.parse([]byte(text), true); !errors.Is(err, errHead) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

// FuzzHead holds the parser against net/http's: what both take they must
// understand alike.
func FuzzHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 206 Partial\r\nContent-Range: bytes 0-1/2\r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 304 Not\nContent-Length: 5\nContent-Length: 5\n\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Amz-Checksum-Crc64nvme: AAAAAAAAAAA=\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := headEnd(data)
		if n < 0 || n > maxHead {
			return
		}
		if n > len(data) {
			t.Fatalf("head ends at %d of %d", n, len(data))
		}
		var h head
		if err := h.parse(data[:n], true); err != nil {
			if !errors.Is(err, errHead) {
				t.Fatal(err)
			}
			return
		}
		if h.length < -1 || h.status < 100 || h.status > 999 || (h.ranged && (h.first < 0 || h.last < h.first)) {
			t.Fatalf("%+v", h)
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data[:n])), &http.Request{Method: http.MethodGet})
		if err != nil {
			return
		}
		if resp.StatusCode != h.status {
			t.Errorf("status %d, net/http says %d", h.status, resp.StatusCode)
		}
		if bodyless(h.status) {
			return
		}
		if chunked := len(resp.TransferEncoding) > 0; chunked != h.chunked {
			t.Errorf("chunked %t, net/http says %t", h.chunked, chunked)
		}
		if resp.ContentLength != h.length {
			t.Errorf("length %d, net/http says %d", h.length, resp.ContentLength)
		}
	})
}
