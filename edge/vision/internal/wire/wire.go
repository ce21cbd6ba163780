// Package wire is the protocol between a detector and its worker process
// transferlab-vision, over the worker's standard input and output.
//
// A message is its length (4 bytes, big endian), its type (1 byte) and as many
// bytes as the length says. The worker begins with Hello; then every message of
// the detector gets exactly one answer: Load is answered by Loaded, Frame by Objects,
// both by Fault when they cannot be. The worker ends when its input does. Both
// sides refuse a message that is longer than its type may be before they take memory
// for it.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
)

// Version of the protocol. Both programs come out of one build: there is
// nothing to negotiate, only something to notice.
const Version = 1

// Type says what a message holds.
type Type byte

// Types of messages.
const (
	TypeHello   Type = 'H' // worker: Hello
	TypeLoad    Type = 'L' // detector: Load
	TypeLoaded  Type = 'M' // worker: Loaded
	TypeFrame   Type = 'F' // detector: a picture, see AppendFrame
	TypeObjects Type = 'O' // worker: Objects
	TypeFault   Type = 'E' // worker: Fault
)

// Limits.
const (
	MaxSide    = 1920      // of a picture, in pixels
	MaxObjects = 300       // in a picture
	maxControl = 256 << 10 // bytes of a message that is JSON
	frameHead  = 8
)

func limit(t Type) int {
	switch t {
	case TypeFrame:
		return frameHead + 3*MaxSide*MaxSide
	case TypeHello, TypeLoad, TypeLoaded, TypeObjects, TypeFault:
		return maxControl
	}
	return -1
}

// Hello is the first message of a worker.
type Hello struct {
	Version int    `json:"version"`
	Engine  string `json:"engine"` // such as `opencv 4.6.0`; empty if there is none in the program
}

// Load names the files of a model.
type Load struct {
	Name    string `json:"name"`
	Kind    string `json:"kind,omitempty"` // of those that are part of the engine; else found out
	Model   string `json:"model,omitempty"`
	Weights string `json:"weights,omitempty"`
	Spec    string `json:"spec,omitempty"`
	Names   string `json:"names,omitempty"`
	Threads int    `json:"threads"`
}

// Loaded says what pictures the model wants.
type Loaded struct {
	SHA256    string  `json:"sha256"`
	Kind      string  `json:"kind"`
	Width     int     `json:"width"`
	Height    int     `json:"height"`
	Stretch   bool    `json:"stretch"` // to exactly this size; else the largest of its shape that fits in
	Threshold float32 `json:"threshold"`
}

// Object is something seen in a picture: a box in shares of the picture.
type Object struct {
	Label string  `json:"label"`
	Score float64 `json:"score"`
	X     float64 `json:"x"`
	Y     float64 `json:"y"`
	W     float64 `json:"w"`
	H     float64 `json:"h"`
}

// Fault says why there is no other answer. The worker goes on.
type Fault struct {
	Text string `json:"text"`
}

// Stream is one side's end of the pipes. One goroutine may read and one may write.
type Stream struct {
	r   *bufio.Reader
	w   io.Writer
	buf []byte
}

// NewStream reads messages from r and writes them to w.
func NewStream(r io.Reader, w io.Writer) *Stream {
	return &Stream{r: bufio.NewReaderSize(r, 64<<10), w: w}
}

// Read returns the next message. Its bytes are good until the next Read. The error is
// io.EOF at the end between two messages.
func (s *Stream) Read() (Type, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return 0, nil, err
	}
	n, t := binary.BigEndian.Uint32(head[:]), Type(head[4])
	most := limit(t)
	if most < 0 {
		return 0, nil, fmt.Errorf("message of unknown type %#02x", byte(t))
	}
	if int64(n) > int64(most) {
		return 0, nil, fmt.Errorf("message of type %q with %d bytes, want at most %d", byte(t), n, most)
	}
	if int(n) > cap(s.buf) {
		s.buf = make([]byte, n)
	}
	data := s.buf[:n]
	if _, err := io.ReadFull(s.r, data); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, data, nil
}

// Write sends a message that is the parts one after the other.
func (s *Stream) Write(t Type, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if most := limit(t); n > most {
		return fmt.Errorf("message of type %q with %d bytes, want at most %d", byte(t), n, most)
	}
	head := make([]byte, 5, 64)
	binary.BigEndian.PutUint32(head, uint32(n))
	head[4] = byte(t)
	for _, p := range append([][]byte{head}, parts...) {
		if _, err := s.w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// WriteJSON sends a message that is v.
func (s *Stream) WriteJSON(t Type, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.Write(t, data)
}

// FrameHead is what stands before the pixels of a picture.
func FrameHead(width, height int, threshold float32) []byte {
	head := make([]byte, frameHead)
	binary.BigEndian.PutUint16(head, uint16(width))
	binary.BigEndian.PutUint16(head[2:], uint16(height))
	binary.BigEndian.PutUint32(head[4:], math.Float32bits(threshold))
	return head
}

// Frame is a picture: 3 bytes (red, green, blue) a pixel, row after row.
type Frame struct {
	Width, Height int
	Threshold     float32 // least score of an object
	Pix           []byte
}

// ParseFrame reads a message of type Frame; the pixels are those of data.
func ParseFrame(data []byte) (Frame, error) {
	if len(data) < frameHead {
		return Frame{}, fmt.Errorf("picture of %d bytes, want at least %d", len(data), frameHead)
	}
	f := Frame{
		Width:     int(binary.BigEndian.Uint16(data)),
		Height:    int(binary.BigEndian.Uint16(data[2:])),
		Threshold: math.Float32frombits(binary.BigEndian.Uint32(data[4:])),
		Pix:       data[frameHead:],
	}
	if f.Width < 1 || f.Width > MaxSide || f.Height < 1 || f.Height > MaxSide || len(f.Pix) != 3*f.Width*f.Height {
		return Frame{}, fmt.Errorf("picture of %d × %d pixels in %d bytes, want sides of 1 to %d and 3 bytes a pixel", f.Width, f.Height, len(f.Pix), MaxSide)
	}
	if !(f.Threshold >= 0 && f.Threshold <= 1) {
		return Frame{}, fmt.Errorf("threshold %g, want 0 to 1", f.Threshold)
	}
	return f, nil
}

// ParseObjects reads a message of type Objects. The detector does not trust its worker: it
// may have been hurt by what it looked at.
func ParseObjects(data []byte) ([]Object, error) {
	var objects []Object
	if err := json.Unmarshal(data, &objects); err != nil {
		return nil, fmt.Errorf("objects: %w", err)
	}
	if len(objects) > MaxObjects {
		return nil, fmt.Errorf("%d objects, want at most %d", len(objects), MaxObjects)
	}
	share := func(v float64) bool { return v >= 0 && v <= 1 }
	for _, o := range objects {
		if o.Label == "" || len(o.Label) > MaxLabel || !share(o.Score) || !share(o.X) || !share(o.Y) || !share(o.W) || !share(o.H) {
			return nil, errors.New("object without a label, or with a score or box that is not 0 to 1")
		}
	}
	return objects, nil
}

// MaxLabel is the most bytes of a label.
const MaxLabel = 128

// ParseLoaded reads a message of type Loaded.
func ParseLoaded(data []byte) (Loaded, error) {
	var l Loaded
	if err := json.Unmarshal(data, &l); err != nil {
		return l, fmt.Errorf("loaded: %w", err)
	}
	if l.Width < 1 || l.Width > MaxSide || l.Height < 1 || l.Height > MaxSide {
		return l, fmt.Errorf("model wants pictures of %d × %d pixels, want sides of 1 to %d", l.Width, l.Height, MaxSide)
	}
	if !(l.Threshold >= 0 && l.Threshold <= 1) || len(l.SHA256) > 64 {
		return l, errors.New("loaded: threshold or hash out of bounds")
	}
	return l, nil
}
