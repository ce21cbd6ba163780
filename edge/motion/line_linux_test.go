package motion

import (
	"testing"
	"unsafe"
)

// The sizes and offsets of linux/gpio.h.
func TestKernelLayout(t *testing.T) {
	var r lineRequest
	if got := [...]uintptr{
		unsafe.Sizeof(r), unsafe.Sizeof(r.attribute[0]), unsafe.Offsetof(r.flags), unsafe.Offsetof(r.attribute), unsafe.Offsetof(r.lines), unsafe.Offsetof(r.fd),
	}; got != [...]uintptr{592, 24, 288, 320, 560, 588} {
		t.Fatalf("%v", got)
	}
	// _IOWR(0xB4, 0x07, 592 bytes)
	if getLine != 3<<30|592<<16|0xb4<<8|7 {
		t.Fatalf("%#x", getLine)
	}
}
