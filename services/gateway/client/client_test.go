package client

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/transferlab/transferlab/services/gateway/api"
)

func TestReadEvents(t *testing.T) {
	stream := ":\n\nevent: run\ndata: {\"a\":1}\n\n: x\ndata: one\ndata:two\nid: 7\n\nevent: empty\n\nevent: end\ndata: z\n\n"
	var got []string
	err := readEvents(strings.NewReader(stream), func() {}, func(event string, data []byte) error {
		got = append(got, event+"="+string(data))
		return nil
	})
	if want := `run={"a":1}|=one` + "\ntwo|end=z"; strings.Join(got, "|") != want || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v, want %q and an unexpected end", strings.Join(got, "|"), err, want)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte(":\n\nevent: run\ndata: {}\n\n"))
	f.Add([]byte("data\n\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		n := 0
		err := readEvents(strings.NewReader(string(stream)), func() {}, func(_ string, data []byte) error {
			n += len(data)
			return nil
		})
		if err == nil || n > len(stream) {
			t.Errorf("%d bytes of events from %d, %v", n, len(stream), err)
		}
	})
}

func TestProblems(t *testing.T) {
	answers := map[string]func(http.ResponseWriter){
		"problem": func(w http.ResponseWriter) {
			w.WriteHeader(422)
			_, _ = io.WriteString(w, `{"title":"x","status":422,"detail":"bad","faults":[{"line":3,"path":"s3.size","text":"no"}]}`)
		},
		"text": func(w http.ResponseWriter) { http.Error(w, "proxy says no", http.StatusBadGateway) },
		"redirect": func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://elsewhere.invalid/")
			w.WriteHeader(302)
		},
		"not JSON": func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") },
	}
	for name, c := range map[string]struct {
		status int
		text   string
	}{
		"problem": {422, "bad\nline 3: s3.size: no"}, "text": {http.StatusBadGateway, "proxy says no"}, "redirect": {302, "Found"}, "not JSON": {0, "answer of the lab"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answers[name](w) }))
		lab, err := New(server.URL+"/", "token")
		if err != nil {
			t.Fatal(err)
		}
		_, err = lab.Status(t.Context())
		if Status(err) != c.status || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %d %q", name, err, c.status, c.text)
		}
		server.Close()
		if _, err := lab.Status(t.Context()); err == nil || Status(err) != 0 || strings.Contains(err.Error(), "token") {
			t.Errorf("a lab that is gone: %v", err)
		}
	}
	var p *api.Problem
	if errors.As(io.EOF, &p) {
		t.Error("no problem in io.EOF")
	}
}

func TestNew(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1:8080", "ftp://x", "http://", "http://user:secret@host"} {
		if _, err := New(address, "t"); err == nil {
			t.Errorf("address %q is taken", address)
		}
	}
	if _, err := New("http://x", ""); err == nil {
		t.Error("no token is taken")
	}
}
