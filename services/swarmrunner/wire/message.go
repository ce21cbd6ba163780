package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Message ids (BEP 3, 5, 6, 10).
const (
	IDChoke         = 0
	IDUnchoke       = 1
	IDInterested    = 2
	IDNotInterested = 3
	IDHave          = 4
	IDBitfield      = 5
	IDRequest       = 6
	IDPiece         = 7
	IDCancel        = 8
	IDPort          = 9
	IDSuggest       = 13
	IDHaveAll       = 14
	IDHaveNone      = 15
	IDReject        = 16
	IDAllowedFast   = 17
	IDExtended      = 20
)

// Sizes of what is on the wire, in bytes.
const (
	HandshakeSize   = 68
	PieceHeaderSize = 13 // length prefix, id, index, begin
	RequestSize     = 17 // also of a cancel or a reject
	HaveSize        = 9
	BlockSize       = 16 << 10 // of what is asked for; clients drop who asks for much more
	MaxBlock        = 128 << 10
)

const protocol = "\x13BitTorrent protocol"

// Hello is a handshake.
type Hello struct {
	Reserved     [8]byte
	InfoHash, ID [20]byte
}

// The bit that says that the fast extension is understood (BEP 6).
const fastByte, fastBit = 7, 0x04

// Fast reports whether the fast extension is understood.
func (h *Hello) Fast() bool { return h.Reserved[fastByte]&fastBit != 0 }

// SetFast says that it is.
func (h *Hello) SetFast() { h.Reserved[fastByte] |= fastBit }

// Append appends the handshake's 68 bytes.
func (h *Hello) Append(b []byte) []byte {
	b = append(b, protocol...)
	b = append(b, h.Reserved[:]...)
	b = append(b, h.InfoHash[:]...)
	return append(b, h.ID[:]...)
}

// ErrNotBitTorrent says that what came is no handshake.
var ErrNotBitTorrent = errors.New("not a BitTorrent handshake")

// ParseHello reads a handshake.
func ParseHello(b []byte) (Hello, error) {
	var h Hello
	if len(b) != HandshakeSize || string(b[:len(protocol)]) != protocol {
		return h, ErrNotBitTorrent
	}
	b = b[len(protocol):]
	copy(h.Reserved[:], b)
	copy(h.InfoHash[:], b[8:])
	copy(h.ID[:], b[28:])
	return h, nil
}

// Message is anything but a piece.
type Message struct {
	ID byte
	// Index, Begin and Length are of request, cancel and reject; Index also of
	// have, suggest and allowed-fast.
	Index, Begin, Length uint32
	// Bits is a bitfield, or what an unknown or extension message holds; it
	// belongs to whoever called Parse.
	Bits []byte
}

// bodySize is how long a message is behind its id; -1 where that may vary.
func bodySize(id byte) int {
	switch id {
	case IDChoke, IDUnchoke, IDInterested, IDNotInterested, IDHaveAll, IDHaveNone:
		return 0
	case IDHave, IDSuggest, IDAllowedFast:
		return 4
	case IDRequest, IDCancel, IDReject:
		return 12
	case IDPort:
		return 2
	}
	return -1
}

// Parse reads what follows the id of a message.
func Parse(id byte, body []byte) (Message, error) {
	m := Message{ID: id}
	if want := bodySize(id); want >= 0 && len(body) != want {
		return m, fmt.Errorf("message %d has %d bytes, want %d", id, len(body), want)
	}
	switch id {
	case IDHave, IDSuggest, IDAllowedFast:
		m.Index = binary.BigEndian.Uint32(body)
	case IDRequest, IDCancel, IDReject:
		m.Index, m.Begin, m.Length = binary.BigEndian.Uint32(body), binary.BigEndian.Uint32(body[4:]), binary.BigEndian.Uint32(body[8:])
	default:
		if bodySize(id) < 0 {
			m.Bits = body
		}
	}
	return m, nil
}

// ClassOf is the class of a message; a piece's is its header's.
func ClassOf(id byte) Class {
	switch id {
	case IDChoke:
		return Choke
	case IDUnchoke:
		return Unchoke
	case IDInterested:
		return Interested
	case IDNotInterested:
		return NotInterested
	case IDHave:
		return Have
	case IDBitfield, IDHaveAll, IDHaveNone:
		return Bitfield
	case IDRequest:
		return Request
	case IDPiece:
		return PieceHeader
	case IDCancel:
		return Cancel
	case IDReject:
		return Reject
	case IDSuggest, IDAllowedFast:
		return Fast
	case IDPort:
		return Port
	case IDExtended:
		return Extension
	}
	return Unknown
}

// Append appends a message of one, four or thirteen bytes behind its length, or
// a bitfield.
func (m *Message) Append(b []byte) []byte {
	switch bodySize(m.ID) {
	case 0:
		return append(b, 0, 0, 0, 1, m.ID)
	case 4:
		b = append(b, 0, 0, 0, 5, m.ID)
		return binary.BigEndian.AppendUint32(b, m.Index)
	case 12:
		b = append(b, 0, 0, 0, 13, m.ID)
		b = binary.BigEndian.AppendUint32(b, m.Index)
		b = binary.BigEndian.AppendUint32(b, m.Begin)
		return binary.BigEndian.AppendUint32(b, m.Length)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Bits)+1))
	b = append(b, m.ID)
	return append(b, m.Bits...)
}

// PutPieceHeader writes the thirteen bytes before a block of n bytes.
func PutPieceHeader(b []byte, index, begin uint32, n int) {
	binary.BigEndian.PutUint32(b, uint32(n+9))
	b[4] = IDPiece
	binary.BigEndian.PutUint32(b[5:], index)
	binary.BigEndian.PutUint32(b[9:], begin)
}

// ParsePieceHeader reads them back; ok says that it is a piece message.
func ParsePieceHeader(b []byte) (index, begin uint32, n int, ok bool) {
	length := binary.BigEndian.Uint32(b)
	if b[4] != IDPiece || length < 9 {
		return 0, 0, 0, false
	}
	return binary.BigEndian.Uint32(b[5:]), binary.BigEndian.Uint32(b[9:]), int(length - 9), true
}
