package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/rclone/gofakes3"
)

// Multipart uploads outlive the process: a client that resumes one, perhaps days after its link went down, finds the
// parts that it has sent, whatever the server went through meanwhile.

const (
	uploadFileName = "upload.json"
	unfinishedPart = ".part-"
)

var (
	uploadName   = regexp.MustCompile(`^[0-9a-z]{20,40}$`)
	partNameForm = regexp.MustCompile(`^([0-9]{5})-[0-9a-zA-Z]+$`)
)

// partName is the name of a part's file; unique tells it from others of the same number.
func partName(number int, unique string) string { return fmt.Sprintf("%05d-%s", number, unique) }

type uploadFile struct {
	Bucket    string            `json:"bucket"`
	Key       string            `json:"key"`
	Meta      map[string]string `json:"meta,omitempty"`
	Initiated time.Time         `json:"initiated"`
}

// beginUpload makes u's directory.
func (b *backend) beginUpload(u *upload) error {
	if err := os.Mkdir(u.dir, 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(uploadFile{Bucket: u.bucket, Key: u.key, Meta: u.meta, Initiated: u.initiated})
	if err == nil {
		path := filepath.Join(u.dir, uploadFileName)
		if b.sync {
			err = errors.Join(writeFileAtomic(path, text, 0o600), syncDir(filepath.Dir(u.dir)))
		} else {
			err = os.WriteFile(path, text, 0o600)
		}
	}
	if err != nil {
		_ = os.RemoveAll(u.dir)
	}
	return err
}

// loadUploads finds the uploads that earlier processes left open, and removes what is none or is too old.
func (b *backend) loadUploads(ctx context.Context) error {
	root := filepath.Join(b.dir, "uploads")
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(root, e.Name())
		u, err := b.loadUpload(path)
		if err == nil && len(b.uploads) < maxUploads {
			b.uploads[u.id] = u
			for _, p := range u.parts {
				b.used.Add(p.size)
			}
			continue
		}
		b.log.Info("removed what is left of an upload", "path", path, "reason", err)
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("sweep uploads: %w", err)
		}
	}
	return nil
}

func (b *backend) loadUpload(dir string) (*upload, error) {
	id := filepath.Base(dir)
	if !uploadName.MatchString(id) {
		return nil, errors.New("not the name of an upload")
	}
	text, err := os.ReadFile(filepath.Join(dir, uploadFileName))
	if err != nil {
		return nil, err
	}
	var f uploadFile
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("read %s: %w", uploadFileName, err)
	}
	switch {
	case b.buckets[f.Bucket] == nil:
		return nil, fmt.Errorf("no bucket %q", f.Bucket)
	case time.Since(f.Initiated) > b.uploadTTL:
		return nil, fmt.Errorf("begun %s", f.Initiated)
	}
	u := &upload{id: gofakes3.UploadID(id), bucket: f.Bucket, key: f.Key, dir: dir, meta: f.Meta, initiated: f.Initiated, parts: map[int]part{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == uploadFileName {
			continue
		}
		stale, err := u.loadPart(e.Name())
		if err != nil {
			b.log.Info("removed a part that is not whole", "upload", id, "part", e.Name(), "reason", err)
		}
		if stale != "" {
			if err := os.RemoveAll(stale); err != nil {
				return nil, err
			}
		}
	}
	return u, nil
}

// loadPart adds the part in a file, unless there is a newer one of its number. It returns the path that is of no more use.
func (u *upload) loadPart(name string) (stale string, err error) {
	path := filepath.Join(u.dir, name)
	form := partNameForm.FindStringSubmatch(name)
	if form == nil {
		return path, errors.New("not the name of a part")
	}
	number, err := strconv.Atoi(form[1])
	if err != nil || number < 1 {
		return path, errors.New("not the number of a part")
	}
	f, o, err := openObjectFile(path)
	if err != nil {
		return path, err
	}
	_ = f.Close()
	if o.Key != u.key {
		return path, errors.New("a part of another object")
	}
	p := part{path: path, size: o.size, md5: o.MD5, crc64: o.CRC64, modified: o.modified()}
	old, there := u.parts[number]
	if there && old.modified.After(p.modified) {
		return path, nil
	}
	u.parts[number] = p
	return old.path, nil
}

type restoredKey struct{}

// register tells gofakes3, which keeps a record of uploads of its own, of those that were loaded.
func (b *backend) register(ctx context.Context, s3 http.Handler) {
	for id, u := range b.uploads {
		r := (&http.Request{
			Method: http.MethodPost, URL: &url.URL{Path: "/" + u.bucket + "/" + u.key, RawQuery: "uploads"},
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody,
		}).WithContext(context.WithValue(ctx, restoredKey{}, id))
		w := &discardedAnswer{header: http.Header{}}
		s3.ServeHTTP(w, r)
		if w.status >= http.StatusBadRequest {
			b.log.Warn("an upload of an earlier process cannot go on", "bucket", u.bucket, "key", u.key, "status", w.status)
		}
	}
}

// discardedAnswer is an answer nobody waits for.
type discardedAnswer struct {
	header http.Header
	status int
}

func (d *discardedAnswer) Header() http.Header         { return d.header }
func (d *discardedAnswer) Write(p []byte) (int, error) { return len(p), nil }
func (d *discardedAnswer) WriteHeader(status int)      { d.status = status }
