package lab

import (
	"os"
	"os/signal"
	"path/filepath"
	"testing"
	"time"
)

func TestParseEnv(t *testing.T) {
	env := parseEnv("export NATS_URL='nats://127.0.0.1:4222'\nexport CLICKHOUSE_PASSWORD='a'\\''b=c'\n\n# comment\n")
	if env["NATS_URL"] != "nats://127.0.0.1:4222" || env["CLICKHOUSE_PASSWORD"] != "a'b=c" {
		t.Errorf("%q", env)
	}
}

func TestProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := StartProcess(log, []string{"SAID=hello"}, "sh", "-c", `echo "$SAID"`)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Ended()
	if err := p.Stop(); err != nil {
		t.Errorf("stop what has ended: %v", err)
	}
	if text, err := os.ReadFile(log); err != nil || string(text) != "hello\n" {
		t.Errorf("%q, %v", text, err)
	}
	// As in the benchmarks: a test run in the background may have begun with
	// interrupts ignored, which programs it starts would inherit.
	_, quit := signal.NotifyContext(t.Context(), os.Interrupt)
	defer quit()
	for _, end := range []func(*Process){func(p *Process) { _ = p.Stop() }, (*Process).Kill} {
		if p, err = StartProcess(log, nil, "sleep", "600"); err != nil {
			t.Fatal(err)
		}
		end(p)
		select {
		case <-p.Ended():
		default:
			t.Error("it runs on")
		}
	}
	if _, err := StartProcess(log, nil, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error")
	}
}

func TestStat(t *testing.T) {
	s, err := parseStat([]byte("3721 (a) b (c)) S 12 3721 3721 0 -1 4194560 105 0 0 0 150 50 0 0 20 0 1 0"))
	if err != nil || s.parent != 12 || s.cpu != 2*time.Second {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "1 (a", "1 (a) S 1", "1 (a) S x 1 1 0 -1 0 0 0 0 0 1 1 0", ")("} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("1 (a) S 12 3721 3721 0 -1 4194560 105 0 0 0 150 50 0 0"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := parseStat(text); err == nil && (s.parent < 0 || s.cpu < 0) {
			t.Errorf("%+v", s)
		}
	})
}

func TestRows(t *testing.T) {
	rows := parseRows("1\tok\n2\t\n")
	if len(rows) != 2 || len(rows[0]) != 2 || rows[0][1] != "ok" || rows[1][1] != "" {
		t.Errorf("%q", rows)
	}
	if rows := parseRows(""); rows != nil {
		t.Errorf("%q", rows)
	}
}

func TestMemory(t *testing.T) {
	m, err := MemoryOf(os.Getpid())
	if err != nil || m.Peak < m.Anon || m.Anon <= 0 {
		t.Errorf("%+v, %v", m, err)
	}
}
