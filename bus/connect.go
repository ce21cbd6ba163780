package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options say which bus to join and as whom.
type Options struct {
	URL       string // nats://host:4222, tls://…; several separated by commas
	User      string
	Password  string
	CredsFile string // NATS credentials file (JWT), instead of user and password
	CAFile    string // certificate authority of the server, PEM
	// Socket is a unix socket to dial instead of the URL's host: a relay to the
	// bus for who cannot reach it by network.
	Socket string
	// InProcess connects without a socket to a server in the same process.
	InProcess nats.InProcessConnProvider
	Name      string // shown in the server's connection list
	Log       *slog.Logger
}

// Conn is a connection to the bus. It is safe for concurrent use and
// reconnects by itself for as long as it is open.
type Conn struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger
}

// Connect joins the bus. It fails if no server answers before ctx ends.
func Connect(ctx context.Context, o Options) (*Conn, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	opts := []nats.Option{
		nats.Name(o.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, time.Second),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(3),
		nats.Timeout(5 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("disconnected from the bus", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { log.Info("reconnected to the bus", "server", c.ConnectedUrlRedacted()) }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject := ""
			if s != nil {
				subject = s.Subject
			}
			log.Error("bus", "subject", subject, "error", err)
		}),
	}
	if o.User != "" {
		opts = append(opts, nats.UserInfo(o.User, o.Password))
	}
	if o.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(o.CredsFile))
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read certificate authority of the bus: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authority of the bus %s: no PEM certificate in it", o.CAFile)
		}
		opts = append(opts, nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}))
	}
	if o.InProcess != nil {
		opts = append(opts, nats.InProcessServer(o.InProcess))
	}
	if o.Socket != "" {
		opts = append(opts, nats.SetCustomDialer(socketDialer(o.Socket)))
	}
	nc, err := dial(ctx, o.URL, opts)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(10*time.Second))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	return &Conn{nc: nc, js: js, log: log}, nil
}

// socketDialer dials one unix socket whatever address it is asked for.
type socketDialer string

// Dial implements [nats.CustomDialer].
func (s socketDialer) Dial(string, string) (net.Conn, error) {
	return net.DialTimeout("unix", string(s), 5*time.Second)
}

func dial(ctx context.Context, address string, opts []nats.Option) (*nats.Conn, error) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		nc, err := nats.Connect(address, opts...)
		if err == nil {
			return nc, nil
		}
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) {
			return nil, fmt.Errorf("connect to the bus at %s: the server refuses these credentials: %w", redact(address), err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the bus at %s: %w", redact(address), err)
		case <-time.After(wait):
		}
	}
}

func redact(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "(unreadable address)"
	}
	return u.Redacted()
}

// LocalAddress is the IP address from which the bus is reached: loopback when it
// is in this process or behind a socket of this machine.
func (c *Conn) LocalAddress() string {
	if host, _, err := net.SplitHostPort(c.nc.LocalAddr()); err == nil {
		if ip, err := netip.ParseAddr(host); err == nil {
			return ip.WithZone("").String()
		}
	}
	return "127.0.0.1"
}

// Healthy reports whether the connection is up.
func (c *Conn) Healthy() error {
	if s := c.nc.Status(); s != nats.CONNECTED {
		return fmt.Errorf("bus: %s", s)
	}
	return nil
}

// Close lets pending messages out and closes the connection, within ctx.
func (c *Conn) Close(ctx context.Context) error {
	defer c.nc.Close()
	if c.nc.IsClosed() || !c.nc.IsConnected() {
		return nil
	}
	if err := c.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("flush the bus: %w", err)
	}
	return nil
}

// Provision creates or updates every stream and bucket of topics.go. It can be
// called any number of times.
func (c *Conn) Provision(ctx context.Context, l Limits) error {
	for _, s := range streams(l) {
		if _, err := c.js.CreateOrUpdateStream(ctx, s); err != nil {
			return fmt.Errorf("create stream %s: %w", s.Name, err)
		}
	}
	for _, b := range buckets() {
		if _, err := c.js.CreateOrUpdateKeyValue(ctx, b); err != nil {
			return fmt.Errorf("create bucket %s: %w", b.Bucket, err)
		}
	}
	return nil
}

// AwaitProvisioned returns once the named stream is there: services may start
// before the lab has provisioned the bus.
func (c *Conn) AwaitProvisioned(ctx context.Context, stream string) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		_, err := c.js.Stream(ctx, stream)
		if err == nil {
			return nil
		}
		if !errors.Is(err, jetstream.ErrStreamNotFound) && ctx.Err() == nil {
			c.log.Debug("waiting for stream", "stream", stream, "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for stream %s: %w", stream, errors.Join(err, ctx.Err()))
		case <-time.After(wait):
		}
	}
}
