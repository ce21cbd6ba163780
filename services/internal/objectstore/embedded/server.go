package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/rclone/gofakes3"

	"github.com/transferlab/transferlab/services/internal/objectstore/sigv4"
)

// Options say how a server is run. Dir, AccessKey and SecretKey are required.
type Options struct {
	Dir       string // holds everything; made if missing; one server at a time
	Addr      string // host:port to listen on; port 0 is any free one; default 127.0.0.1:0
	AccessKey string
	SecretKey string
	Region    string // told to clients that ask; signatures for any region are accepted; default us-east-1
	Log       *slog.Logger

	TLS       *tls.Config // serve HTTPS; nil: HTTP
	AccessLog io.Writer   // one JSON object a line for every request; nil: none

	MaxObjectBytes int64         // default 5 TiB, S3's own limit
	MaxStoreBytes  int64         // of content, over all buckets and open uploads; 0: what the disk holds
	MaxParts       int           // of a multipart upload; default 10000
	MinPartBytes   int64         // all parts but the last; default 5 MiB, negative: 1
	UploadTTL      time.Duration // after which an upload neither completed nor aborted is aborted, restarts or not; default 24 h
	IdleTimeout    time.Duration // for a client to send or take the next piece, or the next request; default 2 min
	Sync           bool          // fsync objects before they are acknowledged: survive power cuts, not only kills
}

func (o *Options) setDefaults() {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxObjectBytes == 0 {
		o.MaxObjectBytes = 5 << 40
	}
	if o.MaxParts == 0 {
		o.MaxParts = gofakes3.MaxUploadPartNumber
	}
	if o.MinPartBytes == 0 {
		o.MinPartBytes = 5 << 20
	}
	if o.UploadTTL == 0 {
		o.UploadTTL = 24 * time.Hour
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 2 * time.Minute
	}
}

// Validate reports everything that is wrong with o.
func (o *Options) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if o.Dir == "" {
		fault("dir: empty, must name a directory")
	}
	if o.Addr != "" {
		if _, _, err := net.SplitHostPort(o.Addr); err != nil {
			fault("addr: %q, must be HOST:PORT: %w", o.Addr, err)
		}
	}
	if len(o.AccessKey) < 3 {
		fault("access key: %d characters, at least 3 are needed", len(o.AccessKey))
	}
	if len(o.SecretKey) < 8 {
		fault("secret key: %d characters, at least 8 are needed", len(o.SecretKey))
	}
	if o.MaxObjectBytes < 0 || o.MaxStoreBytes < 0 {
		fault("max object bytes %d, max store bytes %d: must not be negative", o.MaxObjectBytes, o.MaxStoreBytes)
	}
	if o.MaxParts < 0 || o.MaxParts > gofakes3.MaxUploadPartNumber {
		fault("max parts: %d, must be 1 to %d", o.MaxParts, gofakes3.MaxUploadPartNumber)
	}
	if o.UploadTTL < 0 || o.IdleTimeout < 0 {
		fault("upload TTL %s, idle timeout %s: must not be negative", o.UploadTTL, o.IdleTimeout)
	}
	return errors.Join(faults...)
}

// Server is a running S3 server. Several can run in one process, each on a directory of its own.
type Server struct {
	opts     Options
	backend  *backend
	s3       http.Handler
	http     *http.Server
	listener net.Listener
	lock     *os.File
	access   *access
	faults   Faults
	keys     sigv4.Keys

	freshMu sync.Mutex
	fresh   map[net.Conn]struct{} // accepted, nothing received yet

	stopping chan struct{} // closed by Close: ends waits of faults
	stopOnce sync.Once
	served   chan struct{} // closed when Serve has returned
	serveErr error
}

// Start opens the directory and serves it until Close. ctx bounds the start only.
func Start(ctx context.Context, opts Options) (_ *Server, err error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("embedded S3 server: %w", err)
	}
	opts.setDefaults()
	if opts.Dir, err = filepath.Abs(opts.Dir); err != nil {
		return nil, fmt.Errorf("embedded S3 server: %w", err)
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded S3 server: %w", err)
	}
	s := &Server{
		opts: opts, stopping: make(chan struct{}), served: make(chan struct{}), fresh: map[net.Conn]struct{}{},
		access: &access{log: opts.Log, lines: opts.AccessLog, counts: AccessSnapshot{}},
	}
	if s.lock, err = lockDir(opts.Dir); err != nil {
		return nil, fmt.Errorf("embedded S3 server: %w", err)
	}
	defer func() {
		if err != nil {
			_ = s.lock.Close()
		}
	}()
	s.backend = newBackend(&s.opts)
	begun := time.Now()
	if err := s.backend.load(ctx); err != nil {
		return nil, fmt.Errorf("open object store %s: %w", opts.Dir, err)
	}
	g := gofakes3.New(s.backend, gofakes3.WithLogger(logAdapter{opts.Log}))
	s.backend.forget = g.ForgetMultipartUpload
	s.s3 = g.Server()
	s.backend.register(ctx, s.s3)
	var lc net.ListenConfig
	if s.listener, err = lc.Listen(ctx, "tcp", opts.Addr); err != nil {
		return nil, fmt.Errorf("embedded S3 server: %w", err)
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: min(10*time.Second, opts.IdleTimeout),
		IdleTimeout:       opts.IdleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(opts.Log.Handler(), slog.LevelDebug),
		TLSConfig:         opts.TLS,
		ConnState:         s.connState,
		// HTTP/1.1 only, as S3 itself: whoever measures compares with that.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	opts.Log.Info("S3 server ready", "endpoint", s.Endpoint(), "dir", opts.Dir,
		"usage", s.Usage(), "loaded_in", time.Since(begun))
	go s.run()
	return s, nil
}

func newBackend(o *Options) *backend {
	b := &backend{
		dir: o.Dir, log: o.Log, maxObject: o.MaxObjectBytes, maxBytes: o.MaxStoreBytes, maxParts: o.MaxParts,
		minPart: o.MinPartBytes, uploadTTL: o.UploadTTL, sync: o.Sync,
		buckets: map[string]*bucket{}, uploads: map[gofakes3.UploadID]*upload{},
	}
	b.buffers.New = func() any { p := make([]byte, copyBuffer); return &p }
	return b
}

func (s *Server) run() {
	defer close(s.served)
	var err error
	if s.opts.TLS != nil {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		s.serveErr = err
	}
}

// connState keeps track of connections on which nothing has come yet. Clients dial more of them than they use, and
// http.Server.Shutdown waits 5 s for each to say something.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	s.freshMu.Lock()
	defer s.freshMu.Unlock()
	if state == http.StateNew {
		s.fresh[c] = struct{}{}
	} else {
		delete(s.fresh, c)
	}
}

func (s *Server) closeFresh() {
	s.freshMu.Lock()
	defer s.freshMu.Unlock()
	for c := range s.fresh {
		_ = c.Close()
	}
}

// Endpoint is the server's URL, such as http://127.0.0.1:40123.
func (s *Server) Endpoint() string {
	if s.opts.TLS != nil {
		return "https://" + s.Addr()
	}
	return "http://" + s.Addr()
}

// Addr is the address the server listens on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Region is the region the server says it is in.
func (s *Server) Region() string { return s.opts.Region }

// Credentials are what clients sign with.
func (s *Server) Credentials() Credentials {
	return Credentials{AccessKey: s.opts.AccessKey, SecretKey: s.opts.SecretKey}
}

// Usage is what a server holds.
type Usage struct {
	Buckets, Objects int
	Bytes            int64 // of content, unfinished uploads included
}

// Usage counts what the server holds.
func (s *Server) Usage() Usage {
	b := s.backend
	b.mu.RLock()
	defer b.mu.RUnlock()
	u := Usage{Buckets: len(b.buckets), Bytes: b.used.Load()}
	for _, bu := range b.buckets {
		bu.mu.RLock()
		u.Objects += len(bu.objects)
		bu.mu.RUnlock()
	}
	return u
}

// Faults makes the server misbehave, for tests of clients.
func (s *Server) Faults() *Faults { return &s.faults }

// Done is closed when the server serves no more, whether closed or failed; Close then returns why.
func (s *Server) Done() <-chan struct{} { return s.served }

// Close stops accepting, lets requests finish until ctx is done, then cuts them off, and releases the directory.
func (s *Server) Close(ctx context.Context) error {
	var err error
	s.stopOnce.Do(func() {
		close(s.stopping)
		_ = s.listener.Close()
		s.closeFresh()
		if err = s.http.Shutdown(ctx); errors.Is(err, net.ErrClosed) {
			err = nil // of the listener, which is closed already
		} else if err != nil {
			err = errors.Join(fmt.Errorf("requests cut off: %w", err), s.http.Close())
		}
		<-s.served
		err = errors.Join(err, s.serveErr, s.lock.Close())
	})
	return err
}

// serve accounts for a request, lets faults at it, checks its signature and passes it on.
func (s *Server) serve(rw http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	s.access.begin()
	op, bucket, key := operation(r)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	ctl := http.NewResponseController(rw)
	w := &recorder{ResponseWriter: rw, ctl: ctl, ctx: ctx, faults: &s.faults, idle: s.opts.IdleTimeout}
	in := &countedBody{ReadCloser: r.Body, ctl: ctl, idle: s.opts.IdleTimeout, ended: r.Body == http.NoBody}
	rq := &request{w: w}
	w.deadline()
	r = r.WithContext(contextWith(ctx, rq))
	r.Body = in
	defer func() {
		p := recover()
		if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // a panic's value, as net/http compares it
			s.opts.Log.Error("panic serving a request", "op", op, "bucket", bucket, "key", key, "panic", p, "stack", string(debug.Stack()))
			if w.status == 0 {
				writeError(w, r, 500, "InternalError", "We encountered an internal error. Please try again.")
				p = nil
			}
		}
		s.access.end(accessRecord{
			Time: begun, RequestID: w.Header().Get("x-amz-request-id"), Remote: r.RemoteAddr, Op: op, Bucket: bucket,
			Key: key, Status: w.status, BytesIn: in.n, BytesOut: w.sent, Duration: int64(time.Since(begun)),
		})
		if p != nil {
			panic(http.ErrAbortHandler)
		}
	}()
	if !s.faults.active.Load() || !s.fail(ctx, cancel, w, r, op, bucket) {
		s.handle(rq, w, r, op, bucket, key)
	}
	if !w.cut {
		_ = w.begin() // many a handler leaves a bare 200 to net/http, past what WriteHeader mends and counts
	}
	// A client that asked whether to send its body will not send it now.
	if asked := r.Header.Get("Expect") != "" && in.n == 0; w.status >= 400 && !w.cut && !asked && !in.ended {
		_ = ctl.Flush()
		drain(in)
	}
}

// drain reads on, within reason, when a request has failed with its body unread: a connection closed while the client
// still sends is reset, and the client may never see the answer.
func drain(r io.Reader) { _, _ = io.CopyN(io.Discard, r, 16<<20) }

// fail lets the faults at a request. It returns true if that was all there is to it.
func (s *Server) fail(ctx context.Context, cancel context.CancelFunc, w *recorder, r *http.Request, op, bucket string) bool {
	// A stalled response must not hold up Close, and the request's own context only ends with its connection.
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	f := s.faults.meet(op, bucket)
	if f != nil {
		if wait(ctx, f.Latency) != nil {
			panic(http.ErrAbortHandler)
		}
		if f.affectsBody() {
			w.fault = f
		}
	}
	if s.faults.pace(ctx, 0) != nil {
		panic(http.ErrAbortHandler)
	}
	switch {
	case f == nil:
		return false
	case f.Drop:
		_ = w.cutShort(true)
		return true
	case f.Status != 0:
		code := f.Code
		if code == "" {
			code = defaultCode(f.Status)
		}
		if f.Status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
		writeError(w, r, f.Status, code, "fault injected")
		return true
	}
	return false
}

func defaultCode(status int) string {
	switch status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return "SlowDown"
	case http.StatusForbidden:
		return "AccessDenied"
	case http.StatusNotFound:
		return "NoSuchKey"
	}
	return "InternalError"
}

// handle answers a request if its signature is good.
func (s *Server) handle(rq *request, w *recorder, r *http.Request, op, bucket, key string) {
	if !s.authenticate(w, r) {
		return
	}
	if status, code, message := s.mend(rq, r, op); status != 0 {
		writeError(w, r, status, code, message)
		return
	}
	switch {
	case op == OpListParts:
		s.listParts(w, r, bucket, key)
	case op == OpListMultipartUploads:
		s.listUploads(w, r, bucket)
	case op != OpOther:
		s.s3.ServeHTTP(w, r)
	case r.Method == http.MethodPost && key == "":
		// Browser uploads: gofakes3 would spool them in the system's temporary directory.
		writeError(w, r, 501, "NotImplemented", "uploads by form are not supported")
	case r.Method == http.MethodGet && key == "" && r.URL.Query().Has("location"):
		s.location(w, r, bucket)
	case r.Method == http.MethodGet && key != "" && r.URL.Query().Has("attributes"):
		s.attributes(w, r, bucket, key)
	default:
		s.s3.ServeHTTP(w, r)
	}
}

// logAdapter passes gofakes3's errors on. Its other levels describe every request, which the access log does better.
type logAdapter struct{ log *slog.Logger }

func (l logAdapter) Print(level gofakes3.LogLevel, v ...any) {
	if level == gofakes3.LogErr {
		l.log.Error("S3 request", "error", fmt.Sprint(v...))
	}
}
