package clickhouse

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// LibraryEnv names the environment variable that holds the path of a
// libchdb.so to use instead of the fetched one. Its content is not checked
// against the pinned sums: whoever sets it answers for it.
const LibraryEnv = "TRANSFERLAB_CHDB_LIBRARY"

// LibraryVersion is the pinned version of the engine's package.
const LibraryVersion = "26.7.3-stable.1"

const (
	libraryFile = "libchdb.so"
	markerFile  = "verified.json"

	// A mirror or a proxy that sends nothing for this long is not coming back.
	downloadStall   = 30 * time.Second
	downloadRetries = 5
	npmTimeout      = 2 * time.Minute
	packTimeout     = 20 * time.Minute
)

// enginePackage is one pinned package. The sums were computed from the package
// itself; integrity is what the registry states for it.
type enginePackage struct {
	name        string
	tarballSize int64
	tarballSHA  string // sha256, hex
	integrity   string // npm's sha512, base64
	entry       string // path of the library inside the tarball
	librarySize int64
	librarySHA  string // sha256, hex
}

// enginePackages maps GOARCH to the package for Linux with glibc. arm64 has no
// entry: its package is announced upstream but was not published in this
// version, and an unpinned binary is not something to run.
var enginePackages = map[string]enginePackage{
	"amd64": {
		name:        "@chdb/lib-linux-x64-gnu",
		tarballSize: 177817999,
		tarballSHA:  "c0d32b129e988f2b9a9a31c9141aecf5e1e2453f9a079efc4d36ab8e3f92b2ad",
		integrity:   "sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==",
		entry:       "package/libchdb.so",
		librarySize: 566330096,
		librarySHA:  "36ad4e999882821ef13cf2d0f52c93f48e6ee1b4498b35a201c23ce4b8d15bf5",
	},
}

// FetchOptions says where the library comes from. The zero value is right for
// production.
type FetchOptions struct {
	// CacheDir is the folder that holds one sub-folder per library version.
	// Default: os.UserCacheDir()/transferlab/chdb.
	CacheDir string
	// LibraryPath overrides everything: this file is used as it is. Default:
	// the variable named by LibraryEnv.
	LibraryPath string
	// Log receives what is being done; nil discards.
	Log *slog.Logger
	// Progress is called with compressed bytes done and total, at most ten
	// times a second, and once more at the end. May be nil.
	Progress func(done, total int64)

	pkg       *enginePackage
	npm       string
	retryWait time.Duration
}

// EnsureLibrary returns the path of a verified engine library, fetching it
// first if the cache has none. Two processes that need it at once fetch it
// once. An interrupted fetch leaves nothing that a later one would trust.
//
// The tarball's address comes from the user's own npm client, so that mirrors
// and private registries work as configured; without npm the error says what
// to do instead.
func EnsureLibrary(ctx context.Context, opt FetchOptions) (string, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Progress == nil {
		opt.Progress = func(int64, int64) {}
	}
	if opt.retryWait == 0 {
		opt.retryWait = 500 * time.Millisecond
	}
	if opt.LibraryPath == "" {
		opt.LibraryPath = os.Getenv(LibraryEnv)
	}
	if opt.LibraryPath != "" {
		info, err := os.Stat(opt.LibraryPath)
		if err != nil {
			return "", fmt.Errorf("engine library from %s: %w", LibraryEnv, err)
		}
		if !info.Mode().IsRegular() {
			return "", fmt.Errorf("engine library from %s: %s is not a regular file", LibraryEnv, opt.LibraryPath)
		}
		return filepath.Abs(opt.LibraryPath)
	}
	pkg, err := opt.enginePackage()
	if err != nil {
		return "", err
	}
	if opt.CacheDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the user's cache folder: %w", err)
		}
		opt.CacheDir = filepath.Join(cache, "transferlab", "chdb")
	}
	dir := filepath.Join(opt.CacheDir, LibraryVersion)
	path := filepath.Join(dir, libraryFile)
	if cached(dir, pkg) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create the engine cache: %w", err)
	}
	unlock, err := lockFile(ctx, filepath.Join(dir, "lock"), func() {
		opt.Log.Info("another process is fetching the ClickHouse engine, waiting for it", "dir", dir)
	})
	if err != nil {
		return "", fmt.Errorf("lock the engine cache: %w", err)
	}
	defer unlock()
	if cached(dir, pkg) {
		return path, nil
	}
	if err := fetch(ctx, opt, pkg, dir); err != nil {
		return "", fmt.Errorf("fetch the ClickHouse engine (%s %s): %w", pkg.name, LibraryVersion, err)
	}
	return path, nil
}

func (opt FetchOptions) enginePackage() (enginePackage, error) {
	if opt.pkg != nil {
		return *opt.pkg, nil
	}
	pkg, ok := enginePackages[runtime.GOARCH]
	if runtime.GOOS != "linux" || !ok {
		return enginePackage{}, fmt.Errorf("no embedded ClickHouse engine for %s/%s: use an external ClickHouse by its DSN, or set %s to a libchdb.so for this machine",
			runtime.GOOS, runtime.GOARCH, LibraryEnv)
	}
	return pkg, nil
}

// marker is written beside the library after its sum was verified. Hashing
// half a gigabyte at every start would cost more than the start itself, so
// later starts compare size and modification time with it.
type marker struct {
	SHA256       string    `json:"sha256"`
	SizeBytes    int64     `json:"size_bytes"`
	ModifiedTime time.Time `json:"modified_time"`
}

func cached(dir string, pkg enginePackage) bool {
	raw, err := os.ReadFile(filepath.Join(dir, markerFile))
	if err != nil {
		return false
	}
	var m marker
	if json.Unmarshal(raw, &m) != nil {
		return false
	}
	info, err := os.Stat(filepath.Join(dir, libraryFile))
	return err == nil && info.Mode().IsRegular() &&
		m.SHA256 == pkg.librarySHA && m.SizeBytes == pkg.librarySize &&
		info.Size() == pkg.librarySize && info.ModTime().Equal(m.ModifiedTime)
}

// fetch runs under the cache lock.
func fetch(ctx context.Context, opt FetchOptions, pkg enginePackage, dir string) error {
	// Whatever an interrupted fetch left is worthless: the lock says nobody is
	// working on it.
	if stale, err := filepath.Glob(filepath.Join(dir, "fetch-*")); err == nil {
		for _, s := range stale {
			_ = os.RemoveAll(s)
		}
	}
	if err := requireSpace(dir, pkg.librarySize+pkg.tarballSize); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return fmt.Errorf("create a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()

	npm := opt.npm
	if npm == "" {
		npm = "npm"
	}
	if npm, err = exec.LookPath(npm); err != nil {
		return fmt.Errorf("npm is needed to find the package (Debian, Ubuntu: apt-get install npm); or set %s to a libchdb.so you have; or use an external ClickHouse by its DSN: %w", LibraryEnv, err)
	}
	lib := filepath.Join(tmp, libraryFile)
	opt.Log.Info("fetching the ClickHouse engine, once", "package", pkg.name, "version", LibraryVersion,
		"download_bytes", pkg.tarballSize, "unpacked_bytes", pkg.librarySize, "to", dir)

	err = download(ctx, opt, pkg, npm, tmp, lib)
	var bad *sumError
	if err != nil && ctx.Err() == nil && !errors.As(err, &bad) {
		opt.Log.Warn("direct download failed, trying npm pack", "error", err)
		if packErr := pack(ctx, opt, pkg, npm, tmp, lib); packErr != nil {
			err = errors.Join(err, packErr)
		} else {
			err = nil
		}
	}
	if err != nil {
		return err
	}

	final := filepath.Join(dir, libraryFile)
	if err := os.Rename(lib, final); err != nil {
		return fmt.Errorf("move the library into place: %w", err)
	}
	info, err := os.Stat(final)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(marker{SHA256: pkg.librarySHA, SizeBytes: info.Size(), ModifiedTime: info.ModTime()})
	if err != nil {
		return err
	}
	if err := writeFileAtomic(filepath.Join(dir, markerFile), raw, 0o644); err != nil {
		return fmt.Errorf("record the verified library: %w", err)
	}
	opt.Log.Info("the ClickHouse engine is ready", "path", final)
	return nil
}

// download streams the tarball from the address npm gives and unpacks it on
// the way.
func download(ctx context.Context, opt FetchOptions, pkg enginePackage, npm, tmp, lib string) error {
	out, err := runNPM(ctx, npmTimeout, npm, tmp, "view", pkg.name+"@"+LibraryVersion, "dist", "--json")
	if err != nil {
		return err
	}
	var dist struct {
		Tarball   string `json:"tarball"`
		Integrity string `json:"integrity"`
	}
	if err := json.Unmarshal(out, &dist); err != nil {
		return fmt.Errorf("read npm's answer: %w", err)
	}
	if dist.Tarball == "" {
		return errors.New("npm knows no tarball for it")
	}
	if dist.Integrity != "" && dist.Integrity != pkg.integrity {
		return &sumError{what: "integrity stated by the registry", got: dist.Integrity, want: pkg.integrity}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = downloadStall
	defer transport.CloseIdleConnections()
	body := &resumingReader{
		ctx: ctx, client: &http.Client{Transport: transport}, url: dist.Tarball,
		size: pkg.tarballSize, wait: opt.retryWait, log: opt.Log,
	}
	defer body.close()
	return unpack(ctx, opt, pkg, body, lib)
}

// pack is the second way: npm downloads with its own settings (credentials,
// certificates), we only verify and unpack.
func pack(ctx context.Context, opt FetchOptions, pkg enginePackage, npm, tmp, lib string) error {
	out, err := runNPM(ctx, packTimeout, npm, tmp, "pack", pkg.name+"@"+LibraryVersion, "--ignore-scripts", "--silent")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	name := filepath.Base(strings.TrimSpace(lines[len(lines)-1]))
	f, err := os.Open(filepath.Join(tmp, name))
	if err != nil {
		return fmt.Errorf("open what npm pack wrote: %w", err)
	}
	defer func() { _ = f.Close() }()
	return unpack(ctx, opt, pkg, f, lib)
}

func runNPM(ctx context.Context, timeout time.Duration, npm, dir string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NO_UPDATE_NOTIFIER=1", "npm_config_fund=false", "npm_config_audit=false")
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("npm %s: %w: %s", args[0], err, lastLines(stderr.String(), 5))
	}
	return stdout.Bytes(), nil
}

// sumError is a content that is not what was pinned. Trying another way to get
// the same thing would only hide it.
type sumError struct{ what, got, want string }

func (e *sumError) Error() string {
	return fmt.Sprintf("%s is %s, pinned is %s: refusing to use it", e.what, e.got, e.want)
}

// unpack writes the library found in the gzipped tarball r to path, and
// verifies both sums. Nothing but that one entry touches the disk.
func unpack(ctx context.Context, opt FetchOptions, pkg enginePackage, r io.Reader, path string) error {
	sum := sha256.New()
	counted := &progressReader{ctx: ctx, r: io.TeeReader(io.LimitReader(r, pkg.tarballSize+1), sum), total: pkg.tarballSize, report: opt.Progress}
	zr, err := gzip.NewReader(counted)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer func() { _ = zr.Close() }()
	tr := tar.NewReader(zr)
	found := false
	for {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		if header.Name != pkg.entry {
			continue
		}
		if header.Typeflag != tar.TypeReg || header.Size != pkg.librarySize {
			return &sumError{what: "size of " + pkg.entry, got: fmt.Sprint(header.Size), want: fmt.Sprint(pkg.librarySize)}
		}
		if err := writeVerified(path, tr, pkg); err != nil {
			return err
		}
		found = true
	}
	// The padding after the archive's end belongs to the tarball's sum.
	if _, err := io.Copy(io.Discard, zr); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	counted.flush()
	if err := checkSum("sha256 of the tarball", sum, pkg.tarballSHA); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("unpack: the tarball has no %s", pkg.entry)
	}
	return nil
}

func writeVerified(path string, r io.Reader, pkg enginePackage) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("create the library: %w", err)
	}
	sum := sha256.New()
	_, err = io.CopyBuffer(io.MultiWriter(f, sum), r, make([]byte, 1<<20))
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write the library: %w", err)
	}
	return checkSum("sha256 of "+libraryFile, sum, pkg.librarySHA)
}

func checkSum(what string, sum hash.Hash, want string) error {
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return &sumError{what: what, got: got, want: want}
	}
	return nil
}

// progressReader counts what passes, reports it at a bounded rate, and ends
// the stream when the context does.
type progressReader struct {
	ctx    context.Context
	r      io.Reader
	done   int64
	total  int64
	last   time.Time
	report func(done, total int64)
}

func (p *progressReader) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := p.r.Read(b)
	p.done += int64(n)
	if now := time.Now(); now.Sub(p.last) > 100*time.Millisecond {
		p.last = now
		p.report(p.done, p.total)
	}
	return n, err
}

func (p *progressReader) flush() { p.report(p.done, p.total) }

// resumingReader reads one URL from start to end and, when the connection
// breaks or stalls, asks for the rest, a bounded number of times without
// progress. The sums verified downstream make that safe whatever the server
// does with the range.
type resumingReader struct {
	ctx      context.Context
	client   *http.Client
	url      string
	size     int64
	wait     time.Duration // before the first retry; doubles
	log      *slog.Logger
	offset   int64
	failures int
	body     io.ReadCloser
	cancel   context.CancelFunc
	stall    *time.Timer
}

func (r *resumingReader) Read(p []byte) (int, error) {
	for {
		if r.body == nil {
			if r.offset >= r.size {
				return 0, io.EOF
			}
			if err := r.open(); err != nil {
				var permanent *httpStatusError
				if errors.As(err, &permanent) && !permanent.temporary() {
					return 0, err
				}
				if err := r.failed(err); err != nil {
					return 0, err
				}
				continue
			}
		}
		r.stall.Reset(downloadStall)
		n, err := r.body.Read(p)
		r.offset += int64(n)
		if n > 0 {
			r.failures = 0
		}
		if err != nil {
			r.close()
			if r.offset < r.size {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				if err := r.failed(err); err != nil {
					return n, err
				}
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// failed returns an error when it is time to give up, after waiting otherwise.
func (r *resumingReader) failed(err error) error {
	if ctxErr := r.ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	r.failures++
	if r.failures > downloadRetries {
		return fmt.Errorf("download failed at byte %d of %d after %d attempts: %w", r.offset, r.size, r.failures, err)
	}
	wait := r.wait << (r.failures - 1)
	r.log.Warn("download interrupted, resuming", "error", err, "offset", r.offset, "in", wait)
	return sleep(r.ctx, wait)
}

func (r *resumingReader) open() error {
	ctx, cancel := context.WithCancel(r.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		cancel()
		return err
	}
	// Without this the transport could unzip the tarball behind our back.
	req.Header.Set("Accept-Encoding", "identity")
	if r.offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", r.offset))
	}
	resp, err := r.client.Do(req)
	if err != nil {
		cancel()
		return err
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent && r.offset > 0:
	case resp.StatusCode == http.StatusOK:
		if _, err := io.CopyN(io.Discard, resp.Body, r.offset); err != nil {
			_ = resp.Body.Close()
			cancel()
			return err
		}
	default:
		_ = resp.Body.Close()
		cancel()
		return &httpStatusError{status: resp.StatusCode, text: resp.Status}
	}
	r.body, r.cancel = resp.Body, cancel
	r.stall = time.AfterFunc(downloadStall, cancel)
	return nil
}

func (r *resumingReader) close() {
	if r.body != nil {
		r.stall.Stop()
		r.cancel()
		_ = r.body.Close()
		r.body = nil
	}
}

type httpStatusError struct {
	status int
	text   string
}

func (e *httpStatusError) Error() string { return "the server answered " + e.text }

func (e *httpStatusError) temporary() bool {
	return e.status >= 500 || e.status == http.StatusTooManyRequests || e.status == http.StatusRequestTimeout
}

// writeFileAtomic leaves either the old or the new content, also after a crash.
func writeFileAtomic(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
