-- Which agents acted at which sites in a run.
SELECT toString(site) AS at, toString(agent) AS who, count() AS requests
FROM events
WHERE run = {run:UUID} AND kind = {kind:String}
GROUP BY at, who
ORDER BY at, who
LIMIT 1000
