// Package wire is the hot path of the s3-loader: S3's GET and PUT over HTTP/1.1
// on connections of its own.
//
// It exists because what is measured is the store, not the client. A general
// HTTP client hands every byte through several buffers and goroutines; this one
// reads into one buffer, or, where nobody looks at the bytes, has the kernel
// count and drop them. It times each phase of a request, says in one of
// objectstore's words what the request came to, and can interrupt all that is
// under way at once.
//
// Signatures and addresses are the objectstore's; redirects are not followed
// and proxies are not used: both would measure something else.
package wire
