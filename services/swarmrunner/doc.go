// Package swarmrunner runs BitTorrent swarms and takes the time of every piece of
// every peer: the workload `swarm`.
//
// It consumes tasks (see package agent). A trial is one file, whose content
// follows from the run's seed and the trial's number, a tracker, seeders and
// leechers. The tracker is at the agent of the first seeder; leechers are the
// clients of the groups that do not seed; each peer has its own address, port,
// identity and memory, and with isolation: process its own process. Leechers read
// the torrent file as any client does.
//
// It publishes events of these kinds:
//
//	transfer   one for each leecher, whatever became of it: from when it came until it had the file
//	seed       one for each seeder
//	piece      one for each piece of each leecher: asked for until verified
//	wire       what a peer, or the tracker, sent or received of one class of bytes
//	interface  what the network interfaces counted, against what the sockets did
//	copy       the same content over one plain TCP connection, after the swarm
//
// A transfer's intended start is the schedule's arrival, wait_ns what the leecher
// came late. Its attributes are
//
//	client, leecher, leechers, group, file, size, piece_size, address
//	announce_ns, handshake_ns, unchoke_ns, first_piece_ns, d10_ns … d90_ns,
//	last_block_ns, complete_ns                stages, after it came; those that did not come are absent
//	verified_ns                               complete_ns and how long reading the whole file for its SHA-256 took: that
//	                                          is done when all have left, so that it takes nothing from those not done
//	seed_out_ns                               when it had left
//	sent, received                            bytes on its sockets, tracker included, without IP and TCP headers
//	payload_received, payload_sent, wasted, from_seeds, hash_failures, banned, connections
//	bound_ns                                  the shortest time possible with the section's rates (see bound)
//	sha256                                    ok or wrong
//	pid                                       with isolation: process
//
// A copy's duration is from the word to begin to the last byte, into memory that is
// there as a leecher's is; its attributes are from, to (agents) and verified_ns,
// with reading it for its SHA-256 afterwards.
//
// A leecher that fails is a finding with a name: killed, stalled, no_peers,
// no_tracker, bad_torrent, corrupt, timeout, cancelled, error. The task fails only
// when the machinery does.
//
// Trials of one agent take place in a network namespace of their own where that
// is permitted: its interface counts nothing else. Several agents meet at the
// tracker's, over connections that show that they know the trial's key, so that
// seeders stay until the last leecher has ended wherever it is; the tracker then
// wants a token that follows from the key.
//
// What it promises: every leecher has exactly one transfer; a file counts as
// fetched only if its SHA-256 is that of what was seeded; nothing waits without
// an end; nothing outlives the job, neither process nor file nor namespace; what
// others send is bounded in size, time and number.
package swarmrunner
