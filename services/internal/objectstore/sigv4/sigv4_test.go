package sigv4_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/rclone/gofakes3/signature"

	"github.com/transferlab/transferlab/services/internal/objectstore/sigv4"
)

func request(method, path string, headers map[string]string) *http.Request {
	req := &http.Request{Method: method, Host: "bucket.example:9000", Header: http.Header{}, URL: &url.URL{
		Scheme: "http", Host: "bucket.example:9000", Path: path, RawPath: sigv4.EscapePath(path),
	}}
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	return req
}

// TestSign compares with the SDK: it signs the same set of headers if there are no others.
func TestSign(t *testing.T) {
	var keys sigv4.Keys
	reference := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	for i, c := range []sigv4.Credentials{{AccessKey: "AKIAIOSFODNN7EXAMPLE", SecretKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}, {AccessKey: "A", SecretKey: "B", Token: "session+token/=="}} {
		for _, path := range []string{"/", "/key", "/a b/ü/+&?#%2F", "/../x", "//double//", "/~-._"} {
			for _, headers := range []map[string]string{
				{},
				{"Content-Type": "text/plain;  charset=utf-8", "X-Amz-Meta-B": "  two   words ", "X-Amz-Meta-A": "1", "Content-Md5": "abc"},
			} {
				for day := range 3 {
					for _, region := range []string{"us-east-1", "eu-west-3"} {
						at := time.Date(2026, 11, 20+day, 23, 59, 58, 0, time.UTC)
						got, want := request("PUT", path, headers), request("PUT", path, headers)
						keys.Sign(got, c, region, "UNSIGNED-PAYLOAD", at)
						want.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
						if err := reference.SignHTTP(context.Background(), aws.Credentials{AccessKeyID: c.AccessKey, SecretAccessKey: c.SecretKey, SessionToken: c.Token}, want, "UNSIGNED-PAYLOAD", "s3", region, at); err != nil {
							t.Fatal(err)
						}
						if !maps.EqualFunc(got.Header, want.Header, func(a, b []string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
							t.Errorf("%d %q %s:\n got %v\nwant %v", i, path, region, got.Header, want.Header)
						}
						if !new(sigv4.Keys).Verify(got, c, at) {
							t.Errorf("%d %q: not verified", i, path)
						}
					}
				}
			}
		}
	}
}

// TestVerify: nothing is accepted that differs in anything from what was signed.
func TestVerify(t *testing.T) {
	var keys sigv4.Keys
	c := sigv4.Credentials{AccessKey: "KEY", SecretKey: "SECRET"}
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for name, tamper := range map[string]func(*http.Request){
		"method":         func(r *http.Request) { r.Method = "DELETE" },
		"path":           func(r *http.Request) { r.URL.Path += "x" },
		"host":           func(r *http.Request) { r.Host = "other" },
		"query":          func(r *http.Request) { r.URL.RawQuery = "acl" },
		"payload":        func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") },
		"date":           func(r *http.Request) { r.Header.Set("X-Amz-Date", "20261120T120001Z") },
		"no date":        func(r *http.Request) { r.Header.Del("X-Amz-Date") },
		"no payload":     func(r *http.Request) { r.Header.Del("X-Amz-Content-Sha256") },
		"signed header":  func(r *http.Request) { r.Header.Set("X-Amz-Meta-A", "2") },
		"second value":   func(r *http.Request) { r.Header.Add("X-Amz-Meta-A", "2") },
		"removed header": func(r *http.Request) { r.Header.Del("X-Amz-Meta-A") },
		"added header":   func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/a/b") },
		"no signature":   func(r *http.Request) { r.Header.Del("Authorization") },
		"list without host": func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "host;", "", 1))
		},
		"list without a header": func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), ";x-amz-meta-a", "", 1))
		},
		"list with one twice": func(r *http.Request) {
			r.Header.Set("X-Amz-Copy-Source", "/a/b")
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), ";x-amz-meta-a", ";x-amz-meta-a;x-amz-meta-a", 1))
		},
		"other key":    func(r *http.Request) { replace(r, "Credential=KEY/", "Credential=OTHER/") },
		"other day":    func(r *http.Request) { replace(r, "/20261120/", "/20261121/") },
		"other region": func(r *http.Request) { replace(r, "/us-east-1/", "/us-east-2/") },
		"service":      func(r *http.Request) { replace(r, "/s3/", "/ec2/") },
		"short":        func(r *http.Request) { replace(r, "/us-east-1/s3", "") },
		"empty":        func(r *http.Request) { r.Header.Set("Authorization", "AWS4-HMAC-SHA256 ") },
	} {
		req := request("GET", "/bucket/key", map[string]string{"X-Amz-Meta-A": "1"})
		keys.Sign(req, c, "us-east-1", strings.Repeat("0", 64), at)
		if !keys.Verify(req, c, at.Add(sigv4.MaxSkew)) || keys.Verify(req, c, at.Add(sigv4.MaxSkew+time.Second)) || keys.Verify(req, c, at.Add(-sigv4.MaxSkew-time.Second)) {
			t.Fatal("not even the original")
		}
		if keys.Verify(req, sigv4.Credentials{AccessKey: "KEY", SecretKey: "SECREt"}, at) {
			t.Error("accepted under another secret")
		}
		tamper(req)
		if keys.Verify(req, c, at) {
			t.Errorf("%s: accepted", name)
		}
	}
}

func replace(r *http.Request, from, to string) {
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), from, to, 1))
}

// FuzzVerify: what the quick check accepts, the thorough one accepts.
func FuzzVerify(f *testing.F) {
	var keys sigv4.Keys
	c := sigv4.Credentials{AccessKey: "KEY", SecretKey: "SECRET"}
	good := request("GET", "/bucket/key", nil)
	now := time.Now()
	keys.Sign(good, c, "us-east-1", "UNSIGNED-PAYLOAD", now)
	f.Add("/bucket/key", "", good.Header.Get("Authorization"), "")
	f.Add("/bucket/ü", "acl", "AWS4-HMAC-SHA256 Credential=KEY/20261120/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0", "x")
	f.Fuzz(func(t *testing.T, path, query, auth, extra string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = good.Host
		r.URL.Path, r.URL.RawQuery = path, query
		r.Header = good.Header.Clone()
		r.Header.Set("Authorization", auth)
		if extra != "" {
			r.Header.Set("X-Amz-Extra", extra)
		}
		if keys.Verify(r, c, now) && signature.V4SignVerifyWithSecret(r, c.SecretKey) != signature.ErrNone {
			t.Fatalf("%q %q %q %q accepted", path, query, auth, extra)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	var keys sigv4.Keys
	c := sigv4.Credentials{AccessKey: "KEY", SecretKey: "SECRET"}
	req := request("GET", "/bucket/key", nil)
	at := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		keys.Sign(req, c, "us-east-1", "UNSIGNED-PAYLOAD", at)
	}
}

func BenchmarkSDKSign(b *testing.B) {
	reference := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	c := aws.Credentials{AccessKeyID: "KEY", SecretAccessKey: "SECRET"}
	req := request("GET", "/bucket/key", map[string]string{"X-Amz-Content-Sha256": "UNSIGNED-PAYLOAD"})
	at := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if err := reference.SignHTTP(context.Background(), c, req, "UNSIGNED-PAYLOAD", "s3", "us-east-1", at); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	var keys sigv4.Keys
	c := sigv4.Credentials{AccessKey: "KEY", SecretKey: "SECRET"}
	req := request("GET", "/bucket/key", nil)
	at := time.Now()
	keys.Sign(req, c, "us-east-1", "UNSIGNED-PAYLOAD", at)
	b.ReportAllocs()
	for b.Loop() {
		if !keys.Verify(req, c, at) {
			b.Fatal("refused")
		}
	}
}
