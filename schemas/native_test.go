package schemas_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

// row is an event as a decoder that is not ours reads it from a batch.
type row struct {
	Event    schemas.Event
	Producer string
	Seq      uint64
}

// decode reads a batch with the decoders of ch-go.
func decode(data []byte) (rows []row, err error) {
	defer func() {
		// Some of ch-go's columns panic on sizes that cannot be.
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	var (
		ts                                           proto.ColInt64
		run                                          proto.ColUUID
		trial                                        proto.ColUInt32
		attempt                                      proto.ColUInt16
		wait, first, duration, size, seq             proto.ColUInt64
		text                                         proto.ColStr
		workload, service, site, agent, kind, status = dict(), dict(), dict(), dict(), dict(), dict()
		producer                                     = dict()
		attrs                                        = proto.NewMap[string, string](dict(), new(proto.ColStr))
	)
	columns := []proto.Column{
		as{&ts, "DateTime64(9, 'UTC')"},
		&run, &trial, &attempt, workload, service, site, agent, kind,
		&wait, &first, &duration, &size, status, &text, attrs, producer, &seq,
	}
	results := make(proto.Results, len(columns))
	for i, c := range schemas.EventColumns() {
		results[i] = proto.ResultColumn{Name: c.Name, Data: columns[i]}
	}
	var block proto.Block
	reader := bytes.NewReader(data)
	if err := block.DecodeRawBlock(proto.NewReader(reader), 0, results); err != nil {
		return nil, err
	}
	for i := range block.Rows {
		e := schemas.Event{
			Intended: time.Unix(0, ts[i]).UTC(), Run: run[i], Trial: trial[i], Attempt: attempt[i],
			Workload: workload.Row(i), Service: service.Row(i), Site: site.Row(i), Agent: agent.Row(i), Kind: kind.Row(i),
			Wait: time.Duration(wait[i]), FirstByte: time.Duration(first[i]), Duration: time.Duration(duration[i]), Bytes: size[i],
			Status: status.Row(i), Error: text.Row(i),
		}
		for _, kv := range attrs.RowKV(i) {
			e.Attrs = append(e.Attrs, schemas.Attr{Key: kv.Key, Value: kv.Value})
		}
		rows = append(rows, row{Event: e, Producer: producer.Row(i), Seq: seq[i]})
	}
	return rows, nil
}

func dict() *proto.ColLowCardinality[string] {
	return proto.NewLowCardinality[string](new(proto.ColStr))
}

// as is a column under another type of the same bytes.
type as struct {
	proto.Column
	kind proto.ColumnType
}

func (a as) Type() proto.ColumnType { return a.kind }

func randomEvents(r *rand.Rand, n, variety int) []schemas.Event {
	word := func(name string) string { return fmt.Sprint(name, r.IntN(variety)) }
	events := make([]schemas.Event, n)
	for i := range events {
		e := schemas.Event{
			Intended: time.Unix(0, 1_700_000_000_000_000_000+r.Int64N(1e15)).UTC(), Run: uuid.UUID{byte(r.IntN(3)), 7: 9, 15: byte(r.IntN(3))}, Trial: r.Uint32N(3), Attempt: uint16(r.IntN(3)),
			Workload: word("w"), Service: word("s"), Site: word(""), Agent: word("a"), Kind: word("k"),
			Wait: time.Duration(r.Int64()), FirstByte: time.Duration(r.Int64()), Duration: time.Duration(r.Int64()), Bytes: r.Uint64(), Status: word("s"),
		}
		if r.IntN(4) == 0 {
			e.Error = strings.Repeat(word("went wrong "), r.IntN(20))
		}
		for j := range r.IntN(5) {
			e.Attrs = append(e.Attrs, schemas.Attr{Key: fmt.Sprint("key", j, r.IntN(variety)), Value: strings.Repeat(word("value"), r.IntN(30))})
		}
		events[i] = e
	}
	return events
}

func encode(t testing.TB, producer string, first uint64, group bool, events ...schemas.Event) []byte {
	t.Helper()
	b := schemas.NewBlock(producer)
	for i := range events {
		b.Append(&events[i], first+uint64(i))
	}
	if group {
		b.Group()
	}
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(data)
}

func TestBlockIsWhatOthersRead(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := schemas.NewBlock("agent/1")
	for _, variety := range []int{1, 3, 300, 70_000} {
		for _, n := range []int{1, 2, 63, 1000, 70_000} {
			if n == 70_000 && variety < 70_000 {
				continue
			}
			events := randomEvents(r, n, variety)
			first := 1 + r.Uint64N(1e6)
			b.Reset()
			for i := range events {
				b.Append(&events[i], first+uint64(i))
			}
			data, err := b.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if size := b.Size(); size < len(data)-len(data)/2 || n > 100 && variety < 10 && size > 2*len(data) {
				t.Errorf("Size says %d, %d bytes were encoded", size, len(data))
			}
			rows, err := decode(data)
			if err != nil {
				t.Fatalf("%d events of variety %d: %v", n, variety, err)
			}
			if len(rows) != n {
				t.Fatalf("%d rows of %d events", len(rows), n)
			}
			for i, got := range rows {
				if want := (row{Event: events[i], Producer: "agent/1", Seq: first + uint64(i)}); !reflect.DeepEqual(got, want) {
					t.Fatalf("row %d of %d, variety %d:\n%+v\nwant\n%+v", i, n, variety, got, want)
				}
			}
			if len(data) > schemas.MaxBatchBytes {
				continue
			}
			info, err := schemas.InspectBatch(data)
			if err != nil {
				t.Fatalf("%d events of variety %d: %v", n, variety, err)
			}
			if info.Rows != n || info.Producer != "agent/1" || info.FirstSeq != first || info.LastSeq != first+uint64(n)-1 || info.Bytes != len(data) {
				t.Errorf("inspection of %d events from %d says %+v", n, first, info)
			}
		}
	}
}

func TestGroupKeepsEveryEvent(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, variety := range []int{1, 2, 5, 1000} {
		for _, n := range []int{1, 10, 2000} {
			events := randomEvents(r, n, variety)
			if variety < 5 {
				for i := range events {
					events[i].Attrs = []schemas.Attr{{Key: "bucket", Value: fmt.Sprint(i % variety)}}
					events[i].Workload, events[i].Kind, events[i].Status = "w", "k", "ok"
				}
			}
			rows, err := decode(encode(t, "p", 7, true, events...))
			if err != nil {
				t.Fatal(err)
			}
			byContent := func(x, y schemas.Event) int { return cmp.Compare(fmt.Sprint(x), fmt.Sprint(y)) }
			got := make([]schemas.Event, len(rows))
			for i := range rows {
				if got[i] = rows[i].Event; rows[i].Seq != 7+uint64(i) {
					t.Fatalf("row %d has number %d", i, rows[i].Seq)
				}
			}
			want := slices.Clone(events)
			slices.SortFunc(got, byContent)
			slices.SortFunc(want, byContent)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%d events of variety %d are others after grouping", n, variety)
			}
		}
	}
}

func TestGroupPutsLikeWithLike(t *testing.T) {
	var events []schemas.Event
	for i := range 300 {
		// Times go back and forth: events end in another order than they start.
		events = append(events, schemas.Event{
			Intended: time.Unix(1_700_000_000, int64(i/2*2-i%2)), Workload: "s3", Kind: "request", Status: "ok",
			Attrs: []schemas.Attr{{Key: "bucket", Value: fmt.Sprint(i % 3)}},
		})
	}
	rows, err := decode(encode(t, "p", 1, true, events...))
	if err != nil {
		t.Fatal(err)
	}
	changes, leaps := 0, 0
	for i := 1; i < len(rows); i++ {
		if rows[i].Event.Attrs[0] != rows[i-1].Event.Attrs[0] {
			changes++
		}
		if rows[i].Event.Intended.Sub(rows[i-1].Event.Intended).Abs() > 10 {
			leaps++
		}
	}
	if changes != 2 || leaps != 0 {
		t.Errorf("attributes change %d times, want 2; time leaps %d times, want 0", changes, leaps)
	}
}

func TestInspectBatchNamesTheFault(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	good := encode(t, "agent/1", 1, false, randomEvents(r, 20, 3)...)
	replace := func(old, now string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("no %q in the batch", old)
		}
		return bytes.Replace(good, []byte(old), []byte(now), 1)
	}
	event := func(change func(*schemas.Event)) schemas.Event {
		e := schemas.Event{Intended: time.Unix(1_700_000_000, 0), Workload: "s3", Service: "s", Kind: "k", Status: "ok"}
		change(&e)
		return e
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "batch header: data ends early"},
		{"17 columns", []byte{17, 1}, "17 columns, want 18"},
		{"no rows", []byte{18, 0}, "0 rows, want 1 to"},
		{"too many rows", binary.AppendUvarint([]byte{18}, schemas.MaxBatchRows+1), "131073 rows"},
		{"too many bytes", make([]byte, schemas.MaxBatchBytes+1), "8388609 bytes"},
		{"endless varint", bytes.Repeat([]byte{0xff}, 20), "batch header"},
		{"another column", replace("wait_ns", "wAit_ns"), `"wAit_ns"`},
		{"another type", replace("UInt16", "UInt32"), `"attempt" of type "UInt32", want "attempt" of type "UInt16"`},
		{"without the end", good[:len(good)-1], "column seq: data ends early"},
		{"with more", append(bytes.Clone(good), 1, 2), "2 bytes after the last column"},
		{"a hole", func() []byte {
			b := bytes.Clone(good)
			binary.LittleEndian.PutUint64(b[len(b)-8:], 99)
			return b
		}(), "column seq: number 99 after 19, want a rise by one"},
		{"from 0", encode(t, "p", 0, false, event(func(*schemas.Event) {})), "column seq: first number 0"},
		{"no producer", encode(t, "", 1, false, event(func(*schemas.Event) {})), "column producer: no producer"},
		{"before 1970", encode(t, "p", 1, false, event(func(e *schemas.Event) { e.Intended = time.Unix(-1, 0) })), "column ts: a time before 1970"},
		{"a long word", encode(t, "p", 1, false, event(func(e *schemas.Event) { e.Site = strings.Repeat("x", 257) })), "column site: a string of 257 bytes, at most 256"},
		{"a long text", encode(t, "p", 1, false, event(func(e *schemas.Event) { e.Error = strings.Repeat("x", 4097) })), "column error: a string of 4097 bytes"},
		{"a long attribute", encode(t, "p", 1, false, event(func(e *schemas.Event) { e.Attrs = []schemas.Attr{{Key: "k", Value: strings.Repeat("x", 4097)}} })), "column attrs: a string of 4097 bytes"},
		{"many attributes", encode(t, "p", 1, false, event(func(e *schemas.Event) { e.Attrs = make([]schemas.Attr, 65) })), "column attrs: offset 65 after 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := schemas.InspectBatch(c.data)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q in it", err, c.want)
			}
		})
	}
	if _, err := schemas.InspectBatch(good); err != nil {
		t.Errorf("the batch that these are made of: %v", err)
	}
}

// Two producers in a batch cannot be made with a Block.
func TestInspectBatchWantsOneProducer(t *testing.T) {
	events := randomEvents(rand.New(rand.NewPCG(1, 1)), 2, 1)
	data := encode(t, "X", 1, false, events...)
	one := []byte("\x08producer\x16LowCardinality(String)")
	at := bytes.Index(data, one) + len(one) + 8 + 8
	two := slices.Concat(data[:at],
		binary.LittleEndian.AppendUint64(nil, 2), []byte("\x01X\x01Y"), binary.LittleEndian.AppendUint64(nil, 2), []byte{0, 1},
		data[len(data)-len("\x03seq\x06UInt64")-16:])
	if rows, err := decode(two); err != nil || rows[1].Producer != "Y" {
		t.Fatalf("the batch of the test is not what it should be: %v", err)
	}
	if _, err := schemas.InspectBatch(two); err == nil || !strings.Contains(err.Error(), "more than one producer") {
		t.Errorf("%v, want more than one producer", err)
	}
}

// Whatever passes inspection must mean the same to a decoder that is not ours.
func FuzzInspectBatch(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, variety := range []int{1, 3, 300} {
		f.Add(encode(f, "agent/1", 1, false, randomEvents(r, 5, variety)...))
		f.Add(encode(f, "agent/1", 1, true, randomEvents(r, 20, variety)...))
	}
	bare := randomEvents(r, 2, 1)
	bare[0].Attrs, bare[1].Attrs = nil, nil
	f.Add(encode(f, "p", 1<<40, false, bare...))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := schemas.InspectBatch(data)
		if err != nil {
			return
		}
		rows, err := decode(data)
		if err != nil {
			t.Fatalf("passed inspection, but: %v", err)
		}
		if len(rows) != info.Rows || len(info.Columns) != len(schemas.EventColumns()) {
			t.Fatalf("%d rows, %d columns, want %d rows, %d columns", info.Rows, len(info.Columns), len(rows), len(schemas.EventColumns()))
		}
		for i, r := range rows {
			if r.Producer != info.Producer || r.Seq != info.FirstSeq+uint64(i) {
				t.Fatalf("row %d is %s/%d, inspection says %s from %d", i, r.Producer, r.Seq, info.Producer, info.FirstSeq)
			}
		}
	})
}
