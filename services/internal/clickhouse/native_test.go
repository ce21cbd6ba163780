package clickhouse

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// sampleBlock has a column of every shape parseBlock knows.
func sampleBlock(tb testing.TB, rows int) []byte {
	tb.Helper()
	var (
		number   proto.ColUInt64
		id       proto.ColUUID
		text     proto.ColStr
		at       = new(proto.ColDateTime64).WithPrecision(9).WithLocation(time.UTC)
		kind     = new(proto.ColStr).LowCardinality()
		many     = new(proto.ColStr).LowCardinality()
		optional = new(proto.ColUInt32).Nullable()
		maybe    = new(proto.ColStr).Nullable()
		list     = new(proto.ColStr).Array()
		lists    = proto.NewArray[[]string](new(proto.ColStr).Array())
		attrs    = proto.NewMap[string, string](new(proto.ColStr).LowCardinality(), new(proto.ColStr))
		fixed    = &proto.ColFixedStr{Size: 3}
	)
	for i := range rows {
		number.Append(uint64(i))
		id.Append([16]byte{byte(i)})
		text.Append(strings.Repeat("x", i%300))
		at.Append(time.Unix(int64(i), 0))
		kind.Append([]string{"a", "b"}[i%2])
		many.Append(fmt.Sprint("value", i))
		optional.Append(proto.NewNullable(uint32(i)))
		maybe.Append(proto.Null[string]())
		list.Append([]string{"p", "q"}[:i%3%2])
		lists.Append([][]string{{"p"}, {}, {"q", "r"}}[:i%4%3])
		attrs.Append(map[string]string{"bucket": "b", "size": fmt.Sprint(i)})
		fixed.Append([]byte("abc"))
	}
	input := proto.Input{
		{Name: "number", Data: &number},
		{Name: "id", Data: &id},
		{Name: "text", Data: &text},
		{Name: "at", Data: at},
		{Name: "kind", Data: kind},
		{Name: "many", Data: many},
		{Name: "optional", Data: optional},
		{Name: "maybe", Data: maybe},
		{Name: "list", Data: list},
		{Name: "lists", Data: lists},
		{Name: "attrs", Data: attrs},
		{Name: "fixed", Data: fixed},
	}
	var b proto.Buffer
	if err := (proto.Block{Columns: len(input), Rows: rows}).EncodeRawBlock(&b, 0, input); err != nil {
		tb.Fatal(err)
	}
	return b.Buf
}

func TestParseBlock(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{0, 1, 2, 255, 256, 257, 1000, 70_000} {
		raw := sampleBlock(t, rows)
		joined := append(bytes.Clone(raw), raw...)
		block, rest, err := parseBlock(joined)
		if err != nil || block.Rows != rows || len(block.Columns) != 12 || !bytes.Equal(rest, raw) {
			t.Fatalf("%d rows: got %d rows, %d columns, %d bytes left of %d: %v", rows, block.Rows, len(block.Columns), len(rest), len(raw), err)
		}
		if rows > 0 && len(block.Columns[0].Data) != 8*rows {
			t.Errorf("%d rows: first column has %d bytes", rows, len(block.Columns[0].Data))
		}
	}
}

func TestParseBlockRefusesEveryTruncation(t *testing.T) {
	t.Parallel()
	raw := sampleBlock(t, 20)
	for n := range raw {
		if _, _, err := parseBlock(raw[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes are accepted", n, len(raw))
		}
	}
}

func TestParseBlockRefusesHostileNumbers(t *testing.T) {
	t.Parallel()
	column := func(kind string, data ...byte) []byte {
		b := []byte{1, 2, 1, 'c', byte(len(kind))}
		return append(append(b, kind...), data...)
	}
	u64 := func(values ...uint64) (b []byte) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return b
	}
	for name, raw := range map[string][]byte{
		"no columns":             {0, 1},
		"many columns":           {0xff, 0xff, 0x7f, 1},
		"many rows":              {1, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"string beyond the end":  column("String", 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1),
		"varint without end":     column("String", bytes.Repeat([]byte{0x80}, 20)...),
		"unknown type":           column("JSON", u64(1, 2)...),
		"aggregate state":        column("AggregateFunction(count)", 1, 2),
		"brackets":               column("Array(String", u64(0, 0)...),
		"deep":                   column(strings.Repeat("Array(", 20)+"UInt8"+strings.Repeat(")", 20), u64(0, 0)...),
		"backward offsets":       column("Array(UInt8)", append(u64(2, 1), 1, 2)...),
		"huge offset":            column("Array(UInt8)", u64(1, 1<<60)...),
		"dictionary version":     column("LowCardinality(String)", u64(7)...),
		"dictionary flags":       column("LowCardinality(String)", u64(1, 1<<8, 1)...),
		"huge dictionary":        column("LowCardinality(String)", u64(1, 1<<9, 1<<60)...),
		"position out of range":  column("LowCardinality(String)", append(append(u64(1, 1<<9, 1), 1, 'a'), append(u64(2), 0, 1)...)...),
		"wrong count":            column("LowCardinality(String)", append(append(u64(1, 1<<9, 1), 1, 'a'), append(u64(3), 0, 0, 0)...)...),
		"negative fixed string":  column("FixedString(-1)", 1, 2),
		"enormous fixed string":  column("FixedString(99999999999)", 1, 2),
		"dictionary of arrays":   column("LowCardinality(Array(UInt8))", u64(1)...),
		"map with one parameter": column("Map(String)", u64(0, 0)...),
		"decimal without a size": column("Decimal(x)", 1, 2),
	} {
		if block, _, err := parseBlock(raw); err == nil {
			t.Errorf("%s: accepted as %+v", name, block)
		}
	}
}

func FuzzParseBlock(f *testing.F) {
	f.Add(sampleBlock(f, 3))
	f.Add(sampleBlock(f, 0))
	f.Add([]byte{1, 2, 1, 'c', 6, 'S', 't', 'r', 'i', 'n', 'g', 1, 'a', 1, 'b'})
	f.Fuzz(func(t *testing.T, raw []byte) {
		block, rest, err := parseBlock(raw)
		if err != nil {
			return
		}
		var data int
		for _, c := range block.Columns {
			data += len(c.Data)
		}
		if len(rest)+data > len(raw) {
			t.Errorf("%d bytes of columns and %d left, of %d", data, len(rest), len(raw))
		}
	})
}

func BenchmarkParseBlock(b *testing.B) {
	raw := sampleBlock(b, 10_000)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, _, err := parseBlock(raw); err != nil {
			b.Fatal(err)
		}
	}
}
