package objectstore

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

// What a request came to, in one word: the status column of an event.
const (
	StatusOK          = "ok"
	StatusTimeout     = "timeout"
	StatusRefused     = "refused"
	StatusReset       = "reset" // including connections closed before an answer
	StatusDNS         = "dns"
	StatusTLS         = "tls"
	StatusDenied      = "denied"       // 401, 403: credentials, signature, policy, clock
	StatusNoBucket    = "no_bucket"    // 404
	StatusNoObject    = "no_object"    // 404
	StatusThrottled   = "throttled"    // 429, 503, SlowDown
	StatusServerError = "server_error" // other 5xx
	StatusTruncated   = "truncated"    // fewer bytes than announced
	StatusCorrupt     = "corrupt"      // other bytes than were stored
	StatusCancelled   = "cancelled"    // by us
	StatusError       = "error"        // anything else
)

// ResponseError is a response that is not a success.
type ResponseError struct {
	Status    int    // HTTP
	Code      string // S3's, empty if there was none
	Message   string
	RequestID string
}

func (e *ResponseError) Error() string {
	text := fmt.Sprintf("HTTP status %d", e.Status)
	if e.Code != "" {
		text += " " + e.Code
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

const maxErrorBody = 64 << 10

// ReadError reads the error out of a response that is not a success, and closes the body. What cannot be read leaves
// Code and Message empty.
func ReadError(resp *http.Response) *ResponseError {
	defer drainBody(resp.Body)
	e := &ResponseError{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Amz-Request-Id")}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil && len(text) == 0 {
		return e
	}
	e.Code, e.Message = parseErrorBody(text)
	return e
}

const maxErrorText = 512

// parseErrorBody finds code and message in an S3 error body.
func parseErrorBody(text []byte) (code, message string) {
	var body struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}
	if err := xml.NewDecoder(bytes.NewReader(text)).Decode(&body); err != nil {
		return "", ""
	}
	return clip(body.Code), clip(body.Message)
}

func clip(s string) string {
	if len(s) > maxErrorText {
		return s[:maxErrorText]
	}
	return s
}

// ClassifyResponse is the word for an HTTP status and S3 code; code may be empty, as it must be for a HEAD.
func ClassifyResponse(status int, code string) string {
	switch code {
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "RequestLimitExceeded",
		"TooManyRequests", "TooManyRequestsException", "BandwidthLimitExceeded", "ServiceUnavailable":
		return StatusThrottled
	case "NoSuchBucket":
		return StatusNoBucket
	case "NoSuchKey":
		return StatusNoObject
	case "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken",
		"RequestTimeTooSkewed", "AccountProblem", "AllAccessDisabled":
		return StatusDenied
	case "RequestTimeout":
		return StatusTimeout
	case "BadDigest", "XAmzContentSHA256Mismatch":
		return StatusCorrupt
	case "IncompleteBody":
		return StatusTruncated
	}
	switch {
	case status >= 200 && status < 300:
		return StatusOK
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return StatusDenied
	case status == http.StatusNotFound:
		return StatusNoObject
	case status == http.StatusRequestTimeout:
		return StatusTimeout
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return StatusThrottled
	case status >= 500:
		return StatusServerError
	}
	return StatusError
}

// Classify is the word for an error, StatusOK for nil. It knows the errors of net/http, of this package and of the SDK.
func Classify(err error) string {
	if err == nil {
		return StatusOK
	}
	var response *ResponseError
	if errors.As(err, &response) {
		return ClassifyResponse(response.Status, response.Code)
	}
	if status := classifySDK(err); status != "" {
		return status
	}
	return classifyTransport(err)
}

func classifySDK(err error) string {
	code, status := "", 0
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	// A response that was a success and still is an error broke off, or was no S3 response.
	if status >= 200 && status < 300 {
		status = 0
	}
	if code == "" && status == 0 {
		return ""
	}
	// A HEAD's answer has no code that could tell what was not found.
	var op *smithy.OperationError
	if status == http.StatusNotFound && code == "NotFound" && errors.As(err, &op) && op.OperationName == "HeadBucket" {
		code = "NoSuchBucket"
	}
	return ClassifyResponse(status, code)
}

func classifyTransport(err error) string {
	var (
		dns       *net.DNSError
		timeout   net.Error
		record    tls.RecordHeaderError
		alert     tls.AlertError
		cert      *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		roots     x509.SystemRootsError
	)
	switch {
	case errors.Is(err, ErrCorrupt):
		return StatusCorrupt
	case errors.Is(err, context.Canceled):
		return StatusCancelled
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return StatusTimeout
	case errors.Is(err, ErrNoCredentials):
		return StatusDenied
	case errors.Is(err, io.ErrUnexpectedEOF):
		return StatusTruncated
	case errors.Is(err, syscall.ECONNREFUSED):
		return StatusRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNABORTED):
		return StatusReset
	case errors.As(err, &dns):
		if dns.IsTimeout {
			return StatusTimeout
		}
		return StatusDNS
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record), errors.As(err, &alert), errors.As(err, &cert), errors.As(err, &authority),
		errors.As(err, &host), errors.As(err, &invalid), errors.As(err, &roots):
		return StatusTLS
	case errors.As(err, &timeout) && timeout.Timeout():
		return StatusTimeout
	case strings.Contains(err.Error(), "server closed idle connection"): // net/http exports no such error
		return StatusReset
	}
	return StatusError
}
