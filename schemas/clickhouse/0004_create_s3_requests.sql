-- Every request of the workload s3, all attempts. Reports want `final` ones only:
-- those of the last attempt of their trial that has ended.
--   wait_ns        intended start to sent: waiting in our own queue
--   duration_ns    sent to done: service time
--   corrected_ns   intended start to done: no coordinated omission
--   dns_ns, connect_ns, tls_ns   phases of a new connection, 0 on one that is reused
--   http_status    0 when there was no answer or nothing to say of it (200, 206)
--   parts          ranges the object was fetched in, 0 is one request
CREATE OR REPLACE VIEW s3_requests AS
SELECT
    ts,
    run,
    trial,
    attempt,
    site,
    agent,
    attrs['client'] AS client,
    attrs['bucket'] AS bucket,
    attrs['object'] AS object,
    attrs['op'] AS operation,
    attrs['size'] AS size,
    toUInt64(ifNull(toUInt64OrNull(attrs['size']), parseReadableSizeOrZero(attrs['size']))) AS size_bytes,
    attrs['instance_type'] AS instance_type,
    status,
    error,
    toUInt16OrZero(attrs['http_status']) AS http_status,
    toUInt16OrZero(attrs['retries']) AS retries,
    toUInt16OrZero(attrs['parts']) AS parts,
    bytes,
    wait_ns,
    first_byte_ns,
    duration_ns,
    wait_ns + duration_ns AS corrected_ns,
    toUInt64OrZero(attrs['dns_ns']) AS dns_ns,
    toUInt64OrZero(attrs['connect_ns']) AS connect_ns,
    toUInt64OrZero(attrs['tls_ns']) AS tls_ns,
    attrs['conn'] != 'new' AS reused,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    producer,
    seq
FROM events
WHERE workload = 's3' AND kind = 'request';
