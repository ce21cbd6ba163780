// Package objectstore is how the lab reaches any S3 endpoint: where it is (Target), with which credentials
// (CredentialSource), and everything done to it other than the measured requests themselves.
//
// Measured requests are plain net/http requests, built and signed by a Store (NewRequest, Sign) but sent by whoever
// measures them; the Store's own operations (EnsureBucket, Put, List, Delete …) go through aws-sdk-go-v2 with its
// retries. What a request came to is said in one word for both (Classify, ClassifyResponse).
//
// The objects the lab uploads have content that is computed from a seed (Content), so that a download can be verified,
// at any offset, without having kept a copy. They carry their CRC-64/NVME in the metadata (MetaChecksum) as well as in
// S3's own checksum header.
//
// The sub-package embedded is a server for all of this.
package objectstore
