package embedded

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rclone/gofakes3"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// noContents is the body of a HEAD.
type noContents struct{}

func (noContents) Read([]byte) (int, error) { return 0, io.EOF }
func (noContents) Close() error             { return nil }

// fileContents is part of an object's file. It is a WriterTo so that the HTTP server's ReadFrom sees the *os.File
// itself, which it passes on to sendfile(2).
type fileContents struct {
	f     *os.File
	limit io.LimitedReader
}

func (c *fileContents) Read(p []byte) (int, error) { return c.limit.Read(p) }
func (c *fileContents) Close() error               { return c.f.Close() }

func (c *fileContents) WriteTo(w io.Writer) (int64, error) {
	if rf, ok := w.(io.ReaderFrom); ok {
		return rf.ReadFrom(&c.limit)
	}
	return io.Copy(w, &c.limit)
}

func (b *backend) HeadObject(ctx context.Context, bucketName, key string) (*gofakes3.Object, error) {
	bu, err := b.bucket(bucketName)
	if err != nil {
		return nil, err
	}
	bu.mu.RLock()
	o := bu.objects[key]
	bu.mu.RUnlock()
	if o == nil {
		return nil, gofakes3.KeyNotFound(key)
	}
	requestFrom(ctx).setETagSuffix(o.etagSuffix())
	return o.response(noContents{}), nil
}

func (o *object) response(contents io.ReadCloser) *gofakes3.Object {
	return &gofakes3.Object{Name: o.Key, Metadata: o.Meta, Size: o.size, Contents: contents, Hash: o.MD5, PartSizes: o.Parts}
}

func (b *backend) GetObject(ctx context.Context, bucketName, key string, want *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	bu, err := b.bucket(bucketName)
	if err != nil {
		return nil, err
	}
	bu.mu.RLock()
	o := bu.objects[key]
	var f *os.File
	if o != nil {
		f, err = os.Open(objectPath(bu.dir, key))
	}
	bu.mu.RUnlock()
	if o == nil {
		return nil, gofakes3.KeyNotFound(key)
	}
	if err != nil {
		return nil, storageError(ctx, err)
	}
	rng, err := byteRange(want, o.size)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	contents := &fileContents{f: f, limit: io.LimitedReader{R: f, N: o.size}}
	if rng != nil {
		if _, err := f.Seek(rng.Start, io.SeekStart); err != nil {
			_ = f.Close()
			return nil, storageError(ctx, err)
		}
		contents.limit.N = rng.Length
	}
	requestFrom(ctx).setETagSuffix(o.etagSuffix())
	out := o.response(contents)
	out.Range = rng
	return out, nil
}

// byteRange resolves want against an object of size bytes. Unlike gofakes3's own it takes a suffix longer than the
// object for the whole object, as RFC 9110 and S3 do, and cannot overflow.
func byteRange(want *gofakes3.ObjectRangeRequest, size int64) (*gofakes3.ObjectRange, error) {
	if want == nil {
		return nil, nil
	}
	if want.FromEnd {
		if want.End <= 0 || size == 0 {
			return nil, gofakes3.ErrInvalidRange
		}
		n := min(want.End, size)
		return &gofakes3.ObjectRange{Start: size - n, Length: n}, nil
	}
	if want.Start < 0 || want.Start >= size {
		return nil, gofakes3.ErrInvalidRange
	}
	end := size - 1
	if want.End != gofakes3.RangeNoEnd {
		end = min(want.End, end)
	}
	if end < want.Start {
		return nil, gofakes3.ErrInvalidRange
	}
	return &gofakes3.ObjectRange{Start: want.Start, Length: end - want.Start + 1}, nil
}

// summed is what copyBody knows about the bytes it copied.
type summed struct {
	n     int64
	crc64 uint64
	md5   []byte
}

// copyBody copies src to dst with every checksum the request asks for, and checks them. size is what the client
// announced, -1 if it did not.
func (b *backend) copyBody(ctx context.Context, dst io.Writer, src io.Reader, size int64) (summed, error) {
	var s summed
	if size > b.maxObject {
		return s, gofakes3.ErrorMessagef(gofakes3.ErrEntityTooLarge, "objects of at most %d bytes are accepted", b.maxObject)
	}
	rq := requestFrom(ctx)
	hashes := rq.hashes()
	// gofakes3 computes the MD5 while it reads a plain PUT's body; computing it once more would halve the rate.
	hashed, haveMD5 := src.(interface{ Sum([]byte) []byte })
	var own hash.Hash
	if !haveMD5 {
		own = md5.New()
	}
	buf := b.buffers.Get().(*[]byte)
	defer b.buffers.Put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			p := (*buf)[:n]
			if s.n+int64(n) > b.maxObject {
				return s, gofakes3.ErrorMessagef(gofakes3.ErrEntityTooLarge, "objects of at most %d bytes are accepted", b.maxObject)
			}
			if err := b.reserve(ctx, int64(n)); err != nil {
				return s, err
			}
			s.n += int64(n)
			s.crc64 = objectstore.UpdateCRC64(s.crc64, p)
			if own != nil {
				_, _ = own.Write(p)
			}
			for _, h := range hashes {
				_, _ = h.Write(p)
			}
			if _, err := dst.Write(p); err != nil {
				return s, storageError(ctx, err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return s, storageError(ctx, err)
		}
	}
	if size >= 0 && s.n != size {
		return s, gofakes3.ErrIncompleteBody
	}
	if err := rq.finishBody(s.crc64, hashes); err != nil {
		return s, storageError(ctx, err)
	}
	if own != nil {
		s.md5 = own.Sum(nil)
	} else {
		s.md5 = slices.Clone(hashed.Sum(nil))
	}
	return s, nil
}

// reserve accounts for n more bytes of content, within the store's limit.
func (b *backend) reserve(ctx context.Context, n int64) error {
	if total := b.used.Add(n); b.maxBytes > 0 && total > b.maxBytes {
		b.used.Add(-n)
		return withStatus(ctx, gofakes3.ErrorMessagef(errInsufficientStorage, "the store's limit of %d bytes is reached", b.maxBytes))
	}
	return nil
}

// withStatus sees to it that an error is sent under its right HTTP status: gofakes3 answers 500 for codes it does not have.
func withStatus(ctx context.Context, err error) error {
	var s3 gofakes3.Error
	if !errors.As(err, &s3) {
		return err
	}
	switch s3.ErrorCode() {
	case errInsufficientStorage:
		requestFrom(ctx).setStatus(http.StatusInsufficientStorage)
	case errSignature:
		requestFrom(ctx).setStatus(http.StatusForbidden)
	case errContentSHA256, errRequestTimeout, errEntityTooSmall:
		requestFrom(ctx).setStatus(http.StatusBadRequest)
	}
	return s3
}

// storageError turns an error of the file system or of the connection into one a client can act upon.
func storageError(ctx context.Context, err error) error {
	var s3 gofakes3.Error
	switch {
	case errors.As(err, &s3):
		return withStatus(ctx, s3)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return withStatus(ctx, gofakes3.ErrorMessage(errInsufficientStorage, "no space left on the server's disk"))
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, context.Canceled):
		return gofakes3.ErrIncompleteBody
	case errors.Is(err, os.ErrDeadlineExceeded):
		return withStatus(ctx, gofakes3.ErrorMessage(errRequestTimeout,
			"Your socket connection to the server was not read from or written to within the timeout period."))
	}
	return err
}

// temp makes a file to write into; commit moves it into place.
func (b *backend) temp() (*os.File, error) {
	return os.CreateTemp(filepath.Join(b.dir, "tmp"), "put-")
}

func (b *backend) discard(f *os.File, n int64) {
	_ = f.Close()
	_ = os.Remove(f.Name())
	b.used.Add(-n)
}

func (b *backend) PutObject(ctx context.Context, bucketName, key string, meta map[string]string, input io.Reader, size int64) (gofakes3.PutObjectResult, error) {
	var none gofakes3.PutObjectResult
	bu, err := b.bucket(bucketName)
	if err != nil {
		return none, err
	}
	f, err := b.temp()
	if err != nil {
		return none, storageError(ctx, err)
	}
	s, err := b.copyBody(ctx, f, input, size)
	if err != nil {
		b.discard(f, s.n)
		return none, err
	}
	o := &object{size: s.n, description: description{Key: key, MD5: s.md5, CRC64: s.crc64, Meta: meta}}
	if err := b.commit(ctx, bu, o, f); err != nil {
		return none, err
	}
	requestFrom(ctx).reportChecksum(o)
	return gofakes3.PutObjectResult{ETag: `"` + o.etag() + `"`}, nil
}

// commit completes the file f, which holds o's content, and makes it the object. f is closed, and gone if commit fails.
func (b *backend) commit(ctx context.Context, bu *bucket, o *object, f *os.File) error {
	o.Modified = time.Now().UnixNano()
	o.Meta = maps.Clone(o.Meta)
	if o.Meta == nil {
		o.Meta = map[string]string{}
	}
	o.Meta["Last-Modified"] = o.modified().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")
	if o.Meta["Content-Type"] == "" {
		// What S3 answers for such objects; without it the HTTP server would read the content to guess.
		o.Meta["Content-Type"] = "binary/octet-stream"
	}
	requestFrom(ctx).addChecksums(o)
	err := appendDescription(f, &o.description, o.size)
	if err == nil && b.sync {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	path := objectPath(bu.dir, o.Key)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err != nil {
		b.discard(f, o.size)
		return storageError(ctx, err)
	}
	if err := b.replace(ctx, bu, o, f.Name(), path); err != nil {
		b.discard(f, o.size)
		return err
	}
	if b.sync {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return storageError(ctx, err)
		}
	}
	return nil
}

// replace renames from to path and puts o into the index, as one step to everyone who reads either.
func (b *backend) replace(ctx context.Context, bu *bucket, o *object, from, path string) error {
	// An open file keeps the old content's blocks from being freed inside the rename, with the bucket locked: for a
	// large object that takes long. They are freed by this Close, which runs after the unlock.
	var held *os.File
	defer func() {
		if held != nil {
			_ = held.Close()
		}
	}()
	bu.mu.Lock()
	defer bu.mu.Unlock()
	if bu.gone {
		return gofakes3.BucketNotFound(bu.name)
	}
	old := bu.objects[o.Key]
	etag := ""
	if old != nil {
		etag = gofakesETag(old)
	}
	if err := gofakes3.CheckWriteConditions(ctx, old != nil, etag); err != nil {
		return err
	}
	if old != nil {
		held, _ = os.Open(path)
	}
	if err := os.Rename(from, path); err != nil {
		return storageError(ctx, err)
	}
	if old != nil {
		b.used.Add(-old.size)
	} else {
		bu.stale = true
	}
	bu.objects[o.Key] = o
	return nil
}

// gofakesETag is o's entity tag as gofakes3 sees it: it knows an object's hash only, so the handler takes the part count
// off the conditions of a request before gofakes3 compares them.
func gofakesETag(o *object) string { return fmt.Sprintf("%x", o.MD5) }

func (b *backend) DeleteObject(ctx context.Context, bucketName, key string) (gofakes3.ObjectDeleteResult, error) {
	bu, err := b.bucket(bucketName)
	if err != nil {
		return gofakes3.ObjectDeleteResult{}, err
	}
	return gofakes3.ObjectDeleteResult{}, b.remove(ctx, bu, key)
}

func (b *backend) remove(ctx context.Context, bu *bucket, key string) error {
	path := objectPath(bu.dir, key)
	bu.mu.Lock()
	o := bu.objects[key]
	if o == nil {
		bu.mu.Unlock()
		return nil
	}
	f, _ := os.Open(path)
	err := os.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = nil
		delete(bu.objects, key)
		bu.stale = true
		b.used.Add(-o.size)
	}
	bu.mu.Unlock()
	if f != nil {
		_ = f.Close()
	}
	if err != nil {
		return storageError(ctx, err)
	}
	return nil
}

func (b *backend) DeleteMulti(ctx context.Context, bucketName string, keys ...string) (gofakes3.MultiDeleteResult, error) {
	var out gofakes3.MultiDeleteResult
	bu, err := b.bucket(bucketName)
	if err != nil {
		return out, err
	}
	for _, key := range keys {
		if err := b.remove(ctx, bu, key); err != nil {
			b.log.Error("delete object", "bucket", bucketName, "key", key, "error", err)
			failed := gofakes3.ErrorResultFromError(err)
			failed.Key = key
			out.Error = append(out.Error, failed)
			continue
		}
		out.Deleted = append(out.Deleted, gofakes3.ObjectID{Key: key})
	}
	return out, nil
}

func (b *backend) CopyObject(ctx context.Context, srcBucket, srcKey, dstBucket, dstKey string, meta map[string]string) (gofakes3.CopyObjectResult, error) {
	var none gofakes3.CopyObjectResult
	dst, err := b.bucket(dstBucket)
	if err != nil {
		return none, err
	}
	o, err := b.duplicate(ctx, srcBucket, srcKey, dst, dstKey, meta)
	if err != nil {
		return none, err
	}
	// gofakes3 has looked at the source on the way here, and that is not the object this response is about.
	requestFrom(ctx).setETagSuffix("")
	return gofakes3.CopyObjectResult{ETag: `"` + o.etag() + `"`, LastModified: gofakes3.NewContentTime(o.modified())}, nil
}

// duplicate makes dstKey a copy of srcKey with other metadata.
func (b *backend) duplicate(ctx context.Context, srcBucket, srcKey string, dst *bucket, dstKey string, meta map[string]string) (*object, error) {
	src, err := b.bucket(srcBucket)
	if err != nil {
		return nil, err
	}
	src.mu.RLock()
	from := src.objects[srcKey]
	var in *os.File
	if from != nil {
		in, err = os.Open(objectPath(src.dir, srcKey))
	}
	src.mu.RUnlock()
	if from == nil {
		return nil, gofakes3.KeyNotFound(srcKey)
	}
	if err != nil {
		return nil, storageError(ctx, err)
	}
	defer func() { _ = in.Close() }()
	if err := b.reserve(ctx, from.size); err != nil {
		return nil, err
	}
	f, err := b.temp()
	if err != nil {
		b.used.Add(-from.size)
		return nil, storageError(ctx, err)
	}
	// Between files io.Copy is copy_file_range(2).
	if n, err := io.Copy(f, &io.LimitedReader{R: in, N: from.size}); err != nil || n != from.size {
		b.discard(f, from.size)
		return nil, storageError(ctx, errors.Join(err, lengthError(n, from.size)))
	}
	o := &object{size: from.size, description: description{
		Key: dstKey, MD5: from.MD5, CRC64: from.CRC64, Parts: from.Parts, Meta: maps.Clone(meta),
	}}
	for k, v := range from.Meta {
		if strings.HasPrefix(textproto.CanonicalMIMEHeaderKey(k), checksumHeader) {
			if o.Meta == nil {
				o.Meta = map[string]string{}
			}
			o.Meta[k] = v
		}
	}
	return o, b.commit(ctx, dst, o, f)
}

func lengthError(got, want int64) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("copied %d of %d bytes", got, want)
}

// SetObjectTagging implements gofakes3.ObjectTaggingBackend.
func (b *backend) SetObjectTagging(ctx context.Context, bucketName, key, tagging string) error {
	bu, err := b.bucket(bucketName)
	if err != nil {
		return err
	}
	bu.mu.RLock()
	o := bu.objects[key]
	bu.mu.RUnlock()
	if o == nil {
		return gofakes3.KeyNotFound(key)
	}
	meta := maps.Clone(o.Meta)
	delete(meta, gofakes3.TaggingMetadataKey)
	if tagging != "" {
		meta[gofakes3.TaggingMetadataKey] = tagging
	}
	_, err = b.duplicate(ctx, bucketName, key, bu, key, meta)
	return err
}
