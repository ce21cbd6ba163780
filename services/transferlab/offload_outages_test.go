//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/netlab"
)

// envDay asks for the whole day of TestOutages.
const envDay = "TRANSFERLAB_OFFLOAD_DAY"

// An edge behind a link that loses 5 % of the packets and is cut half of the
// time: every clip gets its one result, and what has piled up during a cut is
// gone before the next. With TRANSFERLAB_OFFLOAD_DAY=1 the edge records 24 hours
// in 24 minutes: a clip a second for each minute, cut for half of each hour.
func TestOutages(t *testing.T) {
	if err := netlab.Available(); err != nil {
		t.Fatalf("this test makes network namespaces: %v", err)
	}
	clips, every, outage := 24, 300*time.Millisecond, 2*time.Second
	if text := os.Getenv(envDay); text != "" {
		if text != "1" {
			t.Fatalf("%s: %q, want 1 or nothing", envDay, text)
		}
		clips, every, outage = 24*60, time.Second, 30*time.Second
	}
	dir := t.TempDir()
	l := startOffloadLab(t, dir)
	begun := time.Now()
	runOffload(t, dir, fmt.Sprintf(`name: outages
workload: offload
seed: 1
sites: {pi: {}}
links:
  lab-pi: {rtt: 40ms, rate: 50mbit, loss: 5%%}
groups:
  - {site: pi}
health: {dispatch_lag_p99: 1m}
thresholds:
  - {metric: error_rate, max: 0%%}
  - {metric: differing, max: 0%%}
trials: {retries: 0, timeout: 2h}
offload:
  policy: source
  clips: %d
  every: %s
  recorded: true
  size: 60kB
  resolution: 360p
  length: 1s
  scenes: [dog, person]
  model: hog
  local_cpu: 20%%
  outage_every: %s
  outage_for: %s
`, clips, every, 2*outage, outage))
	took := time.Since(begun)
	for _, check := range []struct{ what, query, want string }{
		{"clips that are ok, of all", "SELECT countIf(status = 'ok'), count(), uniqExact(clip) FROM offload_clips WHERE final", fmt.Sprintf("%d\t%d\t%d", clips, clips, clips)},
		{"events of clips", "SELECT count() FROM events WHERE kind = 'clip'", fmt.Sprint(clips)},
		{"clips that lack bytes or a result", "SELECT clip, seen_by FROM offload_clips WHERE at_uploaded IS NULL OR at_stored IS NULL OR at_confirmed IS NULL", ""},
		{"the link loses packets", "SELECT sum(lost) > 0 FROM netlab_links", "1"},
		{"gaps and duplicates", "SELECT countIf(lost > 0 OR duplicated > 0) FROM integrity", "0"},
	} {
		if got := askSQL(t, dir, check.query); got != check.want {
			t.Errorf("%s: %q, want %q\n%s", check.what, got, check.want, check.query)
		}
	}
	results := storedClips(t, labStore(t, l))
	withoutWarmUps(t, results, 1)
	if len(results) != clips {
		t.Errorf("%d results are stored, want %d", len(results), clips)
	}
	sameAsEvents(t, askSQL(t, dir, seenByEvents), results)

	// A fifth of a processor is slow enough to be busy at times.
	looked := askSQL(t, dir, "SELECT countIf(seen_by = 'edge'), countIf(seen_by = 'cloud') FROM offload_clips")
	if strings.HasPrefix(looked, "0\t") || strings.HasSuffix(looked, "\t0") {
		t.Errorf("clips that the edge and that the lab saw: %q, want some of both", looked)
	}
	w := waysOf(t, dir)
	if gap := w.longestGap(); gap < outage*8/10 {
		t.Errorf("there were never more than %s without a clip coming in: the link was not cut for %s", gap, outage)
	}
	most, rate := w.drain(outage)
	arriving := float64(time.Second) / float64(every)
	t.Logf("%d clips in, %d results out (by edge and lab: %s) in %s (clips came for %s, the last result %s later); at most %d waited; while any did and the link was there %.1f clips/s came in, %.1f times as fast as they are recorded",
		clips, len(results), strings.ReplaceAll(looked, "\t", ", "), took.Round(time.Second), time.Duration(clips)*every, w.after().Round(10*time.Millisecond), most, rate, rate/arriving)
	if os.Getenv(envDay) != "" && rate <= arriving {
		t.Errorf("what had piled up went at %.2f clips/s, want more than the %.2f that came meanwhile", rate, arriving)
	}
}

// ways are clips' triggers and when they came in, in the order of either.
type ways struct{ triggers, stored []time.Time }

func waysOf(t *testing.T, dir string) ways {
	t.Helper()
	var w ways
	for line := range strings.Lines(askSQL(t, dir, "SELECT toUnixTimestamp64Nano(ts), greatest(at_uploaded, at_stored) FROM offload_clips")) {
		f := strings.Fields(line)
		if len(f) != 2 {
			t.Fatalf("a row %q", line)
		}
		at, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		later, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		w.triggers = append(w.triggers, time.Unix(0, at))
		w.stored = append(w.stored, time.Unix(0, at+later))
	}
	slices.SortFunc(w.triggers, time.Time.Compare)
	slices.SortFunc(w.stored, time.Time.Compare)
	return w
}

// after is how much later than the last trigger the last clip was in.
func (w ways) after() time.Duration {
	return w.stored[len(w.stored)-1].Sub(w.triggers[len(w.triggers)-1])
}

func (w ways) longestGap() (longest time.Duration) {
	for i := 1; i < len(w.stored); i++ {
		longest = max(longest, w.stored[i].Sub(w.stored[i-1]))
	}
	return longest
}

// drain is how many clips waited at most, and how many came in a second while
// more than a few waited and the link was not cut.
func (w ways) drain(outage time.Duration) (most int, rate float64) {
	const few = 3
	arrived, n, took := 0, 0, time.Duration(0)
	for i, at := range w.stored {
		for arrived < len(w.triggers) && !w.triggers[arrived].After(at) {
			arrived++
		}
		waiting := arrived - i
		most = max(most, waiting)
		if i == 0 || waiting <= few {
			continue
		}
		if gap := at.Sub(w.stored[i-1]); gap < outage/2 {
			n++
			took += gap
		}
	}
	return most, float64(n) / max(took, 1).Seconds()
}
