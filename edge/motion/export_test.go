package motion

import (
	"os"
	"time"
)

// LineOf reads the kernel's events from a file.
func LineOf(f *os.File, now func() time.Time) Line { return &events{file: f, now: now} }
