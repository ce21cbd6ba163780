package camera

import "encoding/binary"

// MPEG transport stream, ISO/IEC 13818-1: packets of 188 bytes.
const (
	packetBytes = 188
	syncByte    = 0x47
	pidPAT      = 0
	pidNull     = 0x1fff
	streamH264  = 0x1b
	// ptsWrap is where time stamps begin anew, in their ticks of 1/90000 s.
	ptsWrap = 1 << 33
	ptsRate = 90_000
)

// packet is what matters here of a packet.
type packet struct {
	pid     int
	start   bool // of a frame or a table
	random  bool // decoding can begin here
	payload []byte
}

// parsePacket reads one packet of 188 bytes.
func parsePacket(b []byte) (packet, bool) {
	if len(b) != packetBytes || b[0] != syncByte || b[1]&0x80 != 0 {
		return packet{}, false
	}
	p := packet{pid: int(binary.BigEndian.Uint16(b[1:]) & 0x1fff), start: b[1]&0x40 != 0}
	at := 4
	if b[3]&0x20 != 0 {
		length := int(b[4])
		if at += 1 + length; at > packetBytes {
			return packet{}, false
		}
		p.random = length > 0 && b[5]&0x40 != 0
	}
	if b[3]&0x10 != 0 {
		p.payload = b[at:]
	}
	return p, true
}

// pts is the time stamp of the frame that begins in a packet.
func (p *packet) pts() (ticks int64, found bool) {
	b := p.payload
	if len(b) < 14 || b[0] != 0 || b[1] != 0 || b[2] != 1 || b[7]&0x80 == 0 {
		return 0, false
	}
	return int64(b[9]&0x0e)<<29 | int64(binary.BigEndian.Uint16(b[10:])&0xfffe)<<14 | int64(binary.BigEndian.Uint16(b[12:]))>>1, true
}

// section is the table that a packet begins with, without its header and
// checksum, if it is whole. Tables of several packets are not of one video.
func (p *packet) section(id byte) []byte {
	b := p.payload
	if !p.start || len(b) < 1 || len(b) < 1+int(b[0])+8 {
		return nil
	}
	b = b[1+int(b[0]):]
	length := int(binary.BigEndian.Uint16(b[1:]) & 0x0fff)
	if b[0] != id || length < 9 || len(b) < 3+length {
		return nil
	}
	return b[8 : 3+length-4]
}

// mapPID is where the first programme's map is, by the association table.
func mapPID(pat []byte) (pid int, found bool) {
	for ; len(pat) >= 4; pat = pat[4:] {
		if binary.BigEndian.Uint16(pat) != 0 {
			return int(binary.BigEndian.Uint16(pat[2:]) & 0x1fff), true
		}
	}
	return 0, false
}

// videoPID is where the H.264 is, by the programme's map.
func videoPID(pmt []byte) (pid int, found bool) {
	if len(pmt) < 4 {
		return 0, false
	}
	skip := 4 + int(binary.BigEndian.Uint16(pmt[2:])&0x0fff)
	if skip > len(pmt) {
		return 0, false
	}
	for pmt = pmt[skip:]; len(pmt) >= 5; {
		if pmt[0] == streamH264 {
			return int(binary.BigEndian.Uint16(pmt[1:]) & 0x1fff), true
		}
		skip = 5 + int(binary.BigEndian.Uint16(pmt[3:])&0x0fff)
		if skip > len(pmt) {
			return 0, false
		}
		pmt = pmt[skip:]
	}
	return 0, false
}

// stream follows a transport stream.
type stream struct {
	carry   []byte // the beginning of a packet whose rest has not come
	pat     []byte // the last packets that hold the tables
	pmt     []byte
	mapPID  int
	video   int
	skipped int64 // bytes that were no packets
}

func newStream() *stream { return &stream{mapPID: -1, video: -1} }

// piece is a packet in its stream.
type piece struct {
	bytes []byte
	frame bool // begins a frame
	key   bool // decoding can begin with this frame
	pts   int64
	timed bool // has pts
}

// read cuts what came into packets, those of the video and of the tables. The
// bytes of a piece are valid until emit returns.
func (s *stream) read(b []byte, emit func(piece)) {
	if len(s.carry) > 0 {
		need := packetBytes - len(s.carry)
		if len(b) < need {
			s.carry = append(s.carry, b...)
			return
		}
		whole := append(s.carry, b[:need]...)
		b = b[need:]
		s.carry = whole[:0]
		s.take(whole, emit)
	}
	for len(b) > 0 {
		if b[0] != syncByte {
			b = b[1:]
			s.skipped++
			continue
		}
		if len(b) < packetBytes {
			s.carry = append(s.carry[:0], b...)
			return
		}
		if !s.take(b[:packetBytes], emit) {
			b = b[1:]
			continue
		}
		b = b[packetBytes:]
	}
}

func (s *stream) take(b []byte, emit func(piece)) bool {
	p, ok := parsePacket(b)
	if !ok {
		s.skipped++
		return false
	}
	switch p.pid {
	case pidNull:
		return true
	case pidPAT:
		if pid, found := mapPID(p.section(0)); found {
			s.pat, s.mapPID = append(s.pat[:0], b...), pid
		}
	case s.mapPID:
		if pid, found := videoPID(p.section(2)); found {
			s.pmt, s.video = append(s.pmt[:0], b...), pid
		}
	}
	out := piece{bytes: b}
	if p.pid == s.video && p.start {
		out.frame, out.key = true, p.random
		out.pts, out.timed = p.pts()
	}
	emit(out)
	return true
}

// span measures playing time by time stamps, whatever their order.
type span struct {
	first, least, most int64
	frames             int
}

func (s *span) add(pts int64) {
	if s.frames == 0 {
		s.first = pts
	}
	s.frames++
	// Stamps wrap around every 26 hours, clips are shorter.
	d := (pts - s.first) % ptsWrap
	switch {
	case d < -ptsWrap/2:
		d += ptsWrap
	case d > ptsWrap/2:
		d -= ptsWrap
	}
	s.least, s.most = min(s.least, d), max(s.most, d)
}

// ticks is the time from the first frame's beginning to the last one's end.
func (s *span) ticks() int64 {
	if s.frames < 2 {
		return 0
	}
	between := s.most - s.least
	return between + between/int64(s.frames-1)
}
