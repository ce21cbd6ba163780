package embedded

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/rclone/gofakes3"
)

// What is answered in gofakes3's stead.

const s3Namespace = "http://s3.amazonaws.com/doc/2006-03-01/"

func writeXML(w http.ResponseWriter, v any) {
	text, err := xml.Marshal(v)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(xml.Header)+len(text)))
	_, _ = io.WriteString(w, xml.Header)
	_, _ = w.Write(text)
}

func (s *Server) location(w *recorder, r *http.Request, bucket string) {
	if _, err := s.backend.bucket(bucket); err != nil {
		writeError(w, r, 404, "NoSuchBucket", "The specified bucket does not exist")
		return
	}
	region := s.opts.Region
	if region == "us-east-1" {
		region = "" // S3's spelling of its first region
	}
	writeXML(w, struct {
		XMLName xml.Name `xml:"LocationConstraint"`
		Xmlns   string   `xml:"xmlns,attr"`
		Region  string   `xml:",chardata"`
	}{Xmlns: s3Namespace, Region: region})
}

type partXML struct {
	PartNumber   int
	LastModified string
	ETag         string
	Size         int64
}

type listPartsXML struct {
	XMLName              xml.Name `xml:"ListPartsResult"`
	Xmlns                string   `xml:"xmlns,attr"`
	Bucket               string
	Key                  string
	UploadID             string `xml:"UploadId"`
	StorageClass         string
	PartNumberMarker     int
	NextPartNumberMarker int
	MaxParts             int
	IsTruncated          bool
	Parts                []partXML `xml:"Part"`
}

// queryInt reads an integer parameter that is at least 0; anything else is the default.
func queryInt(r *http.Request, name string, deflt, most int) int {
	n, err := strconv.Atoi(r.URL.Query().Get(name))
	if err != nil || n < 0 {
		return deflt
	}
	return min(n, most)
}

const timeXML = "2006-01-02T15:04:05.000Z"

// listParts answers in gofakes3's stead, which panics on a marker beyond the last part and races with uploads.
func (s *Server) listParts(w *recorder, r *http.Request, bucket, key string) {
	id := r.URL.Query().Get("uploadId")
	marker := queryInt(r, "part-number-marker", 0, math.MaxInt32)
	limit := queryInt(r, "max-parts", gofakes3.MaxUploadPartsLimit, gofakes3.MaxUploadPartsLimit)
	parts, err := s.backend.listParts(bucket, key, gofakes3.UploadID(id), marker)
	if err != nil {
		writeError(w, r, 404, "NoSuchUpload", "The specified multipart upload does not exist.")
		return
	}
	out := listPartsXML{
		Xmlns: s3Namespace, Bucket: bucket, Key: key, UploadID: id, StorageClass: "STANDARD",
		PartNumberMarker: marker, MaxParts: limit,
	}
	for _, p := range parts {
		if len(out.Parts) == limit {
			out.IsTruncated = true
			break
		}
		out.Parts = append(out.Parts, partXML{p.number, p.modified.UTC().Format(timeXML), fmt.Sprintf(`"%x"`, p.md5), p.size})
		out.NextPartNumberMarker = p.number
	}
	writeXML(w, out)
}

type uploadXML struct {
	Key          string
	UploadID     string `xml:"UploadId"`
	Initiated    string
	StorageClass string
}

type listUploadsXML struct {
	XMLName            xml.Name `xml:"ListMultipartUploadsResult"`
	Xmlns              string   `xml:"xmlns,attr"`
	Bucket             string
	KeyMarker          string
	UploadIDMarker     string `xml:"UploadIdMarker"`
	NextKeyMarker      string
	NextUploadIDMarker string `xml:"NextUploadIdMarker"`
	Prefix             string
	MaxUploads         int
	IsTruncated        bool
	Uploads            []uploadXML `xml:"Upload"`
}

// listUploads answers in gofakes3's stead, which calls a bucket without uploads an error. Delimiters are ignored.
func (s *Server) listUploads(w *recorder, r *http.Request, bucket string) {
	if _, err := s.backend.bucket(bucket); err != nil {
		writeError(w, r, 404, "NoSuchBucket", "The specified bucket does not exist")
		return
	}
	q := r.URL.Query()
	out := listUploadsXML{
		Xmlns: s3Namespace, Bucket: bucket, KeyMarker: q.Get("key-marker"), UploadIDMarker: q.Get("upload-id-marker"),
		Prefix: q.Get("prefix"), MaxUploads: queryInt(r, "max-uploads", gofakes3.MaxUploadsLimit, gofakes3.MaxUploadsLimit),
	}
	passed := out.UploadIDMarker == ""
	for _, u := range s.backend.listUploads(bucket, out.Prefix) {
		if u.key < out.KeyMarker || (u.key == out.KeyMarker && out.KeyMarker != "" && !passed) || (u.key == out.KeyMarker && out.UploadIDMarker == "" && out.KeyMarker != "") {
			passed = passed || string(u.id) == out.UploadIDMarker
			continue
		}
		if len(out.Uploads) == out.MaxUploads {
			out.IsTruncated = true
			break
		}
		out.Uploads = append(out.Uploads, uploadXML{u.key, string(u.id), u.initiated.UTC().Format(timeXML), "STANDARD"})
		out.NextKeyMarker, out.NextUploadIDMarker = u.key, string(u.id)
	}
	if !out.IsTruncated {
		out.NextKeyMarker, out.NextUploadIDMarker = "", ""
	}
	writeXML(w, out)
}

type checksumsXML struct {
	ChecksumCRC32     string `xml:",omitempty"`
	ChecksumCRC32C    string `xml:",omitempty"`
	ChecksumCRC64NVME string `xml:",omitempty"`
	ChecksumSHA1      string `xml:",omitempty"`
	ChecksumSHA256    string `xml:",omitempty"`
	ChecksumType      string
}

type partsXML struct {
	TotalPartsCount int `xml:"PartsCount"`
}

type attributesXML struct {
	XMLName      xml.Name      `xml:"GetObjectAttributesResponse"`
	Xmlns        string        `xml:"xmlns,attr"`
	ETag         string        `xml:",omitempty"`
	Checksum     *checksumsXML `xml:",omitempty"`
	ObjectParts  *partsXML     `xml:",omitempty"`
	StorageClass string        `xml:",omitempty"`
	ObjectSize   *int64        `xml:",omitempty"`
}

// attributes answers in gofakes3's stead, which does not know the entity tags of multipart objects.
func (s *Server) attributes(w *recorder, r *http.Request, bucket, key string) {
	bu, err := s.backend.bucket(bucket)
	if err != nil {
		writeError(w, r, 404, "NoSuchBucket", "The specified bucket does not exist")
		return
	}
	bu.mu.RLock()
	o := bu.objects[key]
	bu.mu.RUnlock()
	if o == nil {
		writeError(w, r, 404, "NoSuchKey", "The specified key does not exist.")
		return
	}
	out := attributesXML{Xmlns: s3Namespace}
	for name := range strings.SplitSeq(strings.Join(r.Header.Values("X-Amz-Object-Attributes"), ","), ",") {
		switch strings.TrimSpace(name) {
		case "ETag":
			out.ETag = o.etag()
		case "Checksum":
			out.Checksum = &checksumsXML{
				ChecksumCRC32: o.Meta[checksumHeader+"Crc32"], ChecksumCRC32C: o.Meta[checksumHeader+"Crc32c"],
				ChecksumCRC64NVME: o.Meta[crc64Header], ChecksumSHA1: o.Meta[checksumHeader+"Sha1"],
				ChecksumSHA256: o.Meta[checksumHeader+"Sha256"], ChecksumType: "FULL_OBJECT",
			}
		case "ObjectParts":
			if o.Parts != nil {
				out.ObjectParts = &partsXML{len(o.Parts)}
			}
		case "StorageClass":
			out.StorageClass = "STANDARD"
		case "ObjectSize":
			out.ObjectSize = &o.size
		default:
			writeError(w, r, 400, "InvalidArgument", "Invalid attribute name specified.")
			return
		}
	}
	w.Header().Set("Last-Modified", o.Meta["Last-Modified"])
	writeXML(w, out)
}
