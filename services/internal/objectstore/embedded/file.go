package embedded

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"
)

// An object's file is
//
//	content | description (JSON) | length of description (4) | CRC-32C of description (4) | content length (8) | magic (8)
//
// all integers big-endian. The description is at the end because it is only known (checksums, ETag) once the content
// has been written, and because content at offset 0 keeps sendfile(2) page-aligned.
const (
	footerSize     = 24
	footerMagic    = "TLOBJ\x00\x00\x01"
	maxDescription = 256 << 10
)

var errNotAnObject = errors.New("not an object file")

// description is what an object's file says about its content.
type description struct {
	Key      string            `json:"key"`
	MD5      []byte            `json:"md5"`                  // of the content; of the parts' MD5s if Parts is set
	CRC64    uint64            `json:"crc64nvme,string"`     // of the content
	Modified int64             `json:"modified_ns"`          // Unix time
	Parts    []int64           `json:"part_sizes,omitempty"` // set by a multipart upload
	Meta     map[string]string `json:"meta,omitempty"`       // response headers
}

// object is one entry of a bucket's index. It is immutable; an overwrite replaces it.
type object struct {
	description
	size int64
}

func (o *object) modified() time.Time { return time.Unix(0, o.Modified) }

// etag is the entity tag without quotes. A multipart object's carries the number of parts, as everywhere in S3:
// clients take a tag without one for the content's MD5.
func (o *object) etag() string {
	return hex.EncodeToString(o.MD5) + o.etagSuffix()
}

func (o *object) etagSuffix() string {
	if o.Parts == nil {
		return ""
	}
	return fmt.Sprintf("-%d", len(o.Parts))
}

// objectPath is where the object with key is stored below the bucket's directory. It depends on key only through its
// SHA-256, so that it has one length, one alphabet, and no key can name anything else.
func objectPath(bucketDir, key string) string {
	sum := sha256.Sum256([]byte(key))
	name := hex.EncodeToString(sum[:])
	return filepath.Join(bucketDir, "objects", name[:2], name[2:])
}

// appendDescription writes d and the footer to w, behind size bytes of content.
func appendDescription(w io.Writer, d *description, size int64) error {
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode object description: %w", err)
	}
	if len(text) > maxDescription {
		return fmt.Errorf("object description of %d bytes, at most %d are allowed", len(text), maxDescription)
	}
	b := make([]byte, 0, len(text)+footerSize)
	b = append(b, text...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli)))
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	b = append(b, footerMagic...)
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write object description: %w", err)
	}
	return nil
}

// readDescription reads the description of the object in the fileSize bytes of r. The error is errNotAnObject (wrapped)
// if they are anything but one whole object.
func readDescription(r io.ReaderAt, fileSize int64) (*object, error) {
	if fileSize < footerSize {
		return nil, fmt.Errorf("%w: %d bytes", errNotAnObject, fileSize)
	}
	var foot [footerSize]byte
	if _, err := r.ReadAt(foot[:], fileSize-footerSize); err != nil {
		return nil, fmt.Errorf("read object footer: %w", err)
	}
	length := int64(binary.BigEndian.Uint32(foot[0:]))
	sum := binary.BigEndian.Uint32(foot[4:])
	size := binary.BigEndian.Uint64(foot[8:])
	if string(foot[16:]) != footerMagic || length > maxDescription || length > fileSize-footerSize ||
		size != uint64(fileSize-footerSize-length) {
		return nil, fmt.Errorf("%w: bad footer", errNotAnObject)
	}
	text := make([]byte, length)
	if _, err := r.ReadAt(text, int64(size)); err != nil {
		return nil, fmt.Errorf("read object description: %w", err)
	}
	if crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return nil, fmt.Errorf("%w: damaged description", errNotAnObject)
	}
	o := &object{size: int64(size)}
	if err := json.Unmarshal(text, &o.description); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAnObject, err)
	}
	return o, nil
}

// openObjectFile opens the file at path and returns its description.
func openObjectFile(path string) (*os.File, *object, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	o, err := readDescription(f, st.Size())
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, o, nil
}
