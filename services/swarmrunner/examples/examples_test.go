package examples_test

import (
	"testing"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/swarmrunner/examples"
)

func parse(t *testing.T, name string) *schemas.Experiment {
	t.Helper()
	data, err := examples.Files.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	e, err := schemas.ParseExperiment(data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// What the files say of themselves.
func TestExamplesPlanWhatTheySay(t *testing.T) {
	trials := map[string]int{}
	p, err := plan.New(parse(t, "bittorrent-full.yaml"), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, trial := range p.Trials {
		trials[trial.Section.(*schemas.Swarm).FileName()]++
	}
	for file, want := range map[string]int{"A_10kB": 333, "A_100kB": 33, "A_1MB": 3, "A_10MB": 1} {
		if trials[file] != want {
			t.Errorf("%d trials of %s, want %d", trials[file], file, want)
		}
	}
	if len(p.Trials) != 370 {
		t.Errorf("%d trials, want 370", len(p.Trials))
	}
	for name, want := range map[string]int{"crowd.yaml": 200, "shaped.yaml": 50, "faults.yaml": 8, "bittorrent-small.yaml": 3, "spanning.yaml": 6} {
		e := parse(t, name)
		leechers := 0
		for _, g := range e.Groups {
			if !e.Swarm.Seeds(g.Name) {
				leechers += g.Clients
			}
		}
		if leechers != want {
			t.Errorf("%s has %d leechers, want %d", name, leechers, want)
		}
	}
}
