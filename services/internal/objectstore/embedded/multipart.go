package embedded

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rclone/gofakes3"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

const maxUploads = 10_000 // open ones

// upload is one multipart upload; its parts are files in dir, each with its description as an object's file has it.
type upload struct {
	id        gofakes3.UploadID
	bucket    string
	key       string
	dir       string
	meta      map[string]string
	initiated time.Time

	mu    sync.Mutex
	state uploadState
	etag  string // once completed
	parts map[int]part
}

type uploadState int

const (
	uploadOpen uploadState = iota
	uploadCompleted
	uploadAborted
)

type part struct {
	path     string
	size     int64
	md5      []byte
	crc64    uint64
	modified time.Time
}

func (b *backend) CreateMultipartUpload(ctx context.Context, bucketName, key string, meta map[string]string) (gofakes3.UploadID, error) {
	if key == "" {
		return "", gofakes3.ErrorMessage(gofakes3.ErrInvalidRequest, "a multipart upload needs a key")
	}
	if len(key) > gofakes3.KeySizeLimit {
		return "", gofakes3.ResourceError(gofakes3.ErrKeyTooLong, key)
	}
	if _, err := b.bucket(bucketName); err != nil {
		return "", err
	}
	if id, restored := ctx.Value(restoredKey{}).(gofakes3.UploadID); restored {
		return id, nil
	}
	b.expireUploads(ctx)
	id := gofakes3.UploadID(strings.ToLower(rand.Text()))
	u := &upload{
		id: id, bucket: bucketName, key: key, dir: filepath.Join(b.dir, "uploads", string(id)),
		meta: meta, initiated: time.Now(), parts: map[int]part{},
	}
	if err := b.beginUpload(u); err != nil {
		return "", storageError(ctx, err)
	}
	b.uploadMu.Lock()
	full := len(b.uploads) >= maxUploads
	if !full {
		b.uploads[id] = u
	}
	b.uploadMu.Unlock()
	if full {
		_ = os.RemoveAll(u.dir)
		return "", gofakes3.ErrorMessagef(gofakes3.ErrSlowDown, "%d multipart uploads are open, complete or abort some", maxUploads)
	}
	return id, nil
}

func (b *backend) upload(bucketName, key string, id gofakes3.UploadID) (*upload, error) {
	b.uploadMu.Lock()
	defer b.uploadMu.Unlock()
	u := b.uploads[id]
	if u == nil || u.bucket != bucketName || u.key != key {
		return nil, gofakes3.ErrNoSuchUpload
	}
	return u, nil
}

// expireUploads aborts what was begun longer than uploadTTL ago: clients die between their first part and their last.
// It runs when an upload is begun, so that a store nobody writes to needs no clock.
func (b *backend) expireUploads(ctx context.Context) {
	limit := time.Now().Add(-b.uploadTTL)
	b.abortUploads(ctx, func(u *upload) bool { return u.initiated.Before(limit) })
}

// abortUploads ends uploads that nobody will complete.
func (b *backend) abortUploads(ctx context.Context, which func(*upload) bool) {
	b.uploadMu.Lock()
	var old []*upload
	for _, u := range b.uploads {
		if which(u) {
			old = append(old, u)
		}
	}
	b.uploadMu.Unlock()
	for _, u := range old {
		if err := b.AbortMultipartUpload(ctx, u.bucket, u.key, u.id); err != nil {
			b.log.Warn("abort an upload", "bucket", u.bucket, "key", u.key, "error", err)
			continue
		}
		if err := b.forget(ctx, u.bucket, u.key, u.id); err != nil && !errors.Is(err, gofakes3.ErrNoSuchUpload) {
			b.log.Warn("forget an upload", "bucket", u.bucket, "key", u.key, "error", err)
		}
	}
}

func (b *backend) UploadPart(ctx context.Context, bucketName, key string, id gofakes3.UploadID, number int, size int64, body io.Reader) (string, error) {
	u, err := b.upload(bucketName, key, id)
	if err != nil {
		return "", err
	}
	if number > b.maxParts {
		return "", gofakes3.ErrorMessagef(gofakes3.ErrInvalidArgument, "Part number must be an integer between 1 and %d, inclusive", b.maxParts)
	}
	f, err := os.CreateTemp(u.dir, unfinishedPart)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", gofakes3.ErrNoSuchUpload
		}
		return "", storageError(ctx, err)
	}
	s, err := b.copyBody(ctx, f, body, size)
	now := time.Now()
	if err == nil {
		err = appendDescription(f, &description{Key: key, MD5: s.md5, CRC64: s.crc64, Modified: now.UnixNano()}, s.n)
	}
	if err == nil && b.sync {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		b.discard(f, s.n)
		return "", storageError(ctx, err)
	}
	path := filepath.Join(u.dir, partName(number, strings.TrimPrefix(filepath.Base(f.Name()), unfinishedPart)))
	u.mu.Lock()
	if u.state != uploadOpen {
		u.mu.Unlock()
		b.discard(f, s.n)
		return "", gofakes3.ErrNoSuchUpload
	}
	if err := os.Rename(f.Name(), path); err != nil {
		u.mu.Unlock()
		b.discard(f, s.n)
		return "", storageError(ctx, err)
	}
	old, replaced := u.parts[number]
	u.parts[number] = part{path: path, size: s.n, md5: s.md5, crc64: s.crc64, modified: now}
	u.mu.Unlock()
	if b.sync {
		if err := syncDir(u.dir); err != nil {
			return "", storageError(ctx, err)
		}
	}
	if replaced {
		_ = os.Remove(old.path)
		b.used.Add(-old.size)
	}
	requestFrom(ctx).reportDeclared()
	return `"` + hex.EncodeToString(s.md5) + `"`, nil
}

func (b *backend) CompleteMultipartUpload(ctx context.Context, bucketName, key string, id gofakes3.UploadID, in *gofakes3.CompleteMultipartUploadRequest) (gofakes3.VersionID, string, error) {
	u, err := b.upload(bucketName, key, id)
	if err != nil {
		return "", "", err
	}
	bu, err := b.bucket(bucketName)
	if err != nil {
		return "", "", err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch u.state {
	case uploadCompleted: // by a concurrent request; the client must not be told that the upload failed
		return "", u.etag, nil
	case uploadAborted:
		return "", "", gofakes3.ErrNoSuchUpload
	}
	o, parts, err := b.assemblyPlan(ctx, u, in)
	if err != nil {
		return "", "", err
	}
	if want := requestFrom(ctx).wholeCRC64; want != "" && want != objectstore.EncodeCRC64(o.CRC64) {
		return "", "", gofakes3.ErrorMessage(gofakes3.ErrBadDigest, "The CRC64NVME you specified did not match the calculated checksum.")
	}
	if err := b.assemble(ctx, bu, o, parts); err != nil {
		return "", "", err
	}
	u.state, u.etag = uploadCompleted, `"`+o.etag()+`"`
	b.drop(u)
	return "", u.etag, nil
}

// assemblyPlan checks the client's list of parts against what has been received and describes the object they make.
func (b *backend) assemblyPlan(ctx context.Context, u *upload, in *gofakes3.CompleteMultipartUploadRequest) (*object, []part, error) {
	if len(in.Parts) == 0 {
		return nil, nil, gofakes3.ErrorMessage(gofakes3.ErrMalformedXML, "You must specify at least one part")
	}
	o := &object{description: description{Key: u.key, Meta: u.meta}}
	sums := md5.New()
	parts := make([]part, 0, len(in.Parts))
	for i, want := range in.Parts {
		if i > 0 && want.PartNumber <= in.Parts[i-1].PartNumber {
			return nil, nil, gofakes3.ErrInvalidPartOrder
		}
		p, ok := u.parts[want.PartNumber]
		if !ok || !strings.EqualFold(strings.Trim(want.ETag, `"`), hex.EncodeToString(p.md5)) {
			return nil, nil, gofakes3.ErrorMessagef(gofakes3.ErrInvalidPart, "part %d was not uploaded, or its entity tag is another one", want.PartNumber)
		}
		if i < len(in.Parts)-1 && p.size < b.minPart {
			return nil, nil, withStatus(ctx, gofakes3.ErrorMessagef(errEntityTooSmall,
				"part %d has %d bytes; all but the last must have %d", want.PartNumber, p.size, b.minPart))
		}
		if o.size += p.size; o.size > b.maxObject {
			return nil, nil, gofakes3.ErrorMessagef(gofakes3.ErrEntityTooLarge, "objects of at most %d bytes are accepted", b.maxObject)
		}
		_, _ = sums.Write(p.md5)
		o.CRC64 = objectstore.CombineCRC64(o.CRC64, p.crc64, p.size)
		o.Parts = append(o.Parts, p.size)
		parts = append(parts, p)
	}
	o.MD5 = sums.Sum(nil)
	return o, parts, nil
}

// assemble writes the parts one behind the other into a file and makes that the object.
func (b *backend) assemble(ctx context.Context, bu *bucket, o *object, parts []part) error {
	if err := b.reserve(ctx, o.size); err != nil {
		return err
	}
	f, err := b.temp()
	if err != nil {
		b.used.Add(-o.size)
		return storageError(ctx, err)
	}
	for _, p := range parts {
		if err := errors.Join(ctx.Err(), appendFile(f, p.path, p.size)); err != nil {
			b.discard(f, o.size)
			return storageError(ctx, err)
		}
	}
	return b.commit(ctx, bu, o, f)
}

// appendFile appends the first size bytes of the file at path; between files io.Copy is copy_file_range(2).
func appendFile(dst *os.File, path string, size int64) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	n, err := io.Copy(dst, &io.LimitedReader{R: src, N: size})
	return errors.Join(err, lengthError(n, size))
}

func (b *backend) AbortMultipartUpload(ctx context.Context, bucketName, key string, id gofakes3.UploadID) error {
	u, err := b.upload(bucketName, key, id)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state == uploadOpen {
		u.state = uploadAborted
		b.drop(u)
	}
	return nil
}

// drop forgets u and its parts. u.mu is held.
func (b *backend) drop(u *upload) {
	b.uploadMu.Lock()
	delete(b.uploads, u.id)
	b.uploadMu.Unlock()
	for _, p := range u.parts {
		b.used.Add(-p.size)
	}
	if err := os.RemoveAll(u.dir); err != nil {
		b.log.Warn("parts of a finished upload stay until the next start", "dir", u.dir, "error", err)
	}
}

// listedPart is a part as ListParts reports it.
type listedPart struct {
	number int
	part
}

// listParts returns the parts after number marker, in order.
func (b *backend) listParts(bucketName, key string, id gofakes3.UploadID, marker int) ([]listedPart, error) {
	u, err := b.upload(bucketName, key, id)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]listedPart, 0, len(u.parts))
	for n, p := range u.parts {
		if n > marker {
			out = append(out, listedPart{n, p})
		}
	}
	slices.SortFunc(out, func(a, b listedPart) int { return a.number - b.number })
	return out, nil
}

// listUploads returns the open uploads of a bucket below prefix, by key and age.
func (b *backend) listUploads(bucketName, prefix string) []*upload {
	b.uploadMu.Lock()
	defer b.uploadMu.Unlock()
	var out []*upload
	for _, u := range b.uploads {
		if u.bucket == bucketName && strings.HasPrefix(u.key, prefix) {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, func(a, b *upload) int {
		if c := strings.Compare(a.key, b.key); c != 0 {
			return c
		}
		if c := a.initiated.Compare(b.initiated); c != 0 {
			return c
		}
		return bytes.Compare([]byte(a.id), []byte(b.id))
	})
	return out
}
