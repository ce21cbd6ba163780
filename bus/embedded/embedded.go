// Package embedded runs a NATS server with JetStream inside the process, with
// credentials of its own: on loopback, or by TLS for other machines too.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/transferlab/transferlab/bus"
)

// Options of a server.
type Options struct {
	Dir  string // JetStream's files and the credentials
	Host string // "" is 127.0.0.1, or every address if Advertise is set
	Port int    // 0 is any free one
	// SyncAlways makes every stored message durable against power loss, not
	// only against the end of the process, at about a tenth of the speed.
	SyncAlways bool
	// Advertise is the host name or address at which other machines reach the
	// server. If it is set, whoever connects through a socket must do so by
	// TLS and trust CAFile.
	Advertise string
	Log       *slog.Logger
}

// Server is a running server.
type Server struct {
	ns        *server.Server
	authority *authority // nil without TLS
	advertise string
	local     string // host at which this machine reaches it

	mu          sync.Mutex
	credentials *credentials
	options     *server.Options // as they were given, for reloads
}

// Start runs a server until Close. Credentials are generated at the first
// start in a directory and kept there (mode 0600).
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Host == "" {
		o.Host = "127.0.0.1"
		if o.Advertise != "" {
			o.Host = "0.0.0.0"
		}
	}
	port := o.Port
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create directory of the bus: %w", err)
	}
	credentials, err := loadCredentials(filepath.Join(o.Dir, "credentials.json"))
	if err != nil {
		return nil, err
	}
	// The server ends the process when it cannot listen, so ask first.
	if o.Port != 0 {
		l, err := net.Listen("tcp", net.JoinHostPort(o.Host, fmt.Sprint(o.Port)))
		if err != nil {
			return nil, &PortError{Port: o.Port, err: err}
		}
		_ = l.Close()
	}
	opts := &server.Options{
		ServerName: "transferlab", Host: o.Host, Port: port,
		JetStream: true, StoreDir: o.Dir, JetStreamMaxStore: 64 << 30, JetStreamMaxMemory: 256 << 20,
		MaxPayload: bus.MaxMessage, MaxPending: 256 << 20, NoSigs: true,
		SyncAlways: o.SyncAlways, WriteDeadline: 10 * time.Second,
		// One connection attempt without credentials costs this little.
		AuthTimeout: 2, MaxConn: 4096,
	}
	opts.Users = credentials.list()
	s := &Server{advertise: o.Advertise, local: o.Host, credentials: credentials}
	if ip := net.ParseIP(o.Host); ip != nil && ip.IsUnspecified() {
		s.local = "127.0.0.1"
	}
	if o.Advertise != "" {
		if opts.TLSConfig, s.authority, err = serverTLS(filepath.Join(o.Dir, "tls"), []string{o.Advertise, s.local}, time.Now()); err != nil {
			return nil, err
		}
		// Without this the server would take unencrypted clients too.
		opts.TLS, opts.TLSTimeout = true, 5
	}
	s.options = opts.Clone()
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("configure the bus: %w", err)
	}
	if o.Log != nil {
		ns.SetLoggerV2(logger{o.Log}, false, false, false)
	}
	ns.Start()
	deadline := 30 * time.Second
	if d, ok := ctx.Deadline(); ok {
		deadline = min(deadline, time.Until(d))
	}
	if !ns.ReadyForConnections(deadline) {
		ns.Shutdown()
		return nil, fmt.Errorf("start the bus in %s: not ready after %s (is another lab using the directory?)", o.Dir, deadline)
	}
	s.ns = ns
	return s, nil
}

// PortError says that a port is taken.
type PortError struct {
	Port int
	err  error
}

func (e *PortError) Error() string { return fmt.Sprintf("port %d of the bus: %v", e.Port, e.err) }

func (e *PortError) Unwrap() error { return e.err }

func permissions(role string) *server.Permissions {
	allow := bus.Permissions(role)
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: allow.Publish},
		Subscribe: &server.SubjectPermission{Allow: allow.Subscribe},
		Response:  &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
	}
}

// URL is where clients on this machine connect.
func (s *Server) URL() string {
	if s.authority == nil {
		return s.ns.ClientURL()
	}
	return "tls://" + net.JoinHostPort(s.local, s.port())
}

// PublicURL is where clients on other machines connect, "" if none can.
func (s *Server) PublicURL() string {
	if s.authority == nil {
		return ""
	}
	return "tls://" + net.JoinHostPort(s.advertise, s.port())
}

func (s *Server) port() string {
	addr, is := s.ns.Addr().(*net.TCPAddr)
	if !is {
		return ""
	}
	return strconv.Itoa(addr.Port)
}

// CAFile is the certificate authority that clients have to trust, "" without
// TLS.
func (s *Server) CAFile() string {
	if s.authority == nil {
		return ""
	}
	return s.authority.file
}

// CA is the content of CAFile.
func (s *Server) CA() []byte {
	if s.authority == nil {
		return nil
	}
	return s.authority.pem
}

// Password is the password of a role (the user's name is the role's).
func (s *Server) Password(role string) string { return s.credentials.roles[role] }

// Options connect a role without a socket.
func (s *Server) Options(role, name string, log *slog.Logger) bus.Options {
	// Nothing is encrypted inside a process, and a client insists on TLS if
	// the address names it.
	url := "nats://" + net.JoinHostPort(s.local, s.port())
	return bus.Options{URL: url, User: role, Password: s.credentials.roles[role], InProcess: s.ns, Name: name, Log: log}
}

// Close ends the server once everything stored is on disk.
func (s *Server) Close() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

// logger passes on what an operator can act on. The server writes its start-up
// banner at notice level, which is noise inside another program.
type logger struct{ log *slog.Logger }

func (l logger) Noticef(format string, v ...any) { l.log.Debug(line(format, v)) }
func (l logger) Warnf(format string, v ...any)   { l.log.Warn(line(format, v)) }
func (l logger) Fatalf(format string, v ...any)  { l.log.Error(line(format, v)) }
func (l logger) Errorf(format string, v ...any)  { l.log.Error(line(format, v)) }
func (l logger) Debugf(format string, v ...any)  { l.log.Debug(line(format, v)) }
func (l logger) Tracef(string, ...any)           {}

func line(format string, v []any) string { return strings.TrimSpace(fmt.Sprintf(format, v...)) }

// IsPortTaken reports whether err means that somebody else listens there.
func IsPortTaken(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
