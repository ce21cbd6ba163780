package examples_test

import (
	"slices"
	"testing"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/prober/examples"
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
	for name, want := range map[string]int{
		"oregon-dublin.yaml": 3 * 2 * 2 * 100,
		"loopback.yaml":      2 * 1 * 6 * 30,
		"mesh-100.yaml":      600_000,
		"targets.yaml":       7 * 10,
	} {
		e := parse(t, name)
		var groups []string
		for _, g := range e.Groups {
			groups = slices.Concat(groups, slices.Repeat([]string{g.Name}, g.Clients))
		}
		probes := 0
		for _, p := range plan.Paths(e.Seed, 0, groups, e.Probe) {
			probes += e.Probe.Probes(p.Phase)
		}
		if probes != want {
			t.Errorf("%s plans %d probes, want %d", name, probes, want)
		}
	}
}
