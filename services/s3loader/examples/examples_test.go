package examples_test

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/s3loader/examples"
)

func TestExamplesAreValid(t *testing.T) {
	files, err := fs.Glob(examples.Files, "*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		t.Run(name, func(t *testing.T) {
			data, err := examples.Files.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			e, err := schemas.ParseExperiment(data)
			if err != nil {
				t.Fatal(err)
			}
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

func TestWavesCoverTheSource(t *testing.T) {
	data, err := examples.Files.ReadFile("waves.yaml")
	if err != nil {
		t.Fatal(err)
	}
	e, err := schemas.ParseExperiment(data)
	if err != nil {
		t.Fatal(err)
	}
	cells, err := e.Cells()
	if err != nil || len(cells) != 3*3*5 {
		t.Fatalf("%d cells, %v", len(cells), err)
	}
}
