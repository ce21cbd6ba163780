package embedded

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/rclone/gofakes3"

	"github.com/transferlab/transferlab/services/internal/objectstore/sigv4"
)

// Payload kinds, the values of x-amz-content-sha256 other than a SHA-256.
const (
	unsignedPayload        = "UNSIGNED-PAYLOAD"
	streamingSigned        = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	streamingSignedTrailer = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	streamingTrailer       = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	emptySHA256            = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

	maxChunkLine    = 1024
	maxTrailerLines = 16
)

// body is a request's payload as the object it carries: framing taken off, signatures and hashes checked. Its error is
// a gofakes3 error if the payload is not what was signed.
type body interface {
	io.ReadCloser
	// finish reads what is left behind the last byte of the object (nothing, a last chunk, trailers) and returns
	// the error of checking it. Callers that stop at the object's length must call it: a signature may only be wrong there.
	finish() error
	// trailers are the headers that came behind the object, in canonical form, once finish has returned.
	trailers() http.Header
}

// hashedBody checks a payload against the SHA-256 under which its request was signed.
type hashedBody struct {
	io.ReadCloser
	want []byte
	sum  hash.Hash
	done error
}

func newHashedBody(r io.ReadCloser, want []byte) *hashedBody {
	return &hashedBody{ReadCloser: r, want: want, sum: sha256.New()}
}

func (b *hashedBody) Read(p []byte) (int, error) {
	if b.done != nil {
		return 0, b.done
	}
	n, err := b.ReadCloser.Read(p)
	_, _ = b.sum.Write(p[:n])
	if err == io.EOF && !bytes.Equal(b.sum.Sum(nil), b.want) {
		err = gofakes3.ErrorMessage(errContentSHA256, "The provided 'x-amz-content-sha256' header does not match what was computed.")
	}
	b.done = err
	return n, err
}

func (b *hashedBody) finish() error         { return expectEOF(b) }
func (b *hashedBody) trailers() http.Header { return nil }

// plainBody is a payload that nothing is claimed about.
type plainBody struct{ io.ReadCloser }

func (b plainBody) finish() error         { return nil }
func (b plainBody) trailers() http.Header { return nil }

func expectEOF(r io.Reader) error {
	var one [1]byte
	n, err := io.ReadFull(r, one[:])
	switch {
	case n > 0:
		return gofakes3.ErrorMessage(gofakes3.ErrIncompleteBody, "the body is longer than announced")
	case err == io.EOF:
		return nil
	}
	return err
}

// chunkSigner computes the signatures of a signed payload's chunks, each over the one before.
type chunkSigner struct {
	key   []byte
	date  string
	scope string
	prev  string
}

func (s *chunkSigner) sign(kind string, hashes ...string) string {
	text := strings.Join(append([]string{kind, s.date, s.scope, s.prev}, hashes...), "\n")
	s.prev = hex.EncodeToString(sigv4.Sum(s.key, text))
	return s.prev
}

// chunkedBody decodes the aws-chunked coding.
type chunkedBody struct {
	src     io.Closer
	in      *bufio.Reader
	signer  *chunkSigner // nil if chunks are not signed
	sum     hash.Hash    // of the current chunk, if signed
	trailer bool
	left    int64  // of the current chunk
	object  int64  // still to come of the object; what the client announced
	claimed string // the current chunk's signature
	begun   bool
	header  http.Header
	err     error
}

func newChunkedBody(r io.ReadCloser, length int64, signer *chunkSigner, trailer bool) *chunkedBody {
	b := &chunkedBody{src: r, in: bufio.NewReaderSize(r, 64<<10), signer: signer, trailer: trailer, object: length}
	if signer != nil {
		b.sum = sha256.New()
	}
	return b
}

func (b *chunkedBody) Close() error          { return b.src.Close() }
func (b *chunkedBody) trailers() http.Header { return b.header }

func malformed(format string, args ...any) error {
	return gofakes3.ErrorMessagef(gofakes3.ErrIncompleteBody, "malformed aws-chunked body: "+format, args...)
}

func (b *chunkedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for b.left == 0 {
		if b.err = b.next(); b.err != nil {
			return 0, b.err
		}
	}
	n, err := b.in.Read(p[:min(int64(len(p)), b.left)])
	if b.sum != nil {
		_, _ = b.sum.Write(p[:n])
	}
	b.left -= int64(n)
	b.object -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	b.err = err
	return n, err
}

// next checks the chunk that ends here, if any, and reads the next one's header. It returns io.EOF behind the last one.
func (b *chunkedBody) next() error {
	if b.begun {
		if err := b.endChunk(); err != nil {
			return err
		}
	}
	line, err := b.line()
	if err != nil {
		return err
	}
	b.begun = true
	digits, extension, _ := strings.Cut(line, ";")
	size, err := strconv.ParseUint(strings.TrimSpace(digits), 16, 62)
	if err != nil {
		return malformed("chunk size %.20q", digits)
	}
	if int64(size) > b.object {
		return malformed("more bytes than the announced length")
	}
	b.claimed = ""
	if b.signer != nil {
		name, value, _ := strings.Cut(extension, "=")
		if name != "chunk-signature" {
			return malformed("chunk without signature")
		}
		b.claimed = value
	}
	b.left = int64(size)
	if size > 0 {
		return nil
	}
	if b.object != 0 {
		return malformed("%d bytes fewer than the announced length", b.object)
	}
	if err := b.checkSignature(); err != nil {
		return err
	}
	if err := b.readTrailers(); err != nil {
		return err
	}
	return io.EOF
}

func (b *chunkedBody) endChunk() error {
	line, err := b.line()
	if err != nil {
		return err
	}
	if line != "" {
		return malformed("chunk longer than its size")
	}
	return b.checkSignature()
}

func (b *chunkedBody) checkSignature() error {
	if b.signer == nil {
		return nil
	}
	want := b.signer.sign("AWS4-HMAC-SHA256-PAYLOAD", emptySHA256, hex.EncodeToString(b.sum.Sum(nil)))
	b.sum.Reset()
	if !hmac.Equal([]byte(want), []byte(b.claimed)) {
		return gofakes3.ErrorMessage(errSignature, "a chunk's signature does not match its content")
	}
	return nil
}

// readTrailers reads the lines behind the last chunk: header fields and, on a signed payload, their signature.
func (b *chunkedBody) readTrailers() error {
	b.header = http.Header{}
	var signed strings.Builder
	claimed := ""
	for n := 0; ; n++ {
		line, err := b.line()
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) || (err == nil && line == "") {
			break // some clients leave out the empty last line
		}
		if err != nil {
			return err
		}
		if n == maxTrailerLines {
			return malformed("more than %d trailers", maxTrailerLines)
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return malformed("trailer %.20q", line)
		}
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if name == "x-amz-trailer-signature" {
			claimed = value
			continue
		}
		fmt.Fprintf(&signed, "%s:%s\n", name, value)
		b.header.Set(name, value)
	}
	if b.signer != nil && b.trailer {
		sum := sha256.Sum256([]byte(signed.String()))
		if want := b.signer.sign("AWS4-HMAC-SHA256-TRAILER", hex.EncodeToString(sum[:])); !hmac.Equal([]byte(want), []byte(claimed)) {
			return gofakes3.ErrorMessage(errSignature, "the trailer's signature does not match its content")
		}
	}
	return nil
}

// line reads one line, without its end. At the end of the body it returns io.ErrUnexpectedEOF.
func (b *chunkedBody) line() (string, error) {
	var text []byte
	for {
		part, err := b.in.ReadSlice('\n')
		text = append(text, part...)
		if len(text) > maxChunkLine {
			return "", malformed("line longer than %d bytes", maxChunkLine)
		}
		switch {
		case err == nil:
			return strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r"), nil
		case err == io.EOF:
			return "", io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		}
	}
}

func (b *chunkedBody) finish() error { return expectEOF(b) }
