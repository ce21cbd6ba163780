// Package awsfake stands in for AWS in tests, in this process, speaking the
// services' real wire protocols to any client: CloudWatch's GetMetricData
// (Smithy RPC v2 CBOR), the part of DynamoDB that stores items (JSON 1.0), the
// part of EC2 that starts and ends instances (ec2query) with SSM's parameters
// (JSON 1.1), and an instance's metadata service (IMDSv2).
//
// Requests must be signed (Signature Version 4) for the fake's region and
// service with its key; the signature itself is computed again and compared.
package awsfake

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Account is who may call.
type Account struct {
	AccessKey, SecretKey, Region string
}

// DefaultAccount is an account for tests.
func DefaultAccount() Account {
	return Account{AccessKey: "AKIAFAKE", SecretKey: "fake-secret", Region: "eu-west-1"}
}

// failure is an error as a service answers it.
type failure struct {
	status  int
	code    string
	message string
}

func (f *failure) Error() string { return f.code + ": " + f.message }

// maxBody is the largest request, in bytes.
const maxBody = 16 << 20

// authenticate reads the body and checks the signature.
func (a Account) authenticate(r *http.Request, service string) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	fields := map[string]string{}
	authorization, found := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !found {
		return nil, &failure{http.StatusForbidden, "MissingAuthenticationTokenException", "Request is missing Authentication Token"}
	}
	for _, part := range strings.Split(authorization, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	if len(scope) != 5 || scope[0] != a.AccessKey {
		return nil, &failure{http.StatusForbidden, "UnrecognizedClientException", "The security token included in the request is invalid."}
	}
	if scope[2] != a.Region || scope[3] != service {
		return nil, &failure{
			http.StatusForbidden, "InvalidSignatureException",
			fmt.Sprintf("Credential should be scoped to a valid region. '%s/%s' is not '%s/%s'", scope[2], scope[3], a.Region, service),
		}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return nil, &failure{http.StatusForbidden, "IncompleteSignature", "X-Amz-Date is missing"}
	}
	again, err := http.NewRequest(r.Method, "http://"+r.Host+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("sign again: %w", err)
	}
	signed := strings.Split(fields["SignedHeaders"], ";")
	if !slices.Contains(signed, "content-length") {
		// The signer takes it from the request; botocore does not sign it.
		again.ContentLength = 0
	}
	for _, name := range signed {
		if name != "host" && name != "content-length" {
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	sum := sha256.Sum256(body)
	keys := aws.Credentials{AccessKeyID: a.AccessKey, SecretAccessKey: a.SecretKey}
	if err := v4.NewSigner().SignHTTP(r.Context(), keys, again, hex.EncodeToString(sum[:]), service, a.Region, at); err != nil {
		return nil, fmt.Errorf("sign again: %w", err)
	}
	if !strings.HasSuffix(again.Header.Get("Authorization"), "Signature="+fields["Signature"]) {
		return nil, &failure{http.StatusForbidden, "InvalidSignatureException", "The request signature we calculated does not match the signature you provided."}
	}
	return body, nil
}
