package tracker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/anacrolix/torrent/bencode"

	"github.com/transferlab/transferlab/services/swarmrunner/metainfo/bencoding"
)

const (
	defaultTimeout = 15 * time.Second
	// BEP 15 waits 15 s before it sends a packet again, for trackers anywhere on
	// earth with thousands of clients. In a lab one lost packet would then decide
	// a whole trial; a second is more than any path between sites takes.
	defaultRetransmit = time.Second
	maxRetransmits    = 8
	// maxAnswer is of an HTTP answer with its header: many times what 200 peers take.
	maxAnswer   = 256 << 10
	maxPeers    = 4096
	maxReason   = 256
	maxInterval = 7 * 24 * time.Hour
)

// Request is what a peer tells a tracker of itself.
type Request struct {
	InfoHash, PeerID [20]byte
	Port             uint16 // where others reach the peer
	// IP is the address others reach it at, if that is not the one the announce
	// comes from. Trackers need not believe it; ours does on private networks.
	IP                         netip.Addr
	Event                      string // started, completed, stopped or empty
	Uploaded, Downloaded, Left int64  // bytes
	NumWant                    int    // 0: as many as the tracker likes; negative: none
}

// Response is what a tracker answers.
type Response struct {
	Peers                 []netip.AddrPort
	Interval, MinInterval time.Duration // zero where the tracker says none
	Seeders, Leechers     int
}

// Failure is a tracker's refusal: it was reached and understood.
type Failure struct{ Reason string }

func (f *Failure) Error() string { return fmt.Sprintf("the tracker refuses: %q", f.Reason) }

// Client announces peers to trackers. The zero value works; fields must not be
// changed after the first use.
type Client struct {
	// Dial connects over tcp or udp; net.Dialer does if it is nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Timeout is for one announce whose context ends later; 15 s if not given.
	Timeout time.Duration
	// Retransmit is how long an answer over UDP may take before the question is
	// sent again, at first; it doubles up to eight times. 1 s if not given.
	Retransmit time.Duration

	meter meter
}

// Traffic is what all announces of the client sent and received.
func (c *Client) Traffic() Traffic { return c.meter.traffic() }

// Announce tells the tracker at a URL (http or udp) of a peer. The error is a
// *Failure if the tracker refuses; anything else means that it could not be
// reached or not be understood.
func (c *Client) Announce(ctx context.Context, announceURL string, r Request) (Response, error) {
	u, err := url.Parse(announceURL)
	if err != nil {
		return Response{}, fmt.Errorf("announce: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, orDefault(c.Timeout, defaultTimeout))
	defer cancel()
	network, port, announce := "tcp", "80", c.announceHTTP
	switch {
	case u.Host == "":
		return Response{}, fmt.Errorf("announce: %q has no host", announceURL)
	case u.Scheme == "http":
	case u.Scheme == "udp":
		if network, port, announce = "udp", u.Port(), c.announceUDP; port == "" {
			return Response{}, fmt.Errorf("announce: %q has no port", announceURL)
		}
	default:
		return Response{}, fmt.Errorf("announce: %q, want http or udp", announceURL)
	}
	addr := net.JoinHostPort(u.Hostname(), orDefault(u.Port(), port))
	dial := c.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	// What messages say is the address: the URL has the token.
	conn, err := dial(ctx, network, addr)
	if err != nil {
		return Response{}, fmt.Errorf("announce to %s: %w", addr, err)
	}
	defer func() { _ = conn.Close() }()
	// A deadline in the past ends what is being read or written.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	answer, err := announce(ctx, metered{conn, &c.meter}, u, r)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Response{}, fmt.Errorf("announce to %s: %w", addr, err)
	}
	return answer, nil
}

// announceHTTP writes its request itself: net/http's client takes two goroutines
// and twice the memory for each connection, which is up to twice the time.
func (c *Client) announceHTTP(_ context.Context, conn net.Conn, u *url.URL, r Request) (Response, error) {
	if _, err := conn.Write(appendRequest(make([]byte, 0, 512), u, r)); err != nil {
		return Response{}, err
	}
	c.meter.messagesSent.Add(1)
	in := bufio.NewReaderSize(io.LimitReader(conn, maxAnswer), 1024)
	body, err := readAnswer(in)
	if err != nil {
		return Response{}, err
	}
	c.meter.messagesReceived.Add(1)
	return parseAnswer(body)
}

func appendRequest(out []byte, u *url.URL, r Request) []byte {
	out = append(append(out, "GET "...), u.EscapedPath()...)
	if u.Path == "" {
		out = append(out, '/')
	}
	out = append(out, '?')
	if u.RawQuery != "" {
		out = append(append(out, u.RawQuery...), '&')
	}
	number := func(key string, v int64) {
		out = strconv.AppendInt(append(append(append(out, '&'), key...), '='), v, 10)
	}
	out = appendEscaped(append(out, "info_hash="...), r.InfoHash[:])
	out = appendEscaped(append(out, "&peer_id="...), r.PeerID[:])
	number("port", int64(r.Port))
	number("uploaded", r.Uploaded)
	number("downloaded", r.Downloaded)
	number("left", r.Left)
	number("compact", 1)
	if r.NumWant != 0 {
		number("numwant", int64(max(r.NumWant, 0)))
	}
	if r.Event != "" {
		out = appendEscaped(append(out, "&event="...), []byte(r.Event))
	}
	if r.IP.IsValid() {
		out = appendEscaped(append(out, "&ip="...), []byte(r.IP.WithZone("").String()))
	}
	out = append(append(out, " HTTP/1.1\r\nHost: "...), u.Host...)
	return append(out, "\r\nUser-Agent: transferlab\r\nConnection: close\r\n\r\n"...)
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~'
}

func appendEscaped(out, text []byte) []byte {
	const hex = "0123456789ABCDEF"
	for _, c := range text {
		if unreserved(c) {
			out = append(out, c)
		} else {
			out = append(out, '%', hex[c>>4], hex[c&15])
		}
	}
	return out
}

// readAnswer reads an HTTP response, which must not go on for ever, to its end.
func readAnswer(in *bufio.Reader) ([]byte, error) {
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read answer: status %q", response.Status)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	return body, nil
}

// parseAnswer reads the bencoded body of an answer.
func parseAnswer(body []byte) (Response, error) {
	var in struct {
		Failure     *string       `bencode:"failure reason"`
		Interval    int64         `bencode:"interval"`
		MinInterval int64         `bencode:"min interval"`
		Seeders     int64         `bencode:"complete"`
		Leechers    int64         `bencode:"incomplete"`
		Peers       bencode.Bytes `bencode:"peers"`
		Peers6      []byte        `bencode:"peers6"`
	}
	if err := bencoding.Unmarshal(body, &in); err != nil {
		return Response{}, fmt.Errorf("understand answer: %w", err)
	}
	if in.Failure != nil {
		return Response{}, &Failure{Reason: (*in.Failure)[:min(len(*in.Failure), maxReason)]}
	}
	var r Response
	var err error
	if r.Interval, err = interval("interval", in.Interval); err != nil {
		return Response{}, err
	}
	if r.MinInterval, err = interval("min interval", in.MinInterval); err != nil {
		return Response{}, err
	}
	r.Seeders, r.Leechers = population(in.Seeders), population(in.Leechers)
	switch {
	case len(in.Peers) == 0:
	case in.Peers[0] == 'l':
		r.Peers, err = listedPeers(in.Peers)
	default:
		var compact []byte
		if err = bencode.Unmarshal(in.Peers, &compact); err == nil {
			r.Peers, err = compactPeers(nil, compact, ipv4)
		}
	}
	if err == nil {
		r.Peers, err = compactPeers(r.Peers, in.Peers6, ipv6)
	}
	if err != nil {
		return Response{}, fmt.Errorf("understand peers: %w", err)
	}
	return r, nil
}

func interval(name string, seconds int64) (time.Duration, error) {
	if seconds < 0 || seconds > int64(maxInterval/time.Second) {
		return 0, fmt.Errorf("understand answer: %s: %d seconds, want 0 to %d", name, seconds, maxInterval/time.Second)
	}
	return time.Duration(seconds) * time.Second, nil
}

// population is a number of peers: some trackers say -1 for one they do not know.
func population(n int64) int { return int(min(max(n, 0), math.MaxInt32)) }

// listedPeers reads the form that came before the compact one (BEP 3). Peers
// with names for addresses are left out.
func listedPeers(raw []byte) ([]netip.AddrPort, error) {
	var listed []struct {
		IP   string `bencode:"ip"`
		Port int64  `bencode:"port"`
	}
	if err := bencode.Unmarshal(raw, &listed); err != nil {
		return nil, err
	}
	if len(listed) > maxPeers {
		return nil, fmt.Errorf("%d, want at most %d", len(listed), maxPeers)
	}
	var peers []netip.AddrPort
	for _, p := range listed {
		ip, err := netip.ParseAddr(p.IP)
		if err != nil || p.Port < 1 || p.Port > math.MaxUint16 {
			continue
		}
		if peer := netip.AddrPortFrom(ip.Unmap().WithZone(""), uint16(p.Port)); checkAddr(peer) == nil {
			peers = append(peers, peer)
		}
	}
	return peers, nil
}

// compactPeers appends the peers that in has in the compact form, without those
// that cannot be any.
func compactPeers(peers []netip.AddrPort, in []byte, family int) ([]netip.AddrPort, error) {
	size := 6
	if family == ipv6 {
		size = 18
	}
	if len(in)%size != 0 {
		return nil, fmt.Errorf("%d bytes, want a multiple of %d", len(in), size)
	}
	n := len(in) / size
	if n > maxPeers {
		return nil, fmt.Errorf("%d, want at most %d", n, maxPeers)
	}
	if peers == nil && n > 0 {
		peers = make([]netip.AddrPort, 0, n)
	}
	for ; len(in) > 0; in = in[size:] {
		ip, _ := netip.AddrFromSlice(in[:size-2])
		if p := netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(in[size-2:])); checkAddr(p) == nil {
			peers = append(peers, p)
		}
	}
	return peers, nil
}

// announceUDP asks for a connection id and announces with it, each as often as
// needed (BEP 15).
func (c *Client) announceUDP(ctx context.Context, conn net.Conn, u *url.URL, r Request) (Response, error) {
	request, err := appendAnnounce(nil, u, r)
	if err != nil {
		return Response{}, err
	}
	family := ipv4
	if remote, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		family = familyOf(remote.Addr().Unmap())
	}
	exchange := udpExchange{client: c, conn: conn, in: make([]byte, maxPacket)}
	connect := binary.BigEndian.AppendUint64(nil, protocolID)
	connect = binary.BigEndian.AppendUint32(connect, actionConnect)
	connect = binary.BigEndian.AppendUint32(connect, 0)
	for {
		answer, _, err := exchange.ask(ctx, connect, 0)
		if err != nil {
			return Response{}, err
		}
		id, err := parseConnect(answer)
		if err != nil {
			return Response{}, err
		}
		binary.BigEndian.PutUint64(request, id)
		answer, stale, err := exchange.ask(ctx, request, connectionStep)
		if stale {
			continue
		}
		if err != nil {
			return Response{}, err
		}
		return parseAnnounced(answer, family)
	}
}

// udpExchange is one announce's packets: the times it waits go on from the
// connect to the announce.
type udpExchange struct {
	client *Client
	conn   net.Conn
	in     []byte
	sent   int // packets that got no answer
}

// ask sends a packet until an answer to it comes. It gives up after life, if that is not 0, and
// reports that what the packet says is stale.
func (e *udpExchange) ask(ctx context.Context, packet []byte, life time.Duration) (answer []byte, stale bool, err error) {
	// crypto/rand.Read never fails.
	_, _ = rand.Read(packet[12:16])
	began := time.Now()
	for ; e.sent <= maxRetransmits; e.sent++ {
		if life > 0 && time.Since(began) >= life {
			return nil, true, nil
		}
		if _, err := e.conn.Write(packet); err != nil {
			return nil, false, err
		}
		e.client.meter.messagesSent.Add(1)
		wait := orDefault(e.client.Retransmit, defaultRetransmit) << e.sent
		if err := e.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return nil, false, err
		}
		// The deadline just set may be later than one that ctx's end set before.
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		for {
			n, err := e.conn.Read(e.in)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, false, err
			}
			e.client.meter.messagesReceived.Add(1)
			if n >= 8 && bytes.Equal(e.in[4:8], packet[12:16]) {
				return e.in[:n], false, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
	}
	return nil, false, fmt.Errorf("no answer to %d packets", maxRetransmits+1)
}

// appendAnnounce is a whole announce but for the connection and transaction ids.
func appendAnnounce(out []byte, u *url.URL, r Request) ([]byte, error) {
	var e event
	switch r.Event {
	case "":
	case "started":
		e = eventStarted
	case "completed":
		e = eventCompleted
	case "stopped":
		e = eventStopped
	default:
		return nil, fmt.Errorf("event %q, want started, completed, stopped or none", r.Event)
	}
	want := int32(-1)
	switch {
	case r.NumWant < 0:
		want = 0
	case r.NumWant > 0:
		want = int32(min(r.NumWant, math.MaxInt32))
	}
	var ip [4]byte
	if a := r.IP.Unmap(); a.Is4() {
		ip = a.As4()
	}
	out = append(out, make([]byte, 8)...)
	out = binary.BigEndian.AppendUint32(out, actionAnnounce)
	out = append(out, make([]byte, 4)...)
	out = append(append(out, r.InfoHash[:]...), r.PeerID[:]...)
	out = binary.BigEndian.AppendUint64(out, uint64(r.Downloaded))
	out = binary.BigEndian.AppendUint64(out, uint64(r.Left))
	out = binary.BigEndian.AppendUint64(out, uint64(r.Uploaded))
	out = binary.BigEndian.AppendUint32(out, uint32(e))
	out = append(out, ip[:]...)
	// The key tells peers at one address apart (BEP 15); the id does so here.
	out = append(out, r.PeerID[16:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(want))
	out = binary.BigEndian.AppendUint16(out, r.Port)
	path := u.RequestURI()
	if len(path) > maxPacket/2 {
		return nil, fmt.Errorf("a path of %d bytes, want at most %d", len(path), maxPacket/2)
	}
	for path != "" && path != "/" {
		n := min(len(path), 255)
		out = append(append(out, optionURLData, byte(n)), path[:n]...)
		path = path[n:]
	}
	return out, nil
}

// parseConnect reads the answer to a connect, of at least 8 bytes.
func parseConnect(in []byte) (id uint64, err error) {
	if err := checkAction(in, actionConnect, connectBytes); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(in[8:]), nil
}

// parseAnnounced reads the answer to an announce, of at least 8 bytes.
func parseAnnounced(in []byte, family int) (Response, error) {
	if err := checkAction(in, actionAnnounce, announceReplyBytes); err != nil {
		return Response{}, err
	}
	r := Response{
		Leechers: population(int64(binary.BigEndian.Uint32(in[12:]))),
		Seeders:  population(int64(binary.BigEndian.Uint32(in[16:]))),
	}
	var err error
	if r.Interval, err = interval("interval", int64(binary.BigEndian.Uint32(in[8:]))); err != nil {
		return Response{}, err
	}
	if r.Peers, err = compactPeers(nil, in[announceReplyBytes:], family); err != nil {
		return Response{}, fmt.Errorf("understand peers: %w", err)
	}
	return r, nil
}

func checkAction(in []byte, want uint32, size int) error {
	switch action := binary.BigEndian.Uint32(in); {
	case action == actionError:
		return &Failure{Reason: string(in[8:min(len(in), 8+maxReason)])}
	case action != want:
		return fmt.Errorf("understand answer: action %d, want %d", action, want)
	case len(in) < size:
		return fmt.Errorf("understand answer: %d bytes, want at least %d", len(in), size)
	}
	return nil
}
