package spool

import "golang.org/x/sys/unix"

func (f osFile) writeBack(offset, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), offset, n, unix.SYNC_FILE_RANGE_WRITE)
}
