package objectstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"

	"github.com/transferlab/transferlab/services/internal/objectstore/sigv4"
)

// CredentialSource says where credentials come from. The zero value is the SDK's full chain: environment, shared
// configuration and credentials files, SSO, web identity, container and instance metadata.
type CredentialSource struct {
	provider aws.CredentialsProvider
}

// Chain is the SDK's full chain, the zero CredentialSource.
func Chain() CredentialSource { return CredentialSource{} }

// Static is a fixed key, such as the lab's own store has; token is empty but for temporary credentials.
func Static(accessKey, secretKey, token string) CredentialSource {
	return CredentialSource{credentials.NewStaticCredentialsProvider(accessKey, secretKey, token)}
}

// Provider is credentials from anywhere else; they are cached until they expire.
func Provider(p aws.CredentialsProvider) CredentialSource {
	return CredentialSource{aws.NewCredentialsCache(p)}
}

const defaultRegion = "us-east-1"

// Store is an S3 endpoint, ready for requests. It is safe for concurrent use.
type Store struct {
	target Target
	base   *url.URL // of path-style requests
	region string
	creds  aws.CredentialsProvider
	signer *v4.Signer
	keys   sigv4.Keys
	client *s3.Client
	roots  *x509.CertPool
}

// Open resolves a target: region, endpoint, credentials. It reads configuration files but sends nothing, so neither
// the endpoint nor the credentials are known to work when it returns.
func Open(ctx context.Context, t Target, source CredentialSource) (*Store, error) {
	if err := t.Validate(); err != nil {
		return nil, fmt.Errorf("S3 target: %w", err)
	}
	roots, err := rootCAs(t.CAFile)
	if err != nil {
		return nil, fmt.Errorf("S3 target: %w", err)
	}
	// A client that is not a BuildableClient makes LoadDefaultConfig fail when AWS_CA_BUNDLE is set.
	httpClient := awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
		tr.TLSClientConfig = tlsConfig(roots)
		tr.MaxIdleConnsPerHost = 32
	})
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(httpClient),
		config.WithLogger(logging.Nop{}), // what matters comes back as an error; the default writes to standard error
		config.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if t.Region != "" {
		load = append(load, config.WithRegion(t.Region))
	}
	if t.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(t.Profile))
	}
	switch {
	case t.Unsigned:
		load = append(load, config.WithCredentialsProvider(aws.AnonymousCredentials{}))
	case source.provider != nil:
		load = append(load, config.WithCredentialsProvider(source.provider))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("load AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		cfg.Region = defaultRegion
	}
	endpoint := t.Endpoint
	if endpoint == "" && source.provider == nil {
		// AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 or the profile's endpoint_url go with the credentials found beside them.
		endpoint = aws.ToString(s3.NewFromConfig(cfg).Options().BaseEndpoint)
	}
	aws3 := endpoint == ""
	if aws3 {
		if endpoint, err = awsEndpoint(ctx, cfg.Region); err != nil {
			return nil, err
		}
	}
	base, err := url.Parse(strings.TrimSuffix(endpoint, "/"))
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", endpoint, err)
	}
	st := &Store{
		target: t, base: base, region: cfg.Region, creds: cfg.Credentials, roots: roots,
		signer: v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }),
	}
	st.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle = t.pathStyle(base, t.BucketPrefix)
		o.DisableLogOutputChecksumValidationSkipped = true // it would be said of every object that has none
		o.BaseEndpoint = nil
		if !aws3 {
			o.BaseEndpoint = aws.String(base.String())
		}
	})
	return st, nil
}

// awsEndpoint is the URL of S3 in a region, in whatever partition that is.
func awsEndpoint(ctx context.Context, region string) (string, error) {
	e, err := s3.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, s3.EndpointParameters{
		Region: aws.String(region), UseFIPS: aws.Bool(false), UseDualStack: aws.Bool(false),
		Accelerate: aws.Bool(false), ForcePathStyle: aws.Bool(true),
	})
	if err != nil {
		return "", fmt.Errorf("find S3's endpoint in region %s: %w", region, err)
	}
	return e.URI.String(), nil
}

// rootCAs are the system's, those of AWS_CA_BUNDLE, which the SDK honours and so must we, and those of file; nil if they
// are just the system's.
func rootCAs(file string) (*x509.CertPool, error) {
	var pool *x509.CertPool
	for _, path := range []string{os.Getenv("AWS_CA_BUNDLE"), file} {
		if path == "" {
			continue
		}
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		if pool == nil {
			if pool, err = x509.SystemCertPool(); err != nil {
				pool = x509.NewCertPool()
			}
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authorities: no certificate in %s", path)
		}
	}
	return pool, nil
}

func tlsConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// Target is what the store was opened with.
func (s *Store) Target() Target { return s.target }

// Region is the resolved region.
func (s *Store) Region() string { return s.region }

// BaseURL is the resolved endpoint, without bucket. The caller may change it.
func (s *Store) BaseURL() *url.URL { u := *s.base; return &u }

// Client is the SDK's client, for everything that is not measured. Its buckets' names must have been through Bucket.
func (s *Store) Client() *s3.Client { return s.client }

// TLSConfig is what a transport for this store must use; the caller may change it.
func (s *Store) TLSConfig() *tls.Config { return tlsConfig(s.roots) }

// Credentials are the credentials in force. They are cached; retrieving them is cheap but for once in a while.
func (s *Store) Credentials(ctx context.Context) (aws.Credentials, error) {
	if s.target.Unsigned || s.creds == nil {
		return aws.Credentials{}, nil
	}
	c, err := s.creds.Retrieve(ctx)
	if err != nil {
		return c, fmt.Errorf("retrieve S3 credentials: %w", err)
	}
	return c, nil
}

// Bucket is the full name of a bucket, as the endpoint knows it. All other methods call it themselves.
func (s *Store) Bucket(name string) string { return s.target.BucketPrefix + name }

// ObjectURL is where an object is, unsigned; an empty key is the bucket itself.
func (s *Store) ObjectURL(bucket, key string) *url.URL {
	u := *s.base
	bucket = s.Bucket(bucket)
	path := u.Path
	if s.target.pathStyle(s.base, bucket) {
		path += "/" + bucket
		if key != "" {
			path += "/" + key
		}
	} else {
		u.Host = bucket + "." + u.Host
		path += "/" + key
	}
	u.Path, u.RawPath = path, sigv4.EscapePath(path)
	return &u
}

// ErrNoCredentials means that a request must be signed and nothing to sign it with was found.
var ErrNoCredentials = errors.New("no S3 credentials")

// drainBody reads what is left of a small response so that its connection can be used again.
func drainBody(r io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, r, 64<<10)
	_ = r.Close()
}
