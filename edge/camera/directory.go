package camera

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// directory takes the finished files of a directory.
type directory struct {
	o    Options
	scan time.Duration // how often it is looked through, whatever is told
	seen map[string]sighting
}

func newDirectory(o Options) *directory {
	quiet := time.Duration(o.Source.Quiet)
	return &directory{o: o, scan: min(max(quiet/2, 50*time.Millisecond), 10*time.Second), seen: map[string]sighting{}}
}

// sighting is how a file was when it was last looked at.
type sighting struct {
	size    int64
	changed time.Time // its modification time
	since   time.Time // it has been so; of the monotonic clock
	left    bool      // it is not to be taken, as it is
	failed  int       // tries in a row
	again   time.Time // not before
}

// Run implements [Source].
func (d *directory) Run(ctx context.Context, sink Sink) error {
	info, err := os.Stat(d.o.Source.Path)
	if err != nil {
		return fmt.Errorf("watch the directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("watch %s: it is not a directory", d.o.Source.Path)
	}
	// Without being told (another system, a network share) the scan finds files
	// once they are quiet.
	finished := make(chan string, 64)
	w, err := watch(d.o.Source.Path)
	if err != nil {
		d.o.Log.Warn("files are found by looking only, not when they are closed", "error", err)
	} else {
		defer w.close()
		go w.run(ctx, finished)
	}
	ticker := time.NewTicker(d.scan)
	defer ticker.Stop()
	for {
		if err := d.all(ctx, sink); err != nil {
			d.o.Log.Error("look through the directory", "error", err)
		}
		for scan := false; !scan; {
			select {
			case <-ctx.Done():
				return nil
			case name := <-finished:
				d.one(ctx, sink, name, true)
			case <-ticker.C:
				scan = true
			}
		}
	}
}

// all looks at every file.
func (d *directory) all(ctx context.Context, sink Sink) error {
	folder, err := os.Open(d.o.Source.Path)
	if err != nil {
		return fmt.Errorf("open the directory: %w", err)
	}
	defer folder.Close()
	there := map[string]bool{}
	// A few at a time: a directory may hold more names than memory should.
	for {
		names, err := folder.Readdirnames(256)
		for _, name := range names {
			if ctx.Err() != nil {
				return nil
			}
			there[name] = true
			d.one(ctx, sink, name, false)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the directory: %w", err)
		}
	}
	for name := range d.seen {
		if !there[name] {
			delete(d.seen, name)
		}
	}
	return nil
}

// mediaType is that of a file, by its name; "" for what is no clip, and for
// names by which programs hide what is not finished.
func mediaType(name string) string {
	if strings.HasPrefix(name, ".") {
		return ""
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".mp4", ".m4v":
		return schemas.TypeMP4
	case ".ts":
		return schemas.TypeMPEG
	case ".h264", ".264":
		return schemas.TypeH264
	case ".mkv":
		return schemas.TypeMKV
	}
	return ""
}

// one takes a file if it is complete: someone has told so, or it has been quiet.
func (d *directory) one(ctx context.Context, sink Sink, name string, told bool) {
	kind := mediaType(name)
	if kind == "" {
		return
	}
	path := filepath.Join(d.o.Source.Path, name)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return
	}
	now := time.Now()
	before, known := d.seen[name]
	if !known || before.size != info.Size() || !before.changed.Equal(info.ModTime()) {
		before = sighting{size: info.Size(), changed: info.ModTime(), since: now}
		d.seen[name] = before
	}
	quiet := time.Duration(d.o.Source.Quiet)
	// The file's own time tells for those that were there before us, unless its
	// clock is not ours.
	old := now.Sub(before.since) >= quiet || now.Sub(info.ModTime()) >= quiet && now.Sub(info.ModTime()) < 366*24*time.Hour
	if before.left || info.Size() == 0 || now.Before(before.again) || !told && !old {
		return
	}
	if info.Size() > int64(d.o.Clip.MaxBytes) {
		before.left = true
		d.seen[name] = before
		d.o.Log.Error("a file is not taken: it is larger than clip.max_bytes", "file", path, "size_bytes", info.Size(), "max_bytes", int64(d.o.Clip.MaxBytes))
		return
	}
	if err := d.take(ctx, sink, path, kind); err != nil {
		if ctx.Err() == nil {
			d.o.Log.Error("take a file", "file", path, "error", err)
		}
		// What cannot be removed would be tried for ever.
		before.left = errors.Is(err, errStays)
		before.again = now.Add(min(quiet<<min(before.failed, 8), time.Minute))
		before.failed++
		d.seen[name] = before
		return
	}
	delete(d.seen, name)
}

// mostCuts bounds how often the copying of one file may crash.
const mostCuts = 9

// errStays is of a file that was taken but cannot be removed.
var errStays = errors.New("it was taken, but cannot be removed: give this user the right to, lest it be taken again after the next start")

// take copies a file to the sink and removes it.
func (d *directory) take(ctx context.Context, sink Sink, path, kind string) error {
	f, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at it: %w", err)
	}
	start := Start{ID: fileID(filepath.Base(path), info), Trigger: info.ModTime(), Type: kind, Path: path, Size: info.Size()}
	rec, err := sink.Begin(ctx, start)
	// After a crash while it was copied it becomes another clip, as often as that
	// happens.
	for n, id := 2, start.ID; errors.Is(err, ErrPartial) && n <= mostCuts; n++ {
		start.ID = fmt.Sprintf("%s-%d", id, n)
		rec, err = sink.Begin(ctx, start)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		// It was taken before, and this process ended before it was removed.
	case err != nil:
		return err
	default:
		if err := d.copy(ctx, rec, f, info); err != nil {
			return errors.Join(err, rec.Abort())
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
		defer cancel()
		if err := rec.Commit(ctx, End{Recorded: info.ModTime()}); err != nil {
			return errors.Join(fmt.Errorf("make it durable: %w", err), rec.Abort())
		}
		d.o.Log.Info("file taken", "file", path, "size_bytes", info.Size())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errStays, err)
	}
	return nil
}

// copy copies a file that must not change meanwhile.
func (d *directory) copy(ctx context.Context, rec Recording, f *os.File, info fs.FileInfo) error {
	buffer := make([]byte, 256<<10)
	for left := info.Size(); left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buffer[:min(int64(len(buffer)), left)])
		if n > 0 {
			if _, err := rec.Write(buffer[:n]); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			left -= int64(n)
		}
		if err != nil && (left > 0 || !errors.Is(err, io.EOF)) {
			return fmt.Errorf("read it: %w", err)
		}
	}
	after, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at it: %w", err)
	}
	if after.Size() != info.Size() || !after.ModTime().Equal(info.ModTime()) {
		return errors.New("it was still being written")
	}
	return nil
}

// fileID names the clip of a file: the same for the same file, another for any
// other that ever has its name.
func fileID(name string, info fs.FileInfo) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %d %d %d", name, info.Size(), info.ModTime().UnixNano(), inode(info)))
	return safeName(strings.TrimSuffix(name, filepath.Ext(name))) + "-" + hex.EncodeToString(sum[:8])
}
