package embedded

import (
	"context"
	"crypto/sha1" //nolint:gosec // one of the checksums S3 clients may choose; not used against forgery
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"net/textproto"
	"regexp"
	"strconv"
	"strings"

	"github.com/rclone/gofakes3"

	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/sigv4"
)

// request is what the handler and the backend tell each other about one request, past gofakes3 between them. A nil
// *request, which is what a context from elsewhere yields, knows nothing and ignores everything.
type request struct {
	w          *recorder
	body       body
	declared   map[string]string // checksums of the payload by algorithm, base64; "" if they come in a trailer
	wholeCRC64 string            // of the whole object, declared when a multipart upload is completed
	checked    map[string]string // declared, once compared with the content
}

type requestKey struct{}

func contextWith(ctx context.Context, rq *request) context.Context {
	return context.WithValue(ctx, requestKey{}, rq)
}

func requestFrom(ctx context.Context) *request {
	rq, _ := ctx.Value(requestKey{}).(*request)
	return rq
}

// setStatus makes status the one that is sent, for error codes gofakes3 knows no status for.
func (rq *request) setStatus(status int) {
	if rq != nil {
		rq.w.force = status
	}
}

// setETagSuffix adds the number of parts to the ETag header, which gofakes3 builds from the hash alone.
func (rq *request) setETagSuffix(suffix string) {
	if rq != nil {
		rq.w.etagSuffix = suffix
	}
}

// newChecksum returns the hash for an algorithm as S3 spells it in header names, nil if it is not one of S3's that is
// computed here. CRC64NVME is missing because the backend computes it of everything.
func newChecksum(algorithm string) hash.Hash {
	switch algorithm {
	case "crc32":
		return crc32.NewIEEE()
	case "crc32c":
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case "sha1":
		return sha1.New() //nolint:gosec // see the import
	case "sha256":
		return sha256.New()
	}
	return nil
}

const crc64Name = "crc64nvme"

// hashes returns a hash for each checksum the client has declared.
func (rq *request) hashes() map[string]hash.Hash {
	if rq == nil || len(rq.declared) == 0 {
		return nil
	}
	out := map[string]hash.Hash{}
	for name := range rq.declared {
		if h := newChecksum(name); h != nil {
			out[name] = h
		}
	}
	return out
}

// finishBody reads the payload's end and compares the content's checksums with the declared ones.
func (rq *request) finishBody(crc64 uint64, hashes map[string]hash.Hash) error {
	if rq == nil {
		return nil
	}
	if rq.body != nil {
		if err := rq.body.finish(); err != nil {
			return err
		}
	}
	for name, want := range rq.declared {
		if want == "" {
			want = rq.body.trailers().Get(checksumHeader + name)
			if want == "" {
				return gofakes3.ErrorMessagef(gofakes3.ErrInvalidRequest, "the announced trailer x-amz-checksum-%s did not come", name)
			}
		}
		got := objectstore.EncodeCRC64(crc64)
		if h := hashes[name]; h != nil {
			got = base64.StdEncoding.EncodeToString(h.Sum(nil))
		}
		if got != want {
			return gofakes3.ErrorMessagef(gofakes3.ErrBadDigest, "The %s you specified did not match the calculated checksum.", strings.ToUpper(name))
		}
		if rq.checked == nil {
			rq.checked = map[string]string{}
		}
		rq.checked[name] = got
	}
	return nil
}

// addChecksums puts the object's checksum into its metadata: the one the client chose, else CRC64NVME, as S3 does.
func (rq *request) addChecksums(o *object) {
	for k := range o.Meta {
		if strings.HasPrefix(textproto.CanonicalMIMEHeaderKey(k), checksumHeader) {
			return // copied with the content
		}
	}
	// The checksums a client declares for a part, and those of parts, say nothing about the whole.
	if rq != nil && o.Parts == nil && len(rq.checked) > 0 {
		for name, sum := range rq.checked {
			o.Meta[textproto.CanonicalMIMEHeaderKey(checksumHeader+name)] = sum
		}
	} else {
		o.Meta[crc64Header] = objectstore.EncodeCRC64(o.CRC64)
	}
}

// reportChecksum puts the object's checksum into the response to its PUT.
func (rq *request) reportChecksum(o *object) {
	if rq == nil {
		return
	}
	for k, v := range o.Meta {
		if strings.HasPrefix(k, checksumHeader) {
			rq.w.Header().Set(k, v)
		}
	}
}

// reportDeclared puts the checksums the client has declared for a part into the response.
func (rq *request) reportDeclared() {
	if rq == nil {
		return
	}
	for name, sum := range rq.checked {
		rq.w.Header().Set(checksumHeader+name, sum)
	}
}

// s3Error is the body of an error response.
type s3Error struct {
	XMLName   xml.Name `xml:"Error"`
	Code      string
	Message   string
	Resource  string `xml:",omitempty"`
	RequestID string `xml:"RequestId,omitempty"`
}

func writeError(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return
	}
	text, err := xml.Marshal(s3Error{Code: code, Message: message, Resource: r.URL.Path})
	if err != nil {
		text = []byte("<Error><Code>InternalError</Code></Error>")
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(xml.Header)+len(text)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, xml.Header)
	_, _ = w.Write(text)
}

var (
	// Anything else in a Range header is not understood by S3 and so, as RFC 9110 has it, ignored.
	singleRange = regexp.MustCompile(`^bytes=(\d{1,19}-\d{0,19}|-\d{1,19})$`)
	// The number of parts behind an entity tag, see gofakesETag.
	partsSuffix = regexp.MustCompile(`([0-9a-fA-F]{32})-[0-9]{1,5}`)
)

// mend rewrites an authenticated request into what gofakes3 handles correctly. It returns the HTTP status, S3 code and
// message of the error if there is nothing to be made of it.
func (s *Server) mend(rq *request, r *http.Request, op string) (status int, code, message string) {
	h := r.Header
	if v := h.Get("Range"); v != "" && !singleRange.MatchString(v) {
		h.Del("Range")
	}
	for _, name := range []string{"If-Match", "If-None-Match", "X-Amz-Copy-Source-If-Match", "X-Amz-Copy-Source-If-None-Match"} {
		if v := h.Get(name); v != "" {
			h.Set(name, partsSuffix.ReplaceAllString(v, "$1"))
		}
	}
	if op == OpCompleteMultipartUpload {
		if v := h.Get(crc64Header); v != "" && !strings.Contains(v, "-") {
			rq.wholeCRC64 = v
		}
	}
	if op == OpPutObject || op == OpUploadPart {
		if status, code, message = declareChecksums(rq, h); status != 0 {
			return status, code, message
		}
	}
	return s.mendBody(rq, r)
}

// declareChecksums moves the checksums of the payload from the headers to rq: the backend checks them on the way to
// the disk, faster than gofakes3 does and for parts as well.
func declareChecksums(rq *request, h http.Header) (status int, code, message string) {
	declared := map[string]string{}
	for name, values := range h {
		algorithm, ok := strings.CutPrefix(name, checksumHeader)
		algorithm = strings.ToLower(algorithm)
		if !ok || len(values) == 0 || algorithm == "type" || algorithm == "mode" || algorithm == "algorithm" {
			continue
		}
		declared[algorithm] = values[0]
		h.Del(name)
	}
	if v := h.Get("X-Amz-Trailer"); v != "" {
		for name := range strings.SplitSeq(v, ",") {
			if algorithm, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(name)), "x-amz-checksum-"); ok {
				declared[algorithm] = ""
			}
		}
	}
	if len(declared) > 1 {
		return 400, "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
	}
	for name, value := range declared {
		size := 8
		if h := newChecksum(name); h != nil {
			size = h.Size()
		} else if name != crc64Name {
			return 400, "InvalidRequest", "The checksum algorithm " + name + " is not supported."
		}
		if sum, err := base64.StdEncoding.DecodeString(value); value != "" && (err != nil || len(sum) != size) {
			return 400, "InvalidRequest", "Value for x-amz-checksum-" + name + " header is invalid."
		}
	}
	rq.declared = declared
	return 0, "", ""
}

// mendBody replaces the request's body by its payload.
func (s *Server) mendBody(rq *request, r *http.Request) (status int, code, message string) {
	kind := r.Header.Get("X-Amz-Content-Sha256")
	presigned := r.Header.Get("Authorization") == ""
	switch kind {
	case unsignedPayload:
		rq.body = plainBody{r.Body}
	case streamingSigned, streamingSignedTrailer, streamingTrailer:
		var signer *chunkSigner
		if kind != streamingTrailer {
			if signer = s.chunkSigner(r); signer == nil {
				return 400, "InvalidRequest", "a signed streaming payload needs an Authorization header"
			}
		}
		length, err := strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64)
		if err != nil || length < 0 {
			return 411, "MissingContentLength", "x-amz-decoded-content-length is missing or no number"
		}
		rq.body = newChunkedBody(r.Body, length, signer, kind != streamingSigned)
		r.Header.Set("X-Amz-Content-Sha256", unsignedPayload)
		r.Header.Del("X-Amz-Decoded-Content-Length")
		r.Header.Set("Content-Length", strconv.FormatInt(length, 10))
		r.ContentLength = length
	case "":
		if presigned {
			rq.body = plainBody{r.Body}
			break
		}
		// The signature was computed as if the payload were empty, so it must be.
		kind = emptySHA256
		fallthrough
	default:
		want, err := hex.DecodeString(kind)
		if err != nil || len(want) != sha256.Size {
			return 501, "NotImplemented", "x-amz-content-sha256 names a payload kind that is not supported"
		}
		rq.body = newHashedBody(r.Body, want)
	}
	if _, framed := rq.body.(*chunkedBody); !framed && rq.awaitsTrailer() {
		return 400, "InvalidRequest", "x-amz-trailer needs a payload with trailers"
	}
	r.Body = rq.body
	return 0, "", ""
}

// awaitsTrailer reports whether a checksum is to come behind the payload.
func (rq *request) awaitsTrailer() bool {
	for _, value := range rq.declared {
		if value == "" {
			return true
		}
	}
	return false
}

// chunkSigner continues the signature of an authenticated request. It is nil if the request was not signed by header.
func (s *Server) chunkSigner(r *http.Request) *chunkSigner {
	fields := map[string]string{}
	auth := strings.TrimPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256")
	for field := range strings.SplitSeq(auth, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	credential := strings.Split(fields["Credential"], "/")
	if len(credential) < 5 || fields["Signature"] == "" {
		return nil
	}
	scope := credential[len(credential)-4:] // date, region, service, terminator
	date := r.Header.Get("X-Amz-Date")
	if date == "" {
		return nil
	}
	return &chunkSigner{key: sigv4.Derive(s.opts.SecretKey, scope...), date: date, scope: strings.Join(scope, "/"), prev: fields["Signature"]}
}
