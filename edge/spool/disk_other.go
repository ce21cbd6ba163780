//go:build !linux

package spool

func (f osFile) writeBack(int64, int64) {}
