package collector

import (
	"strings"
	"testing"
)

func TestConfigNamesEveryFault(t *testing.T) {
	cfg := DefaultConfig()
	cfg.ClickHouse = "clickhouse://lab:secret@127.0.0.1:9000/transferlab"
	if err := cfg.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	bad := Config{ClickHouse: "mysql://lab:secret@127.0.0.1", MaxRows: -1, MaxBytes: 1, MaxAge: -1, Lanes: 9, Lease: 1}
	err := bad.Validate()
	if err == nil {
		t.Fatal("no fault found")
	}
	for _, flag := range []string{"--clickhouse: ", "--max-rows: -1, want 1 to", "--max-bytes: 1, want", "--max-age: -1ns, want", "--lanes: 9, want 1 to 4", "--lease: 1ns, want"} {
		if !strings.Contains(err.Error(), flag) {
			t.Errorf("%q is not named in:\n%v", flag, err)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the password is named in:\n%v", err)
	}
	if err := (&Config{}).Validate(); err == nil || !strings.Contains(err.Error(), "--clickhouse: missing") {
		t.Errorf("%v, want --clickhouse to be missing", err)
	}
}
