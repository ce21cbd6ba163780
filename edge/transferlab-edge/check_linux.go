package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clock asks the kernel whether someone keeps its clock right.
func clock() (string, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return "", fmt.Errorf("ask the kernel for its clock: %w", err)
	}
	if state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0 {
		return "", wrong("switch time synchronisation on: timedatectl set-ntp true (or install chrony); clips are stamped by this clock", "the clock is not synchronised")
	}
	return fmt.Sprintf("synchronised, error at most %s", (time.Duration(t.Maxerror) * time.Microsecond).Round(time.Millisecond)), nil
}

func freeBytes(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("ask for the room in %s: %w", dir, err)
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
