package objectstore

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/transferlab/transferlab/services/internal/objectstore/sigv4"
)

// Payload hashes for Sign.
const (
	UnsignedPayload = "UNSIGNED-PAYLOAD"
	EmptyPayload    = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of nothing
)

// Sign signs req at a time, with what S3 calls the payload hash: UnsignedPayload, EmptyPayload or a SHA-256 in hex.
// Content-Type, Content-MD5 and X-Amz-* are signed as they are now and must not change afterwards; all else may. A request
// may be signed again, for a retry at a later time.
func (s *Store) Sign(ctx context.Context, req *http.Request, payloadHash string, at time.Time) error {
	if s.target.Unsigned {
		return nil
	}
	creds, err := s.Credentials(ctx)
	if err != nil {
		return err
	}
	if !creds.HasKeys() {
		return ErrNoCredentials
	}
	if req.URL.RawQuery == "" {
		c := sigv4.Credentials{AccessKey: creds.AccessKeyID, SecretKey: creds.SecretAccessKey, Token: creds.SessionToken}
		s.keys.Sign(req, c, s.region, payloadHash, at)
		return nil
	}
	req.Header.Set("X-Amz-Content-Sha256", payloadHash)
	if err := s.signer.SignHTTP(ctx, creds, req, payloadHash, "s3", s.region, at); err != nil {
		return fmt.Errorf("sign request: %w", err)
	}
	return nil
}

// Range is a part of an object: Length bytes from Offset, or from Offset to the end if Length is 0. The zero Range is the
// whole object.
type Range struct {
	Offset, Length int64
}

// header is the Range request header, empty for the whole object.
func (r Range) header() string {
	switch {
	case r == Range{}:
		return ""
	case r.Length == 0:
		return "bytes=" + strconv.FormatInt(r.Offset, 10) + "-"
	}
	return "bytes=" + strconv.FormatInt(r.Offset, 10) + "-" + strconv.FormatInt(r.Offset+r.Length-1, 10)
}

// NewGet builds and signs a GET of an object or a range of it.
func (s *Store) NewGet(ctx context.Context, bucket, key string, rng Range, at time.Time) (*http.Request, error) {
	req := &http.Request{
		Method: http.MethodGet, URL: s.ObjectURL(bucket, key), Header: make(http.Header, 8),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	req.Host = req.URL.Host
	if h := rng.header(); h != "" {
		req.Header["Range"] = []string{h}
	}
	// Without it net/http offers gzip, and a store that compresses would change what is measured.
	req.Header["Accept-Encoding"] = []string{"identity"}
	req = req.WithContext(ctx)
	return req, s.Sign(ctx, req, EmptyPayload, at)
}

// NewPut builds and signs a PUT of size bytes. headers, which may be nil, become the request's: Content-Type,
// X-Amz-Meta-…, X-Amz-Checksum-…, If-None-Match. The payload is not signed, so that it need not be read twice; give a
// checksum to have it checked.
func (s *Store) NewPut(ctx context.Context, bucket, key string, body io.Reader, size int64, headers http.Header, at time.Time) (*http.Request, error) {
	if size == 0 {
		body = http.NoBody
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.ObjectURL(bucket, key).String(), body)
	if err != nil {
		return nil, err
	}
	req.URL = s.ObjectURL(bucket, key)
	req.ContentLength = size
	for k, v := range headers {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	payload := UnsignedPayload
	if size == 0 {
		payload = EmptyPayload
	}
	return req, s.Sign(ctx, req, payload, at)
}
