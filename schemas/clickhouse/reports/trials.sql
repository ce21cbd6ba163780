-- Successful requests, payload and median latencies of each trial of a run, of probes for each pair of ends.
-- The first of a transfer is its first piece.
WITH
    {attempts:Array(UInt16)} AS attempts,
    if({kind:String} = 'transfer', toUInt64OrZero(attrs['first_piece_ns']), first_byte_ns) AS first_ns,
    status = 'ok' AS succeeded
SELECT
    trial,
    if({kind:String} = 'probe', concat(attrs['protocol'], ' ', toString(site), ' ', if(position(attrs['dst'], '://') > 0, attrs['dst'], attrs['dst_site'])), '') AS ends,
    countIf(succeeded)                                                   AS ok,
    sumIf(bytes, succeeded)                                              AS payload,
    quantileExactIf(0.5)(wait_ns + duration_ns, succeeded)               AS corrected_ns,
    quantileExactIf(0.5)(duration_ns, succeeded)                         AS service_ns,
    countIf(succeeded AND first_ns > 0)                                  AS answered,
    quantileExactIf(0.5)(first_ns, succeeded AND first_ns > 0)           AS first_median_ns
FROM events
WHERE run = {run:UUID} AND kind = {kind:String} AND trial < length(attempts) AND attempt = attempts[trial + 1]
GROUP BY trial, ends
ORDER BY trial, ends
