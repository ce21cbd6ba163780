-- What agents (kind task) and the scheduler (kind trial) said at the end of each task and trial of a run, and what the
-- provisioner measured of the network that was made for it (kinds gate and link).
SELECT trial, attempt, toString(kind) AS kind, toString(agent) AS agent, toString(producer) AS producer, toString(status) AS status, error, attrs
FROM events
WHERE run = {run:UUID} AND kind IN ('task', 'trial', 'gate', 'link')
ORDER BY trial, attempt, kind, agent, ts
