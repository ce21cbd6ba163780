// Package peer is one participant of a swarm: it holds a file or fetches it,
// piece by piece, from others that speak the BitTorrent protocol (BEP 3 with
// BEP 6), and takes the time of every stage.
//
// It is made to be measured. One process can hold hundreds of peers, each with
// its own listener, identity and memory; everything that is sent or received is
// entered in a ledger by class; and nothing of one peer is shared with another.
package peer
