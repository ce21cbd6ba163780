-- Every probe of the workload probe, all attempts. Reports want `final` ones only:
-- those of the last attempt of their trial that has ended.
--   rtt_ns         sent to answer, NULL when there was none that counts; for udp
--                  without the time that the reflector took
--   wait_ns        intended start to sent: how late our own generator was
--   forward_ns, backward_ns   one-way delays, NULL where the clocks of both ends are
--                  known too badly (bound above 10 % of the value)
--   stamps         whose clock readings: kernel (both), tx, rx (only that one), user
--   duplicates     further answers to the same probe
--   ttl            hop limit of the answer as it came, 0 unknown
CREATE OR REPLACE VIEW probe_packets AS
SELECT
    ts,
    run,
    trial,
    attempt,
    site AS src_site,
    attrs['dst_site'] AS dst_site,
    agent AS src,
    attrs['dst'] AS dst,
    toUInt32OrZero(attrs['client']) AS src_client,
    toUInt32OrNull(attrs['dst_client']) AS dst_client,
    toUInt32OrZero(attrs['path']) AS path,
    attrs['protocol'] AS protocol,
    status,
    error,
    if(status = 'ok', duration_ns, NULL) AS rtt_ns,
    duration_ns,
    wait_ns,
    first_byte_ns,
    toInt64OrNull(attrs['forward_ns']) AS forward_ns,
    toInt64OrNull(attrs['backward_ns']) AS backward_ns,
    toUInt64OrNull(attrs['offset_bound_ns']) AS offset_bound_ns,
    bytes,
    toUInt32OrZero(attrs['duplicates']) AS duplicates,
    toUInt8OrZero(attrs['ttl']) AS ttl,
    attrs['stamps'] AS stamps,
    attrs['addr'] AS address,
    toUInt16OrZero(attrs['http_status']) AS http_status,
    toUInt64OrZero(attrs['dns_ns']) AS dns_ns,
    toUInt64OrZero(attrs['connect_ns']) AS connect_ns,
    toUInt64OrZero(attrs['tls_ns']) AS tls_ns,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    producer,
    seq
FROM events
WHERE workload = 'probe' AND kind = 'probe';

-- What was measured of an emulated network before its run, against what was set.
CREATE OR REPLACE VIEW netlab_checks AS
SELECT
    ts,
    run,
    workload,
    attrs['link'] AS link,
    attrs['what'] AS what,
    attrs['unit'] AS unit,
    toFloat64OrZero(attrs['set']) AS declared,
    toFloat64OrZero(attrs['measured']) AS measured,
    toFloat64OrZero(attrs['tolerance']) AS tolerance,
    toUInt32OrZero(attrs['samples']) AS samples,
    toUInt32OrZero(attrs['tries']) AS tries,
    CAST(status = 'ok', 'Bool') AS fit,
    error
FROM events
WHERE kind = 'gate';

-- What the links of an emulated network did to packets while it stood.
CREATE OR REPLACE VIEW netlab_links AS
SELECT
    ts,
    run,
    workload,
    attrs['from'] AS from_end,
    attrs['to'] AS to_end,
    toUInt64OrZero(attrs['packets']) AS packets,
    bytes,
    toUInt64OrZero(attrs['lost']) AS lost,
    toUInt64OrZero(attrs['dropped']) AS dropped,
    toUInt64OrZero(attrs['duplicated']) AS duplicated,
    toUInt64OrZero(attrs['reordered']) AS reordered,
    toInt64OrZero(attrs['delay_error_p50_ns']) AS delay_error_p50_ns,
    toInt64OrZero(attrs['delay_error_p99_ns']) AS delay_error_p99_ns,
    toInt64OrZero(attrs['delay_error_max_ns']) AS delay_error_max_ns
FROM events
WHERE kind = 'link';
