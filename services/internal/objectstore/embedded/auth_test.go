package embedded_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// do sends a request and returns status, S3 code and body.
func do(t *testing.T, req *http.Request) (status int, code string, body []byte) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= 300 {
		e := objectstore.ReadError(resp)
		return e.Status, e.Code, nil
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, "", body
}

func TestSignatures(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, bucket)
	if _, err := st.Put(t.Context(), bucket, "k", strings.NewReader("secret"), 6, objectstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	open := func(access, secret string) *objectstore.Store {
		st, err := objectstore.Open(t.Context(), s3test.Target(srv), objectstore.Static(access, secret, ""))
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	c := srv.Credentials()
	now := time.Now()
	for _, test := range []struct {
		name   string
		store  *objectstore.Store
		at     time.Time
		tamper func(*http.Request)
		status int
		code   string
	}{
		{name: "good", status: 200},
		{name: "14 minutes late", at: now.Add(-14 * time.Minute), status: 200},
		{name: "16 minutes late", at: now.Add(-16 * time.Minute), status: 403, code: "RequestTimeTooSkewed"},
		{name: "16 minutes early", at: now.Add(16 * time.Minute), status: 403, code: "RequestTimeTooSkewed"},
		{name: "wrong secret", store: open(c.AccessKey, c.SecretKey+"x"), status: 403, code: "SignatureDoesNotMatch"},
		{name: "unknown key", store: open("SOMEBODYELSE", c.SecretKey), status: 403, code: "InvalidAccessKeyId"},
		{name: "other method", tamper: func(r *http.Request) { r.Method = "DELETE" }, status: 403, code: "SignatureDoesNotMatch"},
		{name: "other key", tamper: func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/"+bucket+"/l", "" }, status: 403, code: "SignatureDoesNotMatch"},
		{name: "added query", tamper: func(r *http.Request) { r.URL.RawQuery = "tagging" }, status: 403, code: "SignatureDoesNotMatch"},
		{name: "added header", tamper: func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/a/b") }, status: 403, code: "AccessDenied"},
		{name: "changed header", tamper: func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") }, status: 403, code: "SignatureDoesNotMatch"},
		{name: "changed date", tamper: func(r *http.Request) {
			r.Header.Set("X-Amz-Date", now.Add(time.Minute).UTC().Format("20060102T150405Z"))
		}, status: 403, code: "SignatureDoesNotMatch"},
		{name: "no signature", tamper: func(r *http.Request) { r.Header.Del("Authorization") }, status: 403, code: "AccessDenied"},
		{name: "empty signature", tamper: func(r *http.Request) {
			a, _, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
			r.Header.Set("Authorization", a+"Signature=")
		}, status: 400, code: "MissingFields"},
		{name: "nonsense", tamper: func(r *http.Request) { r.Header.Set("Authorization", "AWS4-HMAC-SHA256 x,y,z") }, status: 400, code: "MissingFields"},
		{name: "basic", tamper: func(r *http.Request) { r.SetBasicAuth(c.AccessKey, c.SecretKey) }, status: 400, code: "UnsupportedAlgorithm"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.store == nil {
				test.store = st
			}
			if test.at.IsZero() {
				test.at = now
			}
			req, err := test.store.NewGet(t.Context(), bucket, "k", objectstore.Range{}, test.at)
			if err != nil {
				t.Fatal(err)
			}
			if test.tamper != nil {
				test.tamper(req)
			}
			status, code, body := do(t, req)
			if status != test.status || code != test.code || (status == 200) != (string(body) == "secret") {
				t.Errorf("%d %q %q, want %d %q", status, code, body, test.status, test.code)
			}
		})
	}
}

func TestPresignedExpiry(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, bucket)
	if _, err := st.Put(t.Context(), bucket, "k", strings.NewReader("x"), 1, objectstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	creds, err := st.Credentials(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	for _, test := range []struct {
		age    time.Duration
		valid  int
		status int
	}{
		{0, 60, 200},
		{50 * time.Second, 60, 200},
		{70 * time.Second, 60, 403},
		{24 * time.Hour, 7 * 24 * 3600, 200},
		{0, 7*24*3600 + 1, 403},
		{-16 * time.Minute, 3600, 403},
		{0, 0, 403},
	} {
		req, err := http.NewRequest(http.MethodGet, st.ObjectURL(bucket, "k").String()+"?X-Amz-Expires="+strconv.Itoa(test.valid), nil)
		if err != nil {
			t.Fatal(err)
		}
		u, _, err := signer.PresignHTTP(t.Context(), creds, req, "UNSIGNED-PAYLOAD", "s3", st.Region(), time.Now().Add(-test.age))
		if err != nil {
			t.Fatal(err)
		}
		req, err = http.NewRequest(http.MethodGet, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, code, _ := do(t, req); status != test.status {
			t.Errorf("signed %v ago for %d s: %d %s, want %d", test.age, test.valid, status, code, test.status)
		}
	}
}

// TestPresignedV2 signs as version 1 of the AWS CLI does.
func TestPresignedV2(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, bucket)
	if _, err := st.Put(t.Context(), bucket, "dir/k ü", strings.NewReader("x"), 1, objectstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	presign := func(expires time.Time, secret string) string {
		u := st.ObjectURL(bucket, "dir/k ü")
		at := strconv.FormatInt(expires.Unix(), 10)
		mac := hmac.New(sha1.New, []byte(secret))
		fmt.Fprintf(mac, "GET\n\n\n%s\n%s", at, u.EscapedPath())
		q := url.Values{"AWSAccessKeyId": {srv.Credentials().AccessKey}, "Expires": {at}, "Signature": {base64.StdEncoding.EncodeToString(mac.Sum(nil))}}
		return u.String() + "?" + q.Encode()
	}
	secret := srv.Credentials().SecretKey
	for _, test := range []struct {
		url    string
		status int
	}{
		{presign(time.Now().Add(time.Minute), secret), 200},
		{presign(time.Now().Add(-time.Minute), secret), 403},
		{presign(time.Now().Add(time.Minute), secret+"x"), 403},
		{presign(time.Now().Add(time.Minute), secret) + "&uploads", 403},
	} {
		req, err := http.NewRequest(http.MethodGet, test.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, code, _ := do(t, req); status != test.status {
			t.Errorf("%s: %d %s, want %d", test.url, status, code, test.status)
		}
	}
}

// payload is a PUT's body and what is said about it.
type payload struct {
	kind    string // x-amz-content-sha256
	body    string
	decoded int // x-amz-decoded-content-length; < 0: none
	headers map[string]string
}

func put(t *testing.T, srv *embedded.Server, st *objectstore.Store, key string, p payload, at time.Time) (int, string) {
	t.Helper()
	req := putRequest(t, st, key, p, at)
	status, code, _ := do(t, req)
	return status, code
}

func putRequest(t *testing.T, st *objectstore.Store, key string, p payload, at time.Time) *http.Request {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, st.ObjectURL(bucket, key).String(), strings.NewReader(p.body))
	if err != nil {
		t.Fatal(err)
	}
	if p.decoded >= 0 {
		req.Header.Set("X-Amz-Decoded-Content-Length", strconv.Itoa(p.decoded))
		req.Header.Set("Content-Encoding", "aws-chunked")
	}
	for k, v := range p.headers {
		req.Header.Set(k, v)
	}
	if err := st.Sign(t.Context(), req, p.kind, at); err != nil {
		t.Fatal(err)
	}
	return req
}

// signedChunks encodes chunks as aws-chunked with signatures that follow on that of req.
func signedChunks(srv *embedded.Server, req *http.Request, trailer string, chunks ...string) string {
	at := req.Header.Get("X-Amz-Date")
	scope := at[:8] + "/" + srv.Region() + "/s3/aws4_request"
	key := []byte("AWS4" + srv.Credentials().SecretKey)
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		io.WriteString(h, text)
		return h.Sum(nil)
	}
	for _, s := range strings.Split(scope, "/") {
		key = mac(key, s)
	}
	hash := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
	_, prev, _ := strings.Cut(req.Header.Get("Authorization"), "Signature=")
	var out strings.Builder
	for _, c := range append(chunks, "") {
		prev = hex.EncodeToString(mac(key, strings.Join([]string{"AWS4-HMAC-SHA256-PAYLOAD", at, scope, prev, hash(""), hash(c)}, "\n")))
		fmt.Fprintf(&out, "%x;chunk-signature=%s\r\n%s", len(c), prev, c)
		if c != "" {
			out.WriteString("\r\n")
		}
	}
	if trailer != "" {
		prev = hex.EncodeToString(mac(key, strings.Join([]string{"AWS4-HMAC-SHA256-TRAILER", at, scope, prev, hash(trailer + "\n")}, "\n")))
		fmt.Fprintf(&out, "%s\r\nx-amz-trailer-signature:%s\r\n", trailer, prev)
	}
	return out.String() + "\r\n"
}

// TestPayloads sends bodies in all of S3's framings, good and bad. What is bad must be refused and leave nothing behind.
func TestPayloads(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, bucket)
	const text = "hello, world"
	sum := sha256.Sum256([]byte(text))
	crc := objectstore.EncodeCRC64(objectstore.UpdateCRC64(0, []byte(text)))
	other := objectstore.EncodeCRC64(1)
	trailer := func(name, value string) payload {
		return payload{
			kind: "STREAMING-UNSIGNED-PAYLOAD-TRAILER", decoded: len(text), headers: map[string]string{"X-Amz-Trailer": name},
			body: fmt.Sprintf("5\r\n%s\r\n%x\r\n%s\r\n0\r\n%s:%s\r\n\r\n", text[:5], len(text)-5, text[5:], name, value),
		}
	}
	for _, test := range []struct {
		name   string
		p      payload
		status int
		code   string
	}{
		{"unsigned", payload{"UNSIGNED-PAYLOAD", text, -1, nil}, 200, ""},
		{"hashed", payload{hex.EncodeToString(sum[:]), text, -1, nil}, 200, ""},
		{"hashed, wrong", payload{hex.EncodeToString(sum[:]), "Hello, world", -1, nil}, 400, "XAmzContentSHA256Mismatch"},
		{"hashed, empty", payload{objectstore.EmptyPayload, "", -1, nil}, 200, ""},
		{"hashed as empty", payload{objectstore.EmptyPayload, text, -1, nil}, 400, "XAmzContentSHA256Mismatch"},
		{"unknown kind", payload{"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", text, -1, nil}, 501, "NotImplemented"},
		{"Content-MD5", payload{"UNSIGNED-PAYLOAD", text, -1, map[string]string{"Content-MD5": "5NePw/6b8ZEvfe0h4hFqaA=="}}, 400, "BadDigest"},
		{"checksum", payload{"UNSIGNED-PAYLOAD", text, -1, map[string]string{"X-Amz-Checksum-Crc64nvme": crc}}, 200, ""},
		{"checksum, wrong", payload{"UNSIGNED-PAYLOAD", text, -1, map[string]string{"X-Amz-Checksum-Crc64nvme": other}}, 400, "BadDigest"},
		{"checksum, nonsense", payload{"UNSIGNED-PAYLOAD", text, -1, map[string]string{"X-Amz-Checksum-Sha256": "?"}}, 400, "InvalidRequest"},
		{"checksum, unknown", payload{"UNSIGNED-PAYLOAD", text, -1, map[string]string{"X-Amz-Checksum-Md4": "AAAA"}}, 400, "InvalidRequest"},
		{"two checksums", payload{"UNSIGNED-PAYLOAD", text, -1, map[string]string{"X-Amz-Checksum-Crc64nvme": crc, "X-Amz-Checksum-Crc32": "AAAAAA=="}}, 400, "InvalidRequest"},
		{"trailer", trailer("x-amz-checksum-crc64nvme", crc), 200, ""},
		{"trailer, wrong", trailer("x-amz-checksum-crc64nvme", other), 400, "BadDigest"},
		{"trailer, missing", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "c\r\n" + text + "\r\n0\r\n\r\n", 12, map[string]string{"X-Amz-Trailer": "x-amz-checksum-crc32"}}, 400, "InvalidRequest"},
		{"trailer without framing", payload{"UNSIGNED-PAYLOAD", text, -1, map[string]string{"X-Amz-Trailer": "x-amz-checksum-crc32"}}, 400, "InvalidRequest"},
		{"chunks, too short", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "5\r\nhello\r\n0\r\n\r\n", 12, nil}, 400, "IncompleteBody"},
		{"chunks, too long", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "c\r\n" + text + "\r\n0\r\n\r\n", 5, nil}, 400, "IncompleteBody"},
		{"chunks, cut off", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "c\r\nhello", 12, nil}, 400, "IncompleteBody"},
		{"chunks, no size", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", text, 12, nil}, 400, "IncompleteBody"},
		{"chunks, negative size", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "-c\r\n" + text, 12, nil}, 400, "IncompleteBody"},
		{"chunks, huge size", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "ffffffffffffffff\r\n" + text, 12, nil}, 400, "IncompleteBody"},
		{"chunks, endless line", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", strings.Repeat("0", 100_000), 12, nil}, 400, "IncompleteBody"},
		{"chunks, no length", payload{"STREAMING-UNSIGNED-PAYLOAD-TRAILER", "c\r\n" + text + "\r\n0\r\n\r\n", -1, nil}, 411, "MissingContentLength"},
		{"signed chunks, no signature", payload{"STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "c\r\n" + text + "\r\n0\r\n\r\n", 12, nil}, 400, "IncompleteBody"},
		{"signed chunks, wrong signature", payload{"STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "c;chunk-signature=" + hex.EncodeToString(sum[:]) + "\r\n" + text + "\r\n0\r\n\r\n", 12, nil}, 403, "SignatureDoesNotMatch"},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, code := put(t, srv, st, test.name, test.p, time.Now())
			if status != test.status || code != test.code {
				t.Errorf("%d %q, want %d %q", status, code, test.status, test.code)
			}
			o, err := st.Head(t.Context(), bucket, test.name)
			if stored := err == nil; stored != (test.status == 200) {
				t.Errorf("stored: %v (%v)", stored, err)
			} else if stored && test.p.body != "" && o.Size != int64(len(text)) {
				t.Errorf("%d bytes stored, want %d", o.Size, len(text))
			}
		})
	}
	for _, test := range []struct {
		name   string
		kind   string
		tamper func(string) string
		status int
	}{
		{"chunks", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", nil, 200},
		{"trailer", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", nil, 200},
		{"first chunk changed", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", func(s string) string { return strings.Replace(s, "hello", "jello", 1) }, 403},
		{"last chunk changed", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", func(s string) string { return strings.Replace(s, "world", "wOrld", 1) }, 403},
		{"end's signature changed", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", func(s string) string {
			i := strings.LastIndex(s, "=") + 1
			return s[:i] + strings.Repeat("0", 64) + s[i+64:]
		}, 403},
		{"trailer's signature changed", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", func(s string) string {
			i := strings.LastIndex(s, ":") + 1
			return s[:i] + strings.Repeat("0", 64) + s[i+64:]
		}, 403},
	} {
		t.Run("signed/"+test.name, func(t *testing.T) {
			p := payload{kind: test.kind, decoded: len(text)}
			line := ""
			if strings.HasSuffix(test.kind, "TRAILER") {
				p.headers = map[string]string{"X-Amz-Trailer": "x-amz-checksum-crc64nvme"}
				line = "x-amz-checksum-crc64nvme:" + crc
			}
			key := "signed/" + test.name
			req := putRequest(t, st, key, p, time.Now())
			body := signedChunks(srv, req, line, text[:7], text[7:])
			if test.tamper != nil {
				body = test.tamper(body)
			}
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
			if status, code, _ := do(t, req); status != test.status {
				t.Errorf("%d %q, want %d", status, code, test.status)
			}
			if _, err := st.Head(t.Context(), bucket, key); (err == nil) != (test.status == 200) {
				t.Errorf("stored: %v", err)
			}
		})
	}
}

// TestUnknownLength sends a body with HTTP's own chunked coding.
func TestUnknownLength(t *testing.T) {
	srv := s3test.Start(t, func(o *embedded.Options) { o.MaxObjectBytes = 1 << 20 })
	st := s3test.Open(t, srv, bucket)
	for _, test := range []struct {
		size   int64
		status int
	}{{1 << 20, 200}, {1<<20 + 1, 400}} {
		req, err := http.NewRequest(http.MethodPut, st.ObjectURL(bucket, "k").String(), onlyReader{bytes.NewReader(content(1, test.size))})
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Sign(t.Context(), req, objectstore.UnsignedPayload, time.Now()); err != nil {
			t.Fatal(err)
		}
		if status, code, _ := do(t, req); status != test.status {
			t.Errorf("%d bytes: %d %s, want %d", test.size, status, code, test.status)
		}
	}
	if o, err := st.Head(t.Context(), bucket, "k"); err != nil || o.Size != 1<<20 {
		t.Errorf("%v %v", o.Size, err)
	}
}

// TestRefusedUpload: a client that asks first is told before it has sent anything; one that does not is heard out, so that
// it gets to see the answer.
func TestRefusedUpload(t *testing.T) {
	srv := s3test.Start(t)
	s3test.Open(t, srv, bucket)
	st, err := objectstore.Open(t.Context(), s3test.Target(srv), objectstore.Static(srv.Credentials().AccessKey, "wrong secret", ""))
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{ExpectContinueTimeout: time.Minute}
	defer tr.CloseIdleConnections()
	for _, expect := range []string{"100-continue", ""} {
		before := srv.Access()
		req, err := st.NewPut(t.Context(), bucket, "k", objectstore.NewContent(1, 12<<20), 12<<20, http.Header{"Expect": {expect}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if e := objectstore.ReadError(resp); e.Code != "SignatureDoesNotMatch" {
			t.Error(e)
		}
		after, err := srv.AccessIdle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := after.Sub(before).Total("", embedded.OpPutObject, 403); got.Requests != 1 || (expect != "" && got.BytesIn != 0) {
			t.Errorf("Expect %q: %+v", expect, got)
		}
	}
}
