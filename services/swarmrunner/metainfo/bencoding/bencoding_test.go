package bencoding

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/anacrolix/torrent/bencode"
)

func TestCheck(t *testing.T) {
	for _, ok := range []string{
		"i0e", "i-1e", "i9223372036854775807e", "i-9223372036854775808e", "0:", "3:abc", "le", "de", "d0:le1:a1:be",
		"lli1eei2ed1:adeee", strings.Repeat("l", MaxDepth) + strings.Repeat("e", MaxDepth),
	} {
		if err := Check([]byte(ok)); err != nil {
			t.Errorf("Check(%q): %v", ok, err)
		}
	}
	for in, says := range map[string]string{
		"e":                                  "without a beginning",
		"x":                                  "begins no value",
		"-1:":                                "begins no value",
		"i0ei0e":                             "3 bytes after the end",
		"ie":                                 "no integer",
		"i-0e":                               "no integer",
		"i01e":                               "no integer",
		"i+1e":                               "no integer",
		"i 1e":                               "no integer",
		"i9223372036854775808e":              "no integer",
		"i" + strings.Repeat("9", 100) + "e": "no integer",
		"01:a":                               "no length",
		"1a:b":                               "no length",
		strings.Repeat("1", 30) + ":":        "no length",
		"99999999999999999999:":              "no length",
		"di1ei2ee":                           "want a key",
		"d1:ae":                              "no value",
		"d1:bi1e1:ai1ee":                     "sorted",
		"d1:ai1e1:ai1ee":                     "different",
		strings.Repeat("l", MaxDepth+1):      "nested deeper",
		"l" + strings.Repeat("0:", MaxValues+1) + "e": "more than 100000 values",
	} {
		err := Check([]byte(in))
		if err == nil || !strings.Contains(err.Error(), says) || errors.Is(err, ErrTruncated) {
			t.Errorf("Check(%.40q) = %v, want one that says %q", in, err, says)
		}
	}
	whole := "d1:ali-12ei0ee12:bbbbbbbbbbbbd1:c3:xyzee"
	for n := range len(whole) {
		if err := Check([]byte(whole[:n])); !errors.Is(err, ErrTruncated) {
			t.Errorf("Check(%q) = %v, want it to say truncated", whole[:n], err)
		}
	}
}

func TestCheckAllocates(t *testing.T) {
	data := []byte("d1:ali-12ei0ee12:bbbbbbbbbbbbd1:c3:xyzee")
	if n := testing.AllocsPerRun(100, func() { _ = Check(data) }); n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// What passes the check is what the decoder reads without any fault, and what
// the encoder writes.
func FuzzCheck(f *testing.F) {
	for _, seed := range []string{"d1:ali-12ei0ee1:b3:xyze", "i-9223372036854775808e", "lld0:0:eee", "5:abc", "99999999999:", "llllll"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if Check(data) != nil {
			return
		}
		var v any
		if err := bencode.Unmarshal(data, &v); err != nil {
			t.Fatalf("%q passes, but: %v", data, err)
		}
		again, err := bencode.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, data) {
			t.Fatalf("%q becomes %q", data, again)
		}
		var raw bencode.Bytes
		if err := Unmarshal(data, &raw); err != nil || !bytes.Equal(raw, data) {
			t.Fatalf("%q is raw %q (%v)", data, raw, err)
		}
	})
}
