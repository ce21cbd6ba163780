package services

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/plan"
)

// What holds of every example, whatever its workload. Files are taken from where
// they stand, so that those of a new service are among them.
func TestExamples(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join("*", "examples"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		experiments := 0
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch filepath.Ext(path) {
			case ".yaml":
				experiments++
				t.Run(path, func(t *testing.T) { checkExample(t, path) })
			case ".go":
			default:
				t.Errorf("%s is neither an experiment (.yaml) nor Go", path)
			}
		}
		if experiments == 0 {
			t.Errorf("%s holds no experiments", dir)
		}
	}
}

// checkExample demands that an example is valid and called as its file is, and
// that its plan follows from the seed.
func checkExample(t *testing.T, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	e, err := schemas.ParseExperiment(data)
	if err != nil {
		t.Fatal(err)
	}
	if e.Name != strings.TrimSuffix(filepath.Base(path), ".yaml") {
		t.Errorf("the experiment is called %q", e.Name)
	}
	p, err := plan.New(e, 0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := plan.New(e, 0)
	if err != nil {
		t.Fatal(err)
	}
	if again.Hash != p.Hash {
		t.Errorf("planned twice: %s, %s", p.Hash, again.Hash)
	}
	other, err := plan.New(e, e.Seed+1)
	if err != nil {
		t.Fatal(err)
	}
	if other.Hash == p.Hash {
		t.Errorf("seeds %d and %d have the same plan", p.Seed, other.Seed)
	}
}
