package examples_test

import (
	"io/fs"
	"slices"
	"strings"
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

func TestExamplesAreValid(t *testing.T) {
	files, err := fs.Glob(examples.Files, "*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		t.Run(name, func(t *testing.T) {
			e := parse(t, name)
			if e.Name != strings.TrimSuffix(name, ".yaml") {
				t.Errorf("the experiment is called %q", e.Name)
			}
			p, err := plan.New(e, 0)
			if err != nil {
				t.Fatal(err)
			}
			again, err := plan.New(e, 0)
			if err != nil || again.Hash != p.Hash {
				t.Errorf("planned twice: %s, %s, %v", p.Hash, again.Hash, err)
			}
			if other, err := plan.New(e, e.Seed+1); err != nil || other.Hash == p.Hash {
				t.Errorf("another seed, the same schedule: %v", err)
			}
		})
	}
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
