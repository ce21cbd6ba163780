-- Every clip of the workload offload, all attempts of its trial; clips of live edges have no run. Reports want `final` ones:
-- those of the last attempt of their trial that has ended. A clip that was told of twice is one row.
--   ts             the trigger by plan
--   wait_ns        trigger by plan to trigger: how late our own generator was
--   decision       who was to look at the clip: edge or cloud; `seen_by` is who did
--   end_to_end_ns  trigger to result stored
--   total_ns       trigger until the edge has heard of the result, by the edge's own clock from end to end
--   upload_ns      of a clip that its edge looked at itself: after its result was stored
--   record_ns … confirm_ns   what each stage added, one after the other, by the clocks of those who passed the clip on: what
--                  overlaps counts for the earlier stage. NULL for stages that the clip did not pass
--   sum_ns         of these: total_ns but for clocks that differ, and for what nobody accounts for
--   unaccounted    |total_ns - sum_ns| / total_ns
--   overhead_ns    clip closed to result stored without decoding and inference
--   decode_busy_ns, infer_busy_ns   how long these took by themselves, overlapping or not
--   predicted_edge_ns, predicted_cloud_ns   decision to result by each way, as predicted; NULL where nothing was
--   actual_ns      decision to result
--   tp, fp, fn     labels in frames that were looked at: seen and there, seen and not there, there and not seen
CREATE OR REPLACE VIEW offload_clips AS
SELECT
    *,
    (run, trial, attempt) IN (SELECT run, trial, max(attempt) FROM events WHERE kind = 'trial' GROUP BY run, trial) AS final
FROM
(
    -- NULL stays NULL; clocks that differ do not make a stage shorter than nothing.
    WITH x -> x * (x > 0) AS added
    SELECT
        ts,
        run,
        trial,
        attempt,
        site,
        agent,
        service,
        toUInt32OrZero(attrs['client']) AS client,
        attrs['group'] AS client_group,
        attrs['clip'] AS clip,
        attrs['scene'] AS scene,
        attrs['sha256'] AS clip_sha256,
        attrs['policy'] AS policy,
        attrs['decision'] AS decision,
        attrs['seen_by'] AS seen_by,
        attrs['worker'] AS worker,
        attrs['hash'] AS detections_hash,
        attrs['labels'] AS labels,
        toUInt32OrZero(attrs['tries']) AS tries,
        toString(status) AS status,
        error,
        bytes,
        wait_ns,
        duration_ns AS total_ns,
        toInt64OrNull(attrs['recorded_ns']) AS at_recorded,
        toInt64OrNull(attrs['spooled_ns']) AS at_spooled,
        toInt64OrNull(attrs['decided_ns']) AS at_decided,
        toInt64OrNull(attrs['uploaded_ns']) AS at_uploaded,
        toInt64OrNull(attrs['queued_ns']) AS at_queued,
        toInt64OrNull(attrs['taken_ns']) AS at_taken,
        toInt64OrNull(attrs['fetched_ns']) AS at_fetched,
        toInt64OrNull(attrs['decoded_ns']) AS at_decoded,
        toInt64OrNull(attrs['inferred_ns']) AS at_inferred,
        toInt64OrNull(attrs['stored_ns']) AS at_stored,
        toInt64OrNull(attrs['acknowledged_ns']) AS at_acknowledged,
        toInt64OrNull(attrs['confirmed_ns']) AS at_confirmed,
        seen_by = 'edge' AS near,
        at_stored AS end_to_end_ns,
        added(at_recorded) AS record_ns,
        added(at_spooled - at_recorded) AS spool_ns,
        added(at_decided - at_spooled) AS decide_ns,
        if(near, added(at_uploaded - at_stored), added(at_uploaded - at_decided)) AS upload_ns,
        if(near, NULL, added(at_queued - at_uploaded)) AS queue_ns,
        if(near, added(at_taken - at_decided), added(at_taken - at_queued)) AS waiting_ns,
        added(at_fetched - at_taken) AS fetch_ns,
        added(at_decoded - at_fetched) AS decode_ns,
        added(at_inferred - at_decoded) AS infer_ns,
        added(at_stored - at_inferred) AS store_ns,
        if(near, NULL, added(at_acknowledged - at_stored)) AS acknowledge_ns,
        added(at_confirmed - coalesce(if(near, at_uploaded, at_acknowledged), at_stored)) AS confirm_ns,
        record_ns + spool_ns + decide_ns + upload_ns + coalesce(queue_ns, 0) + waiting_ns + coalesce(fetch_ns, 0) + decode_ns + infer_ns
            + store_ns + coalesce(acknowledge_ns, 0) + confirm_ns AS sum_ns,
        if(total_ns > 0, abs(toInt64(total_ns) - sum_ns) / total_ns, NULL) AS unaccounted,
        at_stored - at_recorded - decode_ns - infer_ns AS overhead_ns,
        toUInt64OrNull(attrs['decode_busy_ns']) AS decode_busy_ns,
        toUInt64OrNull(attrs['infer_busy_ns']) AS infer_busy_ns,
        toInt64OrNull(attrs['predicted_edge_ns']) AS predicted_edge_ns,
        toInt64OrNull(attrs['predicted_cloud_ns']) AS predicted_cloud_ns,
        at_stored - at_decided AS actual_ns,
        attrs['reason'] AS reason,
        toUInt32OrZero(attrs['tp']) AS tp,
        toUInt32OrZero(attrs['fp']) AS fp,
        toUInt32OrZero(attrs['fn']) AS fn,
        toInt64OrNull(attrs['clock_offset_ns']) AS clock_offset_ns,
        toInt64OrNull(attrs['clock_bound_ns']) AS clock_bound_ns,
        producer,
        seq
    FROM events
    WHERE workload = 'offload' AND kind = 'clip'
    ORDER BY producer, seq
    LIMIT 1 BY run, trial, attempt, attrs['clip']
);

-- Every decision on who looks at a clip, with what was predicted and what came of it.
--   regret_ns      what came of it, less what the other way was predicted to take; NULL without predictions
CREATE OR REPLACE VIEW offload_decisions AS
SELECT
    ts,
    run,
    trial,
    attempt,
    agent,
    clip,
    policy,
    decision,
    reason,
    predicted_edge_ns,
    predicted_cloud_ns,
    if(decision = 'edge', predicted_edge_ns, predicted_cloud_ns) AS predicted_ns,
    actual_ns,
    actual_ns - predicted_ns AS error_ns,
    actual_ns - if(decision = 'edge', predicted_cloud_ns, predicted_edge_ns) AS regret_ns,
    status,
    final
FROM offload_clips;

-- Every try of a detector at a clip.
CREATE OR REPLACE VIEW offload_detections AS
SELECT
    ts,
    site,
    agent AS worker,
    attrs['clip'] AS clip,
    attrs['edge'] AS edge,
    toUInt32OrZero(attrs['try']) AS try,
    status,
    error,
    bytes,
    duration_ns,
    toUInt64OrNull(attrs['fetch_ns']) AS fetch_ns,
    toUInt64OrNull(attrs['decode_ns']) AS decode_ns,
    toUInt64OrNull(attrs['infer_ns']) AS infer_ns,
    toUInt64OrNull(attrs['store_ns']) AS store_ns,
    attrs['model'] AS model,
    producer,
    seq
FROM events
WHERE workload = 'offload' AND kind = 'detection';

-- Every decision of the autoscaler that changed something.
CREATE OR REPLACE VIEW offload_scaling AS
SELECT
    ts,
    agent AS autoscaler,
    attrs['policy'] AS policy,
    toUInt32OrZero(attrs['waiting']) AS waiting,
    toUInt32OrZero(attrs['in_work']) AS in_work,
    toUInt32OrZero(attrs['instances']) AS instances,
    toUInt32OrZero(attrs['start']) AS started,
    attrs['drain'] AS drained,
    attrs['reason'] AS reason,
    status,
    error,
    producer,
    seq
FROM events
WHERE workload = 'offload' AND kind = 'scaling';
