-- How long each trial of a run took: from the common start (the intended start of each agent's task) to the
-- last completion. Times of different agents are never subtracted from each other: their clocks differ.
WITH {attempts:Array(UInt16)} AS attempts
SELECT trial, max(span_ns) AS elapsed_ns
FROM
(
    SELECT
        trial,
        agent,
        maxIf(toUnixTimestamp64Nano(ts) + toInt64(wait_ns + duration_ns), kind = {kind:String}) - min(toUnixTimestamp64Nano(ts)) AS span_ns
    FROM events
    WHERE run = {run:UUID} AND kind IN ({kind:String}, 'task') AND trial < length(attempts) AND attempt = attempts[trial + 1]
    GROUP BY trial, agent
    HAVING countIf(kind = {kind:String}) > 0
)
GROUP BY trial
ORDER BY trial
