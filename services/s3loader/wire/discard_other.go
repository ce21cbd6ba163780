//go:build !linux || !(amd64 || arm64)

package wire

import (
	"errors"
	"syscall"
)

const canDiscard = false

type discarder struct{}

func (*discarder) init(syscall.RawConn) {}

func (*discarder) discard(int64) (int64, error) { return 0, errors.ErrUnsupported }
