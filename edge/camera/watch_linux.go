package camera

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watcher tells of files that were closed after writing, or moved in. (The
// portable libraries know of writes only, not of the end of writing.)
type watcher struct{ file *os.File }

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return &watcher{file: os.NewFile(uintptr(fd), "inotify")}, nil
}

func (w *watcher) close() { _ = w.file.Close() }

// run sends names until ctx or the watcher ends.
func (w *watcher) run(ctx context.Context, finished chan<- string) {
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buffer)
		if err != nil {
			return
		}
		for _, name := range names(buffer[:n]) {
			select {
			case finished <- name:
			case <-ctx.Done():
				return
			}
		}
	}
}

// names are those in the kernel's events; an overflow has none, and the next
// scan finds what was left out.
func names(b []byte) (all []string) {
	for len(b) >= unix.SizeofInotifyEvent {
		length := int(binary.NativeEndian.Uint32(b[12:]))
		b = b[unix.SizeofInotifyEvent:]
		if length < 0 || length > len(b) {
			return all
		}
		if name, _, _ := bytes.Cut(b[:length], []byte{0}); len(name) > 0 {
			all = append(all, string(name))
		}
		b = b[length:]
	}
	return all
}

// openRegular opens a file, but no link, and without waiting for a pipe's other
// end.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open it: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open it: %s, want a regular file", info.Mode().Type())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}
