package objectstore

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// MinPartBytes is the least size of all parts of a multipart upload but the last.
const MinPartBytes = minPartBytes

// What an upload may come to, wrapped by the errors of Put and of the functions below.
var (
	ErrExists   = errors.New("the object is there already")
	ErrNoUpload = errors.New("no such multipart upload")
	ErrNoObject = errors.New("no such object")
)

// explain adds what a caller can act upon. The status alone will do where there is no more: a HEAD's answer has no body,
// and that of a refused upload may be lost when the connection is closed with the upload unsent.
func explain(err error) error {
	if err == nil {
		return nil
	}
	code := ""
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	status := statusOf(err)
	switch {
	// Of two conditional writes at a time S3 lets one win, and says so to the other.
	case status == http.StatusPreconditionFailed, code == "PreconditionFailed", code == "ConditionalRequestConflict":
		return fmt.Errorf("%w: %w", ErrExists, err)
	case code == "NoSuchUpload":
		return fmt.Errorf("%w: %w", ErrNoUpload, err)
	case code == "NoSuchKey", status == http.StatusNotFound && code == "NotFound":
		return fmt.Errorf("%w: %w", ErrNoObject, err)
	}
	return err
}

// Part is a part of a multipart upload that the store has.
type Part struct {
	Number int
	ETag   string // without quotes
	Size   int64
}

// BeginUpload begins a multipart upload whose parts come from elsewhere, by PresignPart.
func (s *Store) BeginUpload(ctx context.Context, bucket, key, contentType string, metadata map[string]string) (upload string, err error) {
	name := s.Bucket(bucket)
	out, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &name, Key: &key, ContentType: optional(contentType), Metadata: metadata,
	})
	if err != nil {
		return "", fmt.Errorf("begin upload of %s/%s: %w", name, key, err)
	}
	return aws.ToString(out.UploadId), nil
}

// Parts lists what the store has of a multipart upload, by number. The error wraps ErrNoUpload if it knows none such.
func (s *Store) Parts(ctx context.Context, bucket, key, upload string) ([]Part, error) {
	name := s.Bucket(bucket)
	in := &s3.ListPartsInput{Bucket: &name, Key: &key, UploadId: &upload}
	var parts []Part
	for {
		out, err := s.client.ListParts(ctx, in)
		if err != nil {
			return nil, fmt.Errorf("list parts of %s/%s: %w", name, key, explain(err))
		}
		for _, p := range out.Parts {
			parts = append(parts, Part{Number: int(aws.ToInt32(p.PartNumber)), ETag: unquote(aws.ToString(p.ETag)), Size: aws.ToInt64(p.Size)})
		}
		if !aws.ToBool(out.IsTruncated) || out.NextPartNumberMarker == nil || len(parts) >= maxParts {
			return parts, nil
		}
		in.PartNumberMarker = out.NextPartNumberMarker
	}
}

func unquote(etag string) string {
	if len(etag) >= 2 && etag[0] == '"' && etag[len(etag)-1] == '"' {
		return etag[1 : len(etag)-1]
	}
	return etag
}

// CompleteUpload makes an object of parts, in their order. The error wraps ErrNoUpload if the store knows no such upload,
// which it also says of one that was completed long ago, and ErrExists if ifAbsent is set and the object is there.
func (s *Store) CompleteUpload(ctx context.Context, bucket, key, upload string, parts []Part, ifAbsent bool) error {
	name := s.Bucket(bucket)
	done := make([]types.CompletedPart, len(parts))
	for i, p := range parts {
		done[i] = types.CompletedPart{PartNumber: aws.Int32(int32(p.Number)), ETag: aws.String(`"` + p.ETag + `"`)}
	}
	_, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &name, Key: &key, UploadId: &upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: done}, IfNoneMatch: ifNone(ifAbsent),
	})
	if err != nil {
		return fmt.Errorf("complete upload of %s/%s: %w", name, key, explain(err))
	}
	return nil
}

// AbortUpload drops a multipart upload and its parts; one that does not exist is no error.
func (s *Store) AbortUpload(ctx context.Context, bucket, key, upload string) error {
	name := s.Bucket(bucket)
	_, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &name, Key: &key, UploadId: &upload})
	if err = explain(err); err != nil && !errors.Is(err, ErrNoUpload) {
		return fmt.Errorf("abort upload of %s/%s: %w", name, key, err)
	}
	return nil
}

// Get opens an object for reading. The error wraps ErrNoObject if there is none; the caller closes.
func (s *Store) Get(ctx context.Context, bucket, key string) (io.ReadCloser, Object, error) {
	name := s.Bucket(bucket)
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &name, Key: &key})
	if err != nil {
		return nil, Object{}, fmt.Errorf("get %s/%s: %w", name, key, explain(err))
	}
	return out.Body, Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ETag: aws.ToString(out.ETag), Modified: aws.ToTime(out.LastModified), Metadata: out.Metadata,
	}, nil
}

// EncodeSHA256 is a SHA-256 as S3 writes it.
func EncodeSHA256(sum []byte) string { return base64.StdEncoding.EncodeToString(sum) }
