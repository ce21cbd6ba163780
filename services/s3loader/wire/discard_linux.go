//go:build linux && (amd64 || arm64)

package wire

import (
	"io"
	"syscall"
)

const canDiscard = true

// discarder has the kernel drop what arrives on a TCP socket: recv with
// MSG_TRUNC counts bytes without copying them (tcp(7)), which costs a third of
// a read. It is made once for a connection, so that a request allocates
// nothing.
//
// SO_RCVLOWAT would halve the wake-ups again, but it also limits the receive
// window to the mark, and with it what a distant store could send.
type discarder struct {
	raw  syscall.RawConn
	read func(fd uintptr) bool
	want int64
	got  int64
	err  error
}

func (d *discarder) init(raw syscall.RawConn) {
	d.raw, d.read = raw, d.recv
}

// A single call's limit, below the kernel's own (MAX_RW_COUNT).
const maxDiscard = 1 << 30

func (d *discarder) recv(fd uintptr) bool {
	for d.got < d.want {
		n, _, errno := syscall.Syscall6(syscall.SYS_RECVFROM, fd, 0, uintptr(min(d.want-d.got, maxDiscard)), syscall.MSG_TRUNC, 0, 0)
		switch {
		case errno == syscall.EINTR:
		case errno == syscall.EAGAIN:
			return false
		case errno != 0:
			d.err = errno
			return true
		case n == 0:
			d.err = io.ErrUnexpectedEOF
			return true
		default:
			d.got += int64(n)
		}
	}
	return true
}

// discard drops n bytes and returns how many there were.
func (d *discarder) discard(n int64) (int64, error) {
	d.want, d.got, d.err = n, 0, nil
	if err := d.raw.Read(d.read); err != nil {
		return d.got, err
	}
	return d.got, d.err
}
