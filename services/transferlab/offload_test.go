package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// envVision names the variable with the detection program.
const envVision = "TRANSFERLAB_VISION"

// requireVision sees to it that every process of the test finds the detection
// program.
func requireVision(t *testing.T) {
	t.Helper()
	path := os.Getenv(envVision)
	if path == "" {
		path = filepath.Join("..", "..", ".build", "transferlab-vision")
	}
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = exec.LookPath(path)
	}
	if err != nil {
		t.Fatalf("this test looks at clips: run task opencv, which builds transferlab-vision into .build, or set %s: %v", envVision, err)
	}
	t.Setenv(envVision, path)
}

// startOffloadLab starts a lab that has a detector.
func startOffloadLab(t *testing.T, dir string) *up {
	t.Helper()
	chtest.Library(t)
	requireVision(t)
	return startUp(t, dir, "--port-nats", "0")
}

// runOffload runs an experiment in the lab of the directory, which has to hold.
func runOffload(t *testing.T, dir, experiment string) {
	t.Helper()
	file := filepath.Join(dir, "experiment.yaml")
	if err := os.WriteFile(file, []byte(experiment), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := program(t, "--dir", dir, "run", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// askSQL returns the rows of a query, one line each, fields separated by tabs.
func askSQL(t *testing.T, dir, query string) string {
	t.Helper()
	cmd := program(t, "--dir", dir, "sql", query+" FORMAT TSV")
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	return strings.TrimSpace(string(out))
}

// labStore opens the store of a lab that is up.
func labStore(t *testing.T, l *up) *objectstore.Store {
	t.Helper()
	store, err := objectstore.Open(t.Context(), objectstore.Target{Endpoint: l.env["AWS_ENDPOINT_URL"], Region: l.env["AWS_REGION"]},
		objectstore.Static(l.env["AWS_ACCESS_KEY_ID"], l.env["AWS_SECRET_ACCESS_KEY"], ""))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// storedClips returns the results in the store, by clip, after it has checked
// that each is the only one of a clip whose bytes are there, and that no bytes
// are without a result.
func storedClips(t *testing.T, store *objectstore.Store) map[string]schemas.Detections {
	t.Helper()
	list := func(bucket string) (keys []string) {
		objects, more, err := store.List(t.Context(), bucket, objectstore.ListOptions{Max: 100_000})
		if err != nil || more {
			t.Fatalf("list %s: more %v, %v", bucket, more, err)
		}
		for _, o := range objects {
			keys = append(keys, o.Key)
		}
		return keys
	}
	results := map[string]schemas.Detections{}
	for _, key := range list("results") {
		body, _, err := store.Get(t.Context(), "results", key)
		if err != nil {
			t.Fatal(err)
		}
		var d schemas.Detections
		err = json.NewDecoder(body).Decode(&d)
		_ = body.Close()
		if err != nil || key != d.Clip+".json" {
			t.Errorf("result %s is of clip %q: %v", key, d.Clip, err)
		}
		results[d.Clip] = d
	}
	clips := list("clips")
	for _, id := range clips {
		if _, seen := results[id]; !seen {
			t.Errorf("clip %s has no result", id)
		}
	}
	if len(clips) != len(results) {
		t.Errorf("%d clips and %d results are stored", len(clips), len(results))
	}
	return results
}

// Five policies through the whole lab. What the edges and the lab's detector saw
// in the same bytes is the same, and each clip's stages add up.
func TestOffload(t *testing.T) {
	dir := t.TempDir()
	l := startOffloadLab(t, dir)
	runOffload(t, dir, `name: small
workload: offload
groups: [{site: pi}]
matrix: {policy: [source, overflow, adaptive, cloud, local]}
trials: {order: listed, retries: 0, timeout: 3m}
health: {dispatch_lag_p99: 1m}
thresholds:
  - {metric: error_rate, max: 0%}
  - {metric: differing, max: 0%}
offload: {clips: 3, every: 300ms, recorded: true, size: 150kB, resolution: 360p, length: 2s, scenes: [dog, person], model: hog, patience: 2m}
`)
	for _, check := range []struct{ what, query, want string }{
		{
			"clips that are ok, of all", "SELECT countIf(status = 'ok'), count(), uniqExact(clip) FROM offload_clips WHERE final", "15\t15\t15",
		},
		{"events of clips", "SELECT count() FROM events WHERE kind = 'clip'", "15"},
		{"policies", "SELECT arrayStringConcat(arraySort(groupUniqArray(policy)), ' ') FROM offload_clips", "adaptive cloud local overflow source"},
		{"who looked by policy cloud and local", "SELECT policy, groupUniqArray(seen_by) FROM offload_clips WHERE policy IN ('cloud', 'local') GROUP BY 1 ORDER BY 1", "cloud\t['cloud']\nlocal\t['edge']"},
		{"the first clip by source", "SELECT argMin(seen_by, ts) FROM offload_clips WHERE policy = 'source'", "edge"},
		{
			"clips that lack a stage", `SELECT clip, decision, seen_by FROM offload_clips WHERE at_recorded IS NULL OR at_spooled IS NULL OR at_decided IS NULL OR at_uploaded IS NULL
				OR at_taken IS NULL OR at_fetched IS NULL OR at_decoded IS NULL OR at_inferred IS NULL OR at_stored IS NULL OR at_confirmed IS NULL
				OR seen_by = 'cloud' AND (at_queued IS NULL OR at_acknowledged IS NULL)`, "",
		},
		// All clocks are this machine's: what the stages do not add up to is the error of
		// the clocks' measured offset, half a round trip at most, which a busy machine
		// makes milliseconds. A bound of the share alone would be one of its load.
		{
			"clips whose stages do not add up", `SELECT clip, total_ns, sum_ns, clock_bound_ns FROM offload_clips
				WHERE ifNull(abs(toFloat64(total_ns) - sum_ns) > greatest(toFloat64(total_ns) / 100, 2. * clock_bound_ns), true)`, "",
		},
		{
			"bytes in which different things were seen", "SELECT clip_sha256, uniqExact(detections_hash) AS n FROM offload_clips GROUP BY 1 HAVING n > 1", "",
		},
		{
			"bytes that both edge and lab saw", "SELECT count() > 0 FROM (SELECT clip_sha256 FROM offload_clips GROUP BY 1 HAVING uniqExact(seen_by) = 2)", "1",
		},
		{"gaps and duplicates", "SELECT countIf(lost > 0 OR duplicated > 0) FROM integrity", "0"},
	} {
		if got := askSQL(t, dir, check.query); got != check.want {
			t.Errorf("%s: %q, want %q\n%s", check.what, got, check.want, check.query)
		}
	}
	results := storedClips(t, labStore(t, l))
	withoutWarmUps(t, results, 5)
	if len(results) != 15 {
		t.Errorf("%d results are stored, want 15", len(results))
	}
	sameAsEvents(t, askSQL(t, dir, seenByEvents), results)
}

// withoutWarmUps takes out the clips by which edges of experiments warm up: one
// for each edge of each trial.
func withoutWarmUps(t *testing.T, results map[string]schemas.Detections, want int) {
	t.Helper()
	found := 0
	for id := range results {
		if strings.HasSuffix(id, "-warm") {
			delete(results, id)
			found++
		}
	}
	if found != want {
		t.Errorf("%d clips are of edges that warmed up, want %d", found, want)
	}
}

// seenByEvents is what [sameAsEvents] wants to know.
const seenByEvents = "SELECT clip, clip_sha256, detections_hash, seen_by FROM offload_clips WHERE status = 'ok'"

// sameAsEvents holds the stored results against what the events say was seen.
func sameAsEvents(t *testing.T, rows string, results map[string]schemas.Detections) {
	t.Helper()
	for line := range strings.Lines(rows) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if d, there := results[f[0]]; !there || d.SHA256 != f[1] || d.Hash() != f[2] || d.Where != f[3] || d.Status != schemas.StatusOK {
			t.Errorf("clip %s: its event says %v, the store %s of %s by %s, %s", f[0], f[1:], d.Hash(), d.SHA256, d.Where, d.Status)
		}
	}
}
