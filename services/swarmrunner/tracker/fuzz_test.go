package tracker

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"testing"
	"unicode/utf8"
)

// What the client asks the server understands, whatever the rest of the query is.
func FuzzQuery(f *testing.F) {
	f.Add("info_hash=%12%34aaaaaaaaaaaaaaaaaa&peer_id=aaaaaaaaaaaaaaaaaaaa&port=1&left=0&event=started&ip=::1&numwant=5")
	f.Add("info_hash=%1&port=70000&left=-1&;;&=&&")
	u, err := url.Parse("http://127.0.0.1:1/announce/token")
	if err != nil {
		f.Fatal(err)
	}
	request := string(appendRequest(nil, u, Request{InfoHash: torrentA, PeerID: name20("p", 1), Port: 5, Left: 1, Event: "completed", NumWant: 9, IP: netip.MustParseAddr("::1")}))
	f.Add(request[len("GET /announce/token?") : len(request)-len(" HTTP/1.1\r\nHost: 127.0.0.1:1\r\nUser-Agent: transferlab\r\nConnection: close\r\n\r\n")])
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := parseQuery(raw)
		if err != nil {
			return
		}
		a, err := q.announcement(netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			return
		}
		if a.left < 0 || a.want < 0 || a.want > maxWant || a.event > eventStopped || checkAddr(a.addr) != nil || a.addr.Addr().Is4In6() || a.addr.Addr().Zone() != "" {
			t.Fatalf("%q is %+v", raw, a)
		}
	})
}

// Whatever comes over UDP, the answer is one that the client can read, belongs to
// the question and is not longer than it unless the sender's address is proven.
func FuzzPacket(f *testing.F) {
	s, err := NewServer(Options{Token: "t", MaxTorrents: 4, MaxPeers: 100})
	if err != nil {
		f.Fatal(err)
	}
	from := netip.MustParseAddrPort("127.0.0.1:1")
	u, err := url.Parse("udp://127.0.0.1:1/announce/t")
	if err != nil {
		f.Fatal(err)
	}
	announce, err := appendAnnounce(nil, u, Request{InfoHash: torrentA, PeerID: name20("p", 1), Port: 5, Event: "started"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(announce, true)
	f.Add(append([]byte("\x00\x00\x04\x17\x27\x10\x19\x80\x00\x00\x00\x00abcd"), 1, 2, 3), false)
	f.Add(append([]byte("\x00\x00\x04\x17\x27\x10\x19\x80\x00\x00\x00\x02abcd"), torrentA[:]...), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, in []byte, connected bool) {
		var err error
		in = slices.Clone(in)
		if connected && len(in) >= 8 {
			binary.BigEndian.PutUint64(in, s.connectionID(from, 0))
		}
		out := s.handle(in, from, nil)
		if len(out) == 0 {
			return
		}
		if len(out) > maxAnswerBytes || !connected && len(out) > len(in) || string(out[4:8]) != string(in[12:16]) {
			t.Fatalf("%q is answered %q", in, out)
		}
		switch action := binary.BigEndian.Uint32(out); action {
		case actionConnect:
			_, err = parseConnect(out)
		case actionAnnounce:
			_, err = parseAnnounced(out, ipv4)
		case actionScrape:
			if (len(out)-8)%scrapeEntryBytes != 0 {
				t.Fatalf("a scrape is answered with %d bytes", len(out))
			}
		default:
			failure := new(Failure)
			if _, err := parseAnnounced(out, ipv4); !errors.As(err, &failure) || !utf8.ValidString(failure.Reason) {
				t.Fatalf("%q is answered %q", in, out)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// Answers are understood or refused, and give addresses that can be dialled.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("d8:completei1e10:incompletei2e8:intervali30e12:min intervali1e5:peers6:\x7f\x00\x00\x01\x00\x056:peers618:aaaaaaaaaaaaaaaaaae"))
	f.Add([]byte("d14:failure reason4:noooe"))
	f.Add([]byte("d5:peersld2:ip9:127.0.0.17:peer id1:a4:porti5eeee"))
	f.Add([]byte("d5:peersi1ee"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseAnswer(body)
		check(t, r, err)
	})
}

// The same of packets.
func FuzzAnnounced(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01abcd\x00\x00\x00\x1e\x00\x00\x00\x01\x00\x00\x00\x02\x7f\x00\x00\x01\x00\x05"), false)
	f.Add([]byte("\x00\x00\x00\x03abcdrefused"), false)
	f.Add([]byte("\x00\x00\x00\x00abcd12345678"), true)
	f.Fuzz(func(t *testing.T, in []byte, v6 bool) {
		if len(in) < 8 {
			return
		}
		_, _ = parseConnect(in)
		family := ipv4
		if v6 {
			family = ipv6
		}
		r, err := parseAnnounced(in, family)
		check(t, r, err)
	})
}

func check(t *testing.T, r Response, err error) {
	t.Helper()
	if err != nil {
		if failure := new(Failure); errors.As(err, &failure) && len(failure.Reason) > maxReason {
			t.Fatalf("a reason of %d bytes", len(failure.Reason))
		}
		return
	}
	if r.Interval < 0 || r.Interval > maxInterval || r.Seeders < 0 || r.Leechers < 0 || len(r.Peers) > 2*maxPeers {
		t.Fatalf("%+v", r)
	}
	for _, p := range r.Peers {
		if checkAddr(p) != nil || p.Addr().Is4In6() {
			t.Fatalf("peer %s", p)
		}
	}
}
