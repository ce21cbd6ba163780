package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "trace.csv")
	if err := os.WriteFile(file, []byte("at_s\n0\n1\n2\n3\n30\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-seeds", "2", "-scenario", "process"},
		{"-seeds", "2", "-load", "3", "-length", "2m", "-boot", "5s"},
		{"-seeds", "2", "-trace", file, "-service", "2s"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out); err != nil {
			t.Fatal(args, err)
		}
		for _, want := range []string{"oracle", "bound", "predictive", "keda", "2 seeds"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: no %s in\n%s", args, want, out.String())
			}
		}
	}
	for _, args := range [][]string{{"-seeds", "0"}, {"-scenario", "none"}, {"-trace", file + "x"}, {"-load", "NaN"}} {
		if err := run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
