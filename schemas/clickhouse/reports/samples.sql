-- A sample of the successful requests of each cell of a run, the same at every call: those whose hash is at most
-- thresholds[cell + 1] (18446744073709551615 takes all). The first of a transfer is its first piece.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts,
    {thresholds:Array(UInt64)} AS thresholds
SELECT cells[trial + 1] AS cell, trial,
    if({kind:String} = 'probe', concat(attrs['protocol'], ' ', toString(site), ' ', if(position(attrs['dst'], '://') > 0, attrs['dst'], attrs['dst_site'])), '') AS ends,
    wait_ns + duration_ns AS corrected_ns, duration_ns AS service_ns,
    if({kind:String} = 'transfer', toUInt64OrZero(attrs['first_piece_ns']), first_byte_ns) AS first_ns
FROM events
WHERE run = {run:UUID} AND kind = {kind:String} AND status = 'ok' AND trial < length(cells) AND attempt = attempts[trial + 1]
    AND sipHash64(toString(producer), seq) <= thresholds[cells[trial + 1] + 1]
ORDER BY cell, trial, toString(producer), seq
LIMIT {rows:UInt64}
