package vision

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/transferlab/transferlab/edge/vision/internal/nets"
	"github.com/transferlab/transferlab/schemas"
)

// Options of a Detector. The zero value is good.
type Options struct {
	// Model is looked with unless a clip asks for another; "" is nanodet where Dirs have
	// it, else hog.
	Model string
	// Sample is how many frames are looked at for each second of a clip; 0 is 1.
	Sample float64
	// Threshold is the least score of an object; 0 is the model's own.
	Threshold float64
	// Threads of ffmpeg and of OpenCV each; 0 is one a processor.
	Threads int
	// Slots is how many clips are worked on at a time, each with a worker process of its
	// own; 0 is 1.
	Slots int
	// Dirs are where models are looked for, in this order; nil is ModelDirs().
	Dirs []string
	// Program is transferlab-vision; "" is that beside the executable, that named by
	// TRANSFERLAB_VISION, or that in PATH.
	Program string
	// FFmpeg is the ffmpeg to use; "" is that in PATH.
	FFmpeg string
	// Nice (0 to 19) is how much the processes yield to others.
	Nice int
	// CPU is the share of the time for which the processes may run, 0 or 1 for all of
	// it: what is left is for others, such as the camera on a small machine.
	CPU float64
	// Keyframes decodes key frames only, which takes a third of the time: sample k is then
	// the last key frame at or before its time. The result is the same if key frames lie on
	// the samples (one a second, say). Whoever is to get the same results must have
	// the same setting.
	Keyframes bool
	// MaxLength is the longest clip; 0 is 10 minutes.
	MaxLength time.Duration
	// Timeout is how long decoding may go on after the clip's last byte, and how long the
	// model may look at one frame; 0 is a minute.
	Timeout time.Duration
	// Log of starts and ends of processes; nil is none.
	Log *slog.Logger
}

const (
	maxPixels  = 8192 * 4096
	maxThreads = 64
)

// Validate reports every fault.
func (o *Options) Validate() error {
	var errs []error
	if o.Model != "" && !schemas.ModelName(o.Model) {
		errs = append(errs, fmt.Errorf("model: %q, want lower-case letters, digits, dots, hyphens and underscores, at most 64", o.Model))
	}
	if !(o.Sample >= 0 && o.Sample <= schemas.MaxSampleRate) {
		errs = append(errs, fmt.Errorf("sample: %g, want 0 (1 a second) to %d", o.Sample, schemas.MaxSampleRate))
	}
	if !(o.Threshold >= 0 && o.Threshold <= 1) {
		errs = append(errs, fmt.Errorf("threshold: %g, want 0 (the model's own) to 1", o.Threshold))
	}
	if o.Threads < 0 || o.Threads > maxThreads {
		errs = append(errs, fmt.Errorf("threads: %d, want 0 (one a processor) to %d", o.Threads, maxThreads))
	}
	if o.Slots < 0 || o.Slots > 64 {
		errs = append(errs, fmt.Errorf("slots: %d, want 0 (one) to 64", o.Slots))
	}
	if o.Nice < 0 || o.Nice > 19 {
		errs = append(errs, fmt.Errorf("nice: %d, want 0 to 19", o.Nice))
	}
	if !(o.CPU >= 0 && o.CPU <= 1) {
		errs = append(errs, fmt.Errorf("cpu: %g, want 0 (all of it) to 1", o.CPU))
	}
	if o.MaxLength < 0 || o.MaxLength > 24*time.Hour {
		errs = append(errs, fmt.Errorf("max length: %s, want 0 (10 minutes) to a day", o.MaxLength))
	}
	if o.Timeout < 0 || o.Timeout > time.Hour {
		errs = append(errs, fmt.Errorf("timeout: %s, want 0 (a minute) to an hour", o.Timeout))
	}
	return errors.Join(errs...)
}

// ModelDirs are the directories where models are looked for: those that
// TRANSFERLAB_MODELS names, the user's cache, the system's.
func ModelDirs() []string {
	dirs := filepath.SplitList(os.Getenv("TRANSFERLAB_MODELS"))
	if cache, err := os.UserCacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(cache, "transferlab", "models"))
	}
	return append(dirs, "/usr/local/share/transferlab/models", "/usr/share/transferlab/models")
}

const programName = "transferlab-vision"

func findProgram(given string) (string, error) {
	if given != "" {
		return exec.LookPath(given)
	}
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), programName)); err == nil {
			return path, nil
		}
	}
	if path := os.Getenv("TRANSFERLAB_VISION"); path != "" {
		return exec.LookPath(path)
	}
	return exec.LookPath(programName)
}

// New finds ffmpeg and transferlab-vision and says what to do if one is not
// there. It starts nothing.
func New(o Options) (*Detector, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("detection: %w", err)
	}
	var errs []error
	var err error
	if o.Program, err = findProgram(o.Program); err != nil {
		errs = append(errs, fmt.Errorf("detection needs transferlab-vision, which `task opencv` builds: %w", err))
	}
	if o.FFmpeg == "" {
		o.FFmpeg = "ffmpeg"
	}
	if o.FFmpeg, err = exec.LookPath(o.FFmpeg); err != nil {
		errs = append(errs, fmt.Errorf("detection needs ffmpeg, which `task opencv` installs: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if o.Sample == 0 {
		o.Sample = 1
	}
	if o.Slots == 0 {
		o.Slots = 1
	}
	if o.Dirs == nil {
		o.Dirs = ModelDirs()
	}
	if o.MaxLength == 0 {
		o.MaxLength = 10 * time.Minute
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return newDetector(o), nil
}

// Model is the name of the model that is used unless a clip asks for another.
func (d *Detector) Model() string {
	if d.o.Model != "" {
		return d.o.Model
	}
	if _, err := nets.Find(nets.NameNanoDet, d.o.Dirs); err == nil {
		return nets.NameNanoDet
	}
	return nets.NameHOG
}
