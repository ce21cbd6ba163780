// Package s3loader downloads and uploads objects the way many clients would,
// and times every request: the workload `s3`.
//
// It consumes tasks (see package agent) and publishes one event of kind
// `request` for every request it has begun, with the attributes
//
//	bucket, object, op (get, put), size, client   always
//	the group's labels                            instance_type, …
//	http_status                                   if not 200 or 206
//	retries                                       if any
//	parts                                         ranges, if more than one request
//	conn=new, dns_ns, connect_ns, tls_ns          if a connection was opened
//
// An event's intended start is the schedule's: in an open loop the planned
// arrival, in a closed loop the end of the worker's previous request plus the
// planned think time. Sent is when work on the request begins, so that wait_ns is
// our own queueing and lateness alone, and duration_ns is all that a user of the
// store would wait for: name resolution, connection, TLS, retries and their
// pauses included. Bytes is the payload of the last attempt.
//
// What it promises: the schedule is the plan's, request for request; every
// request begun, and in an open loop every arrival that has come due, has
// exactly one event, also when the task is cancelled; nothing waits longer than
// the request's timeout; memory, connections and goroutines are bounded by the
// section's concurrency.
package s3loader
