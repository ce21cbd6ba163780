package motion

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Kinds of telling motion.
const (
	KindFrame   = "frame"   // difference from a running average
	KindMixture = "mixture" // difference from a mixture of values for each pixel
	KindGPIO    = "gpio"    // a sensor on a GPIO line
	KindNone    = "none"    // not at all: clips follow each other
)

// Kinds lists them.
func Kinds() []string { return []string{KindFrame, KindMixture, KindGPIO, KindNone} }

// Which frames are looked at.
const (
	FramesAuto = "auto"
	FramesAll  = "all"
	FramesKey  = "key"
)

// Size of the pictures that are looked at, whatever the camera's: enough for a
// person at the far end of a garden, and a hundredth of the work.
const (
	Width  = 160
	Height = 90
)

// Config of a detector of motion.
type Config struct {
	Kind string `yaml:"kind"`
	// Threshold is how much a pixel must differ to count, of 255.
	Threshold float64 `yaml:"threshold"`
	// MinArea is how large a connected change must be, as a share of the picture.
	MinArea float64 `yaml:"min_area"`
	// Rate is how many pictures a second are looked at, at most.
	Rate float64 `yaml:"rate"`
	// Frames is which are decoded to look at: all, key (those that decode by
	// themselves: little work, one a second of our own recordings), or auto: key of
	// rpicam-vid, whose pictures a Raspberry Pi 3 cannot all decode, else all.
	Frames string `yaml:"frames"`
	// Cooldown is how long after a clip's end nothing triggers the next.
	Cooldown schemas.Duration `yaml:"cooldown"`

	Chip      string           `yaml:"chip"` // such as /dev/gpiochip0
	Line      int              `yaml:"line"`
	ActiveLow bool             `yaml:"active_low"`
	Bias      string           `yaml:"bias"` // up, down or none; empty leaves it as it is
	Debounce  schemas.Duration `yaml:"debounce"`
}

// DefaultConfig tells motion by pictures.
func DefaultConfig() Config {
	return Config{
		Kind: KindFrame, Threshold: 20, MinArea: 0.002, Rate: 5, Frames: FramesAuto, Cooldown: schemas.Duration(4 * time.Second),
		Chip: "/dev/gpiochip0", Line: -1, Debounce: schemas.Duration(10 * time.Millisecond),
	}
}

// Pictures reports whether motion is told by pictures.
func (c *Config) Pictures() bool { return c.Kind == KindFrame || c.Kind == KindMixture }

// Check reports every fault; at is the path of this section.
func (c *Config) Check(at string) []schemas.Fault {
	var faults []schemas.Fault
	add := func(field, format string, args ...any) {
		faults = append(faults, schemas.Fault{Path: at + "." + field, Text: fmt.Sprintf(format, args...)})
	}
	if !slices.Contains(Kinds(), c.Kind) {
		add("kind", "%q, want %s", c.Kind, strings.Join(Kinds(), ", "))
	}
	if c.Pictures() {
		if !(c.Threshold >= 1 && c.Threshold <= 254) {
			add("threshold", "%g, want 1 to 254 (of 255 steps from black to white)", c.Threshold)
		}
		if !(c.MinArea > 0 && c.MinArea <= 0.5) {
			add("min_area", "%g, want a share of the picture above 0 and up to 0.5", c.MinArea)
		}
		if !(c.Rate >= 0.2 && c.Rate <= 30) {
			add("rate", "%g, want 0.2 to 30 pictures a second", c.Rate)
		}
		if !slices.Contains([]string{FramesAuto, FramesAll, FramesKey}, c.Frames) {
			add("frames", "%q, want auto, all, key", c.Frames)
		}
	}
	if d := time.Duration(c.Cooldown); d < 0 || d > time.Hour {
		add("cooldown", "%s, want 0s to 1h", d)
	}
	if c.Kind == KindGPIO {
		if c.Chip == "" {
			add("chip", "%q, want the device of a GPIO chip such as /dev/gpiochip0", c.Chip)
		}
		if c.Line < 0 || c.Line > 1023 {
			add("line", "%d, want the line's number on the chip, 0 to 1023 (on a Raspberry Pi the BCM number)", c.Line)
		}
		if !slices.Contains([]string{"", "up", "down", "none"}, c.Bias) {
			add("bias", "%q, want up, down, none or nothing", c.Bias)
		}
		if d := time.Duration(c.Debounce); d < 0 || d > time.Second {
			add("debounce", "%s, want 0s to 1s", d)
		}
	}
	return faults
}
