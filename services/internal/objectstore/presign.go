package objectstore

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// AnyLength leaves the length of a presigned request's body open.
const AnyLength = -1

// PresignPut is a URL under which whoever has it may PUT one object, until expiry after at. size binds the request to a
// length, AnyLength does not. headers, which may be nil, are signed: the request must carry exactly these X-Amz-…,
// Content-Type, If-None-Match and others; it must carry no other X-Amz-… header.
func (s *Store) PresignPut(ctx context.Context, bucket, key string, size int64, headers http.Header, expiry time.Duration, at time.Time) (string, error) {
	return s.presign(ctx, s.ObjectURL(bucket, key), url.Values{}, size, headers, expiry, at)
}

// PresignPart is a URL under which one part of a multipart upload may be PUT, as PresignPut.
func (s *Store) PresignPart(ctx context.Context, bucket, key, upload string, number int, size int64, expiry time.Duration, at time.Time) (string, error) {
	q := url.Values{"partNumber": {strconv.Itoa(number)}, "uploadId": {upload}}
	return s.presign(ctx, s.ObjectURL(bucket, key), q, size, nil, expiry, at)
}

func (s *Store) presign(ctx context.Context, u *url.URL, query url.Values, size int64, headers http.Header, expiry time.Duration, at time.Time) (string, error) {
	creds, err := s.Credentials(ctx)
	if err != nil {
		return "", err
	}
	if !creds.HasKeys() {
		return "", ErrNoCredentials
	}
	query.Set("X-Amz-Expires", strconv.FormatInt(int64(expiry/time.Second), 10))
	u.RawQuery = query.Encode()
	req := (&http.Request{Method: http.MethodPut, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(ctx)
	for k, v := range headers {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	if size != AnyLength {
		req.ContentLength = size
	}
	signed, _, err := s.signer.PresignHTTP(ctx, creds, req, UnsignedPayload, "s3", s.region, at, func(o *v4.SignerOptions) {
		// A header in the query binds nobody on stores that read it from the header only.
		o.DisableHeaderHoisting = true
		o.DisableURIPathEscaping = true
	})
	if err != nil {
		return "", fmt.Errorf("presign request: %w", err)
	}
	return signed, nil
}
