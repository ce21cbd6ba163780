package vision

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

// later goes on after d by the clock of a synctest bubble, which runs ahead as
// soon as all in the bubble wait: nobody really does.
func later(d time.Duration) { <-time.After(d) }

func mp4Box(kind string, size int) []byte {
	b := make([]byte, max(size, 8))
	binary.BigEndian.PutUint32(b, uint32(size))
	copy(b[4:], kind)
	return b
}

func TestIndexFirst(t *testing.T) {
	join := func(boxes ...[]byte) []byte { return bytes.Join(boxes, nil) }
	long := append([]byte{0, 0, 0, 1, 'f', 'r', 'e', 'e', 0, 0, 0, 0, 0, 0, 0, 24}, make([]byte, 8)...)
	for _, c := range []struct {
		name string
		data []byte
		want bool
	}{
		{"fragmented or made for streaming", join(mp4Box("ftyp", 24), mp4Box("moov", 500), mp4Box("mdat", 1000)), true},
		{"index at the end", join(mp4Box("ftyp", 24), mp4Box("free", 8), mp4Box("mdat", 1000), mp4Box("moov", 500)), false},
		{"64-bit size", join(mp4Box("ftyp", 24), long, mp4Box("moov", 500)), true},
		{"a box to the end", join(mp4Box("ftyp", 24), mp4Box("free", 0), mp4Box("moov", 500)), false},
		{"a box that is too small", join(mp4Box("ftyp", 4), mp4Box("moov", 500)), false},
		{"a box that is huge", join(mp4Box("ftyp", 24), mp4Box("free", 1<<20), mp4Box("moov", 500)), false},
		{"no MP4", []byte("GIF89a and so on and so on"), false},
		{"cut short", mp4Box("ftyp", 24)[:10], false},
	} {
		r := bufio.NewReaderSize(bytes.NewReader(c.data), headBytes)
		got, err := indexFirst(r)
		if err != nil || got != c.want {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
		if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, c.data) {
			t.Errorf("%s: %d bytes left of %d", c.name, len(rest), len(c.data))
		}
	}
	if _, err := indexFirst(bufio.NewReader(strings.NewReader(""))); !errors.Is(err, ErrUndecodable) {
		t.Errorf("%v for nothing", err)
	}
}

func FuzzIndexFirst(f *testing.F) {
	f.Add(bytes.Join([][]byte{mp4Box("ftyp", 24), mp4Box("moov", 50)}, nil))
	f.Add([]byte{0, 0, 0, 1, 'f', 'r', 'e', 'e', 255, 255, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), headBytes)
		_, _ = indexFirst(r)
		if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, data) {
			t.Error("bytes are missing")
		}
	})
}

func FuzzReadPPM(f *testing.F) {
	f.Add([]byte("P6\n2 1\n255\nabcdef"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readPPM(bufio.NewReader(bytes.NewReader(data)), nil)
		if err == nil && (len(p.pix) != 3*p.width*p.height || p.width > wire.MaxSide) {
			t.Errorf("%d × %d with %d bytes", p.width, p.height, len(p.pix))
		}
	})
}

func TestReadPPM(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("P6\n2 1\n255\nabcdefP6\n1 1\n255\nxyzP6\n5 5\n255\nshort"))
	a, err := readPPM(r, nil)
	if err != nil || a.width != 2 || string(a.pix) != "abcdef" {
		t.Fatalf("%+v, %v", a, err)
	}
	b, err := readPPM(r, a.pix)
	if err != nil || string(b.pix) != "xyz" || &b.pix[0] != &a.pix[0] {
		t.Errorf("%+v, %v, want it where the one before was", b, err)
	}
	if _, err := readPPM(r, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v for a picture cut short", err)
	}
	for _, text := range []string{"P5\n1 1\n255\nx", "P6\n0 1\n255\n", "P6\n99999 1\n255\n", "P6\n1 1\n65535\n", "P6\n1000000000000 1\n255\n"} {
		if p, err := readPPM(bufio.NewReader(strings.NewReader(text)), nil); err == nil || err == io.EOF {
			t.Errorf("%q taken as %+v", text, p)
		}
	}
}

func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter()
		later(1 * time.Second) // busy
		a := m.wait()
		later(10 * time.Second)
		b := m.wait()
		later(10 * time.Second)
		a()
		later(10 * time.Second)
		if got := m.stuck(); got != time.Second {
			t.Errorf("stuck for %s, want the second it was busy", got)
		}
		b()
		later(2 * time.Second) // busy
		m.progress()
		later(3 * time.Second) // busy
		if got := m.stuck(); got != 3*time.Second {
			t.Errorf("stuck for %s, want 3 s", got)
		}
		if got := m.stop(); got != 6*time.Second {
			t.Errorf("busy for %s, want 6 s", got)
		}
		later(time.Hour)
		if got := m.stop(); got != 6*time.Second {
			t.Errorf("busy for %s after the end", got)
		}
	})
}

func TestReason(t *testing.T) {
	for _, c := range []struct{ said, want string }{
		{"", ""},
		{"[mov,mp4 @ 0x55ef3df42f40] moov atom not found\npipe:0: Invalid data found when processing input\n", "pipe:0: Invalid data found when processing input"},
		{"[h264 @ 0x1234] error while decoding\n    Last message repeated 3 times\n", "[h264] error while decoding"},
		{"terminate called after throwing an instance of 'cv::Exception'\n  what():  OpenCV(4.6.0) bad\n\nSIGABRT: abort\nPC=0x1 m=0 sigcode=1\n", "OpenCV(4.6.0) bad"},
	} {
		var s tail
		fmt.Fprint(&s, c.said)
		if got := s.reason(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	var s tail
	for range 1000 {
		fmt.Fprint(&s, strings.Repeat("x", 1000))
	}
	if len(s.data) > tailBytes || len(s.reason()) > 300 {
		t.Errorf("%d bytes kept", len(s.data))
	}
}

func TestOptionsNameAllFaults(t *testing.T) {
	_, err := New(Options{Model: "../x", Sample: -1, Threshold: 2, Threads: -1, Slots: 100, Nice: 20, MaxLength: -1, Timeout: -1})
	for _, want := range []string{"model", "sample", "threshold", "threads", "slots", "nice", "max length", "timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	_, err = New(Options{Program: "/nowhere/transferlab-vision", FFmpeg: "/nowhere/ffmpeg"})
	for _, want := range []string{"task opencv", "needs ffmpeg", "needs transferlab-vision"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
