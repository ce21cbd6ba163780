package tracker

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Numbers of BEP 15.
const (
	protocolID = 0x41727101980

	actionConnect  = 0
	actionAnnounce = 1
	actionScrape   = 2
	actionError    = 3

	connectBytes       = 16
	announceBytes      = 98 // without options
	announceReplyBytes = 20 // without peers
	scrapeEntryBytes   = 12

	// Options after an announce (BEP 41).
	optionEnd     = 0
	optionNop     = 1
	optionURLData = 2
)

const (
	// maxPacket is more than any request is; longer packets are cut, and refused.
	maxPacket = 2048
	// maxAnswerBytes keeps answers whole on any path of today.
	maxAnswerBytes = 1452
	// A connection id is good for the step of time it was made in and two more:
	// two minutes at least, as BEP 15 wants it.
	connectionStep = time.Minute
	connectionAge  = 2
	receiveBuffer  = 4 << 20
)

// ServePacket answers announces and scrapes over UDP on c until Close, and closes c.
func (s *Server) ServePacket(c net.PacketConn) error {
	if !s.begin(c) {
		_ = c.Close()
		return nil
	}
	defer s.serving.Done()
	defer func() {
		s.mu.Lock()
		delete(s.packets, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	// Hundreds of peers announce in the same moment at the start. As much as the
	// kernel grants is as good as it gets.
	if b, ok := c.(interface{ SetReadBuffer(bytes int) error }); ok {
		_ = b.SetReadBuffer(receiveBuffer)
	}
	in, out := make([]byte, maxPacket), make([]byte, 0, maxPacket)
	for {
		n, addr, err := c.ReadFrom(in)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve tracker on %s: %w", c.LocalAddr(), err)
		}
		s.meter.received.Add(uint64(n))
		s.meter.messagesReceived.Add(1)
		udp, ok := addr.(*net.UDPAddr)
		if !ok || n == len(in) || s.isDown() {
			continue
		}
		out = s.handle(in[:n], udp.AddrPort(), out[:0])
		if len(out) == 0 {
			continue
		}
		// Counted before: whoever has the answer may ask for the count at once.
		s.meter.sent.Add(uint64(len(out)))
		s.meter.messagesSent.Add(1)
		if _, err := c.WriteTo(out, addr); err != nil {
			s.meter.sent.Add(-uint64(len(out)))
			s.meter.messagesSent.Add(^uint64(0))
			s.log.Debug("answer over udp", "to", addr, "err", err)
		}
	}
}

// handle appends the answer to a packet to out, nothing if it deserves none. No
// answer to somebody whose address is not proven is longer than what it answers.
func (s *Server) handle(in []byte, from netip.AddrPort, out []byte) []byte {
	if len(in) < connectBytes {
		return out
	}
	from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	action, transaction := binary.BigEndian.Uint32(in[8:]), in[12:16]
	head := func(action uint32) []byte {
		return append(binary.BigEndian.AppendUint32(out, action), transaction...)
	}
	step := int64(time.Since(s.began) / connectionStep)
	if action == actionConnect {
		if binary.BigEndian.Uint64(in) != protocolID {
			return out
		}
		return binary.BigEndian.AppendUint64(head(actionConnect), s.connectionID(from, step))
	}
	refuse := func(err error) []byte {
		s.log.Debug("refused over udp", "from", from, "reason", err)
		return append(head(actionError), err.Error()...)
	}
	known := false
	for age := range int64(connectionAge + 1) {
		known = known || hmac.Equal(in[:8], binary.BigEndian.AppendUint64(nil, s.connectionID(from, step-age)))
	}
	if !known {
		if len(in) < connectBytes+20 {
			return out
		}
		return refuse(errors.New("connect again"))
	}
	switch action {
	case actionAnnounce:
		if len(in) < announceBytes {
			return refuse(fmt.Errorf("an announce of %d bytes, want %d", len(in), announceBytes))
		}
		a, path, err := parseAnnounce(in, from)
		if err == nil {
			err = s.authorizedPath(path)
		}
		if err != nil {
			return refuse(err)
		}
		size := 6
		if from.Addr().Is6() {
			size = 18
		}
		a.want = min(a.want, (maxAnswerBytes-announceReplyBytes)/size)
		var space [maxWant]netip.AddrPort
		peers, c, err := s.registry.announce(a, space[:0])
		if err != nil {
			return refuse(err)
		}
		answer := head(actionAnnounce)
		answer = binary.BigEndian.AppendUint32(answer, uint32(s.interval.Seconds()))
		answer = binary.BigEndian.AppendUint32(answer, uint32(c.leechers))
		answer = binary.BigEndian.AppendUint32(answer, uint32(c.seeders))
		return appendPeers(answer, peers, familyOf(from.Addr()))
	case actionScrape:
		hashes := in[connectBytes:]
		if len(hashes) == 0 || len(hashes)%20 != 0 || len(hashes)/20 > maxScrape {
			return refuse(fmt.Errorf("a scrape of %d bytes, want 16 and 20 for each of 1 to %d torrents", len(in), maxScrape))
		}
		// There is no place for a path in a scrape (BEP 41).
		if !s.authorized("") {
			return refuse(errors.New("scrape over http: udp has no place for the token"))
		}
		answer := head(actionScrape)
		for ; len(hashes) > 0; hashes = hashes[20:] {
			c, _, _ := s.registry.look([20]byte(hashes), false)
			answer = binary.BigEndian.AppendUint32(answer, uint32(c.seeders))
			answer = binary.BigEndian.AppendUint32(answer, uint32(c.completed))
			answer = binary.BigEndian.AppendUint32(answer, uint32(c.leechers))
		}
		return answer
	}
	return refuse(fmt.Errorf("action %d is not known", action))
}

// connectionID proves that who sends it gets what is sent to the address. It
// follows from address and time, so that strangers cost the server no memory.
//
// The port is not part of it, and all loopback addresses are one: libtorrent keeps
// one id per tracker for all sockets of its process, whatever they are bound to,
// and nobody but the machine itself can send from loopback.
func (s *Server) connectionID(from netip.AddrPort, step int64) uint64 {
	mac := hmac.New(sha256.New, s.secret[:])
	var in [24]byte
	if !from.Addr().IsLoopback() {
		addr := from.Addr().As16()
		copy(in[:], addr[:])
	}
	binary.BigEndian.PutUint64(in[16:], uint64(step))
	mac.Write(in[:])
	return binary.BigEndian.Uint64(mac.Sum(nil))
}

// authorizedPath checks the path of an announce URL. Many clients send none, and
// need none as long as there is no token.
func (s *Server) authorizedPath(path string) error {
	path, _, _ = strings.Cut(path, "?")
	token, what := splitPath(path)
	if what == "" && path != "" && path != "/" || !s.authorized(token) {
		return errors.New("wrong token")
	}
	return nil
}

// parseAnnounce reads an announce of at least announceBytes, and the path in its options.
func parseAnnounce(in []byte, from netip.AddrPort) (a announcement, path string, err error) {
	a = announcement{
		infoHash:  [20]byte(in[16:36]),
		peerID:    [20]byte(in[36:56]),
		left:      int64(binary.BigEndian.Uint64(in[64:])),
		event:     event(binary.BigEndian.Uint32(in[80:])),
		want:      wanted(int64(int32(binary.BigEndian.Uint32(in[92:])))),
		oneFamily: true,
	}
	if a.left < 0 {
		a.left = math.MaxInt64 // not known to a peer that has no torrent file yet
	}
	if a.event > eventStopped {
		return a, "", fmt.Errorf("event %d is not known", a.event)
	}
	ip := from.Addr()
	if said := netip.AddrFrom4([4]byte(in[84:88])); ip.Is4() && trusted(ip) && !said.IsUnspecified() {
		ip = said
	}
	a.addr = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(in[96:]))
	if err := checkAddr(a.addr); err != nil {
		return a, "", err
	}
	path, err = parseOptions(in[announceBytes:])
	return a, path, err
}

// parseOptions puts together the path that follows an announce in parts of up to
// 255 bytes. Options that are not known are passed over.
func parseOptions(in []byte) (string, error) {
	var path []byte
	for len(in) > 0 {
		switch in[0] {
		case optionEnd:
			return string(path), nil
		case optionNop:
			in = in[1:]
			continue
		}
		if len(in) < 2 || len(in) < 2+int(in[1]) {
			return "", errors.New("an option ends in the middle")
		}
		end := 2 + int(in[1])
		if in[0] == optionURLData {
			path = append(path, in[2:end]...)
		}
		in = in[end:]
	}
	return string(path), nil
}
