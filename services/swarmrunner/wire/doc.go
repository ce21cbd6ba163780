// Package wire is the BitTorrent peer protocol as bytes: its messages (BEP 3,
// with the fast extension of BEP 6 and the extension handshake of BEP 10) and
// the ledger that every byte of them is entered in.
package wire
