package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/pace"
)

const (
	// gateTries is how often a check is measured before it counts as failed:
	// other work on the machine disturbs single ones.
	gateTries = 3
	// gateParallel is how many links are measured at the same time.
	gateParallel = 32

	rttTolerance    = 0.02
	rttToleranceMin = 200 * time.Microsecond
	rateTolerance   = 0.03

	// rttProbes is how many are sent where a link neither loses nor spreads
	// them, rttProbesSpread where it spreads them, maxProbes the most where it
	// loses them.
	rttProbes, rttProbesSpread, maxProbes = 15, 40, 200
	// rttSending is how long probes are sent at most, unless that were fewer
	// than minProbes.
	rttSending = 800 * time.Millisecond
	minProbes  = 5

	// trainTime is how long a train of packets takes at the rate set.
	trainTime = 60 * time.Millisecond
	// slowRate and below, trains of several links do not disturb one another.
	slowRate = 20_000_000
)

// span is a link to measure and where from.
type span struct {
	name string
	link schemas.Link
	a, b *Node
}

// Gate measures what was set: the round trip of every link, and its rate in both
// directions where one is set, between the first nodes of its two sites (inside
// a site between its first two). Nothing else may use the links meanwhile. Links
// without a node at both ends are left out. A link that is not as set is a check
// with OK false; an error means that it could not be measured.
//
// The round trip is the median of UDP echoes by the kernels' own stamps: sent to
// received on the way there and on the way back, so that neither end's program
// counts; the time that the probe itself takes at the rate set is subtracted, and
// the share that is held back to be reordered does not count. It must hold
// within 2 % or 0.2 ms. Jitter of j spreads a round trip over ±2j in a triangle,
// whose sample median has the standard error j/√n: four of these are added to
// the tolerance. A rate must hold within 3 %, plus 2j over the time the train
// takes, since jitter moves its two ends.
func (l *Lab) Gate(ctx context.Context) ([]Check, error) {
	spans := l.spans()
	checks := make([]Check, len(spans))
	faults := make([]error, len(spans))
	slots := make(chan struct{}, gateParallel)
	var wait sync.WaitGroup
	for i, s := range spans {
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			checks[i], faults[i] = tries(ctx, s.measureRTT)
		})
	}
	wait.Wait()
	if err := errors.Join(append(faults, l.Err())...); err != nil {
		return nil, err
	}

	// Trains of slow links together, then those of fast ones one after the other.
	type train struct {
		span
		from, to *Node
	}
	var trains []train
	for _, s := range spans {
		if s.link.Rate > 0 {
			trains = append(trains, train{s, s.a, s.b}, train{s, s.b, s.a})
		}
	}
	rates := make([]Check, len(trains))
	faults = make([]error, len(trains))
	measure := func(i int) {
		t := trains[i]
		rates[i], faults[i] = tries(ctx, func(ctx context.Context) (Check, error) { return t.measureRate(ctx, t.from, t.to) })
	}
	for i, t := range trains {
		if t.link.Rate <= slowRate {
			wait.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				measure(i)
			})
		}
	}
	wait.Wait()
	for i, t := range trains {
		if t.link.Rate > slowRate {
			measure(i)
		}
	}
	return append(checks, rates...), errors.Join(append(faults, l.Err())...)
}

// spans lists links that have a node at both ends.
func (l *Lab) spans() []span {
	bySite := map[string][]*Node{}
	for _, n := range l.nodes {
		bySite[n.Site] = append(bySite[n.Site], n)
	}
	var spans []span
	for _, site := range slices.Sorted(maps.Keys(l.opts.Topology.Sites)) {
		if n := bySite[site]; len(n) > 1 {
			spans = append(spans, span{name: site, link: l.opts.Topology.Sites[site], a: n[0], b: n[1]})
		}
	}
	for _, s := range l.opts.Topology.Links {
		if a, b := bySite[s.A], bySite[s.B]; len(a) > 0 && len(b) > 0 {
			spans = append(spans, span{name: s.A + "-" + s.B, link: s.Link, a: a[0], b: b[0]})
		}
	}
	return spans
}

func tries(ctx context.Context, measure func(context.Context) (Check, error)) (Check, error) {
	for try := 1; ; try++ {
		c, err := measure(ctx)
		if err != nil {
			return c, err
		}
		c.Tries = try
		if c.OK || try == gateTries {
			if try > 1 {
				c.Text += fmt.Sprintf(" (measured %d times)", try)
			}
			return c, nil
		}
	}
}

// takes is how long a packet of size bytes takes at the link's rate.
func (s span) takes(size int) time.Duration {
	if s.link.Rate == 0 {
		return 0
	}
	return time.Duration(float64(size) * 8e9 / float64(s.link.Rate))
}

const (
	probePayload = 16
	probeSize    = 28 + probePayload
)

func (s span) measureRTT(ctx context.Context) (Check, error) {
	c := Check{Link: s.name, What: WhatRTT, Set: float64(s.link.RTT), Unit: "ns"}
	jitter := time.Duration(s.link.Jitter)
	n, spacing := rttProbes, max(2*time.Millisecond, 2*s.takes(probeSize))
	if jitter > 0 {
		// Closer ones would wait for each other, since they keep their order.
		n, spacing = rttProbesSpread, max(spacing, 2*jitter)
	}
	arriving := (1 - float64(s.link.Loss)) * (1 - float64(s.link.Loss))
	n = min(maxProbes, int(math.Ceil(float64(n)/arriving)))
	n = max(minProbes, min(n, int(rttSending/spacing)))
	patience := time.Duration(s.link.RTT) + 2*jitter + 4*s.takes(probeSize) + 250*time.Millisecond
	trips, err := roundTrips(ctx, s.a, s.b, n, spacing, patience)
	if err != nil {
		return c, fmt.Errorf("measure the round trip of %s: %w", s.name, err)
	}
	c.Samples = len(trips)
	c.Tolerance = max(rttTolerance*c.Set, float64(rttToleranceMin))
	if len(trips) == 0 {
		c.Text = fmt.Sprintf("%s: none of %d probes came back", s.name, n)
		return c, nil
	}
	if jitter > 0 {
		c.Tolerance += 4 * float64(jitter) / math.Sqrt(float64(len(trips)))
	}
	slices.Sort(trips)
	// Probes held back on purpose are all at the upper end.
	inTime := 1 + int(float64(len(trips)-1)*(1-float64(s.link.Reorder))*(1-float64(s.link.Reorder)))
	median := (trips[(inTime-1)/2] + trips[inTime/2]) / 2
	c.Measured = float64(median - 2*s.takes(probeSize))
	c.OK = math.Abs(c.Measured-c.Set) <= c.Tolerance
	c.Text = fmt.Sprintf("%s: rtt %s, set %s ± %s, %d of %d probes", s.name,
		time.Duration(c.Measured).Round(time.Microsecond), time.Duration(s.link.RTT),
		time.Duration(c.Tolerance).Round(time.Microsecond), len(trips), n)
	return c, nil
}

// gateSocket opens a UDP socket inside a node.
func gateSocket(n *Node) (*net.UDPConn, error) {
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: n.Addr4.AsSlice()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a socket in %s: %w", n.Name, err)
	}
	return c, nil
}

func setOption(c *net.UDPConn, option, value int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, value)
	}), err)
}

// roundTrips sends n probes from a to b and back and gives what each took,
// without the time between arrival and answer at b. Probes without a stamp
// (about one in 500) and those that did not come back are left out.
func roundTrips(ctx context.Context, a, b *Node, n int, spacing, patience time.Duration) (_ []time.Duration, err error) {
	var sockets [2]*net.UDPConn
	for i, node := range []*Node{a, b} {
		if sockets[i], err = gateSocket(node); err != nil {
			return nil, err
		}
		defer func() { _ = sockets[i].Close() }()
		const stamps = unix.SOF_TIMESTAMPING_RX_SOFTWARE | unix.SOF_TIMESTAMPING_TX_SOFTWARE | unix.SOF_TIMESTAMPING_SOFTWARE |
			unix.SOF_TIMESTAMPING_OPT_ID | unix.SOF_TIMESTAMPING_OPT_TSONLY
		if err := setOption(sockets[i], unix.SO_TIMESTAMPING, stamps); err != nil {
			return nil, fmt.Errorf("ask for time stamps: %w", err)
		}
	}
	x, y := sockets[0], sockets[1]
	to := y.LocalAddr().(*net.UDPAddr).AddrPort()
	deadline := time.Now().Add(time.Duration(n)*spacing + patience)
	if err := errors.Join(x.SetDeadline(deadline), y.SetDeadline(deadline)); err != nil {
		return nil, err
	}
	// A context that ends ends the reading.
	defer context.AfterFunc(ctx, func() { _ = x.SetDeadline(time.Unix(1, 0)); _ = y.SetDeadline(time.Unix(1, 0)) })()

	arrived, returned := make([]int64, n), make([]int64, n) // by probe, ns
	var answers []int                                       // probes that b answered, in order
	var wait sync.WaitGroup
	wait.Go(func() {
		_ = receive(y, func(seq int, at int64, payload []byte) bool {
			if seq >= n || arrived[seq] != 0 {
				return true
			}
			arrived[seq] = at
			if _, err := y.WriteToUDPAddrPort(payload, x.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
				return false
			}
			answers = append(answers, seq)
			return true
		})
	})
	wait.Go(func() {
		missing := n
		_ = receive(x, func(seq int, at int64, _ []byte) bool {
			if seq < n && returned[seq] == 0 {
				returned[seq] = at
				missing--
			}
			return missing > 0
		})
		// Nothing more to come: b need not wait either.
		_ = y.SetDeadline(time.Unix(1, 0))
	})
	sleeper := pace.NewSleeper(true)
	defer func() { _ = sleeper.Close() }()
	begin := time.Now()
	var payload [probePayload]byte
	for i := range n {
		sleeper.Until(begin.Add(time.Duration(i) * spacing))
		binary.BigEndian.PutUint64(payload[:], uint64(i))
		if _, e := x.WriteToUDPAddrPort(payload[:], to); e != nil {
			err = fmt.Errorf("send a probe: %w", e)
			_ = x.SetDeadline(time.Unix(1, 0))
			break
		}
	}
	wait.Wait()
	if err := errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	sentX, err := sentStamps(x, n)
	if err != nil {
		return nil, err
	}
	sentY, err := sentStamps(y, len(answers))
	if err != nil {
		return nil, err
	}
	var trips []time.Duration
	for i, seq := range answers {
		if sentX[seq] != 0 && sentY[i] != 0 && arrived[seq] != 0 && returned[seq] != 0 {
			trips = append(trips, time.Duration(arrived[seq]-sentX[seq]+returned[seq]-sentY[i]))
		}
	}
	return trips, nil
}

// receive calls f with every packet, its number and the kernel's stamp, until f
// is false or the socket's deadline passes.
func receive(c *net.UDPConn, f func(seq int, at int64, payload []byte) bool) error {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		n, oobn, _, _, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		at := time.Now().UnixNano()
		if stamp, _, ok := readStamp(oob[:oobn]); ok {
			at = stamp
		}
		if n >= 8 && !f(int(min(binary.BigEndian.Uint64(buf), math.MaxInt32)), at, buf[:n]) {
			return nil
		}
	}
}

// sentStamps reads when the kernel handed the first n packets of a socket to its
// device, in ns since 1970; 0 where there is no stamp.
func sentStamps(c *net.UDPConn, n int) ([]int64, error) {
	stamps := make([]int64, n)
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	oob := make([]byte, 512)
	err = raw.Control(func(fd uintptr) {
		for {
			_, oobn, _, _, err := unix.Recvmsg(int(fd), nil, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return // empty
			}
			if at, id, ok := readStamp(oob[:oobn]); ok && int64(id) < int64(n) {
				stamps[id] = at
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read time stamps: %w", err)
	}
	return stamps, nil
}

// readStamp finds the software stamp in control messages and, for a sent
// packet, which one it is of.
func readStamp(oob []byte) (at int64, id uint32, ok bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, 0, false
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && (m.Header.Type == unix.SO_TIMESTAMPING || m.Header.Type == unix.SO_TIMESTAMPNS) && len(m.Data) >= 16:
			seconds, nanos := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
			at, ok = int64(seconds)*1e9+int64(nanos), seconds != 0
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR && len(m.Data) >= 16:
			if m.Data[4] != unix.SO_EE_ORIGIN_TIMESTAMPING {
				return 0, 0, false
			}
			id = binary.NativeEndian.Uint32(m.Data[12:])
		}
	}
	return at, id, ok
}

// train is the shape of the packets that measure a rate.
type train struct {
	size  int // of a packet, IP header included
	n     int
	burst int // sent by one call
}

const (
	minTrainPackets = 8
	minTrainSize    = 100
	maxTrainTime    = time.Second
	trainBuffer     = 16 << 20
	maxTrainBurst   = 40
)

func (s span) train() train {
	rate := float64(s.link.Rate) / 8 // bytes a second
	long := min(maxTrainTime, max(trainTime, 100*time.Duration(s.link.Jitter)))
	t := train{size: int(min(MTU, max(minTrainSize, rate*trainTime.Seconds()/minTrainPackets)))}
	t.n = max(minTrainPackets, int(rate*long.Seconds())/t.size)
	// Half a millisecond at a time, and never more than a quarter of the queue.
	t.burst = int(min(maxTrainBurst, rate*0.0005/float64(t.size), float64(s.link.QueueBytes())/4/float64(t.size)))
	t.burst = max(1, t.burst)
	return t
}

func (s span) measureRate(ctx context.Context, from, to *Node) (Check, error) {
	c := Check{Link: s.name, What: WhatRate, Direction: from.Site + ">" + to.Site, Set: float64(s.link.Rate), Unit: "bit/s"}
	if from.Site == to.Site {
		c.Direction = from.Name + ">" + to.Name
	}
	t := s.train()
	seen, err := s.sendTrain(ctx, from, to, t)
	if err != nil {
		return c, fmt.Errorf("measure the rate of %s: %w", c.Direction, err)
	}
	// From the first to the last packet that no later one overtook; packets in
	// between count whenever they came.
	first, last := -1, -1
	for seq, a := range seen {
		if a.at == 0 || a.overtaken {
			continue
		}
		if first < 0 {
			first = seq
		}
		last = seq
	}
	took := time.Duration(t.n) * s.takes(t.size)
	c.Tolerance = c.Set * (rateTolerance + 2*float64(s.link.Jitter)/float64(took))
	if last <= first {
		c.Text = fmt.Sprintf("%s: rate: nothing of %d packets arrived", c.Direction, t.n)
		return c, nil
	}
	for _, a := range seen[first+1 : last+1] {
		if a.at != 0 {
			c.Samples++
		}
	}
	elapsed := float64(seen[last].at-seen[first].at) / 1e9
	c.Measured = float64(c.Samples*t.size*8) / max(elapsed, 1e-9)
	c.OK = math.Abs(c.Measured-c.Set) <= c.Tolerance
	c.Text = fmt.Sprintf("%s: rate %s, set %s ± %.1f %%, %d of %d packets", c.Direction,
		schemas.BitRate(c.Measured), s.link.Rate, 100*c.Tolerance/c.Set, c.Samples, t.n)
	return c, nil
}

// arrival of a packet of a train; at is 0 when it did not come.
type arrival struct {
	at        int64 // ns
	overtaken bool
}

func (s span) sendTrain(ctx context.Context, from, to *Node, t train) (_ []arrival, err error) {
	x, err := gateSocket(from)
	if err != nil {
		return nil, err
	}
	defer func() { _ = x.Close() }()
	y, err := gateSocket(to)
	if err != nil {
		return nil, err
	}
	defer func() { _ = y.Close() }()
	if err := errors.Join(setOption(y, unix.SO_RCVBUFFORCE, trainBuffer), setOption(y, unix.SO_TIMESTAMPNS, 1)); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = x.SetDeadline(time.Unix(1, 0)); _ = y.SetDeadline(time.Unix(1, 0)) })()

	seen := make([]arrival, t.n)
	received := make(chan error, 1)
	// Reading while the link is being filled would take the processor from the
	// sender; the socket's buffer holds what comes meanwhile.
	filled := make(chan struct{})
	go func() {
		<-filled
		highest := -1
		received <- receive(y, func(seq int, at int64, _ []byte) bool {
			if seq < t.n && seen[seq].at == 0 {
				seen[seq] = arrival{at: at, overtaken: seq < highest}
				highest = max(highest, seq)
			}
			return seq != t.n-1
		})
	}()
	err = s.sendPackets(x, y.LocalAddr().(*net.UDPAddr), t, filled)
	// What still waits in the queue.
	backlog := s.takes(min(t.n*t.size, int(s.link.QueueBytes())))
	patience := backlog + s.link.OneWay() + time.Duration(s.link.Jitter) + 2*s.takes(t.size) + 100*time.Millisecond
	if e := y.SetReadDeadline(time.Now().Add(patience)); e != nil || ctx.Err() != nil {
		_ = y.SetReadDeadline(time.Unix(1, 0))
	}
	return seen, errors.Join(err, <-received, ctx.Err())
}

// sendPackets sends a train from x, in bursts that the kernel splits where they
// are of more than one packet.
func (s span) sendPackets(x *net.UDPConn, to *net.UDPAddr, t train, filled chan<- struct{}) error {
	fill := sync.OnceFunc(func() { close(filled) })
	defer fill()
	sleeper := pace.NewSleeper(true)
	defer func() { _ = sleeper.Close() }()
	payload := t.size - 28
	buf := make([]byte, payload*t.burst)
	oob := make([]byte, unix.CmsgSpace(2))
	oob[0] = byte(unix.CmsgLen(2))
	binary.NativeEndian.PutUint64(oob, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(oob[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(oob[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(oob[16:], uint16(payload))
	// The queue is kept half full, so that the link is never idle and little is
	// dropped. Lost packets take none of the rate.
	rate := float64(s.link.Rate) / 8 / (1 - float64(s.link.Loss))
	ahead := float64(s.link.QueueBytes()) / 2
	begin := time.Now()
	for sent := 0; sent < t.n; {
		n := min(t.burst, t.n-sent)
		for i := range n {
			binary.BigEndian.PutUint64(buf[i*payload:], uint64(sent+i))
		}
		sleeper.Until(begin.Add(time.Duration((float64(sent*t.size) - ahead) / rate * 1e9)))
		control := oob
		if n == 1 {
			control = nil
		}
		if _, _, err := x.WriteMsgUDPAddrPort(buf[:n*payload], control, to.AddrPort()); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if sent += n; sent*t.size > trainBuffer/2 {
			fill()
		}
	}
	return nil
}
