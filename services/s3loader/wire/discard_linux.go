//go:build linux && (amd64 || arm64)

package wire

import (
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const canDiscard = true

const (
	// maxDiscard is a single call's limit, below the kernel's (MAX_RW_COUNT).
	maxDiscard = 1 << 30
	// near is the round trip below which waiting for more than one byte cannot
	// change what the store may send.
	near = time.Millisecond
	// highMark is how much a near connection waits for at a time; below lowMark
	// it is not worth the calls.
	highMark = 512 << 10
	lowMark  = 64 << 10
)

// discarder has the kernel drop what arrives on a TCP socket: recv with
// MSG_TRUNC counts bytes without copying them (tcp(7)), which costs a third of
// a read. It is made once for a connection, so that a request allocates
// nothing.
//
// A reader that is so quick empties the socket after every few segments, and
// then most of the time, the sender's too, goes into waking it. So on a near
// connection it asks to be woken for many bytes only (SO_RCVLOWAT): 1.6 times
// the rate at 0.6 of the processor time, for one stream as for many small
// objects. On a far one that would change the receive window, and with it what
// is measured.
type discarder struct {
	raw  syscall.RawConn
	read func(fd uintptr) bool
	near bool
	want int64
	got  int64
	mark int // in force, 0 or 1: none
	err  error
}

func (d *discarder) init(raw syscall.RawConn) {
	d.raw, d.read = raw, d.recv
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		d.near = err == nil && time.Duration(info.Rtt)*time.Microsecond < near
	})
}

func (d *discarder) recv(fd uintptr) bool {
	for d.got < d.want {
		n, _, errno := syscall.Syscall6(syscall.SYS_RECVFROM, fd, 0, uintptr(min(d.want-d.got, maxDiscard)), syscall.MSG_TRUNC, 0, 0)
		switch {
		case errno == syscall.EINTR:
		case errno == syscall.EAGAIN:
			d.err = d.wakeAt(fd, min(d.want-d.got, highMark))
			return d.err != nil
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
	d.err = d.wakeAt(fd, 1)
	return true
}

// wakeAt sets how many bytes must be there for the connection to count as
// readable. It never is more than what is still to come, and an end or an error
// of the connection counts in any case.
func (d *discarder) wakeAt(fd uintptr, bytes int64) error {
	mark := int(bytes)
	if !d.near || mark < lowMark {
		mark = 1
	}
	if mark == max(d.mark, 1) {
		return nil
	}
	if err := syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, mark); err != nil {
		return err
	}
	d.mark = mark
	return nil
}

// discard drops n bytes and returns how many there were.
func (d *discarder) discard(n int64) (int64, error) {
	d.want, d.got, d.err = n, 0, nil
	if err := d.raw.Read(d.read); err != nil {
		return d.got, err
	}
	return d.got, d.err
}
