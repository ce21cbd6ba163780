-- How many events of each attempt of each trial of a run are stored, by producer.
-- `distinct` below `stored` means duplicates: a producer's numbers are unique.
SELECT
    producer,
    trial,
    attempt,
    count()                      AS stored,
    groupBitmap(seq)             AS distinct_seqs,
    countIf(kind = {kind:String})    AS requests,
    countIf(kind = 'trial' AND status = 'ok') AS closed
FROM events
WHERE run = {run:UUID}
GROUP BY producer, trial, attempt
ORDER BY producer, trial, attempt
