package interop

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
	"github.com/transferlab/transferlab/services/swarmrunner/peer"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// TestTheyLeech has each of the others get the file from a seeder of ours that
// our tracker told it of, by a torrent file of ours.
func TestTheyLeech(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		for _, protocol := range []string{transport.ProtocolUDP, "http"} {
			if protocol == transport.ProtocolUDP && !k.udp {
				continue
			}
			t.Run(k.name+"/"+protocol, func(t *testing.T) {
				s := newSwarm(t)
				if protocol == transport.ProtocolUDP && k.plain {
					s.admit("")
				}
				seeder := s.ours(how{seed: true})
				s.await(1)
				url := s.url
				if protocol == transport.ProtocolUDP {
					url = s.udp
				}
				k.start(s, false, url).finish()
				if sent := seeder.leave().Wire.Sent[wire.Payload].Bytes; sent < size {
					t.Errorf("sent %d bytes of content", sent)
				}
			})
		}
	}
}

// TestTheySeed has a leecher of ours get the file from each of the others, which
// has it by a torrent file of its own making where it makes any.
func TestTheySeed(t *testing.T) {
	t.Parallel()
	makers := map[string]func(s *swarm, to string) (infoHash string){
		"libtorrent": func(s *swarm, to string) string {
			return output(s.t, python(s.t, "create", s.file, fmt.Sprint(piece), to)...)
		},
		"transmission": func(s *swarm, to string) string {
			output(s.t, "transmission-create", "--piecesize", fmt.Sprint(piece>>10), "--outfile", to, s.file)
			_, after, _ := strings.Cut(output(s.t, "transmission-show", to), "Hash: ")
			return strings.Fields(after + " none")[0]
		},
	}
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			s := newSwarm(t)
			if made, ok := makers[k.name]; ok {
				file := filepath.Join(s.dir, "theirs.torrent")
				hash := made(s, file)
				raw, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				theirs, err := metainfo.Parse(raw)
				if err != nil {
					t.Fatal(err)
				}
				if hex.EncodeToString(theirs.InfoHash[:]) != hash {
					t.Fatalf("info hash %x, which %s has as %s", theirs.InfoHash, k.name, hash)
				}
				if theirs.Length != size || theirs.PieceLength != piece || string(theirs.Hashes) != string(s.torrent.Hashes) {
					t.Fatalf("read %+v, made %+v", theirs, s.torrent)
				}
				s.torrent = theirs
			}
			k.start(s, true, s.url)
			s.await(1)
			// Transmission answers what it is asked twice a second: too seldom for
			// what our leecher asks ahead by itself.
			s.ours(how{window: 1 << 20}).finish()
		})
	}
}

// TestMixed is one swarm of all kinds, in which one seeder alone would take long.
func TestMixed(t *testing.T) {
	s := newSwarm(t)
	seeder := s.ours(how{seed: true, upload: 2 * size / 3})
	s.await(1)
	var others []*other
	for _, k := range kinds() {
		others = append(others, k.start(s, false, s.url))
	}
	leecher := s.ours(how{udp: true})
	// It stays until all have everything.
	leecher.complete()
	for _, o := range others {
		o.finish()
	}
	got, fed := leecher.leave(), seeder.leave()
	fromOthers := 0
	for _, p := range got.Pieces {
		if p.From.Addr() != seeder.endpoint.Addr().Addr() {
			fromOthers++
		}
	}
	t.Logf("our leecher: %v, %d of %d pieces from others, sent %d bytes of content; our seeder sent %d",
		got.Completed.Sub(got.Begun).Round(time.Millisecond), fromOthers, len(got.Pieces), got.Wire.Sent[wire.Payload].Bytes, fed.Wire.Sent[wire.Payload].Bytes)
	if fromOthers == 0 && got.Wire.Sent[wire.Payload].Bytes == 0 {
		t.Error("our leecher neither got anything from the others nor gave them anything")
	}
}

// Settings of libtorrent.
const (
	forced  = 0 // policies of encryption
	never   = 2
	onlyRC4 = 2 // levels of it
)

// TestEncrypted is about who agrees on what encryption, and that content comes
// through it, whoever connected.
func TestEncrypted(t *testing.T) {
	t.Parallel()
	libtorrent := func(policy int) func(*swarm, bool) *other {
		return func(s *swarm, seed bool) *other {
			return s.libtorrent(seed, s.url, 0, map[string]any{"out_enc_policy": policy, "in_enc_policy": policy, "allowed_enc_level": onlyRC4})
		}
	}
	aria2 := func(args ...string) func(*swarm, bool) *other {
		return func(s *swarm, seed bool) *other { return s.aria2(seed, s.url, args...) }
	}
	for _, c := range []struct {
		name   string
		policy string
		start  func(*swarm, bool) *other
		// Whether there is an agreement at all when we connect, and when they do:
		// that on plain text is one, too.
		weConnect, theyConnect bool
	}{
		{"libtorrent forced", transport.EncryptionRequire, libtorrent(forced), true, true},
		{"libtorrent forced", transport.EncryptionPrefer, libtorrent(forced), true, true},
		{"libtorrent never", transport.EncryptionPrefer, libtorrent(never), false, false},
		{"aria2 forced", transport.EncryptionRequire, aria2("--bt-force-encryption"), true, true},
		// It agrees on plain text where it has the choice, and never goes without.
		{"aria2 plain", transport.EncryptionPrefer, aria2("--bt-min-crypto-level=plain", "--bt-require-crypto=false"), true, true},
	} {
		check := func(t *testing.T, report peer.Report, want bool) {
			t.Helper()
			if n := report.Wire.Received[wire.Encryption].Bytes; n > 0 != want {
				t.Errorf("%d bytes of agreements on encryption received, want any: %v", n, want)
			}
		}
		t.Run(c.name+"/"+c.policy+"/we connect", func(t *testing.T) {
			s := newSwarm(t)
			c.start(s, true)
			s.await(1)
			check(t, s.ours(how{encryption: c.policy}).finish(), c.weConnect)
		})
		t.Run(c.name+"/"+c.policy+"/they connect", func(t *testing.T) {
			s := newSwarm(t)
			m := s.ours(how{seed: true, encryption: c.policy})
			s.await(1)
			c.start(s, false).finish()
			check(t, m.leave(), c.theyConnect)
		})
	}
}

// TestUTP has libtorrent without TCP, in both directions.
func TestUTP(t *testing.T) {
	t.Parallel()
	only := map[string]any{"enable_incoming_tcp": false, "enable_outgoing_tcp": false, "enable_outgoing_utp": true}
	check := func(t *testing.T, m *mine) {
		t.Helper()
		if m.leave(); m.endpoint.Datagrams().Sent == 0 || m.endpoint.Usage().TCP.Connections > 0 {
			t.Errorf("%+v", m.endpoint.Usage())
		}
	}
	t.Run("we connect", func(t *testing.T) {
		s := newSwarm(t)
		s.libtorrent(true, s.url, 0, only)
		s.await(1)
		m := s.ours(how{protocol: transport.ProtocolUTP})
		m.finish()
		check(t, m)
	})
	t.Run("they connect", func(t *testing.T) {
		s := newSwarm(t)
		m := s.ours(how{seed: true, protocol: transport.ProtocolUTP})
		s.await(1)
		s.libtorrent(false, s.url, 0, only).finish()
		check(t, m)
	})
}

// TestChoking has more who want than slots, so that they are choked and unchoked
// in the middle of what they have asked for.
func TestChoking(t *testing.T) {
	t.Parallel()
	const upload = 2 << 20
	t.Run("libtorrent chokes", func(t *testing.T) {
		s := newSwarm(t)
		seeder := s.libtorrent(true, s.url, upload, map[string]any{
			"unchoke_slots_limit": 1, "choking_algorithm": 0, "unchoke_interval": 1, "optimistic_unchoke_interval": 1,
		})
		s.await(1)
		// They do not know of each other.
		var leechers []*mine
		for range 3 {
			leechers = append(leechers, s.ours(how{told: []netip.AddrPort{seeder.address()}}))
		}
		chokes, rejects := uint64(0), uint64(0)
		for _, m := range leechers {
			w := m.finish().Wire
			chokes += w.Received[wire.Choke].Messages
			rejects += w.Received[wire.Reject].Messages
		}
		t.Logf("%d chokes, %d rejects", chokes, rejects)
		if chokes == 0 {
			t.Error("nobody was ever choked")
		}
	})
	t.Run("we choke", func(t *testing.T) {
		s := newSwarm(t)
		seeder := s.ours(how{seed: true, slots: 1, upload: upload})
		s.await(1)
		var leechers []*other
		for range 3 {
			leechers = append(leechers, s.libtorrent(false, s.url, 0, nil))
		}
		for _, o := range leechers {
			o.finish()
		}
		w := seeder.leave().Wire
		// With one slot it stays with who takes most, and is free when that one has
		// everything: what the others lack by then they have from it.
		if n := w.Sent[wire.Unchoke].Messages; n == 0 || w.Sent[wire.Payload].Bytes < size {
			t.Errorf("%d unchokes, %d bytes of content sent", n, w.Sent[wire.Payload].Bytes)
		}
	})
}
