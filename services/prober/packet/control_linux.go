package packet

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// control is what the kernel says beside a message.
type control struct {
	stamp   int64 // ns since 1970; 0 none
	ttl     int   // 0 not said
	drops   uint32
	dropped bool // drops was said

	local [16]byte // where a request was sent to; IPv4 in the first four bytes
	ifi   uint32

	// Of the error queue.
	failed           bool
	errno            uint32
	origin, typ, cod byte
	key              uint32 // of a transmit stamp
	offender         netip.Addr
}

// sizes of kernel structures, the same on every 64-bit Linux.
const (
	sizeTimestamping = 3 * 16
	sizeExtendedErr  = 16
)

// parseControl reads the control messages of recvmsg. What it does not know or
// what is cut it leaves out.
func parseControl(b []byte) (c control) {
	for len(b) >= unix.SizeofCmsghdr {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return c
		}
		b = rest
		switch {
		case hdr.Level == unix.SOL_SOCKET && hdr.Type == unix.SCM_TIMESTAMPING:
			if len(data) >= sizeTimestamping {
				sec, ns := int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:]))
				if sec > 0 && sec < 1<<33 && ns >= 0 && ns < second {
					c.stamp = sec*second + ns
				}
			}
		case hdr.Level == unix.SOL_SOCKET && hdr.Type == unix.SO_RXQ_OVFL:
			if len(data) >= 4 {
				c.drops, c.dropped = binary.NativeEndian.Uint32(data), true
			}
		case hdr.Level == unix.SOL_IP && hdr.Type == unix.IP_TTL, hdr.Level == unix.SOL_IPV6 && hdr.Type == unix.IPV6_HOPLIMIT:
			if len(data) >= 4 {
				c.ttl = int(binary.NativeEndian.Uint32(data) & 0xff)
			}
		case hdr.Level == unix.SOL_IP && hdr.Type == unix.IP_PKTINFO:
			if len(data) >= unix.SizeofInet4Pktinfo {
				c.ifi = binary.NativeEndian.Uint32(data)
				copy(c.local[:4], data[4:8])
			}
		case hdr.Level == unix.SOL_IPV6 && hdr.Type == unix.IPV6_PKTINFO:
			if len(data) >= unix.SizeofInet6Pktinfo {
				copy(c.local[:], data[:16])
				c.ifi = binary.NativeEndian.Uint32(data[16:])
			}
		case hdr.Level == unix.SOL_IP && hdr.Type == unix.IP_RECVERR, hdr.Level == unix.SOL_IPV6 && hdr.Type == unix.IPV6_RECVERR:
			c.extended(data)
		}
	}
	return c
}

func (c *control) extended(data []byte) {
	if len(data) < sizeExtendedErr {
		return
	}
	c.failed = true
	c.errno = binary.NativeEndian.Uint32(data)
	c.origin, c.typ, c.cod = data[4], data[5], data[6]
	c.key = binary.NativeEndian.Uint32(data[12:])
	if from, ok := parseSockaddr(data[sizeExtendedErr:]); ok {
		c.offender = from.Addr()
	}
}

// parseSockaddr reads a struct sockaddr_in or sockaddr_in6; zones are left out.
func parseSockaddr(b []byte) (netip.AddrPort, bool) {
	if len(b) < unix.SizeofSockaddrInet4 {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port), true
	case unix.AF_INET6:
		if len(b) >= unix.SizeofSockaddrInet6 {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port), true
		}
	}
	return netip.AddrPort{}, false
}

// putSockaddr writes addr as a struct sockaddr and returns its length.
func putSockaddr(b []byte, addr netip.AddrPort, scope uint32) int {
	a := addr.Addr()
	if a.Is4() {
		clear(b[:unix.SizeofSockaddrInet4])
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		binary.BigEndian.PutUint16(b[2:], addr.Port())
		ip := a.As4()
		copy(b[4:], ip[:])
		return unix.SizeofSockaddrInet4
	}
	clear(b[:unix.SizeofSockaddrInet6])
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	binary.BigEndian.PutUint16(b[2:], addr.Port())
	ip := a.As16()
	copy(b[8:], ip[:])
	binary.NativeEndian.PutUint32(b[24:], scope)
	return unix.SizeofSockaddrInet6
}

// putCmsgHeader writes the header of a control message with size bytes of data.
func putCmsgHeader(b []byte, size, level, kind int) {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.SetLen(unix.CmsgLen(size))
	h.Level, h.Type = int32(level), int32(kind)
}

func sendmsg(fd int, m *unix.Msghdr) error {
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if errno != 0 {
		return errno
	}
	return nil
}
