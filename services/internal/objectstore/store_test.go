package objectstore_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// noAWS keeps the configuration of the machine out of a test.
func noAWS(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "credentials"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_MAX_ATTEMPTS", "1") // the SDK waits for a second or two before a retry
}

func TestTargetValidate(t *testing.T) {
	for _, good := range []objectstore.Target{
		{},
		{Endpoint: "http://127.0.0.1:9000", Region: "us-east-1", PathStyle: true},
		{Endpoint: "https://s3.example.com/below/here", BucketPrefix: "lab-"},
	} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	bad := objectstore.Target{Endpoint: "s3.example.com", Region: "US East", BucketPrefix: "-x", Unsigned: true, Profile: "p"}
	err := bad.Validate()
	for _, want := range []string{"endpoint", "region", "bucket_prefix", "profile"} {
		if err == nil || !strings.Contains(err.Error(), want+":") {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
	for _, endpoint := range []string{"ftp://x", "http://", "http://a?b", "http://a#b", "http://user:secret@host", "http://%zz"} {
		err := (&objectstore.Target{Endpoint: endpoint}).Validate()
		if err == nil || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
	text, err := json.Marshal(objectstore.Target{Endpoint: "http://h", PathStyle: true})
	if err != nil || string(text) != `{"endpoint":"http://h","path_style":true}` {
		t.Errorf("%s %v", text, err)
	}
}

func TestObjectURL(t *testing.T) {
	noAWS(t)
	for _, test := range []struct {
		target      objectstore.Target
		bucket, key string
		want        string
	}{
		{objectstore.Target{Region: "us-west-2"}, "b", "k", "https://b.s3.us-west-2.amazonaws.com/k"},
		{objectstore.Target{Region: "us-east-1"}, "b", "", "https://b.s3.us-east-1.amazonaws.com/"},
		{objectstore.Target{Region: "cn-north-1"}, "b", "k", "https://b.s3.cn-north-1.amazonaws.com.cn/k"},
		{objectstore.Target{Region: "us-west-2"}, "b.with.dots", "k", "https://s3.us-west-2.amazonaws.com/b.with.dots/k"},
		{objectstore.Target{Region: "us-west-2", PathStyle: true}, "b", "k", "https://s3.us-west-2.amazonaws.com/b/k"},
		{objectstore.Target{Region: "us-west-2", BucketPrefix: "lab-"}, "b", "k", "https://lab-b.s3.us-west-2.amazonaws.com/k"},
		{objectstore.Target{Endpoint: "http://127.0.0.1:9000"}, "b", "a b/ü+&?#%/../.", "http://127.0.0.1:9000/b/a%20b/%C3%BC%2B%26%3F%23%25/../."},
		{objectstore.Target{Endpoint: "http://localhost:9000/"}, "b", "", "http://localhost:9000/b"},
		{objectstore.Target{Endpoint: "http://[::1]:9000"}, "b", "/k", "http://[::1]:9000/b//k"},
		{objectstore.Target{Endpoint: "https://s3.example.com/root"}, "b", "k", "https://b.s3.example.com/root/k"},
		{objectstore.Target{Endpoint: "https://s3.example.com/root", PathStyle: true}, "b", "k", "https://s3.example.com/root/b/k"},
	} {
		st, err := objectstore.Open(t.Context(), test.target, objectstore.Static("a", "b", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.ObjectURL(test.bucket, test.key).String(); got != test.want {
			t.Errorf("%+v %s %s:\n got %s\nwant %s", test.target, test.bucket, test.key, got, test.want)
		}
	}
}

func TestOpen(t *testing.T) {
	noAWS(t)
	ctx := t.Context()
	srv := s3test.Start(t)
	c := srv.Credentials()

	// The chain: environment, then profile.
	t.Setenv("AWS_ACCESS_KEY_ID", c.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", c.SecretKey)
	t.Setenv("AWS_REGION", "eu-central-1")
	t.Setenv("AWS_ENDPOINT_URL", srv.Endpoint())
	st, err := objectstore.Open(ctx, objectstore.Target{}, objectstore.Chain())
	if err != nil {
		t.Fatal(err)
	}
	if st.Region() != "eu-central-1" || st.BaseURL().String() != srv.Endpoint() {
		t.Errorf("region %s, base %s", st.Region(), st.BaseURL())
	}
	if err := st.EnsureBucket(ctx, "from-env"); err != nil {
		t.Error(err)
	}
	os.Unsetenv("AWS_ACCESS_KEY_ID")
	os.Unsetenv("AWS_SECRET_ACCESS_KEY")
	os.Unsetenv("AWS_ENDPOINT_URL")
	config := fmt.Sprintf("[profile lab]\nregion = us-west-1\nendpoint_url = %s\naws_access_key_id = %s\naws_secret_access_key = %s\n", srv.Endpoint(), c.AccessKey, c.SecretKey)
	os.Unsetenv("AWS_REGION")
	if err := os.WriteFile(os.Getenv("AWS_CONFIG_FILE"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err = objectstore.Open(ctx, objectstore.Target{Profile: "lab"}, objectstore.Chain())
	if err != nil {
		t.Fatal(err)
	}
	if st.Region() != "us-west-1" {
		t.Errorf("region %s", st.Region())
	}
	if err := st.EnsureBucket(ctx, "from-profile"); err != nil {
		t.Error(err)
	}
	if _, err := objectstore.Open(ctx, objectstore.Target{Profile: "missing"}, objectstore.Chain()); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Error(err)
	}

	// Nothing to sign with is said before anything is sent.
	st, err = objectstore.Open(ctx, objectstore.Target{Endpoint: srv.Endpoint()}, objectstore.Chain())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.NewGet(ctx, "b", "k", objectstore.Range{}, time.Now()); err == nil {
		t.Error("signed without credentials")
	}
	// Unsigned requests need none, and get what anybody gets.
	st, err = objectstore.Open(ctx, objectstore.Target{Endpoint: srv.Endpoint(), Unsigned: true}, objectstore.Chain())
	if err != nil {
		t.Fatal(err)
	}
	req, err := st.NewGet(ctx, "b", "k", objectstore.Range{}, time.Now())
	if err != nil || req.Header.Get("Authorization") != "" {
		t.Errorf("%v %v", req.Header, err)
	}
	if _, err := st.Head(ctx, "b", "k"); objectstore.Classify(err) != objectstore.StatusDenied {
		t.Error(err)
	}
	// Temporary credentials travel with their token.
	st, err = objectstore.Open(ctx, objectstore.Target{Endpoint: srv.Endpoint()}, objectstore.Provider(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: c.AccessKey, SecretAccessKey: c.SecretKey, SessionToken: "tok en"}, nil
	})))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Put(ctx, "from-env", "k", strings.NewReader("x"), 1, objectstore.PutOptions{}); err != nil {
		t.Error(err)
	}
	req, err = st.NewGet(ctx, "from-env", "k", objectstore.Range{}, time.Now())
	if err != nil || req.Header.Get("X-Amz-Security-Token") != "tok en" {
		t.Errorf("%v %v", req.Header, err)
	}
	if status, _ := fetch(t, http.DefaultTransport, req); status != objectstore.StatusOK {
		t.Error(status)
	}
}

// tlsServer starts a server with a certificate that nobody trusts, and writes that to a file.
func tlsServer(t *testing.T) (*embedded.Server, string) {
	t.Helper()
	donor := httptest.NewTLSServer(nil)
	donor.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: donor.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return s3test.Start(t, func(o *embedded.Options) { o.TLS = &tls.Config{Certificates: donor.TLS.Certificates} }), ca
}

// fetch sends a request and says what it came to.
func fetch(t *testing.T, rt http.RoundTripper, req *http.Request) (string, []byte) {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return objectstore.Classify(err), nil
	}
	if resp.StatusCode >= 300 {
		return objectstore.Classify(objectstore.ReadError(resp)), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return objectstore.Classify(err), body
}

func TestTLS(t *testing.T) {
	noAWS(t)
	ctx := t.Context()
	srv, ca := tlsServer(t)
	c := srv.Credentials()
	try := func(target objectstore.Target) string {
		st, err := objectstore.Open(ctx, target, objectstore.Static(c.AccessKey, c.SecretKey, ""))
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{TLSClientConfig: st.TLSConfig()}
		defer tr.CloseIdleConnections()
		err = st.EnsureBucket(ctx, "bucket")
		if err == nil {
			// The SDK sends the checksums of parts as trailers here.
			_, err = st.Put(ctx, "bucket", "k", objectstore.NewContent(1, 6<<20), 6<<20, objectstore.PutOptions{PartBytes: 5 << 20})
		}
		req, rerr := st.NewGet(ctx, "bucket", "k", objectstore.Range{}, time.Now())
		if rerr != nil {
			t.Fatal(rerr)
		}
		status, body := fetch(t, tr, req)
		if (status == objectstore.StatusOK) != (len(body) == 6<<20) || status != objectstore.Classify(err) {
			t.Errorf("%+v: %s by hand (%d bytes), SDK: %v", target, status, len(body), err)
		}
		return status
	}
	if status := try(s3test.Target(srv)); status != objectstore.StatusTLS {
		t.Errorf("unknown authority: %s", status)
	}
	target := s3test.Target(srv)
	target.CAFile = ca
	if status := try(target); status != objectstore.StatusOK {
		t.Errorf("ca_file: %s", status)
	}
	target.CAFile = "/does/not/exist"
	if _, err := objectstore.Open(ctx, target, objectstore.Chain()); err == nil || !strings.Contains(err.Error(), target.CAFile) {
		t.Error(err)
	}
	t.Setenv("AWS_CA_BUNDLE", ca)
	if status := try(s3test.Target(srv)); status != objectstore.StatusOK {
		t.Errorf("AWS_CA_BUNDLE: %s", status)
	}
	if err := os.WriteFile(ca, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := objectstore.Open(ctx, s3test.Target(srv), objectstore.Chain()); err == nil || !strings.Contains(err.Error(), ca) {
		t.Error(err)
	}
}

func TestPut(t *testing.T) {
	noAWS(t)
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, "bbb")
	ctx := t.Context()
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const size = 5<<20 + 7
	if _, err := io.Copy(file, objectstore.NewContent(8, size+100)); err != nil {
		t.Fatal(err)
	}
	all := make([]byte, size+100)
	if _, err := file.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]func() io.Reader{
		"content":    func() io.Reader { return objectstore.NewContent(8, size+100) },
		"file":       func() io.Reader { file.Seek(0, io.SeekStart); return file },
		"stream":     func() io.Reader { return io.MultiReader(bytes.NewReader(all)) },
		"part way":   func() io.Reader { file.Seek(100, io.SeekStart); return file },
		"sequential": func() io.Reader { return bufferOnly{bytes.NewBuffer(bytes.Clone(all))} },
	} {
		want := all[:size]
		if name == "part way" {
			want = all[100:]
		}
		sum := objectstore.UpdateCRC64(0, want)
		for _, part := range []int64{0, 5 << 20} {
			for _, known := range []*uint64{nil, &sum} {
				key := fmt.Sprint(name, part, known != nil)
				res, err := st.Put(ctx, "bbb", key, r(), size, objectstore.PutOptions{PartBytes: part, Checksum: known, Metadata: map[string]string{"a": "b"}})
				if err != nil {
					t.Errorf("%s: %v", key, err)
					continue
				}
				if res.Checksum != sum || (part > 0) != (res.Parts == 2) {
					t.Errorf("%s: %+v, want checksum %x", key, res, sum)
				}
				o, err := st.Head(ctx, "bbb", key)
				if err != nil || o.Size != size || o.Checksum == nil || *o.Checksum != sum || o.ETag != res.ETag || o.Metadata["a"] != "b" {
					t.Errorf("%s: %+v %v", key, o, err)
				}
				if _, has := o.Metadata[objectstore.MetaChecksum]; has != (known != nil || name == "content" || name == "file" || name == "part way") {
					t.Errorf("%s: metadata %v", key, o.Metadata)
				}
				req, err := st.NewGet(ctx, "bbb", key, objectstore.Range{}, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				if status, body := fetch(t, http.DefaultTransport, req); status != "ok" || !bytes.Equal(body, want) {
					t.Errorf("%s: %s, %d bytes", key, status, len(body))
				}
			}
		}
	}
	wrong := uint64(1)
	for _, part := range []int64{0, 5 << 20} {
		if _, err := st.Put(ctx, "bbb", "wrong", bufferOnly{objectstore.NewContent(8, size)}, size, objectstore.PutOptions{Checksum: &wrong, PartBytes: part}); objectstore.Classify(err) != objectstore.StatusCorrupt {
			t.Errorf("wrong checksum, parts of %d: %v", part, err)
		}
		if _, err := st.Put(ctx, "bbb", "wrong", strings.NewReader("short"), size, objectstore.PutOptions{PartBytes: part}); err == nil {
			t.Errorf("short, parts of %d: no error", part)
		}
	}
	if _, err := st.Put(ctx, "bbb", "wrong", objectstore.NewContent(8, size), size, objectstore.PutOptions{Checksum: &wrong}); objectstore.Classify(err) != objectstore.StatusCorrupt {
		t.Error(err)
	}
	if _, err := st.Put(ctx, "bbb", "once", strings.NewReader("x"), 1, objectstore.PutOptions{IfAbsent: true}); err != nil {
		t.Error(err)
	}
	if _, err := st.Put(ctx, "bbb", "once", strings.NewReader("x"), 1, objectstore.PutOptions{IfAbsent: true}); err == nil || !strings.Contains(err.Error(), "PreconditionFailed") {
		t.Error(err)
	}
	if _, err := st.Put(ctx, "bbb", "empty", strings.NewReader(""), 0, objectstore.PutOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := st.Head(ctx, "bbb", "wrong"); objectstore.Classify(err) != objectstore.StatusNoObject {
		t.Errorf("an upload that failed is stored (%v)", err)
	}
}

type bufferOnly struct{ io.Reader }

// TestPutRetries: what can be read again is sent again.
func TestPutRetries(t *testing.T) {
	t.Setenv("AWS_MAX_ATTEMPTS", "2")
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, "bbb")
	srv.Faults().Add(embedded.Fault{Op: embedded.OpPutObject, Count: 1, Status: 500})
	srv.Faults().Add(embedded.Fault{Op: embedded.OpUploadPart, Count: 1, Status: 500})
	for _, part := range []int64{0, 5 << 20} {
		res, err := st.Put(t.Context(), "bbb", "k", objectstore.NewContent(8, 6<<20), 6<<20, objectstore.PutOptions{PartBytes: part})
		if err != nil || res.Checksum != objectstore.Checksum(8, 6<<20) {
			t.Errorf("parts of %d: %+v %v", part, res, err)
		}
	}
	if srv.Faults().Hits() != 2 {
		t.Errorf("%d faults met", srv.Faults().Hits())
	}
}

func TestNewPut(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, "bbb")
	for _, size := range []int64{0, 1, 1 << 20} {
		c := objectstore.NewContent(3, size)
		headers := http.Header{
			"Content-Type":                                   {"application/x-lab"},
			"X-Amz-Checksum-Crc64nvme":                       {objectstore.EncodeCRC64(c.Checksum())},
			"x-amz-meta-" + objectstore.MetaChecksum:         {objectstore.EncodeCRC64(c.Checksum())},
			http.CanonicalHeaderKey("X-Amz-Meta-Two  Words"): nil,
		}
		delete(headers, http.CanonicalHeaderKey("X-Amz-Meta-Two  Words"))
		req, err := st.NewPut(t.Context(), "bbb", "k", c, size, headers, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if status, _ := fetch(t, http.DefaultTransport, req); status != "ok" {
			t.Errorf("%d: %s", size, status)
		}
		o, err := st.Head(t.Context(), "bbb", "k")
		if err != nil || o.Size != size || *o.Checksum != objectstore.Checksum(3, size) {
			t.Errorf("%d: %+v %v", size, o, err)
		}
	}
}

func TestRanges(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, "bbb")
	c := objectstore.NewContent(4, 1<<20)
	if _, err := st.Put(t.Context(), "bbb", "k", c, c.Size(), objectstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	var crc uint64
	for _, r := range []objectstore.Range{{0, 1000}, {1000, 500_000}, {501_000, 0}} {
		req, err := st.NewGet(t.Context(), "bbb", "k", r, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		status, body := fetch(t, http.DefaultTransport, req)
		if status != "ok" {
			t.Fatal(status)
		}
		if _, err := objectstore.NewVerifier(c, r.Offset).Write(body); err != nil {
			t.Error(r, err)
		}
		crc = objectstore.CombineCRC64(crc, objectstore.UpdateCRC64(0, body), int64(len(body)))
	}
	if crc != c.Checksum() {
		t.Errorf("%x, want %x", crc, c.Checksum())
	}
}

func TestControlPlane(t *testing.T) {
	srv := s3test.Start(t)
	ctx := t.Context()
	target := s3test.Target(srv)
	target.BucketPrefix = "lab-"
	c := srv.Credentials()
	st, err := objectstore.Open(ctx, target, objectstore.Static(c.AccessKey, c.SecretKey, ""))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := st.EnsureBucket(ctx, "bbb"); err != nil {
			t.Fatal(err)
		}
	}
	const objects = 1100
	var g errgroup.Group
	g.SetLimit(8)
	for i := range objects {
		g.Go(func() error {
			_, err := st.Put(ctx, "bbb", fmt.Sprintf("many/%04d", i), strings.NewReader(""), 0, objectstore.PutOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if srv.Access().Total("lab-bbb", embedded.OpPutObject, 200).Requests != objects {
		t.Error("the bucket's prefix is not used")
	}
	for _, test := range []struct {
		opts  objectstore.ListOptions
		n     int
		more  bool
		first string
	}{
		{objectstore.ListOptions{}, objects, false, "many/0000"},
		{objectstore.ListOptions{Max: 1050}, 1050, true, "many/0000"},
		{objectstore.ListOptions{Max: objects}, objects, false, "many/0000"},
		{objectstore.ListOptions{Max: 1}, 1, true, "many/0000"},
		{objectstore.ListOptions{Prefix: "many/00"}, 100, false, "many/0000"},
		{objectstore.ListOptions{After: "many/1000"}, 99, false, "many/1001"},
	} {
		got, more, err := st.List(ctx, "bbb", test.opts)
		if err != nil || len(got) != test.n || more != test.more || got[0].Key != test.first {
			t.Errorf("%+v: %d objects, more %v, %v", test.opts, len(got), more, err)
		}
	}
	if err := st.DeleteBucket(ctx, "bbb"); err == nil {
		t.Error("a bucket with objects is deleted")
	}
	if n, err := st.DeletePrefix(ctx, "bbb", "many/0"); err != nil || n != 1000 {
		t.Error(n, err)
	}
	if n, err := st.DeletePrefix(ctx, "bbb", ""); err != nil || n != objects-1000 {
		t.Error(n, err)
	}
	if err := st.Delete(ctx, "bbb", "none"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := st.DeleteBucket(ctx, "bbb"); err != nil {
			t.Error(err)
		}
	}
	_, _, err = st.List(ctx, "bbb", objectstore.ListOptions{})
	if objectstore.Classify(err) != objectstore.StatusNoBucket {
		t.Error(err)
	}
}

// TestClassify produces every status by what it stands for.
func TestClassify(t *testing.T) {
	noAWS(t)
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, "bbb")
	ctx := t.Context()
	if _, err := st.Put(ctx, "bbb", "k", objectstore.NewContent(1, 1<<20), 1<<20, objectstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	at := func(endpoint string) *objectstore.Store {
		c := srv.Credentials()
		st, err := objectstore.Open(ctx, objectstore.Target{Endpoint: endpoint, PathStyle: true}, objectstore.Static(c.AccessKey, c.SecretKey, ""))
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	hangUp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp.Close()
	go func() {
		for {
			conn, err := hangUp.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			conn.Read(buf)
			conn.Close()
		}
	}()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	noNames := &http.Transport{DialContext: (&net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no name server")
	}}}).DialContext}
	wrong := at(srv.Endpoint())
	for _, test := range []struct {
		status string
		store  *objectstore.Store
		fault  embedded.Fault
		ctx    context.Context
		rt     http.RoundTripper
		bucket string
		key    string
	}{
		{status: objectstore.StatusOK},
		{status: objectstore.StatusNoObject, key: "missing"},
		{status: objectstore.StatusNoBucket, bucket: "missing"},
		{status: objectstore.StatusRefused, store: at("http://" + closed.Addr().String())},
		{status: objectstore.StatusReset, store: at("http://" + hangUp.Addr().String())},
		{status: objectstore.StatusReset, fault: embedded.Fault{Drop: true}},
		{status: objectstore.StatusTruncated, fault: embedded.Fault{Truncate: true, AfterBytes: 10}},
		{status: objectstore.StatusReset, fault: embedded.Fault{Reset: true, AfterBytes: 10}},
		{status: objectstore.StatusDNS, store: at("http://nowhere.example:80"), rt: noNames},
		{status: objectstore.StatusTLS, store: at("https://" + srv.Addr())},
		{status: objectstore.StatusTimeout, fault: embedded.Fault{Latency: time.Hour}},
		{status: objectstore.StatusCancelled, ctx: cancelled},
		{status: objectstore.StatusThrottled, fault: embedded.Fault{Status: 503}},
		{status: objectstore.StatusThrottled, fault: embedded.Fault{Status: 503, Code: "ServiceUnavailable"}},
		{status: objectstore.StatusThrottled, fault: embedded.Fault{Status: 429}},
		{status: objectstore.StatusServerError, fault: embedded.Fault{Status: 500}},
		{status: objectstore.StatusServerError, fault: embedded.Fault{Status: 502}},
		{status: objectstore.StatusServerError, fault: embedded.Fault{Status: 507, Code: "InsufficientStorage"}},
		{status: objectstore.StatusDenied, fault: embedded.Fault{Status: 403}},
		{status: objectstore.StatusDenied, fault: embedded.Fault{Status: 400, Code: "ExpiredToken"}},
		{status: objectstore.StatusError, fault: embedded.Fault{Status: 418, Code: "Teapot"}},
	} {
		name := test.status
		if test.fault != (embedded.Fault{}) {
			srv.Faults().Add(test.fault)
		}
		use := func(ctx context.Context) (context.Context, context.CancelFunc) {
			if test.ctx != nil {
				return test.ctx, func() {}
			}
			if test.status == objectstore.StatusTimeout {
				return context.WithTimeout(ctx, 50*time.Millisecond)
			}
			return ctx, func() {}
		}
		if test.store == nil {
			test.store = wrong
		}
		if test.rt == nil {
			test.rt = &http.Transport{}
		}
		if test.bucket == "" {
			test.bucket = "bbb"
		}
		if test.key == "" {
			test.key = "k"
		}
		rctx, stop := use(ctx)
		req, err := test.store.NewGet(rctx, test.bucket, test.key, objectstore.Range{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := fetch(t, test.rt, req); got != test.status {
			t.Errorf("%s, want %s (%+v)", got, name, test.fault)
		}
		test.rt.(*http.Transport).CloseIdleConnections()
		stop()
		srv.Faults().Clear()
	}
	for err, want := range map[error]string{
		nil: objectstore.StatusOK,
		fmt.Errorf("x: %w", objectstore.ErrCorrupt):       objectstore.StatusCorrupt,
		fmt.Errorf("x: %w", objectstore.ErrNoCredentials): objectstore.StatusDenied,
		fmt.Errorf("x: %w", os.ErrDeadlineExceeded):       objectstore.StatusTimeout,
		errors.New("anything"):                            objectstore.StatusError,
	} {
		if got := objectstore.Classify(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

// TestClassifySDK: the SDK's errors come to the same words.
func TestClassifySDK(t *testing.T) {
	noAWS(t)
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, "bbb")
	for fault, want := range map[embedded.Fault]string{
		{Status: 503}:   objectstore.StatusThrottled,
		{Status: 500}:   objectstore.StatusServerError,
		{Status: 403}:   objectstore.StatusDenied,
		{Drop: true}:    objectstore.StatusReset,
		{Latency: 1e12}: objectstore.StatusTimeout,
	} {
		srv.Faults().Add(fault)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if fault.Latency > 0 {
			ctx, cancel = context.WithTimeout(t.Context(), 30*time.Millisecond)
		}
		_, _, err := st.List(ctx, "bbb", objectstore.ListOptions{})
		cancel()
		if got := objectstore.Classify(err); got != want {
			t.Errorf("%+v: %s, want %s (%v)", fault, got, want, err)
		}
		srv.Faults().Clear()
	}
	if err := st.EnsureBucket(t.Context(), "not a bucket"); err == nil {
		t.Error("no error for a bucket that cannot be")
	}
}

// FuzzReadError: no error body makes reading it panic or keep more than a line of it.
func FuzzReadError(f *testing.F) {
	f.Add([]byte(`<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>later</Message></Error>`))
	f.Add([]byte("<html>"))
	f.Add([]byte("<Error><Code>" + strings.Repeat("x", 10_000)))
	f.Fuzz(func(t *testing.T, text []byte) {
		e := objectstore.ReadError(&http.Response{StatusCode: 503, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(text))})
		if len(e.Code) > 512 || len(e.Message) > 512 || objectstore.Classify(e) == objectstore.StatusOK {
			t.Fatalf("%+v", e)
		}
	})
}
