package swarmrunner

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/swarmrunner/peer"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
	"github.com/transferlab/transferlab/services/swarmrunner/wire"
)

// events records what a trial was, once it is over.
type events struct {
	job    *job
	record func(*schemas.Event) error

	bytes, failed uint64 // of transfers
	names         map[[20]byte]string
	base          schemas.Event
}

// all records everything; the first error ends it.
func (e *events) all(c *copied) error {
	j := e.job
	e.names = map[[20]byte]string{}
	for n := range j.cast.seeders {
		e.names[peerID(j.key, true, n)] = peerName(true, n)
	}
	for n := range j.cast.leechers {
		e.names[peerID(j.key, false, n)] = peerName(false, n)
	}
	e.base = schemas.Event{
		Run: j.task.Run, Trial: j.task.Trial, Attempt: j.task.Attempt, Workload: j.task.Workload, Service: ServiceName,
		Agent: j.task.Agent, Status: schemas.StatusOK,
	}
	least := bound(j.section, len(j.cast.leechers), len(j.cast.seeders))
	for _, m := range j.leechers {
		o := j.outcomeOf(m)
		if err := e.transfer(m, &o, least); err != nil {
			return err
		}
		if err := e.pieces(m, &o.Report); err != nil {
			return err
		}
		if err := e.wire(m.name(), "leecher", j.siteOf(m), ledgerOf(&o)); err != nil {
			return err
		}
	}
	for _, m := range j.seeders {
		o := j.outcomeOf(m)
		if err := e.seed(m, &o); err != nil {
			return err
		}
		if err := e.wire(m.name(), "seeder", j.siteOf(m), ledgerOf(&o)); err != nil {
			return err
		}
	}
	if err := e.ofTracker(); err != nil {
		return err
	}
	if err := e.ofInterface(); err != nil {
		return err
	}
	if c != nil {
		return e.ofCopy(c)
	}
	return nil
}

// outcomeOf is what a peer did; nothing, if it never was there or did not end.
func (j *job) outcomeOf(m *member) outcome {
	o := outcome{Report: peer.Report{Bytes: int64(j.section.Size)}}
	select {
	case <-m.done:
		m.life.mu.Lock()
		defer m.life.mu.Unlock()
		o = m.outcome
	default:
	}
	return o
}

func (j *job) siteOf(m *member) string {
	if m.client != nil {
		return m.client.Site
	}
	// A seeder beside the clients is where the first of them is.
	return j.task.Clients[0].Site
}

// attrs builds the attributes of an event.
type attrs []schemas.Attr

func (a *attrs) text(key, value string) { *a = append(*a, schemas.Attr{Key: key, Value: value}) }

func (a *attrs) number(key string, v int64) { a.text(key, strconv.FormatInt(v, 10)) }

func (a *attrs) count(key string, v uint64) { a.text(key, strconv.FormatUint(v, 10)) }

// since adds how long after begun something was, if it was.
func (a *attrs) since(key string, begun, at time.Time) {
	if !at.IsZero() && !begun.IsZero() {
		a.number(key, int64(max(at.Sub(begun), 0)))
	}
}

func (e *events) transfer(m *member, o *outcome, least time.Duration) error {
	j, r := e.job, &o.Report
	begun, event := r.Begun, e.base
	event.Kind, event.Site, event.Intended = schemas.KindTransfer, j.siteOf(m), j.start.At.Add(m.arrival)
	event.Status, event.Error = m.status, clip(m.text)
	event.Bytes = uint64(max(r.Have, 0))
	switch {
	case begun.IsZero():
		// It never came, or had nothing to begin with.
		event.Wait = max(m.at.Sub(event.Intended), 0)
	default:
		event.Wait = max(begun.Sub(event.Intended), 0)
		end := m.at
		if !r.Completed.IsZero() {
			end = r.Completed
		}
		event.Duration = max(end.Sub(begun), 0)
		if !r.FirstByte.IsZero() {
			event.FirstByte = max(r.FirstByte.Sub(begun), 0)
		}
	}
	if event.Status != schemas.StatusOK && o.Refused != "" {
		event.Error = clip(event.Error + "; the tracker: " + o.Refused)
	}
	ledger := ledgerOf(o)
	a := make(attrs, 0, 40)
	a.number("client", int64(m.client.Index))
	a.number("leecher", int64(m.number))
	a.number("leechers", int64(len(j.cast.leechers)))
	a.text("group", m.client.Group)
	a.text("file", j.section.FileName())
	a.number("size", int64(j.section.Size))
	a.number("piece_size", j.section.PieceLength())
	a.text("address", j.reach(m).String())
	a.since("announce_ns", begun, r.Announced)
	a.since("handshake_ns", begun, r.Handshake)
	a.since("unchoke_ns", begun, r.Unchoked)
	a.since("first_piece_ns", begun, r.FirstPiece)
	for i, at := range r.Deciles {
		a.since("d"+strconv.Itoa(10*(i+1))+"_ns", begun, at)
	}
	a.since("last_block_ns", begun, r.LastBlock)
	a.since("complete_ns", begun, r.Completed)
	checked, sum := m.hash()
	if checked && !r.Completed.IsZero() {
		// Reading the finished file is put off until all have left; this is when it
		// would have been done had it begun at once.
		a.since("verified_ns", begun, r.Completed.Add(m.took))
	}
	if !r.Begun.IsZero() {
		a.since("seed_out_ns", begun, r.Left)
	}
	a.count("sent", ledger.SentBytes())
	a.count("received", ledger.ReceivedBytes())
	a.count("payload_received", ledger.Received[wire.Payload].Bytes)
	a.count("payload_sent", ledger.Sent[wire.Payload].Bytes)
	a.number("wasted", r.Wasted)
	a.number("from_seeds", r.FromSeeds)
	a.number("hash_failures", int64(r.HashFailures))
	a.number("banned", int64(r.Banned))
	a.number("connections", int64(r.Connections))
	if least > 0 {
		a.number("bound_ns", int64(least))
	}
	if checked {
		verdict := "wrong"
		if sum == j.sum {
			verdict = "ok"
		}
		a.text("sha256", verdict)
	}
	if m.pid != 0 {
		a.number("pid", int64(m.pid))
	}
	event.Attrs = a
	e.bytes += event.Bytes
	if event.Status != schemas.StatusOK {
		e.failed++
	}
	return e.record(&event)
}

// hash is the SHA-256 of a finished file, if it was read.
func (m *member) hash() (checked bool, sum [32]byte) {
	select {
	case <-m.hashed:
	default:
		return false, sum
	}
	m.life.mu.Lock()
	defer m.life.mu.Unlock()
	return m.hashErr == nil, m.sum
}

func (e *events) pieces(m *member, r *peer.Report) error {
	for i := range r.Pieces {
		p := &r.Pieces[i]
		event := e.base
		event.Kind, event.Site, event.Intended = schemas.KindPiece, e.job.siteOf(m), p.Asked
		event.Duration = max(p.Verified.Sub(p.Asked), 0)
		event.Bytes = uint64(e.job.torrent.PieceSize(p.Index))
		a := make(attrs, 0, 5)
		a.number("client", int64(m.client.Index))
		a.number("leecher", int64(m.number))
		a.number("piece", int64(p.Index))
		a.text("from", e.from(p.FromID, p.From))
		a.number("nth", int64(i))
		event.Attrs = a
		if err := e.record(&event); err != nil {
			return err
		}
	}
	return nil
}

func (e *events) from(id [20]byte, addr netip.AddrPort) string {
	if name, known := e.names[id]; known {
		return name
	}
	return addr.String()
}

// ledgerOf is everything that a peer sent and received: by its connections, with
// the tracker, and below the streams of uTP.
func ledgerOf(o *outcome) *wire.Ledger {
	l := o.Report.Wire
	below := func(tallies *[wire.Classes]wire.Tally, stream, bytes, packets uint64) {
		if bytes > stream {
			tallies[wire.UTP].Bytes += bytes - stream
			tallies[wire.UTP].Messages += packets
		}
	}
	below(&l.Sent, l.SentBytes(), o.Packets.SentBytes, o.Packets.Sent)
	below(&l.Received, l.ReceivedBytes(), o.Packets.ReceivedBytes, o.Packets.Received)
	l.Sent[wire.Tracker].Bytes += o.Tracker.Sent
	l.Sent[wire.Tracker].Messages += o.Tracker.MessagesSent
	l.Received[wire.Tracker].Bytes += o.Tracker.Received
	l.Received[wire.Tracker].Messages += o.Tracker.MessagesReceived
	return &l
}

func (e *events) wire(name, role, site string, l *wire.Ledger) error {
	for _, d := range []struct {
		name    string
		tallies *[wire.Classes]wire.Tally
	}{{"sent", &l.Sent}, {"received", &l.Received}} {
		for class := range wire.Classes {
			t := d.tallies[class]
			if t.Bytes == 0 {
				continue
			}
			event := e.base
			event.Kind, event.Site, event.Intended, event.Bytes = schemas.KindWire, site, e.job.start.At, t.Bytes
			a := make(attrs, 0, 5)
			a.text("peer", name)
			a.text("role", role)
			a.text("direction", d.name)
			a.text("class", class.String())
			a.count("messages", t.Messages)
			event.Attrs = a
			if err := e.record(&event); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *events) seed(m *member, o *outcome) error {
	j, r := e.job, &o.Report
	event := e.base
	event.Kind, event.Site, event.Intended = schemas.KindSeed, j.siteOf(m), r.Begun
	if r.Begun.IsZero() {
		event.Intended = j.start.At
	} else {
		event.Duration = max(r.Left.Sub(r.Begun), 0)
	}
	if o.Err != "" {
		event.Status, event.Error = schemas.StatusError, clip(o.Err)
	}
	ledger := ledgerOf(o)
	event.Bytes = ledger.Sent[wire.Payload].Bytes
	a := make(attrs, 0, 10)
	a.number("seeder", int64(m.number))
	if m.client != nil {
		a.number("client", int64(m.client.Index))
	}
	a.text("address", j.reach(m).String())
	a.count("sent", ledger.SentBytes())
	a.count("received", ledger.ReceivedBytes())
	a.count("payload_sent", ledger.Sent[wire.Payload].Bytes)
	a.count("payload_received", ledger.Received[wire.Payload].Bytes)
	a.number("connections", int64(r.Connections))
	if m.stopped {
		a.text("left", "stopped")
	}
	if m.pid != 0 {
		a.number("pid", int64(m.pid))
	}
	event.Attrs = a
	return e.record(&event)
}

func (e *events) ofTracker() error {
	if e.job.tracker == nil {
		return nil
	}
	t := e.job.told
	var l wire.Ledger
	l.Sent[wire.Tracker] = wire.Tally{Messages: t.MessagesSent, Bytes: t.Sent}
	l.Received[wire.Tracker] = wire.Tally{Messages: t.MessagesReceived, Bytes: t.Received}
	return e.wire("tracker", "tracker", e.job.task.Clients[0].Site, &l)
}

func (e *events) ofInterface() error {
	j := e.job
	if j.counted != nil {
		j.log.Debug("the interfaces do not count", "error", j.counted)
		return nil
	}
	account := transport.Reconcile(j.before, j.after, j.used)
	event := e.base
	event.Kind, event.Site, event.Intended = schemas.KindInterface, j.task.Clients[0].Site, j.start.At
	event.Bytes, event.Duration = j.after.TxBytes-j.before.TxBytes, j.counting
	network, exclusive := j.network.Name(), j.network.Private()
	if !exclusive && j.worker.atSite() {
		network, exclusive = "site", j.worker.aside
	}
	a := make(attrs, 0, 9)
	a.text("network", network)
	a.text("exclusive", strconv.FormatBool(exclusive))
	a.count("rx_bytes", j.after.RxBytes-j.before.RxBytes)
	a.count("tx_packets", j.after.TxPackets-j.before.TxPackets)
	a.count("rx_packets", j.after.RxPackets-j.before.RxPackets)
	a.number("sockets_sent", account.Sockets)
	a.number("sent_again", account.SentAgain)
	a.number("headers", account.Headers)
	a.number("unattributed", account.Unattributed)
	event.Attrs = a
	return e.record(&event)
}

// atSite reports whether this agent stands at a site of an emulated network,
// which is the run's alone.
func (w *Worker) atSite() bool {
	addr, err := netip.ParseAddr(w.cfg.Address)
	return err == nil && !addr.IsLoopback() && w.cfg.Run != ""
}

func (e *events) ofCopy(c *copied) error {
	event := e.base
	event.Kind, event.Site, event.Intended = schemas.KindCopy, e.job.task.Clients[0].Site, c.begun
	event.Duration, event.Bytes, event.Status, event.Error = c.duration, c.bytes, c.status, clip(c.text)
	a := attrs{{Key: "from", Value: c.from}, {Key: "to", Value: c.to}}
	if c.verified > 0 {
		a.number("verified_ns", int64(c.verified))
	}
	event.Attrs = a
	return e.record(&event)
}

func clip(s string) string { return s[:min(len(s), schemas.MaxEventString)] }

// usage is what this agent's sockets have sent, those of processes included.
func (j *job) usage() transport.Usage {
	u := j.network.Usage()
	for _, m := range j.members() {
		select {
		case <-m.done:
			m.life.mu.Lock()
			u.Add(m.outcome.Own)
			m.life.mu.Unlock()
		default:
		}
	}
	return u
}
