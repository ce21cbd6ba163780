package clickhouse

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/ClickHouse/ch-go"
	clickhouse "github.com/ClickHouse/clickhouse-go/v2"
)

// ServerError is what the server answered instead of a result.
type ServerError struct {
	Code    int    // ClickHouse's error code, such as 60 for an unknown table
	Name    string // its name, such as UNKNOWN_TABLE; may be empty
	Message string // the server's text
}

func (e *ServerError) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("ClickHouse code %d: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("ClickHouse code %d (%s): %s", e.Code, e.Name, e.Message)
}

// Permanent says that the same request will fail again.
func (e *ServerError) Permanent() bool {
	// A full disk comes under several codes, some of them catch-alls.
	return !transientCodes[e.Code] && !strings.Contains(e.Message, "No space left on device")
}

// transientCodes are the server's errors that time, or less load, may cure.
// Every other answer of a server is about the request itself: a retry would
// only repeat it, and hold up what waits behind it.
var transientCodes = map[int]bool{
	3:    true, // UNEXPECTED_END_OF_FILE: the connection broke in the middle
	32:   true, // ATTEMPT_TO_READ_AFTER_EOF: likewise
	74:   true, // CANNOT_READ_FROM_FILE_DESCRIPTOR
	75:   true, // CANNOT_WRITE_TO_FILE_DESCRIPTOR
	76:   true, // CANNOT_OPEN_FILE: out of descriptors
	95:   true, // CANNOT_READ_FROM_SOCKET
	96:   true, // CANNOT_WRITE_TO_SOCKET
	159:  true, // TIMEOUT_EXCEEDED
	160:  true, // TOO_SLOW
	173:  true, // CANNOT_ALLOCATE_MEMORY
	198:  true, // DNS_ERROR
	201:  true, // QUOTA_EXCEEDED
	202:  true, // TOO_MANY_SIMULTANEOUS_QUERIES
	203:  true, // NO_FREE_CONNECTION
	204:  true, // CANNOT_FSYNC
	209:  true, // SOCKET_TIMEOUT
	210:  true, // NETWORK_ERROR
	236:  true, // ABORTED: the server is shutting down
	241:  true, // MEMORY_LIMIT_EXCEEDED
	242:  true, // TABLE_IS_READ_ONLY: a replica without its coordinator
	243:  true, // NOT_ENOUGH_SPACE
	252:  true, // TOO_MANY_PARTS
	285:  true, // TOO_FEW_LIVE_REPLICAS
	286:  true, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
	319:  true, // UNKNOWN_STATUS_OF_INSERT: repeating it is what the token is for
	394:  true, // QUERY_WAS_CANCELLED
	425:  true, // SYSTEM_ERROR
	439:  true, // CANNOT_SCHEDULE_TASK
	473:  true, // DEADLOCK_AVOIDED
	517:  true, // CANNOT_ASSIGN_ALTER: another one is running
	700:  true, // USER_SESSION_LIMIT_EXCEEDED
	745:  true, // SERVER_OVERLOADED
	999:  true, // KEEPER_EXCEPTION
	1000: true, // POCO_EXCEPTION
}

// IsPermanent says that err is the server's verdict on the request (bad data,
// unknown column, wrong password): the same request will fail again. Anything
// else, a refused connection, a full disk, a memory limit, too many parts, may
// pass.
func IsPermanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}

// Code is the server's error code in err, or 0.
func Code(err error) int {
	var e *ServerError
	if errors.As(serverError(err), &e) {
		return e.Code
	}
	return 0
}

// serverError replaces the clients' several exception types by ours.
func serverError(err error) error {
	var (
		own    *ServerError
		native *clickhouse.Exception
		raw    *ch.Exception
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return err
	case errors.As(err, &native):
		return newServerError(int(native.Code), native.Message)
	case errors.As(err, &raw):
		return newServerError(int(raw.Code), raw.Message)
	}
	return err
}

var (
	exceptionName    = regexp.MustCompile(`\(([A-Z][A-Z0-9_]+)\)\s*$`)
	exceptionVersion = regexp.MustCompile(`\s*\(version [^()]*(\([^()]*\))?\)\s*$`)
	exceptionPrefix  = regexp.MustCompile(`^(Code: \d+\. )?(DB::Exception: )*`)
)

// newServerError takes the error's name and the noise around it out of text.
func newServerError(code int, text string) *ServerError {
	text = exceptionVersion.ReplaceAllString(strings.TrimSpace(text), "")
	e := &ServerError{Code: code}
	if m := exceptionName.FindStringSubmatchIndex(text); m != nil {
		e.Name = text[m[2]:m[3]]
		text = text[:m[0]]
	}
	e.Message = strings.TrimSpace(exceptionPrefix.ReplaceAllString(text, ""))
	return e
}
