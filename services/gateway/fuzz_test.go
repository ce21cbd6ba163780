package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

// ask sends a request straight to the handler.
func ask(h http.Handler, method, path, query, body string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, "/", strings.NewReader(body))
	req.URL.Path, req.URL.RawQuery = path, query
	req.Header.Set("Authorization", "Bearer "+testToken)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// Whatever comes as the reference of a run is resolved or refused as the
// caller's fault.
func FuzzRunReference(f *testing.F) {
	for _, s := range []string{"latest", "", "0190a000", uuid.NewString(), strings.ToUpper(uuid.NewString()), "../..", "a\x00b", "------------------------------------"} {
		f.Add(s)
	}
	x := newIndex()
	for range 10 {
		x.put(schemas.Run{ID: uuid.Must(uuid.NewV7())})
	}
	f.Fuzz(func(t *testing.T, reference string) {
		id, err := x.find(reference)
		if err == nil {
			if id == uuid.Nil && strings.Trim(reference, "0-") != "" {
				t.Errorf("%q is no run", reference)
			}
			return
		}
		if p := asProblem(err); p.Status < 400 || p.Status > 499 {
			t.Errorf("%q: %v", reference, err)
		}
	})
}

// Query strings of every endpoint that has parameters: an answer or a refusal,
// never a failure of ours.
func FuzzQueries(f *testing.F) {
	r := newRig(f, func(c *Config) { c.Rate, c.Heavy, c.Settle = 1e6, 1024, 0 })
	r.make(making{file: madeFile, requests: 2})
	h := r.gateway.Handler()
	paths := []string{
		"/v1/runs", "/v1/runs/latest/report", "/v1/runs/latest/export", "/v1/compare", "/v1/integrity", "/v1/runs/latest", "/v1/agents", "/v1/schedules",
	}
	for i := range paths {
		for _, q := range []string{
			"", "limit=5&before=x&state=done", "format=csv", "format=json&kind=request&kind=task&view=events", "a=latest&b=latest&alpha=0.1&min_effect=NaN",
			"producer=%27%20OR%201", "%zz", "a;b", "kind=" + url.QueryEscape("a'])) --"), "view=s3_requests", "limit=-1", "limit=99999999999999999999",
		} {
			f.Add(uint8(i), q)
		}
	}
	f.Fuzz(func(t *testing.T, path uint8, query string) {
		w := ask(h, "GET", paths[int(path)%len(paths)], query, "")
		if w.Code >= 500 {
			t.Errorf("GET %s?%s: %d %s", paths[int(path)%len(paths)], query, w.Code, w.Body)
		}
	})
}

// Experiment files through the handler.
func FuzzValidate(f *testing.F) {
	r := newRig(f, func(c *Config) { c.Rate, c.Heavy = 1e6, 1024 })
	h := r.gateway.Handler()
	for _, s := range []string{smallFile, madeFile, "", "{", "name: x", "name: &a x\nworkload: *a", "\x00", strings.Repeat("[", 10000)} {
		f.Add(s, "seed=3")
	}
	f.Fuzz(func(t *testing.T, file, query string) {
		w := ask(h, "POST", "/v1/validate", query, file)
		switch w.Code {
		case http.StatusOK, http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge:
		default:
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// Queries as text: ClickHouse's verdict, never a failure of ours, and never a
// change.
func FuzzSQL(f *testing.F) {
	r := newRig(f, func(c *Config) { c.Rate, c.Heavy = 1e6, 1024 })
	h := r.gateway.Handler()
	for _, s := range []string{
		"SELECT 1", "SELECT 1 FORMAT JSON", "INSERT INTO events VALUES", "DROP TABLE events", "SET readonly = 0", "SELECT 1; SELECT 2",
		"SELECT * FROM url('http://127.0.0.1')", "SHOW TABLES", "/* x", "SELECT {a:String}", "\x00\xff",
	} {
		f.Add(s, "format=CSV")
	}
	f.Fuzz(func(t *testing.T, query, parameters string) {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			}
		}()
		if w := ask(h, "POST", "/v1/sql", parameters, query); w.Code >= 500 {
			t.Errorf("%q: %d %s", query, w.Code, w.Body)
		}
	})
}
