//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/pace"
)

// oneWay sends n packets from a to b at a rate and gives how long each took, by
// the kernels' stamps.
func oneWay(a, b *Node, n int, perSecond float64, patience time.Duration) ([]time.Duration, error) {
	x, err := gateSocket(a)
	if err != nil {
		return nil, err
	}
	defer func() { _ = x.Close() }()
	y, err := gateSocket(b)
	if err != nil {
		return nil, err
	}
	defer func() { _ = y.Close() }()
	const stamps = unix.SOF_TIMESTAMPING_TX_SOFTWARE | unix.SOF_TIMESTAMPING_SOFTWARE | unix.SOF_TIMESTAMPING_OPT_ID | unix.SOF_TIMESTAMPING_OPT_TSONLY
	if err := errors.Join(setOption(x, unix.SO_RCVBUFFORCE, 256<<20), setOption(y, unix.SO_RCVBUFFORCE, 64<<20),
		setOption(x, unix.SO_TIMESTAMPING, stamps), setOption(y, unix.SO_TIMESTAMPNS, 1)); err != nil {
		return nil, err
	}
	arrived := make([]int64, n)
	done := make(chan error, 1)
	go func() {
		missing := n
		done <- receive(y, func(seq int, at int64, _ []byte) bool {
			if seq < n && arrived[seq] == 0 {
				arrived[seq] = at
				missing--
			}
			return missing > 0
		})
	}()
	sleeper := pace.NewSleeper(true)
	defer func() { _ = sleeper.Close() }()
	to := y.LocalAddr().(*net.UDPAddr).AddrPort()
	begin := time.Now()
	var payload [64]byte
	for i := range n {
		sleeper.Until(begin.Add(time.Duration(float64(i) / perSecond * 1e9)))
		binary.BigEndian.PutUint64(payload[:], uint64(i))
		if _, err := x.WriteToUDPAddrPort(payload[:], to); err != nil {
			return nil, err
		}
	}
	_ = y.SetReadDeadline(time.Now().Add(patience))
	if err := <-done; err != nil {
		return nil, err
	}
	sent, err := sentStamps(x, n)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for i := range n {
		if sent[i] != 0 && arrived[i] != 0 {
			took = append(took, time.Duration(arrived[i]-sent[i]))
		}
	}
	return took, nil
}

// bulk keeps a TCP connection from one node to another busy until stop is
// called, which gives the bytes that arrived.
func bulk(a, b *Node) (stop func() int64, err error) {
	var ln net.Listener
	if err := b.Do(func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(b.Addr4.String(), "0"))
		return err
	}); err != nil {
		return nil, err
	}
	defer func() { _ = ln.Close() }()
	var out net.Conn
	if err := a.Do(func() (err error) {
		out, err = net.Dial("tcp", ln.Addr().String())
		return err
	}); err != nil {
		return nil, err
	}
	in, err := ln.Accept()
	if err != nil {
		return nil, err
	}
	received := make(chan int64, 1)
	go func() {
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{in}, make([]byte, 1<<20))
		_ = in.Close()
		received <- n
	}()
	go func() {
		buf := make([]byte, 256<<10)
		for {
			if _, err := out.Write(buf); err != nil {
				return
			}
		}
	}()
	return func() int64 { _ = out.Close(); return <-received }, nil
}

// BenchmarkDelay gives by how much one-way delays are beyond the 10 ms set, at
// several loads: from the sending kernel's stamp to the receiving one's.
func BenchmarkDelay(b *testing.B) {
	for _, c := range []struct {
		perSecond float64
		bulk      schemas.BitRate
	}{{100, 0}, {1000, 0}, {10_000, 0}, {50_000, 0}, {1000, 100e6}, {1000, 1e9}} {
		name := fmt.Sprintf("%.0f packets a second", c.perSecond)
		if c.bulk > 0 {
			name += " beside TCP at " + c.bulk.String()
		}
		b.Run(name, func(b *testing.B) {
			l := startTopology(b, schemas.Topology{
				Sites: map[string]schemas.Link{"east": {}, "west": {}, "north": {}, "south": {}},
				Links: []schemas.SiteLink{
					{A: "east", B: "west", Link: schemas.Link{RTT: ms(20)}},
					{A: "north", B: "south", Link: schemas.Link{RTT: ms(20), Rate: max(c.bulk, 8000)}},
				},
			}, NodeSpec{"a", "east"}, NodeSpec{"b", "west"}, NodeSpec{"c", "north"}, NodeSpec{"d", "south"})
			if c.bulk > 0 {
				stop, err := bulk(l.must(b, "c"), l.must(b, "d"))
				if err != nil {
					b.Fatal(err)
				}
				defer stop()
			}
			s0, err := l.Stats(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			begin := time.Now()
			took, err := oneWay(l.must(b, "a"), l.must(b, "b"), b.N, c.perSecond, time.Second)
			if err != nil {
				b.Fatal(err)
			}
			elapsed := time.Since(begin)
			s1, err := l.Stats(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			slices.Sort(took)
			at := func(q float64) float64 {
				if len(took) == 0 {
					return -1
				}
				return float64(took[int(q*float64(len(took)-1))]-10*time.Millisecond) / 1e3
			}
			b.ReportMetric(at(0.5), "p50-late-µs")
			b.ReportMetric(at(0.99), "p99-late-µs")
			b.ReportMetric(at(1), "max-late-µs")
			b.ReportMetric(float64(s1.CPUNanos-s0.CPUNanos)/float64(elapsed)*100, "relay-CPU-%")
			b.ReportMetric(float64(b.N-len(took)), "unstamped")
		})
	}
}

// BenchmarkPingPong is a UDP round trip over a link without delay, by the
// programs' clocks, and over the host's loopback for comparison.
func BenchmarkPingPong(b *testing.B) {
	pingPong := func(b *testing.B, x, y *net.UDPConn) {
		go func() {
			buf := make([]byte, 100)
			for {
				n, from, err := y.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = y.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
		buf := make([]byte, 64)
		to := y.LocalAddr().(*net.UDPAddr).AddrPort()
		took := make([]time.Duration, 0, 1<<20)
		for b.Loop() {
			begin := time.Now()
			if _, err := x.WriteToUDPAddrPort(buf, to); err != nil {
				b.Fatal(err)
			}
			if _, _, err := x.ReadFromUDPAddrPort(buf); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100])/1e3, "p99-µs")
	}
	b.Run("link", func(b *testing.B) {
		l := start(b, schemas.Link{})
		pingPong(b, bound(b, l.must(b, "a"), false), bound(b, l.must(b, "b"), false))
	})
	b.Run("loopback", func(b *testing.B) {
		var c [2]*net.UDPConn
		for i := range c {
			var err error
			if c[i], err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c[i].Close() }()
		}
		pingPong(b, c[0], c[1])
	})
}

// BenchmarkTCP is the throughput of one connection over one link, 1 MiB an
// operation.
func BenchmarkTCP(b *testing.B) {
	for _, c := range []struct {
		name string
		link schemas.Link
	}{
		{"unlimited", schemas.Link{}},
		{"1ms", schemas.Link{RTT: ms(1)}},
		{"20ms,jitter", schemas.Link{RTT: ms(20), Jitter: ms(0.1)}},
		{"1gbit", schemas.Link{Rate: 1e9}},
		{"2gbit,1ms", schemas.Link{Rate: 2e9, RTT: ms(1)}},
		{"1ms,loss", schemas.Link{RTT: ms(1), Loss: 0.00001}},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := start(b, c.link)
			x, y := l.must(b, "a"), l.must(b, "b")
			var ln net.Listener
			if err := y.Do(func() (err error) {
				ln, err = net.Listen("tcp", net.JoinHostPort(y.Addr4.String(), "0"))
				return err
			}); err != nil {
				b.Fatal(err)
			}
			var out net.Conn
			if err := x.Do(func() (err error) {
				out, err = net.Dial("tcp", ln.Addr().String())
				return err
			}); err != nil {
				b.Fatal(err)
			}
			in, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			const chunk = 1 << 20
			b.SetBytes(chunk)
			b.ResetTimer()
			begin := time.Now()
			go func() {
				buf := make([]byte, chunk)
				for range b.N {
					if _, err := out.Write(buf); err != nil {
						b.Error(err)
						break
					}
				}
				_ = out.Close()
			}()
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{in}, make([]byte, chunk)); err != nil {
				b.Fatal(err)
			}
			elapsed := time.Since(begin)
			b.ReportMetric(float64(b.N)*chunk*8/1e9/elapsed.Seconds(), "Gbit/s")
			s, err := l.Stats(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(s.CPUNanos)/float64(elapsed)*100, "relay-CPU-%")
			b.ReportMetric(float64(s.Links[0].LateP99)/1e3, "p99-late-µs")
		})
	}
}
