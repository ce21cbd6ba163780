package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

const (
	dialTimeout  = 5 * time.Second
	readTimeout  = 5 * time.Minute
	pingAttempts = 8
)

// DSN is a parsed connection string. Its String method hides the password.
type DSN struct {
	// Native is true for the native TCP protocol, false for HTTP.
	Native bool
	// TLS says whether the connection is encrypted.
	TLS bool
	// Addr is host:port.
	Addr string
	// HTTPURL is the base of the same server's HTTP interface, without user
	// and path, such as http://127.0.0.1:8123.
	HTTPURL string
	// Database is where tables without a database are looked up.
	Database string
	User     string
	password string
	// httpGiven says that HTTPURL was stated, not guessed.
	httpGiven bool
	options   *ch.Options
	client    *http.Client
}

// ParseDSN reads one connection string:
//
//	clickhouse://user:password@host:9000/database?secure=true
//	http://user:password@host:8123/database
//	https://user:password@host:8443/database
//
// Ports default to ClickHouse's own, the database to Database, the user to
// default. The parameters are clickhouse-go's (secure, skip_verify,
// dial_timeout, read_timeout, compress, …; any other is a server setting) and
// http_url, the HTTP interface of a server given by its native address, where
// it is not on host:8123 (host:8443 with TLS). Errors never quote the string.
func ParseDSN(dsn string) (DSN, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		// url.Error quotes what it was given, the password with it.
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err
		}
		if _, secret, found := strings.Cut(err.Error(), `"`); found && secret != "" {
			err = errors.New("malformed host, port or escape")
		}
		return DSN{}, fmt.Errorf("ClickHouse DSN: %w", err)
	}
	d := DSN{Database: strings.Trim(u.Path, "/"), User: u.User.Username()}
	d.password, _ = u.User.Password()
	query := u.Query()
	switch u.Scheme {
	case "clickhouse", "tcp", "native":
		d.Native = true
		d.TLS, _ = strconv.ParseBool(query.Get("secure"))
	case "http", "https":
		d.TLS = u.Scheme == "https"
	default:
		return DSN{}, fmt.Errorf("ClickHouse DSN: scheme %q: allowed are clickhouse, http and https", u.Scheme)
	}
	if u.Hostname() == "" {
		return DSN{}, errors.New("ClickHouse DSN: no host")
	}
	if strings.Contains(d.Database, "/") {
		return DSN{}, fmt.Errorf("ClickHouse DSN: database %q must not contain a slash", d.Database)
	}
	if d.Database == "" {
		d.Database = Database
	}
	if d.User == "" {
		d.User = "default"
	}
	port := u.Port()
	if port == "" {
		port = defaultPort(d.Native, d.TLS)
	}
	d.Addr = net.JoinHostPort(u.Hostname(), port)
	scheme := "http"
	if d.TLS {
		scheme = "https"
	}
	d.HTTPURL = scheme + "://" + d.Addr
	d.httpGiven = !d.Native
	if d.Native {
		d.HTTPURL = scheme + "://" + net.JoinHostPort(u.Hostname(), defaultPort(false, d.TLS))
	}
	if given := query.Get("http_url"); given != "" {
		h, err := url.Parse(given)
		if err != nil || (h.Scheme != "http" && h.Scheme != "https") || h.Host == "" || h.User != nil {
			return DSN{}, errors.New("ClickHouse DSN: http_url must be http://host:port or https://host:port, without a user")
		}
		d.HTTPURL, d.httpGiven = h.Scheme+"://"+h.Host, true
	}
	query.Del("http_url")
	if d.TLS {
		query.Set("secure", "true")
	}

	canonical := *u
	canonical.Host = d.Addr
	canonical.Path = "/" + d.Database
	canonical.RawQuery = query.Encode()
	if d.Native {
		canonical.Scheme = "clickhouse"
	}
	d.options, err = ch.ParseDSN(canonical.String())
	if err != nil {
		return DSN{}, fmt.Errorf("ClickHouse DSN: %s", d.scrub(err.Error()))
	}
	d.options.Auth = ch.Auth{Database: d.Database, Username: d.User, Password: d.password}
	if !query.Has("dial_timeout") {
		d.options.DialTimeout = dialTimeout
	}
	if !query.Has("read_timeout") {
		d.options.ReadTimeout = readTimeout
	}
	if !query.Has("compress") {
		d.options.Compression = &ch.Compression{Method: ch.CompressionLZ4}
	}
	if !query.Has("max_open_conns") {
		d.options.MaxOpenConns = 16
	}
	if !query.Has("max_idle_conns") {
		d.options.MaxIdleConns = 8
	}
	d.client = newHTTPClient(d.options.TLS)
	return d, nil
}

func defaultPort(native, tls bool) string {
	switch {
	case native && tls:
		return "9440"
	case native:
		return "9000"
	case tls:
		return "8443"
	default:
		return "8123"
	}
}

// String is the DSN without its password and parameters.
func (d DSN) String() string {
	u := url.URL{Scheme: "http", User: url.User(d.User), Host: d.Addr, Path: "/" + d.Database}
	switch {
	case d.Native:
		u.Scheme = "clickhouse"
	case d.TLS:
		u.Scheme = "https"
	}
	return u.String()
}

// GoString hides the password from %#v.
func (d DSN) GoString() string { return d.String() }

// Password is the one in the DSN.
func (d DSN) Password() string { return d.password }

func (d DSN) authenticate(req *http.Request) {
	req.Header.Set("X-ClickHouse-User", d.User)
	if d.password != "" {
		req.Header.Set("X-ClickHouse-Key", d.password)
	}
}

// networkError names the server instead of the whole URL, which quotes the
// query.
func (d DSN) networkError(err error) error {
	var quoted *url.Error
	if errors.As(err, &quoted) {
		err = quoted.Err
	}
	return fmt.Errorf("%s: %w", d, err)
}

// scrub removes the password from text that came from elsewhere.
func (d DSN) scrub(text string) string {
	if len(d.password) < 4 {
		return text
	}
	text = strings.ReplaceAll(text, d.password, "xxxxx")
	return strings.ReplaceAll(text, url.QueryEscape(d.password), "xxxxx")
}

// Redact returns dsn without its password, for logs; of what is no DSN it
// returns nothing that could be one.
func Redact(dsn string) string {
	d, err := ParseDSN(dsn)
	if err != nil {
		return "(malformed ClickHouse DSN)"
	}
	return d.String()
}

// Open connects to dsn and returns when the server has answered. It retries
// what may pass (a server that is starting) for up to about ten seconds, and
// fails at once on what will not, such as a wrong password. If the database does
// not exist it is created, since a session in no database cannot do it later.
func Open(ctx context.Context, dsn string) (driver.Conn, error) {
	d, err := ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	options := *d.options
	conn, err := ch.Open(&options)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %s", d, d.scrub(err.Error()))
	}
	wait := 100 * time.Millisecond
	for attempt := 1; ; attempt++ {
		err = serverError(conn.Ping(ctx))
		if err == nil {
			return conn, nil
		}
		// Over the native protocol a missing database shows as a connection that
		// is closed, like many another fault: look without one.
		if created, createErr := d.createDatabase(ctx); createErr != nil {
			err = createErr
		} else if (created || Code(err) == codeUnknownDatabase) && attempt < pingAttempts {
			continue // by us, or meanwhile by another process
		}
		if ctx.Err() != nil || IsPermanent(err) || attempt == pingAttempts {
			_ = conn.Close()
			return nil, fmt.Errorf("connect to %s: %w", d, err)
		}
		if err := sleep(ctx, wait); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("connect to %s: %w", d, err)
		}
		wait = min(2*wait, 3*time.Second)
	}
}

const codeUnknownDatabase = 81

// createDatabase creates the database if it does not exist, and says whether
// it did.
func (d DSN) createDatabase(ctx context.Context) (created bool, err error) {
	options := *d.options
	options.Auth.Database = "system" // the one that is always there
	conn, err := ch.Open(&options)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	var exists uint8
	if err := conn.QueryRow(ctx, "EXISTS DATABASE "+quoteIdentifier(d.Database)).Scan(&exists); err != nil {
		return false, serverError(err)
	}
	if exists == 1 {
		return false, nil
	}
	if err := conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+quoteIdentifier(d.Database)); err != nil {
		return false, serverError(err)
	}
	return true, nil
}

// quoteIdentifier makes any name safe inside a statement.
func quoteIdentifier(name string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(name) + "`"
}
