package packet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Limits of the options.
const (
	// MaxFlows is how many paths one engine takes.
	MaxFlows = 1_000_000
	// CookiePayload is the size from which an echo request carries cookie, flow
	// and sequence number.
	CookiePayload = 16
	// MinSTAMP and MinSTAMPAuth are the sizes of the smallest test packets.
	MinSTAMP, MinSTAMPAuth = 44, 112
)

// Bits of Result.Stamps.
const (
	StampTransmit = 1 << iota // the time sent is the kernel's
	StampReceive              // the time received is the kernel's
)

// Flow is one path.
type Flow struct {
	ID       int            // the caller's; 0 to len-1, the flow's index
	Protocol string         // schemas.ProtocolICMP or schemas.ProtocolUDP
	Dst      netip.AddrPort // port 0 for icmp
	Phase    time.Duration  // the first probe is due at start+Phase, the next an interval later
	Count    int            // probes
	Client   int            // not looked at
}

// Options are what all flows of an engine have in common.
type Options struct {
	Interval time.Duration // between the probes of a flow
	Timeout  time.Duration // how long an answer is waited for, from when the probe was sent
	Payload  int           // bytes after the ICMP or UDP header; at least MinSTAMP (MinSTAMPAuth with Key) for UDP
	DSCP     int           // 0 to 63
	TTL      int           // 1 to 255; 0 is 64
	Key      []byte        // not empty: STAMP's authenticated mode, HMAC-SHA-256 of 128 bits
	Source   netip.Addr    // local address of packets of its family; the kernel's choice if not given
	Log      *slog.Logger
}

// maxPayload leaves room for the headers in the largest IP packet.
const maxPayload = 65_000

// Validate reports every fault.
func (o *Options) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if o.Interval <= 0 {
		fault("interval %s, want more than 0", o.Interval)
	}
	if o.Timeout <= 0 {
		fault("timeout %s, want more than 0", o.Timeout)
	}
	if o.Payload < 0 || o.Payload > maxPayload {
		fault("payload %d, want 0 to %d", o.Payload, maxPayload)
	}
	if o.DSCP < 0 || o.DSCP > 63 {
		fault("dscp %d, want 0 to 63", o.DSCP)
	}
	if o.TTL < 0 || o.TTL > 255 {
		fault("ttl %d, want 1 to 255, or 0 for 64", o.TTL)
	}
	return errors.Join(faults...)
}

func (o *Options) minSTAMP() int {
	if len(o.Key) > 0 {
		return MinSTAMPAuth
	}
	return MinSTAMP
}

// checkFlows reports every fault of flows, the first few by number.
func (o *Options) checkFlows(flows []Flow) error {
	const most = 10
	var faults []error
	if len(flows) > MaxFlows {
		return fmt.Errorf("%d flows, at most %d are allowed", len(flows), MaxFlows)
	}
	for i := range flows {
		f := &flows[i]
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Errorf("flow %d: "+format, append([]any{i}, args...)...))
		}
		if f.ID != i {
			fault("id %d, want its index", f.ID)
		}
		if f.Count < 0 || f.Count > schemas.MaxProbeCount {
			fault("count %d, want 0 to %d", f.Count, schemas.MaxProbeCount)
		}
		if f.Phase < 0 {
			fault("phase %s, want 0 or more", f.Phase)
		}
		switch {
		case f.Protocol != schemas.ProtocolICMP && f.Protocol != schemas.ProtocolUDP:
			fault("protocol %q, want %s or %s", f.Protocol, schemas.ProtocolICMP, schemas.ProtocolUDP)
		case !f.Dst.Addr().IsValid():
			fault("no address")
		case f.Protocol == schemas.ProtocolICMP && f.Dst.Port() != 0:
			fault("port %d, but icmp has none: want 0", f.Dst.Port())
		case f.Protocol == schemas.ProtocolUDP && f.Dst.Port() == 0:
			fault("no port")
		case f.Protocol == schemas.ProtocolUDP && o.Payload < o.minSTAMP():
			fault("payload %d, a test packet has at least %d", o.Payload, o.minSTAMP())
		}
		if len(faults) >= most {
			break
		}
	}
	return errors.Join(faults...)
}

// Result is what became of one probe.
type Result struct {
	Flow     int
	Seq      uint32        // 0 and up in the flow
	Intended time.Time     // when it was due: the start of the run and the schedule, not touched by steps of the clock
	Wait     time.Duration // from when it was due to when it was sent
	RTT      time.Duration // from sent to answered, for udp without the reflector's own time; if not ok: how long was waited
	Status   string        // one of the Status constants of schemas
	Err      string        // text, if not ok
	TTL      int           // hop limit of the answer as received; 0 if not known

	Duplicates int   // further answers to this probe
	Reordered  bool  // a later probe of the flow was answered before this one
	Stamps     uint8 // StampTransmit, StampReceive

	// Of STAMP only, if HasOneWay: raw differences of two clocks (T2-T1 and
	// T4-T3), and the reflector's own time T3-T2.
	Forward, Backward, Reflected time.Duration
	HasOneWay                    bool
	ReflectorSeq                 uint32 // of the answer; the reflector counts its own if it is stateful
	// RemoteSynced and RemoteError are what the reflector says of its clock.
	RemoteSynced bool
	RemoteError  time.Duration
}

// Account counts what went in and out of an engine.
type Account struct {
	Issued   uint64 // probes that came due
	Answered uint64 // of those, answered in time, whatever the answer was
	Late     uint64 // answers after the timeout
	Foreign  uint64 // packets that are none of ours
	Forged   uint64 // answers with a wrong cookie, time or signature
	// Truncated are answers too short for what they answer.
	Truncated  uint64
	Duplicates uint64 // further answers
	Corrupt    uint64 // answers with another payload than was sent
	Errors     uint64 // ICMP errors about probes of ours
	NoStampTx  uint64 // probes sent and answered without a transmit stamp
	NoStampRx  uint64 // answers without a receive stamp
	Dropped    uint64 // packets that the kernel had no room for in our queues
	ClockSteps int    // how often the wall clock was set
}

// ReflectorStats counts what a reflector did.
type ReflectorStats struct {
	Received, Answered uint64
	Disabled           uint64 // came while nothing is answered
	Short              uint64 // less than a test packet
	Forged             uint64 // wrong signature
	Looped             uint64 // look like a reflector's answer
	Failed             uint64 // answers that could not be sent
	Dropped            uint64 // the kernel had no room in our queue
	NoStamp            uint64 // without a receive stamp
	Sessions           int    // known now
	Evicted            uint64 // sessions forgotten for want of room
}
