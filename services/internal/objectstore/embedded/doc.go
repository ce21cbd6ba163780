// Package embedded is a real S3 server in process, on a loopback socket, whose objects are files below one
// directory. It is the lab's own store when no other endpoint is named, and the server that tests talk to.
//
// The S3 dialect (routing, XML, conditions) is github.com/rclone/gofakes3; what that leaves open is closed here:
//
//   - storage: one file per object, content first and a checksummed description behind it, so that a GET is a
//     sendfile(2) of a file's head and a PUT becomes visible, whole, by one rename (file.go, objects.go);
//   - multipart uploads on disk, never in memory (multipart.go);
//   - bodies: signed chunks, trailers, payload hashes and checksums are verified, not merely skipped (body.go);
//   - the server's own account of what it served, independent of any client's records (access.go);
//   - faults on demand, for tests (faults.go).
//
// # Layout of the directory
//
//	credentials.json            written by LoadOrCreateCredentials, mode 0600
//	lock                        flock(2)ed by the server that owns the directory
//	tmp/                        uploads being written; emptied at start
//	uploads/ID/upload.json      what a multipart upload is to become
//	uploads/ID/00001-…          one part of it, laid out as an object is; uploads older than Options.UploadTTL are removed
//	buckets/NAME/bucket.json    when the bucket was made
//	buckets/NAME/objects/ab/cd… one object; the name is the SHA-256 of its key
//
// No byte of a key ever reaches the file system (a key may be "../../etc/passwd", 1024 bytes long, or differ from
// another only in case), and a bucket's name does so only after it has passed the rules for bucket names.
//
// An index of all objects is held in memory (about 0.6 kB an object) and rebuilt from the files at start (about 1 s
// for 50,000).
package embedded
