package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
)

// Names of contestants in tables and raw figures.
const (
	oursName       = "ours"
	libDefaultName = "libtorrent-default"
	libTunedName   = "libtorrent-tuned"
	anaDefaultName = "anacrolix-default"
	anaTunedName   = "anacrolix-tuned"
	rawName        = "tcp-copy"
)

func contestantNames() []string {
	return []string{oursName, libDefaultName, libTunedName, anaDefaultName, anaTunedName, rawName}
}

// patience is how long a leecher of a peer has.
const patience = 60 * time.Second

// contestant has one seeder and the cell's leechers share a file.
type contestant struct {
	name string
	run  func(ctx context.Context, c cell, round int) (measured, error)
}

// peers are the other libraries' processes and what they need.
type peers struct {
	tracker    *tracker
	scratch    string // in memory
	isolation  string
	libtorrent *peer // nil: not there
	anacrolix  *peer
	versions   []figures.Condition
	serial     int
}

// task is what a peer's process is asked for; rates are bytes a second.
type task struct {
	Variant    string  `json:"variant"`
	Content    string  `json:"content"`
	SHA256     string  `json:"sha256"`
	Size       int64   `json:"size"`
	Tracker    string  `json:"tracker"`
	Ready      string  `json:"ready"`
	Leechers   int     `json:"leechers"`
	SeedUpload int64   `json:"seed_upload"`
	Upload     int64   `json:"upload"`
	Download   int64   `json:"download"`
	Isolation  string  `json:"isolation"`
	Timeout    float64 `json:"timeout_s"`
}

func memoryDir() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

func startPeers(ctx context.Context, o *options, dir string) (_ *peers, err error) {
	p := &peers{isolation: o.isolation}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.scratch, err = os.MkdirTemp(memoryDir(), "transferlab-bench-swarm-"); err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	if p.tracker, err = startTracker(); err != nil {
		return nil, err
	}
	if o.wants(libDefaultName) || o.wants(libTunedName) {
		version := "not found; apt-get install python3-libtorrent"
		if python, v := findPython(ctx, o.script); python != "" {
			version = "libtorrent " + v + ", " + o.isolation + " (" + python + ")"
			if p.libtorrent, err = startPeer("libtorrent", python, o.script, "serve"); err != nil {
				return nil, err
			}
		}
		p.versions = append(p.versions, figures.Condition{Name: "peer-libtorrent", Value: version})
	}
	if o.wants(anaDefaultName) || o.wants(anaTunedName) {
		program := filepath.Join(dir, "anacrolix")
		say("building anacrolix")
		version, err := buildAnacrolix(ctx, program)
		if err != nil {
			return nil, err
		}
		if p.anacrolix, err = startPeer("anacrolix", program); err != nil {
			return nil, err
		}
		p.versions = append(p.versions, figures.Condition{Name: "peer-anacrolix", Value: version})
	}
	return p, nil
}

// findPython looks for an interpreter with libtorrent's module: Debian's serves
// the distribution's only.
func findPython(ctx context.Context, script string) (python, version string) {
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		out, err := exec.CommandContext(ctx, python, script, "version").Output()
		if err == nil {
			return python, strings.TrimSpace(string(out))
		}
	}
	return "", ""
}

const anacrolixDir = "bench/swarm/anacrolix"

func buildAnacrolix(ctx context.Context, program string) (version string, err error) {
	build := exec.CommandContext(ctx, "go", "build", "-C", anacrolixDir, "-trimpath", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build %s (the bench runs in the root of the tree): %w", anacrolixDir, err)
	}
	out, err := exec.CommandContext(ctx, "go", "version", "-m", program).Output()
	if err != nil {
		return "", fmt.Errorf("version of anacrolix: %w", err)
	}
	return moduleVersion(out, "github.com/anacrolix/torrent"), nil
}

// moduleVersion finds a module in the output of `go version -m`.
func moduleVersion(out []byte, module string) string {
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) >= 3 && f[0] == "dep" && f[1] == module {
			return module + " " + f[2]
		}
	}
	return "unknown"
}

func (p *peers) close() error {
	var errs []error
	for _, one := range []*peer{p.libtorrent, p.anacrolix} {
		if one != nil {
			errs = append(errs, one.close())
		}
	}
	if p.tracker != nil {
		errs = append(errs, p.tracker.close())
	}
	if p.scratch != "" {
		errs = append(errs, os.RemoveAll(p.scratch))
	}
	return errors.Join(errs...)
}

// all are the contestants that are there and wanted, of those named.
func (b *bench) present(names ...string) []contestant {
	var out []contestant
	for _, name := range names {
		if !b.wants(name) {
			continue
		}
		switch name {
		case oursName:
			out = append(out, contestant{name, b.lab.transfer})
		case rawName:
			out = append(out, contestant{name, copyTCP})
		default:
			library, variant, _ := strings.Cut(name, "-")
			one := b.peers.libtorrent
			if library == "anacrolix" {
				one = b.peers.anacrolix
			}
			if one == nil {
				fmt.Fprintf(b.W, "without %s: it is not installed\n", name)
				continue
			}
			out = append(out, contestant{name, func(ctx context.Context, c cell, round int) (measured, error) {
				return b.peers.transfer(ctx, one, variant, c, round)
			}})
		}
	}
	return out
}

// content is pseudo-random, fresh for each round, and follows from it.
func content(size int64, round int) []byte {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d %d", size, round))
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(data) // never fails
	return data
}

// transfer has a peer's process measure a cell once.
func (p *peers) transfer(ctx context.Context, one *peer, variant string, c cell, round int) (_ measured, err error) {
	data := content(int64(c.size), round)
	sum := sha256.Sum256(data)
	p.serial++
	// The name makes a torrent of its own: the tracker knows no others' peers then.
	path := filepath.Join(p.scratch, "A_"+c.size.String()+"_"+strconv.Itoa(p.serial))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return measured{}, fmt.Errorf("write the content: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	m, err := one.ask(ctx, &task{
		Variant: variant, Content: path, SHA256: hex.EncodeToString(sum[:]), Size: int64(c.size),
		Tracker: p.tracker.url("/announce"), Ready: p.tracker.url("/ready"), Leechers: c.leechers,
		SeedUpload: int64(c.seedUpload) / 8, Upload: int64(c.upload) / 8, Download: int64(c.download) / 8,
		Isolation: p.isolation, Timeout: patience.Seconds(),
	})
	m.size = int64(c.size)
	if err != nil {
		return measured{}, err
	}
	return m, m.fault(c)
}

// peer is a process that answers tasks, a JSON object a line.
type peer struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	said *tail
}

func startPeer(name, program string, args ...string) (*peer, error) {
	p := &peer{name: name, cmd: exec.Command(program, args...), said: &tail{}}
	p.cmd.Stderr = p.said
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	return p, nil
}

// ask kills the process if it does not answer in time.
func (p *peer) ask(ctx context.Context, t *task) (measured, error) {
	text, err := json.Marshal(t)
	if err != nil {
		return measured{}, fmt.Errorf("encode a task: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 4*patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	defer stop()
	if _, err := p.in.Write(append(text, '\n')); err != nil {
		return measured{}, fmt.Errorf("ask %s: %w\n%s", p.name, errors.Join(err, ctx.Err()), p.said)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return measured{}, fmt.Errorf("answer of %s: %w\n%s", p.name, errors.Join(err, ctx.Err()), p.said)
	}
	var m measured
	if err := json.Unmarshal(line, &m); err != nil {
		return measured{}, fmt.Errorf("answer of %s: %w", p.name, err)
	}
	return m, nil
}

// close ends the process, which ends with its input.
func (p *peer) close() error {
	_ = p.in.Close()
	kill := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("end %s: %w\n%s", p.name, err, p.said)
	}
	return nil
}

// tail keeps the end of what a process complains about.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	t.text = bytes.Clone(t.text[max(0, len(t.text)-4096):])
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
