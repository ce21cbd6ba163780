package schemas

import (
	"time"

	"github.com/google/uuid"
)

// PlaceWanted asks for the place of a run: what its experiment declares beside
// agents that are there anyway. It is wanted for as long as the entry stands.
type PlaceWanted struct {
	Run  uuid.UUID `json:"run"`
	Seed uint64    `json:"seed"`
	File string    `json:"file"` // the experiment's text
}

// WantKey is the key of the scheduler's wish in the bucket of places.
func WantKey(run uuid.UUID) string { return "want." + run.String() }

// PlaceKey is the key of the provisioner's answer.
func PlaceKey(run uuid.UUID) string { return "place." + run.String() }

// States of a place.
const (
	PlacePreparing = "preparing"
	PlaceReady     = "ready"
	PlaceFailed    = "failed"
	PlaceGone      = "gone"
)

// Place is an emulated network or a fleet that exists for one run, as its
// provisioner tells of it.
type Place struct {
	Run   uuid.UUID `json:"run"`
	State string    `json:"state"`
	Note  string    `json:"note,omitempty"` // what is being done
	Error string    `json:"error,omitempty"`
	// Invalid is set when the place could be made and is not what was asked
	// for: measuring in it would say nothing.
	Invalid bool         `json:"invalid,omitempty"`
	Agents  []string     `json:"agents,omitempty"`
	Checks  []PlaceCheck `json:"checks,omitempty"`
	Updated time.Time    `json:"updated"`
}

// KindGate is the provisioner's statement on one check of a place before its
// run: attrs are those of [PlaceCheck].
const KindGate = "gate"

// KindLink is the provisioner's statement on what a link of an emulated network
// did while it stood; its status is not ok when the network lost packets that
// nobody asked it to lose.
const KindLink = "link"

// KindInstance is the provisioner's statement on one cloud instance of a fleet
// that is gone: how long it ran, with region, id and type.
const KindInstance = "instance"

// PlaceCheck compares what was set with what was measured.
type PlaceCheck struct {
	Link      string  `json:"link"` // `oregon-dublin`, or a site for the network inside it
	What      string  `json:"what"` // rtt or rate, with the direction where there is one
	Unit      string  `json:"unit"` // ns or bit/s
	Set       float64 `json:"set"`
	Measured  float64 `json:"measured"`
	Tolerance float64 `json:"tolerance"` // in the unit
	Samples   int     `json:"samples"`
	OK        bool    `json:"ok"`
}

// NeedsPlace reports whether something must be made before the experiment can
// run.
func (e *Experiment) NeedsPlace() bool { return len(e.Sites) > 0 || e.Fleet != nil }
