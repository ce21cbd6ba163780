package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Errors of the spool, to be told apart by [errors.Is].
var (
	ErrLocked  = errors.New("another process has the spool")
	ErrClosed  = errors.New("the spool is closed")
	ErrFull    = errors.New("the spool is full")
	ErrExists  = fmt.Errorf("a clip of this name: %w", fs.ErrExist)
	ErrUnknown = errors.New("no such clip in the spool")
	ErrState   = errors.New("not possible in the clip's state")
	ErrBroken  = errors.New("the spool's disk does not keep what is written")
)

// State is how far a clip is.
type State string

// States of clips, in their order.
const (
	Recording State = "recording"
	Spooled   State = "spooled"
	Decided   State = "decided"
	Detected  State = "detected"
	Uploading State = "uploading"
	Stored    State = "stored"
	Confirmed State = "confirmed"
	Expired   State = "expired"
	Reported  State = "reported" // and forgotten
	Dropped   State = "dropped"  // never became a clip, and forgotten
)

var states = []State{Recording, Spooled, Decided, Detected, Uploading, Stored, Confirmed, Expired, Reported, Dropped}

// code is a state's place in the order, -1 if there is no such state.
func (s State) code() int { return slices.Index(states, s) }

// hasBytes reports whether a clip in this state has its bytes on disk.
func (s State) hasBytes() bool { c := s.code(); return c >= 0 && c <= Stored.code() }

// gone reports whether a clip in this state is known no longer.
func (s State) gone() bool { return s == Reported || s == Dropped }

// Step is what is to be done with a clip next.
type Step int

// Steps in a clip's way.
const (
	StepDecide  Step = iota // spooled: edge or cloud?
	StepDetect              // decided for the edge
	StepUpload              // decided for the cloud: its result waits for its bytes
	StepArchive             // detected here: the lab is to have result and bytes
	StepConfirm             // stored: ask the lab for the result
	StepReport              // confirmed or expired: tell the lab how it was
	steps
)

// noStep is that of clips nobody waits for.
const noStep Step = -1

func (s State) step(where string) Step {
	switch s {
	case Spooled:
		return StepDecide
	case Decided:
		if where == schemas.WhereEdge {
			return StepDetect
		}
		return StepUpload
	case Detected, Uploading:
		if where == schemas.WhereEdge {
			return StepArchive
		}
		return StepUpload
	case Stored:
		return StepConfirm
	case Confirmed, Expired:
		return StepReport
	}
	return noStep
}

// Order says which of several clips comes first.
type Order int

// Orders of clips, by their recording.
const (
	OldestFirst Order = iota
	NewestFirst
)

// Record is what is known of a clip.
type Record struct {
	// Clip is complete from Spooled on.
	Clip  schemas.Clip `json:"clip"`
	Seq   uint64       `json:"seq"` // order of recording
	State State        `json:"state"`
	// Truncated clips were cut by a crash or a full disk; Recovered ones were found
	// on disk by a later process.
	Truncated bool     `json:"truncated,omitempty"`
	Recovered bool     `json:"recovered,omitempty"`
	Stamps    Stamps   `json:"stamps,omitzero"`
	Decision  Decision `json:"decision,omitzero"`
	Upload    *Upload  `json:"upload,omitempty"`
	// Result is the hash of the result's file, empty without one.
	Result string `json:"result_sha256,omitempty"`
	// Lab is what the lab said last, from Stored on.
	Lab *schemas.ClipState `json:"lab,omitempty"`
	// Status and Error say why a clip expired.
	Status string `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Stamps are when a clip passed each stage at the edge, by the edge's clock; zero for
// stages it did not pass.
type Stamps struct {
	Recorded  time.Time `json:"recorded,omitzero"` // closed
	Spooled   time.Time `json:"spooled,omitzero"`  // durable
	Decided   time.Time `json:"decided,omitzero"`
	Taken     time.Time `json:"taken,omitzero"` // by the local detector
	Fetched   time.Time `json:"fetched,omitzero"`
	Decoded   time.Time `json:"decoded,omitzero"`
	Inferred  time.Time `json:"inferred,omitzero"`
	Uploading time.Time `json:"uploading,omitzero"` // the first part stored
	Uploaded  time.Time `json:"uploaded,omitzero"`
	Confirmed time.Time `json:"confirmed,omitzero"`
	Expired   time.Time `json:"expired,omitzero"`
}

// Decision is who shall look at a clip, and why.
type Decision struct {
	Where  string `json:"where"` // schemas.WhereEdge or schemas.WhereCloud
	Policy string `json:"policy"`
	Reason string `json:"reason,omitempty"`
	// Edge and Cloud are how long either was predicted to take, 0 if that was not
	// known.
	Edge  time.Duration `json:"predicted_edge_ns,omitempty"`
	Cloud time.Duration `json:"predicted_cloud_ns,omitempty"`
}

// Upload is how far a multipart upload is.
type Upload struct {
	ID        string `json:"id,omitempty"`
	PartBytes int64  `json:"part_bytes,omitempty"`
	Parts     []Part `json:"parts,omitempty"`
}

// Part is a stored part.
type Part struct {
	N    int    `json:"n"`
	ETag string `json:"etag"`
}

// Limits of what callers give, so that a line stays one.
const (
	maxParts = 1024
	maxETag  = 128
	maxText  = 2048
)

func (u *Upload) validate() error {
	if len(u.ID) > maxText || len(u.Parts) > maxParts || u.PartBytes < 0 {
		return fmt.Errorf("upload: id of %d bytes, %d parts of %d bytes: want an id of at most %d and at most %d parts", len(u.ID), len(u.Parts), u.PartBytes, maxText, maxParts)
	}
	for _, p := range u.Parts {
		if p.N < 1 || p.N > 10_000 || len(p.ETag) > maxETag {
			return fmt.Errorf("upload: part %d with a tag of %d bytes, want a number of 1 to 10000 and a tag of at most %d", p.N, len(p.ETag), maxETag)
		}
	}
	return nil
}

// Meta is what is known of a clip when its recording begins.
type Meta struct {
	ID        string
	Type      string // media type, see schemas.ClipTypes
	Trigger   time.Time
	Detection schemas.Detection
	// Expect is how much room is kept for it, 0 for 12 MiB.
	Expect int64
	// Copy says that the bytes are also elsewhere until Commit has returned, whence they
	// are taken again: what is there of them after a crash is no clip.
	Copy bool
}

func (m *Meta) validate() error {
	clip := schemas.Clip{ID: m.ID, Type: m.Type, Trigger: m.Trigger, Detection: m.Detection, Size: 1, SHA256: noHash}
	err := clip.Validate()
	if m.Expect < 0 || m.Expect > schemas.MaxClipBytes {
		err = errors.Join(err, fmt.Errorf("expected bytes: %d, want 0 to %d", m.Expect, schemas.MaxClipBytes))
	}
	return err
}

// noHash stands for a hash that is not known yet where one must be.
const noHash = "0000000000000000000000000000000000000000000000000000000000000000"

// Stats are counts of a spool.
type Stats struct {
	Clips   map[State]int
	Records int
	Bytes   int64 // of clips on disk
	Oldest  time.Time
	Journal int64 // bytes
	Tally
	// Corrupt are lines of the journal that could not be read when it was opened,
	// beside a torn last one.
	Corrupt int
}

// Tally counts, over the whole life of the spool, what has no record any longer.
type Tally struct {
	Refused   uint64 `json:"refused"`   // recordings, for want of room
	Dropped   uint64 `json:"dropped"`   // recordings given up, or too short after a crash
	Expired   uint64 `json:"expired"`   // clips given up
	Reported  uint64 `json:"reported"`  // clips that went all the way
	Forgotten uint64 `json:"forgotten"` // of the expired, those whose records were given up too
}
