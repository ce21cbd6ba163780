package detector

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// Config of a detector.
type Config struct {
	Name string `help:"Name of this detector, unique in the lab; host name and a random word if not given." env:"TRANSFERLAB_DETECTOR"`
	Site string `help:"Site this detector stands at." env:"TRANSFERLAB_SITE" default:"local"`

	Endpoint string `name:"s3-endpoint" help:"URL of the store that has the clips; the AWS configuration's if not given. Its keys come from TRANSFERLAB_S3_ACCESS_KEY and TRANSFERLAB_S3_SECRET_KEY." env:"TRANSFERLAB_S3_ENDPOINT"`
	Region   string `name:"s3-region" help:"Region of the store." env:"TRANSFERLAB_S3_REGION" default:"us-east-1"`
	Prefix   string `name:"s3-bucket-prefix" help:"What is put before the names of buckets, as the gateway does." env:"TRANSFERLAB_S3_BUCKET_PREFIX"`
	CAFile   string `name:"s3-ca-file" help:"Certificate authorities (PEM) to trust beside the system's." env:"TRANSFERLAB_S3_CA_FILE" type:"path"`
	Results  string `name:"results-bucket" help:"Bucket that results go to." env:"TRANSFERLAB_RESULTS_BUCKET" default:"results"`

	Models    []string `name:"models" help:"Directories with models, looked through before those that everybody looks through (TRANSFERLAB_MODELS, the user's cache, the system's)." type:"path"`
	Model     string   `name:"model" help:"Model for clips that name none; the engine's own if not given." env:"TRANSFERLAB_MODEL"`
	Sample    float64  `name:"sample" help:"Frames looked at for each second of a clip that does not say; 0 is the engine's own." env:"TRANSFERLAB_SAMPLE" default:"0"`
	Threshold float64  `name:"threshold" help:"Least score of an object for clips that do not say; 0 is the model's own." env:"TRANSFERLAB_THRESHOLD" default:"0"`
	Program   string   `name:"vision" help:"The program transferlab-vision; found beside this one or in PATH if not given." env:"TRANSFERLAB_VISION"`
	Keyframes bool     `name:"keyframes" help:"Decode key frames only: faster, and equal where they lie on the frames looked at. As the edges have it." env:"TRANSFERLAB_VISION_KEYFRAMES"`
	Nice      int      `name:"nice" help:"Niceness of decoding and inference." env:"TRANSFERLAB_VISION_NICE" default:"0"`

	Slots    int           `name:"slots" help:"Clips looked at at a time." env:"TRANSFERLAB_DETECTOR_SLOTS" default:"1"`
	Threads  int           `name:"threads" help:"Threads of inference of each slot; 0 shares all cores among the slots." env:"TRANSFERLAB_DETECTOR_THREADS" default:"0"`
	Prefetch int64         `name:"prefetch" help:"Bytes of clips held in memory; each slot has the next clip fetched while it looks at one, unless this is 0." env:"TRANSFERLAB_DETECTOR_PREFETCH" default:"67108864"`
	Tries    int           `name:"tries" help:"Tries at a clip that crashes or takes too long." env:"TRANSFERLAB_DETECTOR_TRIES" default:"5"`
	Lease    time.Duration `name:"lease" help:"How long this detector may be silent before its clips go to others; the same for all detectors." env:"TRANSFERLAB_DETECTOR_LEASE" default:"30s"`
	Timeout  time.Duration `name:"timeout" help:"How long a clip may be looked at." env:"TRANSFERLAB_DETECTOR_TIMEOUT" default:"5m"`
	Grace    time.Duration `name:"grace" help:"How long clips in work may take to be finished once this detector is told to end." env:"TRANSFERLAB_DETECTOR_GRACE" default:"60s"`
	IdleExit time.Duration `name:"idle-exit" help:"End after so long without a clip; 0 is never." env:"TRANSFERLAB_DETECTOR_IDLE_EXIT" default:"0s"`

	// Keys of the store. They are no flags: a command line can be read by
	// everybody on the machine.
	AccessKey string `kong:"-"`
	SecretKey string `kong:"-"`
}

// Environment variables of the store.
const (
	EnvAccessKey = "TRANSFERLAB_S3_ACCESS_KEY"
	EnvSecretKey = "TRANSFERLAB_S3_SECRET_KEY"
)

// DefaultConfig is what the flags default to.
func DefaultConfig() Config {
	return Config{
		Site: "local", Region: "us-east-1", Results: "results", Slots: 1, Prefetch: 64 << 20, Tries: 5,
		Lease: 30 * time.Second, Timeout: 5 * time.Minute, Grace: time.Minute,
	}
}

// Bounds of the configuration.
const (
	maxSlots    = 64
	maxThreads  = 1024
	minPrefetch = 1 << 20
	maxPrefetch = 64 << 30
	maxTries    = 100
)

// Validate reports every fault.
func (c *Config) Validate() error {
	var errs []error
	bad := func(flag string, value any, want string) {
		errs = append(errs, fmt.Errorf("%s: %v, want %s", flag, value, want))
	}
	name := regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	if c.Name != "" && !name.MatchString(c.Name) {
		bad("--name", fmt.Sprintf("%q", c.Name), "lower-case letters, digits, hyphens and underscores, at most 63")
	}
	if c.Site != schemas.SiteAny && !name.MatchString(c.Site) {
		bad("--site", fmt.Sprintf("%q", c.Site), "* or lower-case letters, digits and hyphens, at most 63")
	}
	target := c.target()
	if err := target.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("--s3-endpoint, --s3-region, --s3-bucket-prefix: %w", err))
	}
	if c.CAFile != "" {
		if _, err := os.Stat(c.CAFile); err != nil {
			errs = append(errs, fmt.Errorf("--s3-ca-file: %q, want a readable PEM file: %w", c.CAFile, err))
		}
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		errs = append(errs, fmt.Errorf("%s, %s: one is set without the other, want both or neither", EnvAccessKey, EnvSecretKey))
	}
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`).MatchString(c.Results) {
		bad("--results-bucket", fmt.Sprintf("%q", c.Results), "3 to 63 lower-case letters, digits, dots and hyphens")
	}
	for _, dir := range c.Models {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			bad("--models", fmt.Sprintf("%q", dir), "a directory")
		}
	}
	if c.Model != "" && !schemas.ModelName(c.Model) {
		bad("--model", fmt.Sprintf("%q", c.Model), "lower-case letters, digits, dots, hyphens and underscores, at most 64")
	}
	if !(c.Sample >= 0 && c.Sample <= schemas.MaxSampleRate) {
		bad("--sample", c.Sample, fmt.Sprintf("0 to %d", schemas.MaxSampleRate))
	}
	if !(c.Threshold >= 0 && c.Threshold <= 1) {
		bad("--threshold", c.Threshold, "0 to 1")
	}
	if c.Nice < 0 || c.Nice > 19 {
		bad("--nice", c.Nice, "0 to 19")
	}
	if c.Slots < 1 || c.Slots > maxSlots {
		bad("--slots", c.Slots, fmt.Sprintf("1 to %d", maxSlots))
	}
	if c.Threads < 0 || c.Threads > maxThreads {
		bad("--threads", c.Threads, fmt.Sprintf("0 to %d", maxThreads))
	}
	if c.Prefetch != 0 && (c.Prefetch < minPrefetch || c.Prefetch > maxPrefetch) {
		bad("--prefetch", c.Prefetch, fmt.Sprintf("0, or %d to %d", minPrefetch, int64(maxPrefetch)))
	}
	if c.Tries < 1 || c.Tries > maxTries {
		bad("--tries", c.Tries, fmt.Sprintf("1 to %d", maxTries))
	}
	for _, f := range []struct {
		flag               string
		value, least, most time.Duration
	}{
		{"--lease", c.Lease, time.Second, time.Hour},
		{"--timeout", c.Timeout, time.Second, 24 * time.Hour},
		{"--grace", c.Grace, 0, time.Hour},
		{"--idle-exit", c.IdleExit, 0, 30 * 24 * time.Hour},
	} {
		if f.value < f.least || f.value > f.most {
			bad(f.flag, f.value, fmt.Sprintf("%s to %s", f.least, f.most))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) target() objectstore.Target {
	return objectstore.Target{Endpoint: c.Endpoint, Region: c.Region, BucketPrefix: c.Prefix, CAFile: c.CAFile}
}

// parallel is how many clips are in work at a time, those included that are
// only fetched.
func (c *Config) parallel() int {
	if c.Prefetch == 0 {
		return c.Slots
	}
	return 2 * c.Slots
}

// share is how many bytes of one clip are held.
func (c *Config) share() int64 { return max(c.Prefetch/int64(c.parallel()), 256<<10) }

func (c *Config) threads() int {
	if c.Threads > 0 {
		return c.Threads
	}
	return max(runtime.NumCPU()/c.Slots, 1)
}

func (c *Config) dirs() []string {
	if len(c.Models) == 0 {
		return nil
	}
	return append(slices.Clone(c.Models), vision.ModelDirs()...)
}

// complete fills in what is not given.
func (c Config) complete() Config {
	if c.AccessKey == "" && c.SecretKey == "" {
		c.AccessKey, c.SecretKey = os.Getenv(EnvAccessKey), os.Getenv(EnvSecretKey)
	}
	if c.Name == "" {
		host, err := os.Hostname()
		host = strings.Trim(strings.ToLower(bus.Token(host)), "-_")
		if err != nil || host == "" {
			host = ServiceName
		}
		// Several detectors on one machine are the rule.
		c.Name = host[:min(len(host), 48)] + "-" + strings.ToLower(rand.Text()[:8])
	}
	return c
}
