package schemas

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// BatchInfo says what a batch holds, without its rows having been copied.
type BatchInfo struct {
	Rows     int
	Bytes    int    // of the batch
	Producer string // the one producer of all rows
	FirstSeq uint64
	LastSeq  uint64
	// Columns are the byte ranges of the column data (after name and type),
	// in the order of [EventColumns]; they alias the batch.
	Columns [][]byte
}

// InspectBatch checks that data is exactly one block of the Native format with
// the columns of [EventColumns], within the limits of this package, from one
// producer whose numbers rise by one from row to row, so that handing the bytes
// to the database can neither fail nor store what was not meant. It does not
// copy: a million rows a second pass here.
func InspectBatch(data []byte) (BatchInfo, error) {
	var info BatchInfo
	if len(data) > MaxBatchBytes {
		return info, fmt.Errorf("batch of %d bytes, at most %d are allowed", len(data), MaxBatchBytes)
	}
	w := walker{data: data}
	columns := EventColumns()
	if n := w.uvarint(); w.err == nil && n != uint64(len(columns)) {
		return info, fmt.Errorf("batch has %d columns, want %d", n, len(columns))
	}
	rows64 := w.uvarint()
	if w.err == nil && (rows64 == 0 || rows64 > MaxBatchRows) {
		return info, fmt.Errorf("batch has %d rows, want 1 to %d", rows64, MaxBatchRows)
	}
	if w.err != nil {
		return info, fmt.Errorf("batch header: %w", w.err)
	}
	rows := int(rows64)
	info.Rows, info.Bytes = rows, len(data)
	for _, c := range columns {
		name, typ := w.str(), w.str()
		if w.err != nil {
			return info, fmt.Errorf("header of column %s: %w", c.Name, w.err)
		}
		if string(name) != c.Name || string(typ) != c.Type {
			return info, fmt.Errorf("column %.64q of type %.64q, want %q of type %q", name, typ, c.Name, c.Type)
		}
		start := w.pos
		switch c.Type {
		case "DateTime64(9, 'UTC')":
			for ts := w.next(8 * rows); len(ts) > 0; ts = ts[8:] {
				if int64(binary.LittleEndian.Uint64(ts)) < 0 {
					w.fail("a time before 1970")
					break
				}
			}
		case "UUID":
			w.next(16 * rows)
		case "UInt32":
			w.next(4 * rows)
		case "UInt16":
			w.next(2 * rows)
		case "UInt64":
			column := w.next(8 * rows)
			if c.Name == "seq" && w.err == nil {
				info.FirstSeq, info.LastSeq = w.sequence(column)
			}
		case "String":
			w.strings(rows, MaxEventString)
		case "LowCardinality(String)":
			w.dictionaryState()
			dictionary := w.dictionary(rows, c.Name == "producer")
			if c.Name == "producer" && w.err == nil {
				info.Producer = dictionary
			}
		default:
			w.dictionaryState()
			w.attributes(rows)
		}
		if w.err != nil {
			return info, fmt.Errorf("column %s: %w", c.Name, w.err)
		}
		info.Columns = append(info.Columns, data[start:w.pos])
	}
	if rest := len(data) - w.pos; rest > 0 {
		return info, fmt.Errorf("%d bytes after the last column", rest)
	}
	return info, nil
}

var errShort = errors.New("data ends early")

// walker reads a Native block in place. After the first fault every method
// returns zero values.
type walker struct {
	data []byte
	pos  int
	err  error
}

func (w *walker) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *walker) next(n int) []byte {
	if w.err != nil {
		return nil
	}
	if n < 0 || n > len(w.data)-w.pos {
		w.err = errShort
		return nil
	}
	b := w.data[w.pos : w.pos+n]
	w.pos += n
	return b
}

func (w *walker) uvarint() uint64 {
	if w.err != nil {
		return 0
	}
	v, n := binary.Uvarint(w.data[w.pos:])
	if n <= 0 {
		w.err = errShort
		return 0
	}
	w.pos += n
	return v
}

func (w *walker) uint64() uint64 {
	b := w.next(8)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

func (w *walker) str() []byte {
	n := w.uvarint()
	if n > MaxEventString {
		w.fail("a string of %d bytes, at most %d are allowed", n, MaxEventString)
		return nil
	}
	return w.next(int(n))
}

func (w *walker) strings(n, limit int) {
	data, pos := w.data, w.pos
	if w.err != nil {
		return
	}
	for range n {
		if pos >= len(data) {
			w.err = errShort
			return
		}
		size := uint64(data[pos])
		pos++
		if size >= 0x80 {
			var used int
			size, used = binary.Uvarint(data[pos-1:])
			if used <= 0 {
				w.err = errShort
				return
			}
			pos += used - 1
		}
		if size > uint64(limit) {
			w.fail("a string of %d bytes, at most %d are allowed", size, limit)
			return
		}
		pos += int(size)
	}
	if pos > len(data) {
		w.err = errShort
		return
	}
	w.pos = pos
}

// sequence checks that the numbers rise by one.
func (w *walker) sequence(column []byte) (first, last uint64) {
	first = binary.LittleEndian.Uint64(column)
	if first == 0 || first > math.MaxInt64 {
		w.fail("first number %d, want 1 or more", first)
		return 0, 0
	}
	last = first
	for i := 8; i < len(column); i += 8 {
		last++
		if n := binary.LittleEndian.Uint64(column[i:]); n != last {
			w.fail("number %d after %d, want a rise by one", n, last-1)
			return 0, 0
		}
	}
	return first, last
}

// Serialization of LowCardinality in the Native format: the version of the
// keys, then flags and key width, the dictionary, the keys.
const (
	dictionaryVersion = 1
	dictionaryFlags   = 1<<9 | 1<<10 // own dictionary, not a shared one
)

func (w *walker) dictionaryState() {
	if v := w.uint64(); w.err == nil && v != dictionaryVersion {
		w.fail("dictionary version %d, want %d", v, dictionaryVersion)
	}
}

// dictionary walks rows values and returns the first one; with single set all
// rows must have it.
func (w *walker) dictionary(rows int, single bool) string {
	meta := w.uint64()
	width := meta & 0xff
	if w.err == nil && (meta&^0xff != dictionaryFlags || width > 2) {
		w.fail("dictionary flags %#x, want %#x and keys of 1, 2 or 4 bytes", meta, dictionaryFlags)
	}
	size := w.uint64()
	if w.err == nil && (size == 0 || size > uint64(rows)+1) {
		w.fail("dictionary of %d values for %d rows", size, rows)
	}
	if w.err != nil {
		return ""
	}
	start := w.pos
	w.strings(int(size), maxDictionaryValue)
	end := w.pos
	if n := w.uint64(); w.err == nil && n != uint64(rows) {
		w.fail("%d keys for %d rows", n, rows)
	}
	keys := w.next(rows << width)
	if w.err != nil {
		return ""
	}
	// One value in all rows is the rule, and quickly seen.
	constant := bytes.Equal(keys[:len(keys)-1<<width], keys[1<<width:])
	first := key(keys, width)
	if constant && uint64(first) >= size || !constant && !below(keys, width, size) {
		w.fail("a key beyond a dictionary of %d values", size)
		return ""
	}
	if !single {
		return ""
	}
	if !constant {
		w.fail("more than one producer in a batch")
		return ""
	}
	values := walker{data: w.data[start:end]}
	for range first {
		values.str()
	}
	value := string(values.str())
	if value == "" {
		w.fail("no producer")
	}
	return value
}

// key is the first of keys of 1 << width bytes.
func key(keys []byte, width uint64) uint32 {
	switch width {
	case 0:
		return uint32(keys[0])
	case 1:
		return uint32(binary.LittleEndian.Uint16(keys))
	}
	return binary.LittleEndian.Uint32(keys)
}

// below reports whether all keys are less than size.
func below(keys []byte, width, size uint64) bool {
	if width == 0 && size <= 128 {
		// Eight at a time: a key of 128 or more has its highest bit set, any other
		// that is too large gets it by the addition.
		const each, high = 0x0101010101010101, 0x8080808080808080
		for ; len(keys) >= 8; keys = keys[8:] {
			x := binary.LittleEndian.Uint64(keys)
			if (x|(x&^high+(128-size)*each))&high != 0 {
				return false
			}
		}
	}
	for ; len(keys) > 0; keys = keys[1<<width:] {
		if uint64(key(keys, width)) >= size {
			return false
		}
	}
	return true
}

func (w *walker) attributes(rows int) {
	column := w.next(8 * rows)
	if w.err != nil {
		return
	}
	var last uint64
	for offsets := column; len(offsets) > 0; offsets = offsets[8:] {
		end := binary.LittleEndian.Uint64(offsets)
		if end < last || end-last > MaxEventAttrs {
			w.fail("offset %d after %d, want a rise of 0 to %d", end, last, MaxEventAttrs)
			return
		}
		last = end
	}
	// An empty nested column has no dictionary at all.
	if last == 0 {
		return
	}
	w.dictionary(int(last), false)
	w.values(column)
}

// values walks the entries' values, row by row as the offsets say.
// Producers group events of the same attributes: the bytes of a row are mostly
// those of the row before it, and need not be looked at again.
func (w *walker) values(offsets []byte) {
	start, size, count := w.pos, 0, 0 // of the row before
	last := 0
	for ; len(offsets) > 0 && w.err == nil; offsets = offsets[8:] {
		end := int(binary.LittleEndian.Uint64(offsets))
		n := end - last
		last = end
		if at := w.pos; n == count && at+size <= len(w.data) && bytes.Equal(w.data[start:start+size], w.data[at:at+size]) {
			w.pos += size
			continue
		}
		start, count = w.pos, n
		w.strings(n, MaxEventString)
		size = w.pos - start
	}
}
