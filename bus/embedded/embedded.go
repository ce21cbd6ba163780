// Package embedded runs a NATS server with JetStream inside the process, on
// loopback, with credentials of its own.
package embedded

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/transferlab/transferlab/bus"
)

// Options of a server.
type Options struct {
	Dir  string // JetStream's files and the credentials
	Host string // "" is 127.0.0.1
	Port int    // 0 is any free one
	// SyncAlways makes every stored message durable against power loss, not
	// only against the end of the process, at about a tenth of the speed.
	SyncAlways bool
	Log        *slog.Logger
}

// Server is a running server.
type Server struct {
	ns          *server.Server
	credentials map[string]string
}

// Start runs a server until Close. Credentials are generated at the first
// start in a directory and kept there (mode 0600).
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Host == "" {
		o.Host = "127.0.0.1"
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
	for role, password := range credentials {
		opts.Users = append(opts.Users, &server.User{Username: role, Password: password, Permissions: permissions(role)})
	}
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
	return &Server{ns: ns, credentials: credentials}, nil
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

// URL is where clients connect.
func (s *Server) URL() string { return s.ns.ClientURL() }

// Password is the password of a role (the user's name is the role's).
func (s *Server) Password(role string) string { return s.credentials[role] }

// Options connect a role without a socket.
func (s *Server) Options(role, name string, log *slog.Logger) bus.Options {
	return bus.Options{URL: s.URL(), User: role, Password: s.credentials[role], InProcess: s.ns, Name: name, Log: log}
}

// Close ends the server once everything stored is on disk.
func (s *Server) Close() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

func loadCredentials(path string) (map[string]string, error) {
	credentials := map[string]string{}
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &credentials); err != nil {
			return nil, fmt.Errorf("read credentials of the bus %s: %w", path, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read credentials of the bus: %w", err)
	}
	complete := true
	for _, role := range []string{bus.RoleOperator, bus.RoleAgent, bus.RoleCollector, bus.RoleScheduler, bus.RoleGateway} {
		if credentials[role] == "" {
			credentials[role], complete = rand.Text(), false
		}
	}
	if complete {
		return credentials, nil
	}
	data, err = json.MarshalIndent(credentials, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode credentials of the bus: %w", err)
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return nil, fmt.Errorf("write credentials of the bus: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return nil, fmt.Errorf("write credentials of the bus: %w", err)
	}
	return credentials, nil
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
