package peer

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// stranger is another side of a connection to a peer, by hand.
type stranger struct {
	net.Conn
	r *bufio.Reader
}

func meet(t testing.TB, r *rig, p *Peer) *stranger {
	t.Helper()
	c, err := net.Dial("tcp", p.self.String())
	if err != nil {
		t.Fatal(err)
	}
	hello := wire.Hello{InfoHash: r.torrent.InfoHash, ID: [20]byte{1, 2, 3}}
	hello.SetFast()
	if _, err := c.Write(hello.Append(nil)); err != nil {
		t.Fatal(err)
	}
	s := &stranger{c, bufio.NewReader(c)}
	if _, err := io.CopyN(io.Discard, s.r, wire.HandshakeSize); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stranger) say(t testing.TB, messages ...wire.Message) {
	t.Helper()
	var b []byte
	for _, m := range messages {
		b = m.Append(b)
	}
	if _, err := s.Write(b); err != nil {
		t.Fatal(err)
	}
}

// next is the other's next message that is not a keep-alive.
func (s *stranger) next() (wire.Message, error) {
	for {
		var head [4]byte
		if _, err := io.ReadFull(s.r, head[:]); err != nil {
			return wire.Message{}, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 {
			continue
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(s.r, body); err != nil {
			return wire.Message{}, err
		}
		return wire.Parse(body[0], body[1:])
	}
}

// TestUnruly has a seeder that answers in any order, in parts of any size, with
// other messages between: nothing that is expected comes as expected.
func TestUnruly(t *testing.T) {
	for seed := range uint64(8) {
		ctx := deadline(t, 20*time.Second)
		r := newRig(t, 3_000_000, 64<<10)
		leecher := r.add(false, nil)
		r.start(ctx)
		s := meet(t, r, leecher)
		random := rand.New(rand.NewPCG(seed, 1))
		s.say(t, wire.Message{ID: wire.IDHaveAll}, wire.Message{ID: wire.IDUnchoke})
		asked := make(chan wire.Message, 4096)
		go func() {
			defer close(asked)
			for {
				m, err := s.next()
				if err != nil {
					return
				}
				if m.ID == wire.IDRequest {
					asked <- m
				}
			}
		}()
		go func() {
			var queue []wire.Message
			for m := range asked {
				queue = append(queue, m)
				for more := true; more && len(queue) < 40; {
					select {
					case m, open := <-asked:
						if more = open; open {
							queue = append(queue, m)
						}
					default:
						more = false
					}
				}
				if random.IntN(3) == 0 {
					random.Shuffle(len(queue), func(i, j int) { queue[i], queue[j] = queue[j], queue[i] })
				}
				var b []byte
				for _, m := range queue {
					switch random.IntN(8) {
					case 0:
						b = append(b, 0, 0, 0, 0)
					case 1:
						have := wire.Message{ID: wire.IDHave, Index: m.Index}
						b = have.Append(b)
					case 2:
						unknown := wire.Message{ID: 77, Bits: make([]byte, random.IntN(5000))}
						b = unknown.Append(b)
					}
					header := make([]byte, wire.PieceHeaderSize)
					wire.PutPieceHeader(header, m.Index, m.Begin, int(m.Length))
					at := int64(m.Index)*r.torrent.PieceLength + int64(m.Begin)
					b = append(append(b, header...), r.content[at:at+int64(m.Length)]...)
				}
				queue = queue[:0]
				for len(b) > 0 {
					n := min(len(b), 1+random.IntN(60_000))
					if _, err := s.Write(b[:n]); err != nil {
						return
					}
					b = b[n:]
				}
			}
		}()
		reports := r.finish(ctx)
		if w := reports[0].Wire.Received[wire.Payload].Bytes; w != 3_000_000 {
			t.Errorf("seed %d: %d bytes of content received", seed, w)
		}
		_ = s.Close()
	}
}

// TestRefusedRest has a seeder that chokes and refuses all of a piece but the
// block that it is sending: the rest is asked for again.
func TestRefusedRest(t *testing.T) {
	ctx := deadline(t, 20*time.Second)
	r := newRig(t, 64<<10, 64<<10)
	leecher := r.add(false, nil)
	r.start(ctx)
	s := meet(t, r, leecher)
	defer func() { _ = s.Close() }()
	s.say(t, wire.Message{ID: wire.IDHaveAll}, wire.Message{ID: wire.IDUnchoke})
	request := func() wire.Message {
		t.Helper()
		if err := s.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := s.next()
			if err != nil {
				t.Fatal(err)
			}
			if m.ID == wire.IDRequest {
				return m
			}
		}
	}
	send := func(m wire.Message) {
		t.Helper()
		header := make([]byte, wire.PieceHeaderSize)
		wire.PutPieceHeader(header, m.Index, m.Begin, int(m.Length))
		if _, err := s.Write(append(header, r.content[m.Begin:m.Begin+m.Length]...)); err != nil {
			t.Fatal(err)
		}
	}
	first := request()
	s.say(t, wire.Message{ID: wire.IDChoke})
	for range 3 {
		m := request()
		s.say(t, wire.Message{ID: wire.IDReject, Index: m.Index, Begin: m.Begin, Length: m.Length})
	}
	send(first)
	s.say(t, wire.Message{ID: wire.IDUnchoke})
	for range 3 {
		send(request())
	}
	r.finish(ctx)
}

// checkBooks looks whether the peer's accounts of itself agree; nobody may be
// connected.
func checkBooks(t *testing.T, p *Peer) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	unpicked := 0
	for i := range p.pieces {
		pc := &p.pieces[i]
		if pc.available != 0 || len(pc.owners) != 0 {
			t.Errorf("piece %d: %d have it, %d are asked for it, but nobody is there", i, pc.available, len(pc.owners))
		}
		if pc.state == lacking || pc.state == active {
			unpicked++
		}
		for b, state := range pc.blocks {
			if state == blockReceiving {
				t.Errorf("piece %d: block %d is being received", i, b)
			}
		}
	}
	if p.inFlight != 0 || unpicked != p.unpicked {
		t.Errorf("%d bytes under way, %d pieces free of %d counted", p.inFlight, unpicked, p.unpicked)
	}
}

// FuzzConnection sends a leecher and a seeder whatever comes: neither may fall,
// nor lose count, nor take anything for verified that is not.
func FuzzConnection(f *testing.F) {
	have := wire.Message{ID: wire.IDHaveAll}
	unchoke := wire.Message{ID: wire.IDUnchoke}
	request := wire.Message{ID: wire.IDRequest, Index: 1, Length: 16 << 10}
	header := make([]byte, wire.PieceHeaderSize)
	wire.PutPieceHeader(header, 1, 0, 600)
	start := unchoke.Append(have.Append(nil))
	f.Add(start)
	f.Add(append(append(start, header...), make([]byte, 700)...))
	f.Add(append(append(start, header...), 1, 2, 3))
	f.Add(request.Append(start))
	f.Add([]byte{0, 0, 0, 3, wire.IDBitfield, 0xff, 0xff})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 9})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		r := newRig(t, 16<<10+600, 16<<10)
		r.add(true, nil)
		r.add(false, nil)
		for _, p := range r.peers {
			p.opt.Announce = nil
			p.Start(ctx)
			s := meet(t, r, p)
			go func() { _, _ = io.Copy(io.Discard, s.r) }()
			_, _ = s.Write(data)
			_ = s.Conn.(*net.TCPConn).CloseWrite()
			await(t, ctx, func() bool { return p.Progress().Connected == 0 && p.Report().Connections > 0 })
			checkBooks(t, p)
			p.Kill()
			<-p.Done()
		}
		if have := r.peers[1].Report().Have; have != 0 {
			t.Errorf("%d bytes verified of what came by chance", have)
		}
	})
}
