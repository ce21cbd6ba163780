package motion

import (
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface, linux/gpio.h (since 5.10).
const (
	getLine = 0xc250b407 // GPIO_V2_GET_LINE_IOCTL

	flagActiveLow = 1 << 1
	flagInput     = 1 << 2
	flagRising    = 1 << 4
	flagPullUp    = 1 << 8
	flagPullDown  = 1 << 9
	flagNoBias    = 1 << 10
	flagRealtime  = 1 << 11

	attrDebounce = 3
)

type lineAttribute struct {
	id       uint32
	_        uint32
	debounce uint32 // µs; the kernel's union is 8 bytes
	_        uint32
	mask     uint64
}

type lineRequest struct {
	offsets    [64]uint32
	consumer   [32]byte
	flags      uint64
	attributes uint32
	_          [5]uint32
	attribute  [10]lineAttribute
	lines      uint32
	buffer     uint32
	_          [5]uint32
	fd         int32
}

// OpenLine asks the kernel for a sensor's line: input, rising edges, debounced.
func OpenLine(c Config) (Line, error) {
	chip, err := os.OpenFile(c.Chip, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the GPIO chip: %w", err)
	}
	defer chip.Close()
	r := lineRequest{lines: 1, flags: flagInput | flagRising | flagRealtime}
	r.offsets[0] = uint32(c.Line)
	copy(r.consumer[:31], "transferlab-edge")
	if c.ActiveLow {
		r.flags |= flagActiveLow
	}
	switch c.Bias {
	case "up":
		r.flags |= flagPullUp
	case "down":
		r.flags |= flagPullDown
	case "none":
		r.flags |= flagNoBias
	}
	if d := time.Duration(c.Debounce); d > 0 {
		r.attributes = 1
		r.attribute[0] = lineAttribute{id: attrDebounce, debounce: uint32(d.Microseconds()), mask: 1}
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, chip.Fd(), getLine, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return nil, fmt.Errorf("take line %d of %s: %w", c.Line, c.Chip, errno)
	}
	// Go waits for a file that does not block by the poller, so that a deadline
	// can end a read.
	if err := unix.SetNonblock(int(r.fd), true); err != nil {
		_ = unix.Close(int(r.fd))
		return nil, fmt.Errorf("take line %d of %s: %w", c.Line, c.Chip, err)
	}
	return &events{file: os.NewFile(uintptr(r.fd), "gpio line"), now: time.Now}, nil
}
