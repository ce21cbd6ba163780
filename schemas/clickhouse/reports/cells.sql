-- Load and exact latency quantiles of each cell of a run.
-- cells[trial + 1] is the cell of a trial, attempts[trial + 1] the attempt that counts (0: none does).
-- quantileExact(p) is the sample at rank floor(p*n), counted from 0.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts,
    status = 'ok' AS succeeded
SELECT
    cells[trial + 1]                                                              AS cell,
    count()                                                                       AS requests,
    countIf(succeeded)                                                            AS ok,
    sumIf(bytes, succeeded)                                                       AS payload,
    quantilesExactIf(0.5, 0.9, 0.99, 0.999, 1)(wait_ns + duration_ns, succeeded)  AS corrected_ns,
    quantilesExactIf(0.5, 0.9, 0.99, 0.999, 1)(duration_ns, succeeded)            AS service_ns,
    countIf(succeeded AND first_byte_ns > 0)                                      AS answered,
    quantilesExactIf(0.5, 0.9, 0.99, 0.999, 1)(first_byte_ns, succeeded AND first_byte_ns > 0) AS first_byte_quantiles_ns,
    quantilesExact(0.5, 0.9, 0.99, 0.999, 1)(wait_ns)                             AS wait_quantiles_ns
FROM events
WHERE run = {run:UUID} AND kind = {kind:String} AND trial < length(cells) AND attempt = attempts[trial + 1]
GROUP BY cell
ORDER BY cell
