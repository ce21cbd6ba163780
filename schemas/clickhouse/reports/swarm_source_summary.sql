-- all_leechers_summary.csv of a swarm run: one row for each file and size. Means and standard deviations (of a sample:
-- n - 1) are over all leechers and iterations whose transfer succeeded; one alone has no deviation.
SELECT
    file,
    size_bytes,
    uniqExact(trial)                                                                     AS iterations,
    max(swarm_transfers.leechers)                                                        AS leechers,
    count()                                                                              AS transfers,
    countIf(status = 'ok')                                                               AS transfers_ok,
    if(transfers_ok > 0, avgIf(duration_ns / 1e9, status = 'ok'), NULL)                  AS transfer_time_s_mean,
    if(transfers_ok > 1, stddevSampStableIf(duration_ns / 1e9, status = 'ok'), NULL)     AS transfer_time_s_sd,
    if(transfers_ok > 0, avgIf(throughput_kbps, status = 'ok'), NULL)                    AS throughput_kbps_mean,
    if(transfers_ok > 1, stddevSampStableIf(throughput_kbps, status = 'ok'), NULL)       AS throughput_kbps_sd,
    if(transfers_ok > 0, avgIf(ratio, status = 'ok'), NULL)                              AS transfer_ratio_mean,
    if(transfers_ok > 1, stddevSampStableIf(ratio, status = 'ok'), NULL)                 AS transfer_ratio_sd
FROM swarm_transfers
WHERE run = {run:UUID} AND final
GROUP BY file, size_bytes
ORDER BY size_bytes, file
