package wire

import "math/bits"

// Bits are the pieces a peer has, as they are on the wire: the first is the
// highest bit of the first byte.
type Bits []byte

// NewBits makes room for n pieces.
func NewBits(n int) Bits { return make(Bits, (n+7)/8) }

// Has reports whether piece i is there.
func (b Bits) Has(i int) bool { return b[i>>3]&(0x80>>(i&7)) != 0 }

// Set marks piece i.
func (b Bits) Set(i int) { b[i>>3] |= 0x80 >> (i & 7) }

// Fill marks the first n pieces.
func (b Bits) Fill(n int) {
	for i := range b {
		b[i] = 0xff
	}
	if spare := len(b)*8 - n; spare > 0 {
		b[len(b)-1] = 0xff << spare
	}
}

// Count is how many pieces are there.
func (b Bits) Count() int {
	n := 0
	for _, x := range b {
		n += bits.OnesCount8(x)
	}
	return n
}

// Valid reports whether b is as long as n pieces need and marks nothing beyond
// them.
func (b Bits) Valid(n int) bool {
	if len(b) != (n+7)/8 {
		return false
	}
	spare := len(b)*8 - n
	return spare == 0 || b[len(b)-1]&(1<<spare-1) == 0
}
