package schemas

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Media types of clips that the gateway takes.
const (
	TypeMP4  = "video/mp4"
	TypeMPEG = "video/mp2t" // MPEG transport stream
	TypeH264 = "video/h264" // raw Annex B stream
	TypeMKV  = "video/x-matroska"
)

// ClipTypes lists the media types of clips.
func ClipTypes() []string { return []string{TypeMP4, TypeMPEG, TypeH264, TypeMKV} }

// Limits of a clip and of what is said of it, applied to whatever comes from
// outside.
const (
	MaxClipBytes       = 512 << 20
	MaxClipID          = 128
	MaxResultBytes     = 4 << 20
	MaxDetectionFrames = 10_000
	MaxFrameObjects    = 1_000
	// MaxSampleRate is the most frames a second that detection may look at.
	MaxSampleRate = 60
)

// ClipID checks the name of a clip, which is its key in the buckets, a file's
// name at the edge and a key on the bus: letters, digits, `-` and `_`.
func ClipID(id string) error {
	ok := len(id) >= 1 && len(id) <= MaxClipID
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || (i > 0 && (c == '-' || c == '_'))
	}
	if !ok {
		return fmt.Errorf("clip id %s, want 1 to %d letters, digits, hyphens and underscores, the first a letter or digit", quoted(id), MaxClipID)
	}
	return nil
}

// quoted shows a text from outside without repeating all of it.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%q… (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// Clip is what an edge says of a clip before and beside its bytes.
type Clip struct {
	ID     string `json:"id"`
	Size   int64  `json:"size_bytes"`
	SHA256 string `json:"sha256"` // of the bytes, 64 hexadecimal digits
	Type   string `json:"type"`
	// Trigger is when motion was seen, by the edge's clock.
	Trigger time.Time `json:"trigger"`
	// Length is the playing time, 0 when the edge does not know it.
	Length time.Duration `json:"length_ns,omitempty"`
	// Detection is what shall be looked for, and how.
	Detection Detection `json:"detection"`
}

// Detection says how a clip is looked at. Zero values take the detector's own.
type Detection struct {
	Model     string  `json:"model,omitempty"`        // name of a model that detectors have
	Sample    float64 `json:"sample_per_s,omitempty"` // frames looked at for each second of the clip
	Threshold float64 `json:"threshold,omitempty"`    // least score of an object
	Annotate  bool    `json:"annotate,omitempty"`     // also store the best frame with its boxes drawn
}

// Validate reports every fault.
func (d *Detection) Validate() error {
	var errs []error
	if d.Model != "" && !ModelName(d.Model) {
		errs = append(errs, fmt.Errorf("detection.model: %s, want lower-case letters, digits, dots, hyphens and underscores, at most 64", quoted(d.Model)))
	}
	if !(d.Sample >= 0 && d.Sample <= MaxSampleRate) {
		errs = append(errs, fmt.Errorf("detection.sample_per_s: %g, want 0 (the detector's own) to %d", d.Sample, MaxSampleRate))
	}
	if !(d.Threshold >= 0 && d.Threshold <= 1) {
		errs = append(errs, fmt.Errorf("detection.threshold: %g, want 0 to 1", d.Threshold))
	}
	return errors.Join(errs...)
}

// ModelName reports whether a model may be called so: the name becomes part of
// a path.
func ModelName(name string) bool {
	if len(name) < 1 || len(name) > 64 || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// Validate reports every fault.
func (c *Clip) Validate() error {
	var errs []error
	if err := ClipID(c.ID); err != nil {
		errs = append(errs, err)
	}
	if c.Size < 1 || c.Size > MaxClipBytes {
		errs = append(errs, fmt.Errorf("clip.size_bytes: %d, want 1 to %d", c.Size, MaxClipBytes))
	}
	if !isHash(c.SHA256) {
		errs = append(errs, fmt.Errorf("clip.sha256: %s, want 64 lower-case hexadecimal digits", quoted(c.SHA256)))
	}
	if !slices.Contains(ClipTypes(), c.Type) {
		errs = append(errs, fmt.Errorf("clip.type: %s, want %s", quoted(c.Type), oneOf(ClipTypes())))
	}
	if y := c.Trigger.Year(); y < 2000 || y > 2261 {
		errs = append(errs, fmt.Errorf("clip.trigger: %s, want a time between 2000 and 2261", c.Trigger))
	}
	if c.Length < 0 || c.Length > 24*time.Hour {
		errs = append(errs, fmt.Errorf("clip.length_ns: %d, want 0 to a day", c.Length))
	}
	return errors.Join(append(errs, c.Detection.Validate())...)
}

func isHash(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// ClipJob is a clip that waits in the queue of the detectors: its bytes are
// stored under its id.
type ClipJob struct {
	Clip   Clip      `json:"clip"`
	Edge   string    `json:"edge"`
	Bucket string    `json:"bucket"`
	Key    string    `json:"key"`
	Queued time.Time `json:"queued"` // by the clock of who put it there
}

// Validate reports every fault.
func (j *ClipJob) Validate() error {
	err := j.Clip.Validate()
	if j.Edge == "" || j.Bucket == "" || j.Key == "" {
		err = errors.Join(err, errors.New("clip job: edge, bucket and key are required"))
	}
	return err
}

// ClipOffer is a clip of one edge that has not been decided on: whoever takes
// it from the queue of offers has it.
type ClipOffer struct {
	ID   string `json:"id"`
	Edge string `json:"edge"`
}

// Validate reports every fault.
func (o *ClipOffer) Validate() error {
	err := ClipID(o.ID)
	if o.Edge == "" {
		err = errors.Join(err, errors.New("clip offer: edge is required"))
	}
	return err
}

// States of a clip, in their order.
const (
	ClipUploading = "uploading" // announced; its bytes are not all there
	ClipQueued    = "queued"    // stored, waits for a detector or is with one
	ClipDone      = "done"      // has a result
	ClipDead      = "dead"      // has a result that says why there is no detection
)

// ClipState is what the lab knows of a clip: the document in the bucket of
// clips, and what an edge is told of it.
type ClipState struct {
	Clip     Clip        `json:"clip"`
	Edge     string      `json:"edge"`
	State    string      `json:"state"`
	Upload   string      `json:"upload,omitempty"` // of a multipart upload that is under way
	Where    string      `json:"where,omitempty"`  // WhereEdge or WhereCloud: who detects
	Stamps   ClipStamps  `json:"stamps"`
	Result   *ClipResult `json:"result,omitempty"`
	Attempts int         `json:"attempts,omitempty"` // deliveries to detectors
	Updated  time.Time   `json:"updated"`
	// Reported is when the edge's account of the clip was recorded.
	Reported time.Time `json:"reported,omitzero"`
}

// Ended reports whether the clip has its result.
func (s *ClipState) Ended() bool { return s.State == ClipDone || s.State == ClipDead }

// ClipStamps are when a clip passed each stage in the lab, by the clock of who
// did it; zero for stages it did not pass. Those at the edge are the edge's.
type ClipStamps struct {
	Uploaded     time.Time `json:"uploaded,omitzero"`     // every byte stored
	Queued       time.Time `json:"queued,omitzero"`       // in the queue of the detectors
	Taken        time.Time `json:"taken,omitzero"`        // by a detector
	Fetched      time.Time `json:"fetched,omitzero"`      // every byte at the detector
	Decoded      time.Time `json:"decoded,omitzero"`      // the last frame that is looked at
	Inferred     time.Time `json:"inferred,omitzero"`     // the last frame
	Stored       time.Time `json:"stored,omitzero"`       // the result
	Acknowledged time.Time `json:"acknowledged,omitzero"` // the job
}

// ClipResult is the short form of a clip's result.
type ClipResult struct {
	Key    string `json:"key"` // of the whole in the bucket of results
	Status string `json:"status"`
	Error  string `json:"error,omitempty"`
	// Labels are the best scores of what was seen.
	Labels map[string]float64 `json:"labels,omitempty"`
	// Hash identifies what was seen, whoever saw it: [Detections.Hash].
	Hash   string `json:"hash,omitempty"`
	Worker string `json:"worker,omitempty"`
	// Decode and Infer are how long these took by themselves, without waiting
	// for each other.
	Decode time.Duration `json:"decode_ns"`
	Infer  time.Duration `json:"infer_ns"`
}

// Where a clip was looked at.
const (
	WhereEdge  = "edge"
	WhereCloud = "cloud"
)

// Statuses of a result, beside ok.
const (
	StatusUndecodable = "undecodable" // not a video, or a broken one
	StatusModel       = "model"       // the model cannot be loaded or does not fit
	StatusCrashed     = "crashed"     // whoever looked at it crashed every time
	StatusLost        = "lost"        // the clip's bytes are gone
	StatusExpired     = "expired"     // dropped by the edge's bounds before it could be sent
)

// Detections is a clip's result: the object stored for it.
type Detections struct {
	Version int       `json:"version"` // 1
	Clip    string    `json:"clip"`
	Edge    string    `json:"edge"`
	SHA256  string    `json:"clip_sha256"`
	Where   string    `json:"where"`
	Worker  string    `json:"worker"`
	Status  string    `json:"status"`
	Error   string    `json:"error,omitempty"`
	Model   ModelUsed `json:"model"`
	Sample  float64   `json:"sample_per_s"`
	Frames  []Frame   `json:"frames"`
	// Labels are the best scores of what was seen in all frames.
	Labels  map[string]float64 `json:"labels"`
	Created time.Time          `json:"created"`
	// Decode and Infer are how long these took by themselves.
	Decode time.Duration `json:"decode_ns"`
	Infer  time.Duration `json:"infer_ns"`
}

// ModelUsed identifies a model and what ran it.
type ModelUsed struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // of the model's files; empty for models that are part of the engine
	Engine string `json:"engine"` // such as `opencv 4.6.0`
}

// Frame is one frame that was looked at.
type Frame struct {
	At      time.Duration `json:"at_ns"` // in the clip's own time
	Objects []Object      `json:"objects"`
}

// Object is one thing seen in a frame.
type Object struct {
	Label string  `json:"label"`
	Score float64 `json:"score"` // 0 to 1
	Box   Box     `json:"box"`
}

// Box is where it is, as shares of the frame's width and height, from the top
// left.
type Box struct {
	X float64 `json:"x"`
	Y float64 `json:"y"`
	W float64 `json:"w"`
	H float64 `json:"h"`
}

// Validate reports faults of a result from outside.
func (d *Detections) Validate() error {
	var errs []error
	if d.Version != 1 {
		errs = append(errs, fmt.Errorf("result.version: %d, want 1", d.Version))
	}
	if err := ClipID(d.Clip); err != nil {
		errs = append(errs, fmt.Errorf("result.clip: %w", err))
	}
	if d.Status == "" || len(d.Status) > maxDictionaryValue {
		errs = append(errs, fmt.Errorf("result.status: %s, want a word", quoted(d.Status)))
	}
	if len(d.Frames) > MaxDetectionFrames {
		return errors.Join(append(errs, fmt.Errorf("result.frames: %d, want at most %d", len(d.Frames), MaxDetectionFrames))...)
	}
	share := func(v float64) bool { return v >= -1 && v <= 2 && !math.IsNaN(v) }
	for i, f := range d.Frames {
		if f.At < 0 || len(f.Objects) > MaxFrameObjects {
			errs = append(errs, fmt.Errorf("result.frames[%d]: at %d ns with %d objects, want a time of 0 or more and at most %d objects", i, f.At, len(f.Objects), MaxFrameObjects))
			break
		}
		for j, o := range f.Objects {
			if o.Label == "" || len(o.Label) > 128 || !(o.Score >= 0 && o.Score <= 1) || !share(o.Box.X) || !share(o.Box.Y) || !share(o.Box.W) || !share(o.Box.H) {
				errs = append(errs, fmt.Errorf("result.frames[%d].objects[%d]: want a label of at most 128 bytes, a score of 0 to 1, a box in shares of the frame", i, j))
				return errors.Join(errs...)
			}
		}
	}
	return errors.Join(errs...)
}

// Result is the short form.
func (d *Detections) Result(key string) *ClipResult {
	r := &ClipResult{Key: key, Status: d.Status, Error: d.Error, Labels: d.Labels, Worker: d.Worker, Decode: d.Decode, Infer: d.Infer}
	if d.Status == StatusOK {
		r.Hash = d.Hash()
	}
	return r
}

// Hash identifies what was seen in which bytes by which model: equal for two
// results exactly if they say the same, wherever and whenever they were made.
func (d *Detections) Hash() string {
	same := struct {
		Clip   string  `json:"clip_sha256"`
		Model  string  `json:"model_sha256"`
		Name   string  `json:"model"`
		Sample float64 `json:"sample"`
		Frames []Frame `json:"frames"`
	}{d.SHA256, d.Model.SHA256, d.Model.Name, d.Sample, d.Frames}
	data, err := json.Marshal(same)
	if err != nil {
		// Scores that are no numbers do not pass Validate.
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// DetectorStatus is what a detector says of itself, renewed as long as it is
// there.
type DetectorStatus struct {
	Name     string    `json:"name"`
	Site     string    `json:"site"`
	Slots    int       `json:"slots"` // clips in work at a time
	Busy     int       `json:"busy"`
	Draining bool      `json:"draining"` // takes no more
	Idle     time.Time `json:"idle,omitzero"`
	// Service is the mean time a clip was in work of the last ones, 0 before the
	// first; Decode and Infer are its parts.
	Service time.Duration `json:"service_ns"`
	Decode  time.Duration `json:"decode_ns"`
	Infer   time.Duration `json:"infer_ns"`
	Clips   uint64        `json:"clips"` // done since its start
	Updated time.Time     `json:"updated"`
}

// Drain tells a detector to finish what it has and take no more.
type Drain struct {
	Reason string `json:"reason,omitempty"`
}

// Validate reports every fault.
func (d *Drain) Validate() error {
	if len(d.Reason) > maxDictionaryValue {
		return fmt.Errorf("drain.reason: %d bytes, want at most %d", len(d.Reason), maxDictionaryValue)
	}
	return nil
}

// OffloadState is what an edge needs to know of the other side to decide.
type OffloadState struct {
	Waiting int           `json:"waiting"` // clips in the queue
	InWork  int           `json:"in_work"`
	Slots   int           `json:"slots"` // of all detectors that are there
	Service time.Duration `json:"service_ns"`
	Now     time.Time     `json:"now"` // by the clock of who answers
}

// EdgeAccount lets an edge in; the token itself is known to the edge alone.
type EdgeAccount struct {
	Name    string    `json:"name"`
	Hash    string    `json:"token_sha256"`
	Created time.Time `json:"created"`
	Revoked time.Time `json:"revoked,omitzero"`
	Seen    time.Time `json:"seen,omitzero"`
}
