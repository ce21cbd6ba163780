package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// Limits of a response's head.
const (
	maxHead      = 16 << 10
	maxHeadLines = 256
)

// head is what matters of a response's head.
type head struct {
	status  int
	length  int64 // -1: not announced
	chunked bool
	close   bool // the connection ends with this response

	ranged           bool // there was a Content-Range
	first, last, all int64

	// Of the whole object, CRC-64/NVME, if wanted.
	want   bool
	sum    uint64
	summed bool
}

var errHead = errors.New("malformed HTTP response")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errHead, fmt.Sprintf(format, args...))
}

// headEnd is the length of a head including its blank line, or -1 if b has no
// whole head.
func headEnd(b []byte) int {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return -1
		}
		line := b[at : at+i]
		at += i + 1
		if len(line) == 0 || (len(line) == 1 && line[0] == '\r') {
			return at
		}
	}
}

// parse reads a whole head, as found by headEnd; nothing of b is kept. sums
// asks for the checksum too, which few need.
func (h *head) parse(b []byte, sums bool) error {
	*h = head{length: -1, want: sums}
	line, b := cutLine(b)
	minor, err := h.statusLine(line)
	if err != nil {
		return err
	}
	h.close = minor == 0
	for lines := 0; ; lines++ {
		if line, b = cutLine(b); len(line) == 0 {
			break
		}
		if lines >= maxHeadLines {
			return malformed("more than %d header lines", maxHeadLines)
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 {
			return malformed("header line %.60q", line)
		}
		name, value := line[:colon], bytes.Trim(line[colon+1:], " \t")
		for _, c := range name {
			if c <= ' ' || c >= 0x7f {
				return malformed("header name %.60q", name)
			}
		}
		if err := h.field(name, value, minor); err != nil {
			return err
		}
	}
	if h.chunked || bodyless(h.status) {
		h.length = -1
	}
	return nil
}

func bodyless(status int) bool { return status < 200 || status == 204 || status == 304 }

func (h *head) statusLine(line []byte) (minor byte, err error) {
	// HTTP/1.1 200 OK
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || (line[7] != '0' && line[7] != '1') ||
		(len(line) > 12 && line[12] != ' ') {
		return 0, malformed("status line %.60q", line)
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return 0, malformed("status line %.60q", line)
		}
		h.status = 10*h.status + int(c-'0')
	}
	if h.status < 100 {
		return 0, malformed("status line %.60q", line)
	}
	return line[7] - '0', nil
}

// field takes one header field. The names are told apart by their length first:
// most fields of a response mean nothing here.
func (h *head) field(name, value []byte, minor byte) error {
	switch len(name) {
	case len("connection"):
		if equalFold(name, "connection") {
			h.connection(value, minor)
		}
	case len("content-range"):
		if equalFold(name, "content-range") {
			return h.contentRange(value)
		}
	case len("content-length"):
		if equalFold(name, "content-length") {
			n, ok := parseSize(value)
			if !ok || (h.length >= 0 && h.length != n) {
				return malformed("content-length %.60q", value)
			}
			h.length = n
		}
	case len("transfer-encoding"):
		if equalFold(name, "transfer-encoding") && minor == 1 {
			if h.chunked || !equalFold(value, "chunked") {
				return malformed("transfer-encoding %.60q", value)
			}
			h.chunked = true
		}
	case len("x-amz-checksum-crc64nvme"):
		if h.want && equalFold(name, "x-amz-checksum-crc64nvme") {
			h.checksum(value)
		}
	case len("x-amz-meta-" + objectstore.MetaChecksum):
		if h.want && equalFold(name, "x-amz-meta-"+objectstore.MetaChecksum) {
			h.checksum(value)
		}
	}
	return nil
}

func (h *head) checksum(value []byte) {
	// A value in another form, such as a multipart upload's composite one, says
	// nothing about the content as a whole.
	if sum, err := objectstore.DecodeCRC64(string(value)); err == nil {
		h.sum, h.summed = sum, true
	}
}

func (h *head) connection(value []byte, minor byte) {
	for len(value) > 0 {
		var token []byte
		token, value, _ = bytes.Cut(value, []byte{','})
		token = bytes.Trim(token, " \t")
		switch {
		case equalFold(token, "close"):
			h.close = true
		case equalFold(token, "keep-alive") && minor == 0:
			h.close = false
		}
	}
}

// contentRange reads `bytes 0-99/1000`.
func (h *head) contentRange(value []byte) error {
	rest, ok := bytes.CutPrefix(value, []byte("bytes "))
	span, all, found := bytes.Cut(rest, []byte{'/'})
	first, last, dash := bytes.Cut(span, []byte{'-'})
	if !ok || !found {
		return malformed("content-range %.60q", value)
	}
	if !dash {
		return nil // `*/1000`, of a 416
	}
	var okFirst, okLast bool
	h.first, okFirst = parseSize(first)
	h.last, okLast = parseSize(last)
	if !okFirst || !okLast || h.last < h.first {
		return malformed("content-range %.60q", value)
	}
	if h.all, ok = parseSize(all); !ok {
		h.all = -1 // `*`
	}
	h.ranged = true
	return nil
}

func parseSize(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + uint64(c-'0')
	}
	return int64(n), n <= math.MaxInt64
}

func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return b, nil
	}
	line = b[:i]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, b[i+1:]
}

// equalFold compares with a lower-case text, ASCII letters without case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range len(lower) {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
