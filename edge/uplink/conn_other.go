//go:build !linux

package uplink

import (
	"net"
	"syscall"
	"time"
)

func tune(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }

type kernel struct{}

func kernelOf(net.Conn) kernel { return kernel{} }

func (kernel) tells() bool { return false }

func (kernel) acked() (int64, bool) { return 0, false }
