package schemas

import (
	"fmt"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// Column is one column of the table `events`: its name and its ClickHouse type
// as it stands in a Native block.
type Column struct{ Name, Type string }

// EventColumns lists the columns of a batch, in order. A batch that names
// others, or in another order, is rejected by the collector.
func EventColumns() []Column {
	const dict = "LowCardinality(String)"
	return []Column{
		{"ts", "DateTime64(9, 'UTC')"},
		{"run", "UUID"},
		{"trial", "UInt32"},
		{"attempt", "UInt16"},
		{"workload", dict},
		{"service", dict},
		{"site", dict},
		{"agent", dict},
		{"kind", dict},
		{"wait_ns", "UInt64"},
		{"first_byte_ns", "UInt64"},
		{"duration_ns", "UInt64"},
		{"bytes", "UInt64"},
		{"status", dict},
		{"error", "String"},
		{"attrs", "Map(" + dict + ", String)"},
		{"producer", dict},
		{"seq", "UInt64"},
	}
}

// Block gathers events column by column and encodes them as one block of
// ClickHouse's Native format (docs: interfaces/formats/Native), which the
// collector hands to the database as it is.
//
// A Block is not safe for concurrent use. Its zero value is not usable.
type Block struct {
	producer string

	ts                            proto.ColInt64
	run                           proto.ColUUID
	trial                         proto.ColUInt32
	attempt                       proto.ColUInt16
	workload, service, site       *dictionary
	agent, kind, status           *dictionary
	wait, firstByte, duration, by proto.ColUInt64
	err                           proto.ColStr
	attrOffsets                   proto.ColUInt64
	attrKeys                      *dictionary
	attrValues                    proto.ColStr
	producers                     *dictionary
	seq                           proto.ColUInt64

	buf proto.Buffer
}

// NewBlock returns an empty block of events of one producer.
func NewBlock(producer string) *Block {
	b := &Block{producer: producer}
	for _, d := range b.dictionaries() {
		*d = newDictionary()
	}
	return b
}

func (b *Block) dictionaries() []**dictionary {
	return []**dictionary{
		&b.workload, &b.service, &b.site, &b.agent, &b.kind, &b.status, &b.attrKeys, &b.producers,
	}
}

// Rows is how many events the block holds.
func (b *Block) Rows() int { return len(b.seq) }

// Size is about how many bytes Encode would return.
func (b *Block) Size() int {
	const fixed = 8 + 16 + 4 + 2 + 7 + 4*8 + 8 + 1 + 8
	return 1024 + b.Rows()*fixed + len(b.err.Buf) + len(b.attrValues.Buf) + 2*len(b.attrValues.Pos)
}

// Append adds an event under the producer's number seq. The event must be
// valid (see [Event.Validate]); the hot path does not check it again.
func (b *Block) Append(e *Event, seq uint64) {
	b.ts = append(b.ts, e.Intended.UnixNano())
	b.run = append(b.run, e.Run)
	b.trial = append(b.trial, e.Trial)
	b.attempt = append(b.attempt, e.Attempt)
	b.workload.add(e.Workload)
	b.service.add(e.Service)
	b.site.add(e.Site)
	b.agent.add(e.Agent)
	b.kind.add(e.Kind)
	b.wait = append(b.wait, nonNegative(e.Wait))
	b.firstByte = append(b.firstByte, nonNegative(e.FirstByte))
	b.duration = append(b.duration, nonNegative(e.Duration))
	b.by = append(b.by, e.Bytes)
	b.status.add(e.Status)
	b.err.Append(e.Error)
	for i := range e.Attrs {
		b.attrKeys.add(e.Attrs[i].Key)
		b.attrValues.Append(e.Attrs[i].Value)
	}
	b.attrOffsets = append(b.attrOffsets, uint64(b.attrKeys.Rows()))
	b.producers.add(b.producer)
	b.seq = append(b.seq, seq)
}

// A clock that steps back between two readings must not become a duration of
// 584 years.
func nonNegative(d time.Duration) uint64 { return uint64(max(d, 0)) }

// Encode returns the block in Native format. The bytes are valid until the
// next call of a method of b.
func (b *Block) Encode() ([]byte, error) {
	columns := EventColumns()
	data := []proto.ColInput{
		timestamps{&b.ts},
		&b.run, &b.trial, &b.attempt,
		b.workload, b.service, b.site, b.agent, b.kind,
		&b.wait, &b.firstByte, &b.duration, &b.by,
		b.status, &b.err,
		attributes{offsets: &b.attrOffsets, keys: b.attrKeys, values: &b.attrValues},
		b.producers, &b.seq,
	}
	input := make([]proto.InputColumn, len(columns))
	for i, c := range columns {
		input[i] = proto.InputColumn{Name: c.Name, Data: data[i]}
	}
	b.buf.Reset()
	// Revision 0 is what FORMAT Native reads over HTTP: no block info, no
	// custom serialization flag.
	if err := (proto.Block{Columns: len(columns), Rows: b.Rows()}).EncodeRawBlock(&b.buf, 0, input); err != nil {
		return nil, fmt.Errorf("encode %d events: %w", b.Rows(), err)
	}
	return b.buf.Buf, nil
}

// Reset empties the block and keeps its memory.
func (b *Block) Reset() {
	b.ts, b.run = b.ts[:0], b.run[:0]
	b.trial, b.attempt = b.trial[:0], b.attempt[:0]
	b.wait, b.firstByte, b.duration, b.by = b.wait[:0], b.firstByte[:0], b.duration[:0], b.by[:0]
	b.err.Reset()
	b.attrValues.Reset()
	b.attrOffsets, b.seq = b.attrOffsets[:0], b.seq[:0]
	for _, d := range b.dictionaries() {
		(*d).Reset()
	}
}

// timestamps is an Int64 column under the type of the column ts: the two have
// the same bytes, and Int64 has no precision to look up per row.
type timestamps struct{ *proto.ColInt64 }

func (timestamps) Type() proto.ColumnType { return "DateTime64(9, 'UTC')" }

// attributes is the Map column; ch-go's own wants a generic key column that
// hashes every key of every row.
type attributes struct {
	offsets *proto.ColUInt64
	keys    *dictionary
	values  *proto.ColStr
}

func (attributes) Type() proto.ColumnType { return "Map(LowCardinality(String), String)" }

func (a attributes) Rows() int { return a.offsets.Rows() }

func (a attributes) EncodeState(b *proto.Buffer) { a.keys.EncodeState(b) }

func (a attributes) EncodeColumn(b *proto.Buffer) {
	a.offsets.EncodeColumn(b)
	a.keys.EncodeColumn(b)
	a.values.EncodeColumn(b)
}

func (a attributes) WriteColumn(w *proto.Writer) {
	a.offsets.WriteColumn(w)
	a.keys.WriteColumn(w)
	a.values.WriteColumn(w)
}

// dictionary is a LowCardinality(String) column built row by row. Consecutive
// rows mostly repeat the value, or (attribute keys) the sequence of values, so
// the common case is a comparison of string headers and not a hash.
type dictionary struct {
	proto.ColLowCardinalityRaw
	index  *proto.ColStr
	values []string
	lookup map[string]int
	last   int
}

func newDictionary() *dictionary {
	index := new(proto.ColStr)
	return &dictionary{
		ColLowCardinalityRaw: proto.ColLowCardinalityRaw{Index: index, Key: proto.KeyUInt8},
		index:                index,
		lookup:               map[string]int{},
		last:                 -1,
	}
}

func (d *dictionary) add(v string) {
	if d.last >= 0 && d.values[d.last] == v {
		d.AppendKey(d.last)
		return
	}
	if next := d.last + 1; next < len(d.values) && d.values[next] == v {
		d.last = next
		d.AppendKey(next)
		return
	}
	i, known := d.lookup[v]
	if !known {
		i = len(d.values)
		d.grow(i)
		d.values = append(d.values, v)
		d.lookup[v] = i
		d.index.Append(v)
	}
	d.last = i
	d.AppendKey(i)
}

// grow widens the keys when index i no longer fits.
func (d *dictionary) grow(i int) {
	switch {
	case i == 1<<8:
		for _, k := range d.Keys8 {
			d.Keys16 = append(d.Keys16, uint16(k))
		}
		d.Keys8, d.Key = d.Keys8[:0], proto.KeyUInt16
	case i == 1<<16:
		for _, k := range d.Keys16 {
			d.Keys32 = append(d.Keys32, uint32(k))
		}
		d.Keys16, d.Key = d.Keys16[:0], proto.KeyUInt32
	}
}

func (d *dictionary) Reset() {
	d.ColLowCardinalityRaw.Reset()
	d.Key = proto.KeyUInt8
	d.values = d.values[:0]
	clear(d.lookup)
	d.last = -1
}
