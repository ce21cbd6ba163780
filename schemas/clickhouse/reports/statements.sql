-- What agents (kind task) and the scheduler (kind trial) said at the end of each task and trial of a run.
SELECT trial, attempt, toString(kind) AS kind, toString(agent) AS agent, toString(producer) AS producer, toString(status) AS status, error, attrs
FROM events
WHERE run = {run:UUID} AND kind IN ('task', 'trial')
ORDER BY trial, attempt, kind, agent, ts
