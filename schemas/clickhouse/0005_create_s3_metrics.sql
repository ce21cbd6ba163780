-- The series of CloudWatch's S3 request metrics, from what the clients saw, by the minute:
-- every bucket and site of a run has a row for every minute from the run's first to
-- its last, so that series align. A gap is a row of zeros (requests = 0).
--   BytesDownloaded      sum of bytes that came, BytesUploaded of those that went
--   TotalRequestLatency  average in ms from sent to done; p50, p90, p99 in ms too
-- All attempts count: the store has served them all.
CREATE OR REPLACE VIEW s3_metrics_1m AS
SELECT
    at AS ts,
    run,
    bucket,
    site,
    sum(downloaded) AS BytesDownloaded,
    sum(uploaded) AS BytesUploaded,
    sum(latency) AS TotalRequestLatency,
    sum(latency_p50) AS TotalRequestLatency_p50,
    sum(latency_p90) AS TotalRequestLatency_p90,
    sum(latency_p99) AS TotalRequestLatency_p99,
    sum(count) AS requests,
    sum(failed) AS errors
FROM
(
    SELECT
        toDateTime(toStartOfInterval(ts, INTERVAL 1 MINUTE), 'UTC') AS at,
        run,
        attrs['bucket'] AS bucket,
        toString(site) AS site,
        sumIf(bytes, attrs['op'] != 'put') AS downloaded,
        sumIf(bytes, attrs['op'] = 'put') AS uploaded,
        avg(duration_ns) / 1e6 AS latency,
        quantiles(0.5, 0.9, 0.99)(duration_ns) AS q,
        q[1] / 1e6 AS latency_p50,
        q[2] / 1e6 AS latency_p90,
        q[3] / 1e6 AS latency_p99,
        count() AS count,
        countIf(status != 'ok') AS failed
    FROM events
    WHERE workload = 's3' AND kind = 'request'
    GROUP BY run, bucket, site, at
    UNION ALL
    SELECT
        arrayJoin(arrayMap(i -> toDateTime(i, 'UTC'), range(toUInt32(first), toUInt32(last) + 1, 60))) AS at,
        run,
        series.1 AS bucket,
        series.2 AS site,
        0 AS downloaded, 0 AS uploaded, 0 AS latency, [] AS q, 0 AS latency_p50, 0 AS latency_p90, 0 AS latency_p99, 0 AS count, 0 AS failed
    FROM
    (
        SELECT
            run,
            toStartOfInterval(min(ts), INTERVAL 1 MINUTE) AS first,
            toStartOfInterval(max(ts), INTERVAL 1 MINUTE) AS last,
            arrayJoin(groupUniqArray((attrs['bucket'], toString(site)))) AS series
        FROM events
        WHERE workload = 's3' AND kind = 'request'
        GROUP BY run
    )
)
GROUP BY run, bucket, site, ts
ORDER BY run, bucket, site, ts;

-- The same by the second.
CREATE OR REPLACE VIEW s3_metrics_1s AS
SELECT
    at AS ts,
    run,
    bucket,
    site,
    sum(downloaded) AS BytesDownloaded,
    sum(uploaded) AS BytesUploaded,
    sum(latency) AS TotalRequestLatency,
    sum(latency_p50) AS TotalRequestLatency_p50,
    sum(latency_p90) AS TotalRequestLatency_p90,
    sum(latency_p99) AS TotalRequestLatency_p99,
    sum(count) AS requests,
    sum(failed) AS errors
FROM
(
    SELECT
        toDateTime(toStartOfInterval(ts, INTERVAL 1 SECOND), 'UTC') AS at,
        run,
        attrs['bucket'] AS bucket,
        toString(site) AS site,
        sumIf(bytes, attrs['op'] != 'put') AS downloaded,
        sumIf(bytes, attrs['op'] = 'put') AS uploaded,
        avg(duration_ns) / 1e6 AS latency,
        quantiles(0.5, 0.9, 0.99)(duration_ns) AS q,
        q[1] / 1e6 AS latency_p50,
        q[2] / 1e6 AS latency_p90,
        q[3] / 1e6 AS latency_p99,
        count() AS count,
        countIf(status != 'ok') AS failed
    FROM events
    WHERE workload = 's3' AND kind = 'request'
    GROUP BY run, bucket, site, at
    UNION ALL
    SELECT
        arrayJoin(arrayMap(i -> toDateTime(i, 'UTC'), range(toUInt32(first), toUInt32(last) + 1, 1))) AS at,
        run,
        series.1 AS bucket,
        series.2 AS site,
        0 AS downloaded, 0 AS uploaded, 0 AS latency, [] AS q, 0 AS latency_p50, 0 AS latency_p90, 0 AS latency_p99, 0 AS count, 0 AS failed
    FROM
    (
        SELECT
            run,
            toStartOfInterval(min(ts), INTERVAL 1 SECOND) AS first,
            toStartOfInterval(max(ts), INTERVAL 1 SECOND) AS last,
            arrayJoin(groupUniqArray((attrs['bucket'], toString(site)))) AS series
        FROM events
        WHERE workload = 's3' AND kind = 'request'
        GROUP BY run
    )
)
GROUP BY run, bucket, site, ts
ORDER BY run, bucket, site, ts;
