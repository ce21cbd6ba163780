package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestMessagesComeAsTheyWereSent(t *testing.T) {
	var b bytes.Buffer
	s := NewStream(&b, &b)
	pix := bytes.Repeat([]byte{1, 2, 3}, 12)
	if err := s.Write(TypeFrame, FrameHead(4, 3, 0.5), pix); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteJSON(TypeFault, Fault{Text: "no"}); err != nil {
		t.Fatal(err)
	}
	typ, data, err := s.Read()
	if err != nil || typ != TypeFrame {
		t.Fatalf("%c, %v", typ, err)
	}
	f, err := ParseFrame(data)
	if err != nil || f.Width != 4 || f.Height != 3 || f.Threshold != 0.5 || !bytes.Equal(f.Pix, pix) {
		t.Fatalf("%+v, %v", f, err)
	}
	if typ, data, err = s.Read(); err != nil || typ != TypeFault || string(data) != `{"text":"no"}` {
		t.Fatalf("%c %s, %v", typ, data, err)
	}
	if _, _, err = s.Read(); err != io.EOF {
		t.Fatalf("%v, want the end", err)
	}
}

func TestLengthsAreBounded(t *testing.T) {
	head := func(n uint32, typ Type) *bytes.Reader {
		b := binary.BigEndian.AppendUint32(nil, n)
		return bytes.NewReader(append(b, byte(typ)))
	}
	for _, c := range []struct {
		n    uint32
		typ  Type
		want string
	}{
		{1 << 31, TypeFrame, "want at most"},
		{maxControl + 1, TypeObjects, "want at most"},
		{1, 'x', "unknown type"},
		{10, TypeHello, io.ErrUnexpectedEOF.Error()},
	} {
		if _, _, err := NewStream(head(c.n, c.typ), nil).Read(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d bytes of %c: %v, want %q", c.n, c.typ, err, c.want)
		}
	}
	if err := NewStream(nil, io.Discard).Write(TypeFault, make([]byte, maxControl+1)); err == nil {
		t.Error("a message that the other side would refuse was sent")
	}
	if _, _, err := NewStream(bytes.NewReader([]byte{0, 0}), nil).Read(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v in the middle of a head", err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, data := range [][]byte{nil, FrameHead(0, 0, 0), FrameHead(2, 2, 0.5), append(FrameHead(1, 1, 2), 1, 2, 3)} {
		if f, err := ParseFrame(data); err == nil {
			t.Errorf("%v taken as %+v", data, f)
		}
	}
	for _, text := range []string{`{`, `[{"score":0.5}]`, `[{"label":"cat","score":2}]`, `[{"label":"cat","x":-0.1}]`} {
		if o, err := ParseObjects([]byte(text)); err == nil {
			t.Errorf("%s taken as %+v", text, o)
		}
	}
	for _, text := range []string{`[]`, `{}`, `{"width":5000,"height":3}`, `{"width":5,"height":3,"threshold":7}`} {
		if l, err := ParseLoaded([]byte(text)); err == nil {
			t.Errorf("%s taken as %+v", text, l)
		}
	}
}

func FuzzStream(f *testing.F) {
	var b bytes.Buffer
	s := NewStream(nil, &b)
	_ = s.WriteJSON(TypeHello, Hello{Version: Version, Engine: "opencv 4.6.0"})
	_ = s.Write(TypeFrame, FrameHead(1, 1, 0.5), []byte{1, 2, 3})
	_ = s.WriteJSON(TypeObjects, []Object{{Label: "cat", Score: 0.5, W: 1, H: 1}})
	_ = s.WriteJSON(TypeLoaded, Loaded{Width: 416, Height: 416})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		s := NewStream(bytes.NewReader(data), nil)
		for {
			typ, data, err := s.Read()
			if err != nil {
				return
			}
			switch typ {
			case TypeFrame:
				if p, err := ParseFrame(data); err == nil && len(p.Pix) != 3*p.Width*p.Height {
					t.Errorf("%d × %d with %d bytes", p.Width, p.Height, len(p.Pix))
				}
			case TypeObjects:
				if objects, err := ParseObjects(data); err == nil {
					if _, err := json.Marshal(objects); err != nil {
						t.Error(err)
					}
				}
			case TypeLoaded:
				_, _ = ParseLoaded(data)
			}
		}
	})
}
