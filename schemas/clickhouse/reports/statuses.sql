-- Requests of each cell of a run by status.
WITH
    {cells:Array(UInt32)} AS cells,
    {attempts:Array(UInt16)} AS attempts
SELECT cells[trial + 1] AS cell, toString(status) AS word, count() AS requests
FROM events
WHERE run = {run:UUID} AND kind = {kind:String} AND trial < length(cells) AND attempt = attempts[trial + 1]
GROUP BY cell, word
ORDER BY cell, word
