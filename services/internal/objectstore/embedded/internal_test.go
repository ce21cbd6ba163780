package embedded

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rclone/gofakes3"
)

func TestByteRange(t *testing.T) {
	for _, test := range []struct {
		want          gofakes3.ObjectRangeRequest
		size          int64
		start, length int64 // length 0: an error
	}{
		{gofakes3.ObjectRangeRequest{Start: 0, End: 0}, 10, 0, 1},
		{gofakes3.ObjectRangeRequest{Start: 5, End: math.MaxInt64}, 10, 5, 5},
		{gofakes3.ObjectRangeRequest{Start: 5, End: gofakes3.RangeNoEnd}, 10, 5, 5},
		{gofakes3.ObjectRangeRequest{Start: 10, End: 12}, 10, 0, 0},
		{gofakes3.ObjectRangeRequest{Start: math.MaxInt64, End: math.MaxInt64}, 10, 0, 0},
		{gofakes3.ObjectRangeRequest{FromEnd: true, End: 3}, 10, 7, 3},
		{gofakes3.ObjectRangeRequest{FromEnd: true, End: math.MaxInt64}, 10, 0, 10},
		{gofakes3.ObjectRangeRequest{FromEnd: true, End: 0}, 10, 0, 0},
		{gofakes3.ObjectRangeRequest{FromEnd: true, End: 1}, 0, 0, 0},
		{gofakes3.ObjectRangeRequest{Start: 0, End: 0}, 0, 0, 0},
	} {
		got, err := byteRange(&test.want, test.size)
		if (err != nil) != (test.length == 0) || (err == nil && (got.Start != test.start || got.Length != test.length)) {
			t.Errorf("%+v of %d: %+v %v", test.want, test.size, got, err)
		}
	}
}

// FuzzObjectPath: whatever the key, the path has one shape, below the bucket, and is another for another key.
func FuzzObjectPath(f *testing.F) {
	for _, k := range []string{"", "a", "../..", "/", "\x00", "ä", "\xff", strings.Repeat("x", 5000), "objects/ab"} {
		f.Add(k, "a")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		path := objectPath("/store/bucket", a)
		rel, err := filepath.Rel("/store/bucket/objects", path)
		if err != nil || len(rel) != 65 || rel[2] != '/' || strings.Trim(rel[:2]+rel[3:], "0123456789abcdef") != "" {
			t.Fatalf("%q: %q", a, path)
		}
		if (a == b) != (path == objectPath("/store/bucket", b)) {
			t.Fatalf("%q and %q share %q", a, b, path)
		}
	})
}

// FuzzReadDescription: no file makes reading it panic, and what was written is read.
func FuzzReadDescription(f *testing.F) {
	var good bytes.Buffer
	good.WriteString("content")
	if err := appendDescription(&good, &description{Key: "k", MD5: []byte{1}, Meta: map[string]string{"a": "b"}}, 7); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 100))
	f.Fuzz(func(t *testing.T, file []byte) {
		o, err := readDescription(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			if !errors.Is(err, errNotAnObject) {
				t.Fatal(err)
			}
			return
		}
		if o.size < 0 || o.size > int64(len(file)) {
			t.Fatalf("content of %d bytes in a file of %d", o.size, len(file))
		}
	})
}

// FuzzChunked: no body makes the decoder panic, hang, or yield more than was announced.
func FuzzChunked(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"), int64(5), false)
	f.Add([]byte("5;chunk-signature=00\r\nhello\r\n0;chunk-signature=00\r\n\r\n"), int64(5), true)
	f.Add([]byte("ffffffffffffffff\r\n"), int64(math.MaxInt64), false)
	f.Add([]byte("0\r\n"), int64(0), false)
	f.Fuzz(func(t *testing.T, in []byte, length int64, signed bool) {
		if length < 0 {
			return
		}
		var signer *chunkSigner
		if signed {
			signer = &chunkSigner{key: []byte("k"), date: "d", scope: "s"}
		}
		b := newChunkedBody(io.NopCloser(bytes.NewReader(in)), length, signer, true)
		n, err := io.Copy(io.Discard, b)
		if n > length || n > int64(len(in)) {
			t.Fatalf("%d bytes of %d announced, %d sent", n, length, len(in))
		}
		if err == nil && (n != length || b.finish() != nil) {
			t.Fatalf("%d bytes of %d and no error", n, length)
		}
		if err != nil && b.finish() == nil {
			t.Fatalf("finish forgets %v", err)
		}
	})
}

// TestDiskFull uses the one file of the system that is always full.
func TestDiskFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		full, err = nil, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	cause := error(syscall.ENOSPC)
	if full != nil {
		defer full.Close()
		_, cause = full.Write([]byte("x"))
	}
	rq := &request{w: &recorder{}}
	ctx := contextWith(t.Context(), rq)
	if err := storageError(ctx, cause); !gofakes3.HasErrorCode(err, errInsufficientStorage) || rq.w.force != http.StatusInsufficientStorage {
		t.Errorf("%v becomes %v, status %d", cause, err, rq.w.force)
	}
}
