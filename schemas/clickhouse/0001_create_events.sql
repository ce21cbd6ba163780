-- One row is one timed operation. Column codecs and order are measured: see bench/collector.
CREATE TABLE IF NOT EXISTS events
(
    ts            DateTime64(9, 'UTC')   CODEC(Delta, ZSTD(1)),
    run           UUID                   CODEC(ZSTD(1)),
    trial         UInt32                 CODEC(Delta, ZSTD(1)),
    attempt       UInt16                 CODEC(ZSTD(1)),
    workload      LowCardinality(String) CODEC(ZSTD(1)),
    service       LowCardinality(String) CODEC(ZSTD(1)),
    site          LowCardinality(String) CODEC(ZSTD(1)),
    agent         LowCardinality(String) CODEC(ZSTD(1)),
    kind          LowCardinality(String) CODEC(ZSTD(1)),
    wait_ns       UInt64                 CODEC(T64, ZSTD(1)),
    first_byte_ns UInt64                 CODEC(T64, ZSTD(1)),
    duration_ns   UInt64                 CODEC(T64, ZSTD(1)),
    bytes         UInt64                 CODEC(T64, ZSTD(1)),
    status        LowCardinality(String) CODEC(ZSTD(1)),
    error         String                 CODEC(ZSTD(1)),
    attrs         Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    producer      LowCardinality(String) CODEC(ZSTD(1)),
    seq           UInt64                 CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (run, trial, kind, agent, ts)
SETTINGS non_replicated_deduplication_window = 1000;
