// Package interop proves, in its tests, that the swarm runner's tracker, peers
// and torrent files are those of BitTorrent, and not merely of each other: in
// swarms with libtorrent 2.0, aria2 and Transmission, over HTTP and UDP
// trackers, TCP and uTP, plain and encrypted, every one of them gets the whole
// file from ours, and ours from each of them.
//
// Every swarm has a private network of its own. It is not on loopback addresses,
// which Transmission does not take for peers'.
package interop
