// Package lanes hashes several pieces at a time by SHA-1.
//
// A swarm over a fast network is bound by the hashing of what comes: SHA-1 of
// one piece is a single chain of operations that keeps most of a processor idle.
// Of sixteen pieces it is sixteen chains, which AVX-512 works off by one
// instruction each.
package lanes
