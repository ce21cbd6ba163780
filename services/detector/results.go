package detector

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// metaStamps is the metadata that holds when the stages of a result's clip
// were passed, for who has to complete what its detector could not.
const metaStamps = "transferlab-stamps"

// errUnreadable says that a result is there that nobody can use.
var errUnreadable = errors.New("the stored result is unreadable")

// result is a clip's result as it is stored.
type result struct {
	schemas.Detections
	stamps schemas.ClipStamps // zero for those of edges
}

// results is the bucket of results.
type results struct {
	store  *objectstore.Store
	client *http.Client
	bucket string
}

// How long one request about a result may take.
const tryPatience = 10 * time.Second

func resultKey(clip string) string { return clip + ".json" }
func frameKey(clip string) string  { return clip + ".jpg" }

// read returns a clip's result, or nil if there is none.
func (r *results) read(ctx context.Context, clip string) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, tryPatience)
	defer cancel()
	req, err := r.store.NewGet(ctx, r.bucket, resultKey(clip), objectstore.Range{}, time.Now())
	if err != nil {
		return nil, fmt.Errorf("look for a result: %w", err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("look for a result: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusForbidden:
		// Who may not list a bucket is not told what is not in it. That there is no
		// result yet is made sure of when one is stored.
		_ = drop(resp)
		return nil, nil
	default:
		return nil, fmt.Errorf("look for a result: %w", objectstore.ReadError(resp))
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, schemas.MaxResultBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the result: %w", err)
	}
	found, err := parseResult(data, clip)
	if err != nil {
		return nil, err
	}
	// Without the stamps, which are another's word too, it is as good.
	_ = json.Unmarshal([]byte(resp.Header.Get("X-Amz-Meta-"+metaStamps)), &found.stamps)
	return found, nil
}

// parseResult reads what is stored as the result of a clip.
func parseResult(data []byte, clip string) (*result, error) {
	var r result
	if len(data) > schemas.MaxResultBytes {
		return nil, fmt.Errorf("%w: more than %d bytes", errUnreadable, schemas.MaxResultBytes)
	}
	if err := json.Unmarshal(data, &r.Detections); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	if r.Clip != clip {
		return nil, fmt.Errorf("%w: it is of clip %.64q", errUnreadable, r.Clip)
	}
	return &r, nil
}

// encode is the object of a result, within the bounds of what others take.
func (r *result) encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(&r.Detections)
	if err != nil {
		return nil, fmt.Errorf("encode the result: %w", err)
	}
	if len(data) > schemas.MaxResultBytes {
		return nil, fmt.Errorf("the result has %d bytes, at most %d are stored", len(data), schemas.MaxResultBytes)
	}
	return data, nil
}

// put stores a result unless there is one, and returns the one that is there
// then.
func (r *results) put(ctx context.Context, mine *result) (*result, error) {
	data, err := mine.encode()
	if err != nil {
		return nil, err
	}
	mine.stamps.Stored = time.Now()
	stamps, err := json.Marshal(mine.stamps)
	if err != nil {
		return nil, fmt.Errorf("encode stamps: %w", err)
	}
	stored, err := r.putOnce(ctx, resultKey(mine.Clip), data, http.Header{
		"Content-Type": {"application/json"}, "X-Amz-Meta-" + metaStamps: {string(stamps)},
	})
	if err != nil {
		return nil, err
	}
	if stored {
		mine.stamps.Stored = time.Now()
		return mine, nil
	}
	theirs, err := r.read(ctx, mine.Clip)
	if err == nil && theirs == nil {
		err = fmt.Errorf("a result that was there a moment ago is gone: %s", mine.Clip)
	}
	return theirs, err
}

// putOnce reports whether it has stored an object: false if there was one.
func (r *results) putOnce(ctx context.Context, key string, data []byte, header http.Header) (stored bool, err error) {
	err = patiently(ctx, func() (err error) {
		stored, err = r.putIfAbsent(ctx, key, data, header)
		return err
	})
	return stored, err
}

func (r *results) putIfAbsent(ctx context.Context, key string, data []byte, header http.Header) (stored bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryPatience)
	defer cancel()
	sum := objectstore.EncodeCRC64(objectstore.UpdateCRC64(0, data))
	header = header.Clone()
	header.Set("If-None-Match", "*")
	header.Set("X-Amz-Checksum-Crc64nvme", sum)
	header.Set("X-Amz-Meta-"+objectstore.MetaChecksum, sum)
	req, err := r.store.NewPut(ctx, r.bucket, key, bytes.NewReader(data), int64(len(data)), header, time.Now())
	if err != nil {
		return false, fmt.Errorf("store %s: %w", key, err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return false, fmt.Errorf("store %s: %w", key, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		// Only what is answered in full is stored: all else is asked again.
		if err := drop(resp); err != nil {
			return false, fmt.Errorf("store %s: %w", key, err)
		}
		if resp.Header.Get("ETag") == "" {
			return false, fmt.Errorf("store %s: who answers is no object store: no entity tag: %w", key, io.ErrUnexpectedEOF)
		}
		return true, nil
	case http.StatusPreconditionFailed:
		_ = drop(resp)
		return false, nil
	}
	return false, fmt.Errorf("store %s: %w", key, objectstore.ReadError(resp))
}

// drop reads a response to its end, so that its connection can be used again.
func drop(resp *http.Response) error {
	_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return errors.Join(err, resp.Body.Close())
}
