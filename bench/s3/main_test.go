package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
)

func TestReport(t *testing.T) {
	todo := cells()[:1]
	clients := []client{{name: loaderName}, {name: withoutCapture}, {name: ceiling}, {name: "warp"}}
	results := map[key][]measured{}
	for i, c := range clients {
		for round := range 3 {
			m := measured{Bytes: 2e9, Requests: 2000, Elapsed: time.Duration(i+1+round) * time.Second, CPU: time.Duration(i+1) * time.Second}
			if c.name == "warp" {
				m.CPU = -1
			}
			results[key{todo[0].String(), c.name}] = append(results[key{todo[0].String(), c.name}], m)
		}
	}
	conditions := []figures.Condition{{Name: "cores", Value: "2"}}
	var out bytes.Buffer
	if err := report(&out, conditions, todo, clients, results); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"cores: 2", "2000 x 1MiB, concurrency 8: medians of 3 rounds",
		"ours  1000         2.00        1000     0.500         0.33",
		"net/http   500         1.00         500     1.500         1.00",
		"warp   400         0.80         400         -            -",
		"capture, 3 pairs: throughput +58.7 % (95 %: +25.4 to +101.0), processor time -50.0 % (95 %: -50.0 to -50.0)",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	path := filepath.Join(t.TempDir(), "raw")
	if err := writeRaw(path, conditions, todo, clients, results); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "cores: 2\n\nBenchmarkGet/size=1MiB/c=8/client=ours 1 1000000000 ns/op 2000.0 MB/s 2000.0 req/s 0.5000 CPU-s/GB\n"; !strings.HasPrefix(string(raw), want) {
		t.Errorf("%s", raw)
	}
}

func TestSelected(t *testing.T) {
	got := selected(cells(), "1GiB/64,nonsense", cell.String)
	if len(got) != 1 || got[0].size != 1<<30 || got[0].concurrency != 64 {
		t.Errorf("%v", got)
	}
	if len(selected(cells(), "", cell.String)) != 6 {
		t.Error("an empty list is not all")
	}
}

func TestWarpRate(t *testing.T) {
	rate, err := warpRate([]byte("Report: GET. Concurrency: 8. Ran: 3s\n * Average: 1.50 GiB/s, 1536.00 obj/s\n"))
	if err != nil || rate != 1536 {
		t.Errorf("%g, %v", rate, err)
	}
	if _, err := warpRate([]byte("warp: <ERROR> Access Denied.")); err == nil {
		t.Error("no error")
	}
}

func TestProcessorTime(t *testing.T) {
	if _, err := os.Stat("/proc/self/schedstat"); err != nil {
		if _, err := processorTime(os.Getpid()); err == nil {
			t.Error("no error where the kernel does not tell")
		}
		return
	}
	begin, err := processorTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Threads' accounts are brought up to date at every tick.
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		if now, err := processorTime(os.Getpid()); err != nil || now > begin {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Error("the account of this process does not grow")
}
