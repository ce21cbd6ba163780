package camera

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"
)

// tsPacket makes a packet of 188 bytes.
func tsPacket(pid int, start, random bool, payload []byte) []byte {
	b := bytes.Repeat([]byte{0xff}, packetBytes)
	b[0] = syncByte
	binary.BigEndian.PutUint16(b[1:], uint16(pid))
	if start {
		b[1] |= 0x40
	}
	room := packetBytes - 4 - len(payload)
	b[3] = 0x10
	if room > 0 {
		b[3] |= 0x20
		b[4] = byte(room - 1)
		if room > 1 {
			b[5] = 0
			if random {
				b[5] = 0x40
			}
		}
	}
	copy(b[packetBytes-len(payload):], payload)
	return b
}

const (
	testMap   = 0x1000
	testVideo = 0x100
)

func table(id byte, body ...byte) []byte {
	n := 5 + len(body) + 4
	b := []byte{0, id, 0xb0 | byte(n>>8), byte(n), 0, 1, 0xc1, 0, 0}
	b = append(b, body...)
	return append(b, 1, 2, 3, 4) // a checksum that nobody looks at
}

func tsTables() []byte {
	pat := tsPacket(pidPAT, true, false, table(0, 0, 1, 0xe0|testMap>>8, testMap&0xff))
	pmt := tsPacket(testMap, true, false, table(2, 0xe1, 0, 0xf0, 0, streamH264, 0xe0|testVideo>>8, testVideo&0xff, 0xf0, 0))
	return append(pat, pmt...)
}

// tsFrame is a frame of the given number of packets.
func tsFrame(pts int64, key bool, packets int) []byte {
	pes := []byte{
		0, 0, 1, 0xe0, 0, 0, 0x80, 0x80, 5,
		0x21 | byte(pts>>29)&0x0e, byte(pts >> 22), byte(pts>>14) | 1, byte(pts >> 7), byte(pts<<1) | 1,
		0, 0, 0, 1, 0x65,
	}
	out := tsPacket(testVideo, true, key, pes)
	for range packets - 1 {
		out = append(out, tsPacket(testVideo, false, false, make([]byte, 184))...)
	}
	return out
}

func TestStreamFindsFrames(t *testing.T) {
	var in []byte
	in = append(in, "noise before the first packet"...)
	in = append(in, tsTables()...)
	want := []struct {
		pts int64
		key bool
	}{{0, true}, {3000, false}, {1<<33 - 1, false}, {1 << 32, true}}
	for _, f := range want {
		in = append(in, tsFrame(f.pts, f.key, 3)...)
	}
	// However the bytes are cut, the frames are the same.
	for _, size := range []int{1, 7, 187, 188, 189, 1000, len(in)} {
		s, got, total := newStream(), 0, 0
		for rest := in; len(rest) > 0; {
			n := min(size, len(rest))
			s.read(rest[:n], func(p piece) {
				total++
				if !p.frame {
					return
				}
				if got < len(want) && (p.pts != want[got].pts || !p.timed || p.key != want[got].key) {
					t.Errorf("cut at %d: frame %d: %d %v, want %+v", size, got, p.pts, p.key, want[got])
				}
				got++
			})
			rest = rest[n:]
		}
		if got != len(want) || total != 2+3*len(want) || s.video != testVideo {
			t.Errorf("cut at %d: %d frames in %d packets of %#x", size, got, total, s.video)
		}
	}
}

func TestSpan(t *testing.T) {
	var s span
	// Out of order, and around the wrap.
	for _, pts := range []int64{ptsWrap - 3000, 3000, 0, 6000} {
		s.add(pts)
	}
	if got := time.Duration(s.ticks()) * time.Second / ptsRate; got != 9000*time.Second/ptsRate+3000*time.Second/ptsRate {
		t.Errorf("%s", got)
	}
}

func FuzzStream(f *testing.F) {
	f.Add(append(tsTables(), tsFrame(3000, true, 2)...), 100)
	f.Add([]byte{syncByte}, 1)
	pmt := tsPacket(testMap, true, false, table(2, 0xe1, 0, 0xff, 0xff, streamH264))
	f.Add(append(tsTables(), pmt...), 188)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if size < 1 {
			size = 1
		}
		s := newStream()
		var out int
		for rest := in; len(rest) > 0; {
			n := min(size, len(rest))
			s.read(rest[:n], func(p piece) {
				if len(p.bytes) != packetBytes || p.bytes[0] != syncByte {
					t.Fatalf("a piece of %d bytes", len(p.bytes))
				}
				if p.timed && (p.pts < 0 || p.pts >= ptsWrap) {
					t.Fatalf("time stamp %d", p.pts)
				}
				out += len(p.bytes)
			})
			rest = rest[n:]
		}
		if out > len(in) || len(s.carry) >= packetBytes {
			t.Fatalf("%d bytes of %d, %d carried", out, len(in), len(s.carry))
		}
		var sp span
		for i := 0; i+8 <= len(in); i += 8 {
			sp.add(int64(binary.BigEndian.Uint64(in[i:]) % ptsWrap))
		}
		if sp.ticks() < 0 {
			t.Fatalf("a clip of %d ticks", sp.ticks())
		}
	})
}
