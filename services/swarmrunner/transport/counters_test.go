package transport

import (
	"math"
	"testing"
)

const devText = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
  tl0:2000      20    0    0    0     0          0         0     300      30    0    0    0     0       0          0
  eth0: 5      1    0    0    0     0          0         0     700      7    0    0    0     0       0          0
`

const snmpText = `Ip: Forwarding DefaultTTL
Ip: 2 64
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails
Tcp: 1 200 120000 -1 17 4 2
Udp: InDatagrams
Udp: 1
`

func TestParseCounters(t *testing.T) {
	got, err := parseCounters([]byte(devText), []byte(snmpText), map[string]bool{"eth0": true, "lo": false})
	want := Counters{TxBytes: 2000, RxBytes: 3005, TxPackets: 47, RxPackets: 31, LinkHeaders: 98, Opens: 21}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, c := range [][2]string{
		{"", snmpText},
		{"a\nb\nlo: 1 2 3\n", snmpText},
		{"a\nb\nlo 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", snmpText},
		{"a\nb\nlo: 1 x 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", snmpText},
		{devText, ""},
		{devText, "Tcp: ActiveOpens PassiveOpens\nTcp: 1\n"},
		{devText, "Tcp: ActiveOpens\nTcp: 1\n"},
		{devText, "Tcp: ActiveOpens PassiveOpens\nTcp: 1 -1\n"},
	} {
		if _, err := parseCounters([]byte(c[0]), []byte(c[1]), nil); err == nil {
			t.Errorf("no error for %q", c)
		}
	}
}

func FuzzParseCounters(f *testing.F) {
	f.Add([]byte(devText), []byte(snmpText))
	f.Add([]byte("\n\n:"), []byte("Tcp:\nTcp:\n"))
	f.Fuzz(func(t *testing.T, dev, snmp []byte) {
		_, _ = parseCounters(dev, snmp, map[string]bool{"eth0": true})
		devices, err := parseDevices(dev)
		if (err == nil) == (len(devices) == 0) {
			t.Errorf("%d interfaces and %v", len(devices), err)
		}
	})
}

func TestReconcile(t *testing.T) {
	got := Reconcile(
		Counters{TxBytes: 1000, TxPackets: 10, Opens: 1},
		Counters{TxBytes: 101_000, TxPackets: 110, LinkHeaders: 1400, Opens: 3},
		Usage{
			TCP: SocketStats{Sent: 80_000, SentAgain: 1000, SegmentsOut: 90, HeaderOut: 90*72 + 2*8, Connections: 2},
			UDP: Datagrams{Sent: 10, SentBytes: 3000},
		})
	want := Account{Interface: 100_000, Sockets: 83_000, SentAgain: 1000, Headers: 10*48 + 90*72 + 2*8 + 1400}
	want.Unattributed = 100_000 - 83_000 - 1000 - want.Headers
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	nothing := Reconcile(Counters{}, Counters{TxBytes: 520, TxPackets: 10}, Usage{})
	if want := (Account{Interface: 520, Headers: 520}); nothing != want {
		t.Errorf("%+v, want %+v", nothing, want)
	}
	// More datagrams than packets: the counters were read too early.
	early := Reconcile(Counters{}, Counters{TxBytes: 56, TxPackets: 2}, Usage{UDP: Datagrams{Sent: math.MaxInt64}})
	if want := (Account{Interface: 56, Headers: 56}); early != want {
		t.Errorf("%+v, want %+v", early, want)
	}
}
