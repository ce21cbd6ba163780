package clickhouse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Bounds on a block from outside: beyond them it is refused unread.
const (
	maxBlockColumns = 1024
	maxBlockRows    = 1 << 26
	maxTypeDepth    = 8
	maxTypeLength   = 4096
)

// block is one block in ClickHouse's Native format (as HTTP takes it: without
// block information and serialization flags), taken apart but not decoded.
type block struct {
	Rows    int
	Columns []blockColumn
}

// blockColumn is one column of a block. Data is the column's bytes as they are
// on the wire and shares memory with what was parsed.
type blockColumn struct {
	Name string
	Type string
	Data []byte
}

// parseBlock takes the first block of raw apart and returns what follows it.
// It checks the structure, so that a block it accepts can be sent together with
// others without tearing them down: lengths, offsets and dictionary positions
// all stay inside the block. Whether the columns fit a table is for the server
// (or the caller) to say. It allocates next to nothing and never panics.
//
// Types it does not know are an error.
func parseBlock(raw []byte) (parsed block, rest []byte, err error) {
	r := wire{buf: raw}
	columns, rows := r.uvarint(), r.uvarint()
	if r.err != nil {
		return block{}, nil, fmt.Errorf("block header: %w", r.err)
	}
	if columns == 0 || columns > maxBlockColumns {
		return block{}, nil, fmt.Errorf("block has %d columns: allowed are 1 to %d", columns, maxBlockColumns)
	}
	if rows > maxBlockRows {
		return block{}, nil, fmt.Errorf("block has %d rows: at most %d are allowed", rows, maxBlockRows)
	}
	parsed = block{Rows: int(rows), Columns: make([]blockColumn, 0, columns)}
	for i := range int(columns) {
		name, kind := r.str(), r.str()
		if r.err != nil {
			return block{}, nil, fmt.Errorf("column %d: %w", i+1, r.err)
		}
		if len(name) > maxTypeLength || len(kind) > maxTypeLength {
			return block{}, nil, fmt.Errorf("column %d: name or type is longer than %d bytes", i+1, maxTypeLength)
		}
		t, err := parseType(string(kind), 0)
		if err != nil {
			return block{}, nil, fmt.Errorf("column %q: %w", name, err)
		}
		start := r.pos
		if rows > 0 {
			t.skipPrefix(&r)
			t.skip(&r, int(rows))
		}
		if r.err != nil {
			return block{}, nil, fmt.Errorf("column %q %s: %w", name, kind, r.err)
		}
		parsed.Columns = append(parsed.Columns, blockColumn{Name: string(name), Type: string(kind), Data: raw[start:r.pos:r.pos]})
	}
	return parsed, raw[r.pos:], nil
}

var errTruncated = errors.New("the data ends too early")

// wire reads the format's primitives. After the first error it reads nothing.
type wire struct {
	buf []byte
	pos int
	err error
}

func (r *wire) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *wire) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.buf)-r.pos {
		r.fail(errTruncated)
		return nil
	}
	b := r.buf[r.pos : r.pos+n]
	r.pos += n
	return b
}

// array takes n elements of size bytes, without overflow.
func (r *wire) array(n, size int) []byte {
	if n > len(r.buf)/max(size, 1) {
		r.fail(errTruncated)
		return nil
	}
	return r.take(n * size)
}

func (r *wire) uvarint() uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.buf[r.pos:])
	if n <= 0 {
		r.fail(errTruncated)
		return 0
	}
	r.pos += n
	return v
}

func (r *wire) uint64() uint64 {
	b := r.take(8)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

func (r *wire) str() []byte {
	n := r.uvarint()
	if n > uint64(len(r.buf)) {
		r.fail(errTruncated)
		return nil
	}
	return r.take(int(n))
}

// strings steps over n strings; the loop every event batch spends its time in.
func (r *wire) strings(n int) {
	if r.err != nil {
		return
	}
	pos, buf := r.pos, r.buf
	for range n {
		if pos >= len(buf) {
			r.fail(errTruncated)
			return
		}
		length := uint64(buf[pos])
		if length < 0x80 {
			pos++
		} else {
			var size int
			length, size = binary.Uvarint(buf[pos:])
			if size <= 0 {
				r.fail(errTruncated)
				return
			}
			pos += size
		}
		if length > uint64(len(buf)-pos) {
			r.fail(errTruncated)
			return
		}
		pos += int(length)
	}
	r.pos = pos
}

type typeKind uint8

const (
	kindFixed typeKind = iota
	kindString
	kindNullable
	kindArray
	kindTuple
	kindLowCardinality
)

// columnType is a type as far as its encoding goes. A Map is an Array of
// Tuples.
type columnType struct {
	kind  typeKind
	size  int // of kindFixed, bytes
	inner []columnType
}

// skipPrefix steps over what precedes a column's data: the version of each
// dictionary in it.
func (t *columnType) skipPrefix(r *wire) {
	if t.kind == kindLowCardinality {
		if version := r.uint64(); r.err == nil && version != 1 {
			r.fail(fmt.Errorf("dictionary version %d is not known", version))
		}
		return
	}
	for i := range t.inner {
		t.inner[i].skipPrefix(r)
	}
}

func (t *columnType) skip(r *wire, rows int) {
	if r.err != nil {
		return
	}
	switch t.kind {
	case kindFixed:
		r.array(rows, t.size)
	case kindString:
		r.strings(rows)
	case kindNullable:
		r.array(rows, 1)
		t.inner[0].skip(r, rows)
	case kindTuple:
		for i := range t.inner {
			t.inner[i].skip(r, rows)
		}
	case kindArray:
		t.skipArray(r, rows)
	case kindLowCardinality:
		t.skipLowCardinality(r, rows)
	}
}

func (t *columnType) skipArray(r *wire, rows int) {
	offsets := r.array(rows, 8)
	if r.err != nil {
		return
	}
	var last uint64
	for i := 0; i < len(offsets); i += 8 {
		offset := binary.LittleEndian.Uint64(offsets[i:])
		if offset < last {
			r.fail(errors.New("array offsets go backwards"))
			return
		}
		last = offset
	}
	if last > maxBlockRows {
		r.fail(fmt.Errorf("arrays have %d elements: at most %d are allowed", last, maxBlockRows))
		return
	}
	if last > 0 {
		t.inner[0].skip(r, int(last))
	}
}

// Bits of the number before a dictionary.
const (
	lowCardinalityIndexMask   = 0xff
	lowCardinalityGlobal      = 1 << 8
	lowCardinalityHasOwnKeys  = 1 << 9
	lowCardinalityUpdateKeys  = 1 << 10
	lowCardinalityKnownFlags  = lowCardinalityIndexMask | lowCardinalityHasOwnKeys | lowCardinalityUpdateKeys
	lowCardinalityMaxIndexLog = 3
)

func (t *columnType) skipLowCardinality(r *wire, rows int) {
	if rows == 0 {
		return
	}
	flags := r.uint64()
	index := flags & lowCardinalityIndexMask
	if r.err == nil && (flags&^uint64(lowCardinalityKnownFlags) != 0 || flags&lowCardinalityHasOwnKeys == 0 || index > lowCardinalityMaxIndexLog) {
		r.fail(fmt.Errorf("dictionary flags %#x are not allowed", flags))
		return
	}
	keys := r.uint64()
	if r.err == nil && keys > maxBlockRows {
		r.fail(fmt.Errorf("dictionary has %d keys: at most %d are allowed", keys, maxBlockRows))
		return
	}
	t.inner[0].skip(r, int(keys))
	if count := r.uint64(); r.err == nil && count != uint64(rows) {
		r.fail(fmt.Errorf("dictionary column has %d positions for %d rows", count, rows))
		return
	}
	positions := r.array(rows, 1<<index)
	if r.err == nil && !positionsBelow(positions, 1<<index, keys) {
		r.fail(errors.New("dictionary position out of range"))
	}
}

func positionsBelow(positions []byte, size int, keys uint64) bool {
	switch size {
	case 1:
		if keys > 0xff {
			return true
		}
		for _, p := range positions {
			if uint64(p) >= keys {
				return false
			}
		}
	case 2:
		for i := 0; i < len(positions); i += 2 {
			if uint64(binary.LittleEndian.Uint16(positions[i:])) >= keys {
				return false
			}
		}
	case 4:
		for i := 0; i < len(positions); i += 4 {
			if uint64(binary.LittleEndian.Uint32(positions[i:])) >= keys {
				return false
			}
		}
	default:
		for i := 0; i < len(positions); i += 8 {
			if binary.LittleEndian.Uint64(positions[i:]) >= keys {
				return false
			}
		}
	}
	return true
}

// fixedSizes are the types of fixed width without parameters that matter for
// it.
var fixedSizes = map[string]int{
	"Nothing": 1, "Bool": 1, "Int8": 1, "UInt8": 1, "Enum8": 1,
	"Int16": 2, "UInt16": 2, "Enum16": 2, "Date": 2, "BFloat16": 2,
	"Int32": 4, "UInt32": 4, "Float32": 4, "Date32": 4, "DateTime": 4, "IPv4": 4, "Time": 4, "Decimal32": 4,
	"Int64": 8, "UInt64": 8, "Float64": 8, "DateTime64": 8, "Time64": 8, "Decimal64": 8,
	"Int128": 16, "UInt128": 16, "UUID": 16, "IPv6": 16, "Decimal128": 16,
	"Int256": 32, "UInt256": 32, "Decimal256": 32,
}

func parseType(s string, depth int) (columnType, error) {
	if depth > maxTypeDepth {
		return columnType{}, fmt.Errorf("type is nested deeper than %d", maxTypeDepth)
	}
	name, parameters, _ := strings.Cut(s, "(")
	name = strings.TrimSpace(name)
	if size, ok := fixedSizes[name]; ok {
		return columnType{kind: kindFixed, size: size}, nil
	}
	if name == "String" {
		return columnType{kind: kindString}, nil
	}
	parameters, closed := strings.CutSuffix(strings.TrimSpace(parameters), ")")
	if !closed {
		return columnType{}, fmt.Errorf("type %q is not supported", s)
	}
	args, err := splitArguments(parameters)
	if err != nil {
		return columnType{}, fmt.Errorf("type %q: %w", s, err)
	}
	inner := func(args []string) ([]columnType, error) {
		types := make([]columnType, len(args))
		for i, arg := range args {
			if types[i], err = parseType(arg, depth+1); err != nil {
				return nil, err
			}
		}
		return types, nil
	}
	want := func(kind typeKind, n int) (columnType, error) {
		if len(args) != n {
			return columnType{}, fmt.Errorf("type %q has %d parameters, %d are needed", s, len(args), n)
		}
		types, err := inner(args)
		return columnType{kind: kind, inner: types}, err
	}
	switch name {
	case "Nullable":
		return want(kindNullable, 1)
	case "Array":
		return want(kindArray, 1)
	case "Map":
		pair, err := want(kindTuple, 2)
		return columnType{kind: kindArray, inner: []columnType{pair}}, err
	case "Tuple":
		for i, arg := range args {
			args[i] = withoutName(arg)
		}
		types, err := inner(args)
		return columnType{kind: kindTuple, inner: types}, err
	case "SimpleAggregateFunction":
		if len(args) != 2 {
			return columnType{}, fmt.Errorf("type %q is not supported", s)
		}
		return parseType(args[1], depth+1)
	case "LowCardinality":
		t, err := want(kindLowCardinality, 1)
		if err == nil && t.inner[0].kind == kindNullable {
			// The dictionary holds plain values, its first one stands for NULL.
			t.inner = t.inner[0].inner
		}
		if err == nil && t.inner[0].kind != kindString && t.inner[0].kind != kindFixed {
			return columnType{}, fmt.Errorf("type %q is not supported", s)
		}
		return t, err
	case "FixedString":
		n, err := strconv.Atoi(strings.TrimSpace(parameters))
		if err != nil || n < 1 || n > 1<<20 {
			return columnType{}, fmt.Errorf("type %q is not supported", s)
		}
		return columnType{kind: kindFixed, size: n}, nil
	case "Decimal":
		precision, err := strconv.Atoi(strings.TrimSpace(args[0]))
		if err != nil || precision < 1 || precision > 76 {
			return columnType{}, fmt.Errorf("type %q is not supported", s)
		}
		size := 32
		switch {
		case precision <= 9:
			size = 4
		case precision <= 18:
			size = 8
		case precision <= 38:
			size = 16
		}
		return columnType{kind: kindFixed, size: size}, nil
	}
	return columnType{}, fmt.Errorf("type %q is not supported", s)
}

// splitArguments cuts at the commas that are inside neither brackets nor
// quotes. The result is never empty.
func splitArguments(s string) ([]string, error) {
	var (
		args  []string
		depth int
		start int
	)
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth < 0 {
				return nil, errors.New("brackets do not match")
			}
		case '\'', '`', '"':
			end := quoteEnd(s, i)
			if end < 0 {
				return nil, errors.New("a quote is never closed")
			}
			i = end - 1
		case ',':
			if depth == 0 {
				args = append(args, strings.TrimSpace(s[start:i]))
				start = i + 1
			}
		}
	}
	if depth != 0 {
		return nil, errors.New("brackets do not match")
	}
	return append(args, strings.TrimSpace(s[start:])), nil
}

// withoutName drops the name of a named tuple's element.
func withoutName(s string) string {
	if s == "" {
		return s
	}
	if s[0] == '`' || s[0] == '"' {
		if end := quoteEnd(s, 0); end > 0 {
			return strings.TrimSpace(s[end:])
		}
		return s
	}
	name, rest, found := strings.Cut(s, " ")
	if found && !strings.ContainsAny(name, "(,'") {
		return strings.TrimSpace(rest)
	}
	return s
}
