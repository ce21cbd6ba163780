package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

func TestRowsAreWhatTheShapeSays(t *testing.T) {
	const n = 50_000
	s := defaultShape()
	start, run := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), uuid.Must(uuid.NewV7())
	events := agentRows(s, 1, 0, n, start, run)
	if again := agentRows(s, 1, 0, n, start, run); !reflect.DeepEqual(events, again) {
		t.Error("the same seed draws other rows")
	}
	first, last := start.Add(time.Hour), start
	objects := map[schemas.Attr]int{}
	var done time.Time
	for _, e := range events {
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
		if end := e.Intended.Add(e.Wait + e.Duration); end.Before(done) {
			t.Fatal("rows do not come in the order in which they end")
		} else {
			done = end
		}
		if e.Intended.Before(first) {
			first = e.Intended
		}
		if e.Intended.After(last) {
			last = e.Intended
		}
		objects[e.Attrs[1]]++
		if len(e.Attrs) != 6 {
			t.Fatalf("%d attributes, want 6", len(e.Attrs))
		}
	}
	rate := n / last.Sub(first).Seconds()
	if want := s.Rate / float64(s.Agents); rate < 0.97*want || rate > 1.03*want {
		t.Errorf("%.0f events a second, want about %.0f", rate, want)
	}
	if len(objects) != s.Objects {
		t.Errorf("%d objects, want %d", len(objects), s.Objects)
	}
}

// What stands in for another client sends the same rows.
func TestClientBlockIsABatch(t *testing.T) {
	events := agentRows(defaultShape(), 1, 1, 100, time.Now(), uuid.Must(uuid.NewV7()))
	var pointers []*schemas.Event
	var names []string
	var numbers []uint64
	for i := range events {
		pointers, names, numbers = append(pointers, &events[i]), append(names, "p"), append(numbers, uint64(i+1))
	}
	data, err := clientBlock(pointers, names, numbers)
	if err != nil {
		t.Fatal(err)
	}
	info, err := schemas.InspectBatch(data)
	if err != nil || info.Rows != 100 || info.Producer != "p" {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestOptionsNameEveryFault(t *testing.T) {
	var o options
	err := o.parse([]string{"--rounds", "0", "--rows", "1", "--steady", "1ms"})
	for _, flag := range []string{"--rounds", "--rows", "--steady"} {
		if err == nil || !strings.Contains(err.Error(), flag+": ") {
			t.Errorf("%v, want %s named", err, flag)
		}
	}
}
