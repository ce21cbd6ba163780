package wire

import (
	"bytes"
	"testing"
)

func TestHello(t *testing.T) {
	h := Hello{InfoHash: [20]byte{1, 2}, ID: [20]byte{3, 4}}
	h.SetFast()
	b := h.Append(nil)
	want := append([]byte("\x13BitTorrent protocol\x00\x00\x00\x00\x00\x00\x00\x04\x01\x02"), make([]byte, 18)...)
	want = append(append(want, 3, 4), make([]byte, 18)...)
	if !bytes.Equal(b, want) {
		t.Fatalf("%x", b)
	}
	if got, err := ParseHello(b); err != nil || got != h || !got.Fast() {
		t.Fatalf("%+v, %v", got, err)
	}
	b[1] = 'b'
	if _, err := ParseHello(b); err == nil {
		t.Fatal("a hello of another protocol was taken")
	}
}

// TestMessages holds every message against its bytes as BEP 3 and 6 have them.
func TestMessages(t *testing.T) {
	for _, c := range []struct {
		m    Message
		want []byte
	}{
		{Message{ID: IDChoke}, []byte{0, 0, 0, 1, 0}},
		{Message{ID: IDHaveAll}, []byte{0, 0, 0, 1, 14}},
		{Message{ID: IDHave, Index: 258}, []byte{0, 0, 0, 5, 4, 0, 0, 1, 2}},
		{Message{ID: IDRequest, Index: 1, Begin: 16384, Length: 16384}, []byte{0, 0, 0, 13, 6, 0, 0, 0, 1, 0, 0, 64, 0, 0, 0, 64, 0}},
		{Message{ID: IDReject, Index: 1, Begin: 2, Length: 3}, []byte{0, 0, 0, 13, 16, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3}},
		{Message{ID: IDBitfield, Bits: []byte{0xa0}}, []byte{0, 0, 0, 2, 5, 0xa0}},
	} {
		if got := c.m.Append(nil); !bytes.Equal(got, c.want) {
			t.Errorf("%+v: %x, want %x", c.m, got, c.want)
		}
	}
	header := make([]byte, PieceHeaderSize)
	PutPieceHeader(header, 7, 32768, 100)
	if !bytes.Equal(header, []byte{0, 0, 0, 109, 7, 0, 0, 0, 7, 0, 0, 128, 0}) {
		t.Errorf("%x", header)
	}
	if index, begin, n, ok := ParsePieceHeader(header); index != 7 || begin != 32768 || n != 100 || !ok {
		t.Error(index, begin, n, ok)
	}
}

func TestBits(t *testing.T) {
	b := NewBits(10)
	b.Set(0)
	b.Set(9)
	if !bytes.Equal(b, []byte{0x80, 0x40}) || b.Count() != 2 || !b.Has(9) || b.Has(8) {
		t.Fatalf("%x", b)
	}
	b.Fill(10)
	if !bytes.Equal(b, []byte{0xff, 0xc0}) || b.Count() != 10 || !b.Valid(10) || b.Valid(9) || b.Valid(17) {
		t.Fatalf("%x", b)
	}
	b[1] |= 1
	if b.Valid(10) {
		t.Error("a bit beyond the last piece is valid")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(byte(IDHave), []byte{0, 0, 1, 2})
	f.Add(byte(IDRequest), make([]byte, 12))
	f.Add(byte(IDBitfield), []byte{1})
	f.Add(byte(99), []byte("x"))
	f.Fuzz(func(t *testing.T, id byte, body []byte) {
		m, err := Parse(id, body)
		if err != nil || id == IDPiece || id == IDPort {
			return
		}
		again := m.Append(nil)
		if len(again) != 5+len(body) || again[4] != id || !bytes.Equal(again[5:], body) {
			t.Fatalf("%x became %x", body, again)
		}
	})
}
