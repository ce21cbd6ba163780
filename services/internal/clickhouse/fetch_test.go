package clickhouse

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
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

// registry is a package, a web server that has its tarball, and an npm that
// knows both.
type registry struct {
	pkg      enginePackage
	library  []byte
	tarball  []byte
	requests atomic.Int32
	// serve answers a request for the tarball; nil serves it properly.
	serve func(w http.ResponseWriter, r *http.Request, n int)
	npm   string
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{library: make([]byte, 3<<20)}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(r.library)
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for name, content := range map[string][]byte{"package/package.json": []byte("{}"), "package/libchdb.so": r.library} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	r.tarball = b.Bytes()
	sum, integrity, librarySum := sha256.Sum256(r.tarball), sha512.Sum512(r.tarball), sha256.Sum256(r.library)
	r.pkg = enginePackage{
		name: "@test/lib", entry: "package/libchdb.so",
		tarballSize: int64(len(r.tarball)), tarballSHA: hex.EncodeToString(sum[:]),
		integrity:   "sha512-" + base64.StdEncoding.EncodeToString(integrity[:]),
		librarySize: int64(len(r.library)), librarySHA: hex.EncodeToString(librarySum[:]),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		n := int(r.requests.Add(1))
		if r.serve != nil {
			r.serve(w, req, n)
			return
		}
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.tarball))
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	packed := filepath.Join(dir, "packed.tgz")
	if err := os.WriteFile(packed, r.tarball, 0o600); err != nil {
		t.Fatal(err)
	}
	r.npm = filepath.Join(dir, "npm")
	script := fmt.Sprintf(`#!/bin/sh
echo "$2" | grep -q '^@test/lib@%s$' || exit 9
case "$1" in
view) echo '{"tarball": "%s/x.tgz", "integrity": "%s"}' ;;
pack) test -e %s/nopack && { echo "pack is broken" >&2; exit 1; }; cp %s test-lib.tgz && echo test-lib.tgz ;;
*) exit 8 ;;
esac
`, LibraryVersion, server.URL, r.pkg.integrity, dir, packed)
	if err := os.WriteFile(r.npm, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *registry) options(dir string) FetchOptions {
	return FetchOptions{CacheDir: dir, pkg: &r.pkg, npm: r.npm, retryWait: time.Millisecond}
}

func (r *registry) breakPack(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(r.npm), "nopack"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkCache fails if the cache holds anything but what belongs there.
func (r *registry) checkCache(t *testing.T, dir string, complete bool) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, LibraryVersion))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := "libchdb.so lock verified.json"
	if !complete {
		want = "lock"
	}
	if got := strings.Join(names, " "); got != want {
		t.Errorf("the cache has %q, want %q", got, want)
	}
}

func TestEnsureLibraryFetchesOnce(t *testing.T) {
	r := newRegistry(t)
	dir := t.TempDir()
	opt := r.options(dir)
	var done, total int64
	opt.Progress = func(d, all int64) { done, total = d, all }
	for range 2 {
		path, err := EnsureLibrary(t.Context(), opt)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, r.library) {
			t.Fatalf("%s has the wrong content: %v", path, err)
		}
	}
	if n := r.requests.Load(); n != 1 {
		t.Errorf("%d downloads, want 1", n)
	}
	if done != r.pkg.tarballSize || total != r.pkg.tarballSize {
		t.Errorf("progress ended at %d of %d, want %d", done, total, r.pkg.tarballSize)
	}
	r.checkCache(t, dir, true)

	// A damaged library is noticed and replaced.
	path := filepath.Join(dir, LibraryVersion, libraryFile)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureLibrary(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, r.library) {
		t.Error("the damaged library was not replaced")
	}
}

func TestEnsureLibraryAtOnceFetchesOnce(t *testing.T) {
	r := newRegistry(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := EnsureLibrary(t.Context(), r.options(dir)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := r.requests.Load(); n != 1 {
		t.Errorf("%d downloads, want 1", n)
	}
}

func TestEnsureLibraryResumes(t *testing.T) {
	for name, ranges := range map[string]bool{"with ranges": true, "without ranges": false} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			r.breakPack(t)
			r.serve = func(w http.ResponseWriter, req *http.Request, n int) {
				if !ranges {
					req.Header.Del("Range")
				}
				if n < 4 {
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
					_, _ = w.Write(r.tarball[from:min(len(r.tarball), n*700_000)])
					return
				}
				http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.tarball))
			}
			dir := t.TempDir()
			if _, err := EnsureLibrary(t.Context(), r.options(dir)); err != nil {
				t.Fatal(err)
			}
			if n := r.requests.Load(); n != 4 {
				t.Errorf("%d requests, want 4", n)
			}
			r.checkCache(t, dir, true)
		})
	}
}

func TestEnsureLibraryFallsBackToPack(t *testing.T) {
	r := newRegistry(t)
	r.serve = func(w http.ResponseWriter, _ *http.Request, _ int) {
		http.Error(w, "log in first", http.StatusUnauthorized)
	}
	dir := t.TempDir()
	path, err := EnsureLibrary(t.Context(), r.options(dir))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, r.library) {
		t.Error("wrong content")
	}
	r.checkCache(t, dir, true)

	r.breakPack(t)
	_, err = EnsureLibrary(t.Context(), r.options(t.TempDir()))
	if err == nil || !strings.Contains(err.Error(), "401") || !strings.Contains(err.Error(), "pack is broken") {
		t.Errorf("error is %v", err)
	}
}

func TestEnsureLibraryTrustsNothingElse(t *testing.T) {
	for name, change := range map[string]func(*registry){
		"tarball":   func(r *registry) { r.pkg.tarballSHA = strings.Repeat("0", 64) },
		"library":   func(r *registry) { r.pkg.librarySHA = strings.Repeat("0", 64) },
		"integrity": func(r *registry) { r.pkg.integrity = "sha512-other" },
		"size":      func(r *registry) { r.pkg.librarySize++ },
	} {
		r := newRegistry(t)
		change(r)
		dir := t.TempDir()
		_, err := EnsureLibrary(t.Context(), r.options(dir))
		var bad *sumError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), "refusing") {
			t.Errorf("%s: error is %v", name, err)
		}
		r.checkCache(t, dir, false)
	}
	for name, content := range map[string][]byte{"garbage": []byte("not a tarball at all"), "nothing": nil} {
		r := newRegistry(t)
		r.breakPack(t)
		r.serve = func(w http.ResponseWriter, _ *http.Request, _ int) { _, _ = w.Write(content) }
		dir := t.TempDir()
		if _, err := EnsureLibrary(t.Context(), r.options(dir)); err == nil {
			t.Errorf("%s: accepted", name)
		}
		r.checkCache(t, dir, false)
	}
}

func TestEnsureLibraryInterruptedLeavesNothing(t *testing.T) {
	r := newRegistry(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.serve = func(w http.ResponseWriter, req *http.Request, _ int) {
		w.Header().Set("Content-Length", fmt.Sprint(len(r.tarball)))
		_, _ = w.Write(r.tarball[:1<<20])
		w.(http.Flusher).Flush()
		cancel()
		<-req.Context().Done()
	}
	dir := t.TempDir()
	if _, err := EnsureLibrary(ctx, r.options(dir)); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	r.checkCache(t, dir, false)

	// What a killed process leaves goes with the next fetch.
	left := filepath.Join(dir, LibraryVersion, "fetch-123")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	r.serve = nil
	if _, err := EnsureLibrary(t.Context(), r.options(dir)); err != nil {
		t.Fatal(err)
	}
	r.checkCache(t, dir, true)
}

func TestEnsureLibraryWithoutNPMSaysWhatToDo(t *testing.T) {
	r := newRegistry(t)
	opt := r.options(t.TempDir())
	opt.npm = filepath.Join(t.TempDir(), "npm")
	_, err := EnsureLibrary(t.Context(), opt)
	for _, want := range []string{"apt-get install npm", LibraryEnv, "external ClickHouse"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %q: %v", want, err)
		}
	}
}

func TestEnsureLibraryOverride(t *testing.T) {
	path := filepath.Join(t.TempDir(), "libchdb.so")
	t.Setenv(LibraryEnv, path)
	if _, err := EnsureLibrary(t.Context(), FetchOptions{}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := EnsureLibrary(t.Context(), FetchOptions{}); err != nil || got != path {
		t.Errorf("got %s, %v", got, err)
	}
	t.Setenv(LibraryEnv, filepath.Dir(path))
	if _, err := EnsureLibrary(t.Context(), FetchOptions{}); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("folder: %v", err)
	}
}
