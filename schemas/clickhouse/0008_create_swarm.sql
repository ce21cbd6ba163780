-- Every leecher's transfer of the workload swarm, all attempts. Reports want `final` ones only:
-- those of the last attempt of their trial that has ended.
--   leecher        counts from 0, of `leechers` in the trial
--   wait_ns        arrival by plan to begun: how late our own generator was
--   duration_ns    begun to the last piece verified, or to the end of one that failed
--   corrected_ns   arrival by plan to the last piece verified
--   first_byte_ns  begun to the first byte of content, 0 when none came
--   announce_ns … seed_out_ns   after begun, NULL when it did not come: the tracker's first answer, the first
--                  handshake, the first other willing to send, the first piece verified, each tenth of the bytes
--                  verified, the last byte of content that was missing, the last piece verified, SHA-256 of the whole
--                  file checked, everything closed
--   received_bytes, sent_bytes   all on the leecher's sockets, tracker included, without IP and TCP headers
--   wasted_bytes   content that came twice or was wrong
--   throughput_kbps   size * 8 * leechers / (seconds * 1000), in kbit/s, of transfers that succeeded
--   ratio          received / size
--   bound_ns       the least time in which all leechers could have the file with the rates set, NULL without any
--   sha256         whether the whole file was the one seeded: ok, wrong, or empty where nobody got to look
CREATE OR REPLACE VIEW swarm_transfers AS
SELECT
    ts,
    run,
    trial,
    attempt,
    site,
    agent,
    toUInt32OrZero(attrs['client']) AS client,
    attrs['group'] AS client_group,
    toUInt32OrZero(attrs['leecher']) AS leecher,
    toUInt32OrZero(attrs['leechers']) AS leechers,
    attrs['file'] AS file,
    toUInt64OrZero(attrs['size']) AS size_bytes,
    toUInt64OrZero(attrs['piece_size']) AS piece_size_bytes,
    attrs['address'] AS address,
    status,
    error,
    bytes,
    wait_ns,
    first_byte_ns,
    duration_ns,
    wait_ns + duration_ns AS corrected_ns,
    toUInt64OrNull(attrs['announce_ns']) AS announce_ns,
    toUInt64OrNull(attrs['handshake_ns']) AS handshake_ns,
    toUInt64OrNull(attrs['unchoke_ns']) AS unchoke_ns,
    toUInt64OrNull(attrs['first_piece_ns']) AS first_piece_ns,
    toUInt64OrNull(attrs['d10_ns']) AS d10_ns,
    toUInt64OrNull(attrs['d20_ns']) AS d20_ns,
    toUInt64OrNull(attrs['d30_ns']) AS d30_ns,
    toUInt64OrNull(attrs['d40_ns']) AS d40_ns,
    toUInt64OrNull(attrs['d50_ns']) AS d50_ns,
    toUInt64OrNull(attrs['d60_ns']) AS d60_ns,
    toUInt64OrNull(attrs['d70_ns']) AS d70_ns,
    toUInt64OrNull(attrs['d80_ns']) AS d80_ns,
    toUInt64OrNull(attrs['d90_ns']) AS d90_ns,
    toUInt64OrNull(attrs['last_block_ns']) AS last_block_ns,
    toUInt64OrNull(attrs['complete_ns']) AS complete_ns,
    toUInt64OrNull(attrs['verified_ns']) AS verified_ns,
    toUInt64OrNull(attrs['seed_out_ns']) AS seed_out_ns,
    toUInt64OrZero(attrs['sent']) AS sent_bytes,
    toUInt64OrZero(attrs['received']) AS received_bytes,
    toUInt64OrZero(attrs['payload_sent']) AS payload_sent_bytes,
    toUInt64OrZero(attrs['payload_received']) AS payload_received_bytes,
    toUInt64OrZero(attrs['wasted']) AS wasted_bytes,
    toUInt64OrZero(attrs['from_seeds']) AS from_seeds_bytes,
    toUInt32OrZero(attrs['hash_failures']) AS hash_failures,
    toUInt32OrZero(attrs['banned']) AS banned,
    toUInt32OrZero(attrs['connections']) AS connections,
    toUInt64OrNull(attrs['bound_ns']) AS bound_ns,
    if(status = 'ok' AND duration_ns > 0, toFloat64(size_bytes) * 8 * leechers * 1e6 / duration_ns, NULL) AS throughput_kbps,
    if(size_bytes > 0, received_bytes / size_bytes, NULL) AS ratio,
    attrs['sha256'] AS sha256,
    toUInt32OrNull(attrs['pid']) AS pid,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    producer,
    seq
FROM events
WHERE workload = 'swarm' AND kind = 'transfer';

-- Every piece of every leecher, all attempts.
--   ts             when its first block was asked for
--   duration_ns    asked to verified
--   from_peer      who sent its last block: `seeder 0`, `leecher 3`, or the address of somebody unknown
--   nth            the order in which the leecher's pieces were verified
CREATE OR REPLACE VIEW swarm_pieces AS
SELECT
    ts,
    run,
    trial,
    attempt,
    site,
    agent,
    toUInt32OrZero(attrs['client']) AS client,
    toUInt32OrZero(attrs['leecher']) AS leecher,
    toUInt32OrZero(attrs['piece']) AS piece,
    attrs['from'] AS from_peer,
    toUInt32OrZero(attrs['nth']) AS nth,
    status,
    bytes,
    duration_ns,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    producer,
    seq
FROM events
WHERE workload = 'swarm' AND kind = 'piece';

-- What each peer and tracker sent and received in a trial, all attempts, by what the bytes were for: `payload` is
-- content, `tracker` announces and their answers, the others are named after their messages. What one sent another
-- received: sums want one `direction`.
CREATE OR REPLACE VIEW swarm_wire AS
SELECT
    ts,
    run,
    trial,
    attempt,
    site,
    agent,
    attrs['peer'] AS peer,
    attrs['role'] AS role,
    attrs['direction'] AS direction,
    attrs['class'] AS class,
    toUInt64OrZero(attrs['messages']) AS messages,
    bytes,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    producer,
    seq
FROM events
WHERE workload = 'swarm' AND kind = 'wire';

-- What the network interfaces of each agent counted in a trial, all attempts, against what its sockets did.
--   network        private (a namespace for the trial alone), site (of an emulated network) or host
--   exclusive      whether nothing else uses the interfaces; else the counters hold what others did too
--   tx_bytes       = sockets_sent_bytes + sent_again_bytes + headers_bytes + unattributed_bytes
--   sent_again_bytes      TCP's retransmissions
--   headers_bytes  of IP, TCP and UDP
--   unattributed_bytes    what nothing accounts for, negative where more was accounted for than counted
--   unattributed_share    of tx_bytes, NULL when nothing was sent
CREATE OR REPLACE VIEW swarm_interfaces AS
SELECT
    ts,
    run,
    trial,
    attempt,
    site,
    agent,
    attrs['network'] AS network,
    CAST(attrs['exclusive'] = 'true', 'Bool') AS exclusive,
    bytes AS tx_bytes,
    toUInt64OrZero(attrs['rx_bytes']) AS rx_bytes,
    toUInt64OrZero(attrs['tx_packets']) AS tx_packets,
    toUInt64OrZero(attrs['rx_packets']) AS rx_packets,
    toUInt64OrZero(attrs['sockets_sent']) AS sockets_sent_bytes,
    toUInt64OrZero(attrs['sent_again']) AS sent_again_bytes,
    toUInt64OrZero(attrs['headers']) AS headers_bytes,
    toInt64OrZero(attrs['unattributed']) AS unattributed_bytes,
    if(tx_bytes > 0, unattributed_bytes / tx_bytes, NULL) AS unattributed_share,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    producer,
    seq
FROM events
WHERE workload = 'swarm' AND kind = 'interface';

-- The bytes of each trial's file once more over one plain TCP connection, all attempts.
--   src, dst       the agents at its ends
--   throughput_kbps   in kbit/s, NULL for a copy that failed
CREATE OR REPLACE VIEW swarm_copies AS
SELECT
    ts,
    run,
    trial,
    attempt,
    site,
    agent,
    attrs['from'] AS src,
    attrs['to'] AS dst,
    status,
    error,
    bytes,
    duration_ns,
    if(status = 'ok' AND duration_ns > 0, toFloat64(bytes) * 8 * 1e6 / duration_ns, NULL) AS throughput_kbps,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    producer,
    seq
FROM events
WHERE workload = 'swarm' AND kind = 'copy';

-- Every seeder's part of a trial, all attempts.
--   seeder         counts from 0
--   client         NULL unless the seeder is a client of a group
--   left_by        `stopped` when it left because the experiment said so, else empty
--   duration_ns    how long it was there
CREATE OR REPLACE VIEW swarm_seeds AS
SELECT
    ts,
    run,
    trial,
    attempt,
    site,
    agent,
    toUInt32OrZero(attrs['seeder']) AS seeder,
    toUInt32OrNull(attrs['client']) AS client,
    attrs['address'] AS address,
    status,
    error,
    duration_ns,
    toUInt64OrZero(attrs['sent']) AS sent_bytes,
    toUInt64OrZero(attrs['received']) AS received_bytes,
    toUInt64OrZero(attrs['payload_sent']) AS payload_sent_bytes,
    toUInt64OrZero(attrs['payload_received']) AS payload_received_bytes,
    toUInt32OrZero(attrs['connections']) AS connections,
    attrs['left'] AS left_by,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    producer,
    seq
FROM events
WHERE workload = 'swarm' AND kind = 'seed';
