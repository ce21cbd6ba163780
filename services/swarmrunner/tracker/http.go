package tracker

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	maxQuery      = 4 << 10
	maxParameters = 128
	maxScrape     = 74 // torrents: what BEP 15 admits
)

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	s.meter.messagesReceived.Add(1)
	// The header is short without a date that nobody reads.
	w.Header()["Date"] = nil
	token, what := splitPath(r.URL.Path)
	if what == "" {
		s.meter.messagesSent.Add(1)
		http.Error(w, "no such path", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet {
		s.meter.messagesSent.Add(1)
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	body, err := s.answerHTTP(token, what, r)
	if err != nil {
		s.log.Debug("refused over http", "from", r.RemoteAddr, "what", what, "reason", err)
		// Clients show a reason only if it comes with status 200 (BEP 3).
		body = appendText(append(body[:0], "d14:failure reason"...), err.Error())
		body = append(body, 'e')
	}
	w.Header()["Content-Type"] = []string{"text/plain"}
	w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	s.meter.messagesSent.Add(1)
	if _, err := w.Write(body); err != nil {
		s.log.Debug("answer over http", "to", r.RemoteAddr, "err", err)
	}
}

func (s *Server) answerHTTP(token, what string, r *http.Request) ([]byte, error) {
	if !s.authorized(token) {
		return nil, errors.New("wrong token")
	}
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	if what == "scrape" {
		return s.scrapeHTTP(q)
	}
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return nil, fmt.Errorf("address %q cannot be understood", r.RemoteAddr)
	}
	a, err := q.announcement(remote.Addr())
	if err != nil {
		return nil, err
	}
	var space [maxWant]netip.AddrPort
	peers, c, err := s.registry.announce(a, space[:0])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, 256+18*len(peers))
	out = appendInt(append(out, 'd'), "complete", c.seeders)
	out = appendInt(out, "downloaded", c.completed)
	out = appendInt(out, "incomplete", c.leechers)
	out = appendInt(out, "interval", int(s.interval.Seconds()))
	out = appendInt(out, "min interval", int(s.minInterval.Seconds()))
	n4 := 0
	for _, p := range peers {
		if p.Addr().Is4() {
			n4++
		}
	}
	out = append(strconv.AppendInt(append(out, "5:peers"...), int64(n4)*6, 10), ':')
	out = appendPeers(out, peers, ipv4)
	if n6 := len(peers) - n4; n6 > 0 {
		out = append(strconv.AppendInt(append(out, "6:peers6"...), int64(n6)*18, 10), ':')
		out = appendPeers(out, peers, ipv6)
	}
	return append(out, 'e'), nil
}

// scrapeHTTP is BEP 48. Torrents that are not here are not in the answer.
func (s *Server) scrapeHTTP(q query) ([]byte, error) {
	if len(q.infoHashes) == 0 {
		return nil, errors.New("info_hash is missing: there is no scrape of all torrents")
	}
	slices.SortFunc(q.infoHashes, func(a, b [20]byte) int { return slices.Compare(a[:], b[:]) })
	out := []byte("d5:filesd")
	for _, hash := range slices.Compact(q.infoHashes) {
		c, _, _ := s.registry.look(hash, false)
		if c == (counts{}) {
			continue
		}
		out = append(append(out, "20:"...), hash[:]...)
		out = appendInt(append(out, 'd'), "complete", c.seeders)
		out = appendInt(out, "downloaded", c.completed)
		out = append(appendInt(out, "incomplete", c.leechers), 'e')
	}
	return append(out, "ee"...), nil
}

func appendText(out []byte, text string) []byte {
	return append(append(strconv.AppendInt(out, int64(len(text)), 10), ':'), text...)
}

func appendInt(out []byte, key string, v int) []byte {
	return append(strconv.AppendInt(append(appendText(out, key), 'i'), int64(v), 10), 'e')
}

// appendPeers appends the addresses of one family in the compact form (BEP 23 and 7).
func appendPeers(out []byte, peers []netip.AddrPort, family int) []byte {
	for _, p := range peers {
		if familyOf(p.Addr()) == family {
			out = append(out, p.Addr().AsSlice()...)
			out = append(out, byte(p.Port()>>8), byte(p.Port()))
		}
	}
	return out
}

// query is what announces and scrapes ask. Numbers are -1 where they are not given.
type query struct {
	infoHashes [][20]byte
	peerID     string
	ip         string
	event      string
	port, left int64
	want       int64
}

// parseQuery reads the raw query of a request. net/url would do, but refuses
// semicolons, which some clients leave as they are in info hashes.
func parseQuery(raw string) (query, error) {
	q := query{port: -1, left: -1, want: -1}
	if len(raw) > maxQuery {
		return q, fmt.Errorf("the query has %d bytes, want at most %d", len(raw), maxQuery)
	}
	for n := 0; raw != ""; n++ {
		if n == maxParameters {
			return q, fmt.Errorf("more than %d parameters", maxParameters)
		}
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		key, escaped, _ := strings.Cut(pair, "=")
		var number *int64
		var text *string
		switch key {
		case "info_hash":
			if len(q.infoHashes) == maxScrape {
				return q, fmt.Errorf("more than %d info_hash", maxScrape)
			}
		case "peer_id":
			text = &q.peerID
		case "ip":
			text = &q.ip
		case "event":
			text = &q.event
		case "port":
			number = &q.port
		case "left":
			number = &q.left
		case "numwant":
			number = &q.want
		default:
			continue
		}
		v, err := url.QueryUnescape(escaped)
		if err != nil {
			return q, fmt.Errorf("%s is not escaped as it should be", key)
		}
		switch {
		case text != nil:
			*text = v
		case number != nil:
			if *number, err = strconv.ParseInt(v, 10, 64); err != nil {
				return q, fmt.Errorf("%s: want a number", key)
			}
		default:
			if len(v) != 20 {
				return q, fmt.Errorf("info_hash has %d bytes, want 20", len(v))
			}
			q.infoHashes = append(q.infoHashes, [20]byte([]byte(v)))
		}
	}
	return q, nil
}

// announcement checks a query from an address as an announce.
func (q query) announcement(remote netip.Addr) (announcement, error) {
	a := announcement{left: q.left}
	if len(q.infoHashes) != 1 {
		return a, fmt.Errorf("%d info_hash, want 1", len(q.infoHashes))
	}
	a.infoHash = q.infoHashes[0]
	if len(q.peerID) != 20 {
		return a, fmt.Errorf("peer_id has %d bytes, want 20", len(q.peerID))
	}
	a.peerID = [20]byte([]byte(q.peerID))
	if q.left < 0 {
		return a, errors.New("left: want the number of bytes")
	}
	switch q.event {
	case "", "empty", "paused": // BEP 21: nobody is treated differently for being paused
	case "started":
		a.event = eventStarted
	case "completed":
		a.event = eventCompleted
	case "stopped":
		a.event = eventStopped
	default:
		return a, errors.New("event: want started, completed or stopped")
	}
	if q.port < 1 || q.port > math.MaxUint16 {
		return a, errors.New("port: want 1 to 65535")
	}
	remote = remote.Unmap().WithZone("")
	if q.ip != "" && trusted(remote) {
		ip, err := netip.ParseAddr(q.ip)
		if err != nil {
			return a, errors.New("ip: want an address")
		}
		remote = ip.Unmap().WithZone("")
	}
	a.addr = netip.AddrPortFrom(remote, uint16(q.port))
	a.want = wanted(q.want)
	return a, checkAddr(a.addr)
}

// trusted reports whether a peer may say that it is at another address than the
// one it announces from: one on the same machine or the same private network,
// where a peer may have an address of its own that its announces do not come
// from. A peer in 127.0.0.0/8 needs none of it when it binds its announces to
// its address. From elsewhere it would let anybody point a swarm at a third party.
func trusted(a netip.Addr) bool {
	return a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast()
}

func wanted(n int64) int {
	if n < 0 {
		return defaultWant
	}
	return int(min(n, maxWant))
}

func checkAddr(a netip.AddrPort) error {
	if ip := a.Addr(); a.Port() == 0 || !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() {
		return fmt.Errorf("%s is no address of a peer", a)
	}
	return nil
}
