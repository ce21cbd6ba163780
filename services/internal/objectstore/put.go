package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

// Sizes of multipart uploads.
const (
	minPartBytes     = 5 << 20
	defaultPartBytes = 64 << 20
	maxSinglePut     = 5 << 30 // S3's limit
	maxParts         = 10_000
	maxObjectBytes   = 5 << 40
)

// PutOptions refine Put. The zero value will do.
type PutOptions struct {
	// Checksum is the content's CRC-64/NVME if the caller knows it. What can be read twice is read twice to find it. If it is
	// known before the content is sent the store checks it, and the object carries it in its metadata (MetaChecksum).
	Checksum    *uint64
	ContentType string
	Metadata    map[string]string // x-amz-meta-…, without that prefix
	// PartBytes is the size of the parts of a multipart upload, used for objects that are larger; 0: 64 MiB parts, for
	// objects of more than 5 GiB only.
	PartBytes int64
	// Concurrency is how many parts are sent at a time if the content can be read at any offset; 0: 4.
	Concurrency int
	// IfAbsent refuses to replace an object; the error wraps ErrExists.
	IfAbsent bool
	// SHA256 of the content, if the caller knows it: 32 bytes. The store checks it of what it gets in one request, and
	// keeps it as the object's checksum.
	SHA256 []byte
}

// PutResult is what Put has stored.
type PutResult struct {
	ETag     string
	Checksum uint64 // CRC-64/NVME of what was sent
	Parts    int    // 0: in one request
}

// Put stores size bytes of r, from its position on, without ever holding more than a buffer of them. If r is also an
// io.ReaderAt and io.Seeker (*Content, *os.File) failed requests are retried and parts sent side by side; else it is read
// once and a failure is final. The error wraps ErrCorrupt if the store reports a checksum other than that of the bytes sent.
func (s *Store) Put(ctx context.Context, bucket, key string, r io.Reader, size int64, opts PutOptions) (PutResult, error) {
	fail := func(err error) (PutResult, error) { return PutResult{}, fmt.Errorf("put %s/%s: %w", bucket, key, err) }
	if size < 0 || size > maxObjectBytes {
		return fail(fmt.Errorf("size %d, must be 0 to 5 TiB", size))
	}
	src := source{r: r}
	if at, ok := r.(interface {
		io.ReaderAt
		io.Seeker
	}); ok {
		if pos, err := at.Seek(0, io.SeekCurrent); err == nil { // a pipe is an *os.File that cannot
			src.at, src.base = at, pos
		}
	}
	part := size
	limit := int64(maxSinglePut)
	if opts.PartBytes > 0 {
		limit = max(opts.PartBytes, minPartBytes)
	}
	if size > limit {
		part = partBytes(size, opts.PartBytes)
	}
	if src.at != nil {
		sum, err := src.readSums(size, part)
		if err != nil {
			return fail(err)
		}
		if opts.Checksum != nil && *opts.Checksum != sum {
			return fail(fmt.Errorf("%w: the content has checksum %s, not the given %s", ErrCorrupt, EncodeCRC64(sum), EncodeCRC64(*opts.Checksum)))
		}
		opts.Checksum = &sum
	}
	if opts.Checksum != nil {
		meta := maps.Clone(opts.Metadata)
		if meta == nil {
			meta = map[string]string{}
		}
		meta[MetaChecksum] = EncodeCRC64(*opts.Checksum)
		opts.Metadata = meta
	}
	var res PutResult
	var err error
	if part == size {
		res, err = s.putSingle(ctx, s.Bucket(bucket), key, src, size, opts)
	} else {
		res, err = s.putParts(ctx, s.Bucket(bucket), key, src, size, part, opts)
	}
	if err != nil {
		return fail(explain(err))
	}
	return res, nil
}

// source is where Put's bytes come from.
type source struct {
	r    io.Reader
	at   io.ReaderAt // nil if r can only be read once
	base int64       // position of the first byte in at
	sums []uint64    // of the parts; nil if r can only be read once
}

// summed is a body that knows its bytes' checksum.
type summed interface {
	io.Reader
	sum() (crc uint64, n int64)
}

// body is the n bytes at offset.
func (s source) body(offset, n int64) summed {
	if s.at != nil {
		return &summingSection{SectionReader: io.NewSectionReader(s.at, s.base+offset, n)}
	}
	return &summingReader{r: io.LimitReader(s.r, n)}
}

// readSums reads everything for the checksums of the parts, and returns that of the whole. With SIMD it costs little beside
// sending it, and less than leaving it to the SDK.
func (s *source) readSums(size, part int64) (uint64, error) {
	buf := make([]byte, contentPiece)
	var whole uint64
	for offset := int64(0); offset < size; offset += part {
		n := min(part, size-offset)
		body := s.body(offset, n)
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, buf); err != nil {
			return 0, err
		}
		crc, got := body.sum()
		if got != n {
			return 0, fmt.Errorf("%d bytes read, %d announced: %w", offset+got, size, io.ErrUnexpectedEOF)
		}
		s.sums = append(s.sums, crc)
		whole = CombineCRC64(whole, crc, n)
	}
	return whole, nil
}

// summingReader sums up what is read once.
type summingReader struct {
	r   io.Reader
	crc uint64
	n   int64
}

func (r *summingReader) sum() (uint64, int64) { return r.crc, r.n }

func (r *summingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.crc = UpdateCRC64(r.crc, p[:n])
	r.n += int64(n)
	return n, err
}

// summingSection sums up what is read in order, however often the SDK rewinds for a retry or seeks to learn the length.
type summingSection struct {
	*io.SectionReader
	crc uint64
	n   int64 // how far crc has come
	pos int64
}

func (r *summingSection) sum() (uint64, int64) { return r.crc, r.n }

func (r *summingSection) Read(p []byte) (int, error) {
	n, err := r.SectionReader.Read(p)
	if r.pos <= r.n && r.pos+int64(n) > r.n {
		r.crc = UpdateCRC64(r.crc, p[r.n-r.pos:n])
		r.n = r.pos + int64(n)
	}
	r.pos += int64(n)
	return n, err
}

func (r *summingSection) Seek(offset int64, whence int) (int64, error) {
	pos, err := r.SectionReader.Seek(offset, whence)
	if err == nil {
		r.pos = pos
	}
	return pos, err
}

// unsigned makes the SDK send the payload without reading it for a hash first.
func unsigned(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

func (s *Store) putSingle(ctx context.Context, bucket, key string, src source, size int64, opts PutOptions) (PutResult, error) {
	body := src.body(0, size)
	in := &s3.PutObjectInput{
		Bucket: &bucket, Key: &key, Body: body, ContentLength: &size, Metadata: opts.Metadata,
		ContentType: optional(opts.ContentType), IfNoneMatch: ifNone(opts.IfAbsent),
	}
	if size == 0 {
		in.Body = nil // net/http would send an empty body of unknown length
	}
	switch {
	case opts.SHA256 != nil:
		in.ChecksumSHA256 = aws.String(EncodeSHA256(opts.SHA256))
	case opts.Checksum != nil:
		in.ChecksumCRC64NVME = aws.String(EncodeCRC64(*opts.Checksum))
	}
	once := func(o *s3.Options) {
		if src.at == nil {
			// It cannot be sent again: to wait before finding that out is of no use.
			o.Retryer = aws.NopRetryer{}
		}
	}
	out, err := s.client.PutObject(ctx, in, unsigned, once)
	if err != nil {
		return PutResult{}, err
	}
	crc, n := body.sum()
	return PutResult{ETag: aws.ToString(out.ETag), Checksum: crc}, checkSent(crc, n, size, opts.Checksum, out.ChecksumCRC64NVME)
}

// checkSent compares what was sent with what should have been and with what the store reports to have.
func checkSent(crc uint64, n, size int64, want *uint64, reported *string) error {
	switch {
	case n != size:
		return fmt.Errorf("%d bytes read, %d announced: %w", n, size, io.ErrUnexpectedEOF)
	case want != nil && *want != crc:
		return fmt.Errorf("%w: what was sent has checksum %s, not the given %s", ErrCorrupt, EncodeCRC64(crc), EncodeCRC64(*want))
	case reported != nil && *reported != EncodeCRC64(crc):
		return fmt.Errorf("%w: the store reports checksum %s, %s was sent", ErrCorrupt, *reported, EncodeCRC64(crc))
	}
	return nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func ifNone(b bool) *string {
	if b {
		return aws.String("*")
	}
	return nil
}

// partBytes is the smallest part size from want on that gets by with maxParts parts.
func partBytes(size, want int64) int64 {
	if want == 0 {
		want = defaultPartBytes
	}
	return max(want, minPartBytes, (size+maxParts-1)/maxParts)
}

// sentPart is a part that has arrived.
type sentPart struct {
	types.CompletedPart
	crc  uint64
	size int64
}

func (s *Store) putParts(ctx context.Context, bucket, key string, src source, size, part int64, opts PutOptions) (_ PutResult, err error) {
	created, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &bucket, Key: &key, Metadata: opts.Metadata, ContentType: optional(opts.ContentType),
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc64nvme, ChecksumType: types.ChecksumTypeFullObject,
	})
	if err != nil {
		return PutResult{}, fmt.Errorf("begin multipart upload: %w", err)
	}
	id := created.UploadId
	defer func() {
		if err == nil {
			return
		}
		// Parts left behind cost money, and the caller's context may be what has ended.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if _, aerr := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &bucket, Key: &key, UploadId: id}); aerr != nil {
			err = errors.Join(err, fmt.Errorf("abort multipart upload: %w", aerr))
		}
	}()
	upload := s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: id}
	sent, err := s.sendParts(ctx, upload, src, size, part, opts.Concurrency)
	if err != nil {
		return PutResult{}, err
	}
	var crc uint64
	done := make([]types.CompletedPart, len(sent))
	for i, p := range sent {
		crc = CombineCRC64(crc, p.crc, p.size)
		done[i] = p.CompletedPart
	}
	if err := checkSent(crc, size, size, opts.Checksum, nil); err != nil {
		return PutResult{}, err
	}
	out, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &bucket, Key: &key, UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
		ChecksumCRC64NVME: aws.String(EncodeCRC64(crc)), ChecksumType: types.ChecksumTypeFullObject,
		IfNoneMatch: ifNone(opts.IfAbsent),
	})
	if err != nil {
		return PutResult{}, fmt.Errorf("complete multipart upload: %w", err)
	}
	return PutResult{ETag: aws.ToString(out.ETag), Checksum: crc, Parts: len(done)}, nil
}

// sendParts sends all parts, several at a time if src allows.
func (s *Store) sendParts(ctx context.Context, in s3.UploadPartInput, src source, size, part int64, concurrency int) ([]sentPart, error) {
	g, ctx := errgroup.WithContext(ctx)
	switch {
	case src.at == nil:
		g.SetLimit(1) // in order, that is: the next part begins where the last one ended
	case concurrency <= 0:
		g.SetLimit(4)
	default:
		g.SetLimit(concurrency)
	}
	sent := make([]sentPart, (size+part-1)/part)
	for i := range sent {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() (err error) {
			offset := int64(i) * part
			sent[i], err = s.sendPart(ctx, in, i+1, src, offset, min(part, size-offset))
			return err
		})
	}
	err := g.Wait()
	return sent, err
}

func (s *Store) sendPart(ctx context.Context, in s3.UploadPartInput, number int, src source, offset, size int64) (sentPart, error) {
	fail := func(err error) (sentPart, error) { return sentPart{}, fmt.Errorf("part %d: %w", number, err) }
	body := src.body(offset, size)
	in.PartNumber, in.Body, in.ContentLength = aws.Int32(int32(number)), body, &size
	if src.sums != nil {
		in.ChecksumCRC64NVME = aws.String(EncodeCRC64(src.sums[number-1]))
	}
	out, err := s.client.UploadPart(ctx, &in, unsigned)
	if err != nil {
		return fail(err)
	}
	crc, n := body.sum()
	if err := checkSent(crc, n, size, nil, out.ChecksumCRC64NVME); err != nil {
		return fail(err)
	}
	return sentPart{types.CompletedPart{PartNumber: in.PartNumber, ETag: out.ETag, ChecksumCRC64NVME: out.ChecksumCRC64NVME}, crc, size}, nil
}
