package schemas

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// WorkloadSwarm is one file from seeders to leechers by BitTorrent.
const WorkloadSwarm = "swarm"

// Kinds of events of the swarm workload.
const (
	// KindTransfer is one leecher's download: its timed operation.
	KindTransfer = "transfer"
	// KindSeed is one seeder's part of a trial.
	KindSeed = "seed"
	// KindPiece is one piece of one leecher: asked for until verified.
	KindPiece = "piece"
	// KindWire is what one peer or tracker sent or received of one class of
	// bytes in a trial.
	KindWire = "wire"
	// KindInterface is what one agent's network interfaces counted in a trial,
	// against what its sockets did.
	KindInterface = "interface"
	// KindCopy is the same bytes copied over one plain TCP connection in the same
	// trial.
	KindCopy = "copy"
)

// Statuses of transfers, beside those of every workload.
const (
	StatusKilled     = "killed"      // the leecher was killed on purpose
	StatusStalled    = "stalled"     // no progress for the section's patience, though others were there
	StatusNoPeers    = "no_peers"    // nobody was there who had what was missing
	StatusNoTracker  = "no_tracker"  // the tracker never answered
	StatusBadTorrent = "bad_torrent" // the torrent could not be read
)

// Swarm is the section of the swarm workload. Every field but faults and
// seed_groups may be an axis of the matrix.
type Swarm struct {
	Size Size   `yaml:"size" json:"size_bytes" jsonschema:"required,description=Of the file; its content follows from the seed."`
	File string `yaml:"file,omitempty" json:"file" jsonschema:"description=Name of the file in the torrent; A_ and the size if not given such as A_10kB."`
	// Who has the file at the start: so many clients more than the groups', at
	// the first group's first agent; or all clients of some groups.
	Seeders    int      `yaml:"seeders,omitempty" json:"seeders" jsonschema:"minimum=1,description=Seeders beside the groups' clients: all of those are leechers then. 1 if not given and seed_groups is not."`
	SeedGroups []string `yaml:"seed_groups,omitempty" json:"seed_groups,omitempty" jsonschema:"description=Groups whose clients are seeders; the clients of the others are leechers."`

	PieceSize  Size   `yaml:"piece_size,omitempty" json:"piece_size_bytes" jsonschema:"description=A power of two from 16KiB to 16MiB; chosen by the file's size if not given."`
	Tracker    string `yaml:"tracker,omitempty" json:"tracker" jsonschema:"enum=http,enum=udp,description=Protocol of announces; http if not given."`
	Protocol   string `yaml:"protocol,omitempty" json:"protocol" jsonschema:"enum=tcp,enum=utp,description=Between peers; tcp if not given."`
	Encryption string `yaml:"encryption,omitempty" json:"encryption" jsonschema:"enum=off,enum=prefer,enum=require,description=Of connections between peers (MSE); off if not given."`

	Slots       int     `yaml:"slots,omitempty" json:"slots" jsonschema:"minimum=1,description=Peers that one peer sends to at a time; all that ask if not given."`
	Connections int     `yaml:"connections,omitempty" json:"connections" jsonschema:"minimum=1,description=Connections of one peer at most; 40 if not given."`
	Window      Size    `yaml:"window,omitempty" json:"window_bytes" jsonschema:"description=Bytes a peer asks one other for ahead of their coming; follows the rate at which they come if not given."`
	SuperSeed   string  `yaml:"super_seed,omitempty" json:"super_seed" jsonschema:"enum=auto,enum=on,enum=off,description=Whether seeders show each leecher a piece that no other has (BEP 16); auto does when their uploads have a limit."`
	SeedUpload  BitRate `yaml:"seed_upload,omitempty" json:"seed_upload_bps" jsonschema:"description=Limit of each seeder's uploads."`
	Upload      BitRate `yaml:"upload,omitempty" json:"upload_bps" jsonschema:"description=Limit of each leecher's uploads."`
	Download    BitRate `yaml:"download,omitempty" json:"download_bps" jsonschema:"description=Limit of each leecher's downloads."`

	Arrival    string   `yaml:"arrival,omitempty" json:"arrival" jsonschema:"enum=together,enum=poisson,enum=staggered,description=How leechers come: all at the start; as a Poisson process; one after another. together if not given."`
	Every      Duration `yaml:"every,omitempty" json:"every_ns" jsonschema:"description=Between the arrivals of leechers (poisson: on average)."`
	OnComplete string   `yaml:"on_complete,omitempty" json:"on_complete" jsonschema:"enum=seed,enum=leave,description=What a leecher does with the whole file: seed until all have it or leave. seed if not given."`
	Patience   Duration `yaml:"patience,omitempty" json:"patience_ns" jsonschema:"description=A leecher without any progress for this long gives up; 30s if not given."`

	Isolation string `yaml:"isolation,omitempty" json:"isolation" jsonschema:"enum=shared,enum=process,description=Whether each peer has a process of its own; shared if not given."`
	Network   string `yaml:"network,omitempty" json:"network" jsonschema:"enum=auto,enum=private,enum=host,description=private: a network namespace for the trial alone so that its interface counts nothing else (one agent; needs root). auto takes it where it can be had."`
	Storage   string `yaml:"storage,omitempty" json:"storage" jsonschema:"enum=memory,enum=file,description=Where each leecher keeps what it has; memory if not given."`

	Faults []SwarmFault `yaml:"faults,omitempty" json:"faults,omitempty" jsonschema:"description=What goes wrong on purpose."`
}

// What a fault does.
const (
	FaultKillLeecher     = "kill-leecher"     // it is gone without a word
	FaultStopSeeder      = "stop-seeder"      // it leaves
	FaultTrackerDown     = "tracker-down"     // it answers nobody
	FaultCorruptSeeder   = "corrupt-seeder"   // it sends bytes that are wrong
	FaultTruncateTorrent = "truncate-torrent" // the leecher gets half of the torrent file
)

// SwarmFault is one thing that goes wrong on purpose.
type SwarmFault struct {
	Do string `yaml:"do" json:"do" jsonschema:"required,enum=kill-leecher,enum=stop-seeder,enum=tracker-down,enum=corrupt-seeder,enum=truncate-torrent"`
	// Peer counts leechers, or seeders, from 0.
	Peer int      `yaml:"peer,omitempty" json:"peer" jsonschema:"minimum=0,description=Which leecher or seeder (from 0); not for tracker-down."`
	At   Duration `yaml:"at,omitempty" json:"at_ns" jsonschema:"description=After the start of the trial."`
	// Progress is an alternative to At.
	Progress Share    `yaml:"progress,omitempty" json:"progress" jsonschema:"description=Instead of at: as soon as a leecher (kill-leecher: that one) has this share of the file."`
	For      Duration `yaml:"for,omitempty" json:"for_ns" jsonschema:"description=tracker-down: for how long; to the end if not given."`
}

// Limits of the section.
const (
	MaxSwarmSize     = 4 << 30
	MaxSwarmSeeders  = 1000
	MaxSwarmFaults   = 64
	MinPieceSize     = 16 << 10
	MaxPieceSize     = 16 << 20
	maxSwarmFileName = 128
)

// SetDefaults fills what the file leaves out.
func (s *Swarm) SetDefaults() {
	if len(s.SeedGroups) == 0 {
		s.Seeders = orDefault(s.Seeders, 1)
	}
	s.Tracker = orDefault(s.Tracker, "http")
	s.Protocol = orDefault(s.Protocol, "tcp")
	s.Encryption = orDefault(s.Encryption, "off")
	s.Connections = orDefault(s.Connections, 40)
	s.SuperSeed = orDefault(s.SuperSeed, "auto")
	s.Arrival = orDefault(s.Arrival, "together")
	s.OnComplete = orDefault(s.OnComplete, "seed")
	s.Patience = orDefault(s.Patience, Duration(30*time.Second))
	s.Isolation = orDefault(s.Isolation, "shared")
	s.Network = orDefault(s.Network, "auto")
	s.Storage = orDefault(s.Storage, "memory")
}

// Validate reports every fault.
func (s *Swarm) Validate() error { return s.check("swarm").err() }

// FileName is the name of the file in the torrent: what the section says, or
// one that tells the size (`A_10kB`).
func (s *Swarm) FileName() string {
	if s.File != "" {
		return s.File
	}
	return "A_" + s.Size.String()
}

// PieceLength is the size of every piece but the last: what the section says, or
// one that makes a hundred pieces or so, of 256 KiB at most (measured:
// bench/swarm). With fewer, leechers wait for whole pieces before they can give,
// and there are not enough to hash sixteen at a time; with more, what is said
// about pieces costs more than it brings. Where uploads have a limit the waiting
// is what counts, and pieces are a quarter of that.
func (s *Swarm) PieceLength() int64 {
	if s.PieceSize > 0 {
		return int64(s.PieceSize)
	}
	target := s.Size / 64
	if s.Upload > 0 || s.SeedUpload > 0 {
		target /= 4
	}
	// Thousands of pieces are enough for any file.
	target = max(min(target, 256<<10), s.Size/4096, MinPieceSize)
	return min(int64(1)<<(bits.Len64(uint64(target))-1), MaxPieceSize)
}

func (s *Swarm) check(at string) faultList {
	var faults faultList
	word := func(field, v string, allowed ...string) {
		if !slices.Contains(allowed, v) {
			faults.add(at+"."+field, "%q, want %s", v, oneOf(allowed))
		}
	}
	if s.Size < 1 || s.Size > MaxSwarmSize {
		faults.add(at+".size", "%s, want 1B to %s", s.Size, Size(MaxSwarmSize))
	}
	if name := s.FileName(); len(name) > maxSwarmFileName || strings.ContainsAny(name, "/\\\x00") || name == "." || name == ".." {
		faults.add(at+".file", "%q, want a plain file name of at most %d bytes", name, maxSwarmFileName)
	}
	if len(s.SeedGroups) > 0 && s.Seeders > 0 {
		faults.add(at+".seeders", "%d, but seed_groups says who has the file: want one of the two", s.Seeders)
	}
	if len(s.SeedGroups) == 0 && (s.Seeders < 1 || s.Seeders > MaxSwarmSeeders) {
		faults.add(at+".seeders", "%d, want 1 to %d", s.Seeders, MaxSwarmSeeders)
	}
	if p := s.PieceSize; p != 0 && (p < MinPieceSize || p > MaxPieceSize || bits.OnesCount64(uint64(p)) != 1) {
		faults.add(at+".piece_size", "%s, want a power of two from %s to %s", p, Size(MinPieceSize), Size(MaxPieceSize))
	}
	word("tracker", s.Tracker, "http", "udp")
	word("protocol", s.Protocol, "tcp", "utp")
	word("encryption", s.Encryption, "off", "prefer", "require")
	word("super_seed", s.SuperSeed, "auto", "on", "off")
	word("arrival", s.Arrival, "together", "poisson", "staggered")
	word("on_complete", s.OnComplete, "seed", "leave")
	word("isolation", s.Isolation, "shared", "process")
	word("network", s.Network, "auto", "private", "host")
	word("storage", s.Storage, "memory", "file")
	if s.Slots < 0 || s.Slots > MaxClients {
		faults.add(at+".slots", "%d, want 1 to %d", s.Slots, MaxClients)
	}
	if s.Connections < 1 || s.Connections > 1000 {
		faults.add(at+".connections", "%d, want 1 to 1000", s.Connections)
	}
	if s.Window != 0 && (s.Window < MinPieceSize || s.Window > 64<<20) {
		faults.add(at+".window", "%s, want %s to %s", s.Window, Size(MinPieceSize), Size(64<<20))
	}
	for _, rate := range []struct {
		field string
		v     BitRate
	}{{"seed_upload", s.SeedUpload}, {"upload", s.Upload}, {"download", s.Download}} {
		if rate.v != 0 && rate.v < 64_000 {
			faults.add(at+"."+rate.field, "%s, want 64kbit or more", rate.v)
		}
	}
	switch {
	case s.Arrival != "together" && s.Every <= 0:
		faults.add(at+".every", "not given, but arrival is %s: want the time between leechers", s.Arrival)
	case s.Arrival == "together" && s.Every != 0:
		faults.add(at+".every", "%s, but arrival is together: only poisson and staggered have it", s.Every)
	case s.Every > Duration(10*minute):
		faults.add(at+".every", "%s, want at most 10m", s.Every)
	}
	if s.Patience < Duration(100*millisecond) || s.Patience > Duration(60*minute) {
		faults.add(at+".patience", "%s, want 100ms to 1h", s.Patience)
	}
	if len(s.Faults) > MaxSwarmFaults {
		faults.add(at+".faults", "%d, at most %d are allowed", len(s.Faults), MaxSwarmFaults)
	}
	for i, f := range s.Faults {
		faults = append(faults, f.check(fmt.Sprintf("%s.faults[%d]", at, i))...)
	}
	return faults
}

func (f *SwarmFault) check(at string) faultList {
	var faults faultList
	all := []string{FaultKillLeecher, FaultStopSeeder, FaultTrackerDown, FaultCorruptSeeder, FaultTruncateTorrent}
	if !slices.Contains(all, f.Do) {
		faults.add(at+".do", "%q, want %s", f.Do, oneOf(all))
		return faults
	}
	if f.Peer < 0 {
		faults.add(at+".peer", "%d, want 0 or more", f.Peer)
	}
	if f.At < 0 || f.For < 0 {
		faults.add(at+".at", "%s for %s, want times of 0s or more", f.At, f.For)
	}
	if f.At != 0 && f.Progress != 0 {
		faults.add(at+".progress", "%s, but at is given too: want one of the two", f.Progress)
	}
	if f.For != 0 && f.Do != FaultTrackerDown {
		faults.add(at+".for", "%s, but only %s has it", f.For, FaultTrackerDown)
	}
	if (f.Do == FaultCorruptSeeder || f.Do == FaultTruncateTorrent) && (f.At != 0 || f.Progress != 0) {
		faults.add(at+".at", "%s: %s holds from the start to the end", f.At, f.Do)
	}
	return faults
}

// Seeds reports whether the clients of a group have the file at the start.
func (s *Swarm) Seeds(group string) bool { return slices.Contains(s.SeedGroups, group) }

// checkGroups reports faults that show only beside the groups that take part.
func (s *Swarm) checkGroups(at string, groups []Group) faultList {
	var faults faultList
	leechers, seeders, agents := 0, s.Seeders, 0
	for _, g := range groups {
		agents += g.Agents
		if s.Seeds(g.Name) {
			seeders += g.Clients
		} else {
			leechers += g.Clients
		}
	}
	for i, name := range s.SeedGroups {
		if !slices.ContainsFunc(groups, func(g Group) bool { return g.Name == name }) {
			faults.add(fmt.Sprintf("%s.seed_groups[%d]", at, i), "no group called %q", name)
		}
	}
	if leechers == 0 {
		faults.add(at+".seed_groups", "every group has the file: nobody is left to fetch it")
	}
	if len(s.SeedGroups) > 0 && seeders == 0 {
		faults.add(at+".seed_groups", "nobody has the file")
	}
	if s.Network == "private" && agents > 1 {
		faults.add(at+".network", "private, but %d agents take part: only one can have it", agents)
	}
	for i, f := range s.Faults {
		n, what := leechers, "leechers"
		if f.Do == FaultStopSeeder || f.Do == FaultCorruptSeeder {
			n, what = seeders, "seeders"
		}
		if f.Do != FaultTrackerDown && f.Peer >= n {
			faults.add(fmt.Sprintf("%s.faults[%d].peer", at, i), "%d, but there are %d %s (counted from 0)", f.Peer, n, what)
		}
	}
	return faults
}
