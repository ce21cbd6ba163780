package main

import (
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

func TestBound(t *testing.T) {
	const f = 10_000_000 // bytes
	for _, c := range []struct {
		c    cell
		want time.Duration
	}{
		{cell{size: f, leechers: 50, seedUpload: 20 * mbit, upload: 20 * mbit}, 4 * time.Second},
		// Everything is sent 50 times by 100 + 50 × 20 Mbit/s.
		{cell{size: f, leechers: 50, seedUpload: 100 * mbit, upload: 20 * mbit, download: 100 * mbit}, 3636363636},
		{cell{size: f, leechers: 50, seedUpload: 20 * mbit, upload: 10 * mbit, download: 50 * mbit}, 7692307692},
		{cell{size: f, leechers: 2, download: 10 * mbit}, 8 * time.Second},
		{cell{size: f, leechers: 2}, 0},
	} {
		if got := c.c.bound(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.c, got, c.want)
		}
	}
}

const answered = `{"leechers": [{"elapsed_ns": 3000000, "received": 10100, "checked": true, "error": ""},
 {"elapsed_ns": 1000000, "received": 10300, "checked": true, "error": ""}, {"elapsed_ns": -1, "received": 0, "checked": false, "error": "late"}],
 "cpu_ns": 250000000, "piece": 16384, "error": ""}`

func TestMeasured(t *testing.T) {
	var m measured
	if err := json.Unmarshal([]byte(answered), &m); err != nil {
		t.Fatal(err)
	}
	m.size = 10_000
	c := cell{size: 10_000, leechers: 3}
	if err := m.fault(c); err != nil {
		t.Errorf("a leecher that did not finish is a figure: %v", err)
	}
	if got := m.times(); len(got) != 2 || got[0] != 1e6 || got[1] != 3e6 || m.unfinished() != 1 {
		t.Errorf("%v, %d unfinished", got, m.unfinished())
	}
	if !math.IsNaN(m.last()) {
		t.Errorf("not all have the file, but the last came after %g", m.last())
	}
	if got := m.ratio(); math.Abs(got-0.68) > 1e-9 {
		t.Errorf("ratio %g", got)
	}
	m.Leechers = m.Leechers[:2]
	if m.last() != 3e6 || m.cpu() != 0.25 || m.fault(cell{leechers: 2}) != nil {
		t.Errorf("last %g, CPU %g, %v", m.last(), m.cpu(), m.fault(c))
	}
	m.Leechers[0].Checked = false
	for _, bad := range []measured{m, {Error: "no"}, {Leechers: m.Leechers[:1]}} {
		if bad.fault(cell{leechers: 2}) == nil {
			t.Errorf("no fault in %+v", bad)
		}
	}
	none := measured{}
	if !math.IsNaN(none.last()) {
		t.Error("a last of nobody")
	}
}

func TestQuantile(t *testing.T) {
	sorted := []float64{1, 2, 3, 4}
	for p, want := range map[float64]float64{0: 1, 0.5: 2, 0.51: 3, 0.99: 4, 1: 4} {
		if got := quantile(sorted, p); got != want {
			t.Errorf("%g: %g, want %g", p, got, want)
		}
	}
	if !math.IsNaN(quantile(nil, 0.5)) {
		t.Error("a quantile of nothing")
	}
}

func TestCrossing(t *testing.T) {
	n := []int{1, 2, 4}
	for _, c := range []struct {
		first, second []float64
		want          int
	}{
		{[]float64{2, 2, 2}, []float64{1, 3, 4}, 2},
		{[]float64{1, 5, 2}, []float64{2, 3, 4}, 4}, // faster once does not count
		{[]float64{1, 1, 9}, []float64{2, 2, 2}, 0},
		{[]float64{1, 1, 1}, []float64{2, 2, 2}, 1},
		{[]float64{1, 1, math.NaN()}, []float64{2, 2, 2}, 0},
	} {
		if got := crossing(n, c.first, c.second); got != c.want {
			t.Errorf("%v against %v: %d, want %d", c.first, c.second, got, c.want)
		}
	}
}

func TestTransfers(t *testing.T) {
	m, err := transfers([][]string{
		{"0", "ok", "3000000", "10100", "ok", "16384", ""},
		{"1", "stalled", "9000000", "100", "", "16384", "nobody sends"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Leechers) != 2 || m.Leechers[0] != (leecher{Elapsed: 3e6, Received: 10100, Checked: true}) || m.Piece != 16384 {
		t.Errorf("%+v", m)
	}
	if l := m.Leechers[1]; l.Elapsed != -1 || l.Checked || l.Error != "stalled: nobody sends" {
		t.Errorf("%+v", l)
	}
	for _, bad := range [][]string{{"0"}, {"0", "ok", "x", "1", "ok", "1", ""}, {"0", "ok", "-1", "1", "ok", "1", ""}} {
		if _, err := transfers([][]string{bad}); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

// Experiments of every scenario are ones that the lab takes.
func TestExperiments(t *testing.T) {
	texts := []string{
		swarmExperiment(cell{size: 10_000, leechers: 3}, 0), swarmExperiment(cell{size: 10_000_000, leechers: 200}, 2),
		s3Experiment(10_000_000, 32, 100*mbit, 0), s3Experiment(10_000_000, 1, 0, 6),
	}
	for _, s := range shapes() {
		texts = append(texts, swarmExperiment(cell{size: 10_000_000, leechers: 50, seedUpload: s.seedUpload, upload: s.upload, download: s.download}, 1))
	}
	for _, text := range texts {
		if _, err := schemas.ParseExperiment([]byte(text)); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
	e, err := schemas.ParseExperiment([]byte(texts[len(texts)-1]))
	if err != nil {
		t.Fatal(err)
	}
	if w := e.Swarm; e.Seed != 2 || e.Groups[0].Clients != 50 || w.SeedUpload != 20*mbit || w.Upload != 10*mbit || w.Download != 50*mbit {
		t.Errorf("%+v %+v", e, w)
	}
}

func TestTracker(t *testing.T) {
	tr, err := startTracker()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.close() }()
	ready := make(chan int, 1)
	hash := strings.Repeat("h", 20)
	get := func(path string, values url.Values) (int, string) {
		resp, err := http.Get(tr.url(path) + "?" + values.Encode())
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer resp.Body.Close()
		var b strings.Builder
		if err := resp.Write(&b); err != nil {
			t.Error(err)
		}
		_, body, _ := strings.Cut(b.String(), "\r\n\r\n")
		return resp.StatusCode, body
	}
	go func() {
		status, _ := get("/ready", url.Values{"info_hash": {hash}})
		ready <- status
	}()
	announce := func(hash, port, event string) string {
		_, body := get("/announce", url.Values{"info_hash": {hash}, "port": {port}, "event": {event}})
		return body
	}
	if got := announce(hash, "258", "started"); got != "d8:intervali1800e5:peers0:e" {
		t.Errorf("%q", got)
	}
	if status := <-ready; status != http.StatusNoContent {
		t.Errorf("ready: %d", status)
	}
	if got := announce(hash, "259", "started"); got != "d8:intervali1800e5:peers6:\x7f\x00\x00\x01\x01\x02e" {
		t.Errorf("%q", got)
	}
	if got := announce(strings.Repeat("x", 20), "259", "stopped"); !strings.Contains(got, "peers0:") {
		t.Errorf("another torrent's: %q", got)
	}
	for _, bad := range []string{announce("short", "1", ""), announce(hash, "70000", "")} {
		if bad != "d14:failure reason11:bad requeste" {
			t.Errorf("%q", bad)
		}
	}
}

func TestCopy(t *testing.T) {
	m, err := copyTCP(t.Context(), cell{size: 600_000, leechers: 1}, 1)
	if err != nil || m.unfinished() != 0 || m.ratio() != 1 || m.last() <= 0 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestContent(t *testing.T) {
	a, b := content(1000, 1), content(1000, 2)
	if string(a) == string(b) || string(a) != string(content(1000, 1)) {
		t.Error("content is to be that of its round")
	}
}

// A peer that answers nonsense, and one that ends, are errors.
func TestPeer(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ script, want string }{
		{"read line; echo '" + strings.ReplaceAll(answered, "\n", "") + "'; cat >/dev/null", ""},
		{"read line; echo nonsense; cat >/dev/null", "answer of"},
		{"read line; echo broken >&2; exit 0", "broken"},
	} {
		path := filepath.Join(dir, "peer.sh")
		if err := os.WriteFile(path, []byte(c.script), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := startPeer("peer", "sh", path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := p.ask(t.Context(), &task{Leechers: 3})
		// What it complained about is complete once it has ended.
		closed := p.close()
		said := p.said.String()
		switch {
		case closed != nil:
			t.Errorf("%q: %v", c.script, closed)
		case c.want == "" && (err != nil || len(m.Leechers) != 3):
			t.Errorf("%q: %+v, %v", c.script, m, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error()+said, c.want)):
			t.Errorf("%q: %v, said %q", c.script, err, said)
		}
	}
}

func TestTail(t *testing.T) {
	var said tail
	for range 3000 {
		_, _ = said.Write([]byte("ab"))
	}
	_, _ = said.Write([]byte("end"))
	if text := said.String(); len(text) != 4096 || !strings.HasSuffix(text, "abend") {
		t.Errorf("%d bytes", len(text))
	}
}

func TestModuleVersion(t *testing.T) {
	out := []byte("x: go1.26\n\tpath\ta\n\tdep\tgithub.com/anacrolix/torrent\tv1.61.0\th1:x=\n")
	if got := moduleVersion(out, "github.com/anacrolix/torrent"); got != "github.com/anacrolix/torrent v1.61.0" {
		t.Errorf("%q", got)
	}
	if got := moduleVersion(nil, "x"); got != "unknown" {
		t.Errorf("%q", got)
	}
}

func TestOptions(t *testing.T) {
	good := options{scenarios: "transfer,bound", sizes: "10kB,100MB", isolation: "shared", rounds: 7, largeRounds: 3, leechers: 200}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	if err := good.shorten(); err != nil || good.sizes != "10kB" || good.rounds != 1 || good.leechers != 50 {
		t.Errorf("%+v, %v", good, err)
	}
	bad := options{scenarios: "transfer,nonsense", contestants: "ours,him", sizes: "1x", isolation: "none"}
	err := bad.validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"nonsense", "him", "1x", "--libtorrent-isolation", "--rounds", "--large-rounds", "--leechers"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

func TestScenarioNames(t *testing.T) {
	var names []string
	for _, s := range (&bench{}).scenarios() {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, scenarioNames()) {
		t.Errorf("scenarios %q, in flags %q", names, scenarioNames())
	}
}

func FuzzTracker(f *testing.F) {
	f.Add("info_hash=hhhhhhhhhhhhhhhhhhhh&port=1")
	f.Fuzz(func(t *testing.T, query string) {
		tr := &tracker{swarms: map[string]*swarm{}}
		w := &recorder{header: http.Header{}}
		tr.announce(w, &http.Request{URL: &url.URL{RawQuery: query}, RemoteAddr: "127.0.0.1:9"})
		if len(w.body) == 0 || w.body[0] != 'd' {
			t.Errorf("%q", w.body)
		}
	})
}

type recorder struct {
	header http.Header
	body   []byte
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(int)     {}
func (r *recorder) Write(b []byte) (int, error) {
	r.body = append(r.body, b...)
	return len(b), nil
}
