package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// scripted is a server that answers as a test says, byte for byte.
type scripted struct {
	endpoint string
	accepted atomic.Int64
	closed   chan struct{} // one entry for each connection the server has closed
}

// answer writes a response; false ends the connection in order.
type answer func(c net.Conn, in *bufio.Reader, r *http.Request) bool

func serve(t *testing.T, a answer) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{endpoint: "http://" + l.Addr().String(), closed: make(chan struct{}, 1000)}
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.accepted.Add(1)
			mu.Lock()
			open[c] = struct{}{}
			mu.Unlock()
			handlers.Go(func() {
				in := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(in)
					if err != nil || !a(c, in, r) {
						break
					}
				}
				_ = c.Close()
				s.closed <- struct{}{}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		handlers.Wait()
	})
	return s
}

// says answers every request with the same text.
func says(text string) answer {
	return func(c net.Conn, _ *bufio.Reader, _ *http.Request) bool {
		_, err := io.WriteString(c, text)
		return err == nil && !strings.HasSuffix(text, "…")
	}
}

func open(t *testing.T, endpoint string, change func(*Options)) *Client {
	t.Helper()
	store, err := objectstore.Open(t.Context(), objectstore.Target{Endpoint: endpoint, Region: "us-east-1", PathStyle: true}, objectstore.Static("key", "secret", ""))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Store: store, Buffer: 64 << 10}
	if change != nil {
		change(&o)
	}
	c := New(o)
	t.Cleanup(c.Close)
	return c
}

func get(size int64) *Request {
	return &Request{Bucket: "bucket", Key: "key", Size: size, Deadline: time.Now().Add(20 * time.Second)}
}

func do(t *testing.T, c *Client, r *Request, status string) Result {
	t.Helper()
	var res Result
	c.Do(t.Context(), r, &res)
	if res.Status != status {
		t.Fatalf("%s (%v), want %s", res.Status, res.Err, status)
	}
	if (res.Err == nil) != (status == objectstore.StatusOK) {
		t.Fatalf("%s with error %v", status, res.Err)
	}
	if res.Done.Before(res.Begin) {
		t.Fatal("done before it began")
	}
	return res
}

// Reading and having the kernel drop must come to the same, whatever part of
// the body comes with the head and wherever it ends.
func TestKernelDropsWhatCopyReads(t *testing.T) {
	const size = 300_000
	body := make([]byte, size)
	for name, script := range map[string]struct {
		with, all int // of the body: sent with the head, sent at all
		reset     bool
		status    string
	}{
		"head alone":        {0, size, false, "ok"},
		"one byte":          {1, size, false, "ok"},
		"a buffer's worth":  {maxHead, size, false, "ok"},
		"more than that":    {maxHead + 1, size, false, "ok"},
		"all at once":       {size, size, false, "ok"},
		"none, closed":      {0, 0, false, "truncated"},
		"with head, closed": {100, 100, false, "truncated"},
		"one byte short":    {100, size - 1, false, "truncated"},
		"reset":             {100, size / 2, true, "reset"},
	} {
		t.Run(name, func(t *testing.T) {
			var results []Result
			for _, copied := range []bool{false, true} {
				// The reset must not overtake the bytes before it.
				taken := make(chan struct{})
				s := serve(t, func(c net.Conn, _ *bufio.Reader, _ *http.Request) bool {
					head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
					_, _ = c.Write(append([]byte(head), body[:script.with]...))
					for at := script.with; at < script.all; at += 70_000 {
						_, _ = c.Write(body[at:min(at+70_000, script.all)])
					}
					if script.reset {
						<-taken
						_ = c.(*net.TCPConn).SetLinger(0)
					}
					return script.all == size
				})
				c := open(t, s.endpoint, func(o *Options) { o.Copy = copied })
				if script.reset {
					go func() {
						awaitTaken(c)
						close(taken)
					}()
				}
				for range 3 {
					res := do(t, c, get(size), script.status)
					results = append(results, res)
					if script.status == "ok" && res.Bytes != size {
						t.Errorf("%d bytes", res.Bytes)
					}
					if script.status != "ok" {
						break
					}
				}
				if n := s.accepted.Load(); n != 1 {
					t.Errorf("%d connections", n)
				}
			}
			if script.status == "truncated" {
				for _, r := range results {
					if r.Bytes != int64(script.all) || r.HTTP != 200 {
						t.Errorf("%+v, want %d bytes", r, script.all)
					}
				}
			}
		})
	}
}

// awaitTaken returns when everything sent to the client's connection was read.
func awaitTaken(c *Client) {
	for {
		c.mu.Lock()
		for cn := range c.open {
			pendingNow := true
			_ = cn.raw.Control(func(fd uintptr) { pendingNow = pending(fd) })
			if !pendingNow {
				c.mu.Unlock()
				return
			}
		}
		c.mu.Unlock()
	}
}

func TestBodies(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		status  string
		bytes   int64
		accepts int64 // connections for three requests; 0: any number
	}{
		"length":             {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "ok", 5, 1},
		"interim":            {"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "ok", 5, 1},
		"too many interim":   {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 9), "error", 0, 3},
		"length and more":    {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!", "ok", 5, 3},
		"close":              {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "ok", 5, 3},
		"chunked":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", "ok", 5, 1},
		"chunked, trailer":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", "ok", 5, 1},
		"chunked, short":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n\r\n", "corrupt", 2, 1},
		"chunked, long":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nhello!!\r\n0\r\n\r\n", "corrupt", 7, 0},
		"chunked, nonsense":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello", "error", 0, 3},
		"chunked, broken":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe…", "truncated", 5, 3},
		"1.0":                {"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "ok", 5, 3},
		"1.0 kept":           {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", "ok", 5, 1},
		"until the end":      {"HTTP/1.0 200 OK\r\n\r\nhel…", "corrupt", 6, 3}, // the mark has three bytes
		"other size":         {"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!", "corrupt", 0, 3},
		"no content":         {"HTTP/1.1 204 No Content\r\n\r\n", "error", 0, 3},
		"redirect":           {"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", "error", 0, 1},
		"partial":            {"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/9\r\nContent-Length: 5\r\n\r\nhello", "error", 0, 3},
		"not HTTP":           {"220 mail.example.org ESMTP\r\n\r\n", "error", 0, 3},
		"endless head":       {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxHead), "error", 0, 3},
		"cut head":           {"HTTP/1.1 200 OK\r\nA: …", "reset", 0, 3},
		"nothing":            {"…", "reset", 0, 3},
		"no bucket":          {failure(404, "NoSuchBucket"), "no_bucket", 0, 1},
		"no object":          {failure(404, "NoSuchKey"), "no_object", 0, 1},
		"denied":             {failure(403, "SignatureDoesNotMatch"), "denied", 0, 1},
		"throttled":          {failure(503, "SlowDown"), "throttled", 0, 1},
		"server error":       {failure(500, "InternalError"), "server_error", 0, 1},
		"error, no XML":      {"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\n<html", "server_error", 0, 1},
		"error, cut":         {"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 50\r\n\r\n<html…", "server_error", 0, 3},
		"error, until close": {"HTTP/1.0 404 Not Found\r\n\r\n…", "no_object", 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, says(c.text))
			client := open(t, s.endpoint, nil)
			for range 3 {
				if res := do(t, client, get(5), c.status); res.Bytes != c.bytes {
					t.Errorf("%d bytes, want %d", res.Bytes, c.bytes)
				}
			}
			if n := s.accepted.Load(); c.accepts > 0 && n != c.accepts {
				t.Errorf("%d connections, want %d", n, c.accepts)
			}
		})
	}
}

func failure(status int, code string) string {
	body := fmt.Sprintf("<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>because</Message></Error>", code)
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Length: %d\r\n\r\n%s", status, http.StatusText(status), len(body), body)
}

func TestErrorTellsWhatTheStoreSays(t *testing.T) {
	c := open(t, serve(t, says(failure(403, "AccessDenied"))).endpoint, nil)
	res := do(t, c, get(5), "denied")
	if text := res.Err.Error(); !strings.Contains(text, "403 AccessDenied: because") || res.HTTP != 403 {
		t.Fatalf("%q, %d", text, res.HTTP)
	}
}

func TestIdleConnectionClosedByTheStore(t *testing.T) {
	s := serve(t, func(c net.Conn, _ *bufio.Reader, _ *http.Request) bool {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		return false
	})
	c := open(t, s.endpoint, nil)
	for range 3 {
		do(t, c, get(5), "ok")
		<-s.closed
		// It is noticed where it matters: before the connection is used.
		for c.idle[0].usable(time.Now().Add(time.Second)) {
			continue
		}
		c.idle[0].idle = time.Now().Add(-time.Second)
	}
	if n := s.accepted.Load(); n != 3 {
		t.Errorf("%d connections", n)
	}
}

// A connection that breaks under the first request after a long pause was
// closed for being idle; that is no failure of the request. One that breaks
// under load is.
func TestRaceWithIdleTimeout(t *testing.T) {
	for name, quiet := range map[string]time.Duration{"quiet": 2 * time.Second, "busy": 0} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			s := serve(t, func(c net.Conn, _ *bufio.Reader, _ *http.Request) bool {
				if n.Add(1) == 2 {
					return false
				}
				_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
				return err == nil
			})
			c := open(t, s.endpoint, nil)
			do(t, c, get(5), "ok")
			c.idle[0].idle = time.Now().Add(-quiet)
			if quiet == 0 {
				do(t, c, get(5), "reset")
				return
			}
			if res := do(t, c, get(5), "ok"); res.Retries != 1 || !res.Opened {
				t.Errorf("%+v", res)
			}
		})
	}
}

func TestRetries(t *testing.T) {
	for name, c := range map[string]struct {
		first  string
		times  int64
		want   string
		taken  int
		bytes  int64
		status int
	}{
		"throttled":     {failure(503, "SlowDown"), 2, "ok", 2, 5, 200},
		"server error":  {failure(500, "InternalError"), 1, "ok", 1, 5, 200},
		"reset":         {"HTTP/1.1 200 …", 1, "ok", 1, 5, 200},
		"too often":     {failure(503, "SlowDown"), 9, "throttled", 2, 0, 503},
		"not worth it":  {failure(403, "AccessDenied"), 1, "denied", 0, 0, 403},
		"truncated":     {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n…", 1, "truncated", 0, 3, 200},
		"not an object": {failure(404, "NoSuchKey"), 1, "no_object", 0, 0, 404},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			s := serve(t, func(conn net.Conn, in *bufio.Reader, r *http.Request) bool {
				if n.Add(1) <= c.times {
					return says(c.first)(conn, in, r)
				}
				return says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")(conn, in, r)
			})
			r := get(5)
			r.Retries = 2
			client := open(t, s.endpoint, nil)
			res := do(t, client, r, c.want)
			if res.Retries != c.taken || res.Bytes != c.bytes || res.HTTP != c.status {
				t.Errorf("%+v", res)
			}
			n.Store(100)
			do(t, client, get(5), "ok")
		})
	}
}

func TestTimeout(t *testing.T) {
	const size = 300_000
	for name, text := range map[string]string{
		"first byte": "",
		"head":       "HTTP/1.1 200 OK\r\n",
		"body":       "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\nhe",
		"body's end": "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + strings.Repeat("x", 299_999),
		"chunk":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
	} {
		for _, copied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s copied=%t", name, copied), func(t *testing.T) {
				t.Parallel()
				s := serve(t, func(c net.Conn, in *bufio.Reader, r *http.Request) bool { return says(text)(c, in, r) })
				c := open(t, s.endpoint, func(o *Options) { o.Copy = copied })
				r := get(size)
				r.Deadline, r.Retries = time.Now().Add(30*time.Millisecond), 3
				res := do(t, c, r, "timeout")
				if took := res.Done.Sub(res.Begin); took < 25*time.Millisecond || took > 5*time.Second {
					t.Errorf("took %s", took)
				}
				if len(c.idle) != 0 {
					t.Error("the connection was kept")
				}
			})
		}
	}
}

func TestInterrupt(t *testing.T) {
	for name, text := range map[string]string{
		"first byte": "",
		"body":       "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\nhe",
		"body's end": "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + strings.Repeat("x", 299_999),
	} {
		for _, copied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s copied=%t", name, copied), func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithCancel(t.Context())
				s := serve(t, func(c net.Conn, in *bufio.Reader, r *http.Request) bool {
					says(text)(c, in, r)
					cancel()
					return true
				})
				c := open(t, s.endpoint, func(o *Options) { o.Copy = copied })
				defer context.AfterFunc(ctx, c.Interrupt)()
				var res Result
				c.Do(ctx, get(300_000), &res)
				if res.Status != "cancelled" || res.Done.Sub(res.Begin) > 5*time.Second {
					t.Fatalf("%+v", res)
				}
				// Nothing starts afterwards either.
				c.Do(ctx, get(5), &res)
				if res.Status != "cancelled" {
					t.Fatalf("%+v", res)
				}
			})
		}
	}
}

func TestRanges(t *testing.T) {
	const size = 1_000_003
	content := objectstore.NewContent(5, size)
	good := func(c net.Conn, r *http.Request) bool {
		var first, last int64
		_, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
		if err != nil {
			return false
		}
		_, err = fmt.Fprintf(c, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n\r\n", first, last, size, last-first+1)
		if err == nil {
			_, err = io.Copy(c, io.NewSectionReader(content, first, last-first+1))
		}
		return err == nil
	}
	request := func() *Request {
		r := get(size)
		r.PartSize, r.Parallel, r.Sum, r.Summed = 70_000, 4, content.Checksum(), true
		return r
	}
	t.Run("whole", func(t *testing.T) {
		for _, checksum := range []bool{false, true} {
			s := serve(t, func(c net.Conn, _ *bufio.Reader, r *http.Request) bool { return good(c, r) })
			c := open(t, s.endpoint, func(o *Options) { o.Checksum = checksum })
			res := do(t, c, request(), "ok")
			if res.Bytes != size || res.Parts != 15 || res.HTTP != 206 {
				t.Errorf("%+v", res)
			}
			if n := s.accepted.Load(); n < 1 || n > 4 {
				t.Errorf("%d connections", n)
			}
		}
	})
	t.Run("corrupt", func(t *testing.T) {
		s := serve(t, func(c net.Conn, _ *bufio.Reader, r *http.Request) bool { return good(c, r) })
		c := open(t, s.endpoint, func(o *Options) { o.Checksum = true })
		r := request()
		r.Sum++
		do(t, c, r, "corrupt")
	})
	for name, c := range map[string]struct {
		bad    string
		status string
	}{
		"not served":  {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "error"},
		"other range": {"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/9\r\nContent-Length: 5\r\n\r\nhello", "error"},
		"truncated":   {"HTTP/1.1 206 OK\r\nContent-Range: bytes 280000-349999/1000003\r\nContent-Length: 70000\r\n\r\n…", "truncated"},
		"gone":        {failure(404, "NoSuchKey"), "no_object"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hang := make(chan struct{})
			s := serve(t, func(conn net.Conn, in *bufio.Reader, r *http.Request) bool {
				if r.Header.Get("Range") == "bytes=280000-349999" {
					return says(c.bad)(conn, in, r)
				}
				if r.Header.Get("Range") == "bytes=210000-279999" {
					<-hang // until the failure of the other range has ended this one
					return false
				}
				return good(conn, r)
			})
			client := open(t, s.endpoint, nil)
			defer close(hang)
			do(t, client, request(), c.status)
		})
	}
	t.Run("retried", func(t *testing.T) {
		var n atomic.Int64
		s := serve(t, func(c net.Conn, in *bufio.Reader, r *http.Request) bool {
			if n.Add(1) == 3 {
				return says(failure(503, "SlowDown"))(c, in, r)
			}
			return good(c, r)
		})
		r := request()
		r.Retries = 1
		c := open(t, s.endpoint, func(o *Options) { o.Checksum = true })
		if res := do(t, c, r, "ok"); res.Retries != 1 || res.Bytes != size {
			t.Errorf("%+v", res)
		}
	})
}

func put(size int64) *Request {
	content := objectstore.NewContent(9, size)
	return &Request{
		Put: true, Bucket: "bucket", Key: "key", Size: size, Content: content, Sum: content.Checksum(),
		Deadline: time.Now().Add(20 * time.Second),
	}
}

// take reads an upload and answers.
func take(c net.Conn, r *http.Request, interim string) bool {
	_, _ = io.WriteString(c, interim)
	var crc uint64
	buf := make([]byte, 32<<10)
	var n int64
	for {
		m, err := r.Body.Read(buf)
		crc = objectstore.UpdateCRC64(crc, buf[:m])
		n += int64(m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return false
		}
	}
	text := "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	if n != r.ContentLength || r.Header.Get("X-Amz-Meta-Transferlab-Crc64nvme") != objectstore.EncodeCRC64(crc) {
		text = failure(400, "BadDigest")
	}
	_, err := io.WriteString(c, text)
	return err == nil
}

func TestPut(t *testing.T) {
	for name, c := range map[string]struct {
		size   int64
		script answer
		status string
		bytes  int64
		http   int
	}{
		"empty":  {0, func(c net.Conn, _ *bufio.Reader, r *http.Request) bool { return take(c, r, "") }, "ok", 0, 200},
		"small":  {1000, func(c net.Conn, _ *bufio.Reader, r *http.Request) bool { return take(c, r, "") }, "ok", 1000, 200},
		"middle": {expectFrom - 1, func(c net.Conn, _ *bufio.Reader, r *http.Request) bool { return take(c, r, "") }, "ok", expectFrom - 1, 200},
		"large": {5_000_000, func(c net.Conn, _ *bufio.Reader, r *http.Request) bool {
			if r.Header.Get("Expect") != "100-continue" {
				return false
			}
			return take(c, r, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
		}, "ok", 5_000_000, 200},
		"large, silent": {5_000_000, func(c net.Conn, _ *bufio.Reader, r *http.Request) bool { return take(c, r, "") }, "ok", 5_000_000, 200},
		"refused early": {5_000_000, says(failure(403, "AccessDenied")), "denied", 0, 403},
		"refused late": {1_000_000, func(c net.Conn, _ *bufio.Reader, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			return says(failure(507, "InsufficientStorage"))(c, nil, r)
		}, "server_error", 1_000_000, 507},
		"closed": {1_000_000, func(net.Conn, *bufio.Reader, *http.Request) bool { return false }, "reset", -1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, c.script)
			client := open(t, s.endpoint, nil)
			client.continueWait = 50 * time.Millisecond
			for range 2 {
				res := do(t, client, put(c.size), c.status)
				if (c.bytes >= 0 && res.Bytes != c.bytes) || res.HTTP != c.http {
					t.Errorf("%+v", res)
				}
				if c.status == "ok" && (res.Written.Before(res.Begin) || res.FirstByte.Before(res.Written)) {
					t.Errorf("phases out of order: %+v", res)
				}
			}
			if n := s.accepted.Load(); c.status == "ok" && n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// A store that has had enough says so and closes; what it said must not be lost
// for the error of writing to it.
func TestPutRefusedInTheMiddle(t *testing.T) {
	s := serve(t, func(c net.Conn, in *bufio.Reader, r *http.Request) bool {
		_, _ = io.CopyN(io.Discard, r.Body, 1000)
		says(failure(400, "EntityTooLarge"))(c, in, r)
		// Until the client has seen it; it reads when its writes fail or end.
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, in)
		return false
	})
	c := open(t, s.endpoint, nil)
	c.continueWait = 50 * time.Millisecond
	res := do(t, c, put(8<<20), "error")
	if !strings.Contains(res.Err.Error(), "EntityTooLarge") || res.HTTP != 400 {
		t.Fatalf("%+v", res)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := "http://" + l.Addr().String()
	_ = l.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	untrusted.StartTLS()
	defer untrusted.Close()
	for endpoint, status := range map[string]string{
		refusing: "refused",
		"http://" + strings.Repeat("a", 64) + ".example": "dns",
		untrusted.URL: "tls",
		strings.Replace(plain.URL, "http://", "https://", 1): "tls",
	} {
		c := open(t, endpoint, nil)
		res := do(t, c, get(5), status)
		if !res.Opened || !res.FirstByte.IsZero() {
			t.Errorf("%s: %+v", status, res)
		}
	}
}

func TestPhases(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}))
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.StartTLS()
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := objectstore.Open(t.Context(), objectstore.Target{Endpoint: server.URL, CAFile: ca, PathStyle: true}, objectstore.Static("key", "secret", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, fresh := range []bool{false, true} {
		c := New(Options{Store: store, Fresh: fresh})
		defer c.Close()
		for i := range 3 {
			res := do(t, c, get(5), "ok")
			if want := fresh || i == 0; res.Opened != want || (res.Connect > 0) != want || (res.TLS > 0) != want {
				t.Errorf("fresh %t, request %d: %+v", fresh, i, res)
			}
			if spent := res.DNS + res.Connect + res.TLS; spent > res.FirstByte.Sub(res.Begin) || res.Written.After(res.FirstByte) {
				t.Errorf("phases do not add up: %+v", res)
			}
		}
	}
}

func TestIdleConnectionsOfSeveralAddresses(t *testing.T) {
	c := open(t, "http://127.0.0.1:1", func(o *Options) { o.MaxIdle = 2 })
	var conns []*conn
	for _, address := range []string{"a:80", "b:80", "c:80"} {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		cn := newConn(ours, address)
		c.open[cn] = struct{}{}
		c.release(cn, true)
		conns = append(conns, cn)
	}
	if c.takeIdle("a:80") != nil || len(c.open) != 2 {
		t.Error("the connection used least recently was kept")
	}
	if _, err := conns[0].Write([]byte{1}); err == nil {
		t.Error("it was not closed")
	}
	if c.takeIdle("b:80") != conns[1] || c.takeIdle("c:80") != conns[2] || c.takeIdle("c:80") != nil {
		t.Error("the others were not")
	}
}

func TestSignaturesAreKeptForASecond(t *testing.T) {
	c := open(t, "http://127.0.0.1:1", nil)
	now := time.Unix(1_700_000_000, 0)
	text := func(key string, at time.Time) string {
		h, err := c.signer.head(t.Context(), headKey{bucket: "b", key: key}, 0, at)
		if err != nil {
			t.Fatal(err)
		}
		return string(h.text)
	}
	first := text("k", now)
	if text("k", now.Add(time.Second/2)) != first || len(c.signer.heads) != 1 {
		t.Error("signed again within a second")
	}
	if text("other", now) == first {
		t.Error("another object has the same head")
	}
	if text("k", now.Add(time.Second)) == first || len(c.signer.heads) != 1 {
		t.Error("not signed again in the next second, or the old one kept")
	}
	for i := range maxSigned + 10 {
		text(fmt.Sprint(i), now.Add(time.Second))
	}
	if n := len(c.signer.heads); n > maxSigned {
		t.Errorf("%d heads kept", n)
	}
}
