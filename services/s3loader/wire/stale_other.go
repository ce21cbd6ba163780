//go:build !unix

package wire

func pending(uintptr) bool { return false }
