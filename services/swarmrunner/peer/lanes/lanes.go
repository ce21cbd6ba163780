package lanes

import (
	"crypto/sha1" // BEP 3 hashes pieces with it
	"encoding/binary"
)

//go:generate go run gen.go

// Width is how many pieces are hashed at a time at best.
const Width = 16

// worthwhile is from how many pieces on that is quicker than one after another
// (measured: BenchmarkSums).
const worthwhile = 5

// Available reports whether this processor can hash several pieces at a time;
// otherwise Sums does it one after another.
func Available() bool { return available() }

// Sums writes the SHA-1 of each piece to sums, which is as long as pieces.
func Sums(pieces [][]byte, sums [][sha1.Size]byte) {
	for len(pieces) > 0 {
		n := alike(pieces)
		if n < worthwhile || !available() {
			sums[0] = one(pieces[0])
			n = 1
		} else {
			many(pieces[:n], sums)
		}
		pieces, sums = pieces[n:], sums[n:]
	}
}

// alike is how many pieces from the first on are equally long, and of whole
// blocks, as all but the last of a file are.
func alike(pieces [][]byte) int {
	size := len(pieces[0])
	if size == 0 || size%sha1.BlockSize != 0 {
		return 1
	}
	n := 1
	for n < min(len(pieces), Width) && len(pieces[n]) == size {
		n++
	}
	return n
}

// chunk is hashed at a time: it fits a processor's first cache.
const chunk = 16 << 10

// one hashes one piece. What another processor has just written comes slowly to
// who reads it bit by bit, as SHA-1 does; copied to here first it comes at once
// (measured at 1 MiB: 0.87 ms without the copy, 0.6 with it).
func one(piece []byte) (sum [sha1.Size]byte) {
	var near [chunk]byte
	h := sha1.New()
	for len(piece) > 0 {
		n := copy(near[:], piece)
		// It never fails.
		_, _ = h.Write(near[:n])
		piece = piece[n:]
	}
	h.Sum(sum[:0])
	return sum
}

// many hashes up to Width pieces of the same length, a multiple of a block's.
func many(pieces [][]byte, sums [][sha1.Size]byte) {
	size := len(pieces[0])
	var state [5][Width]uint32
	for i, v := range [5]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0} {
		for lane := range Width {
			state[i][lane] = v
		}
	}
	// The end of a message is one bit and its length in bits.
	var end [sha1.BlockSize]byte
	end[0] = 0x80
	binary.BigEndian.PutUint64(end[sha1.BlockSize-8:], uint64(size)*8)
	var data, ends [Width]*byte
	for lane := range Width {
		// A lane too many does what the first does.
		data[lane], ends[lane] = &pieces[0][0], &end[0]
		if lane < len(pieces) {
			data[lane] = &pieces[lane][0]
		}
	}
	blocks(&state, &data, size/sha1.BlockSize)
	blocks(&state, &ends, 1)
	for lane := range pieces {
		for i := range state {
			binary.BigEndian.PutUint32(sums[lane][4*i:], state[i][lane])
		}
	}
}
