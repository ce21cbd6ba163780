package schemas

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/google/uuid"
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

// Block gathers events and encodes them as one block of ClickHouse's Native
// format (docs: interfaces/formats/Native), which the collector hands to the
// database as it is.
//
// Most of what an event says it shares with others of its producer: where, what,
// on which object. A row therefore holds its own numbers only, and the group of
// rows it belongs to holds the rest once.
//
// A Block is not safe for concurrent use. Its zero value is not usable.
type Block struct {
	producer string
	first    uint64 // number of the first event

	rows   []blockRow
	groups []blockGroup
	scopes []scope
	last   int    // scope of the last row
	attrs  []Attr // the groups' attributes, one group after the other
	values []byte // their values as they are encoded
	errors []byte // the rows' error texts, one after the other, if not empty
	size   int    // bytes of attributes and errors when encoded

	index      groupIndex
	scopeIndex map[scope]int

	order   []uint32 // rows in the order of encoding
	moments []moment
	buf     []byte
	words   []string // values of the dictionary being encoded
}

// blockRow is what an event has for itself.
type blockRow struct {
	ts                         int64
	wait, first, done, payload uint64
	group                      uint32
	errorStart, errorEnd       uint32
}

// blockGroup is the rows that agree in scope and attributes.
type blockGroup struct {
	scope                  uint32
	rows                   uint32
	attrs, count           uint32 // its attributes: first of them in attrs, how many
	valuesStart, valuesEnd uint32 // in values
	hash                   uint64
}

// scope is what rarely changes from one event of a producer to the next.
type scope struct {
	run                                          uuid.UUID
	trial                                        uint32
	attempt                                      uint16
	workload, service, site, agent, kind, status string
}

// NewBlock returns an empty block of events of one producer.
func NewBlock(producer string) *Block {
	return &Block{
		producer: producer, index: groupIndex{seed: maphash.MakeSeed()},
		scopeIndex: map[scope]int{},
	}
}

// Rows is how many events the block holds.
func (b *Block) Rows() int { return len(b.rows) }

// Size is about how many bytes Encode would return.
func (b *Block) Size() int {
	const header, fixed = 1024, 8 + 16 + 4 + 2 + 6 + 4*8 + 1 + 8 + 1 + 8
	return header + len(b.rows)*fixed + b.size
}

// Append adds an event under the producer's number seq, which must be one more
// than that of the event before it. The event must be valid (see
// [Event.Validate]); the hot path does not check it again.
func (b *Block) Append(e *Event, seq uint64) {
	if len(b.rows) == 0 {
		b.first = seq
	}
	row := blockRow{
		ts:   e.Intended.UnixNano(),
		wait: nonNegative(e.Wait), first: nonNegative(e.FirstByte), done: nonNegative(e.Duration), payload: e.Bytes,
		group: b.group(e),
	}
	if e.Error != "" {
		row.errorStart = uint32(len(b.errors))
		b.errors = append(b.errors, e.Error...)
		row.errorEnd = uint32(len(b.errors))
		b.size += len(e.Error) + 1
	}
	g := &b.groups[row.group]
	g.rows++
	b.size += int(g.valuesEnd-g.valuesStart) + int(g.count)
	b.rows = append(b.rows, row)
}

// A clock that steps back between two readings must not become a duration of
// 584 years.
func nonNegative(d time.Duration) uint64 { return uint64(max(d, 0)) }

// group finds the event's group or begins one.
func (b *Block) group(e *Event) uint32 {
	scope := uint32(b.scope(e))
	hash := uint64(scope)
	for i := range e.Attrs {
		// What keys there are hardly ever makes the difference.
		hash = bits.RotateLeft64(hash, 23) * 0x9e3779b97f4a7c15
		hash ^= maphash.String(b.index.seed, e.Attrs[i].Value)
	}
	slot := b.index.slot(b, hash, func(g *blockGroup) bool {
		if g.scope != scope || int(g.count) != len(e.Attrs) {
			return false
		}
		for i, a := range b.attrs[g.attrs : g.attrs+g.count] {
			if a != e.Attrs[i] {
				return false
			}
		}
		return true
	})
	if *slot > 0 {
		return *slot - 1
	}
	g := blockGroup{
		scope: scope, hash: hash, attrs: uint32(len(b.attrs)), count: uint32(len(e.Attrs)), valuesStart: uint32(len(b.values)),
	}
	b.attrs = append(b.attrs, e.Attrs...)
	for i := range e.Attrs {
		b.values = appendString(b.values, e.Attrs[i].Value)
	}
	g.valuesEnd = uint32(len(b.values))
	b.groups = append(b.groups, g)
	*slot = uint32(len(b.groups))
	return *slot - 1
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func (b *Block) scope(e *Event) int {
	if b.last < len(b.scopes) && b.scopes[b.last].matches(e) {
		return b.last
	}
	now := scope{
		run: e.Run, trial: e.Trial, attempt: e.Attempt,
		workload: e.Workload, service: e.Service, site: e.Site, agent: e.Agent, kind: e.Kind, status: e.Status,
	}
	known := false
	if b.last, known = b.scopeIndex[now]; !known {
		b.last = len(b.scopes)
		b.scopes = append(b.scopes, now)
		b.scopeIndex[now] = b.last
	}
	return b.last
}

func (s *scope) matches(e *Event) bool {
	return s.trial == e.Trial && s.run == e.Run && s.attempt == e.Attempt && s.status == e.Status && s.kind == e.Kind &&
		s.agent == e.Agent && s.site == e.Site && s.service == e.Service && s.workload == e.Workload
}

// Group reorders the events so that those with the same attributes stand
// together, by time: a column store keeps them in about a third less. The
// numbers stay in their order, so which event has which is settled here.
func (b *Block) Group() {
	// Where hardly two events agree, order by time is worth more.
	agree := len(b.rows) >= 4*len(b.groups)
	bins := len(b.scopes)
	if agree {
		bins = len(b.groups)
	}
	bin := func(row *blockRow) uint32 {
		if agree {
			return row.group
		}
		return b.groups[row.group].scope
	}
	sizes := make([]uint32, bins)
	for i := range b.rows {
		sizes[bin(&b.rows[i])]++
	}
	sequence := make([]uint32, bins)
	for i := range sequence {
		sequence[i] = uint32(i)
	}
	if agree {
		slices.SortStableFunc(sequence, func(x, y uint32) int { return cmp.Compare(b.groups[x].scope, b.groups[y].scope) })
	}
	next := make([]uint32, bins)
	at := uint32(0)
	for _, n := range sequence {
		next[n] = at
		at += sizes[n]
	}
	b.moments = slices.Grow(b.moments[:0], len(b.rows))[:len(b.rows)]
	for i := range b.rows {
		n := bin(&b.rows[i])
		b.moments[next[n]] = moment{ts: b.rows[i].ts, row: uint32(i)}
		next[n]++
	}
	for i, n := range sequence {
		part := b.moments[next[n]-sizes[n] : next[n]]
		sortMoments(part)
		// Every other one backwards: from its end to the start of the next is
		// no leap in time.
		if i%2 == 1 {
			slices.Reverse(part)
		}
	}
	b.order = b.order[:0]
	for i := range b.moments {
		b.order = append(b.order, b.moments[i].row)
	}
}

// moment is an event's place in time.
type moment struct {
	ts  int64
	row uint32
}

// sortMoments sorts by time what mostly is nearly sorted, since events arrive
// in the order in which they end.
func sortMoments(m []moment) {
	budget := 8 * len(m)
	for i := 1; i < len(m); i++ {
		x, j := m[i], i
		for ; j > 0 && m[j-1].ts > x.ts; j-- {
			m[j] = m[j-1]
		}
		m[j] = x
		if budget -= i - j; budget < 0 {
			slices.SortFunc(m, func(x, y moment) int { return cmp.Compare(x.ts, y.ts) })
			return
		}
	}
}

// Encode returns the block in Native format, as FORMAT Native reads it over
// HTTP: no block info, no custom serialization. The bytes are valid until the
// next call of a method of b.
func (b *Block) Encode() ([]byte, error) {
	if len(b.rows) > math.MaxUint32>>1 || len(b.values) > math.MaxUint32>>1 {
		return nil, fmt.Errorf("encode %d events: too many for one block", len(b.rows))
	}
	if len(b.order) != len(b.rows) {
		b.order = b.order[:0]
		for i := range b.rows {
			b.order = append(b.order, uint32(i))
		}
	}
	columns := EventColumns()
	b.buf = slices.Grow(b.buf[:0], b.Size())
	b.buf = binary.AppendUvarint(b.buf, uint64(len(columns)))
	b.buf = binary.AppendUvarint(b.buf, uint64(len(b.rows)))
	for _, c := range columns {
		b.buf = appendString(appendString(b.buf, c.Name), c.Type)
		if len(b.rows) > 0 {
			b.encode(c.Name)
		}
	}
	return b.buf, nil
}

func (b *Block) encode(column string) {
	switch column {
	case "ts":
		b.numbers(func(r *blockRow) uint64 { return uint64(r.ts) })
	case "run":
		b.scoped(16, func(value []byte, s *scope) {
			binary.LittleEndian.PutUint64(value, binary.BigEndian.Uint64(s.run[:8]))
			binary.LittleEndian.PutUint64(value[8:], binary.BigEndian.Uint64(s.run[8:]))
		})
	case "trial":
		b.scoped(4, func(value []byte, s *scope) { binary.LittleEndian.PutUint32(value, s.trial) })
	case "attempt":
		b.scoped(2, func(value []byte, s *scope) { binary.LittleEndian.PutUint16(value, s.attempt) })
	case "workload":
		b.dictionary(func(s *scope) string { return s.workload })
	case "service":
		b.dictionary(func(s *scope) string { return s.service })
	case "site":
		b.dictionary(func(s *scope) string { return s.site })
	case "agent":
		b.dictionary(func(s *scope) string { return s.agent })
	case "kind":
		b.dictionary(func(s *scope) string { return s.kind })
	case "wait_ns":
		b.numbers(func(r *blockRow) uint64 { return r.wait })
	case "first_byte_ns":
		b.numbers(func(r *blockRow) uint64 { return r.first })
	case "duration_ns":
		b.numbers(func(r *blockRow) uint64 { return r.done })
	case "bytes":
		b.numbers(func(r *blockRow) uint64 { return r.payload })
	case "status":
		b.dictionary(func(s *scope) string { return s.status })
	case "error":
		for _, i := range b.order {
			text := b.errors[b.rows[i].errorStart:b.rows[i].errorEnd]
			b.buf = append(binary.AppendUvarint(b.buf, uint64(len(text))), text...)
		}
	case "attrs":
		b.attributes()
	case "producer":
		b.dictionary(func(*scope) string { return b.producer })
	case "seq":
		for i := range b.rows {
			b.buf = binary.LittleEndian.AppendUint64(b.buf, b.first+uint64(i))
		}
	}
}

// scoped encodes a column of values of size bytes that rows have from their
// scope.
func (b *Block) scoped(size int, value func([]byte, *scope)) {
	values := make([]byte, size*len(b.scopes))
	for i := range b.scopes {
		value(values[i*size:], &b.scopes[i])
	}
	if len(b.scopes) == 1 {
		b.buf = appendRepeated(b.buf, values, len(b.rows))
		return
	}
	for _, i := range b.order {
		at := int(b.groups[b.rows[i].group].scope) * size
		b.buf = append(b.buf, values[at:at+size]...)
	}
}

// appendRepeated appends what n times, in ever larger pieces.
func appendRepeated(b, what []byte, n int) []byte {
	start, total := len(b), n*len(what)
	b = append(b, what[:min(len(what), total)]...)
	for len(b)-start < total {
		b = append(b, b[start:start+min(len(b)-start, total-(len(b)-start))]...)
	}
	return b
}

func (b *Block) numbers(value func(*blockRow) uint64) {
	for _, i := range b.order {
		b.buf = binary.LittleEndian.AppendUint64(b.buf, value(&b.rows[i]))
	}
}

// dictionary encodes a LowCardinality(String) column of which scopes have the
// values.
func (b *Block) dictionary(value func(*scope) string) {
	b.words = b.words[:0]
	keys := make([]uint32, len(b.scopes))
	known := map[string]uint32{}
	for i := range b.scopes {
		v := value(&b.scopes[i])
		k, seen := known[v]
		if !seen {
			k = uint32(len(b.words))
			b.words = append(b.words, v)
			known[v] = k
		}
		keys[i] = k
	}
	b.buf = binary.LittleEndian.AppendUint64(b.buf, dictionaryVersion)
	width := b.dictionaryHeader(b.words, len(b.rows))
	if len(b.words) == 1 {
		b.buf = append(b.buf, make([]byte, len(b.rows))...)
		return
	}
	for _, i := range b.order {
		b.buf = appendKey(b.buf, keys[b.groups[b.rows[i].group].scope], width)
	}
}

// dictionaryHeader writes what comes before the keys of a dictionary and
// returns their width: 1 << width bytes.
func (b *Block) dictionaryHeader(words []string, keys int) int {
	width := 2
	switch {
	case len(words) <= 1<<8:
		width = 0
	case len(words) <= 1<<16:
		width = 1
	}
	b.buf = binary.LittleEndian.AppendUint64(b.buf, uint64(dictionaryFlags|width))
	b.buf = binary.LittleEndian.AppendUint64(b.buf, uint64(len(words)))
	for _, w := range words {
		b.buf = appendString(b.buf, w)
	}
	b.buf = binary.LittleEndian.AppendUint64(b.buf, uint64(keys))
	return width
}

func appendKey(b []byte, key uint32, width int) []byte {
	switch width {
	case 0:
		return append(b, byte(key))
	case 1:
		return binary.LittleEndian.AppendUint16(b, uint16(key))
	}
	return binary.LittleEndian.AppendUint32(b, key)
}

// attributes encodes the Map column: where each row's entries end, their keys,
// their values.
func (b *Block) attributes() {
	b.buf = binary.LittleEndian.AppendUint64(b.buf, dictionaryVersion)
	entries := 0
	b.runs(func(g *blockGroup, rows int) {
		for range rows {
			entries += int(g.count)
			b.buf = binary.LittleEndian.AppendUint64(b.buf, uint64(entries))
		}
	})
	if entries == 0 {
		return
	}
	b.words = b.words[:0]
	known := map[string]uint32{}
	numbers := make([]uint32, len(b.attrs))
	for i := range b.attrs {
		k, seen := known[b.attrs[i].Key]
		if !seen {
			k = uint32(len(b.words))
			b.words = append(b.words, b.attrs[i].Key)
			known[b.attrs[i].Key] = k
		}
		numbers[i] = k
	}
	width := b.dictionaryHeader(b.words, entries)
	// In a block that was grouped the same entries follow each other.
	var keys []byte
	b.runs(func(g *blockGroup, rows int) {
		keys = keys[:0]
		for _, k := range numbers[g.attrs : g.attrs+g.count] {
			keys = appendKey(keys, k, width)
		}
		b.buf = appendRepeated(b.buf, keys, rows)
	})
	b.runs(func(g *blockGroup, rows int) {
		b.buf = appendRepeated(b.buf, b.values[g.valuesStart:g.valuesEnd], rows)
	})
}

// runs calls each for every stretch of rows of one group.
func (b *Block) runs(each func(g *blockGroup, rows int)) {
	for i := 0; i < len(b.order); {
		g := b.rows[b.order[i]].group
		first := i
		for i++; i < len(b.order) && b.rows[b.order[i]].group == g; i++ {
		}
		each(&b.groups[g], i-first)
	}
}

// Reset empties the block and keeps its memory.
func (b *Block) Reset() {
	clear(b.scopes)
	clear(b.attrs)
	clear(b.scopeIndex)
	b.rows, b.groups, b.scopes, b.attrs = b.rows[:0], b.groups[:0], b.scopes[:0], b.attrs[:0]
	b.values, b.errors, b.order = b.values[:0], b.errors[:0], b.order[:0]
	b.last, b.size = 0, 0
	clear(b.index.slots)
}

// groupIndex finds a group by its hash: a table with linear probing, whose
// entries are the groups' numbers plus one.
type groupIndex struct {
	seed  maphash.Seed
	slots []uint32
}

// slot returns where the group that matches stands, or where it is to be put.
func (x *groupIndex) slot(b *Block, hash uint64, matches func(*blockGroup) bool) *uint32 {
	if 2*len(b.groups) >= len(x.slots) {
		x.grow(b)
	}
	mask := uint64(len(x.slots) - 1)
	for at := hash & mask; ; at = (at + 1) & mask {
		if x.slots[at] == 0 {
			return &x.slots[at]
		}
		if g := &b.groups[x.slots[at]-1]; g.hash == hash && matches(g) {
			return &x.slots[at]
		}
	}
}

func (x *groupIndex) grow(b *Block) {
	x.slots = make([]uint32, max(64, 2*len(x.slots)))
	mask := uint64(len(x.slots) - 1)
	for i := range b.groups {
		at := b.groups[i].hash & mask
		for x.slots[at] != 0 {
			at = (at + 1) & mask
		}
		x.slots[at] = uint32(i) + 1
	}
}
