package objectstore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// EnsureBucket makes a bucket in the store's region unless the caller already has it.
func (s *Store) EnsureBucket(ctx context.Context, bucket string) error {
	name := s.Bucket(bucket)
	_, err := s.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &name})
	if err == nil {
		return nil
	}
	if statusOf(err) != http.StatusNotFound {
		return fmt.Errorf("look for bucket %s: %w", name, err)
	}
	in := &s3.CreateBucketInput{Bucket: &name}
	if s.region != defaultRegion {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(s.region)}
	}
	if _, err = s.client.CreateBucket(ctx, in); err == nil {
		return nil
	}
	// Somebody may have been faster; that it is ours to use the next HEAD tells.
	if _, head := s.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &name}); head == nil {
		return nil
	}
	return fmt.Errorf("create bucket %s: %w", name, err)
}

// DeleteBucket removes an empty bucket; one that does not exist is no error.
func (s *Store) DeleteBucket(ctx context.Context, bucket string) error {
	name := s.Bucket(bucket)
	_, err := s.client.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &name})
	if err != nil && statusOf(err) != http.StatusNotFound {
		return fmt.Errorf("delete bucket %s: %w", name, err)
	}
	return nil
}

func statusOf(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

// Object describes a stored object.
type Object struct {
	Key      string
	Size     int64
	ETag     string
	Modified time.Time
	Checksum *uint64           // CRC-64/NVME, from MetaChecksum or S3's own; only from Head, nil if the object has none
	SHA256   []byte            // of the whole, as the store has checked it; only from Head, nil if the object has none
	Metadata map[string]string // only from Head
}

// Head describes one object. The error wraps ErrNoObject if there is none.
func (s *Store) Head(ctx context.Context, bucket, key string) (Object, error) {
	name := s.Bucket(bucket)
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &name, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return Object{}, fmt.Errorf("head %s/%s: %w", name, key, explain(err))
	}
	o := Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ETag: aws.ToString(out.ETag), Modified: aws.ToTime(out.LastModified),
		Metadata: out.Metadata,
	}
	for _, text := range []string{out.Metadata[MetaChecksum], aws.ToString(out.ChecksumCRC64NVME)} {
		if sum, err := DecodeCRC64(text); err == nil {
			o.Checksum = &sum
			break
		}
	}
	// That of a multipart upload is a hash of the parts' hashes, and says so.
	if sum, err := base64.StdEncoding.DecodeString(aws.ToString(out.ChecksumSHA256)); err == nil && len(sum) == sha256.Size && out.ChecksumType != types.ChecksumTypeComposite {
		o.SHA256 = sum
	}
	return o, nil
}

// ListOptions bound List.
type ListOptions struct {
	Prefix string
	After  string // only keys greater than this
	Max    int    // at most so many; 0: 10,000
}

const defaultListMax = 10_000

// List returns objects in the order of their keys, and whether there are more.
func (s *Store) List(ctx context.Context, bucket string, opts ListOptions) (objects []Object, more bool, err error) {
	if opts.Max <= 0 {
		opts.Max = defaultListMax
	}
	name := s.Bucket(bucket)
	in := &s3.ListObjectsV2Input{Bucket: &name, Prefix: optional(opts.Prefix), StartAfter: optional(opts.After)}
	for {
		in.MaxKeys = aws.Int32(int32(min(1000, opts.Max-len(objects))))
		out, err := s.client.ListObjectsV2(ctx, in)
		if err != nil {
			return objects, false, fmt.Errorf("list %s/%s: %w", name, opts.Prefix, err)
		}
		for _, o := range out.Contents {
			objects = append(objects, Object{
				Key: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), ETag: aws.ToString(o.ETag), Modified: aws.ToTime(o.LastModified),
			})
		}
		if !aws.ToBool(out.IsTruncated) {
			return objects, false, nil
		}
		if len(objects) >= opts.Max {
			return objects, true, nil
		}
		if out.NextContinuationToken == nil {
			return objects, true, fmt.Errorf("list %s/%s: the store says there is more but not where", name, opts.Prefix)
		}
		in.ContinuationToken, in.StartAfter = out.NextContinuationToken, nil
	}
}

// Delete removes an object; one that does not exist is no error.
func (s *Store) Delete(ctx context.Context, bucket, key string) error {
	name := s.Bucket(bucket)
	if _, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &name, Key: &key}); err != nil {
		return fmt.Errorf("delete %s/%s: %w", name, key, err)
	}
	return nil
}

// DeletePrefix removes all objects below a prefix, which may be empty, and returns how many. On an error some may be gone.
func (s *Store) DeletePrefix(ctx context.Context, bucket, prefix string) (int, error) {
	name := s.Bucket(bucket)
	deleted := 0
	for {
		objects, more, err := s.List(ctx, bucket, ListOptions{Prefix: prefix, Max: 1000})
		if err != nil {
			return deleted, err
		}
		if len(objects) == 0 {
			return deleted, nil
		}
		ids := make([]types.ObjectIdentifier, len(objects))
		for i := range objects {
			ids[i].Key = &objects[i].Key
		}
		out, err := s.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &name, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)}})
		if err != nil {
			return deleted, fmt.Errorf("delete %s/%s*: %w", name, prefix, err)
		}
		deleted += len(objects) - len(out.Errors)
		if len(out.Errors) > 0 {
			e := out.Errors[0]
			return deleted, fmt.Errorf("delete %s/%s and %d more: %w", name, aws.ToString(e.Key), len(out.Errors)-1,
				&ResponseError{Status: http.StatusOK, Code: aws.ToString(e.Code), Message: aws.ToString(e.Message)})
		}
		if !more {
			return deleted, nil
		}
	}
}
