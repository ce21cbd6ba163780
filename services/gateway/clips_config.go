package gateway

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// storeAWS names AWS's own S3 as the store of clips.
const storeAWS = "aws"

// ClipsConfig says where clips are stored and what edges may do.
type ClipsConfig struct {
	Store        string `help:"S3 endpoint that stores clips and results, or aws; without it edges cannot send clips. Its keys come from TRANSFERLAB_S3_ACCESS_KEY and TRANSFERLAB_S3_SECRET_KEY, else from the AWS environment." env:"TRANSFERLAB_CLIP_STORE" placeholder:"URL"`
	Public       string `help:"The same endpoint as edges reach it; the other if not given." env:"TRANSFERLAB_CLIP_PUBLIC" placeholder:"URL"`
	Region       string `help:"Region of the store." env:"TRANSFERLAB_CLIP_REGION" default:"us-east-1"`
	BucketPrefix string `help:"Put before the names of the buckets clips and results." env:"TRANSFERLAB_CLIP_BUCKET_PREFIX" placeholder:"PREFIX"`
	CAFile       string `name:"ca-file" help:"Certificate authorities (PEM) of the store to trust beside the system's." env:"TRANSFERLAB_CLIP_CA_FILE" type:"path" placeholder:"FILE"`

	MaxBytes    int64         `help:"Largest clip, in bytes." env:"TRANSFERLAB_CLIP_MAX_BYTES" default:"536870912"`
	PartBytes   int64         `help:"Size of the parts that clips are uploaded in, in bytes; smaller clips go in one piece." env:"TRANSFERLAB_CLIP_PART_BYTES" default:"5242880"`
	MinRate     int64         `help:"Least bytes a second on average of a clip that is being received; slower ones are refused." env:"TRANSFERLAB_CLIP_MIN_RATE" default:"16384"`
	Pause       time.Duration `help:"How long nothing may come of a clip that is being received, and for how long from its begin no rate is asked for." env:"TRANSFERLAB_CLIP_PAUSE" default:"15s"`
	Uploads     int           `help:"Clips received at a time; more are refused." env:"TRANSFERLAB_CLIP_UPLOADS" default:"64"`
	EdgeUploads int           `help:"Of these, of one edge." env:"TRANSFERLAB_CLIP_EDGE_UPLOADS" default:"8"`
	EdgeOpen    int           `help:"Multipart uploads that one edge may have begun and not completed." env:"TRANSFERLAB_CLIP_EDGE_OPEN" default:"256"`
	EdgeRate    float64       `help:"Requests a second of one edge on average; more are refused." env:"TRANSFERLAB_CLIP_EDGE_RATE" default:"50"`
	Waits       int           `help:"Edges that wait for results at a time; more are refused." env:"TRANSFERLAB_CLIP_WAITS" default:"1024"`
	EdgeWaits   int           `help:"Of these, of one edge." env:"TRANSFERLAB_CLIP_EDGE_WAITS" default:"4"`
	Expiry      time.Duration `help:"How long an edge may use an upload URL." env:"TRANSFERLAB_CLIP_EXPIRY" default:"1h"`
	UploadTTL   time.Duration `help:"How long an upload that does not go on is kept." env:"TRANSFERLAB_CLIP_UPLOAD_TTL" default:"24h"`
	Mend        time.Duration `help:"How often clips that got stuck are looked for." env:"TRANSFERLAB_CLIP_MEND" default:"1m"`

	// Keys of the store. They are no flags: a command line can be read by
	// everybody on the machine.
	AccessKey string `kong:"-"`
	SecretKey string `kong:"-"`
}

// Environment variables of the store's keys.
const (
	envAccessKey = "TRANSFERLAB_S3_ACCESS_KEY"
	envSecretKey = "TRANSFERLAB_S3_SECRET_KEY"
)

// DefaultClipsConfig has no store.
func DefaultClipsConfig() ClipsConfig {
	return ClipsConfig{
		Region: "us-east-1", MaxBytes: schemas.MaxClipBytes, PartBytes: objectstore.MinPartBytes, MinRate: 16 << 10, Pause: 15 * time.Second,
		Uploads: 64, EdgeUploads: 8, EdgeOpen: 256, EdgeRate: 50, Waits: 1024, EdgeWaits: 4,
		Expiry: time.Hour, UploadTTL: 24 * time.Hour, Mend: time.Minute,
	}
}

// Validate reports every fault.
func (c *ClipsConfig) Validate() error {
	var errs []error
	between := func(flag string, v, low, high int64) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("--clip-%s: %d, want %d to %d", flag, v, low, high))
		}
	}
	spans := func(flag string, v, low, high time.Duration) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("--clip-%s: %s, want %s to %s", flag, v, low, high))
		}
	}
	for _, t := range []objectstore.Target{c.target(c.Store), c.target(c.public())} {
		if err := t.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("--clip-store, --clip-public, --clip-region, --clip-bucket-prefix: %w", err))
			break
		}
	}
	if c.CAFile != "" {
		if _, err := os.Stat(c.CAFile); err != nil {
			errs = append(errs, fmt.Errorf("--clip-ca-file: %q, want a readable PEM file: %w", c.CAFile, err))
		}
	}
	if (c.AccessKey == "") != (c.SecretKey == "") {
		errs = append(errs, fmt.Errorf("%s, %s: one is set without the other, want both or neither", envAccessKey, envSecretKey))
	}
	between("max-bytes", c.MaxBytes, 1, schemas.MaxClipBytes)
	between("part-bytes", c.PartBytes, objectstore.MinPartBytes, 1<<30)
	between("min-rate", c.MinRate, 1, 1<<30)
	between("uploads", int64(c.Uploads), 1, 65536)
	between("edge-uploads", int64(c.EdgeUploads), 1, 65536)
	between("edge-waits", int64(c.EdgeWaits), 1, 65536)
	between("edge-open", int64(c.EdgeOpen), 1, 10_000)
	between("waits", int64(c.Waits), 1, 65536)
	if !(c.EdgeRate > 0 && c.EdgeRate <= 1e6) {
		errs = append(errs, fmt.Errorf("--clip-edge-rate: %g, want above 0, up to 1000000", c.EdgeRate))
	}
	spans("pause", c.Pause, 10*time.Millisecond, 5*time.Minute)
	spans("expiry", c.Expiry, time.Minute, 7*24*time.Hour)
	spans("upload-ttl", c.UploadTTL, c.Expiry, 30*24*time.Hour)
	spans("mend", c.Mend, 10*time.Millisecond, time.Hour)
	return errors.Join(errs...)
}

func (c *ClipsConfig) public() string {
	if c.Public == "" {
		return c.Store
	}
	return c.Public
}

func (c *ClipsConfig) target(endpoint string) objectstore.Target {
	if endpoint == storeAWS {
		endpoint = ""
	}
	return objectstore.Target{Endpoint: endpoint, Region: c.Region, BucketPrefix: c.BucketPrefix, CAFile: c.CAFile}
}

func (c *ClipsConfig) credentials() objectstore.CredentialSource {
	if c.AccessKey == "" {
		return objectstore.Chain()
	}
	return objectstore.Static(c.AccessKey, c.SecretKey, "")
}

// withEnvironment adds the keys that the environment has.
func (c ClipsConfig) withEnvironment() ClipsConfig {
	if c.AccessKey == "" && c.SecretKey == "" {
		c.AccessKey, c.SecretKey = os.Getenv(envAccessKey), os.Getenv(envSecretKey)
	}
	return c
}
