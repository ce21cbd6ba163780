package examples_test

import (
	"testing"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/s3loader/examples"
)

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
