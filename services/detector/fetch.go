package detector

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

var (
	errLost    = errors.New("the clip's bytes are gone")
	errCorrupt = fmt.Errorf("the stored bytes are not the clip's: %w", objectstore.ErrCorrupt)
	errStalled = fmt.Errorf("the store is silent: %w", os.ErrDeadlineExceeded)
)

// How long the store may be silent within a fetch before it is asked again.
const stallPatience = 15 * time.Second

// reader fetches clips from the store.
type reader struct {
	store   *objectstore.Store
	client  *http.Client
	stall   time.Duration
	share   int64 // bytes held of one clip
	buffers sync.Pool
	pieces  sync.Pool
}

// Bytes read from a connection at a time.
const pieceBytes = 256 << 10

func newReader(store *objectstore.Store, connections int, share int64) *reader {
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	return &reader{
		store: store, stall: stallPatience, share: share,
		client: &http.Client{
			Transport: &http.Transport{
				DialContext: dialer.DialContext, TLSClientConfig: store.TLSConfig(), TLSHandshakeTimeout: 10 * time.Second,
				DisableCompression: true, MaxIdleConnsPerHost: connections, IdleConnTimeout: 90 * time.Second,
				ReadBufferSize: pieceBytes, Proxy: http.ProxyFromEnvironment,
			},
			// A redirect would be followed with a signature for elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		pieces: sync.Pool{New: func() any { b := make([]byte, pieceBytes); return &b }},
	}
}

// fetching is a clip on its way here; what is set at the end is for those who
// have seen done.
type fetching struct {
	*ring
	cancel context.CancelCauseFunc
	done   chan struct{}

	bytes   int64
	first   time.Time // first byte
	fetched time.Time // last byte, seen to be right
	err     error
}

// start begins to fetch a clip; close it.
func (r *reader) start(ctx context.Context, job *schemas.ClipJob) *fetching {
	buffer := r.buffer(min(r.share, job.Clip.Size))
	ctx, cancel := context.WithCancelCause(ctx)
	f := &fetching{ring: newRing(buffer), cancel: cancel, done: make(chan struct{})}
	unblock := context.AfterFunc(ctx, func() { f.finish(context.Cause(ctx)) })
	go func() {
		defer close(f.done)
		defer unblock()
		f.err = r.fetch(ctx, job, f)
		if errors.Is(f.err, errCorrupt) {
			f.err = r.again(ctx, job, f.err)
		}
		if f.err != nil {
			f.finish(f.err)
			return
		}
		f.fetched = time.Now()
		f.finish(io.EOF)
	}()
	return f
}

// close ends a fetch and returns when it has ended.
func (r *reader) close(f *fetching) {
	f.cancel(context.Canceled)
	f.abandon()
	<-f.done
	r.buffers.Put(&f.buf)
}

func (r *reader) buffer(size int64) []byte {
	if b, ok := r.buffers.Get().(*[]byte); ok && int64(cap(*b)) >= size {
		return (*b)[:size]
	}
	return make([]byte, size)
}

// again looks a second time at a clip whose bytes were wrong, so that what
// happened to them on the way does not condemn the clip.
func (r *reader) again(ctx context.Context, job *schemas.ClipJob, before error) error {
	discard := &fetching{ring: newRing(nil)}
	discard.abandon()
	if err := r.fetch(ctx, job, discard); err != nil {
		return err
	}
	// No longer of the kind that condemns: as text.
	return fmt.Errorf("the clip's bytes were right the second time only; the first time %s", before)
}

// fetch copies a clip to f. What breaks off goes on where it was, until ctx
// ends. It returns nil if every byte came and they are the clip's.
func (r *reader) fetch(ctx context.Context, job *schemas.ClipJob, f *fetching) error {
	sum := sha256.New()
	piece := r.pieces.Get().(*[]byte)
	defer r.pieces.Put(piece)
	offset := int64(0)
	for wait := firstPause; ; wait = min(2*wait, longestPause) {
		before := offset
		err := r.get(ctx, job, &offset, *piece, func(p []byte) error {
			if f.first.IsZero() {
				f.first = time.Now()
			}
			f.bytes += int64(len(p))
			sum.Write(p)
			_, err := f.Write(p)
			return err
		})
		if err == nil {
			break
		}
		if offset > before {
			wait = firstPause
		}
		if err := pause(ctx, wait, err); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != job.Clip.SHA256 {
		return fmt.Errorf("%w: SHA-256 is %s, must be %s", errCorrupt, got, job.Clip.SHA256)
	}
	return nil
}

// get reads from offset on, and moves it.
func (r *reader) get(ctx context.Context, job *schemas.ClipJob, offset *int64, piece []byte, take func([]byte) error) error {
	req, err := r.store.NewGet(ctx, job.Bucket, job.Key, objectstore.Range{Offset: *offset}, time.Now())
	if err != nil {
		return fmt.Errorf("fetch the clip: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(r.stall, func() { cancel(errStalled) })
	defer silent.Stop()
	failed := func(err error) error {
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		return fmt.Errorf("fetch the clip, at byte %d: %w", *offset, err)
	}
	resp, err := r.client.Do(req.WithContext(ctx))
	if err != nil {
		return failed(err)
	}
	if err := whole(resp, *offset, job.Clip.Size); err != nil {
		if errors.Is(err, errLost) || errors.Is(err, errCorrupt) {
			_ = resp.Body.Close()
			return err
		}
		return failed(err)
	}
	defer func() { _ = resp.Body.Close() }()
	for {
		silent.Reset(r.stall)
		n, err := resp.Body.Read(piece)
		// Whoever takes the bytes may be slow; that is not the store's silence.
		silent.Stop()
		if *offset+int64(n) > job.Clip.Size {
			return fmt.Errorf("%w: there are more than %d", errCorrupt, job.Clip.Size)
		}
		*offset += int64(n)
		if n > 0 {
			if err := take(piece[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) && *offset == job.Clip.Size:
			return nil
		case errors.Is(err, io.EOF):
			return failed(io.ErrUnexpectedEOF)
		case err != nil:
			return failed(err)
		}
	}
}

// whole checks that an answer has what is missing of a clip. It closes the body
// of a refusal.
func whole(resp *http.Response, offset, size int64) error {
	switch {
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		_ = resp.Body.Close()
		return fmt.Errorf("%w: there are no more than %d of %d", errCorrupt, offset, size)
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent:
		err := objectstore.ReadError(resp)
		if objectstore.Classify(err) == objectstore.StatusNoObject {
			return fmt.Errorf("%w: %w", errLost, err)
		}
		return err
	case resp.StatusCode == http.StatusOK && offset > 0:
		_ = resp.Body.Close()
		return errors.New("the store does not serve ranges")
	}
	total := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		total = -1
		span, of, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "/")
		if from, _, _ := strings.Cut(span, "-"); from != strconv.FormatInt(offset, 10) {
			_ = resp.Body.Close()
			return fmt.Errorf("the store answers bytes %.40q, want those from %d on", span, offset)
		}
		if n, err := strconv.ParseInt(of, 10, 64); err == nil {
			total = n
		}
	}
	if total >= 0 && total != size {
		return fmt.Errorf("%w: there are %d, must be %d", errCorrupt, total, size)
	}
	return nil
}

// Pauses before something is tried again.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
)

// pause waits before what failed with err is tried again. It returns an error,
// err in it, if that is of no use or ctx ends.
func pause(ctx context.Context, wait time.Duration, err error) error {
	if ctx.Err() == nil && !transient(err) {
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), err)
	}
}

// transient reports whether the store may answer otherwise a little later.
func transient(err error) bool {
	if errors.Is(err, errLost) || errors.Is(err, errCorrupt) {
		return false
	}
	switch objectstore.Classify(err) {
	case objectstore.StatusThrottled, objectstore.StatusServerError, objectstore.StatusReset, objectstore.StatusRefused,
		objectstore.StatusTruncated, objectstore.StatusTimeout, objectstore.StatusDNS:
		return true
	}
	// Another writes the same result at this moment.
	var response *objectstore.ResponseError
	return errors.As(err, &response) && response.Status == http.StatusConflict
}
