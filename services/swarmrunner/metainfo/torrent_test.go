package metainfo

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// content is what the torrents in testdata describe: the zeros of AES in counter
// mode with a key of zeros.
func content(t testing.TB, n int) []byte {
	t.Helper()
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, n)
	cipher.NewCTR(block, make([]byte, 16)).XORKeyStream(out, out)
	return out
}

func TestMake(t *testing.T) {
	const piece = 16 << 10
	for _, size := range []int{1, piece - 1, piece, piece + 1, 10 * piece, 5<<20 + 17} {
		data := content(t, size)
		made := Make("a file", data, piece)
		if want := (size + piece - 1) / piece; made.Pieces() != want || len(made.Hashes) != want*sha1.Size {
			t.Fatalf("%d bytes: %d pieces, %d bytes of hashes, want %d pieces", size, made.Pieces(), len(made.Hashes), want)
		}
		rest := data
		for i := range made.Pieces() {
			n := made.PieceSize(i)
			if n > int64(len(rest)) || n < 1 {
				t.Fatalf("%d bytes: piece %d of %d, %d are left", size, i, n, len(rest))
			}
			if sum := sha1.Sum(rest[:n]); !bytes.Equal(sum[:], made.Hash(i)) {
				t.Fatalf("%d bytes: hash of piece %d is wrong", size, i)
			}
			rest = rest[n:]
		}
		if len(rest) > 0 {
			t.Fatalf("%d bytes: %d are in no piece", size, len(rest))
		}
		for _, announce := range [][]string{nil, {"http://127.0.0.1:1/announce"}, {"http://127.0.0.1:1/announce", "udp://127.0.0.1:1/announce"}} {
			read, err := Parse(made.Encode(announce...))
			if err != nil {
				t.Fatal(err)
			}
			want := *made
			want.Announce = announce
			if !reflect.DeepEqual(*read, want) {
				t.Fatalf("%d bytes: read %+v, want %+v", size, read, want)
			}
			if !bytes.Equal(read.Encode(), made.Encode(announce...)) {
				t.Fatal("written again, it is another file")
			}
		}
	}
}

func TestEncode(t *testing.T) {
	made := Make("n", []byte("x"), 16384)
	sum := sha1.Sum([]byte("x"))
	info := "d6:lengthi1e4:name1:n12:piece lengthi16384e6:pieces20:" + string(sum[:]) + "e"
	if want := "d4:info" + info + "e"; string(made.Encode()) != want {
		t.Errorf("%q, want %q", made.Encode(), want)
	}
	if want := "d8:announce1:a13:announce-listll1:ael1:bee4:info" + info + "e"; string(made.Encode("a", "b")) != want {
		t.Errorf("%q, want %q", made.Encode("a", "b"), want)
	}
	if made.InfoHash != sha1.Sum([]byte(info)) {
		t.Error("the info hash is not of the info dictionary")
	}
	fields := &Torrent{Name: made.Name, Length: made.Length, PieceLength: made.PieceLength, Hashes: made.Hashes}
	if !bytes.Equal(fields.Encode("a"), made.Encode("a")) {
		t.Error("a torrent made of its fields is written differently")
	}
}

// What other programs make of the same 100 000 bytes.
func TestParseOthers(t *testing.T) {
	for _, c := range []struct {
		file, hash  string
		pieceLength int64
		announce    int
	}{
		{"libtorrent-v1", "969cab91b0ebab50182e9ae84805201eb035856c", 48 << 10, 1},
		{"libtorrent-hybrid", "14c030029985440856d56b910749eaa83edc4f62", 16 << 10, 1},
		{"mktorrent", "2add1d42403e22bc2251f43d2e81098b25356a25", 64 << 10, 3},
		{"transmission", "6b67d44e0893e4f5b2b2c39b4ff43283a838cdca", 32 << 10, 2},
	} {
		data := testFile(t, c.file)
		read, err := Parse(data)
		if err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		if got := hex.EncodeToString(read.InfoHash[:]); got != c.hash {
			t.Errorf("%s: info hash %s, want %s", c.file, got, c.hash)
		}
		if read.Name != "plain.bin" || read.Length != 100_000 || read.PieceLength != c.pieceLength || len(read.Announce) != c.announce {
			t.Errorf("%s: %q of %d bytes in pieces of %d, trackers %q", c.file, read.Name, read.Length, read.PieceLength, read.Announce)
		}
		if made := Make("plain.bin", content(t, 100_000), c.pieceLength); !bytes.Equal(made.Hashes, read.Hashes) {
			t.Errorf("%s: its hashes of pieces are not ours", c.file)
		}
		again, err := Parse(read.Encode("http://127.0.0.1:1/announce"))
		if err != nil || again.InfoHash != read.InfoHash {
			t.Errorf("%s: written again, its info hash is %x (%v)", c.file, again.InfoHash, err)
		}
		for n := range len(data) {
			if _, err := Parse(data[:n]); !errors.Is(err, ErrTruncated) || !strings.Contains(err.Error(), "truncated") {
				t.Errorf("%s, the first %d bytes: %v, want it to say truncated", c.file, n, err)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	info := func(name string, length, piece int64, pieces int, more string) string {
		return fmt.Sprintf("d4:infod6:lengthi%de4:name%d:%s12:piece lengthi%de6:pieces%d:%s%see",
			length, len(name), name, piece, pieces*20, strings.Repeat("h", pieces*20), more)
	}
	if _, err := Parse([]byte(info("a", 1, 16384, 1, "7:privatei1e"))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ in, says string }{
		{"", "truncated"},
		{"i1e", "no dictionary"},
		{"<html>", "no dictionary"},
		{"de", "info: missing"},
		{"d4:infoi1ee", "info: no dictionary"},
		{"d4:infodee", "info.length: 0"},
		{info("a", 1, 16384, 1, "") + "\n", "1 bytes after the end"},
		{info("", 1, 16384, 1, ""), "info.name"},
		{info("..", 1, 16384, 1, ""), "plain file name"},
		{info("../a", 1, 16384, 1, ""), "plain file name"},
		{info(`a\b`, 1, 16384, 1, ""), "plain file name"},
		{info("a\x00", 1, 16384, 1, ""), "control characters"},
		{info("a\xff", 1, 16384, 1, ""), "UTF-8"},
		{info(strings.Repeat("a", 256), 1, 16384, 1, ""), "256 bytes"},
		{info("a", 0, 16384, 0, ""), "info.length: 0"},
		{info("a", -1, 16384, 0, ""), "info.length: -1"},
		{info("a", 1<<40+1, 16384, 0, ""), "info.length: 1099511627777"},
		{info("a", 1<<40, 16384, 0, ""), "67108864 pieces, want at most 1048576"},
		{info("a", 1, 0, 1, ""), "info.piece length: 0"},
		{info("a", 1, 16385, 1, ""), "info.piece length: 16385"},
		{info("a", 1, 8192, 1, ""), "info.piece length: 8192"},
		{info("a", 1, 128<<20, 1, ""), "info.piece length: 134217728"},
		{info("a", 1, 16384, 2, ""), "info.pieces: 40 bytes, want 20"},
		{info("a", 16385, 16384, 1, ""), "info.pieces: 20 bytes, want 40"},
		{info("a", 1, 16384, 1, "12:symlink pathle"), "symlink"},
		{"d8:announcei1e4:infodee", "announce"},
		{"d8:announce3000:" + strings.Repeat("a", 3000) + info("a", 1, 16384, 1, "")[1:], "URL of 3000 bytes"},
		{strings.Repeat("d1:a", 1<<20), "nested deeper"},
		{"d1:a99999999999:", "truncated"},
		{string(testFile(t, "libtorrent-v2")), "info.file tree without info.pieces"},
		{string(testFile(t, "multi")), "info.files"},
		{"d" + strings.Repeat(" ", MaxInput), "want at most 16777216"},
	} {
		read, err := Parse([]byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.60q: %+v, %v, want an error that says %q", c.in, read, err, c.says)
		}
	}
}

func testFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".torrent"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A torrent that is read can be written and read again and stays what it is.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"libtorrent-v1", "libtorrent-v2", "libtorrent-hybrid", "mktorrent", "transmission", "multi"} {
		f.Add(testFile(f, name))
	}
	f.Add(Make("a", []byte("content"), MinPieceLength).Encode("http://127.0.0.1:1/announce"))
	f.Fuzz(func(t *testing.T, data []byte) {
		read, err := Parse(data)
		if err != nil {
			return
		}
		if read.Pieces() < 1 || read.Pieces()*sha1.Size != len(read.Hashes) || read.PieceSize(read.Pieces()-1) < 1 || read.PieceSize(0) > read.PieceLength {
			t.Fatalf("%+v does not agree with itself", read)
		}
		if !bytes.Contains(data, read.info) || sha1.Sum(read.info) != read.InfoHash {
			t.Fatal("the info hash is not of the input's bytes")
		}
		again, err := Parse(read.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again, read) {
			t.Fatalf("%+v, read again %+v", read, again)
		}
		if !bytes.Equal(again.Encode(), read.Encode()) {
			t.Fatal("written twice, it is two files")
		}
	})
}

func BenchmarkMake(b *testing.B) {
	for _, size := range []int{10_000, 1_000_000, 100_000_000} {
		data := content(b, size)
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				Make("A", data, 64<<10)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	data := Make("A", content(b, 10_000), 16<<10).Encode("http://127.0.0.1:1/announce")
	for b.Loop() {
		if _, err := Parse(data); err != nil {
			b.Fatal(err)
		}
	}
}
