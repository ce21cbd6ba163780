package collector

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

// randomBlock draws a block of up to 40 events, whose dictionaries have up to
// variety values.
func randomBlock(t testing.TB, r *rand.Rand, producer string, variety int) schemas.BatchInfo {
	t.Helper()
	word := func(name string) string { return fmt.Sprintf("%s%d", name, r.IntN(variety)) }
	b := schemas.NewBlock(producer)
	first := 1 + r.Uint64N(1000)
	for i := range 1 + r.IntN(40) {
		e := schemas.Event{
			Intended: time.Unix(0, 1_700_000_000_000_000_000+r.Int64N(1e15)), Run: uuid.UUID{byte(r.IntN(3)), 15: byte(r.IntN(3))}, Trial: r.Uint32N(3), Attempt: uint16(r.IntN(3)),
			Workload: word("w"), Service: word("s"), Site: word(""), Agent: word("a"), Kind: word("k"),
			Wait: time.Duration(r.Int64()), FirstByte: time.Duration(r.Int64()), Duration: time.Duration(r.Int64()), Bytes: r.Uint64(), Status: word("s"),
		}
		if r.IntN(4) == 0 {
			e.Error = word("went wrong ")
		}
		for j := range r.IntN(4) {
			e.Attrs = append(e.Attrs, schemas.Attr{Key: fmt.Sprint("key", j, r.IntN(variety)), Value: word("value")})
		}
		b.Append(&e, first+uint64(i))
	}
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	info, err := schemas.InspectBatch(bytes.Clone(data))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// What the database reads of merged blocks must be what it reads of them one by
// one.
func TestMergeKeepsEveryRow(t *testing.T) {
	r := newRig(t)
	r.start(r.testConfig(), nil)
	r.publishEvents("first", 1, 1)
	r.expect("first", 1)
	random := rand.New(rand.NewPCG(3, 4))
	for round, variety := range []int{1, 2, 10, 300, 70_000} {
		for _, count := range []int{1, 2, 9} {
			var blocks []schemas.BatchInfo
			apart, together := r.producer(fmt.Sprint("apart", round, count)), r.producer(fmt.Sprint("merged", round, count))
			var merged []schemas.BatchInfo
			for i := range count {
				seed := random.Uint64()
				block := func(kind string) schemas.BatchInfo {
					return randomBlock(t, rand.New(rand.NewPCG(seed, 1)), kind+"/"+fmt.Sprint(i), variety)
				}
				blocks, merged = append(blocks, block(apart)), append(merged, block(together))
			}
			store, err := openStore(t.Context(), r.dsn)
			if err != nil {
				t.Fatal(err)
			}
			for i := range blocks {
				if err := store.Insert(t.Context(), table, apart+fmt.Sprint(i), merge(blocks[i:i+1])); err != nil {
					t.Fatal(err)
				}
			}
			if err := store.Insert(t.Context(), table, together, merge(merged)); err != nil {
				t.Fatal(err)
			}
			if err := store.Close(); err != nil {
				t.Error(err)
			}
			rows := func(producer string) string {
				return r.text(`SELECT replaceOne(producer, ?, ''), toString(seq), toString(cityHash64(* EXCEPT producer)) FROM events WHERE startsWith(producer, ?) ORDER BY ALL`, producer, producer)
			}
			if got, want := rows(together), rows(apart); got != want || want == "" {
				t.Fatalf("%d blocks of variety %d: merged rows differ from single ones:\n%s\nwant:\n%s", count, variety, got, want)
			}
		}
	}
}

// The order of merged blocks is the table's, so that the database need not
// sort.
func TestMergedBlocksAreSorted(t *testing.T) {
	r := newRig(t)
	r.start(r.testConfig(), nil)
	r.publishEvents("first", 1, 1)
	r.expect("first", 1)
	var blocks []schemas.BatchInfo
	for i := range 200 {
		b := schemas.NewBlock(r.producer(fmt.Sprint("p", i%3)))
		e := *r.event(i)
		e.Run, e.Trial = uuid.MustParse(fmt.Sprintf("0190a000-0000-7000-%04x-0000000000%02x", 0x8000+i%7, i%5)), uint32(i%4)
		b.Append(&e, uint64(1+i))
		data, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		info, err := schemas.InspectBatch(bytes.Clone(data))
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, info)
	}
	store, err := openStore(t.Context(), r.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	unsorted := "unsorted_" + r.name
	if err := r.db.Exec(t.Context(), "CREATE TABLE "+unsorted+" AS events ENGINE = Log"); err != nil {
		t.Fatal(err)
	}
	if err := store.Insert(t.Context(), unsorted, r.name, merge(blocks)); err != nil {
		t.Fatal(err)
	}
	query := "SELECT toString(run), toString(trial), producer, toString(seq) FROM " + unsorted
	if got, want := r.text(query+" SETTINGS max_threads = 1"), r.text(query+" ORDER BY run, trial, producer, seq"); got != want {
		t.Errorf("merged blocks are in the order\n%s\nwant\n%s", got, want)
	}
}
