package embedded

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/rclone/gofakes3"
)

// Operations, as S3's API reference names them.
const (
	OpListBuckets             = "ListBuckets"
	OpCreateBucket            = "CreateBucket"
	OpDeleteBucket            = "DeleteBucket"
	OpHeadBucket              = "HeadBucket"
	OpListObjects             = "ListObjects" // both versions
	OpDeleteObjects           = "DeleteObjects"
	OpGetObject               = "GetObject"
	OpHeadObject              = "HeadObject"
	OpPutObject               = "PutObject"
	OpCopyObject              = "CopyObject"
	OpDeleteObject            = "DeleteObject"
	OpCreateMultipartUpload   = "CreateMultipartUpload"
	OpUploadPart              = "UploadPart"
	OpCompleteMultipartUpload = "CompleteMultipartUpload"
	OpAbortMultipartUpload    = "AbortMultipartUpload"
	OpListParts               = "ListParts"
	OpListMultipartUploads    = "ListMultipartUploads"
	OpOther                   = "Other" // everything else: sub-resources, locations, nonsense
)

// subresources are the query parameters that make a request something else than the plain operation of its method.
var subresources = []string{
	"tagging", "acl", "policy", "versioning", "versions", "location", "attributes", "cors", "encryption", "lifecycle",
	"notification", "object-lock", "replication", "website", "logging", "retention", "legal-hold", "restore", "select",
	"torrent", "accelerate", "analytics", "inventory", "metrics", "ownershipControls", "policyStatus",
	"publicAccessBlock", "requestPayment", "intelligent-tiering", "metadataTable",
}

// operation splits a request into what it does and to what.
func operation(r *http.Request) (op, bucket, key string) {
	bucket, key, _ = strings.Cut(strings.TrimLeft(r.URL.Path, "/"), "/")
	var q url.Values
	if r.URL.RawQuery != "" {
		q = r.URL.Query()
		for _, sub := range subresources {
			if q.Has(sub) {
				return OpOther, bucket, key
			}
		}
	}
	switch {
	case bucket == "":
		op = rootOperation(r.Method)
	case key == "":
		op = bucketOperation(r.Method, q)
	default:
		op = objectOperation(r, q)
	}
	return op, bucket, key
}

func rootOperation(method string) string {
	if method == http.MethodGet {
		return OpListBuckets
	}
	return OpOther
}

func bucketOperation(method string, q url.Values) string {
	switch method {
	case http.MethodGet:
		if q.Has("uploads") {
			return OpListMultipartUploads
		}
		return OpListObjects
	case http.MethodPut:
		return OpCreateBucket
	case http.MethodDelete:
		return OpDeleteBucket
	case http.MethodHead:
		return OpHeadBucket
	case http.MethodPost:
		if q.Has("delete") {
			return OpDeleteObjects
		}
	}
	return OpOther
}

func objectOperation(r *http.Request, q url.Values) string {
	upload := q.Get("uploadId") != ""
	switch r.Method {
	case http.MethodGet:
		if upload {
			return OpListParts
		}
		return OpGetObject
	case http.MethodHead:
		return OpHeadObject
	case http.MethodPut:
		switch {
		case upload:
			return OpUploadPart
		case r.Header.Get("X-Amz-Copy-Source") != "":
			return OpCopyObject
		}
		return OpPutObject
	case http.MethodDelete:
		if upload {
			return OpAbortMultipartUpload
		}
		return OpDeleteObject
	case http.MethodPost:
		if upload {
			return OpCompleteMultipartUpload
		}
		if q.Has("uploads") {
			return OpCreateMultipartUpload
		}
	}
	return OpOther
}

// AccessKey is what accesses are counted by. Status is the HTTP status, 0 if the connection was closed before there was
// one. Bucket is empty for requests that name none, or none that could exist.
type AccessKey struct {
	Bucket string
	Op     string
	Status int
}

// AccessCount counts accesses. BytesIn is what was read of request bodies, framing included; BytesOut what was given
// to the socket of response bodies.
type AccessCount struct {
	Requests, BytesIn, BytesOut int64
}

func (c *AccessCount) add(d AccessCount) {
	c.Requests += d.Requests
	c.BytesIn += d.BytesIn
	c.BytesOut += d.BytesOut
}

// AccessSnapshot is what a server has served since its start, or since the snapshot it was subtracted from.
type AccessSnapshot map[AccessKey]AccessCount

// Total sums up what matches; an empty bucket or operation and status 0 match everything.
func (s AccessSnapshot) Total(bucket, op string, status int) AccessCount {
	var out AccessCount
	for k, c := range s {
		if (bucket == "" || k.Bucket == bucket) && (op == "" || k.Op == op) && (status == 0 || k.Status == status) {
			out.add(c)
		}
	}
	return out
}

// Sub returns what was served since the earlier snapshot old.
func (s AccessSnapshot) Sub(old AccessSnapshot) AccessSnapshot {
	out := AccessSnapshot{}
	for k, c := range s {
		o := old[k]
		c.add(AccessCount{-o.Requests, -o.BytesIn, -o.BytesOut})
		if c != (AccessCount{}) {
			out[k] = c
		}
	}
	return out
}

// accessRecord is one line of the access log.
type accessRecord struct {
	Time      time.Time `json:"ts"`
	RequestID string    `json:"request_id,omitempty"`
	Remote    string    `json:"remote"`
	Op        string    `json:"op"`
	Bucket    string    `json:"bucket,omitempty"`
	Key       string    `json:"key,omitempty"`
	Status    int       `json:"status"`
	BytesIn   int64     `json:"bytes_in"`
	BytesOut  int64     `json:"bytes_out"`
	Duration  int64     `json:"duration_ns"`
}

// maxAccessKeys bounds the account: names come from outside.
const maxAccessKeys = 100_000

type access struct {
	log *slog.Logger

	mu     sync.Mutex
	counts AccessSnapshot
	open   int           // requests being served
	idle   chan struct{} // closed and replaced whenever open falls to 0; nil if nobody waits

	lineMu sync.Mutex
	lines  io.Writer // nil: no access log
	failed bool
}

func (a *access) begin() {
	a.mu.Lock()
	a.open++
	a.mu.Unlock()
}

func (a *access) end(rec accessRecord) {
	if a.lines != nil {
		a.writeLine(rec)
	}
	k := AccessKey{Bucket: rec.Bucket, Op: rec.Op, Status: rec.Status}
	if k.Bucket != "" && gofakes3.ValidateBucketName(k.Bucket) != nil {
		k.Bucket = ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.counts[k]
	if !ok && len(a.counts) >= maxAccessKeys {
		k.Bucket = ""
		c = a.counts[k]
	}
	c.add(AccessCount{Requests: 1, BytesIn: rec.BytesIn, BytesOut: rec.BytesOut})
	a.counts[k] = c
	if a.open--; a.open == 0 && a.idle != nil {
		close(a.idle)
		a.idle = nil
	}
}

func (a *access) writeLine(rec accessRecord) {
	line, err := json.Marshal(rec)
	a.lineMu.Lock()
	defer a.lineMu.Unlock()
	if err == nil {
		_, err = a.lines.Write(append(line, '\n'))
	}
	if err != nil && !a.failed {
		a.failed = true // once is enough: this runs for every request
		a.log.Error("write access log", "error", err)
	}
}

func (a *access) snapshot() AccessSnapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(AccessSnapshot, len(a.counts))
	for k, c := range a.counts {
		out[k] = c
	}
	return out
}

// Access returns what the server has served so far, by its own count. A request is counted when it is over, which a
// client may see a moment earlier: see AccessIdle.
func (s *Server) Access() AccessSnapshot { return s.access.snapshot() }

// AccessIdle waits until no request is being served and returns the account.
func (s *Server) AccessIdle(ctx context.Context) (AccessSnapshot, error) {
	a := s.access
	for {
		a.mu.Lock()
		if a.open == 0 {
			a.mu.Unlock()
			return a.snapshot(), nil
		}
		if a.idle == nil {
			a.idle = make(chan struct{})
		}
		idle := a.idle
		a.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for requests to end: %w", ctx.Err())
		}
	}
}
