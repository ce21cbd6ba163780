package packet

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
)

func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEngine sends b.N probes over loopback at 10,000 a second, from one
// flow, from 10,000 flows, and as STAMP (whose CPU has the reflector's in it).
// cores is the process's CPU time by the time passed.
func BenchmarkEngine(b *testing.B) {
	const rate = 10_000
	for _, c := range []struct {
		protocol string
		flows    int
	}{{schemas.ProtocolICMP, 1}, {schemas.ProtocolICMP, 10_000}, {schemas.ProtocolUDP, 100}} {
		b.Run(fmt.Sprintf("%s/flows=%d", c.protocol, c.flows), func(b *testing.B) {
			o := Options{Interval: time.Second / rate * time.Duration(c.flows), Timeout: 200 * time.Millisecond, Payload: 56}
			dst := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0)
			if c.protocol == schemas.ProtocolUDP {
				r, err := NewReflector(netip.MustParseAddrPort("127.0.0.1:0"), nil)
				if err != nil {
					b.Fatal(err)
				}
				r.SetKey(nil)
				ctx, cancel := context.WithCancel(b.Context())
				done := make(chan error, 1)
				go func() { done <- r.Run(ctx) }()
				defer func() {
					cancel()
					if err := <-done; err != nil {
						b.Error(err)
					}
					if err := r.Close(); err != nil {
						b.Error(err)
					}
				}()
				dst = netip.AddrPortFrom(dst.Addr(), r.Port())
			}
			flows := make([]Flow, c.flows)
			for i := range flows {
				count := b.N / c.flows
				if i < b.N%c.flows {
					count++
				}
				flows[i] = Flow{ID: i, Protocol: c.protocol, Dst: dst, Count: count, Phase: time.Duration(i) * time.Second / rate}
			}
			e, err := NewEngine(o, flows)
			if err != nil {
				b.Fatal(err)
			}
			rtt := hdrhistogram.New(1, int64(time.Second), 3)
			lost, stamped := 0, 0
			b.ReportAllocs()
			b.ResetTimer()
			used, start := cpu(b), time.Now()
			acc, err := e.Run(b.Context(), start, func(r *Result) {
				if r.Status != schemas.StatusOK {
					lost++
					return
				}
				if r.Stamps == StampTransmit|StampReceive {
					stamped++
				}
				if err := rtt.RecordValue(int64(r.RTT)); err != nil {
					b.Error(err)
				}
			})
			wall := time.Since(start)
			used = cpu(b) - used
			b.StopTimer()
			if err != nil {
				b.Fatal(err)
			}
			if err := e.Close(); err != nil {
				b.Fatal(err)
			}
			_, p99, most := e.Lag()
			b.ReportMetric(used.Seconds()/wall.Seconds(), "cores")
			b.ReportMetric(float64(rtt.ValueAtQuantile(50))/1e3, "p50-µs")
			b.ReportMetric(float64(rtt.ValueAtQuantile(99))/1e3, "p99-µs")
			b.ReportMetric(float64(p99)/1e3, "lag-p99-µs")
			b.ReportMetric(float64(most)/1e3, "lag-max-µs")
			b.ReportMetric(float64(lost), "lost")
			b.ReportMetric(float64(b.N-lost-stamped), "unstamped")
			if acc.Issued != uint64(b.N) {
				b.Errorf("%d issued, want %d", acc.Issued, b.N)
			}
		})
	}
}
