// Package packet sends probes of which every packet counts, ICMP echo (RFC 792,
// RFC 4443) and STAMP (RFC 8762), and answers the latter.
//
// An [Engine] works through the schedule of many paths in one loop. It times
// by the kernel's stamps of both directions, so that neither its own scheduling
// nor that of the process is part of a round trip; where a stamp is missing it
// falls back to its own clock and says so in [Result.Stamps]. Stamps are of the
// wall clock: the engine watches for that clock being set and marks the probes
// it may have spoilt. Everything else (when to send, when to give up) goes by
// the monotonic clock.
//
// A [Reflector] answers STAMP test packets. It answers nothing before it is told
// to, never more than it was asked with, and nothing that looks like an answer.
//
// # Matching
//
// An echo request carries, where its payload has 16 bytes, a random cookie of
// the engine, the flow and a 32-bit sequence number, so that neither the 16 bits
// of ICMP nor other senders of the host can be mistaken for it. Smaller ones are
// told apart by identifier, sequence number and address. An answer to a STAMP packet
// must come from where the packet went, repeat its sequence number and, to the
// nanosecond, its time; in authenticated mode it must be signed.
//
// Only Linux can do this; elsewhere the constructors fail.
package packet
