package objectstore

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"

	"github.com/minio/crc64nvme"
)

// MetaChecksum is the user metadata key (x-amz-meta-…) under which uploaded objects carry their CRC-64/NVME, encoded by
// EncodeCRC64. Unlike S3's own checksum header it is kept by every S3 implementation.
const MetaChecksum = "transferlab-crc64nvme"

// UpdateCRC64 adds p to the CRC-64/NVME of what came before; 0 is the checksum of nothing. It runs at 80 GB/s with
// AVX-512, about 20 with SSE, 2 without either: it costs next to nothing beside the transfer that it checks.
func UpdateCRC64(crc uint64, p []byte) uint64 { return crc64nvme.Update(crc, p) }

// EncodeCRC64 is crc as S3 writes it: base64 of 8 big-endian bytes.
func EncodeCRC64(crc uint64) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, crc))
}

// DecodeCRC64 is the inverse of EncodeCRC64.
func DecodeCRC64(s string) (uint64, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 8 {
		return 0, fmt.Errorf("%.40q is not a CRC-64 in base64", s)
	}
	return binary.BigEndian.Uint64(b), nil
}

// crc64Poly is the CRC-64/NVME polynomial, reflected.
const crc64Poly = 0x9a6c9329ac4bc9b5

// CombineCRC64 is the CRC-64/NVME of a followed by b, from those of a and b and the length of b. An object fetched in
// ranges is verified with it without reading anything twice.
func CombineCRC64(a, b uint64, lenB int64) uint64 {
	// Appending n zero bytes to a message multiplies its CRC by x^(8n) modulo the polynomial; the CRCs' initial
	// and final inversions cancel out between the two.
	return multiply(a, powerOfX(uint64(lenB)*8)) ^ b
}

// powerOfX is x^n modulo the polynomial, in reflected representation (x^0 is the top bit).
func powerOfX(n uint64) uint64 {
	result, square := uint64(1)<<63, uint64(1)<<62
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			result = multiply(result, square)
		}
		square = multiply(square, square)
	}
	return result
}

// multiply is the product of two polynomials over GF(2), modulo crc64Poly, in reflected representation.
func multiply(a, b uint64) uint64 {
	var product uint64
	for a != 0 {
		if a>>63 != 0 {
			product ^= b
		}
		a <<= 1
		if b&1 != 0 {
			b = b>>1 ^ crc64Poly
		} else {
			b >>= 1
		}
	}
	return product
}
