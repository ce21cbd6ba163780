package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

// A swarm through the whole lab: the peers of one of its trials are processes of
// the program itself.
func TestSwarm(t *testing.T) {
	chtest.Library(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "small.yaml")
	if err := os.WriteFile(file, []byte(`name: small
workload: swarm
groups: [{site: local, clients: 3}]
matrix: {isolation: [shared, process]}
health: {dispatch_lag_p99: 1m}
thresholds:
  - {metric: error_rate, max: 0%}
swarm: {size: 100kB}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := program(t, "--dir", dir, "run", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for query, want := range map[string]string{
		"SELECT countIf(status = 'ok'), count(), uniqExact(attrs['pid']), sum(bytes) FROM events WHERE kind = 'transfer'": "6\t6\t4\t600000",
		"SELECT kind, count() FROM events WHERE workload = 'swarm' AND kind IN ('copy', 'seed') GROUP BY 1 ORDER BY 1":    "copy\t2\nseed\t2",
		"SELECT count() FROM events WHERE kind = 'transfer' AND attrs['sha256'] = 'ok'":                                   "6",
		"SELECT countIf(lost > 0 OR duplicated > 0) FROM integrity":                                                       "0",
	} {
		out, err := program(t, "--dir", dir, "sql", query+" FORMAT TSV").CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s\n%s (%v), want %s", query, got, err, want)
		}
	}
}
