-- What was measured between each pair of sites, and from sites to targets, in each cell of a probe run, by protocol. Each line of probes
-- (path) is looked at in order; jitter and reordering are of one path, so a pair's are those of its worst path.
--   jitter     interarrival jitter of RFC 3550 (section 6.4.1) at the end of the path: J += (|D| - J) / 16, D the
--              difference of the round trips of successive answers
--   reordered  answers that came after the answer to a later probe (RFC 4737, section 3)
-- quantileExact(p) is the sample at rank floor(p*n), counted from 0.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts
SELECT
    cell,
    protocol,
    src_site,
    dst_site,
    count()                                        AS paths,
    sum(path_sent)                                 AS sent,
    sum(path_ok)                                   AS ok,
    sum(path_duplicates)                           AS duplicates,
    sum(path_reordered)                            AS reordered,
    max(path_jitter)                               AS jitter_ns,
    quantilesExactArray(0.5, 0.9, 0.99, 0.999, 1)(path_rtts)       AS rtt_ns,
    min(path_min)                                  AS min_ns,
    sum(length(path_forwards))                     AS forwards,
    quantilesExactArray(0.5, 0.9, 0.99, 0.999, 1)(path_forwards)     AS forward_ns,
    sum(length(path_backwards))                    AS backwards,
    quantilesExactArray(0.5, 0.9, 0.99, 0.999, 1)(path_backwards)    AS backward_ns,
    sumMap(path_statuses)                          AS statuses
FROM
(
    SELECT
        cell,
        trial,
        path,
        any(protocol)             AS protocol,
        any(src_site)             AS src_site,
        any(dst_site)             AS dst_site,
        count()                   AS path_sent,
        countIf(succeeded)        AS path_ok,
        sum(duplicates)           AS path_duplicates,
        groupArrayIf(duration_ns, succeeded) AS path_rtts,
        minIf(duration_ns, succeeded)        AS path_min,
        groupArrayIf(assumeNotNull(forward_ns), forward_ns IS NOT NULL)   AS path_forwards,
        groupArrayIf(assumeNotNull(backward_ns), backward_ns IS NOT NULL) AS path_backwards,
        sumMap(map(status, toUInt64(1)))     AS path_statuses,
        -- The decay that makes a step's share 1/16: ln 2 / ln (16/15).
        exponentialMovingAverageIf(10.74005366628131)(abs(duration_ns - previous_ns), nth, succeeded AND nth > 0) AS path_jitter,
        countIf(succeeded AND nth > 0 AND came < latest) AS path_reordered
    FROM
    (
        SELECT
            cells[trial + 1]                             AS cell,
            trial,
            attrs['path']                                AS path,
            attrs['protocol']                            AS protocol,
            toString(site)                               AS src_site,
            if(position(attrs['dst'], '://') > 0, attrs['dst'], attrs['dst_site']) AS dst_site,
            toString(events.status)                      AS status,
            events.status = 'ok'                         AS succeeded,
            toInt64(duration_ns)                         AS duration_ns,
            toUInt64OrZero(attrs['duplicates'])          AS duplicates,
            toInt64OrNull(attrs['forward_ns'])           AS forward_ns,
            toInt64OrNull(attrs['backward_ns'])          AS backward_ns,
            toUnixTimestamp64Nano(ts) + toInt64(wait_ns) + duration_ns AS came,
            row_number() OVER answers - 1                AS nth,
            lagInFrame(duration_ns) OVER answers         AS previous_ns,
            max(came) OVER (PARTITION BY trial, path, succeeded ORDER BY ts, seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS latest
        FROM events
        WHERE run = {run:UUID} AND kind = 'probe' AND trial < length(cells) AND attempt = attempts[trial + 1]
        WINDOW answers AS (PARTITION BY trial, path, succeeded ORDER BY ts, seq ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
    )
    GROUP BY cell, trial, path
)
GROUP BY cell, protocol, src_site, dst_site
ORDER BY cell, protocol, src_site, dst_site
