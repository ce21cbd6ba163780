-- What was measured in each cell of an offload run. Times are of clips that have a detection (ok).
--   end_to_end    trigger to result stored
--   overhead      clip closed to result stored without decoding and inference
--   detect        what decoding and inference added
--   local_share   clips seen by their edge / ok
--   unaccounted   the worst |total - sum of stages| / total of a clip
--   pictures      contents looked at; `differing` are those of which two results differ
--   precision, recall   of labels in frames, against what the clips show
--   misjudged     median |predicted - actual| / actual of decisions with a prediction
-- quantileExact(p) is the sample at rank floor(p*n), counted from 0.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts
SELECT
    cell,
    sum(n)                                                       AS clips,
    sum(n_ok)                                                    AS ok,
    sumMap(n_statuses)                                           AS statuses,
    quantilesExactArray(0.5, 0.9, 0.95, 0.99, 0.999, 1)(ends)    AS end_to_end_ns,
    avgArray(ends)                                               AS mean_ns,
    quantilesExactArray(0.5, 0.9, 0.95, 0.99, 0.999, 1)(overheads) AS overhead_ns,
    quantilesExactArray(0.5, 0.9, 0.95, 0.99, 0.999, 1)(detects) AS detect_ns,
    sum(n_near) / greatest(sum(n_ok), 1)                         AS local_share,
    max(worst)                                                   AS unaccounted,
    sum(sum_tp) / greatest(sum(sum_tp) + sum(sum_fp), 1)         AS label_precision,
    sum(sum_tp) / greatest(sum(sum_tp) + sum(sum_fn), 1)         AS label_recall,
    sum(sum_tp) + sum(sum_fp) + sum(sum_fn)                      AS labelled,
    count()                                                      AS pictures,
    countIf(views > 1)                                           AS differing,
    sum(length(judged))                                          AS predictions,
    quantileExactArray(0.5)(judged)                              AS misjudged
FROM
(
    SELECT
        cells[trial + 1]                                         AS cell,
        clip_sha256,
        count()                                                  AS n,
        countIf(status = 'ok')                                   AS n_ok,
        sumMap(map(toString(status), toUInt64(1)))               AS n_statuses,
        groupArrayIf(toUInt64(greatest(assumeNotNull(end_to_end_ns), 0)), status = 'ok') AS ends,
        groupArrayIf(toUInt64(greatest(assumeNotNull(overhead_ns), 0)), status = 'ok')   AS overheads,
        groupArrayIf(toUInt64(greatest(assumeNotNull(decode_ns + infer_ns), 0)), status = 'ok') AS detects,
        countIf(status = 'ok' AND seen_by = 'edge')              AS n_near,
        maxIf(ifNull(unaccounted, 1), status = 'ok')             AS worst,
        sum(tp)                                                  AS sum_tp,
        sum(fp)                                                  AS sum_fp,
        sum(fn)                                                  AS sum_fn,
        uniqExactIf(detections_hash, status = 'ok')              AS views,
        groupArrayIf(abs(assumeNotNull(actual_ns) - if(decision = 'edge', assumeNotNull(predicted_edge_ns), assumeNotNull(predicted_cloud_ns)))
            / greatest(assumeNotNull(actual_ns), 1), status = 'ok' AND isNotNull(predicted_edge_ns) AND isNotNull(predicted_cloud_ns)) AS judged
    FROM offload_clips
    WHERE run = {run:UUID} AND trial < length(cells) AND attempt = attempts[trial + 1]
    GROUP BY cell, clip_sha256
)
GROUP BY cell
ORDER BY cell
