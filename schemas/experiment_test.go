package schemas

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

var update = flag.Bool("update", false, "rewrite experiment.schema.json")

const whole = `name: waves
description: every field
workload: s3
seed: 7
groups:
  - name: small
    site: oregon
    labels: {instance_type: t2.micro}
    agents: 1
    clients: 2
  - site: dublin
matrix:
  size: [1MB, 1MiB]
  wait: [0s, 1500ms]
  group: [small, dublin]
trials: {repeat: 2, order: listed, timeout: 1m, retries: 1, pause: 10ms}
thresholds:
  - {metric: corrected_p99, where: {size: 1MB}, max: 500ms}
  - {metric: bytes_per_s, min: 1MB/s}
  - {metric: error_rate, max: "0.01"}
health: {dispatch_lag_p99: 10ms, clock_bound: 5ms, generator_cpu: 0.9}
s3:
  target: {endpoint: "https://store.example:9000", region: us-west-2, profile: lab, path_style: false}
  buckets: [alpha, beta]
  operation: mixed
  put_share: 0.25
  size: 1MB
  objects: 3
  pick: random
  prefix: lab/
  populate: never
  loop: closed
  wait_distribution: exponential
  concurrency: 2
  requests: 10
  duration: 30s
  part_size: 8MiB
  part_parallel: 2
  verify: checksum
  connections: fresh
  timeout: 5s
  retries: 2
`

func TestParseEveryField(t *testing.T) {
	e, err := ParseExperiment([]byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	cells, err := e.Cells()
	if err != nil {
		t.Fatal(err)
	}
	if len(cells) != 8 {
		t.Fatalf("%d cells, want 2 × 2 × 2", len(cells))
	}
	last := cells[7]
	s := last.Section.(*S3)
	if s.Size != 1<<20 || s.Wait != Duration(1500*millisecond) || len(last.Groups) != 1 || last.Groups[0].Name != "dublin" {
		t.Errorf("last cell: size %s, wait %s, groups %v", s.Size, s.Wait, last.Groups)
	}
	if got := last.Values; got[0] != (Attr{"size", "1MiB"}) || got[1] != (Attr{"wait", "1.5s"}) || got[2] != (Attr{"group", "dublin"}) {
		t.Errorf("last cell's values: %v", got)
	}
	if e.S3.Size != 1e6 || *e.S3.Target.PathStyle {
		t.Errorf("section: %+v", e.S3)
	}
	if e.Groups[1].Name != "dublin" || e.Groups[1].Clients != 1 {
		t.Errorf("defaults of the second group: %+v", e.Groups[1])
	}
}

// Each broken file must name its line and the cure.
func TestBrokenFiles(t *testing.T) {
	const good = `name: one
workload: s3
groups:
  - site: oregon
    clients: 2
s3:
  buckets: [alpha]
  size: 1MB
  wait: 2s
  requests: 10
`
	if _, err := ParseExperiment([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown field":         {"  wait: 2s", "  wiat: 2s", `line 9: s3.wiat: unknown field; did you mean "wait"?`},
		"unknown top field":     {"name: one", "nmae: one", `line 1: nmae: unknown field; did you mean "name"?`},
		"missing field":         {"  size: 1MB\n", "", "line 7: s3.size: missing: the field is required"},
		"size without sense":    {"1MB", "1XB", `line 8: s3.size: "1XB", want a whole number of bytes up to 5TiB such as 512B`},
		"span without unit":     {"wait: 2s", "wait: 2", `line 9: s3.wait: "2", want a time span with its unit`},
		"negative span":         {"wait: 2s", "wait: -2s", `line 9: s3.wait: "-2s", want a time span`},
		"word for a number":     {"clients: 2", "clients: two", "line 5: groups[0].clients: two, want a whole number"},
		"zero clients":          {"clients: 2", "clients: -1", "line 5: groups[0].clients: -1, want 1 or more"},
		"bad bucket":            {"[alpha]", "[Alpha_1]", `line 7: s3.buckets[0]: "Alpha_1", want 3 to 63 lower-case letters`},
		"text for a list":       {"[alpha]", "alpha", "line 7: s3.buckets: alpha, want a list"},
		"given twice":           {"  wait: 2s", "  wait: 2s\n  wait: 3s", `line 10: mapping key "wait" already defined at [9:3]`},
		"unknown workload":      {"workload: s3", "workload: ftp", `line 2: workload: "ftp", want one of s3, probe`},
		"trial without end":     {"  requests: 10\n", "", "s3.requests: not given, nor is `duration`: a trial must end"},
		"open loop, no rate":    {"wait: 2s", "loop: open", "s3.rate: 0, want requests a second above 0"},
		"rate in a closed loop": {"wait: 2s", "rate: 5", "line 9: s3.rate: 5, but loop is closed"},
		"bad site":              {"site: oregon", "site: Oregon/1", `line 4: groups[0].site: "Oregon/1", want lower-case letters`},
		"matrix of no field":    {"groups:", "matrix: {sizes: [1MB]}\ngroups:", `line 3: matrix.sizes: not a field that can vary; did you mean "size"?`},
		"matrix value":          {"groups:", "matrix: {size: [1MB, big]}\ngroups:", `line 3: matrix.size[1]: "big", want a whole number of bytes`},
		"matrix cell":           {"groups:", "matrix: {concurrency: [1, 0, -4]}\ngroups:", `concurrency: -4, want 1 to 4096`},
		"no such group":         {"groups:", "matrix: {group: [mars]}\ngroups:", `line 3: matrix.group[0]: no group called "mars", want oregon`},
		"bad threshold":         {"groups:", "thresholds:\n  - metric: p99\n    max: 1s\ngroups:", `line 4: thresholds[0].metric: "p99", want one of corrected_p50`},
		"threshold value":       {"groups:", "thresholds:\n  - metric: service_p99\n    max: 10\ngroups:", `line 5: thresholds[0].max: "10", want a time span`},
		"credentials in a URL":  {"  wait: 2s", "  target: {endpoint: 'http://a:b@host'}", "want http://host:port or https://host, without credentials"},
		"tab":                   {"    clients: 2", "\tclients: 2", "line 5"},
		"alias":                 {"  wait: 2s", "  wait: *w", "line 9: s3.wait: anchors' aliases"},
		"null":                  {"size: 1MB", "size:", "line 8: s3.size: no value"},
		"empty":                 {good, "", "want one experiment"},
		"too deep":              {"1MB", strings.Repeat("[", 65), "line 8: nested more than 64 deep"},
		"too long":              {"name: one", "#" + strings.Repeat("x", MaxExperimentBytes), "at most 131072 are allowed"},
		"two documents":         {"name: one", "---\nname: one\n---\nname: two", "the file has 2 documents, want one experiment"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseExperiment([]byte(strings.Replace(good, c.old, c.new, 1)))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error:\n%v\nwant in it:\n%s", err, c.want)
			}
		})
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := ParseExperiment([]byte("name: one\nworkload: s3\ngroups: [{site: a, cleints: 1}]\ns3: {buckets: [alpha], size: 1XB, requets: 1}\n"))
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("want three faults, a line each, got:\n%v", err)
	}
}

func TestPublishedSchema(t *testing.T) {
	schema, err := ExperimentSchema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("experiment.schema.json", schema, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	published, err := os.ReadFile("experiment.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(schema, published) {
		t.Fatal("experiment.schema.json is not what the types say: go test ./schemas -run TestPublishedSchema -update")
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(published))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("experiment.json", document); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("experiment.json")
	if err != nil {
		t.Fatal(err)
	}
	check := func(file string) error {
		raw, err := yaml.YAMLToJSON([]byte(file))
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		return compiled.Validate(v)
	}
	if err := check(whole); err != nil {
		t.Errorf("the schema refuses a good file: %v", err)
	}
	for _, bad := range []string{
		strings.Replace(whole, "  size: 1MB", "  size: 1XB", 1),
		strings.Replace(whole, "  wait_distribution:", "  distribution:", 1),
		strings.Replace(whole, "workload: s3", "workload: ftp", 1),
		strings.Replace(whole, "requests: 10", "requests: ten", 1),
	} {
		if check(bad) == nil {
			t.Error("the schema accepts a bad file")
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"1MB": 1e6, "1MiB": 1 << 20, "1.5GB": 1.5e9, "10kB": 1e4, "10KB": 1e4, "512": 512, "0": 0, "3 KiB": 3 << 10, "1TB": 1e12,
	} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
		again, err := ParseSize(got.String())
		if err != nil || again != got {
			t.Errorf("%s prints as %s, which reads as %d", text, got, again)
		}
	}
	for _, text := range []string{"", "MB", "-1MB", "1.0000001kB", "6TiB", "1e400", "NaN", "1 M B"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q reads as %d", text, got)
		}
	}
}

func FuzzParseExperiment(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("name: a\nworkload: s3\ngroups: []\n"))
	f.Add([]byte("? {a: 1}\n: - b\n"))
	f.Add([]byte("s3: !!binary x\nmatrix: {group: [[1]]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseExperiment(data)
		if err != nil {
			return
		}
		if _, err := e.Cells(); err != nil {
			t.Errorf("accepted, but its matrix is not: %v", err)
		}
	})
}
