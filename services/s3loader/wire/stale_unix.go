//go:build unix

package wire

import "golang.org/x/sys/unix"

// pending reports whether a read would not block: on an idle connection that
// means it was closed by the other side, or that it sent what nobody asked for.
func pending(fd uintptr) bool {
	var b [1]byte
	for {
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return err != unix.EAGAIN && err != unix.EWOULDBLOCK
		}
	}
}
