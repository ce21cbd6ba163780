// Program anacrolix is a peer of bench/swarm: swarms of clients of
// github.com/anacrolix/torrent. It is a module of its own, which keeps the
// library's ninety modules out of the product's.
//
// It answers requests, one JSON object a line, as libtorrent.py's serve does.
// Each request makes new clients: one seeder and so many leechers, each on an
// address of its own in 127.0.0.0/8. A leecher's time is from just before its
// torrent is added until the library says that all of it is verified.
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
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/anacrolix/log"
	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"
	"golang.org/x/time/rate"
)

type request struct {
	Variant  string  `json:"variant"` // default or tuned
	Content  string  `json:"content"` // path of the file
	SHA256   string  `json:"sha256"`
	Size     int64   `json:"size"`
	Tracker  string  `json:"tracker"` // announce URL
	Ready    string  `json:"ready"`   // answers once the seeder has announced
	Leechers int     `json:"leechers"`
	Timeout  float64 `json:"timeout_s"`
}

func (r *request) tuned() bool { return r.Variant == "tuned" }

type leecher struct {
	Elapsed  int64  `json:"elapsed_ns"` // -1: not finished
	Received int64  `json:"received"`
	Checked  bool   `json:"checked"` // the file has the SHA-256
	Error    string `json:"error"`
}

type answer struct {
	Leechers []leecher `json:"leechers"`
	CPU      int64     `json:"cpu_ns"`
	Piece    int64     `json:"piece"`
	Error    string    `json:"error"`
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var r request
		var a answer
		before := processorTime()
		err := json.Unmarshal(in.Bytes(), &r)
		if err == nil {
			err = serve(&r, &a)
		}
		if err != nil {
			a.Error = err.Error()
		}
		a.CPU = processorTime() - before
		if err := out.Encode(&a); err != nil {
			fmt.Fprintln(os.Stderr, "anacrolix:", err)
			os.Exit(1)
		}
	}
}

func processorTime() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// pieceLength of the tuned variant is 256 KiB from 1 MB up, which won; the
// default is the library's own choice.
func (r *request) pieceLength() int64 {
	switch {
	case !r.tuned():
		return metainfo.ChoosePieceLength(r.Size)
	case r.Size < 1_000_000:
		return 64 << 10
	}
	return 256 << 10
}

func (r *request) client(address string, seed bool, dir string, memory *memoryStorage) (*torrent.Client, error) {
	c := torrent.NewDefaultClientConfig()
	c.DataDir = dir
	c.NoDHT = true
	c.NoDefaultPortForwarding = true
	c.DisableIPv6 = true
	c.DisableWebtorrent = true
	c.ListenPort = 0
	c.ListenHost = func(string) string { return address }
	// The tracker knows peers by the address that announces come from.
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c.TrackerDialContext = dialer.DialContext
	c.Seed = seed
	c.Logger = log.NewLogger()
	c.Logger.SetHandlers(log.DiscardHandler)
	c.Slogger = slog.New(slog.DiscardHandler)
	if r.tuned() {
		c.Seed = true
		c.DisableUTP = true
		c.DisablePEX = true
		c.DisableAcceptRateLimiting = true
		c.DropMutuallyCompletePeers = true
		c.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{RequirePreferred: true}
		c.MaxAllocPeerRequestDataPerConn = 64 << 20
		c.DialRateLimiter = rate.NewLimiter(rate.Inf, 0)
		c.DefaultStorage = memory
	}
	cl, err := torrent.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("start a client on %s: %w", address, err)
	}
	return cl, nil
}

func serve(r *request, a *answer) (err error) {
	content, err := os.ReadFile(r.Content)
	if err != nil {
		return fmt.Errorf("read the content: %w", err)
	}
	a.Piece = r.pieceLength()
	info := metainfo.Info{Name: filepath.Base(r.Content), Length: int64(len(content)), PieceLength: a.Piece}
	if err := info.GeneratePieces(func(metainfo.FileInfo) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}); err != nil {
		return fmt.Errorf("hash the content: %w", err)
	}
	raw, err := bencode.Marshal(info)
	if err != nil {
		return fmt.Errorf("encode the torrent: %w", err)
	}
	mi := metainfo.MetaInfo{InfoBytes: raw, Announce: r.Tracker}
	// Beside the content, which is in memory: whoever asks cleans up if this is killed.
	scratch, err := os.MkdirTemp(filepath.Dir(r.Content), "")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()

	seeder, err := r.client("127.0.0.2", true, filepath.Dir(r.Content), newMemory(content, true))
	if err != nil {
		return err
	}
	defer seeder.Close()
	seeding, err := seeder.AddTorrent(&mi)
	if err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	limit := time.Duration(r.Timeout * float64(time.Second))
	select {
	case <-seeding.Complete().On():
	case <-time.After(limit):
		return errors.New("the seeder does not find its content")
	}
	if err := ready(r.Ready, mi.HashInfoBytes()); err != nil {
		return err
	}

	memories := make([]*memoryStorage, r.Leechers)
	clients := make([]*torrent.Client, r.Leechers)
	for i := range clients {
		if !r.tuned() {
			if err := os.Mkdir(filepath.Join(scratch, fmt.Sprint(i)), 0o700); err != nil {
				return fmt.Errorf("make a directory: %w", err)
			}
		}
		memories[i] = newMemory(make([]byte, len(content)), false)
		address := fmt.Sprintf("127.0.%d.%d", 1+i/250, 1+i%250)
		if clients[i], err = r.client(address, false, filepath.Join(scratch, fmt.Sprint(i)), memories[i]); err != nil {
			return err
		}
		defer clients[i].Close()
	}
	a.Leechers = make([]leecher, r.Leechers)
	var working sync.WaitGroup
	for i := range clients {
		working.Go(func() {
			a.Leechers[i].Elapsed = -1
			begin := time.Now()
			t, err := clients[i].AddTorrent(&mi)
			if err != nil {
				a.Leechers[i].Error = err.Error()
				return
			}
			t.DownloadAll()
			select {
			case <-t.Complete().On():
				a.Leechers[i].Elapsed = time.Since(begin).Nanoseconds()
			case <-time.After(limit):
				a.Leechers[i].Error = "not finished in time"
			}
		})
	}
	working.Wait()
	for i, cl := range clients {
		l := &a.Leechers[i]
		stats := cl.ConnStats()
		l.Received = stats.BytesRead.Int64()
		if l.Elapsed < 0 {
			continue
		}
		have := memories[i].content
		if !r.tuned() {
			if have, err = os.ReadFile(filepath.Join(scratch, fmt.Sprint(i), info.Name)); err != nil {
				return fmt.Errorf("read what was fetched: %w", err)
			}
		}
		sum := sha256.Sum256(have)
		l.Checked = hex.EncodeToString(sum[:]) == r.SHA256
	}
	return nil
}

func ready(at string, hash metainfo.Hash) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"?info_hash="+url.QueryEscape(string(hash[:])), nil)
	if err != nil {
		return fmt.Errorf("wait for the seeder: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("wait for the seeder: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("wait for the seeder: %s", resp.Status)
	}
	return nil
}

// memoryStorage holds one torrent's only file.
type memoryStorage struct {
	content []byte

	mu       sync.Mutex
	complete map[int]bool
	all      bool
}

func newMemory(content []byte, complete bool) *memoryStorage {
	return &memoryStorage{content: content, complete: map[int]bool{}, all: complete}
}

func (m *memoryStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl { return &memoryPiece{m, p.Index(), p.Offset(), p.Length()} },
		Close: func() error { return nil },
	}, nil
}

type memoryPiece struct {
	m              *memoryStorage
	index          int
	offset, length int64
}

func (p *memoryPiece) ReadAt(b []byte, at int64) (int, error) {
	if at >= p.length {
		return 0, io.EOF
	}
	n := copy(b, p.m.content[p.offset+at:p.offset+p.length])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (p *memoryPiece) WriteAt(b []byte, at int64) (int, error) {
	n := copy(p.m.content[p.offset+at:p.offset+p.length], b)
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func (p *memoryPiece) MarkComplete() error    { return p.mark(true) }
func (p *memoryPiece) MarkNotComplete() error { return p.mark(false) }

func (p *memoryPiece) mark(complete bool) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	p.m.complete[p.index] = complete
	return nil
}

func (p *memoryPiece) Completion() storage.Completion {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return storage.Completion{Complete: p.m.all || p.m.complete[p.index], Ok: true}
}
