-- When each phase of the transfers that succeeded came in each cell of a swarm run, after their beginning.
-- quantileExact(p) is the sample at rank floor(p*n), counted from 0.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts,
    ['announce', 'handshake', 'unchoke', 'first_piece', 'd10', 'd20', 'd30', 'd40', 'd50', 'd60', 'd70', 'd80', 'd90',
     'last_block', 'complete', 'verified', 'seed_out'] AS phases
SELECT
    cell,
    phases[nth]                                    AS phase,
    count()                                        AS transfers,
    quantilesExact(0.5, 0.9, 0.99, 0.999, 1)(ns)   AS after_ns
FROM
(
    SELECT
        cells[trial + 1]                                        AS cell,
        arrayJoin(arrayEnumerate(phases))                       AS nth,
        toUInt64OrNull(attrs[concat(phases[nth], '_ns')])       AS ns
    FROM events
    WHERE run = {run:UUID} AND kind = 'transfer' AND status = 'ok' AND trial < length(cells) AND attempt = attempts[trial + 1]
)
WHERE ns IS NOT NULL
GROUP BY cell, nth
ORDER BY cell, nth
