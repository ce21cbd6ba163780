package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	clonePath = "/dev/net/tun"
	// nodeDevice is the name of the device in every node.
	nodeDevice = "tl0"
	// deviceQueue is how many packets (each up to 64 KiB of segments) a device
	// keeps for the relay.
	deviceQueue = 2048
)

// hostDevice is the name of the lab's device in the host's own namespace.
func hostDevice(k int) string { return fmt.Sprintf("tlab%d", k) }

// Available tells in plain words what this machine lacks for emulated sites;
// nil when nothing.
func Available() error {
	var faults []error
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		faults = append(faults, fmt.Errorf("read this process's capabilities: %w", err))
	} else {
		lacks := ""
		if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
			lacks = "CAP_NET_ADMIN"
		}
		if data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
			if lacks != "" {
				lacks += " and "
			}
			lacks += "CAP_SYS_ADMIN"
		}
		if lacks != "" {
			faults = append(faults, fmt.Errorf("emulated sites need root or CAP_NET_ADMIN and CAP_SYS_ADMIN, to make network namespaces and devices: this process has user id %d and not %s; run as root (in a container: privileged)", os.Geteuid(), lacks))
		}
	}
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		faults = append(faults, fmt.Errorf("emulated sites need %s: %w (`modprobe tun`; in a container `--device %s`)", clonePath, err, clonePath))
	} else {
		_ = unix.Close(fd)
	}
	return errors.Join(faults...)
}

// openDevice makes a TUN device in the calling thread's namespace.
func openDevice(name string) (*os.File, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", clonePath, err)
	}
	fail := func(what string, err error) (*os.File, error) {
		return nil, errors.Join(fmt.Errorf("%s of %s: %w", what, name, err), unix.Close(fd))
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fail("name", err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fail("creation", err)
	}
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	// UDP segmentation came with Linux 6.2; without it the kernel splits.
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) != nil {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp); err != nil {
			return fail("offload", err)
		}
	}
	return os.NewFile(uintptr(fd), clonePath), nil
}

// setUp gives a device of the calling thread's namespace its addresses. What is
// wrong with IPv6 alone comes back by itself: a host may have it switched off.
func setUp(name string, a4, a6 netip.Prefix) (err, err6 error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err), nil
	}
	// No address, hence no noise, of the kernel's own making.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0)
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_ra", []byte("0"), 0)
	if err := netlink.LinkSetMTU(link, MTU); err != nil {
		return fmt.Errorf("MTU of %s: %w", name, err), nil
	}
	if err := netlink.LinkSetTxQLen(link, deviceQueue); err != nil {
		return fmt.Errorf("queue of %s: %w", name, err), nil
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a4)}); err != nil {
		return fmt.Errorf("address %s of %s: %w", a4, name, err), nil
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a6), Flags: unix.IFA_F_NODAD}); err != nil {
		err6 = fmt.Errorf("address %s of %s: %w", a6, name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err), nil
	}
	return nil, err6
}

const (
	addressPatience = 5 * time.Second
	addressInterval = time.Millisecond
)

// awaitAddress returns when the calling thread's namespace takes packets for its
// IPv6 address: the kernel gets round to that only some time after it was
// given, though no duplicate is looked for, and tells nobody when.
func awaitAddress(ctx context.Context, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, addressPatience)
	defer cancel()
	for {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("address %s does not come up: %w", a, ctx.Err()), err)
		case <-time.After(addressInterval):
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// thisNamespace opens the network namespace of the calling thread.
func thisNamespace() (*os.File, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open this network namespace: %w", err)
	}
	return f, nil
}

// elsewhere runs f on a thread that may leave its network namespace: one that
// cannot return to it ends, so that no other goroutine ever runs there.
func elsewhere(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := thisNamespace()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, home.Close())
	}()
	return <-done
}

// inside runs f on a thread in a network namespace.
func inside(namespace *os.File, f func() error) error {
	return elsewhere(func() error {
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a node's network namespace: %w", err)
		}
		return f()
	})
}

// newNamespace makes a network namespace with lo and a TUN device that has the
// given addresses.
func newNamespace(a4, a6 netip.Prefix) (namespace, device *os.File, err error) {
	err = elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if namespace, err = thisNamespace(); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring lo up: %w", err)
		}
		// As containers have it: ICMP echo without privileges.
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
			return fmt.Errorf("allow ICMP echo: %w", err)
		}
		if device, err = openDevice(nodeDevice); err != nil {
			return err
		}
		err, err6 := setUp(nodeDevice, a4, a6)
		return errors.Join(err, err6)
	})
	if err != nil {
		for _, f := range []*os.File{namespace, device} {
			if f != nil {
				_ = f.Close()
			}
		}
		return nil, nil, err
	}
	return namespace, device, nil
}

// reserveBlock chooses addresses that neither this host nor another lab on it
// uses. The reservation is an abstract socket: it is made at once or not at all,
// is seen by the whole network namespace and goes with its process.
func reserveBlock() (k int, reservation *os.File, err error) {
	taken, err := hostPrefixes()
	if err != nil {
		return 0, nil, err
	}
	overlaps := func(b addressBlock) bool {
		for _, p := range taken {
			if p.Overlaps(b.v4) || p.Overlaps(b.v6) {
				return true
			}
		}
		return false
	}
	for k := range blocks {
		if overlaps(block(k)) {
			continue
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, nil, fmt.Errorf("reserve addresses: %w", err)
		}
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@transferlab-netlab-%d", k)})
		if err == nil {
			return k, os.NewFile(uintptr(fd), "reservation"), nil
		}
		_ = unix.Close(fd)
		if !errors.Is(err, unix.EADDRINUSE) {
			return 0, nil, fmt.Errorf("reserve addresses: %w", err)
		}
	}
	return 0, nil, fmt.Errorf("no addresses left for an emulated network: this host has routes or other labs for all of 10.73.0.0/16 and 198.18.0.0/15")
}

// hostPrefixes gives what this host has addresses or routes for, the default
// routes excepted.
func hostPrefixes() ([]netip.Prefix, error) {
	var taken []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		if a, ok := netip.AddrFromSlice(n.IP); ok {
			if bits, _ := n.Mask.Size(); bits > 0 {
				taken = append(taken, netip.PrefixFrom(a.Unmap(), bits).Masked())
			}
		}
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list this host's addresses: %w", err)
	}
	for _, a := range addresses {
		add(a.IPNet)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list this host's routes: %w", err)
		}
		for _, r := range routes {
			add(r.Dst)
		}
	}
	return taken, nil
}

// droppedAt is how many packets the named device of the calling thread's
// namespace dropped because the relay had not taken them.
func droppedAt(name string) (int64, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", name, err)
	}
	if s := link.Attrs().Statistics; s != nil {
		return int64(s.TxDropped), nil
	}
	return 0, nil
}
