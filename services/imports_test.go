package services

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/transferlab/transferlab/"

// The rules are about files as they stand: `go list` answers from its cache
// and for one set of build tags only.
func TestImportRules(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := filepath.ToSlash(strings.TrimPrefix(path, ".."+string(filepath.Separator)))
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata" || d.Name() == "node_modules" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		files++
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := forbidden(name, imported); why != "" {
				t.Errorf("%s imports %s: %s", name, imported, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Fatalf("saw only %d files: the walk is broken", files)
	}
}

func TestImportRulesCatchViolations(t *testing.T) {
	for _, c := range []struct {
		file, imported string
		bad            bool
	}{
		{"schemas/event.go", module + "bus", true},
		{"schemas/event.go", "github.com/nats-io/nats.go", true},
		{"schemas/block.go", "github.com/ClickHouse/ch-go/proto", false},
		{"schemas/block.go", "github.com/ClickHouse/ch-go", true},
		{"schemas/x_test.go", "testing", false},
		{"bus/connect.go", module + "schemas", false},
		{"bus/connect.go", module + "services/collector", true},
		{"services/prober/x.go", "github.com/nats-io/nats.go/jetstream", true},
		{"services/prober/x.go", module + "services/collector", true},
		{"services/prober/x.go", module + "services/prober/stamp", false},
		{"services/prober/x.go", module + "services/internal/agent", false},
		{"services/detector/x.go", module + "edge/vision", false},
		{"services/detector/x.go", module + "edge/spool", true},
		{"services/edgerunner/x.go", module + "edge/spool", false},
		{"services/prober/x.go", module + "edge/vision", true},
		{"services/internal/agent/x.go", module + "services/prober", true},
		{"services/prober/x.go", "github.com/ClickHouse/clickhouse-go/v2", true},
		{"services/collector/x.go", "github.com/ClickHouse/clickhouse-go/v2", false},
		{"services/transferlab/x.go", module + "services/collector", false},
		{"bench/s3/main.go", module + "services/s3loader", true},
		{"bench/s3/main.go", module + "schemas", false},
		{"edge/main.go", module + "services/internal/agent", true},
	} {
		if got := forbidden(c.file, c.imported) != ""; got != c.bad {
			t.Errorf("%s imports %s: forbidden %v, want %v", c.file, c.imported, got, c.bad)
		}
	}
}

// forbidden says why a file may not import a package, or "".
func forbidden(file, imported string) string {
	top, rest, _ := strings.Cut(file, "/")
	ours, internal := strings.CutPrefix(imported, module)
	within := func(p string, prefixes ...string) bool {
		for _, prefix := range prefixes {
			if p == prefix || strings.HasPrefix(p, prefix+"/") {
				return true
			}
		}
		return false
	}
	if within(imported, "github.com/nats-io/nats.go", "github.com/nats-io/nats-server/v2") && top != "bus" {
		return "NATS is reached through package bus"
	}
	if within(imported, "github.com/ClickHouse/clickhouse-go/v2") && !within(file,
		"services/internal/clickhouse", "services/collector", "services/gateway", "services/transferlab") {
		return "ClickHouse is reached through services/internal/clickhouse"
	}
	if !internal {
		if top != "schemas" {
			return ""
		}
		standard := !strings.Contains(strings.Split(imported, "/")[0], ".")
		if standard || within(imported, "github.com/goccy/go-yaml", "github.com/invopop/jsonschema", "github.com/santhosh-tekuri/jsonschema/v6",
			"github.com/ClickHouse/ch-go/proto", "github.com/google/uuid") {
			return ""
		}
		return "schemas depends on the standard library, YAML, JSON Schema and column encoders only"
	}
	switch top {
	case "schemas":
		if within(ours, "schemas") {
			return ""
		}
		return "schemas depends on nothing of ours"
	case "bus":
		if within(ours, "bus", "schemas") {
			return ""
		}
		return "bus depends on schemas only"
	case "edge", "bench":
		if within(ours, "bus", "schemas", top) {
			return ""
		}
		return top + " depends on schemas and bus only"
	}
	service, _, nested := strings.Cut(rest, "/")
	switch {
	case within(ours, "bus", "schemas", "services/internal"):
		return ""
	case !nested, service == "transferlab":
		if within(ours, "services") {
			return ""
		}
	case within(ours, "services/"+service):
		return ""
	case service == "detector" && within(ours, "edge/vision"), service == "edgerunner" && within(ours, "edge"):
		return ""
	}
	return "services meet on the bus: they import schemas, bus, services/internal and their own"
}
