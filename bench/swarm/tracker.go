package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// tracker serves the peers that bring none of their own: HTTP, compact answers
// (BEP 3, BEP 23), everybody at once. It forgets nothing, since every
// measurement has a torrent of its own.
type tracker struct {
	server *http.Server
	addr   string

	mu     sync.Mutex
	swarms map[string]*swarm
}

type swarm struct {
	peers []netip.AddrPort
	begun chan struct{} // closed with the first announce
}

// maxPeers is how many a tracker's answer holds at most.
const maxPeers = 200

func startTracker() (*tracker, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for announces: %w", err)
	}
	t := &tracker{addr: l.Addr().String(), swarms: map[string]*swarm{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /announce", t.announce)
	mux.HandleFunc("GET /ready", t.ready)
	t.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = t.server.Serve(l) }()
	return t, nil
}

func (t *tracker) close() error {
	if err := t.server.Close(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("stop the tracker: %w", err)
	}
	return nil
}

func (t *tracker) url(path string) string { return "http://" + t.addr + path }

// swarm is called with mu held.
func (t *tracker) swarm(hash string) *swarm {
	s := t.swarms[hash]
	if s == nil {
		s = &swarm{begun: make(chan struct{})}
		t.swarms[hash] = s
	}
	return s
}

func (t *tracker) announce(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	port, portErr := strconv.ParseUint(q.Get("port"), 10, 16)
	hash := q.Get("info_hash")
	if err != nil || portErr != nil || len(hash) != 20 || !from.Addr().Unmap().Is4() {
		_, _ = w.Write([]byte("d14:failure reason11:bad requeste"))
		return
	}
	self := netip.AddrPortFrom(from.Addr().Unmap(), uint16(port))
	stopped := q.Get("event") == "stopped"
	var peers bytes.Buffer
	t.mu.Lock()
	s := t.swarm(hash)
	known := false
	for i, p := range s.peers {
		if p == self {
			known = true
			continue
		}
		if i < maxPeers {
			a := p.Addr().As4()
			peers.Write(append(a[:], byte(p.Port()>>8), byte(p.Port())))
		}
	}
	if !known && !stopped {
		s.peers = append(s.peers, self)
		if len(s.peers) == 1 {
			close(s.begun)
		}
	}
	t.mu.Unlock()
	answer := fmt.Sprintf("d8:intervali1800e5:peers%d:%se", peers.Len(), peers.Bytes())
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	_, _ = w.Write([]byte(answer))
}

// ready answers once somebody has announced: the seeder, whom leechers would
// otherwise find only with their second announce.
func (t *tracker) ready(w http.ResponseWriter, r *http.Request) {
	t.mu.Lock()
	begun := t.swarm(r.URL.Query().Get("info_hash")).begun
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	defer cancel()
	select {
	case <-begun:
		w.WriteHeader(http.StatusNoContent)
	case <-ctx.Done():
		http.Error(w, "nobody has announced", http.StatusGatewayTimeout)
	}
}
