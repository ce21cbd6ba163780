-- One row is one timed operation. What is here is measured: see bench/collector.
--
-- Order: a producer numbers its events, so batches come sorted by this key, and
-- neither inserts nor merges have to sort them (three times the rate of an order
-- by time). Producers also group the events of a batch by their attributes, which
-- is worth a third of the space.
-- Codecs: T64 takes the bits that are never set out of the times, which are noise
-- below; times that follow each other closely are kept as differences.
-- string_serialization_version: sizes of strings in a stream of their own cost more
-- than the attributes themselves.
-- non_replicated_deduplication_window: how many inserts the table remembers by
-- their token. Without it a repeated insert would be stored twice.
-- No partitions: an insert is one part, there as a whole or not at all.
CREATE TABLE IF NOT EXISTS events
(
    ts            DateTime64(9, 'UTC')   CODEC(Delta, T64('bit'), ZSTD(1)),
    run           UUID                   CODEC(ZSTD(1)),
    trial         UInt32                 CODEC(ZSTD(1)),
    attempt       UInt16                 CODEC(ZSTD(1)),
    workload      LowCardinality(String) CODEC(ZSTD(1)),
    service       LowCardinality(String) CODEC(ZSTD(1)),
    site          LowCardinality(String) CODEC(ZSTD(1)),
    agent         LowCardinality(String) CODEC(ZSTD(1)),
    kind          LowCardinality(String) CODEC(ZSTD(1)),
    wait_ns       UInt64                 CODEC(T64('bit'), ZSTD(1)),
    first_byte_ns UInt64                 CODEC(T64('bit'), ZSTD(1)),
    duration_ns   UInt64                 CODEC(T64('bit'), ZSTD(1)),
    bytes         UInt64                 CODEC(T64('bit'), ZSTD(1)),
    status        LowCardinality(String) CODEC(ZSTD(1)),
    error         String                 CODEC(ZSTD(3)),
    attrs         Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    producer      LowCardinality(String) CODEC(ZSTD(1)),
    seq           UInt64                 CODEC(DoubleDelta, ZSTD(1)),
    INDEX times ts TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
ORDER BY (run, trial, producer, seq)
SETTINGS
    non_replicated_deduplication_window = 10000,
    string_serialization_version = 'single_stream',
    min_compress_block_size = 262144,
    max_compress_block_size = 1048576,
    auto_statistics_types = '';
