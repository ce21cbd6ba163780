package camera

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/transferlab/transferlab/edge/motion"
)

// Source makes clips.
type Source interface {
	// Run makes clips until ctx ends, or a file that is not looped has ended.
	// Its error is a fault that trying again does not heal.
	Run(ctx context.Context, sink Sink) error
}

// Start is what is known of a clip when it begins.
type Start struct {
	// ID is a name for the clip that [schemas.ClipID] allows: for a file of a
	// directory always the same.
	ID string
	// Trigger is when motion was seen; of a directory's file, when it was last
	// changed.
	Trigger time.Time
	Type    string // media type
	// Path and Size are those of a directory's file, "" and 0 for what is being
	// recorded.
	Path string
	Size int64
}

// End is what is known of a clip when it is whole.
type End struct {
	Recorded  time.Time     // the last byte
	Length    time.Duration // playing time, 0 when it is not known
	Truncated bool          // ended before its time
}

// Sink takes clips.
type Sink interface {
	// Begin opens a clip. With an error that is [io/fs.ErrExist] it says that a
	// clip of that id, whole, has been committed before; with [ErrPartial] that a
	// crash has left a part of it, which shall be left alone.
	Begin(ctx context.Context, s Start) (Recording, error)
}

// ErrPartial is of a clip that is there in part: fewer bytes than [Start] says.
var ErrPartial = errors.New("a crash has cut this clip short")

// Recording takes a clip's bytes. Its calls come one after the other, but the
// Commit of one may overlap the writing of the next.
type Recording interface {
	io.Writer
	// Commit makes the clip durable.
	Commit(ctx context.Context, e End) error
	// Abort leaves nothing of it; it is also called after a Commit that failed.
	Abort() error
}

// Options of a source. The sections have been checked.
type Options struct {
	Name   string // the edge's, first part of clips' ids
	Source Config
	Clip   ClipConfig
	Motion motion.Config
	// Line is the sensor of motion kind gpio; nil opens the one that Motion names.
	Line motion.Line
	Log  *slog.Logger
}

// New returns the source that the configuration names. It starts nothing.
func New(o Options) (Source, error) {
	faults := append(append(o.Source.Check("source"), o.Clip.Check("clip")...), o.Motion.Check("motion")...)
	if len(faults) > 0 {
		errs := make([]error, len(faults))
		for i, f := range faults {
			errs[i] = f
		}
		return nil, errors.Join(errs...)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Source.Kind == KindDirectory {
		return newDirectory(o), nil
	}
	return newLive(o), nil
}

// commitTime bounds making a clip durable, also when the program is to end.
const commitTime = 30 * time.Second

// clipName names a clip after its trigger. The random part tells clips apart
// whose edge's clock was set back, which happens without a real-time clock at
// every power cut.
func clipName(edge string, trigger time.Time) string {
	var unique [3]byte
	_, _ = rand.Read(unique[:])
	t := trigger.UTC()
	return fmt.Sprintf("%s-%s-%09d-%s", safeName(edge), t.Format("20060102T150405"), t.Nanosecond(), hex.EncodeToString(unique[:]))
}

// safeName makes a name of letters, digits, hyphens and underscores that begins
// with a letter or digit and leaves room for what is added to it.
func safeName(s string) string {
	const most = 64
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '-'
	}, s[:min(len(s), 4*most)])
	s = strings.Trim(s[:min(len(s), most)], "-_")
	if s == "" {
		return "clip"
	}
	return s
}
