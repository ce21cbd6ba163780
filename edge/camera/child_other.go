//go:build !linux

package camera

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
