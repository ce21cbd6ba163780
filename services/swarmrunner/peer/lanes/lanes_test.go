package lanes

import (
	"crypto/rand"
	"crypto/sha1"
	"fmt"
	"testing"
)

// TestSums holds every number and length of pieces against the standard library.
func TestSums(t *testing.T) {
	t.Logf("sixteen at a time: %v", available())
	content := make([]byte, 64<<10)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 63, 64, 65, 128, 1000, 1024, 4096} {
		for n := range 19 {
			pieces := make([][]byte, n)
			for i := range pieces {
				// At any alignment.
				pieces[i] = content[i*1001:][:size]
			}
			if n > 2 && size > 0 {
				pieces[n-1] = pieces[n-1][:size-1]
			}
			sums := make([][sha1.Size]byte, n)
			Sums(pieces, sums)
			for i, p := range pieces {
				if sums[i] != sha1.Sum(p) {
					t.Errorf("piece %d of %d, %d bytes: %x, want %x", i, n, len(p), sums[i], sha1.Sum(p))
				}
			}
		}
	}
}

func FuzzSums(f *testing.F) {
	f.Add(make([]byte, 5*128), 128)
	f.Add([]byte("abc"), 1)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		var pieces [][]byte
		for size > 0 && len(data) > 0 {
			n := min(size, len(data))
			pieces, data = append(pieces, data[:n]), data[n:]
		}
		sums := make([][sha1.Size]byte, len(pieces))
		Sums(pieces, sums)
		for i, p := range pieces {
			if sums[i] != sha1.Sum(p) {
				t.Fatalf("piece %d of %d, %d bytes", i, len(pieces), len(p))
			}
		}
	})
}

func BenchmarkSums(b *testing.B) {
	const size = 256 << 10
	content := make([]byte, Width*size)
	for _, n := range []int{1, 2, 4, 8, 16} {
		b.Run(fmt.Sprintf("pieces=%d", n), func(b *testing.B) {
			pieces, sums := make([][]byte, n), make([][sha1.Size]byte, n)
			for i := range pieces {
				pieces[i] = content[i*size:][:size]
			}
			b.SetBytes(int64(n * size))
			for b.Loop() {
				Sums(pieces, sums)
			}
		})
	}
}
