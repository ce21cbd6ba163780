package tracker

import (
	"fmt"
	"net/netip"
	"testing"
)

// One announce over loopback, connecting included.
func BenchmarkAnnounce(b *testing.B) {
	for _, protocol := range []string{"http", "udp"} {
		b.Run(protocol, func(b *testing.B) {
			_, urls := start(b, Options{Token: "token"}, "127.0.0.1")
			c := new(Client)
			r := Request{InfoHash: torrentA, PeerID: name20("p", 1), Port: 1, Left: 1, Event: "started"}
			for b.Loop() {
				if _, err := c.Announce(b.Context(), urls[protocol], r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What an announce costs in swarms of different sizes.
func BenchmarkRegistry(b *testing.B) {
	for _, peers := range []int{10, 1000, 50_000} {
		b.Run(fmt.Sprint(peers), func(b *testing.B) {
			s, err := NewServer(Options{})
			if err != nil {
				b.Fatal(err)
			}
			announcement := func(i int) announcement {
				return announcement{
					infoHash: torrentA, peerID: name20("p", i%peers), left: 1, want: 50,
					addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(i % peers >> 16), byte(i % peers >> 8), byte(i % peers)}), 1),
				}
			}
			var space [maxWant]netip.AddrPort
			for i := range peers {
				if _, _, err := s.registry.announce(announcement(i), space[:0]); err != nil {
					b.Fatal(err)
				}
			}
			i := 0
			for b.Loop() {
				i++
				if _, _, err := s.registry.announce(announcement(i), space[:0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
