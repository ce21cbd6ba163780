package tracker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func name20(prefix string, n int) [20]byte {
	var id [20]byte
	copy(id[:], fmt.Sprintf("%s%020d", prefix, n)[:20])
	copy(id[12:], fmt.Sprintf("%08d", n))
	return id
}

// later goes on after d by the clock of a synctest bubble, which runs ahead as
// soon as all in the bubble wait: nobody really does.
func later(d time.Duration) { <-time.After(d) }

var torrentA = [20]byte([]byte("a torrent \x00\xff&=%+ abc"))

// start serves on a loopback address over both protocols and returns the URLs by protocol.
func start(t testing.TB, o Options, host string) (s *Server, urls map[string]string) {
	t.Helper()
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- s.Serve(l) }()
	go func() { ended <- s.ServePacket(c) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return s, map[string]string{
		"http": URL("http", l.Addr().String(), o.Token),
		"udp":  URL("udp", c.LocalAddr().String(), o.Token),
	}
}

// from dials from an address of its own, as peers of a lab do.
func from(ip string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := net.Dialer{}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(ip)}
		} else {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(ip)}
		}
		return d.DialContext(ctx, network, addr)
	}
}

func mustAnnounce(t *testing.T, c *Client, url string, r Request) Response {
	t.Helper()
	answer, err := c.Announce(t.Context(), url, r)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestAnnounce(t *testing.T) {
	for _, protocol := range []string{"http", "udp"} {
		for _, token := range []string{"", "secret-token"} {
			t.Run(protocol+" "+token, func(t *testing.T) {
				s, urls := start(t, Options{Token: token, Interval: 40 * time.Second, MinInterval: 2 * time.Second}, "127.0.0.1")
				url := urls[protocol]
				seeder := &Client{Dial: from("127.0.0.2")}
				leecher := &Client{Dial: from("127.0.0.3")}
				seed := Request{InfoHash: torrentA, PeerID: name20("-S-", 1), Port: 1000, Event: "started"}
				leech := Request{InfoHash: torrentA, PeerID: name20("-L-", 1), Port: 2000, Event: "started", Left: 5}

				r := mustAnnounce(t, seeder, url, seed)
				if len(r.Peers) != 0 || r.Seeders != 1 || r.Leechers != 0 || r.Interval != 40*time.Second {
					t.Fatalf("the first is told %+v", r)
				}
				if protocol == "http" && r.MinInterval != 2*time.Second {
					t.Fatalf("min interval %s, want 2s", r.MinInterval)
				}
				r = mustAnnounce(t, leecher, url, leech)
				if want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.2:1000")}; !slices.Equal(r.Peers, want) || r.Seeders != 1 || r.Leechers != 1 {
					t.Fatalf("the second is told %+v, want peers %v", r, want)
				}
				r = mustAnnounce(t, seeder, url, seed)
				if want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.3:2000")}; !slices.Equal(r.Peers, want) {
					t.Fatalf("the first is told %+v, want peers %v", r, want)
				}
				if seed.NumWant = -1; len(mustAnnounce(t, seeder, url, seed).Peers) != 0 {
					t.Error("peers for one that wants none")
				}
				leech.Left, leech.Event, leech.Downloaded, leech.Uploaded = 0, "completed", 5, 6
				mustAnnounce(t, leecher, url, leech)
				mustAnnounce(t, leecher, url, leech)
				if err := s.Await(t.Context(), torrentA, func(seeders, leechers, completed int) bool {
					return seeders == 2 && leechers == 0 && completed == 1
				}); err != nil {
					t.Fatal(err)
				}
				leech.Event = "stopped"
				if r := mustAnnounce(t, leecher, url, leech); len(r.Peers) != 0 || r.Seeders != 1 {
					t.Errorf("one that stops is told %+v", r)
				}
				if seeders, leechers := s.Swarm(torrentA); seeders != 1 || leechers != 0 {
					t.Errorf("%d seeders and %d leechers are left, want 1 and 0", seeders, leechers)
				}

				var sent Traffic
				for _, c := range []*Client{seeder, leecher} {
					x := c.Traffic()
					sent.Sent += x.Sent
					sent.Received += x.Received
					sent.MessagesSent += x.MessagesSent
					sent.MessagesReceived += x.MessagesReceived
				}
				want := Traffic{Sent: sent.Received, Received: sent.Sent, MessagesSent: sent.MessagesReceived, MessagesReceived: sent.MessagesSent}
				if got := s.Traffic(); got != want || got.Sent == 0 || got.MessagesSent == 0 {
					t.Errorf("the server counts %+v, its clients the opposite %+v", got, want)
				}
			})
		}
	}
}

func TestRefusals(t *testing.T) {
	other := name20("unknown", 1)
	_, urls := start(t, Options{Token: "right", InfoHashes: func(h [20]byte) bool { return h != other }}, "127.0.0.1")
	for protocol, url := range urls {
		c := &Client{}
		good := Request{InfoHash: torrentA, PeerID: name20("p", 1), Port: 1, Left: 1}
		mustAnnounce(t, c, url, good)
		for _, x := range []struct {
			says, url string
			change    func(*Request)
		}{
			{"wrong token", strings.Replace(url, "/right", "/wrong", 1), nil},
			{"wrong token", strings.Replace(url, "/right", "", 1), nil},
			{"unknown torrent", url, func(r *Request) { r.InfoHash = other }},
			{"port", url, func(r *Request) { r.Port = 0 }},
		} {
			r := good
			if x.change != nil {
				x.change(&r)
			}
			_, err := c.Announce(t.Context(), x.url, r)
			var failure *Failure
			if !errors.As(err, &failure) {
				t.Errorf("%s: %v, want a failure that says %q", protocol, err, x.says)
			} else if x.says != "port" && failure.Reason != x.says {
				t.Errorf("%s: failure %q, want %q", protocol, failure.Reason, x.says)
			}
			if err != nil && strings.Contains(err.Error(), "right") {
				t.Errorf("%s: %v tells the token", protocol, err)
			}
		}
	}
	for _, url := range []string{"https://127.0.0.1/announce", "udp://127.0.0.1/announce", "announce", "http://", "http://a b/", strings.Replace(urls["http"], "announce", "other", 1)} {
		if _, err := new(Client).Announce(t.Context(), url, Request{}); err == nil {
			t.Errorf("announce to %q: no error", url)
		} else if f := new(Failure); errors.As(err, &f) {
			t.Errorf("announce to %q: %v is a failure", url, err)
		}
	}
	if _, err := new(Client).Announce(t.Context(), urls["udp"], Request{Event: "bored"}); err == nil {
		t.Error("an unknown event is sent")
	}
}

func TestSetToken(t *testing.T) {
	s, urls := start(t, Options{}, "127.0.0.1")
	s.SetToken("late")
	for _, url := range urls {
		r := Request{InfoHash: torrentA, PeerID: name20("p", 1), Port: 1}
		if f := new(Failure); !errors.As(second(new(Client).Announce(t.Context(), url, r)), &f) {
			t.Errorf("%s is not refused", url)
		}
		mustAnnounce(t, new(Client), strings.Replace(url, "/announce", "/announce/late", 1), r)
		mustAnnounce(t, new(Client), strings.Replace(url, "/announce", "/late/announce", 1), r)
		for _, path := range []string{"/late/other", "/other/late", "/announce/late/x", "/late", "/late/late/announce"} {
			if _, err := new(Client).Announce(t.Context(), strings.Replace(url, "/announce", path, 1), r); err == nil {
				t.Errorf("%s with path %s is answered", url, path)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestLimits(t *testing.T) {
	s, urls := start(t, Options{MaxTorrents: 2, MaxPeers: 3}, "127.0.0.1")
	r := Request{Port: 1, Left: 1}
	announce := func(torrent, peer int, event string) error {
		r.InfoHash, r.PeerID, r.Port, r.Event = name20("t", torrent), name20("p", peer), uint16(100*torrent+peer), event
		return second(new(Client).Announce(t.Context(), urls["http"], r))
	}
	for _, x := range []struct {
		torrent, peer int
		event, says   string
	}{
		{1, 1, "", ""},
		{2, 1, "", ""},
		{3, 1, "", "too many torrents"},
		{2, 2, "", ""},
		{2, 3, "", "too many peers"},
		{2, 2, "", ""},
		{1, 1, "stopped", ""},
		{3, 1, "", ""},
	} {
		err := announce(x.torrent, x.peer, x.event)
		if x.says == "" && err != nil || x.says != "" && (err == nil || !strings.Contains(err.Error(), x.says)) {
			t.Errorf("peer %d of torrent %d: %v, want %q", x.peer, x.torrent, err, x.says)
		}
	}
	if err := s.Register(name20("t", 4), name20("p", 1), netip.MustParseAddrPort("127.0.0.1:1"), 0); err == nil {
		t.Error("registered beyond the limit")
	}
	if err := s.Register(name20("t", 3), name20("p", 1), netip.AddrPort{}, 0); err == nil {
		t.Error("registered without an address")
	}
	if err := (Options{Interval: time.Millisecond, MinInterval: -1, MaxPeers: -1, Token: "a/b"}).Validate(); err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("%v, want four faults", err)
	}
	if _, err := NewServer(Options{MaxTorrents: -1}); err == nil {
		t.Error("a server with a fault")
	}
}

// A server that is down is as good as not there, and knows its peers when it is back.
func TestDown(t *testing.T) {
	s, urls := start(t, Options{}, "127.0.0.1")
	if err := s.Register(torrentA, name20("s", 1), netip.MustParseAddrPort("127.0.0.9:9"), 0); err != nil {
		t.Fatal(err)
	}
	r := Request{InfoHash: torrentA, PeerID: name20("p", 1), Port: 1, Left: 1}
	c := &Client{Retransmit: 5 * time.Millisecond}

	// A connection that is open when it goes down is reset.
	open, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(urls["http"], "http://"), "/announce"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for range 2 {
		before := s.Traffic()
		s.Down(true)
		if _, err := open.Read(make([]byte, 1)); err == nil {
			t.Error("an open connection gives bytes")
		}
		if _, err := c.Announce(t.Context(), urls["http"], r); err == nil {
			t.Error("answer over http")
		} else if f := new(Failure); errors.As(err, &f) {
			t.Errorf("it refuses: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_, err := c.Announce(ctx, urls["udp"], r)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("over udp: %v, want the context's end", err)
		}
		if after := s.Traffic(); after.Sent != before.Sent || after.MessagesReceived < before.MessagesReceived+2 {
			t.Errorf("it went from %+v to %+v while down: want packets received and none sent", before, after)
		}
		s.Down(false)
		for _, url := range urls {
			if answer := mustAnnounce(t, c, url, r); len(answer.Peers) != 1 || answer.Seeders != 1 {
				t.Errorf("back, it says %+v", answer)
			}
		}
	}
}

// A question over UDP is answered although the server was not there at first.
func TestRetransmit(t *testing.T) {
	s, urls := start(t, Options{}, "127.0.0.1")
	s.Down(true)
	before := s.Traffic().MessagesReceived
	c := &Client{Retransmit: 10 * time.Millisecond}
	got := make(chan error, 1)
	go func() {
		got <- second(c.Announce(t.Context(), urls["udp"], Request{InfoHash: torrentA, PeerID: name20("p", 1), Port: 1}))
	}()
	for s.Traffic().MessagesReceived == before {
		select {
		case err := <-got:
			t.Fatalf("answer from a server that is down: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	s.Down(false)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if n := c.Traffic().MessagesSent; n < 3 {
		t.Errorf("%d packets sent, want 3 or more", n)
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	_ = p.Close()
	for _, url := range []string{URL("http", l.Addr().String(), ""), URL("udp", p.LocalAddr().String(), "")} {
		if _, err := new(Client).Announce(t.Context(), url, Request{}); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want a refused connection", url, err)
		}
	}
}

func TestIPv6(t *testing.T) {
	s, urls := start(t, Options{}, "::1")
	want := netip.MustParseAddrPort("[::1]:1000")
	v4 := netip.MustParseAddrPort("127.0.0.9:9")
	if err := s.Register(torrentA, name20("four", 1), v4, 1); err != nil {
		t.Fatal(err)
	}
	for protocol, url := range urls {
		mustAnnounce(t, new(Client), url, Request{InfoHash: torrentA, PeerID: name20("s", 1), Port: 1000})
		answer := mustAnnounce(t, new(Client), url, Request{InfoHash: torrentA, PeerID: name20("l", 1), Port: 1001, Left: 1})
		if protocol == "udp" && !slices.Equal(answer.Peers, []netip.AddrPort{want}) ||
			protocol == "http" && (len(answer.Peers) != 2 || !slices.Contains(answer.Peers, want) || !slices.Contains(answer.Peers, v4)) {
			t.Errorf("%s: peers %v", protocol, answer.Peers)
		}
	}
}

// A peer may say that it is elsewhere if it is near.
func TestAddress(t *testing.T) {
	said := netip.MustParseAddr("10.1.2.3")
	for remote, want := range map[string]string{
		"127.0.0.5":        "10.1.2.3",
		"192.168.1.1":      "10.1.2.3",
		"::ffff:127.0.0.5": "10.1.2.3",
		"fd00::1":          "10.1.2.3",
		"8.8.8.8":          "8.8.8.8",
		"::ffff:8.8.8.8":   "8.8.8.8",
		"2001:db8::1":      "2001:db8::1",
	} {
		q := query{infoHashes: [][20]byte{{}}, peerID: strings.Repeat("p", 20), port: 7, ip: said.String()}
		a, err := q.announcement(netip.MustParseAddr(remote))
		if err != nil || a.addr != netip.AddrPortFrom(netip.MustParseAddr(want), 7) {
			t.Errorf("from %s: %s (%v), want %s", remote, a.addr, err, want)
		}
	}
	s, urls := start(t, Options{}, "127.0.0.1")
	for protocol, url := range urls {
		mustAnnounce(t, new(Client), url, Request{InfoHash: torrentA, PeerID: name20("s", 1), Port: 7, IP: said})
		answer := mustAnnounce(t, new(Client), url, Request{InfoHash: torrentA, PeerID: name20("l", 1), Port: 8, Left: 1})
		if want := netip.AddrPortFrom(said, 7); !slices.Equal(answer.Peers, []netip.AddrPort{want}) {
			t.Errorf("%s: peers %v, want %s", protocol, answer.Peers, want)
		}
	}
	// The same address with another id is a peer that was started anew.
	if err := s.Register(torrentA, name20("n", 1), netip.AddrPortFrom(said, 7), 0); err != nil {
		t.Fatal(err)
	}
	if seeders, leechers := s.Swarm(torrentA); seeders != 1 || leechers != 1 {
		t.Errorf("%d seeders and %d leechers, want 1 and 1", seeders, leechers)
	}
}

func TestSample(t *testing.T) {
	const seeders, leechers, want, rounds = 20, 180, 50, 400
	s, err := NewServer(Options{})
	if err != nil {
		t.Fatal(err)
	}
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 1000)
	}
	isSeeder := map[netip.AddrPort]bool{}
	for i := range seeders + leechers {
		left := int64(1)
		if i < seeders {
			left = 0
			isSeeder[addr(i)] = true
		}
		if err := s.Register(torrentA, name20("p", i), addr(i), left); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[netip.AddrPort]int{}
	for range rounds {
		asker := announcement{infoHash: torrentA, peerID: name20("p", seeders), addr: addr(seeders), left: 1, want: want}
		peers, _, err := s.registry.announce(asker, nil)
		if err != nil || len(peers) != want {
			t.Fatalf("%d peers (%v), want %d", len(peers), err, want)
		}
		once := map[netip.AddrPort]bool{}
		for _, p := range peers {
			if once[p] || p == asker.addr {
				t.Fatalf("%s twice, or the asker", p)
			}
			once[p] = true
			seen[p]++
		}
	}
	// Each is expected rounds·want/199 ≈ 100 times, give or take 9.
	for i := range seeders + leechers {
		if n := seen[addr(i)]; i != seeders && (n < 50 || n > 160) {
			t.Errorf("peer %d was drawn %d times of %d, want about 100", i, n, rounds)
		}
	}
	for _, x := range []struct{ want, got int }{{1000, leechers}, {0, 0}, {leechers, leechers}, {3, 3}} {
		peers, _, err := s.registry.announce(announcement{infoHash: torrentA, peerID: name20("p", 0), addr: addr(0), want: x.want}, nil)
		if err != nil || len(peers) != x.got || slices.ContainsFunc(peers, func(p netip.AddrPort) bool { return isSeeder[p] }) {
			t.Errorf("a seeder that wants %d gets %d peers (%v), want %d leechers", x.want, len(peers), err, x.got)
		}
	}
}

// The registry agrees with itself whatever peers do.
func TestRegistryConsistency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewServer(Options{Interval: 10 * time.Second, MaxTorrents: 3, MaxPeers: 40})
		if err != nil {
			t.Fatal(err)
		}
		state := uint64(1)
		roll := func(n uint64) int {
			state = state*6364136223846793005 + 1442695040888963407
			return int(state >> 33 % n)
		}
		for range 20_000 {
			ip := netip.AddrFrom4([4]byte{127, 0, 0, byte(roll(20) + 1)})
			if roll(3) == 0 {
				ip = netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(roll(20))})
			}
			_, _, _ = s.registry.announce(announcement{
				infoHash: name20("t", roll(4)), peerID: name20("p", roll(30)), addr: netip.AddrPortFrom(ip, uint16(roll(3)+1)),
				left: int64(roll(2)), event: event(roll(4)), want: roll(60), oneFamily: roll(2) == 0,
			}, nil)
			if roll(50) == 0 {
				later(time.Duration(roll(25)) * time.Second)
			}
			members := 0
			for _, w := range s.registry.swarms {
				for family := range w.pools {
					for role := range w.pools[family] {
						for i, m := range w.pools[family][role] {
							if m.index != i || m.role != role || m.id.family != family || w.byID[m.id] != m || w.byAddr[m.addr] != m {
								t.Fatalf("member %+v is lost", m)
							}
							members++
						}
					}
				}
				if len(w.byID) != len(w.byAddr) {
					t.Fatalf("%d ids, %d addresses", len(w.byID), len(w.byAddr))
				}
			}
			listed := 0
			for m := s.registry.oldest; m != nil; m = m.newer {
				listed++
			}
			if members != s.registry.peers || listed != members || members > 40 || len(s.registry.swarms) > 3 {
				t.Fatalf("%d members, %d listed, %d counted", members, listed, s.registry.peers)
			}
		}
	})
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewServer(Options{Interval: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		register := func(i int) {
			t.Helper()
			if err := s.Register(torrentA, name20("p", i), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(i)), 1); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		register(1)
		later(20 * time.Second)
		register(2)
		later(20 * time.Second)
		register(1)
		// Nothing happens but the time that goes by.
		for _, want := range []struct {
			leechers int
			at       time.Duration
		}{{1, 80 * time.Second}, {0, 100 * time.Second}} {
			if err := s.Await(t.Context(), torrentA, func(_, leechers, _ int) bool { return leechers == want.leechers }); err != nil {
				t.Fatal(err)
			}
			if at := time.Since(begun); at != want.at {
				t.Errorf("%d are left after %s, want %s", want.leechers, at, want.at)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := s.Await(ctx, torrentA, func(_, leechers, _ int) bool { return leechers == 1 }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline", err)
		}
	})
}

func TestConnectionID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewServer(Options{})
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddrPort("10.0.0.1:1000")
		connect := []byte("\x00\x00\x04\x17\x27\x10\x19\x80\x00\x00\x00\x00abcd")
		answer := s.handle(connect, addr, nil)
		if len(answer) != 16 || string(answer[:8]) != "\x00\x00\x00\x00abcd" {
			t.Fatalf("connect is answered %q", answer)
		}
		scrape := append(slices.Clone(answer[8:]), "\x00\x00\x00\x02efgh"...)
		scrape = append(scrape, torrentA[:]...)
		action := func(from netip.AddrPort) uint32 { return binary.BigEndian.Uint32(s.handle(scrape, from, nil)) }
		later(2*time.Minute - time.Second)
		if a := action(addr); a != actionScrape {
			t.Errorf("after almost two minutes: action %d", a)
		}
		if a := action(netip.MustParseAddrPort("10.0.0.1:1001")); a != actionScrape {
			t.Errorf("from another port: action %d", a)
		}
		for _, other := range []string{"10.0.0.2:1000", "127.0.0.1:1000", "[fd00::1]:1000"} {
			if a := action(netip.MustParseAddrPort(other)); a != actionError {
				t.Errorf("from %s: action %d", other, a)
			}
		}
		later(time.Minute + time.Second)
		if a := action(addr); a != actionError {
			t.Errorf("after three minutes: action %d", a)
		}
		for n := range connect {
			if answer := s.handle(connect[:n], addr, nil); len(answer) != 0 {
				t.Errorf("%d bytes are answered", n)
			}
		}
		if answer := s.handle(make([]byte, 35), addr, nil); len(answer) != 0 {
			t.Error("a stranger's short packet is answered")
		}
	})
}

func TestScrape(t *testing.T) {
	s, urls := start(t, Options{}, "127.0.0.1")
	other := name20("other", 1)
	for i, left := range []int64{0, 0, 1} {
		if err := s.Register(torrentA, name20("p", i), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(i+1)), left); err != nil {
			t.Fatal(err)
		}
	}
	mustAnnounce(t, new(Client), urls["udp"], Request{InfoHash: torrentA, PeerID: name20("p", 2), Port: 3, Event: "completed"})

	get := func(query string) string {
		t.Helper()
		response, err := http.Get(strings.Replace(urls["http"], "announce", "scrape", 1) + "?" + query)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	ask := "info_hash=" + string(appendEscaped(nil, torrentA[:]))
	if got, want := get(ask+"&"+ask+"&info_hash="+string(other[:])), "d5:filesd20:"+string(torrentA[:])+"d8:completei3e10:downloadedi1e10:incompletei0eeee"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for query, says := range map[string]string{"": "missing", "info_hash=short": "5 bytes", strings.Repeat(ask+"&", 75): "more than 74", strings.Repeat("a", 5000): "5000 bytes", strings.Repeat("&", 200): "more than 128"} {
		if got := get(query); !strings.Contains(got, "failure reason") || !strings.Contains(got, says) {
			t.Errorf("%.40q: %q, want a failure that says %q", query, got, says)
		}
	}

	c, err := net.Dial("udp", strings.TrimSuffix(strings.TrimPrefix(urls["udp"], "udp://"), "/announce"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange := func(packet []byte) []byte {
		t.Helper()
		if _, err := c.Write(packet); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		in := make([]byte, 2048)
		n, err := c.Read(in)
		if err != nil {
			t.Fatal(err)
		}
		return in[:n]
	}
	id := exchange([]byte("\x00\x00\x04\x17\x27\x10\x19\x80\x00\x00\x00\x00abcd"))[8:]
	scrape := slices.Concat(id, []byte("\x00\x00\x00\x02efgh"), torrentA[:], other[:])
	want := append([]byte("\x00\x00\x00\x02efgh\x00\x00\x00\x03\x00\x00\x00\x01\x00\x00\x00\x00"), make([]byte, 12)...)
	if got := exchange(scrape); !bytes.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, packet := range [][]byte{slices.Concat(id, []byte("\x00\x00\x00\x02efgh")), slices.Concat(id, []byte("\x00\x00\x00\x07efgh")), slices.Concat(id, []byte("\x00\x00\x00\x01efgh"))} {
		if got := exchange(packet); binary.BigEndian.Uint32(got) != actionError || string(got[4:8]) != "efgh" {
			t.Errorf("%q is answered %q, want an error", packet, got)
		}
	}
	s.SetToken("x")
	if got := exchange(scrape); binary.BigEndian.Uint32(got) != actionError {
		t.Errorf("scrape without the token: %q", got)
	}
}

// Who opens connections and says nothing, or too much, does not keep others away.
func TestRudeClients(t *testing.T) {
	_, urls := start(t, Options{MaxConnections: 4}, "127.0.0.1")
	addr := strings.TrimSuffix(strings.TrimPrefix(urls["http"], "http://"), "/announce")
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	for range 3 {
		dial()
	}
	long := dial()
	if _, err := fmt.Fprintf(long, "GET /announce?a=%s HTTP/1.1\r\nHost: a\r\n\r\n", strings.Repeat("x", 64<<10)); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(long), nil)
	if err != nil || response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a long request: %v, %v", response, err)
	}
	_ = long.Close()
	mustAnnounce(t, new(Client), urls["http"], Request{InfoHash: torrentA, PeerID: name20("p", 1), Port: 1})
	post, err := http.Post(urls["http"], "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	_ = post.Body.Close()
	if post.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", post.Status)
	}
	// The server ends although no more connections fit.
	dial()
}

func TestManyAtOnce(t *testing.T) {
	const peers = 200
	s, urls := start(t, Options{}, "127.0.0.1")
	var wg sync.WaitGroup
	for i := range peers {
		url := urls[[]string{"http", "udp"}[i%2]]
		wg.Go(func() {
			c := &Client{Dial: from(fmt.Sprintf("127.0.1.%d", i+1))}
			if _, err := c.Announce(t.Context(), url, Request{InfoHash: torrentA, PeerID: name20("p", i), Port: 1, Left: 1, Event: "started"}); err != nil {
				t.Error(err)
			}
		})
	}
	if err := s.Await(t.Context(), torrentA, func(_, leechers, _ int) bool { return leechers == peers }); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// A server that answers nonsense, or for ever, is an error.
func TestBadServers(t *testing.T) {
	for answer, says := range map[string]string{
		"": "EOF",
		"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n":                                     "500 No",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nde":                                   "",
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nde":                                   "EOF",
		"HTTP/1.1 200 OK\r\n\r\n<html>":                                                    "understand answer",
		"HTTP/1.1 200 OK\r\n\r\nd8:intervali-1ee":                                          "interval",
		"HTTP/1.1 200 OK\r\n\r\nd5:peers5:abcdee":                                          "multiple of 6",
		"HTTP/1.1 200 OK\r\n\r\nd8:intervali9e5:peersld2:ip9:127.0.0.14:porti5eeee":        "",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20):                              "EOF",
		"HTTP/1.1 200 OK\r\n\r\nd5:peers1000000:" + strings.Repeat("x", 1<<20):             "truncated",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n":        "",
		"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n": "302 Found",
	} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = http.ReadRequest(bufio.NewReader(theirs))
			_, _ = io.WriteString(theirs, answer)
			_ = theirs.Close()
		}()
		c := &Client{Dial: func(context.Context, string, string) (net.Conn, error) { return ours, nil }}
		_, err := c.Announce(t.Context(), "http://127.0.0.1:1/announce", Request{})
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%.60q: %v, want %q", answer, err, says)
		}
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() { _, _ = io.Copy(io.Discard, theirs) }()
	c := &Client{Timeout: 10 * time.Millisecond, Dial: func(context.Context, string, string) (net.Conn, error) { return ours, nil }}
	if _, err := c.Announce(t.Context(), "http://127.0.0.1:1/announce", Request{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent server: %v, want the timeout", err)
	}
}

func TestClose(t *testing.T) {
	s, err := NewServer(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Serve(l), s.ServePacket(p)); err != nil {
		t.Errorf("serving after the end: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}
