package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/textproto"
	"strings"
)

// Bounds of a multipart body.
const (
	formBuffer     = 64 << 10 // also bounds a line of a part's head
	maxPartHeader  = 8 << 10
	maxPartHeaders = 16
	maxBoundary    = 70 // RFC 2046
	maxMeta        = 64 << 10
	// formSlack is what the boundaries and heads of the parts may take.
	formSlack = 3 * (maxPartHeader + 2*maxBoundary)
)

// errForm is a body that is not what it says to be.
var errForm = errors.New("malformed multipart body")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errForm}, args...)...)
}

// form reads a multipart/form-data body whose largest part has a length that is
// known beforehand: that part is passed through without looking for the
// boundary in it, and no part is held in memory beyond its bound. It is stricter
// than RFC 2046, which nobody's library notices: lines end in CRLF, nothing
// stands before the first boundary.
type form struct {
	in       *bufio.Reader
	boundary []byte // with its two hyphens
	begun    bool
	last     bool // the closing boundary was read
}

// newForm takes the media type of the request.
func newForm(body io.Reader, contentType string) (*form, error) {
	kind, parameters, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "multipart/form-data" {
		return nil, fmt.Errorf("Content-Type: %s, want multipart/form-data with a boundary", short(contentType))
	}
	b := parameters["boundary"]
	if len(b) < 1 || len(b) > maxBoundary || strings.ContainsAny(b, "\r\n\x00") {
		return nil, fmt.Errorf("Content-Type: boundary of %d bytes, want 1 to %d", len(b), maxBoundary)
	}
	return &form{in: bufio.NewReaderSize(body, formBuffer), boundary: []byte("--" + b)}, nil
}

// formPart is the head of a part.
type formPart struct {
	name     string
	fileName string
	kind     string // Content-Type, lower case, without parameters
}

// next reads on to the next part, of which the caller reads everything before
// the one after it; io.EOF is the end of the form.
func (f *form) next() (formPart, error) {
	if f.last {
		return formPart{}, io.EOF
	}
	if !f.begun {
		f.begun = true
		if err := f.delimiter(); err != nil {
			return formPart{}, err
		}
	}
	if f.last {
		return formPart{}, io.EOF
	}
	return f.head()
}

// delimiter reads the rest of a line that has to be a boundary.
func (f *form) delimiter() error {
	line, err := f.line()
	if err != nil {
		return err
	}
	if !f.isDelimiter(line) {
		return malformed("%s where a boundary has to be", short(string(line)))
	}
	return nil
}

// isDelimiter reports whether a line without its CRLF is a boundary, and notes
// the closing one.
func (f *form) isDelimiter(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, f.boundary)
	if !ok {
		return false
	}
	rest, f.last = bytes.CutPrefix(rest, []byte("--"))
	if len(bytes.Trim(rest, " \t")) > 0 {
		f.last = false
		return false
	}
	return true
}

// line is valid until the next read. At the very end of a body the CRLF behind
// the closing boundary may be missing.
func (f *form) line() ([]byte, error) {
	line, err := f.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, malformed("a line of more than %d bytes", formBuffer)
	case errors.Is(err, io.EOF) && len(line) > 0:
		return line, nil
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		return nil, malformed("a line that does not end in CR LF")
	}
	return line, nil
}

func (f *form) head() (formPart, error) {
	var p formPart
	seen, size := 0, 0
	for {
		line, err := f.line()
		if err != nil {
			return p, err
		}
		if len(line) == 0 {
			break
		}
		seen++
		if size += len(line); size > maxPartHeader || seen > maxPartHeaders {
			return p, malformed("a part's head of more than %d bytes or %d lines", maxPartHeader, maxPartHeaders)
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || bytes.ContainsAny(name, " \t") {
			return p, malformed("%s in a part's head", short(string(line)))
		}
		switch textproto.CanonicalMIMEHeaderKey(string(name)) {
		case "Content-Disposition":
			if p.name != "" {
				return p, malformed("a part with two dispositions")
			}
			kind, parameters, err := mime.ParseMediaType(string(value))
			if err != nil || kind != "form-data" || parameters["name"] == "" {
				return p, malformed("Content-Disposition %s, want form-data with a name", short(string(value)))
			}
			p.name, p.fileName = parameters["name"], parameters["filename"]
		case "Content-Type":
			if p.kind, _, err = mime.ParseMediaType(string(value)); err != nil {
				return p, malformed("Content-Type %s of a part", short(string(value)))
			}
		case "Content-Transfer-Encoding":
			if v := strings.ToLower(strings.TrimSpace(string(value))); v != "binary" && v != "8bit" && v != "7bit" {
				return p, malformed("Content-Transfer-Encoding %s, want binary", short(v))
			}
		}
	}
	if p.name == "" {
		return p, malformed("a part without a name")
	}
	if strings.ContainsAny(p.fileName, "/\\\x00") || p.fileName == ".." {
		return p, malformed("file name %s, want no path", short(p.fileName))
	}
	return p, nil
}

// text reads a part of at most limit bytes and the boundary behind it.
func (f *form) text(limit int) ([]byte, error) {
	var content []byte
	atLine := true // the bytes before are a line's end, or the part's head
	for {
		chunk, err := f.in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if atLine && bytes.HasPrefix(chunk, f.boundary) && f.isDelimiter(bytes.TrimSuffix(chunk, []byte("\r\n"))) {
			return bytes.TrimSuffix(content, []byte("\r\n")), nil
		}
		if errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		if len(content)+len(chunk) > limit+2 {
			return nil, &tooLargeError{limit: limit}
		}
		content = append(content, chunk...)
		atLine = bytes.HasSuffix(content, []byte("\r\n"))
	}
}

// tooLargeError is a part beyond its bound.
type tooLargeError struct{ limit int }

func (e *tooLargeError) Error() string { return fmt.Sprintf("more than %d bytes", e.limit) }

// Read reads bytes of a part whose length the caller knows.
func (f *form) Read(p []byte) (int, error) {
	n, err := f.in.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// end reads the boundary behind such a part.
func (f *form) end() error {
	var crlf [2]byte
	if _, err := io.ReadFull(f.in, crlf[:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if crlf != [2]byte{'\r', '\n'} {
		return errTooLong
	}
	return f.delimiter()
}

// errTooLong is a part that goes on behind its announced length.
var errTooLong = errors.New("the part goes on behind the announced size")

// epilogue reads what is behind the closing boundary, which is next to nothing:
// the server is told that the body was read, and the body that it was.
func (f *form) epilogue() error {
	const most = 1 << 10
	n, err := io.CopyN(io.Discard, f.in, most)
	switch {
	case err == nil:
		return malformed("%d bytes and more behind the closing boundary", n)
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}
