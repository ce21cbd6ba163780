package objectstore_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

func TestContent(t *testing.T) {
	for _, size := range []int64{0, 1, 15, 16, 17, 1000, 256 << 10, 256<<10 + 1, 3<<20 + 5} {
		c := objectstore.NewContent(42, size)
		want, err := io.ReadAll(c)
		if err != nil || int64(len(want)) != size {
			t.Fatalf("%d: %d bytes, %v", size, len(want), err)
		}
		if err := iotest.TestReader(objectstore.NewContent(42, min(size, 1000)), want[:min(size, 1000)]); err != nil {
			t.Errorf("%d: %v", size, err)
		}
		var wrote bytes.Buffer
		if n, err := objectstore.NewContent(42, size).WriteTo(&wrote); err != nil || n != size || !bytes.Equal(wrote.Bytes(), want) {
			t.Errorf("%d: WriteTo: %d bytes, %v", size, n, err)
		}
		r := rand.New(rand.NewPCG(1, 2))
		for range 50 {
			if size == 0 {
				break
			}
			off := r.Int64N(size)
			p := make([]byte, r.Int64N(size-off)+1)
			if n, err := c.ReadAt(p, off); n != len(p) || err != nil || !bytes.Equal(p, want[off:off+int64(n)]) {
				t.Fatalf("%d: ReadAt %d+%d: %d %v", size, off, len(p), n, err)
			}
		}
		if sum := objectstore.Checksum(42, size); sum != objectstore.UpdateCRC64(0, want) {
			t.Errorf("%d: checksum %x", size, sum)
		}
	}
	// The bytes of a seed are a promise: objects stored by one version are verified by the next.
	if sum := objectstore.EncodeCRC64(objectstore.Checksum(1, 1<<20)); sum != goldenChecksum {
		t.Errorf("checksum of seed 1, 1 MiB: %s, want %s", sum, goldenChecksum)
	}
	a, b := make([]byte, 64), make([]byte, 64)
	if _, err := io.ReadFull(objectstore.NewContent(1, 64), a); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(objectstore.NewContent(2, 64), b); err != nil || bytes.Equal(a, b) {
		t.Errorf("two seeds, the same content (%v)", err)
	}
	if s := objectstore.Seed(1, "a", "b/c"); s == objectstore.Seed(2, "a", "b/c") || s == objectstore.Seed(1, "a", "b/d") || s != objectstore.Seed(1, "a", "b/c") {
		t.Error("seeds")
	}
}

const goldenChecksum = "qvF7wtVq+Ag="

func TestContentDoesNotCompress(t *testing.T) {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	if _, err := io.Copy(w, objectstore.NewContent(3, size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if out.Len() < size {
		t.Errorf("%d bytes compress to %d", size, out.Len())
	}
}

func TestVerifier(t *testing.T) {
	c := objectstore.NewContent(5, 300_000)
	all, err := io.ReadAll(objectstore.NewContent(5, 300_000))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(objectstore.NewVerifier(c, 0), iotest.HalfReader(bytes.NewReader(all))); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(objectstore.NewVerifier(c, 1001), bytes.NewReader(all[1001:])); err != nil {
		t.Error(err)
	}
	bad := bytes.Clone(all)
	bad[200_001] ^= 1
	if n, err := objectstore.NewVerifier(c, 0).Write(bad); n != 200_001 || !errors.Is(err, objectstore.ErrCorrupt) {
		t.Error(n, err)
	}
	if _, err := objectstore.NewVerifier(c, 1).Write(all); !errors.Is(err, objectstore.ErrCorrupt) {
		t.Error(err)
	}
}

func TestChecksum(t *testing.T) {
	nvme := crc64.MakeTable(0x9a6c9329ac4bc9b5)
	all, err := io.ReadAll(objectstore.NewContent(6, 100_000))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := objectstore.UpdateCRC64(0, all), crc64.Checksum(all, nvme); got != want {
		t.Errorf("%x, the standard library has %x", got, want)
	}
	whole := objectstore.UpdateCRC64(0, all)
	for _, cut := range []int{0, 1, 7, 4096, 65_537, 99_999, 100_000} {
		a, b := objectstore.UpdateCRC64(0, all[:cut]), objectstore.UpdateCRC64(0, all[cut:])
		if got := objectstore.CombineCRC64(a, b, int64(len(all)-cut)); got != whole {
			t.Errorf("cut at %d: %x, want %x", cut, got, whole)
		}
	}
	if sum, err := objectstore.DecodeCRC64(objectstore.EncodeCRC64(whole)); err != nil || sum != whole {
		t.Error(sum, err)
	}
	for _, s := range []string{"", "?", "AAAA", "AAAAAAAAAAAAAAAAAAAA"} {
		if _, err := objectstore.DecodeCRC64(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func BenchmarkContent(b *testing.B) {
	c := objectstore.NewContent(1, 1<<30)
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	var off int64
	for b.Loop() {
		if _, err := c.ReadAt(buf, off); err != nil {
			b.Fatal(err)
		}
		off = (off + int64(len(buf))) % (1 << 29)
	}
}

func BenchmarkContentChecksum(b *testing.B) {
	b.SetBytes(64 << 20)
	for b.Loop() {
		objectstore.Checksum(1, 64<<20)
	}
}

func BenchmarkVerifier(b *testing.B) {
	c := objectstore.NewContent(1, 1<<20)
	buf, err := io.ReadAll(c)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := objectstore.NewVerifier(c, 0).Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUpdateCRC64(b *testing.B) {
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		objectstore.UpdateCRC64(0, buf)
	}
}

func BenchmarkCombineCRC64(b *testing.B) {
	for b.Loop() {
		objectstore.CombineCRC64(1, 2, 1<<30)
	}
}
