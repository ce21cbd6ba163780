package collector

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// publishAll sends events of one producer as one batch, numbered from first.
func (r *rig) publishAll(producer string, first uint64, events ...schemas.Event) {
	r.t.Helper()
	b := schemas.NewBlock(r.producer(producer))
	for i := range events {
		if err := events[i].Validate(); err != nil {
			r.t.Fatal(err)
		}
		b.Append(&events[i], first+uint64(i))
	}
	data, err := b.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	r.publish(bus.FormatNative, data)
}

// text is the answer to a query whose every column is a string, `|` between
// columns and a line for each row.
func (r *rig) text(query string, args ...any) string {
	r.t.Helper()
	rows, err := r.db.Query(r.t.Context(), query, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var out string
	for rows.Next() {
		cells := make([]string, len(rows.Columns()))
		into := make([]any, len(cells))
		for i := range cells {
			into[i] = &cells[i]
		}
		if err := rows.Scan(into...); err != nil {
			r.t.Fatal(err)
		}
		for i, c := range cells {
			if i > 0 {
				out += "|"
			}
			out += c
		}
		out += "\n"
	}
	if err := rows.Err(); err != nil {
		r.t.Fatal(err)
	}
	return out
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func TestViews(t *testing.T) {
	r := newRig(t)
	r.start(r.testConfig(), nil)
	run := uuid.Must(uuid.NewV7())
	at := func(s string) time.Time {
		moment, err := time.Parse("15:04:05.000", s)
		if err != nil {
			t.Fatal(err)
		}
		return moment.AddDate(2026, 2, 0)
	}
	request := func(attempt uint16, ts, bucket, op string, duration time.Duration, status string) schemas.Event {
		return schemas.Event{
			Intended: at(ts), Run: run, Trial: 7, Attempt: attempt, Workload: "s3", Service: "s3-loader", Site: "oregon", Agent: "oregon-1",
			Kind: schemas.KindRequest, Wait: 3 * time.Microsecond, FirstByte: time.Millisecond, Duration: duration, Bytes: 1000, Status: status,
			Attrs: []schemas.Attr{
				{Key: "client", Value: "2"},
				{Key: "bucket", Value: bucket},
				{Key: "object", Value: "transferlab/1MB/000001.bin"},
				{Key: "op", Value: op},
				{Key: "size", Value: "1MB"},
				{Key: "instance_type", Value: "t3.small"},
				{Key: "http_status", Value: "200"},
				{Key: "retries", Value: "1"},
				{Key: "dns_ns", Value: "11"},
				{Key: "connect_ns", Value: "12"},
				{Key: "tls_ns", Value: "13"},
				{Key: "conn", Value: "new"},
				{Key: "parts", Value: "4"},
			},
		}
	}
	r.publishAll("agent", 1,
		request(1, "10:00:30.000", "one", "get", 10*time.Millisecond, "ok"),
		request(2, "10:00:59.999", "one", "get", 10*time.Millisecond, "ok"),
		request(2, "10:01:01.000", "two", "put", 30*time.Millisecond, "timeout"),
		request(2, "10:03:00.000", "one", "get", 20*time.Millisecond, "ok"),
		schemas.Event{
			Intended: at("10:00:00.000"), Run: run, Trial: 7, Attempt: 2, Workload: "s3", Service: "s3-loader", Site: "oregon", Agent: "oregon-1",
			Kind: schemas.KindTask, Duration: time.Second, Bytes: 4000, Status: "ok", Attrs: []schemas.Attr{
				{Key: "issued", Value: "4"},
				{Key: "recorded", Value: "5"},
				{Key: "errors", Value: "1"},
				{Key: "lag_p50_ns", Value: "100"},
				{Key: "lag_p99_ns", Value: "200"},
				{Key: "lag_max_ns", Value: "300"},
				{Key: "cpu", Value: "0.2500"},
				{Key: "clock_offset_ns", Value: "-5"},
				{Key: "clock_bound_ns", Value: "50"},
				{Key: "clients", Value: "3"},
			},
		})
	trial := func(attempt uint16) schemas.Event {
		return schemas.Event{
			Intended: at("10:00:00.000"), Run: run, Trial: 7, Attempt: attempt, Workload: "s3", Service: "scheduler",
			Kind: schemas.KindTrial, Duration: time.Minute, Bytes: 4000, Status: "ok", Attrs: []schemas.Attr{
				{Key: "cell", Value: "3"},
				{Key: "repeat", Value: "1"},
				{Key: "agents", Value: "2"},
				{Key: "emulated", Value: "0"},
				{Key: "cell.size", Value: "1MB"},
				{Key: "cell.wait", Value: "2s"},
			},
		}
	}
	r.publishAll("scheduler", 1, trial(1), trial(2))
	r.expect("agent", 5)
	r.expect("scheduler", 2)

	equal(t, "s3_requests", r.text(`
		SELECT toString(ts), toString(attempt), site, client, bucket, object, operation, size, toString(size_bytes), instance_type, status, toString(http_status),
			toString(retries), toString(bytes), toString(corrected_ns - duration_ns), toString(dns_ns), toString(connect_ns), toString(tls_ns), toString(reused), toString(parts), toString(final)
		FROM s3_requests WHERE run = ? ORDER BY ts`, run),
		"2026-03-01 10:00:30.000000000|1|oregon|2|one|transferlab/1MB/000001.bin|get|1MB|1000000|t3.small|ok|200|1|1000|3000|11|12|13|0|4|0\n"+
			"2026-03-01 10:00:59.999000000|2|oregon|2|one|transferlab/1MB/000001.bin|get|1MB|1000000|t3.small|ok|200|1|1000|3000|11|12|13|0|4|1\n"+
			"2026-03-01 10:01:01.000000000|2|oregon|2|two|transferlab/1MB/000001.bin|put|1MB|1000000|t3.small|timeout|200|1|1000|3000|11|12|13|0|4|1\n"+
			"2026-03-01 10:03:00.000000000|2|oregon|2|one|transferlab/1MB/000001.bin|get|1MB|1000000|t3.small|ok|200|1|1000|3000|11|12|13|0|4|1\n")
	equal(t, "s3_metrics_1m", r.text(`
		SELECT toString(ts), bucket, site, toString(BytesDownloaded), toString(BytesUploaded), toString(TotalRequestLatency), toString(TotalRequestLatency_p99), toString(requests), toString(errors)
		FROM s3_metrics_1m WHERE run = ? ORDER BY bucket, ts`, run),
		"2026-03-01 10:00:00|one|oregon|2000|0|10|10|2|0\n"+
			"2026-03-01 10:01:00|one|oregon|0|0|0|0|0|0\n"+
			"2026-03-01 10:02:00|one|oregon|0|0|0|0|0|0\n"+
			"2026-03-01 10:03:00|one|oregon|1000|0|20|20|1|0\n"+
			"2026-03-01 10:00:00|two|oregon|0|0|0|0|0|0\n"+
			"2026-03-01 10:01:00|two|oregon|0|1000|30|30|1|1\n"+
			"2026-03-01 10:02:00|two|oregon|0|0|0|0|0|0\n"+
			"2026-03-01 10:03:00|two|oregon|0|0|0|0|0|0\n")
	equal(t, "s3_metrics_1s", r.text(`
		SELECT bucket, toString(count()), toString(min(ts)), toString(max(ts)), toString(uniqExact(ts)), toString(sum(requests)), toString(sum(BytesDownloaded))
		FROM s3_metrics_1s WHERE run = ? GROUP BY bucket ORDER BY bucket`, run),
		"one|151|2026-03-01 10:00:30|2026-03-01 10:03:00|151|3|3000\n"+
			"two|151|2026-03-01 10:00:30|2026-03-01 10:03:00|151|1|0\n")
	equal(t, "tasks", r.text(`
		SELECT agent, toString(issued), toString(recorded), toString(errors), toString(lag_p50_ns), toString(lag_p99_ns), toString(lag_max_ns), toString(cpu),
			toString(clock_offset_ns), toString(clock_bound_ns), toString(clients), toString(final)
		FROM tasks WHERE run = ?`, run),
		"oregon-1|4|5|1|100|200|300|0.25|-5|50|3|1\n")
	equal(t, "trials", r.text(`
		SELECT toString(trial), toString(attempt), toString(cell), toString(repeat), toString(agents), toString(axes), toString(final)
		FROM trials WHERE run = ? ORDER BY attempt`, run),
		"7|1|3|1|2|{'size':'1MB','wait':'2s'}|0\n7|2|3|1|2|{'size':'1MB','wait':'2s'}|1\n")
}

func TestSwarmViews(t *testing.T) {
	r := newRig(t)
	r.start(r.testConfig(), nil)
	run := uuid.Must(uuid.NewV7())
	begin := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	event := func(attempt uint16, kind, status string, duration time.Duration, bytes uint64, pairs ...string) schemas.Event {
		e := schemas.Event{
			Intended: begin, Run: run, Trial: 7, Attempt: attempt, Workload: "swarm", Service: "swarm-runner", Site: "oregon", Agent: "oregon-1",
			Kind: kind, Duration: duration, Bytes: bytes, Status: status,
		}
		for i := 0; i < len(pairs); i += 2 {
			e.Attrs = append(e.Attrs, schemas.Attr{Key: pairs[i], Value: pairs[i+1]})
		}
		return e
	}
	transfer := event(2, schemas.KindTransfer, "ok", 20*time.Millisecond, 10_000, "client", "4", "leecher", "2", "leechers", "3", "group", "west", "file", "A_10kB",
		"size", "10000", "piece_size", "16384", "address", "127.0.0.4:6881", "announce_ns", "1", "handshake_ns", "2", "unchoke_ns", "3", "first_piece_ns", "4",
		"d10_ns", "10", "d20_ns", "20", "d30_ns", "30", "d40_ns", "40", "d50_ns", "50", "d60_ns", "60", "d70_ns", "70", "d80_ns", "80", "d90_ns", "90",
		"last_block_ns", "95", "complete_ns", "96", "verified_ns", "97", "seed_out_ns", "98", "sent", "700", "received", "11000", "payload_sent", "600",
		"payload_received", "10000", "wasted", "5", "from_seeds", "9000", "hash_failures", "1", "banned", "2", "connections", "6", "bound_ns", "12", "sha256", "ok", "pid", "77")
	transfer.Wait, transfer.FirstByte = 3*time.Microsecond, 9*time.Microsecond
	r.publishAll("agent", 1,
		event(1, schemas.KindTransfer, "killed", 5*time.Millisecond, 0, "client", "4", "leecher", "2", "leechers", "3", "file", "A_10kB", "size", "10000"),
		transfer,
		event(2, schemas.KindPiece, "ok", time.Millisecond, 1000, "client", "4", "leecher", "2", "piece", "5", "from", "seeder 0", "nth", "1"),
		event(2, schemas.KindWire, "ok", 0, 500, "peer", "leecher 2", "role", "leecher", "direction", "sent", "class", "have", "messages", "9"),
		event(2, schemas.KindInterface, "ok", 0, 1000, "network", "private", "exclusive", "true", "rx_bytes", "2000", "tx_packets", "10", "rx_packets", "20",
			"sockets_sent", "800", "sent_again", "50", "headers", "200", "unattributed", "-50"),
		event(2, schemas.KindInterface, "ok", 0, 0, "network", "host", "exclusive", "false"),
		event(2, schemas.KindCopy, "ok", 2*time.Millisecond, 10_000, "from", "oregon-1", "to", "dublin-1"),
		event(2, schemas.KindSeed, "ok", time.Second, 20_000, "seeder", "1", "address", "127.0.0.2:6881", "sent", "21000", "received", "300",
			"payload_sent", "20000", "payload_received", "0", "connections", "3", "left", "stopped"))
	closing := func(attempt uint16) schemas.Event {
		e := event(attempt, schemas.KindTrial, "ok", time.Minute, 0, "cell", "0")
		e.Service = "scheduler"
		return e
	}
	r.publishAll("scheduler", 1, closing(1), closing(2))
	r.expect("agent", 8)
	r.expect("scheduler", 2)
	const head = "7|oregon|oregon-1|1|"
	for _, view := range []struct{ name, columns, want string }{
		{
			"swarm_transfers",
			`client, client_group, leecher, leechers, file, size_bytes, piece_size_bytes, address, status, bytes, wait_ns, first_byte_ns, duration_ns, corrected_ns,
			announce_ns, handshake_ns, unchoke_ns, first_piece_ns, d10_ns, d20_ns, d30_ns, d40_ns, d50_ns, d60_ns, d70_ns, d80_ns, d90_ns, last_block_ns,
			complete_ns, verified_ns, seed_out_ns, sent_bytes, received_bytes, payload_sent_bytes, payload_received_bytes, wasted_bytes, from_seeds_bytes,
			hash_failures, banned, connections, bound_ns, throughput_kbps, ratio, sha256, pid`,
			head + "4|west|2|3|A_10kB|10000|16384|127.0.0.4:6881|ok|10000|3000|9000|20000000|20003000|" +
				"1|2|3|4|10|20|30|40|50|60|70|80|90|95|96|97|98|700|11000|600|10000|5|9000|1|2|6|12|12000|1.1|ok|77\n" +
				"7|oregon|oregon-1|0|4||2|3|A_10kB|10000|0||killed|0|0|0|5000000|5000000|" + strings.Repeat("null|", 17) + "0|0|0|0|0|0|0|0|0|null|null|0||null\n",
		},
		{"swarm_pieces", "client, leecher, piece, from_peer, nth, status, bytes, duration_ns", head + "4|2|5|seeder 0|1|ok|1000|1000000\n"},
		{"swarm_wire", "peer, role, direction, class, messages, bytes", head + "leecher 2|leecher|sent|have|9|500\n"},
		{
			"swarm_interfaces",
			"network, exclusive, tx_bytes, rx_bytes, tx_packets, rx_packets, sockets_sent_bytes, sent_again_bytes, headers_bytes, unattributed_bytes, unattributed_share",
			head + "private|true|1000|2000|10|20|800|50|200|-50|-0.05\n" + head + "host|false|0|0|0|0|0|0|0|0|null\n",
		},
		{"swarm_copies", "src, dst, status, bytes, duration_ns, throughput_kbps", head + "oregon-1|dublin-1|ok|10000|2000000|40000\n"},
		{
			"swarm_seeds", "seeder, client, address, status, duration_ns, sent_bytes, received_bytes, payload_sent_bytes, payload_received_bytes, connections, left_by",
			head + "1|null|127.0.0.2:6881|ok|1000000000|21000|300|20000|0|3|stopped\n",
		},
	} {
		columns := strings.Split("trial, site, agent, toUInt8(final), "+view.columns, ",")
		for i, c := range columns {
			columns[i] = "ifNull(toString(" + c + "), 'null')"
		}
		equal(t, view.name, r.text("SELECT "+strings.Join(columns, ",")+" FROM "+view.name+" WHERE run = ? ORDER BY final DESC, seq", run), view.want)
	}
}

func TestOffloadViews(t *testing.T) {
	r := newRig(t)
	r.start(r.testConfig(), nil)
	run := uuid.Must(uuid.NewV7())
	clip := func(id string, total time.Duration, pairs ...string) schemas.Event {
		e := schemas.Event{
			Intended: time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC), Run: run, Attempt: 1, Workload: "offload", Service: "edge-runner", Site: "pi", Agent: "pi-1",
			Kind: schemas.KindClip, Duration: total, Bytes: 1000, Status: "ok", Attrs: []schemas.Attr{{Key: "clip", Value: id}},
		}
		for i := 0; i < len(pairs); i += 2 {
			e.Attrs = append(e.Attrs, schemas.Attr{Key: pairs[i], Value: pairs[i+1]})
		}
		return e
	}
	cloud := clip("a", 1210, "policy", "adaptive", "decision", "cloud", "seen_by", "cloud", "recorded_ns", "500", "spooled_ns", "510", "decided_ns", "515",
		"uploaded_ns", "700", "queued_ns", "710", "taken_ns", "730", "fetched_ns", "780", "decoded_ns", "900", "inferred_ns", "1000", "stored_ns", "1050",
		"acknowledged_ns", "1060", "confirmed_ns", "1200", "predicted_edge_ns", "900", "predicted_cloud_ns", "600", "tp", "3", "fp", "1", "fn", "2")
	// What the edge saw itself is stored before its bytes are.
	near := clip("b", 2000, "policy", "source", "decision", "edge", "seen_by", "edge", "recorded_ns", "500", "spooled_ns", "510", "decided_ns", "515",
		"taken_ns", "600", "fetched_ns", "600", "decoded_ns", "900", "inferred_ns", "1000", "stored_ns", "1050", "uploaded_ns", "1900", "confirmed_ns", "2000")
	lost := clip("c", 10, "policy", "source", "decision", "cloud")
	lost.Status = "lost"
	r.publishAll("agent", 1, cloud, cloud, near, lost)
	r.expect("agent", 4)
	columns := []string{}
	for _, c := range strings.Fields(`clip policy decision seen_by status end_to_end_ns total_ns record_ns spool_ns decide_ns upload_ns queue_ns waiting_ns fetch_ns
		decode_ns infer_ns store_ns acknowledge_ns confirm_ns sum_ns overhead_ns tp fp fn`) {
		columns = append(columns, "ifNull(toString("+c+"), 'null')")
	}
	equal(t, "offload_clips", r.text("SELECT "+strings.Join(columns, ",")+" FROM offload_clips WHERE run = ? ORDER BY clip", run),
		"a|adaptive|cloud|cloud|ok|1050|1210|500|10|5|185|10|20|50|120|100|50|10|140|1200|330|3|1|2\n"+
			"b|source|edge|edge|ok|1050|2000|500|10|5|850|null|85|0|300|100|50|null|100|2000|150|0|0|0\n"+
			"c|source|cloud||lost|null|10|null|null|null|null|null|null|null|null|null|null|null|null|null|null|0|0|0\n")
	equal(t, "offload_decisions", r.text("SELECT clip, toString(predicted_ns), toString(actual_ns), toString(error_ns), toString(regret_ns) FROM offload_decisions WHERE run = ? AND predicted_ns IS NOT NULL", run),
		"a|600|535|-65|-365\n")
}

func TestIntegrityShowsGapAndDuplicate(t *testing.T) {
	r := newRig(t)
	r.start(r.testConfig(), nil)
	r.publishEvents("holed", 1, 100)
	r.publishEvents("holed", 106, 200)
	r.publishEvents("holed", 91, 93)
	r.publishEvents("late", 4, 10)
	r.publishEvents("whole", 1, 10)
	r.settled()
	for producer, want := range map[string]integrity{
		"holed": {Received: 198, Lost: 5, Duplicated: 3},
		"late":  {Received: 7, Lost: 3},
		"whole": {Received: 10},
	} {
		if got := r.integrity(producer); got != want {
			t.Errorf("%s: %+v, want %+v", producer, got, want)
		}
	}
}

func TestTableKeepsInsertTokens(t *testing.T) {
	r := newRig(t)
	r.start(r.testConfig(), nil)
	r.publishEvents("a", 1, 1)
	r.expect("a", 1)
	var window uint64
	row := r.db.QueryRow(t.Context(), `
		SELECT toUInt64OrZero(extract(engine_full, 'non_replicated_deduplication_window = (\\d+)'))
		FROM system.tables WHERE database = currentDatabase() AND name = 'events'`)
	if err := row.Scan(&window); err != nil {
		t.Fatal(err)
	}
	if window < 1000 {
		t.Errorf("non_replicated_deduplication_window is %d, want at least 1000: repeated inserts would be stored twice", window)
	}
	var columns []schemas.Column
	rows, err := r.db.Query(t.Context(), "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = 'events' ORDER BY position")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c schemas.Column
		if err := rows.Scan(&c.Name, &c.Type); err != nil {
			t.Fatal(err)
		}
		columns = append(columns, c)
	}
	if got, want := fmt.Sprint(columns), fmt.Sprint(schemas.EventColumns()); got != want {
		t.Errorf("columns of the table:\n%s\nwant:\n%s", got, want)
	}
}
