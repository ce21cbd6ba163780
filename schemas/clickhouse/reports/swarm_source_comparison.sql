-- leechers_performance_comparison.csv of a swarm run: one row for each file, size and leecher. Means and standard
-- deviations (of a sample: n - 1) are of the transfers that succeeded; one alone has no deviation.
SELECT
    file,
    size_bytes,
    leecher,
    count()                                                                              AS iterations,
    countIf(status = 'ok')                                                               AS transfers_ok,
    if(transfers_ok > 0, avgIf(duration_ns / 1e9, status = 'ok'), NULL)                  AS transfer_time_s_mean,
    if(transfers_ok > 1, stddevSampStableIf(duration_ns / 1e9, status = 'ok'), NULL)     AS transfer_time_s_sd,
    if(transfers_ok > 0, avgIf(throughput_kbps, status = 'ok'), NULL)                    AS throughput_kbps_mean,
    if(transfers_ok > 1, stddevSampStableIf(throughput_kbps, status = 'ok'), NULL)       AS throughput_kbps_sd,
    if(transfers_ok > 0, avgIf(ratio, status = 'ok'), NULL)                              AS transfer_ratio_mean,
    if(transfers_ok > 1, stddevSampStableIf(ratio, status = 'ok'), NULL)                 AS transfer_ratio_sd
FROM swarm_transfers
WHERE run = {run:UUID} AND final
GROUP BY file, size_bytes, leecher
ORDER BY size_bytes, file, leecher
