package stream

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel will put on every packet of the socket.
func TestMarks(t *testing.T) {
	o := options()
	o.DSCP, o.TTL = 46, 7
	for _, c := range []struct {
		addr               netip.Addr
		level, class, hops int
	}{
		{loopback, unix.IPPROTO_IP, unix.IP_TOS, unix.IP_TTL},
		{netip.IPv6Loopback(), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, unix.IPV6_UNICAST_HOPS},
	} {
		r := respond(t, c.addr, nil)
		to := netip.AddrPortFrom(c.addr, r.Ports()["tcp"])
		d := New(o).dialer(time.Time{})
		tcp, err := d.DialTCP(t.Context(), "tcp", netip.AddrPort{}, to)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		udp, err := d.DialUDP(t.Context(), "udp", netip.AddrPort{}, to)
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		for _, conn := range []interface {
			net.Conn
			SyscallConn() (syscall.RawConn, error)
		}{tcp, udp} {
			raw, err := conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			said := ""
			if err := raw.Control(func(fd uintptr) {
				class, err1 := unix.GetsockoptInt(int(fd), c.level, c.class)
				hops, err2 := unix.GetsockoptInt(int(fd), c.level, c.hops)
				said = fmt.Sprint(class, hops, err1, err2)
			}); err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprint(46<<2, 7, nil, nil); said != want {
				t.Errorf("%s to %s: %s, want %s", conn.LocalAddr().Network(), to, said, want)
			}
		}
	}
}
