package embedded

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the signatures of old clients are made with it
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rclone/gofakes3/signature"

	"github.com/transferlab/transferlab/services/internal/objectstore/sigv4"
)

// authenticate checks a request's signature and answers the request if it is not good.
func (s *Server) authenticate(w *recorder, r *http.Request) bool {
	// The quick check knows the common case only; whatever it does not accept is judged by the thorough one.
	if s.keys.Verify(r, sigv4.Credentials{AccessKey: s.opts.AccessKey, SecretKey: s.opts.SecretKey}, time.Now()) {
		return true
	}
	if r.Header.Get("Authorization") == "" && r.URL.Query().Has("AWSAccessKeyId") {
		return s.authenticateV2(w, r)
	}
	result := signature.V4SignVerifyWithLookup(r, func(id string) (string, bool) {
		return s.opts.SecretKey, sameKey(id, s.opts.AccessKey)
	})
	if result != signature.ErrNone {
		e := signature.GetAPIError(result)
		writeError(w, r, e.HTTPStatusCode, e.Code, e.Description)
		return false
	}
	return true
}

// signedParameters are the query parameters that a version 2 signature covers.
var signedParameters = []string{
	"acl", "attributes", "cors", "delete", "lifecycle", "location", "logging", "notification", "partNumber", "policy",
	"requestPayment", "response-cache-control", "response-content-disposition", "response-content-encoding",
	"response-content-language", "response-content-type", "response-expires", "tagging", "torrent", "uploadId", "uploads",
	"versionId", "versioning", "versions", "website",
}

// authenticateV2 checks a URL presigned with Signature Version 2, which is what version 1 of the AWS CLI still makes for
// endpoints other than AWS. Version 2 is accepted in no other form.
func (s *Server) authenticateV2(w *recorder, r *http.Request) bool {
	q := r.URL.Query()
	var resource, headers strings.Builder
	resource.WriteString(sigv4.EscapePath(r.URL.Path))
	separator := byte('?')
	for _, name := range signedParameters {
		if !q.Has(name) {
			continue
		}
		resource.WriteByte(separator)
		resource.WriteString(name)
		if v := q.Get(name); v != "" {
			resource.WriteString("=" + v)
		}
		separator = '&'
	}
	var names []string
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Amz-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		headers.WriteString(strings.ToLower(name) + ":" + strings.Join(r.Header[name], ",") + "\n")
	}
	text := strings.Join([]string{
		r.Method, r.Header.Get("Content-MD5"), r.Header.Get("Content-Type"), q.Get("Expires"), headers.String() + resource.String(),
	}, "\n")
	mac := hmac.New(sha1.New, []byte(s.opts.SecretKey))
	_, _ = mac.Write([]byte(text))
	want := base64.StdEncoding.EncodeToString(mac.Sum(nil))
	expires, err := strconv.ParseInt(q.Get("Expires"), 10, 64)
	switch {
	case !sameKey(q.Get("AWSAccessKeyId"), s.opts.AccessKey):
		writeError(w, r, http.StatusForbidden, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
	case !sameKey(q.Get("Signature"), want):
		writeError(w, r, http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
	case err != nil || time.Now().Unix() > expires:
		writeError(w, r, http.StatusForbidden, "AccessDenied", "Request has expired")
	default:
		return true
	}
	return false
}

// sameKey compares without telling by its duration how much of it is right.
func sameKey(a, b string) bool { return hmac.Equal([]byte(a), []byte(b)) }
