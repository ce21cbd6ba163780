package motion

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// Line is a sensor.
type Line interface {
	// Wait returns when the sensor has become active, by the local clock.
	Wait(ctx context.Context) (time.Time, error)
	Close() error
}

// An event of the kernel's GPIO character device, version 2: time in ns by
// CLOCK_REALTIME (as asked for), id (1: rising), offset, two sequence numbers
// and padding.
const (
	eventBytes = 48
	eventRise  = 1
)

// events is a line's file: each read gives whole events.
type events struct {
	file interface {
		io.ReadCloser
		SetReadDeadline(t time.Time) error
	}
	now func() time.Time
}

// Wait implements [Line].
func (e *events) Wait(ctx context.Context) (time.Time, error) {
	stop := context.AfterFunc(ctx, func() { _ = e.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var buffer [eventBytes]byte
	for {
		if _, err := io.ReadFull(e.file, buffer[:]); err != nil {
			if ctx.Err() != nil {
				return time.Time{}, ctx.Err()
			}
			return time.Time{}, fmt.Errorf("read the GPIO line: %w", err)
		}
		if binary.NativeEndian.Uint32(buffer[8:]) != eventRise {
			continue
		}
		// The kernel's stamp is earlier than ours by the time that this process
		// took to wake up. One that is far off is of another clock: kernels before
		// 5.11 ignore the choice.
		now := e.now()
		at := time.Unix(0, int64(binary.NativeEndian.Uint64(buffer[:])))
		if d := now.Sub(at); d < 0 || d > time.Minute {
			at = now
		}
		return at, nil
	}
}

// Close implements [Line].
func (e *events) Close() error { return e.file.Close() }
