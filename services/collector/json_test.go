package collector

import (
	"bytes"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

const jsonRow = `{"ts":"2026-03-01T10:00:00.123456789Z","run":"01890f3e-7c00-7000-8000-000000000001","trial":3,"attempt":1,"workload":"s3","service":"script","site":"oregon","agent":"a","kind":"request",` +
	`"wait_ns":1,"first_byte_ns":"2","duration_ns":3,"bytes":18446744073709551615,"status":"ok","error":"","attrs":{"bucket":"b","op":"get"},"producer":"PRODUCER","seq":1}`

func TestJSONEventsArrive(t *testing.T) {
	r := newRig(t)
	c := r.start(r.testConfig(), nil)
	first := strings.Replace(jsonRow, "PRODUCER", r.producer("json"), 1)
	second := `{"ts":"2026-03-01 10:00:01.5","workload":"s3","service":"script","kind":"request","status":"ok","producer":"` + r.producer("json") + `","seq":"2"}`
	r.publish(bus.FormatJSON, []byte(first+"\n\n"+second))
	r.publishEvents("native", 1, 1)
	r.expect("json", 2)
	r.expect("native", 1)
	equal(t, "events", r.text(`
		SELECT toString(ts), toString(run), toString(trial), toString(attempt), workload, service, site, agent, kind, toString(wait_ns), toString(first_byte_ns), toString(duration_ns),
			toString(bytes), status, error, toString(attrs), toString(seq)
		FROM events WHERE producer = ? ORDER BY seq`, r.producer("json")),
		"2026-03-01 10:00:00.123456789|01890f3e-7c00-7000-8000-000000000001|3|1|s3|script|oregon|a|request|1|2|3|18446744073709551615|ok||{'bucket':'b','op':'get'}|1\n"+
			"2026-03-01 10:00:01.500000000|00000000-0000-0000-0000-000000000000|0|0|s3|script|||request|0|0|0|0|ok||{}|2\n")
	if n := c.metric("rejected_total"); n != 0 {
		t.Errorf("%v batches rejected", n)
	}
}

func TestJSONIsStrict(t *testing.T) {
	change := func(old, now string) string {
		if !strings.Contains(jsonRow, old) {
			t.Fatalf("no %q in the row", old)
		}
		return strings.Replace(jsonRow, old, now, 1)
	}
	for _, c := range []struct{ name, data, want string }{
		{"nothing", "", "no line"},
		{"blank lines", "\n \n", "no line"},
		{"not JSON", "{", "line 1: "},
		{"an array", "[]", "line 1: want an object"},
		{"two objects in a line", jsonRow + jsonRow, "line 1: something after the object"},
		{"unknown column", change(`"trial"`, `"trail"`), "line 1: trail: no such column"},
		{"column in capitals", change(`"ts"`, `"TS"`), "line 1: TS: no such column"},
		{"column twice", change(`"trial":3`, `"trial":3,"trial":3`), "line 1: trial: given twice"},
		{"no time", change(`"ts":"2026-03-01T10:00:00.123456789Z",`, ""), "line 1: ts: missing"},
		{"no producer", change(`"producer":"PRODUCER",`, ""), "line 1: producer: missing"},
		{"empty producer", change(`"PRODUCER"`, `""`), "no producer"},
		{"no number", change(`,"seq":1`, ""), "line 1: seq: missing"},
		{"number 0", change(`"seq":1`, `"seq":0`), "want 1 or more"},
		{"time as a number", change(`"2026-03-01T10:00:00.123456789Z"`, "1772359200"), "line 1: ts: 1772359200, want"},
		{"a day only", change(`"2026-03-01T10:00:00.123456789Z"`, `"2026-03-01"`), `line 1: ts: "2026-03-01", want`},
		{"time out of range", change("2026-03-01T", "1026-03-01T"), "line 1: event.ts"},
		{"negative", change(`"wait_ns":1`, `"wait_ns":-1`), "line 1: wait_ns: -1, want a whole number"},
		{"fraction", change(`"wait_ns":1`, `"wait_ns":1.5`), "line 1: wait_ns: 1.5, want a whole number"},
		{"too large", change(`"trial":3`, `"trial":4294967296`), "line 1: trial: 4294967296, want a whole number from 0 to 4294967295"},
		{"a word for a number", change(`"trial":3`, `"trial":"three"`), `line 1: trial: "three", want`},
		{"a number for a word", change(`"workload":"s3"`, `"workload":3`), "line 1: workload: 3, want a string"},
		{"null", change(`"workload":"s3"`, `"workload":null`), "line 1: workload: null, want a string"},
		{"no kind", change(`"kind":"request",`, ""), "line 1: event.kind"},
		{"half a UUID", change(`"01890f3e-7c00-7000-8000-000000000001"`, `"01890f3e"`), `line 1: run: "01890f3e", want`},
		{"attributes in a list", change(`{"bucket":"b","op":"get"}`, `["b"]`), "line 1: attrs: […, want an object"},
		{"attribute that is a number", change(`"op":"get"`, `"op":1`), "line 1: attrs: op: 1, want a string"},
		{"attribute twice", change(`"op":"get"`, `"op":"get","op":"get"`), "line 1: attrs: op: given twice"},
		{"attribute without a name", change(`"op":"get"`, `"":"get"`), "line 1: event.attrs"},
		{"deeply nested", change(`"get"`, strings.Repeat("[", 100_000)), "line 1: attrs: op: […, want a string"},
		{"another producer", jsonRow + "\n" + strings.Replace(change(`"seq":1`, `"seq":2`), "PRODUCER", "OTHER", 1), "line 2: producer \"OTHER\" after \"PRODUCER\""},
		{"a hole", jsonRow + "\n" + change(`"seq":1`, `"seq":3`), "line 2: seq 3 after 1"},
		{"too large a batch", strings.Repeat(" ", schemas.MaxBatchBytes+1), "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := accept(bus.EventBatch{Format: bus.FormatJSON, Data: []byte(c.data)}, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q in it", err, c.want)
			}
		})
	}
	if _, _, err := accept(bus.EventBatch{Format: bus.FormatJSON, Data: []byte(jsonRow)}, nil); err != nil {
		t.Errorf("the row that all of these are made of: %v", err)
	}
}

// Whatever is taken for events is a batch like any other, and as many rows as
// there are lines.
func FuzzJSON(f *testing.F) {
	f.Add([]byte(jsonRow))
	f.Add([]byte(jsonRow + "\n" + strings.Replace(jsonRow, `"seq":1`, `"seq":"2"`, 1)))
	f.Add([]byte(`{"ts":"2026-03-01 10:00:01.5","workload":"s3","service":"x","kind":"y","status":"ok","producer":"p","seq":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		native, err := encodeJSON(data)
		if err != nil {
			return
		}
		info, err := schemas.InspectBatch(native)
		if err != nil {
			// Only what concerns the batch as a whole is left to inspection.
			for _, allowed := range []string{"first number", "no producer", "a string of", "batch of"} {
				if strings.Contains(err.Error(), allowed) {
					return
				}
			}
			t.Fatalf("encoded as a batch that does not hold up: %v", err)
		}
		lines := 0
		for line := range bytes.Lines(data) {
			if len(bytes.TrimSpace(line)) > 0 {
				lines++
			}
		}
		if info.Rows != lines {
			t.Fatalf("%d rows of %d lines", info.Rows, lines)
		}
	})
}
