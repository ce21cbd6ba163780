package measure

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/internal/report"
)

func FuzzParseTaskKey(f *testing.F) {
	for _, s := range []string{"task.0190a000-0000-7000-8000-000000000001.3.1.oregon-1", "task..", "start.x.1.1", "task.x.1.1.a.b", "task.0190a000-0000-7000-8000-000000000001.-1.70000.a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		run, trial, attempt, err := ParseTaskKey(key)
		if err != nil {
			return
		}
		agent := strings.SplitN(key, ".", 5)[4]
		again := fmt.Sprintf("task.%s.%d.%d.%s", run, trial, attempt, agent)
		if r, n, a, err := ParseTaskKey(again); err != nil || r != run || n != trial || a != attempt {
			t.Errorf("%q reads as %q, which reads as %v %d %d, %v", key, again, r, n, a, err)
		}
	})
}

func TestParseTaskKey(t *testing.T) {
	task := schemas.Task{Run: uuid.Must(uuid.NewV7()), Trial: 7, Attempt: 2, Agent: "oregon-1"}
	run, trial, attempt, err := ParseTaskKey(task.Key())
	if err != nil || run != task.Run || trial != 7 || attempt != 2 {
		t.Errorf("%s: %v, %d, %d, %v", task.Key(), run, trial, attempt, err)
	}
}

const file = `name: x
workload: s3
groups: [{site: a, clients: 3}, {site: b, clients: 4}]
matrix: {size: [1MB, 2MB, 3MB], group: [a, b]}
trials: {repeat: 4}
s3: {buckets: [bucket1], size: 1MB, requests: 5}
`

func TestLayout(t *testing.T) {
	e, err := schemas.ParseExperiment([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	p, err := plan.New(e, 5)
	if err != nil {
		t.Fatal(err)
	}
	run := schemas.Run{File: file, Seed: 5, ScheduleHash: p.Hash}
	l, err := NewLayout(&run, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Cells) != 6 || l.Cells[0].Clients != 3 || l.Cells[1].Clients != 4 || l.Cells[5].Values[0].Value != "3MB" {
		t.Errorf("cells %+v", l.Cells)
	}
	for i, trial := range p.Trials {
		if l.TrialCell[i] != uint32(trial.Cell) {
			t.Errorf("trial %d is of cell %d, want %d", i, l.TrialCell[i], trial.Cell)
		}
	}
	// Another version of the program that plans differently: what was recorded
	// counts, and nothing is guessed.
	run.ScheduleHash = "another"
	l, err = NewLayout(&run, []Statement{
		{Trial: 2, Kind: schemas.KindTrial, Attrs: map[string]string{"cell": "4"}},
		{Trial: 3, Kind: schemas.KindTask, Attrs: map[string]string{"cell": "1"}},
		{Trial: 999, Kind: schemas.KindTrial, Attrs: map[string]string{"cell": "1"}},
		{Trial: 4, Kind: schemas.KindTrial, Attrs: map[string]string{"cell": "999"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, cell := range l.TrialCell {
		if want := map[bool]uint32{true: 4, false: ^uint32(0)}[i == 2]; cell != want {
			t.Errorf("trial %d is of cell %d, want %d", i, cell, want)
		}
	}
}

func TestThresholdValuesAreCompared(t *testing.T) {
	values := []report.Value{{Name: "size", Value: "1MB"}, {Name: "wait", Value: "1m30s"}, {Name: "group", Value: "a"}}
	for where, want := range map[[2]string]bool{
		{"size", "1000kB"}: true, {"size", "1MiB"}: false, {"wait", "90s"}: true, {"wait", "1m"}: false, {"group", "a"}: true, {"group", "b"}: false, {"x", "a"}: false,
	} {
		if got := matches(values, map[string]string{where[0]: where[1]}); got != want {
			t.Errorf("%v: %v, want %v", where, got, want)
		}
	}
	if !matches(values, nil) {
		t.Error("no condition matches every cell")
	}
}
