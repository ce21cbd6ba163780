-- The scheduler's closing statement of each trial. `cell` numbers the cell of the
-- matrix, `axes` are its parameters. A run that is resumed or repeated counts
-- attempts on; `final` says that no later attempt of the trial has ended.
CREATE OR REPLACE VIEW trials AS
SELECT
    ts,
    run,
    trial,
    attempt,
    workload,
    status,
    error,
    duration_ns,
    bytes,
    toUInt32OrZero(attrs['cell']) AS cell,
    toUInt32OrZero(attrs['repeat']) AS repeat,
    toUInt32OrZero(attrs['agents']) AS agents,
    toUInt32OrZero(attrs['emulated']) AS emulated,
    CAST(mapFromArrays(
        arrayMap(k -> substring(k, 6), arrayFilter(k -> startsWith(k, 'cell.'), mapKeys(attrs))),
        arrayFilter((v, k) -> startsWith(k, 'cell.'), mapValues(attrs), mapKeys(attrs))
    ), 'Map(String, String)') AS axes,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    attrs
FROM events
WHERE kind = 'trial';

-- Every agent's closing statement of its task of a trial: what it issued and
-- recorded, how late its generator sent (lag), what it cost (cpu: share of the
-- machine), how far its clock was off the scheduler's and how well that is known.
CREATE OR REPLACE VIEW tasks AS
SELECT
    ts,
    run,
    trial,
    attempt,
    workload,
    service,
    site,
    agent,
    producer,
    status,
    error,
    duration_ns,
    bytes,
    toUInt64OrZero(attrs['issued']) AS issued,
    toUInt64OrZero(attrs['recorded']) AS recorded,
    toUInt64OrZero(attrs['errors']) AS errors,
    toUInt64OrZero(attrs['lag_p50_ns']) AS lag_p50_ns,
    toUInt64OrZero(attrs['lag_p99_ns']) AS lag_p99_ns,
    toUInt64OrZero(attrs['lag_max_ns']) AS lag_max_ns,
    toFloat64OrZero(attrs['cpu']) AS cpu,
    toInt64OrZero(attrs['clock_offset_ns']) AS clock_offset_ns,
    toUInt64OrZero(attrs['clock_bound_ns']) AS clock_bound_ns,
    toUInt32OrZero(attrs['clients']) AS clients,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final,
    attrs
FROM events
WHERE kind = 'task';
