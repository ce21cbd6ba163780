// Package netlab emulates sites on one machine: every agent gets a network
// namespace of its own with one TUN device in it, and a relay, a router in user
// space, carries packets between the devices over links with delay, jitter,
// loss, duplication, reordering and a rate.
//
// # Why not netem
//
// netem is missing from many kernels (it is a module that cloud and container
// kernels leave out) and its randomness cannot be seeded before Linux 6.6. The
// links here are the same everywhere, and the same seed makes the same
// decisions: which of the packets that enter a link, counted from the start, are
// lost, doubled, held back, and by how much each is delayed.
//
// # What a link does
//
// Between two sites there is one link, which all their agents share; its two
// directions have nothing in common but the settings. Inside a site every node
// has a port of its own on the site's switch: delay and losses apply to what the
// node sends, and rate and queue are those of its port. A packet meets, in this
// order:
//
//   - loss: a lost packet takes no time on the link (so the rate set is the rate
//     that arrives);
//   - queue: what waits for the rate beyond the queue's bytes is dropped (tail
//     drop); an idle link takes any packet;
//   - rate: bytes of the IP packet, headers included;
//   - delay: half the round trip, spread evenly by the jitter to both sides;
//     a packet never overtakes the one before it;
//   - reorder: a packet held back leaves right after the next one that is not,
//     or, when none comes, after the one-way delay once more, at least 10 ms;
//   - duplicate: the copy follows its original at once and takes none of the
//     rate.
//
// Segmentation offload is on: the kernel hands over up to 64 KiB at a time. Such
// a packet is treated as the segments that a wire would carry, each counted,
// lost, delayed and paced by itself; neighbours that leave in the same instant
// are handed on together.
//
// Packets are not modified: the hop limit is not decremented (there is no route
// to trace between two sites) and checksums that the sending kernel left to its
// device are left to the receiving kernel, as between two ends of a veth pair.
// The MTU is 1500 everywhere.
//
// A pair of sites without a link gets ICMP "net unreachable" (type 3 code 0; in
// IPv6 type 1 code 0), an address nobody has "host unreachable" (3/1, 1/3), at
// most 1000 a second per node. Nodes have no way to the outside world: only to
// each other and to the lab, the address of this machine, where its services
// are to listen.
//
// # What is left behind
//
// Nothing: namespaces have no name and TUN devices are not persistent, so the
// kernel removes both when the last process is gone that holds them. The relay
// ends when its parent does; processes started in nodes get a pipe as standard
// input that closes with the lab. Whoever ignores that is killed by Reap at the
// next start, which finds processes by the journal in Options.Dir and by a
// variable in their environment.
//
// # Needs
//
// Linux 5.11, root (or CAP_NET_ADMIN and CAP_SYS_ADMIN), /dev/net/tun.
package netlab
