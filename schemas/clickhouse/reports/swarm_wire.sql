-- What the bytes sent in each cell of a swarm run were for, by who sent them. What the peers and the tracker know of is
-- joined by what their interfaces counted, where nothing else uses the interfaces of any agent in any trial of the
-- cell: headers of IP, TCP and UDP (messages are packets), what TCP sent again, and what nothing accounts for
-- (negative when more was accounted for than counted). Then the rows of a cell add up to what the interfaces sent.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts
SELECT
    cell,
    class,
    total                                              AS all_bytes,
    total / sum(total) OVER (PARTITION BY cell)        AS share,
    messages,
    of_leechers.1 AS leecher_bytes, of_leechers.2 AS leecher_messages,
    of_seeders.1 AS seeder_bytes, of_seeders.2 AS seeder_messages,
    of_tracker.1 AS tracker_bytes, of_tracker.2 AS tracker_messages
FROM
(
    WITH toUInt64OrZero(attrs['messages']) AS one
    SELECT
        cells[trial + 1]                                                AS cell,
        attrs['class']                                                  AS class,
        toInt64(sum(bytes))                                             AS total,
        sum(one)                                                        AS messages,
        (sumIf(bytes, attrs['role'] = 'leecher'), sumIf(one, attrs['role'] = 'leecher')) AS of_leechers,
        (sumIf(bytes, attrs['role'] = 'seeder'), sumIf(one, attrs['role'] = 'seeder'))   AS of_seeders,
        (sumIf(bytes, attrs['role'] = 'tracker'), sumIf(one, attrs['role'] = 'tracker')) AS of_tracker
    FROM events
    WHERE run = {run:UUID} AND kind = 'wire' AND attrs['direction'] = 'sent' AND trial < length(cells) AND attempt = attempts[trial + 1]
    GROUP BY cell, class
    UNION ALL
    SELECT
        cell,
        counted.1 AS class,
        counted.2 AS total,
        counted.3 AS messages,
        (toUInt64(0), toUInt64(0)) AS of_leechers,
        (toUInt64(0), toUInt64(0)) AS of_seeders,
        (toUInt64(0), toUInt64(0)) AS of_tracker
    FROM
    (
        SELECT
            cells[trial + 1] AS cell,
            arrayJoin([
                ('ip_headers', sum(toInt64OrZero(attrs['headers'])), sum(toUInt64OrZero(attrs['tx_packets']))),
                ('sent_again', sum(toInt64OrZero(attrs['sent_again'])), toUInt64(0)),
                ('unattributed', sum(toInt64OrZero(attrs['unattributed'])), toUInt64(0))
            ]) AS counted
        FROM events
        WHERE run = {run:UUID} AND kind = 'interface' AND trial < length(cells) AND attempt = attempts[trial + 1]
        GROUP BY cell
        HAVING countIf(attrs['exclusive'] != 'true') = 0
    )
)
WHERE total != 0
ORDER BY cell, total DESC, class
