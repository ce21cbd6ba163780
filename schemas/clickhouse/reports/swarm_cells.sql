-- What was measured in each cell of a swarm run. Times, throughput and ratio are of transfers that succeeded.
-- What is of a whole trial is computed trial by trial; a cell has the median of its trials.
--   throughput        size * 8 * leechers / (seconds * 1000), kbit/s
--   ratio             of a trial: what its leechers received / (size * leechers), of those that succeeded
--   spread            of a trial: 99th percentile / median of its transfers
--   bound_efficiency  of a trial in which all succeeded: bound / slowest transfer
--   copy_efficiency   of a trial: plain TCP copy / median transfer
--   unattributed      the worst share, of any trial and agent, of what an interface that nothing else uses sent
-- quantileExact(p) is the sample at rank floor(p*n), counted from 0.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts
SELECT
    cell,
    countIf(transferred > 0)                                   AS trials,
    max(trial_leechers)                                        AS leechers,
    sum(transferred)                                           AS transfers,
    sum(finished)                                              AS ok,
    sumMap(trial_statuses)                                     AS statuses,
    quantilesExactArray(0.5, 0.9, 0.99, 0.999, 1)(durations)   AS transfer_ns,
    minArray(durations)                                        AS least_ns,
    avgArray(durations)                                        AS mean_ns,
    stddevSampStableArray(durations)                           AS sd_ns,
    avgArray(throughputs)                                      AS throughput_kbps,
    stddevSampStableArray(throughputs)                         AS throughput_sd_kbps,
    countIf(finished > 0)                                      AS measured,
    avgIf(trial_ratio, finished > 0)                           AS ratio,
    stddevSampStableIf(trial_ratio, finished > 0)              AS ratio_sd,
    quantileExactIf(0.5)(trial_spread, finished > 0)           AS spread,
    countIf(trial_bound > 0)                                   AS bounds,
    quantileExactIf(0.5)(trial_bound, trial_bound > 0)         AS bound_ns,
    countIf(trial_bound > 0 AND whole)                         AS bounded,
    quantileExactIf(0.5)(trial_bound / slowest, trial_bound > 0 AND whole) AS bound_efficiency,
    countIf(trial_copy > 0)                                    AS copies,
    quantileExactIf(0.5)(trial_copy, trial_copy > 0)           AS copy_ns,
    countIf(trial_copy > 0 AND finished > 0)                   AS copied,
    quantileExactIf(0.5)(trial_copy / middle, trial_copy > 0 AND finished > 0) AS copy_efficiency,
    sum(exclusive)                                             AS interfaces,
    max(trial_unattributed)                                    AS unattributed
FROM
(
    WITH
        kind = 'transfer'                                      AS is_transfer,
        is_transfer AND status = 'ok'                          AS succeeded,
        kind = 'interface' AND attrs['exclusive'] = 'true' AND bytes > 0 AS is_exclusive,
        greatest(toUInt64OrZero(attrs['size']), 1)             AS size_bytes,
        toUInt32OrZero(attrs['leechers'])                      AS of_leechers
    SELECT
        cells[trial + 1]                                       AS cell,
        trial,
        countIf(is_transfer)                                   AS transferred,
        countIf(succeeded)                                     AS finished,
        maxIf(of_leechers, is_transfer)                           AS trial_leechers,
        finished > 0 AND finished = trial_leechers             AS whole,
        sumMapIf(map(toString(status), toUInt64(1)), is_transfer) AS trial_statuses,
        groupArrayIf(duration_ns, succeeded)                   AS durations,
        groupArrayIf(toFloat64(size_bytes) * 8 * of_leechers * 1e6 / greatest(duration_ns, 1), succeeded) AS throughputs,
        sumIf(toUInt64OrZero(attrs['received']), succeeded) / sumIf(size_bytes, succeeded) AS trial_ratio,
        greatest(quantileExactIf(0.5)(duration_ns, succeeded), 1) AS middle,
        quantileExactIf(0.99)(duration_ns, succeeded) / middle AS trial_spread,
        greatest(maxIf(duration_ns, succeeded), 1)             AS slowest,
        maxIf(toUInt64OrZero(attrs['bound_ns']), is_transfer)  AS trial_bound,
        maxIf(duration_ns, kind = 'copy' AND status = 'ok')    AS trial_copy,
        countIf(is_exclusive)                                  AS exclusive,
        maxIf(abs(toInt64OrZero(attrs['unattributed'])) / bytes, is_exclusive) AS trial_unattributed
    FROM events
    WHERE run = {run:UUID} AND kind IN ('transfer', 'copy', 'interface') AND trial < length(cells) AND attempt = attempts[trial + 1]
    GROUP BY cell, trial
)
GROUP BY cell
ORDER BY cell
