// Package series moves the 1-minute series of the s3 workload between the lab
// and AWS: CloudWatch's own request metrics in, beside the lab's view
// s3_metrics_1m; that view out, to a DynamoDB table.
package series

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go"

	"github.com/transferlab/transferlab/services/gateway/api"
)

// Refusal is an error whose cure is the caller's: a wrong region, missing
// rights, a bad parameter.
type Refusal struct {
	Status int // as of HTTP
	Text   string
	err    error
}

func (r *Refusal) Error() string {
	if r.err == nil {
		return r.Text
	}
	return r.Text + ": " + r.err.Error()
}

func (r *Refusal) Unwrap() error { return r.err }

func refuse(status int, err error, format string, args ...any) error {
	return &Refusal{Status: status, Text: fmt.Sprintf(format, args...), err: err}
}

// Settings say how AWS is reached. Beyond what the API takes, only tests give
// them.
type Settings struct {
	api.AWS
	Keys    *aws.Credentials // instead of environment, profile and role
	Backoff time.Duration    // longest pause between attempts; 0 is the SDK's
}

// load resolves region and credentials, as the gateway's own user would.
func load(ctx context.Context, s Settings) (aws.Config, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts = 5
				if s.Backoff > 0 {
					o.MaxBackoff = s.Backoff
				}
			})
		}),
	}
	if s.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(s.Profile))
	}
	if s.Region != "" {
		options = append(options, config.WithRegion(s.Region))
	}
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
			return aws.Config{}, refuse(http.StatusUnprocessableEntity, nil, "endpoint: %q, want http://host:port or https://host, without credentials", s.Endpoint)
		}
		options = append(options, config.WithBaseEndpoint(s.Endpoint))
	}
	if s.Keys != nil {
		options = append(options, config.WithCredentialsProvider(credentials.StaticCredentialsProvider{Value: *s.Keys}))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		var missing config.SharedConfigProfileNotExistError
		if errors.As(err, &missing) {
			return cfg, refuse(http.StatusUnprocessableEntity, nil, "profile: %q is not in the shared AWS configuration of the gateway", s.Profile)
		}
		return cfg, fmt.Errorf("load the AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		return cfg, refuse(http.StatusUnprocessableEntity, nil, "region: none, neither given nor in the gateway's profile or environment (AWS_REGION)")
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		if ctx.Err() != nil {
			return cfg, fmt.Errorf("find AWS credentials: %w", ctx.Err())
		}
		return cfg, refuse(http.StatusForbidden, err, "the gateway finds no AWS credentials: it looks in its environment, the shared configuration (profile %q) and the machine's role", s.Profile)
	}
	return cfg, nil
}

// explain turns the SDK's errors into what the caller can do about them. what
// says what was tried.
func explain(err error, s Settings, region, what string) error {
	if err == nil {
		return nil
	}
	var (
		answer smithy.APIError
		dns    *net.DNSError
		known  *Refusal
	)
	where := region
	if s.Endpoint != "" {
		where += " at " + s.Endpoint
	}
	switch {
	case errors.As(err, &known):
		return err
	case errors.As(err, &answer):
		text := fmt.Sprintf("%s in %s: %s: %s", what, where, answer.ErrorCode(), answer.ErrorMessage())
		return &Refusal{Status: status(answer.ErrorCode()), Text: text + hint(answer.ErrorCode())}
	case errors.As(err, &dns) && dns.IsNotFound:
		return refuse(http.StatusUnprocessableEntity, nil, "%s: there is no %s: is the region %q right?", what, dns.Name, region)
	}
	return fmt.Errorf("%s in %s: %w", what, where, err)
}

func status(code string) int {
	switch code {
	case "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnrecognizedClientException", "InvalidClientTokenId",
		"SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature", "ExpiredToken", "ExpiredTokenException",
		"MissingAuthenticationToken", "MissingAuthenticationTokenException", "OptInRequired":
		return http.StatusForbidden
	case "ResourceNotFoundException", "ResourceNotFound":
		return http.StatusNotFound
	case "ThrottlingException", "Throttling", "RequestLimitExceeded", "ProvisionedThroughputExceededException", "LimitExceededException":
		return http.StatusTooManyRequests
	case "InvalidParameterValue", "InvalidParameterValueException", "InvalidParameterCombination", "MissingParameter",
		"ValidationException", "ValidationError", "InvalidParameterCombinationException":
		return http.StatusUnprocessableEntity
	}
	return http.StatusBadGateway
}

func hint(code string) string {
	switch {
	case strings.HasPrefix(code, "AccessDenied"):
		return " (the gateway's credentials lack the right)"
	case strings.HasPrefix(code, "ExpiredToken"):
		return " (the gateway's session has ended: log in again)"
	case strings.HasPrefix(code, "InvalidSignature"), code == "SignatureDoesNotMatch":
		return " (is the region right, and the clock?)"
	case strings.HasPrefix(code, "UnrecognizedClient"), code == "InvalidClientTokenId":
		return " (the region does not know the gateway's access key)"
	}
	return ""
}
