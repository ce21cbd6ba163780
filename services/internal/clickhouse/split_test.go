package clickhouse

import (
	"slices"
	"strings"
	"testing"
)

func TestSplitStatements(t *testing.T) {
	t.Parallel()
	for script, want := range map[string][]string{
		"":                               nil,
		" ;; \n;":                        nil,
		"-- only a comment":              nil,
		"/* ; */ -- ;\n# ;\n#!;":         nil,
		"SELECT 1":                       {"SELECT 1"},
		"SELECT 1;\nSELECT 2;":           {"SELECT 1", "SELECT 2"},
		"SELECT ';', \"a;b\", `c;d`; X":  {"SELECT ';', \"a;b\", `c;d`", "X"},
		`SELECT 'it\';s', 'a'';b'; X`:    {`SELECT 'it\';s', 'a'';b'`, "X"},
		"SELECT $$;$$, $tag$ ;$$ $tag$;": {"SELECT $$;$$, $tag$ ;$$ $tag$"},
		"SELECT a$b$; SELECT c$b$":       {"SELECT a$b$", "SELECT c$b$"},
		"SELECT 1 -- ';\n, 2; X":         {"SELECT 1 -- ';\n, 2", "X"},
		"SELECT 1 /* '; */; X":           {"SELECT 1 /* '; */", "X"},
		"-- first\nSELECT 1;":            {"-- first\nSELECT 1"},
		"SELECT 'é;', '日本;'; X":          {"SELECT 'é;', '日本;'", "X"},
		"SELECT 1 - -1; SELECT 4 / 2":    {"SELECT 1 - -1", "SELECT 4 / 2"},
	} {
		got, err := splitStatements(script)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", script, got, err)
		}
	}
	for script, want := range map[string]string{
		"SELECT 1;\nSELECT 'a": "line 2",
		"\n\n/* x":             "line 3",
		"SELECT $x$ a":         "line 1",
		`SELECT 'a\'`:          "line 1",
		"SELECT `":             "line 1",
	} {
		if _, err := splitStatements(script); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", script, err)
		}
	}
}

func FuzzSplitStatements(f *testing.F) {
	f.Add("SELECT ';'; -- ;\nSELECT $$;$$; /* ; */ SELECT `a;`")
	f.Fuzz(func(t *testing.T, script string) {
		statements, err := splitStatements(script)
		if err != nil {
			return
		}
		rest := script
		for _, s := range statements {
			_, after, found := strings.Cut(rest, s)
			if s == "" || !found {
				t.Fatalf("%q: statement %q is not in it", script, s)
			}
			rest = after
		}
		again, err := splitStatements(strings.Join(statements, "\n;\n"))
		if err != nil || !slices.Equal(statements, again) {
			t.Errorf("%q: %q, then %q (%v)", script, statements, again, err)
		}
	})
}
