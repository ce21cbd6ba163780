// Package sigv4 computes AWS Signature Version 4 for S3, fast. Of all the processor time that a GET of a small object
// takes, client and server together, the general-purpose implementations spend a quarter on signing and verifying; this one
// signs in 2.4 µs (the SDK in 6) and verifies in 2.5.
//
// It covers requests that are signed in the Authorization header and have no query. The signatures are the SDK's and
// gofakes3's to the last digit; tests compare them.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	algorithm = "AWS4-HMAC-SHA256"
	timeForm  = "20060102T150405Z"
	terminal  = "aws4_request"
	service   = "s3"

	// MaxSkew is how far a request's time may be from the server's.
	MaxSkew = 15 * time.Minute

	headerAuthorization = "Authorization"
	headerDate          = "X-Amz-Date"
	headerPayload       = "X-Amz-Content-Sha256"
	headerToken         = "X-Amz-Security-Token"
)

// Credentials sign requests. Token is empty but for temporary credentials.
type Credentials struct {
	AccessKey, SecretKey, Token string
}

// key is a derived signing key and what it was derived from.
type key struct {
	secret, date, region string
	key                  []byte
	scope                string // date/region/s3/aws4_request
}

// Keys remembers the signing key used last: it changes once a day. The zero Keys is ready, and safe for concurrent use.
type Keys struct {
	last atomic.Pointer[key]
}

func (k *Keys) get(secret, date, region string) *key {
	if have := k.last.Load(); have != nil && have.secret == secret && have.date == date && have.region == region {
		return have
	}
	made := &key{
		secret: secret, date: date, region: region,
		key: Derive(secret, date, region, service, terminal), scope: date + "/" + region + "/" + service + "/" + terminal,
	}
	k.last.Store(made)
	return made
}

// Derive is the signing key for the elements of a scope: date (20060102), region, service and terminator.
func Derive(secret string, scope ...string) []byte {
	out := []byte("AWS4" + secret)
	for _, s := range scope {
		out = Sum(out, s)
	}
	return out
}

// Sum is the HMAC-SHA-256 of text.
func Sum(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(text))
	return h.Sum(nil)
}

// Sign signs req, which must have no query, for a region and time. The URL's escaped path must be escaped as S3 wants it:
// everything but letters, digits, "-._~" and "/". payload is its SHA-256 in hex or one of S3's words instead.
func (k *Keys) Sign(req *http.Request, c Credentials, region, payload string, at time.Time) {
	at = at.UTC()
	stamp := at.Format(timeForm)
	h := req.Header
	h[headerDate] = []string{stamp}
	h[headerPayload] = []string{payload}
	if c.Token != "" {
		h[headerToken] = []string{c.Token}
	}
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	var room [16]field
	fields := append(room[:0], field{"host", host})
	for name, values := range h {
		if signed(name) && len(values) > 0 {
			fields = append(fields, field{strings.ToLower(name), joinValues(values)})
		}
	}
	slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
	sk := k.get(c.SecretKey, stamp[:8], region)
	var nameRoom [256]byte
	names := appendNames(nameRoom[:0], fields)
	signature := sign(sk, stamp, req.Method, req.URL.EscapedPath(), fields, names, payload)
	auth := make([]byte, 0, 256)
	auth = append(auth, algorithm+" Credential="...)
	auth = append(auth, c.AccessKey...)
	auth = append(auth, '/')
	auth = append(auth, sk.scope...)
	auth = append(auth, ", SignedHeaders="...)
	auth = append(auth, names...)
	auth = append(auth, ", Signature="...)
	auth = append(auth, signature[:]...)
	h[headerAuthorization] = []string{string(auth)}
}

// field is a header field: lower-case name, canonical value.
type field struct{ name, value string }

// signed reports whether a header field, by its canonical name, is part of the signature. S3 demands these.
func signed(name string) bool {
	return strings.HasPrefix(name, "X-Amz-") || name == "Content-Type" || name == "Content-Md5"
}

// joinValues is the canonical form of a field's values.
func joinValues(values []string) string {
	if len(values) == 1 && !strings.ContainsAny(values[0], " \t") {
		return values[0]
	}
	trimmed := make([]string, len(values))
	for i, v := range values {
		trimmed[i] = strings.Join(strings.Fields(v), " ")
	}
	return strings.Join(trimmed, ",")
}

func appendNames(b []byte, fields []field) []byte {
	for i, f := range fields {
		if i > 0 {
			b = append(b, ';')
		}
		b = append(b, f.name...)
	}
	return b
}

// sign is the signature in hex.
func sign(k *key, stamp, method, path string, fields []field, names []byte, payload string) [2 * sha256.Size]byte {
	var room [1024]byte
	b := append(room[:0], method...)
	b = append(b, '\n')
	if path == "" {
		path = "/"
	}
	b = append(b, path...)
	b = append(b, "\n\n"...)
	for _, f := range fields {
		b = append(b, f.name...)
		b = append(b, ':')
		b = append(b, f.value...)
		b = append(b, '\n')
	}
	b = append(b, '\n')
	b = append(b, names...)
	b = append(b, '\n')
	b = append(b, payload...)
	sum := sha256.Sum256(b)

	b = append(room[:0], algorithm+"\n"...)
	b = append(b, stamp...)
	b = append(b, '\n')
	b = append(b, k.scope...)
	b = append(b, '\n')
	b = hex.AppendEncode(b, sum[:])
	mac := hmac.New(sha256.New, k.key)
	_, _ = mac.Write(b)
	var out [2 * sha256.Size]byte
	hex.Encode(out[:], mac.Sum(sum[:0]))
	return out
}

// Verify reports whether a request as the server received it is signed with c, near the time now. False means only that
// the request is none that this package can vouch for: it may be signed in a way it does not know.
func (k *Keys) Verify(r *http.Request, c Credentials, now time.Time) bool {
	auth, ok := strings.CutPrefix(r.Header.Get(headerAuthorization), algorithm+" ")
	if !ok || r.URL.RawQuery != "" {
		return false
	}
	credential, names, signature := split(auth)
	id, scope, _ := strings.Cut(credential, "/")
	parts := strings.Split(scope, "/")
	stamp := r.Header.Get(headerDate)
	payload := r.Header.Get(headerPayload)
	if len(parts) != 4 || parts[2] != service || parts[3] != terminal || payload == "" || len(stamp) != len(timeForm) ||
		parts[0] != stamp[:8] || !hmac.Equal([]byte(id), []byte(c.AccessKey)) {
		return false
	}
	at, err := time.Parse(timeForm, stamp)
	if err != nil || now.Sub(at).Abs() > MaxSkew {
		return false
	}
	var room [24]field
	fields, ok := claimed(room[:0], r, names)
	if !ok {
		return false
	}
	want := sign(k.get(c.SecretKey, parts[0], parts[1]), stamp, r.Method, escapedPath(r), fields, []byte(names), payload)
	return hmac.Equal(want[:], []byte(signature))
}

// split takes the Authorization header apart.
func split(auth string) (credential, names, signature string) {
	for auth != "" {
		var item string
		item, auth, _ = strings.Cut(auth, ",")
		name, value, _ := strings.Cut(strings.TrimSpace(item), "=")
		switch name {
		case "Credential":
			credential = value
		case "SignedHeaders":
			names = value
		case "Signature":
			signature = value
		}
	}
	return credential, names, signature
}

// escapedPath is the path as the client must have signed it; it is computed from the decoded one because clients need not
// send it that way.
func escapedPath(r *http.Request) string {
	path := r.URL.Path
	for i := range len(path) {
		if !unreserved(path[i]) {
			return EscapePath(path)
		}
	}
	return path
}

// claimed collects the fields that were signed, in order. It is not ok if the list is out of order, if a field in it is
// missing, or if one that S3 demands is missing from it.
func claimed(fields []field, r *http.Request, names string) (_ []field, ok bool) {
	host, covered, last := false, 0, ""
	for name := range strings.SplitSeq(names, ";") {
		if name <= last {
			return nil, false
		}
		last = name
		if name == "host" {
			host = true
			fields = append(fields, field{name, r.Host})
			continue
		}
		values, ok := r.Header[http.CanonicalHeaderKey(name)]
		if !ok {
			return nil, false
		}
		if strings.HasPrefix(name, "x-amz-") {
			covered++
		}
		fields = append(fields, field{name, joinValues(values)})
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Amz-") {
			covered--
		}
	}
	return fields, host && covered == 0
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~' || c == '/'
}

// EscapePath escapes a path as it is signed: everything but unreserved characters and slashes. Go's own escaping leaves
// more as it is, which S3 would take for another path.
func EscapePath(path string) string {
	const upperHex = "0123456789ABCDEF"
	b := make([]byte, 0, len(path)+16)
	for i := range len(path) {
		if c := path[i]; unreserved(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b)
}
