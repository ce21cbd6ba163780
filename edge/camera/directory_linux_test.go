package camera

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

func watched(t *testing.T) (dir string, o Options) {
	o = options(t)
	dir = t.TempDir()
	o.Source.Kind, o.Source.Path, o.Source.Quiet = KindDirectory, dir, schemas.Duration(time.Hour)
	return dir, o
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ready waits until the directory is watched.
func ready(t *testing.T, dir string, sink *store) {
	t.Helper()
	put(t, filepath.Join(dir, "first.mp4"), "first")
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "first.mp4"), old, old); err != nil {
		t.Fatal(err)
	}
	if c := sink.wait(t); c.String() != "first" {
		t.Fatalf("%q", c)
	}
}

func TestFinishedFilesAreTaken(t *testing.T) {
	t.Parallel()
	dir, o := watched(t)
	sink := newStore()
	stop := started(t, o, sink)
	ready(t, dir, sink)

	// Closed after writing: not before.
	f, err := os.Create(filepath.Join(dir, "a b.mkv"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("half"); err != nil {
		t.Fatal(err)
	}
	// Moved in, and what is not to be taken.
	outside := filepath.Join(t.TempDir(), "x")
	put(t, outside, "moved")
	for _, name := range []string{".hidden.mp4", "note.txt", "clip.mp4.part"} {
		put(t, filepath.Join(dir, name), "not a clip")
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.mp4"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link.mp4")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.mp4"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(outside, filepath.Join(dir, "moved in.TS")); err != nil {
		t.Fatal(err)
	}
	moved := sink.wait(t)
	if moved.String() != "moved" || moved.Start.Type != schemas.TypeMPEG || !strings.HasPrefix(moved.Start.ID, "moved-in-") || schemas.ClipID(moved.Start.ID) != nil {
		t.Errorf("%q %+v", moved, moved.Start)
	}
	if _, err := f.WriteString(" and whole"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	whole := sink.wait(t)
	if whole.String() != "half and whole" || whole.Start.Type != schemas.TypeMKV || whole.Start.Size != 14 {
		t.Errorf("%q %+v", whole, whole.Start)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 6 {
		t.Errorf("%v is left, want the six that are no clips", left)
	}
}

// Without being told, files are complete once they are quiet.
func TestQuietFilesAreTaken(t *testing.T) {
	t.Parallel()
	dir, o := watched(t)
	o.Source.Quiet = schemas.Duration(200 * time.Millisecond)
	sink := newStore()
	started(t, o, sink)
	// A file from before the start, whose writer nobody has seen.
	put(t, filepath.Join(dir, "old.mp4"), "old")
	if c := sink.wait(t); c.String() != "old" {
		t.Errorf("%q", c)
	}
}

// A kill between the clip's being durable and the file's being removed: the
// next start removes it, and takes it no second time.
func TestTakenOnceAcrossAKill(t *testing.T) {
	t.Parallel()
	dir, o := watched(t)
	path := filepath.Join(dir, "clip.mp4")
	put(t, path, "clip")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	keep := filepath.Join(t.TempDir(), "same file")
	if err := os.Link(path, keep); err != nil {
		t.Fatal(err)
	}
	sink := newStore()
	d := newDirectory(o)
	d.one(t.Context(), sink, "clip.mp4", true)
	first := sink.wait(t)
	if first.Start.ID != fileID("clip.mp4", info) {
		t.Errorf("id %s", first.Start.ID)
	}
	// The same file again, as if it had not been removed.
	if err := os.Link(keep, path); err != nil {
		t.Fatal(err)
	}
	newDirectory(o).one(t.Context(), sink, "clip.mp4", true)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	// Another file of the same name is another clip.
	put(t, path, "next")
	d.one(t.Context(), sink, "clip.mp4", true)
	if next := sink.wait(t); next.String() != "next" || len(sink.clips) != 2 {
		t.Errorf("%q, %d clips", next, len(sink.clips))
	}
}

// A kill while a file was copied, of which the sink has kept what there was: the
// file is not taken for done.
func TestFileWhoseCopyACrashHasCut(t *testing.T) {
	t.Parallel()
	dir, o := watched(t)
	path := filepath.Join(dir, "clip.mp4")
	put(t, path, "the whole clip")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	sink := newStore()
	cut := fileID("clip.mp4", info)
	sink.begin = func(s Start) error {
		if s.ID == cut {
			return ErrPartial
		}
		return nil
	}
	newDirectory(o).one(t.Context(), sink, "clip.mp4", true)
	if c := sink.wait(t); c.String() != "the whole clip" || c.Start.ID != cut+"-2" {
		t.Errorf("%q as %s", c, c.Start.ID)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	sink.begin = func(Start) error { return ErrPartial }
	put(t, path, "never")
	newDirectory(o).one(t.Context(), sink, "clip.mp4", true)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a file that could not be taken is gone: %v", err)
	}
}

func TestFilesThatAreNotTaken(t *testing.T) {
	t.Parallel()
	dir, o := watched(t)
	o.Clip.MaxBytes = 64 << 10
	sink := newStore()
	d := newDirectory(o)
	path := filepath.Join(dir, "large.mp4")
	put(t, path, strings.Repeat("x", 64<<10+1))
	d.one(t.Context(), sink, "large.mp4", true)
	if !d.seen["large.mp4"].left {
		t.Error("the large file would be looked at again and again")
	}
	put(t, filepath.Join(dir, "empty.mp4"), "")
	d.one(t.Context(), sink, "empty.mp4", true)
	put(t, filepath.Join(dir, "fails.mp4"), "fails")
	sink.begin = func(Start) error { return errors.New("no room") }
	d.one(t.Context(), sink, "fails.mp4", true)
	for _, name := range []string{"large.mp4", "empty.mp4", "fails.mp4"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
	if len(sink.clips) != 0 {
		t.Errorf("%d clips", len(sink.clips))
	}
	if s := d.seen["fails.mp4"]; s.left || !s.again.After(time.Now()) {
		t.Errorf("%+v, want that it is tried again later", s)
	}
}

// A file that is written to while it is copied is not taken.
func TestFileThatStillGrows(t *testing.T) {
	t.Parallel()
	dir, o := watched(t)
	path := filepath.Join(dir, "grows.mp4")
	put(t, path, strings.Repeat("a", 1000))
	sink := newStore()
	sink.write = func(*clip) error {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("more")
		return errors.Join(err, f.Close())
	}
	newDirectory(o).one(t.Context(), sink, "grows.mp4", true)
	if len(sink.clips) != 0 || sink.aborted != 1 {
		t.Errorf("%d clips, %d aborted", len(sink.clips), sink.aborted)
	}
}

func TestManyFiles(t *testing.T) {
	t.Parallel()
	dir, o := watched(t)
	o.Source.Quiet = schemas.Duration(100 * time.Millisecond)
	const n = 600
	for i := range n {
		put(t, filepath.Join(dir, fmt.Sprintf("%03d.mp4", i)), fmt.Sprint(i))
	}
	sink := newStore()
	sink.committed = make(chan *clip, 2*n)
	stop := started(t, o, sink)
	for range n {
		sink.wait(t)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if len(sink.clips) != n {
		t.Errorf("%d clips of %d files", len(sink.clips), n)
	}
}

func TestDirectoryThatIsNone(t *testing.T) {
	t.Parallel()
	_, o := watched(t)
	o.Source.Path = filepath.Join(t.TempDir(), "absent")
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), newStore()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func FuzzNames(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00clip.mp4\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, name := range names(in) {
			if strings.Contains(name, "\x00") || name == "" {
				t.Fatalf("%q", name)
			}
		}
	})
}

func FuzzClipNames(f *testing.F) {
	for _, name := range []string{"clip.mp4", "../../etc/passwd.ts", "-", "ü ö.mkv", strings.Repeat("é", 300) + ".mp4", ".mp4", "a'\n.mp4"} {
		f.Add(name)
	}
	info, err := os.Stat(".")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if err := schemas.ClipID(fileID(name, info)); err != nil {
			t.Fatal(err)
		}
		if err := schemas.ClipID(clipName(name, time.Unix(0, int64(len(name))))); err != nil {
			t.Fatal(err)
		}
	})
}
