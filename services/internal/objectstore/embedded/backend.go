package embedded

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rclone/gofakes3"
)

const (
	maxBuckets = 10_000
	copyBuffer = 256 << 10
	// checksumHeader is the prefix under which gofakes3 looks for checksums in an object's metadata.
	checksumHeader = "X-Amz-Checksum-"
	crc64Header    = checksumHeader + "Crc64nvme"
)

// Codes that gofakes3 does not have, see withStatus.
const (
	errInsufficientStorage = gofakes3.ErrorCode("InsufficientStorage") // not S3's, which never is full
	errContentSHA256       = gofakes3.ErrorCode("XAmzContentSHA256Mismatch")
	errRequestTimeout      = gofakes3.ErrorCode("RequestTimeout")
	errEntityTooSmall      = gofakes3.ErrorCode("EntityTooSmall")
	errSignature           = gofakes3.ErrorCode("SignatureDoesNotMatch")
)

// backend keeps buckets and objects in files for gofakes3.
type backend struct {
	dir       string
	log       *slog.Logger
	maxObject int64
	maxBytes  int64
	maxParts  int
	minPart   int64
	uploadTTL time.Duration
	sync      bool

	used    atomic.Int64 // bytes of content stored or being stored
	buffers sync.Pool    // *[]byte of copyBuffer

	mu      sync.RWMutex
	buckets map[string]*bucket

	uploadMu sync.Mutex
	uploads  map[gofakes3.UploadID]*upload
	forget   func(ctx context.Context, bucket, key string, id gofakes3.UploadID) error
}

// bucket is the index of one bucket.
type bucket struct {
	name    string
	dir     string
	created time.Time

	mu      sync.RWMutex // also held over every open and rename of an object's file, so that index and files agree
	gone    bool
	objects map[string]*object
	sorted  []string // the keys of objects, in order, unless stale
	stale   bool
}

func (b *backend) bucket(name string) (*bucket, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if bu := b.buckets[name]; bu != nil {
		return bu, nil
	}
	return nil, gofakes3.BucketNotFound(name)
}

type bucketFile struct {
	Created time.Time `json:"created"`
}

// load sweeps what an earlier process left unfinished and builds the index from the files.
func (b *backend) load(ctx context.Context) error {
	if err := os.RemoveAll(filepath.Join(b.dir, "tmp")); err != nil {
		return fmt.Errorf("sweep unfinished objects: %w", err)
	}
	for _, dir := range []string{"tmp", "uploads"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o700); err != nil {
			return err
		}
	}
	root := filepath.Join(b.dir, "buckets")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	names, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range names {
		if !e.IsDir() || gofakes3.ValidateBucketName(e.Name()) != nil {
			b.log.Warn("ignored what is not a bucket", "path", filepath.Join(root, e.Name()))
			continue
		}
		bu, err := b.loadBucket(ctx, e.Name())
		if err != nil {
			return fmt.Errorf("load bucket %s: %w", e.Name(), err)
		}
		b.buckets[bu.name] = bu
	}
	return b.loadUploads(ctx)
}

func (b *backend) loadBucket(ctx context.Context, name string) (*bucket, error) {
	bu := &bucket{name: name, dir: filepath.Join(b.dir, "buckets", name), objects: map[string]*object{}, stale: true}
	text, err := os.ReadFile(filepath.Join(bu.dir, "bucket.json"))
	var bf bucketFile
	if err == nil {
		err = json.Unmarshal(text, &bf)
	}
	if err != nil {
		st, serr := os.Stat(bu.dir)
		if serr != nil {
			return nil, serr
		}
		b.log.Warn("bucket without readable bucket.json", "bucket", name, "error", err)
		bf.Created = st.ModTime()
	}
	bu.created = bf.Created
	objects := filepath.Join(bu.dir, "objects")
	err = filepath.WalkDir(objects, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && path == objects {
				return fs.SkipAll
			}
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, o, err := openObjectFile(path)
		if err != nil {
			if errors.Is(err, errNotAnObject) {
				b.log.Warn("ignored a file that is no whole object", "path", path, "error", err)
				return nil
			}
			return err
		}
		_ = f.Close()
		if objectPath(bu.dir, o.Key) != path {
			b.log.Warn("ignored an object under another's name", "path", path)
			return nil
		}
		bu.objects[o.Key] = o
		b.used.Add(o.size)
		return nil
	})
	return bu, err
}

func (b *backend) ListBuckets(context.Context) ([]gofakes3.BucketInfo, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make([]gofakes3.BucketInfo, 0, len(b.buckets))
	for _, bu := range b.buckets {
		out = append(out, gofakes3.BucketInfo{Name: bu.name, CreationDate: gofakes3.NewContentTime(bu.created)})
	}
	return out, nil
}

func (b *backend) BucketExists(_ context.Context, name string) (bool, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.buckets[name] != nil, nil
}

func (b *backend) CreateBucket(ctx context.Context, name string) error {
	if err := gofakes3.ValidateBucketName(name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buckets[name] != nil {
		return gofakes3.ResourceError(gofakes3.ErrBucketAlreadyExists, name)
	}
	if len(b.buckets) >= maxBuckets {
		return gofakes3.ErrTooManyBuckets
	}
	bu := &bucket{name: name, dir: filepath.Join(b.dir, "buckets", name), created: time.Now().UTC(), objects: map[string]*object{}}
	if err := os.MkdirAll(filepath.Join(bu.dir, "objects"), 0o700); err != nil {
		return storageError(ctx, err)
	}
	text, err := json.Marshal(bucketFile{Created: bu.created})
	if err != nil {
		return err
	}
	if err := writeFileAtomic(filepath.Join(bu.dir, "bucket.json"), text, 0o600); err != nil {
		_ = os.RemoveAll(bu.dir)
		return storageError(ctx, err)
	}
	b.buckets[name] = bu
	return nil
}

func (b *backend) DeleteBucket(ctx context.Context, name string) error {
	if err := b.deleteBucket(ctx, name); err != nil {
		return err
	}
	b.abortUploads(ctx, func(u *upload) bool { return u.bucket == name })
	return nil
}

func (b *backend) deleteBucket(ctx context.Context, name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	bu := b.buckets[name]
	if bu == nil {
		return gofakes3.BucketNotFound(name)
	}
	bu.mu.Lock()
	defer bu.mu.Unlock()
	if len(bu.objects) > 0 {
		return gofakes3.ResourceError(gofakes3.ErrBucketNotEmpty, name)
	}
	// Out of the way by one rename first: a crash half-way through removing must not leave half a bucket.
	trash, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), "bucket-")
	if err != nil {
		return storageError(ctx, err)
	}
	if err := os.Rename(bu.dir, filepath.Join(trash, name)); err != nil {
		return storageError(ctx, err)
	}
	bu.gone = true
	delete(b.buckets, name)
	if err := os.RemoveAll(trash); err != nil {
		b.log.Warn("remains of a deleted bucket stay until the next start", "bucket", name, "error", err)
	}
	return nil
}

// writeFileAtomic replaces the file at path with data, with the given mode, or leaves it as it was.
func writeFileAtomic(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(data))
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
