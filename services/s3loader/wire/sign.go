package wire

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// signer makes the heads of requests. A signature's date has a resolution of
// one second: within a second the same request is signed to the same bytes,
// which are therefore kept.
type signer struct {
	store *objectstore.Store
	close bool // ask for the connection to be closed

	mu     sync.Mutex
	second int64
	heads  map[headKey]signed
}

type headKey struct {
	put           bool
	bucket, key   string
	offset, bytes int64 // of a range; 0, 0 is all
	checksum      uint64
	check         bool
}

// signed is a request's head as it goes onto the wire, and where to.
type signed struct {
	address string // host:port
	name    string // host, for TLS
	text    []byte
}

// With more different requests in a second than this, keeping them would cost
// more than it saves.
const maxSigned = 4096

// expectFrom is the size from which an upload asks first whether it is welcome,
// so that a refusal is not drowned in the body; as the SDKs do.
const expectFrom = 2 << 20

func (s *signer) head(ctx context.Context, k headKey, size int64, now time.Time) (signed, error) {
	s.mu.Lock()
	if second := now.Unix(); second != s.second || len(s.heads) >= maxSigned {
		clear(s.heads)
		s.second = second
	}
	h, ok := s.heads[k]
	s.mu.Unlock()
	if ok {
		return h, nil
	}
	h, err := s.sign(ctx, k, size, now)
	if err != nil {
		return h, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Unix() == s.second {
		s.heads[k] = h
	}
	return h, nil
}

func (s *signer) sign(ctx context.Context, k headKey, size int64, now time.Time) (signed, error) {
	u := s.store.ObjectURL(k.bucket, k.key)
	req := &http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: make(http.Header, 8)}
	payload := objectstore.EmptyPayload
	switch {
	case k.put:
		req.Method, req.ContentLength = http.MethodPut, size
		req.Header["Content-Type"] = []string{"application/octet-stream"}
		if size > 0 {
			payload = objectstore.UnsignedPayload
		}
		sum := []string{objectstore.EncodeCRC64(k.checksum)}
		req.Header[http.CanonicalHeaderKey("X-Amz-Meta-"+objectstore.MetaChecksum)] = sum
		if k.check {
			req.Header["X-Amz-Checksum-Crc64nvme"] = sum
		}
	default:
		// Compression on the way would change what is measured.
		req.Header["Accept-Encoding"] = []string{"identity"}
		if k.bytes > 0 {
			req.Header["Range"] = []string{fmt.Sprintf("bytes=%d-%d", k.offset, k.offset+k.bytes-1)}
		}
		if k.check {
			req.Header["X-Amz-Checksum-Mode"] = []string{"ENABLED"}
		}
	}
	if err := s.store.Sign(ctx, req, payload, now); err != nil {
		return signed{}, err
	}
	return s.write(req, size), nil
}

func (s *signer) write(req *http.Request, size int64) signed {
	text := make([]byte, 0, 1024)
	add := func(name, value string) {
		text = append(append(append(append(text, name...), ": "...), value...), "\r\n"...)
	}
	text = append(append(append(append(text, req.Method...), ' '), req.URL.EscapedPath()...), " HTTP/1.1\r\n"...)
	add("Host", req.Host)
	add("User-Agent", "transferlab")
	names := make([]string, 0, len(req.Header))
	for name := range req.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if name == "Content-Length" {
			continue
		}
		for _, value := range req.Header[name] {
			add(name, value)
		}
	}
	if req.Method == http.MethodPut {
		add("Content-Length", strconv.FormatInt(size, 10))
		if size >= expectFrom {
			add("Expect", "100-continue")
		}
	}
	if s.close {
		add("Connection", "close")
	}
	text = append(text, "\r\n"...)
	port := req.URL.Port()
	if port == "" {
		port = "80"
		if req.URL.Scheme == "https" {
			port = "443"
		}
	}
	name := req.URL.Hostname()
	return signed{address: net.JoinHostPort(name, port), name: name, text: text}
}
