package clickhouse_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

const eventsTable = `(
	ts DateTime64(9,'UTC') CODEC(DoubleDelta, ZSTD(1)),
	run UUID CODEC(ZSTD(1)), trial UInt32 CODEC(ZSTD(1)),
	workload LowCardinality(String), service LowCardinality(String), site LowCardinality(String), agent LowCardinality(String), kind LowCardinality(String),
	wait_ns UInt64 CODEC(T64, ZSTD(1)), first_byte_ns UInt64 CODEC(T64, ZSTD(1)), duration_ns UInt64 CODEC(T64, ZSTD(1)),
	bytes UInt64 CODEC(ZSTD(1)), status LowCardinality(String), error String CODEC(ZSTD(1)),
	attrs Map(LowCardinality(String), String) CODEC(ZSTD(1)),
	producer LowCardinality(String), seq UInt64 CODEC(DoubleDelta, ZSTD(1))
) ENGINE = MergeTree ORDER BY (workload, run, trial, ts) SETTINGS non_replicated_deduplication_window = 10000`

// eventsBlock encodes rows events, the first of them with sequence number seq.
func eventsBlock(tb testing.TB, rows int, seq uint64) []byte {
	tb.Helper()
	var (
		ts                                                     = new(proto.ColDateTime64).WithPrecision(9).WithLocation(time.UTC)
		run                                                    proto.ColUUID
		trial                                                  proto.ColUInt32
		wait, first, duration, size, number                    proto.ColUInt64
		text                                                   proto.ColStr
		workload, service, site, agent, kind, status, producer = lc(), lc(), lc(), lc(), lc(), lc(), lc()
		attrs                                                  = proto.NewMap[string, string](lc(), new(proto.ColStr))
		id                                                     = uuid.MustParse("0190c2d4-0000-7000-8000-000000000001")
		start                                                  = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
		random                                                 = rand.New(rand.NewPCG(1, seq))
	)
	for i := range rows {
		n := seq + uint64(i)
		ts.Append(start.Add(time.Duration(n)*10*time.Microsecond + time.Duration(random.IntN(5000))))
		run.Append(id)
		trial.Append(uint32(n / 100000))
		workload.Append("s3")
		service.Append("s3-loader")
		site.Append([]string{"oregon", "frankfurt"}[n%2])
		agent.Append([]string{"oregon-1", "frankfurt-1"}[n%2])
		kind.Append("request")
		w := random.ExpFloat64() * 50e3
		wait.Append(uint64(w))
		f := 300e3 + random.ExpFloat64()*200e3
		first.Append(uint64(f))
		duration.Append(uint64(f + 700e3 + random.ExpFloat64()*400e3))
		size.Append(1 << 20)
		status.Append("ok")
		text.Append("")
		attrs.Append(map[string]string{"bucket": fmt.Sprintf("bucket%d", n%3), "size": "1048576"})
		producer.Append("oregon-1/s3-loader/1")
		number.Append(n)
	}
	input := proto.Input{
		{Name: "ts", Data: ts},
		{Name: "run", Data: &run},
		{Name: "trial", Data: &trial},
		{Name: "workload", Data: workload},
		{Name: "service", Data: service},
		{Name: "site", Data: site},
		{Name: "agent", Data: agent},
		{Name: "kind", Data: kind},
		{Name: "wait_ns", Data: &wait},
		{Name: "first_byte_ns", Data: &first},
		{Name: "duration_ns", Data: &duration},
		{Name: "bytes", Data: &size},
		{Name: "status", Data: status},
		{Name: "error", Data: &text},
		{Name: "attrs", Data: attrs},
		{Name: "producer", Data: producer},
		{Name: "seq", Data: &number},
	}
	var buf proto.Buffer
	if err := (proto.Block{Columns: len(input), Rows: rows}).EncodeRawBlock(&buf, 0, input); err != nil {
		tb.Fatal(err)
	}
	return buf.Buf
}

func lc() *proto.ColLowCardinality[string] { return new(proto.ColStr).LowCardinality() }

func BenchmarkInsert(b *testing.B) {
	server := chtest.Start(b)
	conn := chtest.Conn(b)
	const rows = 10_000
	for _, batches := range []int{5, 20, 50} {
		blocks := make([][]byte, batches)
		var bytes int64
		for i := range blocks {
			blocks[i] = eventsBlock(b, rows, uint64(i*rows))
			bytes += int64(len(blocks[i]))
		}
		for name, dsn := range map[string]string{"http": server.LabDSN(), "native": withoutHTTP(server.LabDSN())} {
			b.Run(fmt.Sprintf("%s/%dk", name, batches*rows/1000), func(b *testing.B) {
				in, err := clickhouse.NewInserter(dsn)
				if err != nil {
					b.Fatal(err)
				}
				defer in.Close()
				table := fmt.Sprintf("bench_%s_%d", name, batches)
				if err := conn.Exec(b.Context(), "DROP TABLE IF EXISTS "+table+" SYNC"); err != nil {
					b.Fatal(err)
				}
				if err := conn.Exec(b.Context(), "CREATE TABLE "+table+" "+eventsTable); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(bytes)
				n := 0
				before := cpuSeconds(b, server.PID())
				for b.Loop() {
					n++
					if err := in.Insert(b.Context(), table, fmt.Sprint(b.N, "-", n), blocks); err != nil {
						b.Fatal(err)
					}
				}
				million := float64(n*rows*batches) / 1e6
				b.ReportMetric(million*1e6/b.Elapsed().Seconds(), "rows/s")
				b.ReportMetric((cpuSeconds(b, server.PID())-before)/million, "engine-cpu-s/Mrow")
			})
		}
	}
}

func withoutHTTP(dsn string) string {
	for i := range dsn {
		if dsn[i] == '?' {
			return dsn[:i]
		}
	}
	return dsn
}

// cpuSeconds is what the process has used so far.
func cpuSeconds(tb testing.TB, pid int) float64 {
	tb.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(after)
	var ticks float64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			tb.Fatal(err)
		}
		ticks += n
	}
	return ticks / 100
}
