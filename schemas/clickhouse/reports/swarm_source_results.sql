-- all_leechers_results.csv of a swarm run: one row for each leecher and iteration. Iterations count the trials of a
-- file and size from 1. A transfer that did not succeed has a status and no figures.
SELECT
    dense_rank() OVER (PARTITION BY file, size_bytes ORDER BY trial) AS iteration,
    file,
    size_bytes,
    leecher,
    if(status = 'ok', duration_ns / 1e9, NULL)   AS transfer_time_s,
    throughput_kbps,
    if(status = 'ok', ratio, NULL)               AS transfer_ratio,
    status
FROM swarm_transfers
WHERE run = {run:UUID} AND final
ORDER BY size_bytes, file, iteration, leecher
