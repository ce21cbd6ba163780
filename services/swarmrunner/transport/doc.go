// Package transport makes the connections of a swarm, in the process's own
// network namespace or in one made for a trial alone, and counts them: every
// stream as the operating system counted it, every datagram, and what the
// interfaces say, so that one can be held against the other ([Reconcile]).
//
// A [Network] is where sockets are made. An [Endpoint] is one peer's foot in it:
// an address to be reached at, and connections from the same address, by TCP or
// by uTP (BEP 29). [Secure] agrees on message stream encryption over a
// connection.
//
// # Limits of uTP
//
// uTP is github.com/anacrolix/utp. All of its connections in a process share one
// lock, so that what they carry together is bounded by about one processor; it
// has no congestion control of its own, only a window of 256 packets of 1384
// bytes; dialing takes half a megabyte of memory for a moment. A connection that
// was closed is kept in memory for two more minutes. There is no reset by hand:
// [Abort] closes.
package transport
