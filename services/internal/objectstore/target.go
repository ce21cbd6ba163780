package objectstore

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// Target names an S3 endpoint. It holds no secrets: it may be written to files and sent over the bus.
type Target struct {
	// Endpoint is the base URL, scheme://host[:port][/path]. Empty is what AWS_ENDPOINT_URL or the profile say, unless the
	// credentials are from elsewhere, else AWS in Region.
	Endpoint string `json:"endpoint,omitempty" yaml:"endpoint,omitempty"`
	// Region signs requests. Empty is what AWS_REGION or the profile say, else us-east-1.
	Region string `json:"region,omitempty" yaml:"region,omitempty"`
	// Profile of the shared AWS configuration; empty is AWS_PROFILE or "default".
	Profile string `json:"profile,omitempty" yaml:"profile,omitempty"`
	// PathStyle puts the bucket into the path (https://host/bucket/key) rather than into the host's name. It is implied
	// where the latter cannot work: for IP addresses, for localhost, for buckets with dots behind TLS.
	PathStyle bool `json:"path_style,omitempty" yaml:"path_style,omitempty"`
	// BucketPrefix is put before every bucket's name, since those are global on AWS.
	BucketPrefix string `json:"bucket_prefix,omitempty" yaml:"bucket_prefix,omitempty"`
	// CAFile holds further certificate authorities (PEM) to trust, beside the system's and those of AWS_CA_BUNDLE.
	CAFile string `json:"ca_file,omitempty" yaml:"ca_file,omitempty"`
	// Unsigned sends requests without signature, for public buckets.
	Unsigned bool `json:"unsigned,omitempty" yaml:"unsigned,omitempty"`
}

var (
	regionPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	prefixPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,40}$`)
)

// Validate reports everything that is wrong with t.
func (t *Target) Validate() error {
	var faults []error
	if t.Endpoint != "" {
		if err := validateEndpoint(t.Endpoint); err != nil {
			faults = append(faults, err)
		}
	}
	if t.Region != "" && !regionPattern.MatchString(t.Region) {
		faults = append(faults, fmt.Errorf("region: %q, must be lower case letters, digits and hyphens, such as us-west-2", t.Region))
	}
	if t.BucketPrefix != "" && !prefixPattern.MatchString(t.BucketPrefix) {
		faults = append(faults, fmt.Errorf("bucket_prefix: %q, must be up to 41 lower case letters, digits, dots and hyphens", t.BucketPrefix))
	}
	if t.Unsigned && t.Profile != "" {
		faults = append(faults, fmt.Errorf("profile: %q, must be empty with unsigned: true", t.Profile))
	}
	return errors.Join(faults...)
}

func validateEndpoint(endpoint string) error {
	const allowed = "must be http://HOST[:PORT] or https://HOST[:PORT], with a path only if the store is below one"
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return fmt.Errorf("endpoint: %q, %s: %w", endpoint, allowed, err)
	case u.User != nil:
		return errors.New("endpoint: must not hold a user or password; credentials come from the environment or a profile")
	case (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("endpoint: %q, %s", endpoint, allowed)
	}
	return nil
}

// pathStyle reports whether the bucket must go into the path of a request to base.
func (t *Target) pathStyle(base *url.URL, bucket string) bool {
	host := base.Hostname()
	if t.PathStyle || host == "localhost" {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return base.Scheme == "https" && strings.Contains(bucket, ".")
}
