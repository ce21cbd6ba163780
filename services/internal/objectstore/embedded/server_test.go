package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

// get downloads an object as a measuring client does, and returns what it came to in a word.
func get(t *testing.T, st *objectstore.Store, bucket, key string) (string, []byte) {
	t.Helper()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	req, err := st.NewGet(t.Context(), bucket, key, objectstore.Range{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return objectstore.Classify(err), nil
	}
	if resp.StatusCode != 200 {
		return objectstore.Classify(objectstore.ReadError(resp)), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.Header.Get("X-Amz-Meta-"+objectstore.MetaChecksum) != objectstore.EncodeCRC64(objectstore.UpdateCRC64(0, body)) {
		err = objectstore.ErrCorrupt
	}
	return objectstore.Classify(err), body
}

func mustStore(t *testing.T, st *objectstore.Store, key string, size int64) {
	t.Helper()
	if _, err := st.Put(t.Context(), bucket, key, objectstore.NewContent(1, size), size, objectstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func close5s(t *testing.T, srv *embedded.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := srv.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// files lists all regular files below dir but for the lock.
func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "lock" {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	c := embedded.GenerateCredentials()
	start := func() (*embedded.Server, *objectstore.Store) {
		srv, err := embedded.Start(ctx, embedded.Options{Dir: dir, AccessKey: c.AccessKey, SecretKey: c.SecretKey})
		if err != nil {
			t.Fatal(err)
		}
		st, err := objectstore.Open(ctx, s3test.Target(srv), objectstore.Static(c.AccessKey, c.SecretKey, ""))
		if err != nil {
			t.Fatal(err)
		}
		return srv, st
	}
	srv, st := start()
	for _, b := range []string{bucket, "other"} {
		if err := st.EnsureBucket(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range hostileKeys() {
		if _, err := st.Put(ctx, bucket, key, strings.NewReader(key), int64(len(key)), objectstore.PutOptions{Metadata: map[string]string{"n": fmt.Sprint(len(key))}}); err != nil {
			t.Fatalf("%q: %v", key, err)
		}
	}
	if _, err := st.Put(ctx, bucket, "multi", objectstore.NewContent(5, 12<<20), 12<<20, objectstore.PutOptions{PartBytes: 5 << 20}); err != nil {
		t.Fatal(err)
	}
	multi, err := st.Head(ctx, bucket, "multi")
	if err != nil {
		t.Fatal(err)
	}
	upload, err := st.Client().CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String(bucket), Key: aws.String("unfinished")})
	if err != nil {
		t.Fatal(err)
	}
	part := &s3.UploadPartInput{Bucket: aws.String(bucket), Key: aws.String("unfinished"), UploadId: upload.UploadId, PartNumber: aws.Int32(1), Body: bytes.NewReader([]byte("x"))}
	if _, err := st.Client().UploadPart(ctx, part); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(ctx, embedded.Options{Dir: dir, AccessKey: c.AccessKey, SecretKey: c.SecretKey}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second server on the directory: %v", err)
	}
	close5s(t, srv)
	// What a killed process may leave behind, and what a failing disk may.
	for _, path := range []string{"tmp/put-123", "uploads/zzz/00001-1", "buckets/" + bucket + "/objects/ab/" + strings.Repeat("0", 62), "buckets/Not A Bucket/x"} {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(strings.Repeat("torn", 100)), 0o600)); err != nil {
			t.Fatal(err)
		}
	}

	srv, st = start()
	objects, _, err := st.List(ctx, bucket, objectstore.ListOptions{})
	if err != nil || len(objects) != len(hostileKeys())+1 {
		t.Errorf("%d objects after the restart, want %d; %v", len(objects), len(hostileKeys())+1, err)
	}
	for _, key := range hostileKeys() {
		req, err := st.NewGet(ctx, bucket, key, objectstore.Range{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if status, code, body := do(t, req); status != 200 || string(body) != key {
			t.Errorf("%q: %d %s %q", key, status, code, body)
		}
	}
	again, err := st.Head(ctx, bucket, "multi")
	if err != nil || again.ETag != multi.ETag || again.Size != multi.Size || *again.Checksum != *multi.Checksum || !again.Modified.Equal(multi.Modified) {
		t.Errorf("%+v after the restart, %+v before; %v", again, multi, err)
	}
	var stored int64 = 12<<20 + 1 // the upload's part
	for _, key := range hostileKeys() {
		stored += int64(len(key))
	}
	if u := srv.Usage(); u != (embedded.Usage{Buckets: 2, Objects: len(hostileKeys()) + 1, Bytes: stored}) {
		t.Errorf("usage %+v, want %d bytes", u, stored)
	}
	if err := st.DeleteBucket(ctx, "other"); err != nil {
		t.Error(err)
	}
	if n, err := st.DeletePrefix(ctx, bucket, ""); err != nil || n != len(objects) {
		t.Errorf("%d deleted, %v", n, err)
	}
	if err := st.DeleteBucket(ctx, bucket); err != nil {
		t.Error(err)
	}
	if u := srv.Usage(); u != (embedded.Usage{}) {
		t.Errorf("usage of nothing: %+v", u)
	}
	close5s(t, srv)
	if left := files(t, dir); len(left) != 1 || left[0] != "buckets/Not A Bucket/x" {
		t.Errorf("left in the directory: %q", left)
	}
}

// TestNothingEscapes looks at the disk after every hostile name.
func TestNothingEscapes(t *testing.T) {
	parent := t.TempDir()
	srv := s3test.Start(t, func(o *embedded.Options) { o.Dir = filepath.Join(parent, "store") })
	st := s3test.Open(t, srv, bucket)
	for _, key := range append(hostileKeys(), "nul\x00byte") {
		if _, err := st.Put(t.Context(), bucket, key, strings.NewReader("x"), 1, objectstore.PutOptions{}); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
	for _, name := range []string{"..", ".", "../escaped", "a/b", "UPPER", "with space", "%2e%2e", "x\x00y", strings.Repeat("b", 64), "127.0.0.1", "-a-"} {
		for _, method := range []string{http.MethodPut, http.MethodGet, http.MethodDelete} {
			req, err := http.NewRequest(method, srv.Endpoint()+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Path = "/" + name
			req.URL.RawPath = strings.ReplaceAll(st.ObjectURL("x", name).EscapedPath(), "/x/", "/")
			if err := st.Sign(t.Context(), req, objectstore.EmptyPayload, time.Now()); err != nil {
				t.Fatal(err)
			}
			if status, _, _ := do(t, req); status < 400 {
				t.Errorf("%s of bucket %q: %d", method, name, status)
			}
		}
	}
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the store: %v %v", entries, err)
	}
	for _, f := range files(t, parent) {
		if !strings.HasPrefix(f, "store/buckets/"+bucket+"/") {
			t.Errorf("unexpected file %q", f)
		}
	}
}

func TestAccess(t *testing.T) {
	var log bytes.Buffer
	srv := s3test.Start(t, func(o *embedded.Options) { o.AccessLog = &log })
	st := s3test.Open(t, srv, bucket)
	const size = 3<<20 + 17
	mustStore(t, st, "k", size)
	before, err := srv.AccessIdle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := before.Total(bucket, embedded.OpPutObject, 200); c != (embedded.AccessCount{Requests: 1, BytesIn: size}) {
		t.Errorf("PUT: %+v", c)
	}
	const n = 40
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range n / 4 {
				if status, body := get(t, st, bucket, "k"); status != "ok" || len(body) != size {
					t.Errorf("%s, %d bytes", status, len(body))
				}
			}
		})
	}
	wg.Wait()
	if status, _ := get(t, st, bucket, "missing"); status != objectstore.StatusNoObject {
		t.Error(status)
	}
	if status, _ := get(t, st, "missing", "missing"); status != objectstore.StatusNoBucket {
		t.Error(status)
	}
	after, err := srv.AccessIdle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	diff := after.Sub(before)
	if c := diff.Total(bucket, embedded.OpGetObject, 200); c != (embedded.AccessCount{Requests: n, BytesOut: n * size}) {
		t.Errorf("GET: %+v, want %d requests of %d bytes", c, n, size)
	}
	if c := diff.Total("", "", 404); c.Requests != 2 {
		t.Errorf("404: %+v", c)
	}
	lines, sum := 0, int64(0)
	for sc := bufio.NewScanner(&log); sc.Scan(); lines++ {
		var rec struct {
			Op       string `json:"op"`
			Key      string `json:"key"`
			Status   int    `json:"status"`
			BytesOut int64  `json:"bytes_out"`
			Duration int64  `json:"duration_ns"`
		}
		if err := json.Unmarshal(sc.Bytes(), &rec); err != nil || rec.Duration <= 0 {
			t.Fatalf("%s: %v", sc.Bytes(), err)
		}
		if rec.Op == embedded.OpGetObject && rec.Status == 200 && rec.Key == "k" {
			sum += rec.BytesOut
		}
	}
	if all := after.Total("", "", 0).Requests; int64(lines) != all || sum != n*size {
		t.Errorf("access log: %d lines of %d, %d bytes", lines, all, sum)
	}
}

func TestFaults(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, bucket, "spared")
	const size = 2 << 20
	mustStore(t, st, "k", size)
	f := srv.Faults()
	for _, test := range []struct {
		name   string
		add    func()
		status string
	}{
		{"none", func() {}, objectstore.StatusOK},
		{"slow down", func() { f.FailNext(1, 503, "SlowDown") }, objectstore.StatusThrottled},
		{"too many", func() { f.FailNext(1, 429, "") }, objectstore.StatusThrottled},
		{"internal", func() { f.FailNext(1, 500, "") }, objectstore.StatusServerError},
		{"denied", func() { f.FailNext(1, 403, "") }, objectstore.StatusDenied},
		{"drop", func() { f.Add(embedded.Fault{Drop: true, Count: 1}) }, objectstore.StatusReset},
		{"truncate", func() { f.TruncateNext(1, 1<<20) }, objectstore.StatusTruncated},
		{"truncate at once", func() { f.TruncateNext(1, 0) }, objectstore.StatusTruncated},
		{"reset", func() { f.ResetNext(1, 1<<20) }, objectstore.StatusReset},
		{"corrupt first", func() { f.CorruptNext(1, 0) }, objectstore.StatusCorrupt},
		{"corrupt later", func() { f.CorruptNext(1, 1<<20+7) }, objectstore.StatusCorrupt},
		{"other operation", func() { f.Add(embedded.Fault{Op: embedded.OpPutObject, Status: 500}) }, objectstore.StatusOK},
		{"other bucket", func() { f.Add(embedded.Fault{Bucket: "spared", Status: 500}) }, objectstore.StatusOK},
		{"the next one", func() { f.Add(embedded.Fault{Skip: 1, Count: 1, Status: 500}) }, objectstore.StatusOK},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := f.Hits()
			test.add()
			status, body := get(t, st, bucket, "k")
			if status != test.status {
				t.Errorf("%s, want %s (%d bytes)", status, test.status, len(body))
			}
			if hit := f.Hits() > before; hit != (test.status != objectstore.StatusOK) {
				t.Errorf("hit: %v", hit)
			}
			f.Clear()
			if status, _ := get(t, st, bucket, "k"); status != objectstore.StatusOK {
				t.Errorf("afterwards: %s", status)
			}
		})
	}
	t.Run("latency", func(t *testing.T) {
		f.Latency(50 * time.Millisecond)
		defer f.Clear()
		begun := time.Now()
		if status, _ := get(t, st, bucket, "k"); status != "ok" || time.Since(begun) < 50*time.Millisecond {
			t.Error(status, time.Since(begun))
		}
	})
	t.Run("stall", func(t *testing.T) {
		defer f.Clear()
		begun := time.Now()
		f.Stall(80 * time.Millisecond)
		if status, _ := get(t, st, bucket, "k"); status != "ok" || time.Since(begun) < 80*time.Millisecond {
			t.Error(status, time.Since(begun))
		}
	})
	t.Run("bandwidth", func(t *testing.T) {
		f.Bandwidth(20 << 20) // 2 MiB: 100 ms
		defer f.Clear()
		begun := time.Now()
		if status, body := get(t, st, bucket, "k"); status != "ok" || len(body) != size || time.Since(begun) < 90*time.Millisecond {
			t.Error(status, len(body), time.Since(begun))
		}
	})
}

// TestStallUnderWay stalls a response whose first bytes have arrived.
func TestStallUnderWay(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, bucket)
	mustStore(t, st, "k", 64<<20)
	srv.Faults().Bandwidth(10 << 30) // so that it leaves in small pieces
	req, err := st.NewGet(t.Context(), bucket, "k", objectstore.Range{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	srv.Faults().Stall(80 * time.Millisecond)
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 63<<20 || time.Since(begun) < 75*time.Millisecond {
		t.Error(n, err, time.Since(begun))
	}
}

// TestCloseDuringStall closes a server that holds a response back.
func TestCloseDuringStall(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, bucket)
	mustStore(t, st, "k", 64<<20)
	srv.Faults().Bandwidth(10 << 30)
	req, err := st.NewGet(t.Context(), bucket, "k", objectstore.Range{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	srv.Faults().Stall(time.Hour)
	close5s(t, srv)
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes and no error", n)
	}
}

func TestLimits(t *testing.T) {
	srv := s3test.Start(t, func(o *embedded.Options) {
		o.MaxObjectBytes, o.MaxStoreBytes, o.MaxParts, o.MinPartBytes = 8<<20, 20<<20, 3, -1
	})
	st := s3test.Open(t, srv, bucket)
	ctx := t.Context()
	for _, test := range []struct {
		key  string
		size int64
		code string
	}{
		{"a", 8 << 20, ""},
		{"too large", 8<<20 + 1, "EntityTooLarge"},
		{"b", 8 << 20, ""},
		{"store full", 5 << 20, "InsufficientStorage"},
		{"fits", 4 << 20, ""},
	} {
		req, err := st.NewPut(ctx, bucket, test.key, objectstore.NewContent(1, test.size), test.size, nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		status, code, _ := do(t, req)
		if code != test.code || (status == 200) != (code == "") {
			t.Errorf("%s: %d %q, want %q", test.key, status, code, test.code)
		}
		if code == "InsufficientStorage" && status != http.StatusInsufficientStorage {
			t.Errorf("%s: status %d", test.key, status)
		}
	}
	if err := st.Delete(ctx, bucket, "a"); err != nil {
		t.Fatal(err)
	}
	mustStore(t, st, "room again", 7<<20)
	b := aws.String(bucket)
	up, err := st.Client().CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: b, Key: aws.String("m")})
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int32]string{3: "", 4: "InvalidArgument"} {
		_, err := st.Client().UploadPart(ctx, &s3.UploadPartInput{Bucket: b, Key: aws.String("m"), UploadId: up.UploadId, PartNumber: &n, Body: strings.NewReader("part")})
		if got := (sdkClient{}).code(err); got != want {
			t.Errorf("part %d: %q, want %q", n, got, want)
		}
	}
	list, err := st.Client().ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: b})
	if err != nil || len(list.Uploads) != 1 || *list.Uploads[0].Key != "m" {
		t.Errorf("uploads: %+v %v", list, err)
	}
	if _, err := st.Client().AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: b, Key: aws.String("m"), UploadId: up.UploadId}); err != nil {
		t.Fatal(err)
	}
	if u := srv.Usage(); u.Bytes != 19<<20 {
		t.Errorf("usage %+v: what failed or was aborted is still counted", u)
	}
}

// rawConn sends a request's head by hand and returns the connection once the server is at work on it.
func rawConn(t *testing.T, srv *embedded.Server, req *http.Request) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", req.Method, req.URL.EscapedPath(), req.URL.Host)
	if req.Method == http.MethodPut {
		fmt.Fprintf(&head, "Content-Length: %d\r\nExpect: 100-continue\r\n", req.ContentLength)
	}
	if err := req.Header.Write(&head); err != nil {
		t.Fatal(err)
	}
	head.WriteString("\r\n")
	if _, err := conn.Write(head.Bytes()); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || (req.Method == http.MethodPut) != strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("%q %v", line, err)
	}
	return conn, r
}

// TestBrokenUpload hangs up in the middle of a PUT; nothing may remain, in the store or on the disk.
func TestBrokenUpload(t *testing.T) {
	dir := t.TempDir()
	srv := s3test.Start(t, func(o *embedded.Options) { o.Dir = dir })
	st := s3test.Open(t, srv, bucket)
	req, err := st.NewPut(t.Context(), bucket, "k", nil, 1<<20, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	conn, _ := rawConn(t, srv, req)
	if _, err := conn.Write(make([]byte, 300_000)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	access, err := srv.AccessIdle(t.Context())
	if err != nil || access.Total(bucket, embedded.OpPutObject, 400) != (embedded.AccessCount{Requests: 1, BytesIn: 300_000, BytesOut: access.Total(bucket, embedded.OpPutObject, 400).BytesOut}) {
		t.Errorf("%+v %v", access, err)
	}
	if _, err := st.Head(t.Context(), bucket, "k"); objectstore.Classify(err) != objectstore.StatusNoObject {
		t.Error(err)
	}
	for _, f := range files(t, dir) {
		if filepath.Base(f) != "bucket.json" {
			t.Errorf("left: %s", f)
		}
	}
}

// TestIdleClients: neither a client that stops sending nor one that stops taking holds a connection for ever.
func TestIdleClients(t *testing.T) {
	srv := s3test.Start(t, func(o *embedded.Options) { o.IdleTimeout = 500 * time.Millisecond })
	st := s3test.Open(t, srv, bucket)
	mustStore(t, st, "k", 64<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	put, err := st.NewPut(ctx, bucket, "new", nil, 1<<20, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	get, err := st.NewGet(ctx, bucket, "k", objectstore.Range{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	rawConn(t, srv, put)
	rawConn(t, srv, get)
	access, err := srv.AccessIdle(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if c := access.Total(bucket, embedded.OpPutObject, 400); c.Requests != 1 {
		t.Errorf("PUT: %+v", access)
	}
	if c := access.Total(bucket, embedded.OpGetObject, 200); c.Requests != 1 || c.BytesOut >= 64<<20 {
		t.Errorf("GET: %+v", access)
	}
}

func TestOptions(t *testing.T) {
	err := (&embedded.Options{Addr: "nowhere", MaxParts: 20_000, MaxObjectBytes: -1}).Validate()
	for _, want := range []string{"dir", "addr", "access key", "secret key", "max parts", "max object bytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %q", err, want)
		}
	}
	taken := s3test.Start(t)
	_, err = embedded.Start(t.Context(), embedded.Options{Dir: t.TempDir(), Addr: taken.Addr(), AccessKey: "abc", SecretKey: "12345678"})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
}

func TestCredentials(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	a, err := embedded.LoadOrCreateCredentials(dir)
	if err != nil || len(a.AccessKey) != 20 || len(a.SecretKey) < 40 {
		t.Fatal(a, err)
	}
	b, err := embedded.LoadOrCreateCredentials(dir)
	if err != nil || a != b {
		t.Error(b, err)
	}
	path := filepath.Join(dir, "credentials.json")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
	for _, text := range []string{"", "{}", "not JSON"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := embedded.LoadOrCreateCredentials(dir); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestUploadsExpire(t *testing.T) {
	dir := t.TempDir()
	srv := s3test.Start(t, func(o *embedded.Options) { o.Dir, o.UploadTTL = dir, time.Nanosecond })
	st := s3test.Open(t, srv, bucket)
	ctx, b := t.Context(), aws.String(bucket)
	begin := func(key string) *string {
		up, err := st.Client().CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: b, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		return up.UploadId
	}
	old := begin("old")
	if _, err := st.Client().UploadPart(ctx, &s3.UploadPartInput{Bucket: b, Key: aws.String("old"), UploadId: old, PartNumber: aws.Int32(1), Body: strings.NewReader("part")}); err != nil {
		t.Fatal(err)
	}
	begin("new")
	list, err := st.Client().ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: b})
	if err != nil || len(list.Uploads) != 1 || *list.Uploads[0].Key != "new" {
		t.Errorf("%+v %v", list.Uploads, err)
	}
	_, err = st.Client().UploadPart(ctx, &s3.UploadPartInput{Bucket: b, Key: aws.String("old"), UploadId: old, PartNumber: aws.Int32(2), Body: strings.NewReader("part")})
	if (sdkClient{}).code(err) != "NoSuchUpload" || srv.Usage().Bytes != 0 {
		t.Errorf("%v, usage %+v", err, srv.Usage())
	}
}

// TestUploadsOutliveRestarts: what is whole of an upload is there after a restart, once and in its newest version, and
// makes the object; what is torn, of another upload or too old is gone.
func TestUploadsOutliveRestarts(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	c := embedded.GenerateCredentials()
	start := func(ttl time.Duration) (*embedded.Server, *objectstore.Store) {
		srv, err := embedded.Start(ctx, embedded.Options{Dir: dir, AccessKey: c.AccessKey, SecretKey: c.SecretKey, UploadTTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		st, err := objectstore.Open(ctx, s3test.Target(srv), objectstore.Static(c.AccessKey, c.SecretKey, ""))
		if err != nil {
			t.Fatal(err)
		}
		return srv, st
	}
	const part, key = 5 << 20, "dir/clip ü"
	content := make([]byte, 2*part+100)
	if _, err := objectstore.NewContent(7, int64(len(content))).ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	put := func(st *objectstore.Store, upload string, number int, data []byte, header ...string) int {
		t.Helper()
		u, err := st.PresignPart(ctx, bucket, key, upload, number, int64(len(data)), time.Minute, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, u, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		status, _, _ := do(t, req)
		return status
	}
	srv, st := start(0)
	if err := st.EnsureBucket(ctx, bucket); err != nil {
		t.Fatal(err)
	}
	upload, err := st.BeginUpload(ctx, bucket, key, "video/mp4", map[string]string{"edge": "gate"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		number int
		data   []byte
	}{{1, content[part : 2*part]}, {1, content[:part]}, {3, content[2*part:]}} {
		if status := put(st, upload, p.number, p.data); status != 200 {
			t.Fatalf("part %d: %d", p.number, status)
		}
	}
	if status := put(st, upload, 2, content[:100], "Content-MD5", "1B2M2Y8AsgTpgAmY7PhCfg=="); status != 400 {
		t.Errorf("a part with another MD5: %d, want 400", status)
	}
	close5s(t, srv)
	uploadDir := filepath.Join(dir, "uploads", upload)
	for _, name := range []string{"00002-torn", ".part-1", "x", "00000-1"} {
		if err := os.WriteFile(filepath.Join(uploadDir, name), content[:1000], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	srv, st = start(0)
	parts, err := st.Parts(ctx, bucket, key, upload)
	if err != nil || len(parts) != 2 || parts[0].Size != part || parts[1].Number != 3 || parts[1].Size != 100 {
		t.Fatalf("parts after the restart: %+v, %v", parts, err)
	}
	if left, err := os.ReadDir(uploadDir); err != nil || len(left) != 3 {
		t.Errorf("files of the upload: %v, %v, want two parts and the description", left, err)
	}
	if u := srv.Usage(); u.Bytes != part+100 {
		t.Errorf("usage %+v", u)
	}
	if status := put(st, upload, 2, content[part:2*part]); status != 200 {
		t.Fatalf("part 2: %d", status)
	}
	if parts, err = st.Parts(ctx, bucket, key, upload); err != nil || len(parts) != 3 {
		t.Fatal(parts, err)
	}
	if err := st.CompleteUpload(ctx, bucket, key, upload, parts, true); err != nil {
		t.Fatal(err)
	}
	body, o, err := st.Get(ctx, bucket, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(body)
	if err != nil || !bytes.Equal(got, content) || o.Metadata["edge"] != "gate" {
		t.Errorf("%d bytes, %+v, %v", len(got), o, err)
	}
	_ = body.Close()
	if _, err := st.Parts(ctx, bucket, key, upload); !errors.Is(err, objectstore.ErrNoUpload) {
		t.Errorf("parts of what is complete: %v", err)
	}
	if err := st.AbortUpload(ctx, bucket, key, upload); err != nil {
		t.Error(err)
	}
	old, err := st.BeginUpload(ctx, bucket, key, "", nil)
	if err != nil || put(st, old, 1, content[:100]) != 200 {
		t.Fatal(err)
	}
	other, err := st.Parts(ctx, bucket, key, old)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.CompleteUpload(ctx, bucket, key, old, other, true); !errors.Is(err, objectstore.ErrExists) {
		t.Errorf("onto an object that is there: %v", err)
	}
	close5s(t, srv)
	srv, st = start(time.Nanosecond)
	defer close5s(t, srv)
	if _, err := st.Parts(ctx, bucket, key, old); !errors.Is(err, objectstore.ErrNoUpload) {
		t.Errorf("an upload that is too old: %v", err)
	}
	if u := srv.Usage(); u.Bytes != int64(len(content)) {
		t.Errorf("usage %+v", u)
	}
}

// TestPresigned: what is signed into a URL binds whoever uses it.
func TestPresigned(t *testing.T) {
	srv := s3test.Start(t)
	st := s3test.Open(t, srv, bucket)
	content := []byte("content")
	sum := sha256.Sum256(content)
	headers := http.Header{"If-None-Match": {"*"}, "X-Amz-Checksum-Sha256": {objectstore.EncodeSHA256(sum[:])}, "Content-Type": {"video/mp4"}}
	for _, c := range []struct {
		name   string
		edit   func(*http.Request)
		at     time.Time
		status int
	}{
		{"expired", nil, time.Now().Add(-2 * time.Minute), 403},
		{"longer", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("content+")), 8
		}, time.Now(), 403},
		{"without a signed header", func(r *http.Request) { r.Header.Del("X-Amz-Checksum-Sha256") }, time.Now(), 403},
		{"with another checksum", func(r *http.Request) {
			r.Header.Set("X-Amz-Checksum-Sha256", objectstore.EncodeSHA256(make([]byte, 32)))
		}, time.Now(), 403},
		{"replacing", func(r *http.Request) { r.Header.Del("If-None-Match") }, time.Now(), 403},
		{"with more", func(r *http.Request) { r.Header.Set("X-Amz-Meta-X", "y") }, time.Now(), 403},
		{"other bytes", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("CONTENT")) }, time.Now(), 400},
		{"as signed", nil, time.Now(), 200},
		{"again", nil, time.Now(), 412},
	} {
		u, err := st.PresignPut(t.Context(), bucket, "k", int64(len(content)), headers, time.Minute, c.at)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, u, bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = headers.Clone()
		if c.edit != nil {
			c.edit(req)
		}
		if status, code, _ := do(t, req); status != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, status, code, c.status)
		}
	}
	o, err := st.Head(t.Context(), bucket, "k")
	if err != nil || !bytes.Equal(o.SHA256, sum[:]) || o.Size != 7 {
		t.Errorf("%+v %v", o, err)
	}
	if _, err := st.Head(t.Context(), bucket, "none"); !errors.Is(err, objectstore.ErrNoObject) {
		t.Error(err)
	}
	if _, err := st.Put(t.Context(), bucket, "k", bytes.NewReader(content), 7, objectstore.PutOptions{IfAbsent: true}); !errors.Is(err, objectstore.ErrExists) {
		t.Error(err)
	}
	if _, err := st.Put(t.Context(), bucket, "k2", strings.NewReader("CONTENT"), 7, objectstore.PutOptions{SHA256: sum[:]}); err == nil {
		t.Error("stored under a wrong SHA-256")
	}
}
