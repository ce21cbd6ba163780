package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/internal/objectstore/s3test"
)

const bucket = "conformance"

// client is what the conformance suite needs of a client library.
type client interface {
	put(ctx context.Context, key string, body []byte, meta map[string]string) error
	putIfAbsent(ctx context.Context, key string, body []byte) error
	// putStream sends a body of known size that cannot be read twice.
	putStream(ctx context.Context, key string, body io.Reader, size int64) error
	get(ctx context.Context, key string, first, last int64) ([]byte, error) // last < 0: to the end; first < 0: the last -first bytes
	head(ctx context.Context, key string) (size int64, etag string, meta map[string]string, err error)
	list(ctx context.Context, prefix, delimiter string, page int) (keys, prefixes []string, err error)
	remove(ctx context.Context, key string) error
	removeAll(ctx context.Context, keys []string) error
	copy(ctx context.Context, from, to string) error
	begin(ctx context.Context, key string) (id string, err error)
	part(ctx context.Context, key, id string, number int, body []byte) (etag string, err error)
	parts(ctx context.Context, key, id string) ([]int, error)
	complete(ctx context.Context, key, id string, etags map[int]string) (etag string, err error)
	abort(ctx context.Context, key, id string) error
	presign(ctx context.Context, key string, expires time.Duration) (string, error)
	code(err error) string // S3 error code; "" if err is none
}

func clients(t *testing.T, srv *embedded.Server) map[string]client {
	t.Helper()
	st := s3test.Open(t, srv, bucket)
	c := srv.Credentials()
	mc, err := minio.New(srv.Addr(), &minio.Options{Creds: credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""), Region: srv.Region()})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]client{"sdk": sdkClient{st.Client()}, "minio": minioClient{&minio.Core{Client: mc}}}
}

type sdkClient struct{ *s3.Client }

func (c sdkClient) put(ctx context.Context, key string, body []byte, meta map[string]string) error {
	_, err := c.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String(bucket), Key: &key, Body: bytes.NewReader(body), Metadata: meta,
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
	})
	return err
}

func (c sdkClient) putIfAbsent(ctx context.Context, key string, body []byte) error {
	_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: &key, Body: bytes.NewReader(body), IfNoneMatch: aws.String("*")})
	return err
}

func (c sdkClient) putStream(ctx context.Context, key string, body io.Reader, size int64) error {
	p := s3.NewPresignClient(c.Client)
	req, err := p.PresignPutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: &key})
	if err != nil {
		return err
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPut, req.URL, body)
	if err != nil {
		return err
	}
	hr.ContentLength = size
	resp, err := http.DefaultClient.Do(hr)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return objectstore.ReadError(resp)
	}
	return nil
}

func (c sdkClient) get(ctx context.Context, key string, first, last int64) ([]byte, error) {
	in := &s3.GetObjectInput{Bucket: aws.String(bucket), Key: &key, ChecksumMode: types.ChecksumModeEnabled}
	switch {
	case first < 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d", first))
	case last >= 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", first, last))
	case first > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", first))
	}
	out, err := c.GetObject(ctx, in)
	if err != nil {
		return nil, err
	}
	defer out.Body.Close()
	return io.ReadAll(out.Body)
}

func (c sdkClient) head(ctx context.Context, key string) (int64, string, map[string]string, error) {
	out, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: &key})
	if err != nil {
		return 0, "", nil, err
	}
	return aws.ToInt64(out.ContentLength), strings.Trim(aws.ToString(out.ETag), `"`), out.Metadata, nil
}

func (c sdkClient) list(ctx context.Context, prefix, delimiter string, page int) (keys, prefixes []string, err error) {
	in := &s3.ListObjectsV2Input{Bucket: aws.String(bucket), Prefix: &prefix, MaxKeys: aws.Int32(int32(page))}
	if delimiter != "" {
		in.Delimiter = &delimiter
	}
	for p := s3.NewListObjectsV2Paginator(c, in); p.HasMorePages(); {
		out, err := p.NextPage(ctx)
		if err != nil {
			return nil, nil, err
		}
		if n := len(out.Contents) + len(out.CommonPrefixes); n > page || n != int(aws.ToInt32(out.KeyCount)) {
			return nil, nil, fmt.Errorf("page of %d, at most %d wanted, KeyCount %d", n, page, aws.ToInt32(out.KeyCount))
		}
		for _, o := range out.Contents {
			keys = append(keys, *o.Key)
		}
		for _, p := range out.CommonPrefixes {
			prefixes = append(prefixes, *p.Prefix)
		}
	}
	return keys, prefixes, nil
}

func (c sdkClient) remove(ctx context.Context, key string) error {
	_, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: &key})
	return err
}

func (c sdkClient) removeAll(ctx context.Context, keys []string) error {
	var ids []types.ObjectIdentifier
	for _, k := range keys {
		ids = append(ids, types.ObjectIdentifier{Key: aws.String(k)})
	}
	out, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: aws.String(bucket), Delete: &types.Delete{Objects: ids}})
	if err == nil && len(out.Deleted) != len(keys) {
		return fmt.Errorf("%d of %d deleted", len(out.Deleted), len(keys))
	}
	return err
}

func (c sdkClient) copy(ctx context.Context, from, to string) error {
	_, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String(bucket), Key: &to, CopySource: aws.String(bucket + "/" + url.PathEscape(from))})
	return err
}

func (c sdkClient) begin(ctx context.Context, key string) (string, error) {
	out, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String(bucket), Key: &key})
	if err != nil {
		return "", err
	}
	return *out.UploadId, nil
}

func (c sdkClient) part(ctx context.Context, key, id string, number int, body []byte) (string, error) {
	out, err := c.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: aws.String(bucket), Key: &key, UploadId: &id, PartNumber: aws.Int32(int32(number)), Body: bytes.NewReader(body),
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
	})
	if err != nil {
		return "", err
	}
	return *out.ETag, nil
}

func (c sdkClient) parts(ctx context.Context, key, id string) (numbers []int, err error) {
	in := &s3.ListPartsInput{Bucket: aws.String(bucket), Key: &key, UploadId: &id, MaxParts: aws.Int32(2)}
	for p := s3.NewListPartsPaginator(c, in); p.HasMorePages(); {
		out, err := p.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range out.Parts {
			numbers = append(numbers, int(*p.PartNumber))
		}
	}
	return numbers, nil
}

func (c sdkClient) complete(ctx context.Context, key, id string, etags map[int]string) (string, error) {
	var parts []types.CompletedPart
	for _, n := range sortedKeys(etags) {
		parts = append(parts, types.CompletedPart{PartNumber: aws.Int32(int32(n)), ETag: aws.String(etags[n])})
	}
	out, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: aws.String(bucket), Key: &key, UploadId: &id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil {
		return "", err
	}
	return strings.Trim(*out.ETag, `"`), nil
}

func (c sdkClient) abort(ctx context.Context, key, id string) error {
	_, err := c.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: aws.String(bucket), Key: &key, UploadId: &id})
	return err
}

func (c sdkClient) presign(ctx context.Context, key string, expires time.Duration) (string, error) {
	req, err := s3.NewPresignClient(c.Client).PresignGetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: &key}, s3.WithPresignExpires(expires))
	if err != nil {
		return "", err
	}
	return req.URL, nil
}

func (c sdkClient) code(err error) string {
	var api smithy.APIError
	var resp *objectstore.ResponseError
	switch {
	case errors.As(err, &api):
		return api.ErrorCode()
	case errors.As(err, &resp):
		return resp.Code
	}
	return ""
}

type minioClient struct{ *minio.Core }

func (c minioClient) put(ctx context.Context, key string, body []byte, meta map[string]string) error {
	_, err := c.Client.PutObject(ctx, bucket, key, bytes.NewReader(body), int64(len(body)), minio.PutObjectOptions{UserMetadata: meta})
	return err
}

func (c minioClient) putIfAbsent(ctx context.Context, key string, body []byte) error {
	var o minio.PutObjectOptions
	o.SetMatchETagExcept("*")
	_, err := c.Client.PutObject(ctx, bucket, key, bytes.NewReader(body), int64(len(body)), o)
	return err
}

func (c minioClient) putStream(ctx context.Context, key string, body io.Reader, size int64) error {
	_, err := c.Client.PutObject(ctx, bucket, key, body, size, minio.PutObjectOptions{PartSize: 5 << 20, NumThreads: 2})
	return err
}

func (c minioClient) get(ctx context.Context, key string, first, last int64) ([]byte, error) {
	o := minio.GetObjectOptions{Checksum: true}
	if first < 0 {
		o.Set("Range", fmt.Sprintf("bytes=%d", first))
	} else if last >= 0 {
		o.Set("Range", fmt.Sprintf("bytes=%d-%d", first, last))
	} else if first > 0 {
		o.Set("Range", fmt.Sprintf("bytes=%d-", first))
	}
	r, _, _, err := c.Core.GetObject(ctx, bucket, key, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func (c minioClient) head(ctx context.Context, key string) (int64, string, map[string]string, error) {
	o, err := c.Client.StatObject(ctx, bucket, key, minio.StatObjectOptions{})
	meta := map[string]string{}
	for k, v := range o.UserMetadata {
		meta[strings.ToLower(k)] = v
	}
	return o.Size, o.ETag, meta, err
}

func (c minioClient) list(_ context.Context, prefix, delimiter string, page int) (keys, prefixes []string, err error) {
	token := ""
	for {
		out, err := c.Core.ListObjectsV2(bucket, prefix, "", token, delimiter, page)
		if err != nil {
			return nil, nil, err
		}
		for _, o := range out.Contents {
			keys = append(keys, o.Key)
		}
		for _, p := range out.CommonPrefixes {
			prefixes = append(prefixes, p.Prefix)
		}
		if token = out.NextContinuationToken; !out.IsTruncated {
			return keys, prefixes, nil
		}
	}
}

func (c minioClient) remove(ctx context.Context, key string) error {
	return c.Client.RemoveObject(ctx, bucket, key, minio.RemoveObjectOptions{})
}

func (c minioClient) removeAll(ctx context.Context, keys []string) error {
	in := make(chan minio.ObjectInfo, len(keys))
	for _, k := range keys {
		in <- minio.ObjectInfo{Key: k}
	}
	close(in)
	for e := range c.Client.RemoveObjects(ctx, bucket, in, minio.RemoveObjectsOptions{}) {
		return e.Err
	}
	return nil
}

func (c minioClient) copy(ctx context.Context, from, to string) error {
	_, err := c.Client.CopyObject(ctx, minio.CopyDestOptions{Bucket: bucket, Object: to}, minio.CopySrcOptions{Bucket: bucket, Object: from})
	return err
}

func (c minioClient) begin(ctx context.Context, key string) (string, error) {
	return c.Core.NewMultipartUpload(ctx, bucket, key, minio.PutObjectOptions{})
}

func (c minioClient) part(ctx context.Context, key, id string, number int, body []byte) (string, error) {
	p, err := c.Core.PutObjectPart(ctx, bucket, key, id, number, bytes.NewReader(body), int64(len(body)), minio.PutObjectPartOptions{})
	return p.ETag, err
}

func (c minioClient) parts(ctx context.Context, key, id string) (numbers []int, err error) {
	marker := 0
	for {
		out, err := c.Core.ListObjectParts(ctx, bucket, key, id, marker, 2)
		if err != nil {
			return nil, err
		}
		for _, p := range out.ObjectParts {
			numbers = append(numbers, p.PartNumber)
		}
		if marker = out.NextPartNumberMarker; !out.IsTruncated {
			return numbers, nil
		}
	}
}

func (c minioClient) complete(ctx context.Context, key, id string, etags map[int]string) (string, error) {
	var parts []minio.CompletePart
	for _, n := range sortedKeys(etags) {
		parts = append(parts, minio.CompletePart{PartNumber: n, ETag: etags[n]})
	}
	out, err := c.Core.CompleteMultipartUpload(ctx, bucket, key, id, parts, minio.PutObjectOptions{})
	return out.ETag, err
}

func (c minioClient) abort(ctx context.Context, key, id string) error {
	return c.Core.AbortMultipartUpload(ctx, bucket, key, id)
}

func (c minioClient) presign(ctx context.Context, key string, expires time.Duration) (string, error) {
	u, err := c.Client.PresignedGetObject(ctx, bucket, key, expires, nil)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

func (c minioClient) code(err error) string { return minio.ToErrorResponse(err).Code }

func sortedKeys(m map[int]string) []int {
	var out []int
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func content(seed uint64, size int64) []byte {
	b, err := io.ReadAll(objectstore.NewContent(seed, size))
	if err != nil {
		panic(err)
	}
	return b
}

// TestConformance runs one suite through two client libraries that share no code.
func TestConformance(t *testing.T) {
	srv := s3test.Start(t)
	for name, c := range clients(t, srv) {
		t.Run(name, func(t *testing.T) {
			for _, test := range []struct {
				name string
				run  func(*testing.T, client)
			}{
				{"objects", testObjects},
				{"ranges", testRanges},
				{"keys", testKeys},
				{"listing", testListing},
				{"delete", testDelete},
				{"copy", testCopy},
				{"conditions", testConditions},
				{"streaming", testStreaming},
				{"multipart", testMultipart},
				{"multipart refused", testMultipartRefused},
				{"concurrent puts", testConcurrentPuts},
				{"presigned", testPresigned},
			} {
				t.Run(test.name, func(t *testing.T) {
					test.run(t, c)
					keys, _, err := c.list(t.Context(), "", "", 1000)
					if err != nil {
						t.Fatal(err)
					}
					if len(keys) > 0 {
						if err := c.removeAll(t.Context(), keys); err != nil {
							t.Fatal(err)
						}
					}
				})
			}
		})
	}
}

func mustPut(t *testing.T, c client, key string, body []byte) {
	t.Helper()
	if err := c.put(t.Context(), key, body, nil); err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
}

func mustHave(t *testing.T, c client, key string, want []byte) {
	t.Helper()
	got, err := c.get(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("get %q: %d bytes that are not the %d put", key, len(got), len(want))
	}
}

func wantCode(t *testing.T, c client, err error, codes ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", codes)
	}
	if !slices.Contains(codes, c.code(err)) {
		t.Fatalf("code %q, want %q: %v", c.code(err), codes, err)
	}
}

func testObjects(t *testing.T, c client) {
	for _, size := range []int64{0, 1, 511, 512, 513, 4096, 1 << 20, 6<<20 + 1} {
		body := content(uint64(size), size)
		meta := map[string]string{"colour": "blue", "size": fmt.Sprint(size)}
		if err := c.put(t.Context(), "object", body, meta); err != nil {
			t.Fatal(err)
		}
		mustHave(t, c, "object", body)
		n, etag, got, err := c.head(t.Context(), "object")
		if err != nil {
			t.Fatal(err)
		}
		if n != size || len(etag) != 32 || got["colour"] != "blue" || got["size"] != meta["size"] {
			t.Errorf("size %d: head says %d bytes, ETag %q, metadata %v", size, n, etag, got)
		}
	}
	_, err := c.get(t.Context(), "missing", 0, -1)
	wantCode(t, c, err, "NoSuchKey")
	_, _, _, err = c.head(t.Context(), "missing")
	wantCode(t, c, err, "NotFound", "NoSuchKey")
}

func testRanges(t *testing.T, c client) {
	body := content(3, 10_000)
	mustPut(t, c, "ranged", body)
	for _, r := range []struct{ first, last, from, to int64 }{
		{0, 0, 0, 1},
		{0, 99, 0, 100},
		{5000, 5999, 5000, 6000},
		{9999, 9999, 9999, 10_000},
		{9000, 99_999, 9000, 10_000},
		{9990, -1, 9990, 10_000},
		{-10, 0, 9990, 10_000},
		{-20_000, 0, 0, 10_000},
	} {
		got, err := c.get(t.Context(), "ranged", r.first, r.last)
		if err != nil {
			t.Errorf("range %d-%d: %v", r.first, r.last, err)
		} else if !bytes.Equal(got, body[r.from:r.to]) {
			t.Errorf("range %d-%d: %d bytes, want those of %d to %d", r.first, r.last, len(got), r.from, r.to)
		}
	}
	_, err := c.get(t.Context(), "ranged", 10_000, 10_001)
	wantCode(t, c, err, "InvalidRange")
	mustPut(t, c, "empty", nil)
	_, err = c.get(t.Context(), "empty", -5, 0)
	wantCode(t, c, err, "InvalidRange")
}

// hostileKeys have no business with a file system.
func hostileKeys() []string {
	return []string{
		"../outside", "../../etc/passwd", "a/../../b", "/absolute", "//double", "trailing/", "trailing//", ".", "..", "./x",
		"a", "a/b", "a/b/c", "A", "ä", "a\u0308", "日本語/キー", "🙂", "with space", "plus+and%percent", "query?x=y&z#frag", "back\\slash",
		"quote\"'<>&;", "tab\tnewline\n", "CON", "nul.txt", "~", "-rf", "$(id)", "con:stream", strings.Repeat("l", 256),
		strings.Repeat("x", 1024), strings.Repeat("deep/", 200), "bucket.json", "objects", "é", "e\u0301", "\u007f", "0", "%2e%2e%2f",
	}
}

func testKeys(t *testing.T, c client) {
	keys := hostileKeys()
	var stored []string
	for _, k := range keys {
		err := c.put(t.Context(), k, []byte("content of "+k), nil)
		switch {
		case err == nil:
			stored = append(stored, k)
		case c.code(err) == "":
			t.Logf("the client library refuses %q: %v", k, err)
		default:
			t.Errorf("put %q: %v", k, err)
		}
	}
	for _, k := range stored {
		if got, err := c.get(t.Context(), k, 0, -1); err != nil || string(got) != "content of "+k {
			t.Errorf("get %q: %q %v", k, got, err)
		}
	}
	listed, _, err := c.list(t.Context(), "", "", 7)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(stored)
	if !slices.Equal(listed, stored) {
		t.Errorf("listed %q\nstored %q", listed, stored)
	}
	// One of the libraries does not even send it.
	wantCode(t, c, c.put(t.Context(), strings.Repeat("x", 1025), nil, nil), "KeyTooLongError", "")
}

func testListing(t *testing.T, c client) {
	var all []string
	for i := range 25 {
		all = append(all, fmt.Sprintf("dir%d/file%02d", i%3, i))
	}
	all = append(all, "top", "dir1/sub/x", "dir1/sub/y", "dir1", "dir10/z", "/leading/slash")
	for _, k := range all {
		mustPut(t, c, k, []byte(k))
	}
	slices.Sort(all)
	for _, page := range []int{1, 2, 3, 7, 1000} {
		keys, prefixes, err := c.list(t.Context(), "", "", page)
		if err != nil || !slices.Equal(keys, all) || prefixes != nil {
			t.Errorf("page %d: %v, %q %q", page, err, keys, prefixes)
		}
		keys, prefixes, err = c.list(t.Context(), "", "/", page)
		if err != nil || !slices.Equal(keys, []string{"dir1", "top"}) || !slices.Equal(prefixes, []string{"/", "dir0/", "dir1/", "dir10/", "dir2/"}) {
			t.Errorf("page %d, delimiter: %v, %q %q", page, err, keys, prefixes)
		}
		keys, prefixes, err = c.list(t.Context(), "dir1/", "/", page)
		if err != nil || len(keys) != 8 || !slices.Equal(prefixes, []string{"dir1/sub/"}) {
			t.Errorf("page %d, prefix and delimiter: %v, %q %q", page, err, keys, prefixes)
		}
		keys, _, err = c.list(t.Context(), "dir1", "", page)
		if err != nil || len(keys) != 12 {
			t.Errorf("page %d, prefix: %v, %q", page, err, keys)
		}
		keys, prefixes, err = c.list(t.Context(), "none", "/", page)
		if err != nil || keys != nil || prefixes != nil {
			t.Errorf("page %d, prefix of nothing: %v, %q %q", page, err, keys, prefixes)
		}
	}
}

func testDelete(t *testing.T, c client) {
	var keys []string
	for i := range 20 {
		keys = append(keys, fmt.Sprint("delete/", i))
		mustPut(t, c, keys[i], []byte("x"))
	}
	if err := c.remove(t.Context(), keys[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.remove(t.Context(), keys[0]); err != nil {
		t.Errorf("delete twice: %v", err)
	}
	_, err := c.get(t.Context(), keys[0], 0, -1)
	wantCode(t, c, err, "NoSuchKey")
	if err := c.removeAll(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
	left, _, err := c.list(t.Context(), "delete/", "", 1000)
	if err != nil || len(left) != 0 {
		t.Errorf("%q left, %v", left, err)
	}
}

func testCopy(t *testing.T, c client) {
	body := content(9, 3<<20)
	if err := c.put(t.Context(), "from here", body, map[string]string{"tag": "kept"}); err != nil {
		t.Fatal(err)
	}
	if err := c.copy(t.Context(), "from here", "to/there"); err != nil {
		t.Fatal(err)
	}
	mustHave(t, c, "to/there", body)
	_, _, meta, err := c.head(t.Context(), "to/there")
	if err != nil || meta["tag"] != "kept" {
		t.Errorf("metadata of the copy: %v %v", meta, err)
	}
	wantCode(t, c, c.copy(t.Context(), "missing", "x"), "NoSuchKey")
}

func testConditions(t *testing.T, c client) {
	if err := c.putIfAbsent(t.Context(), "once", []byte("first")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, c, c.putIfAbsent(t.Context(), "once", []byte("second")), "PreconditionFailed")
	mustHave(t, c, "once", []byte("first"))

	var wg sync.WaitGroup
	won := make(chan int, 16)
	for i := range cap(won) {
		wg.Go(func() {
			if err := c.putIfAbsent(t.Context(), "race", fmt.Append(nil, i)); err == nil {
				won <- i
			} else if c.code(err) != "PreconditionFailed" {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(won)
	winner, more := <-won, len(won)
	if more != 0 {
		t.Errorf("%d writers won the race for a key that must not exist", more+1)
	}
	mustHave(t, c, "race", fmt.Append(nil, winner))
}

func testStreaming(t *testing.T, c client) {
	const size = 12<<20 + 345
	body := content(11, size)
	if err := c.putStream(t.Context(), "stream", onlyReader{bytes.NewReader(body)}, size); err != nil {
		t.Fatal(err)
	}
	mustHave(t, c, "stream", body)
}

type onlyReader struct{ io.Reader }

func testMultipart(t *testing.T, c client) {
	ctx := t.Context()
	const key = "multi/part"
	id, err := c.begin(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	bodies := map[int][]byte{1: content(1, 5<<20), 2: content(2, 5<<20+1), 7: content(7, 100)}
	etags := map[int]string{}
	if _, err := c.part(ctx, key, id, 2, content(99, 6<<20)); err != nil { // replaced below
		t.Fatal(err)
	}
	for n, b := range bodies {
		if etags[n], err = c.part(ctx, key, id, n, b); err != nil {
			t.Fatal(err)
		}
	}
	numbers, err := c.parts(ctx, key, id)
	if err != nil || !slices.Equal(numbers, []int{1, 2, 7}) {
		t.Errorf("parts %v, %v", numbers, err)
	}
	_, err = c.get(ctx, key, 0, -1)
	wantCode(t, c, err, "NoSuchKey")
	etag, err := c.complete(ctx, key, id, etags)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(strings.Trim(etag, `"`), "-3") {
		t.Errorf("ETag %q, want one that ends in -3", etag)
	}
	mustHave(t, c, key, slices.Concat(bodies[1], bodies[2], bodies[7]))
	size, head, _, err := c.head(ctx, key)
	if err != nil || size != 10<<20+1+100 || head != strings.Trim(etag, `"`) {
		t.Errorf("head: %d bytes, ETag %q, %v", size, head, err)
	}
	got, err := c.get(ctx, key, 5<<20-10, 5<<20+9)
	if err != nil || !bytes.Equal(got, slices.Concat(bodies[1][5<<20-10:], bodies[2][:10])) {
		t.Errorf("range over the seam of two parts: %d bytes, %v", len(got), err)
	}
	if again, err := c.complete(ctx, key, id, etags); err != nil || again != etag {
		t.Errorf("complete again: %q %v, want the same answer", again, err)
	}
}

func testMultipartRefused(t *testing.T, c client) {
	ctx := t.Context()
	const key = "refused"
	id, err := c.begin(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.part(ctx, key, id, 1, content(1, 1000))
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.part(ctx, key, id, 2, content(2, 1000))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.complete(ctx, key, id, map[int]string{1: first, 2: second})
	wantCode(t, c, err, "EntityTooSmall")
	_, err = c.complete(ctx, key, id, map[int]string{1: second})
	wantCode(t, c, err, "InvalidPart")
	_, err = c.complete(ctx, key, id, map[int]string{3: first})
	wantCode(t, c, err, "InvalidPart")
	if err := c.abort(ctx, key, id); err != nil {
		t.Fatal(err)
	}
	_, err = c.part(ctx, key, id, 1, []byte("late"))
	wantCode(t, c, err, "NoSuchUpload")
	_, err = c.complete(ctx, key, id, map[int]string{1: first})
	wantCode(t, c, err, "NoSuchUpload")
	_, err = c.get(ctx, key, 0, -1)
	wantCode(t, c, err, "NoSuchKey")
}

func testConcurrentPuts(t *testing.T, c client) {
	const writers, size = 8, 300_000
	bodies := make([][]byte, writers)
	for i := range bodies {
		bodies[i] = content(uint64(i), size+int64(i))
	}
	mustPut(t, c, "contended", bodies[0])
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range 3 {
				if err := c.put(t.Context(), "contended", bodies[i], nil); err != nil {
					t.Error(err)
				}
				got, err := c.get(t.Context(), "contended", 0, -1)
				if err != nil {
					t.Error(err)
				} else if !slices.ContainsFunc(bodies, func(b []byte) bool { return bytes.Equal(b, got) }) {
					t.Errorf("%d bytes that nobody has put", len(got))
				}
			}
		})
	}
	wg.Wait()
}

func testPresigned(t *testing.T, c client) {
	const key = "dir/presigned ü+&"
	mustPut(t, c, key, []byte("shared"))
	u, err := c.presign(t.Context(), key, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		url    string
		status int
		want   string
	}{
		{u, 200, "shared"},
		{u + "0", 403, "SignatureDoesNotMatch"},
		{strings.Replace(u, "presigned", "other", 1), 403, "SignatureDoesNotMatch"},
		{strings.Replace(u, "X-Amz-Expires=60", "X-Amz-Expires=6000", 1), 403, "SignatureDoesNotMatch"},
		{u + "&tagging", 403, "SignatureDoesNotMatch"},
	} {
		resp, err := http.Get(test.url)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.status || !strings.Contains(string(text), test.want) {
			t.Errorf("%s: %d %q %v, want %d %q", test.url, resp.StatusCode, text, err, test.status, test.want)
		}
	}
}
