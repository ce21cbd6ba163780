package collector

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/transferlab/transferlab/schemas"
)

// merge joins blocks that have passed inspection to a single block of the
// Native format, as segments to be sent one after the other. Most segments are
// the blocks' own bytes: only dictionaries that differ are unified, and the
// offsets of maps moved on. One block costs the database less than many (each
// would be copied together there), and makes the insert one atomic part.
//
// The blocks are put in the order of the table's sorting key (their rows mostly
// are already), which spares the database the sort.
func merge(blocks []schemas.BatchInfo) [][]byte {
	blocks = slices.Clone(blocks)
	slices.SortStableFunc(blocks, byKey)
	rows := 0
	for i := range blocks {
		rows += blocks[i].Rows
	}
	columns := schemas.EventColumns()
	var out segments
	out.uvarint(uint64(len(columns)))
	out.uvarint(uint64(rows))
	for i, c := range columns {
		out.string(c.Name)
		out.string(c.Type)
		switch c.Type {
		case "LowCardinality(String)":
			out.uint64(dictionaryVersion)
			parts := make([]indexed, len(blocks))
			for j := range blocks {
				parts[j], _ = readIndexed(blocks[j].Columns[i][8:])
			}
			out.indexed(parts)
		case "Map(LowCardinality(String), String)":
			out.uint64(dictionaryVersion)
			out.maps(blocks, i)
		default:
			for j := range blocks {
				out.alias(blocks[j].Columns[i])
			}
		}
	}
	return out.done()
}

// The columns that make up the sorting key (see schemas/clickhouse) and are
// mostly the same in all rows of a block, by their place in
// schemas.EventColumns.
const (
	columnRun   = 1
	columnTrial = 2
)

func byKey(a, b schemas.BatchInfo) int {
	return cmp.Or(
		compareUUID(a.Columns[columnRun], b.Columns[columnRun]),
		cmp.Compare(binary.LittleEndian.Uint32(a.Columns[columnTrial]), binary.LittleEndian.Uint32(b.Columns[columnTrial])),
		cmp.Compare(a.Producer, b.Producer),
		cmp.Compare(a.FirstSeq, b.FirstSeq),
	)
}

// compareUUID compares the first values of two columns the way the database
// does: a UUID is two little-endian halves, and the second one counts more.
func compareUUID(a, b []byte) int {
	return cmp.Or(
		cmp.Compare(binary.LittleEndian.Uint64(a[8:]), binary.LittleEndian.Uint64(b[8:])),
		cmp.Compare(binary.LittleEndian.Uint64(a), binary.LittleEndian.Uint64(b)),
	)
}

// Serialization of dictionaries in the Native format, as in
// schemas.InspectBatch.
const (
	dictionaryVersion = 1
	dictionaryFlags   = 1<<9 | 1<<10
)

// indexed is the data of a LowCardinality(String) column: values and, for each
// row, which one.
type indexed struct {
	values []byte // count strings, each with its length before it
	count  int
	keys   []byte
	width  int // of a key: 1 << width bytes
	rows   int
}

// readIndexed reads a column's data that has passed inspection and returns what
// comes after it.
func readIndexed(data []byte) (indexed, []byte) {
	x := indexed{width: int(data[0]), count: int(binary.LittleEndian.Uint64(data[8:]))}
	data = data[16:]
	end := 0
	for range x.count {
		size, n := binary.Uvarint(data[end:])
		end += n + int(size)
	}
	x.values, data = data[:end], data[end:]
	x.rows = int(binary.LittleEndian.Uint64(data))
	x.keys, data = data[8:8+x.rows<<x.width], data[8+x.rows<<x.width:]
	return x, data
}

func (x *indexed) key(i int) uint32 {
	switch x.width {
	case 0:
		return uint32(x.keys[i])
	case 1:
		return uint32(binary.LittleEndian.Uint16(x.keys[2*i:]))
	}
	return binary.LittleEndian.Uint32(x.keys[4*i:])
}

// segments collects what is sent: small things are gathered in a buffer of its
// own, large ones stay where they are.
type segments struct {
	list [][]byte
	own  []byte
}

func (s *segments) uvarint(v uint64) { s.own = binary.AppendUvarint(s.own, v) }

func (s *segments) uint64(v uint64) { s.own = binary.LittleEndian.AppendUint64(s.own, v) }

func (s *segments) string(v string) {
	s.uvarint(uint64(len(v)))
	s.own = append(s.own, v...)
}

// alias adds bytes that stay as they are until the segments are sent.
func (s *segments) alias(b []byte) {
	if len(b) < 512 {
		s.own = append(s.own, b...)
		return
	}
	s.cut()
	s.list = append(s.list, b)
}

func (s *segments) cut() {
	if len(s.own) > 0 {
		s.list = append(s.list, s.own)
		s.own = nil
	}
}

func (s *segments) done() [][]byte {
	s.cut()
	return s.list
}

func (s *segments) indexed(parts []indexed) {
	rows, same := 0, true
	for i := range parts {
		rows += parts[i].rows
		same = same && parts[i].width == parts[0].width && bytes.Equal(parts[i].values, parts[0].values)
	}
	if same {
		s.header(parts[0].width, parts[0].count, parts[0].values, rows)
		for i := range parts {
			s.alias(parts[i].keys)
		}
		return
	}
	var values []byte
	known := map[string]uint32{}
	translations := make([][]uint32, len(parts))
	for i := range parts {
		rest := parts[i].values
		for range parts[i].count {
			size, n := binary.Uvarint(rest)
			value := rest[n : n+int(size)]
			key, seen := known[string(value)]
			if !seen {
				key = uint32(len(known))
				known[string(value)] = key
				values = append(values, rest[:n+int(size)]...)
			}
			translations[i] = append(translations[i], key)
			rest = rest[n+int(size):]
		}
	}
	width := 2
	switch {
	case len(known) <= 1<<8:
		width = 0
	case len(known) <= 1<<16:
		width = 1
	}
	s.header(width, len(known), values, rows)
	for i := range parts {
		s.keys(&parts[i], translations[i], width)
	}
}

func (s *segments) header(width, count int, values []byte, rows int) {
	s.uint64(dictionaryFlags | uint64(width))
	s.uint64(uint64(count))
	s.alias(values)
	s.uint64(uint64(rows))
}

func (s *segments) keys(x *indexed, translation []uint32, width int) {
	if width == x.width && isIdentity(translation) {
		s.alias(x.keys)
		return
	}
	out := make([]byte, 0, x.rows<<width)
	switch width {
	case 0:
		// All of a part's keys fit in a byte, whatever width it came in.
		for i := range x.rows {
			out = append(out, byte(translation[x.key(i)]))
		}
	case 1:
		for i := range x.rows {
			out = binary.LittleEndian.AppendUint16(out, uint16(translation[x.key(i)]))
		}
	default:
		for i := range x.rows {
			out = binary.LittleEndian.AppendUint32(out, translation[x.key(i)])
		}
	}
	s.alias(out)
}

func isIdentity(translation []uint32) bool {
	for i, v := range translation {
		if v != uint32(i) {
			return false
		}
	}
	return true
}

// maps joins column number column: the ends of the rows' entries, their keys,
// their values.
func (s *segments) maps(blocks []schemas.BatchInfo, column int) {
	var base uint64
	var keys []indexed
	var values [][]byte
	for i := range blocks {
		data := blocks[i].Columns[column][8:]
		offsets := data[:8*blocks[i].Rows]
		if base == 0 {
			s.alias(offsets)
		} else {
			moved := make([]byte, 0, len(offsets))
			for o := offsets; len(o) > 0; o = o[8:] {
				moved = binary.LittleEndian.AppendUint64(moved, base+binary.LittleEndian.Uint64(o))
			}
			s.alias(moved)
		}
		entries := binary.LittleEndian.Uint64(offsets[len(offsets)-8:])
		base += entries
		if entries == 0 {
			continue
		}
		x, rest := readIndexed(data[len(offsets):])
		keys, values = append(keys, x), append(values, rest)
	}
	if base == 0 {
		return
	}
	s.indexed(keys)
	for _, v := range values {
		s.alias(v)
	}
}
