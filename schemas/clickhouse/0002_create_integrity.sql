-- Whether everything that producers numbered is there, once: numbers start at 1
-- and rise by one. What a producer recorded last and nobody received cannot show
-- here; the closing statement of a task (view tasks, column recorded) tells it.
CREATE OR REPLACE VIEW integrity AS
SELECT
    producer,
    received,
    toUInt64(last - distinct_seqs) AS lost,
    toUInt64(received - distinct_seqs) AS duplicated,
    first,
    last
FROM
(
    SELECT
        producer,
        count() AS received,
        groupBitmap(seq) AS distinct_seqs,
        min(seq) AS first,
        max(seq) AS last
    FROM events
    GROUP BY producer
);
