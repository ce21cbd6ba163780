// Package clickhouse gives every service the same ClickHouse, wherever it runs.
//
// Two things live here. The first is the embedded engine: [EnsureLibrary]
// fetches the engine's shared library once into the user's cache, and [Start]
// runs it behind its own TCP and HTTP servers in a supervised child process,
// on loopback, with users and passwords. The child is this same binary,
// re-executed with [HostCommand] as its first argument; main hands that over
// to [RunHost]. The engine's signal handlers and its shutdown take a whole
// process with them, which is why it never runs inside the lab itself.
//
// What the engine may do is bounded twice. Its users have the rights they need
// on one database, and the process is confined by the kernel (Landlock) to its
// own files: it may neither read others, nor run programs, nor open connections.
// Where the kernel cannot do that the engine runs all the same, with a warning.
//
// Hosting the engine needs glibc, and makes a program built without cgo load it
// dynamically; the build tag noengine leaves it out.
//
// The second is what clients need: one DSN string for native and HTTP, with or
// without TLS ([ParseDSN], [Open]), migrations ([Migrate]), inserts of blocks
// that are already encoded ([Inserter]) and queries whose answer is passed on
// byte for byte ([HTTPQuery]). None of it knows whether the server is the
// embedded one: an external ClickHouse is a DSN, nothing else.
//
// Errors from the server carry its code ([ServerError]); [IsPermanent] tells
// the ones a retry cannot cure from the ones it can. No error, log line or
// String method of this package contains a password.
package clickhouse
