-- Cloud instances that existed for runs, from their launch to their end.
CREATE OR REPLACE VIEW fleet_instances AS
SELECT
    ts AS launched,
    run,
    site,
    attrs['region'] AS region,
    attrs['instance_id'] AS instance_id,
    attrs['instance_type'] AS instance_type,
    duration_ns AS ran_ns
FROM events
WHERE kind = 'instance';
