-- What each stage added to the clips of each cell of an offload run, of clips that have a detection.
-- quantileExact(p) is the sample at rank floor(p*n), counted from 0.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts,
    ['recorded', 'spooled', 'decided', 'uploaded', 'queued', 'taken', 'fetched', 'decoded', 'inferred', 'stored', 'acknowledged', 'confirmed'] AS stages
SELECT
    cells[trial + 1]                                                AS cell,
    stage.1                                                         AS name,
    count()                                                         AS clips,
    avg(assumeNotNull(stage.2))                                     AS mean_ns,
    quantilesExact(0.5, 0.95, 1)(toUInt64(assumeNotNull(stage.2)))  AS added_ns
FROM
(
    SELECT
        trial,
        arrayJoin(arrayZip(stages, [record_ns, spool_ns, decide_ns, upload_ns, queue_ns, waiting_ns, fetch_ns, decode_ns, infer_ns,
            store_ns, acknowledge_ns, confirm_ns])) AS stage
    FROM offload_clips
    WHERE run = {run:UUID} AND status = 'ok' AND trial < length(cells) AND attempt = attempts[trial + 1]
)
WHERE stage.2 IS NOT NULL
GROUP BY cell, name
ORDER BY cell, indexOf(stages, name)
