package stream

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/transferlab/transferlab/schemas"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func options() Options { return Options{Timeout: 5 * time.Second, TTL: 64, IP: "any"} }

func probe(t *testing.T, o Options, target Target) Result {
	t.Helper()
	var r Result
	New(o).Do(t.Context(), &target, &r)
	t.Logf("%s: %s %q %+v", target.Protocol, r.Status, r.Err, r)
	if r.End.Before(r.Begin) || (r.Status == schemas.StatusOK) != (r.Err == "") {
		t.Errorf("%+v", r)
	}
	return r
}

func at(t testing.TB, addr net.Addr) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// closedPort is a port at which nobody listens.
func closedPort(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return at(t, l.Addr())
}

// serve gives every connection to handle until the test ends.
func serve(t testing.TB, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return at(t, l.Addr())
}

func respond(t testing.TB, addr netip.Addr, key []byte) *Responders {
	t.Helper()
	r, err := Listen(addr, schemas.MeshProtocols(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if key != nil {
		r.SetKey(key)
	}
	return r
}

// Our probes against our responders, at both versions of IP.
func TestMesh(t *testing.T) {
	for _, addr := range []netip.Addr{loopback, netip.IPv6Loopback()} {
		r := respond(t, addr, nil)
		if _, ok := r.Ports()[schemas.ProtocolICMP]; ok || len(r.Ports()) != 4 {
			t.Fatalf("listens at %v", r.Ports())
		}
		for protocol, port := range r.Ports() {
			res := probe(t, options(), Target{Protocol: protocol, Addr: netip.AddrPortFrom(addr, port), Host: addr.String(), Path: "/", Mesh: true})
			if res.Status != schemas.StatusOK || res.Connect <= 0 || res.DNS != 0 {
				t.Errorf("%s: %+v", protocol, res)
			}
			if runtime.GOOS == "linux" && res.TCPRTT <= 0 {
				t.Errorf("%s: the kernel told no round trip", protocol)
			}
			secure := protocol == schemas.ProtocolTLS || protocol == schemas.ProtocolHTTPS
			web := protocol == schemas.ProtocolHTTP || protocol == schemas.ProtocolHTTPS
			if (res.TLS > 0) != secure || (res.FirstByte > 0) != web || (res.Bytes == 3) != web || (res.HTTPStatus == 200) != web {
				t.Errorf("%s: %+v", protocol, res)
			}
			if res.Connect+res.TLS > res.End.Sub(res.Begin) || res.FirstByte > res.End.Sub(res.Begin) {
				t.Errorf("%s: phases longer than the whole: %+v", protocol, res)
			}
		}
	}
}

// Off the loopback interface HTTP answers only those who have the trial's key.
func TestToken(t *testing.T) {
	key := []byte("the trial's secret")
	r := respond(t, netip.IPv4Unspecified(), nil)
	web := Target{Protocol: schemas.ProtocolHTTP, Addr: netip.AddrPortFrom(loopback, r.Ports()["http"]), Host: "127.0.0.1", Path: "/", Mesh: true}
	for _, c := range []struct {
		key, token []byte
		want       string
	}{
		{nil, nil, schemas.StatusDenied},
		{nil, key, schemas.StatusDenied},
		{[]byte{}, nil, schemas.StatusDenied},
		{key, nil, schemas.StatusDenied},
		{key, []byte("another"), schemas.StatusDenied},
		{key, key, schemas.StatusOK},
	} {
		if c.key != nil {
			r.SetKey(c.key)
		}
		web.Token = Token(c.token)
		if res := probe(t, options(), web); res.Status != c.want {
			t.Errorf("key %q, token of %q: %s %s, want %s", c.key, c.token, res.Status, res.Err, c.want)
		}
	}
	if Token(nil) != "" || len(Token(key)) != 64 {
		t.Errorf("tokens %q, %q", Token(nil), Token(key))
	}
}

// An address that is not this machine's is one that a router translates.
func TestListenAtForeignAddress(t *testing.T) {
	r := respond(t, netip.MustParseAddr("192.0.2.1"), nil)
	res := probe(t, options(), Target{Protocol: "tcp", Addr: netip.AddrPortFrom(loopback, r.Ports()["tcp"]), Mesh: true})
	if res.Status != schemas.StatusOK {
		t.Errorf("%+v", res)
	}
}

func TestRespondersEndWhatIsOpen(t *testing.T) {
	r, err := Listen(loopback, schemas.MeshProtocols(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	for _, port := range r.Ports() {
		c, err := net.Dial("tcp", netip.AddrPortFrom(loopback, port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	begin := time.Now()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range open {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("still open: %v", err)
		}
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("took %s", took)
	}
	if err := r.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// More connections than are allowed are closed, and there is room again when
// others have gone.
func TestRespondersAreBounded(t *testing.T) {
	r := respond(t, loopback, nil)
	addr := netip.AddrPortFrom(loopback, r.Ports()["tcp"]).String()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	refused := false
	for range maxConnections + 1 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	last := open[maxConnections]
	_ = last.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := last.Read(make([]byte, 1)); errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		refused = true
	}
	if !refused {
		t.Errorf("connection %d is held", len(open))
	}
}

func TestStatuses(t *testing.T) {
	silent := serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	closing := serve(t, func(c net.Conn) {})
	resetting := serve(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	short := options()
	short.Timeout = 50 * time.Millisecond
	for _, c := range []struct {
		name   string
		target Target
		o      Options
		want   string
	}{
		{"refused", Target{Protocol: "tcp", Addr: closedPort(t)}, options(), schemas.StatusRefused},
		{"no answer to TLS", Target{Protocol: "tls", Addr: silent, Host: "localhost"}, short, schemas.StatusTimeout},
		{"no answer to HTTP", Target{Protocol: "http", Addr: silent, Host: "localhost", Path: "/"}, short, schemas.StatusTimeout},
		{"TLS closed", Target{Protocol: "tls", Addr: closing, Host: "localhost"}, options(), schemas.StatusReset},
		{"HTTP closed", Target{Protocol: "http", Addr: closing, Host: "localhost", Path: "/"}, options(), schemas.StatusReset},
		{"reset", Target{Protocol: "http", Addr: resetting, Host: "localhost", Path: "/"}, options(), schemas.StatusReset},
		{"no protocol", Target{Protocol: "ftp", Addr: silent}, options(), schemas.StatusError},
		{"broadcast", Target{Protocol: "tcp", Addr: netip.MustParseAddrPort("255.255.255.255:1")}, short, "unreachable denied error"},
		{"name in no zone", Target{Protocol: "http", Host: "x.invalid", Path: "/", Addr: netip.AddrPortFrom(netip.Addr{}, 80)}, withResolver(t, options()), schemas.StatusDNS},
	} {
		if r := probe(t, c.o, c.target); !strings.Contains(c.want, r.Status) {
			t.Errorf("%s: %s (%s), want %s", c.name, r.Status, r.Err, c.want)
		}
	}
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, schemas.StatusOK},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}, schemas.StatusUnreachable},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, schemas.StatusUnreachable},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ETIMEDOUT)}, schemas.StatusTimeout},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EPERM)}, schemas.StatusDenied},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EMFILE)}, schemas.StatusError},
		{&net.OpError{Op: "dial", Err: &net.DNSError{IsTimeout: true}}, schemas.StatusDNS},
		{errHandshake{x509.UnknownAuthorityError{}}, schemas.StatusTLS},
		{errHandshake{os.ErrDeadlineExceeded}, schemas.StatusTimeout},
	} {
		if got := Classify(t.Context(), c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got := Classify(ended, errors.New("anything")); got != schemas.StatusCancelled {
		t.Errorf("cancelled: %s", got)
	}
}

func TestCertificates(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	defer server.Close()
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	target := Target{Protocol: "https", Addr: at(t, server.Listener.Addr()), Host: "example.com", Path: "/"}
	if r := probe(t, options(), target); r.Status != schemas.StatusTLS {
		t.Errorf("a certificate that nobody vouches for: %s %s", r.Status, r.Err)
	}
	trusting := options()
	trusting.Roots = x509.NewCertPool()
	trusting.Roots.AddCert(server.Certificate())
	if r := probe(t, trusting, target); r.Status != schemas.StatusOK || r.Bytes != 5 {
		t.Errorf("a known one: %s %s", r.Status, r.Err)
	}
	target.Host = "other.example"
	if r := probe(t, trusting, target); r.Status != schemas.StatusTLS {
		t.Errorf("another name's: %s %s", r.Status, r.Err)
	}
	insecure := options()
	insecure.Insecure = true
	if r := probe(t, insecure, target); r.Status != schemas.StatusOK {
		t.Errorf("insecure: %s %s", r.Status, r.Err)
	}
}

func TestHTTP(t *testing.T) {
	var seen *http.Request
	mux := http.NewServeMux()
	for _, status := range []int{301, 401, 403, 404, 429, 500, 503} {
		mux.HandleFunc(fmt.Sprintf("/%d", status), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
	}
	mux.HandleFunc("/seen", func(w http.ResponseWriter, r *http.Request) { seen = r.Clone(context.Background()) })
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "then")
	})
	mux.HandleFunc("/chunked", func(w http.ResponseWriter, _ *http.Request) {
		for range 10 {
			_, _ = w.Write(make([]byte, 10_000))
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "short")
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	for path, want := range map[string]struct {
		status string
		code   int
		bytes  int64
	}{
		"/301":     {schemas.StatusOK, 301, 0},
		"/404":     {schemas.StatusOK, 404, 0},
		"/401":     {schemas.StatusDenied, 401, 0},
		"/403":     {schemas.StatusDenied, 403, 0},
		"/429":     {schemas.StatusThrottled, 429, 0},
		"/500":     {schemas.StatusServerError, 500, 0},
		"/503":     {schemas.StatusServerError, 503, 0},
		"/early":   {schemas.StatusOK, 200, 4},
		"/chunked": {schemas.StatusOK, 200, 100_000},
		"/short":   {schemas.StatusTruncated, 200, 5},
	} {
		r := probe(t, options(), Target{Protocol: "http", Addr: at(t, server.Listener.Addr()), Host: "example.com", Path: path})
		if r.Status != want.status || r.HTTPStatus != want.code || r.Bytes != want.bytes {
			t.Errorf("%s: %+v, want %+v", path, r, want)
		}
	}
	target, err := schemas.ParseTarget("http://example.com/seen?a=b%20c")
	if err != nil {
		t.Fatal(err)
	}
	probe(t, options(), Target{Protocol: "http", Addr: at(t, server.Listener.Addr()), Host: target.Host, Path: target.Path})
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	if seen == nil || seen.Host != "example.com:"+port || seen.URL.Query().Get("a") != "b c" || seen.Header.Get("Authorization") != "" {
		t.Errorf("the server saw %+v", seen)
	}
}

func TestHostHeader(t *testing.T) {
	for _, c := range []struct {
		target Target
		want   string
	}{
		{Target{Protocol: "http", Addr: netip.MustParseAddrPort("192.0.2.1:80"), Host: "example.com"}, "example.com"},
		{Target{Protocol: "https", Addr: netip.MustParseAddrPort("192.0.2.1:443"), Host: "example.com"}, "example.com"},
		{Target{Protocol: "https", Addr: netip.MustParseAddrPort("192.0.2.1:80"), Host: "example.com"}, "example.com:80"},
		{Target{Protocol: "http", Addr: netip.MustParseAddrPort("[::1]:8080"), Host: "::1"}, "[::1]:8080"},
	} {
		c.target.Path = "/"
		q, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(appendRequest(nil, &c.target)))))
		if err != nil || q.Host != c.want {
			t.Errorf("%+v: %q, %v", c.target, q.Host, err)
		}
	}
}

// A server that never ends its head, or its body, is not listened to for ever.
func TestEndlessAnswers(t *testing.T) {
	endless := func(begin string) netip.AddrPort {
		return serve(t, func(c net.Conn) {
			_, _ = io.WriteString(c, begin)
			line := []byte(strings.Repeat("x: "+strings.Repeat("y", 61)+"\r\n", 1000))
			for {
				if _, err := c.Write(line); err != nil {
					return
				}
			}
		})
	}
	head := Target{Protocol: "http", Addr: endless("HTTP/1.1 200 OK\r\n"), Host: "x", Path: "/"}
	if r := probe(t, options(), head); r.Status != schemas.StatusError || !strings.Contains(r.Err, "head") {
		t.Errorf("head: %+v", r)
	}
	patient := options()
	patient.Timeout = time.Minute
	body := Target{Protocol: "http", Addr: endless("HTTP/1.1 200 OK\r\n\r\n"), Host: "x", Path: "/"}
	if r := probe(t, patient, body); r.Status != schemas.StatusTruncated || r.Bytes < maxBody || r.Bytes > maxBody+maxHead {
		t.Errorf("body: %+v", r)
	}
}

func TestCancel(t *testing.T) {
	reached := make(chan struct{}, 8)
	silent := serve(t, func(c net.Conn) {
		reached <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	})
	for _, protocol := range []string{"tls", "http", "https"} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-reached; cancel() }()
		o := options()
		o.Timeout = time.Minute
		var r Result
		begin := time.Now()
		New(o).Do(ctx, &Target{Protocol: protocol, Addr: silent, Host: "x", Path: "/"}, &r)
		if r.Status != schemas.StatusCancelled || time.Since(begin) > 10*time.Second {
			t.Errorf("%s: %+v after %s", protocol, r, time.Since(begin))
		}
	}
}

// nameserver answers as told, over UDP and TCP at the same port.
func nameserver(t testing.TB, answer func(query dnsmessage.Message, tcp bool) [][]byte) netip.AddrPort {
	t.Helper()
	read := func(data []byte, tcp bool) [][]byte {
		var m dnsmessage.Message
		if err := m.Unpack(data); err != nil {
			return nil
		}
		return answer(m, tcp)
	}
	addr := serve(t, func(c net.Conn) {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		data := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, data); err != nil {
			return
		}
		for _, a := range read(data, true) {
			_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
		}
	})
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, a := range read(buf[:n], false) {
				_, _ = c.WriteToUDPAddrPort(a, from)
			}
		}
	})
	t.Cleanup(func() { _ = c.Close(); serving.Wait() })
	return addr
}

// reply answers a query with n addresses.
func reply(t testing.TB, q dnsmessage.Message, n int, change func(*dnsmessage.Message)) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RecursionAvailable: true}, Questions: q.Questions}
	for i := range n {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, byte(i + 1)}},
		})
	}
	if change != nil {
		change(&m)
	}
	data, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return data
}

func withResolver(t testing.TB, o Options) Options {
	t.Helper()
	server := nameserver(t, func(q dnsmessage.Message, _ bool) [][]byte {
		return [][]byte{reply(t, q, 0, func(m *dnsmessage.Message) {
			m.RCode = dnsmessage.RCodeNameError
			if strings.HasPrefix(q.Questions[0].Name.String(), "there.") {
				m.RCode = dnsmessage.RCodeSuccess
				if q.Questions[0].Type == dnsmessage.TypeA {
					m.Answers = []dnsmessage.Resource{{
						Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
						Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
					}}
				}
			}
		})}
	})
	o.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server.String())
	}}
	return o
}

// Looking the name up is a phase of an HTTP probe.
func TestHTTPLooksUp(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(u.Host).Port()
	r := probe(t, withResolver(t, options()), Target{Protocol: "http", Host: "there.example", Path: "/", Addr: netip.AddrPortFrom(netip.Addr{}, port)})
	if r.Status != schemas.StatusOK || r.DNS <= 0 || r.Addr != loopback || r.DNS+r.Connect > r.FirstByte {
		t.Errorf("%+v", r)
	}
}

func TestDNS(t *testing.T) {
	type answers = func(q dnsmessage.Message, tcp bool) [][]byte
	for name, c := range map[string]struct {
		answer answers
		want   string
		text   string
	}{
		"one address": {func(q dnsmessage.Message, _ bool) [][]byte { return [][]byte{reply(t, q, 1, nil)} }, schemas.StatusOK, ""},
		"no address":  {func(q dnsmessage.Message, _ bool) [][]byte { return [][]byte{reply(t, q, 0, nil)} }, schemas.StatusOK, ""},
		"unknown name": {func(q dnsmessage.Message, _ bool) [][]byte {
			return [][]byte{reply(t, q, 0, func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError })}
		}, schemas.StatusDNS, "NXDOMAIN for host.example"},
		"refused without the question": {func(q dnsmessage.Message, _ bool) [][]byte {
			return [][]byte{reply(t, q, 0, func(m *dnsmessage.Message) { m.RCode, m.Questions = dnsmessage.RCodeRefused, nil })}
		}, schemas.StatusDNS, "REFUSED"},
		"rcode of no name": {func(q dnsmessage.Message, _ bool) [][]byte {
			return [][]byte{reply(t, q, 0, func(m *dnsmessage.Message) { m.RCode = 11 })}
		}, schemas.StatusDNS, "code 11"},
		"others' answers first": {func(q dnsmessage.Message, _ bool) [][]byte {
			return [][]byte{
				{1, 2, 3},
				reply(t, q, 1, func(m *dnsmessage.Message) { m.ID++ }),
				reply(t, q, 1, func(m *dnsmessage.Message) { m.Response = false }),
				reply(t, q, 1, func(m *dnsmessage.Message) {
					m.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("other.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}
				}),
				reply(t, q, 2, nil),
			}
		}, schemas.StatusOK, ""},
		"cut off": {func(q dnsmessage.Message, _ bool) [][]byte {
			data := reply(t, q, 2, nil)
			return [][]byte{data[:len(data)-3]}
		}, schemas.StatusCorrupt, "cannot be read"},
		"too long for UDP": {func(q dnsmessage.Message, tcp bool) [][]byte {
			if tcp {
				return [][]byte{reply(t, q, 100, nil)}
			}
			return [][]byte{reply(t, q, 0, func(m *dnsmessage.Message) { m.Truncated = true })}
		}, schemas.StatusOK, ""},
		"too long for TCP": {func(q dnsmessage.Message, _ bool) [][]byte {
			return [][]byte{reply(t, q, 0, func(m *dnsmessage.Message) { m.Truncated = true })}
		}, schemas.StatusTruncated, "truncated"},
		"nothing": {func(dnsmessage.Message, bool) [][]byte { return nil }, schemas.StatusTimeout, ""},
		"nothing over TCP": {func(q dnsmessage.Message, tcp bool) [][]byte {
			if tcp {
				return nil
			}
			return [][]byte{reply(t, q, 0, func(m *dnsmessage.Message) { m.Truncated = true })}
		}, schemas.StatusReset, "closed"},
	} {
		o := options()
		if c.want == schemas.StatusTimeout {
			o.Timeout = 50 * time.Millisecond
		}
		r := probe(t, o, Target{Protocol: "dns", Addr: nameserver(t, c.answer), Name: "host.example"})
		if r.Status != c.want || !strings.Contains(r.Err, c.text) {
			t.Errorf("%s: %s %q, want %s", name, r.Status, r.Err, c.want)
		}
		if r.Status == schemas.StatusOK && (r.Bytes < 12 || r.FirstByte <= 0) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := probe(t, options(), Target{Protocol: "dns", Addr: closedPort(t), Name: "host.example"}); r.Status != schemas.StatusRefused {
		t.Errorf("nobody there: %+v", r)
	}
}

// A prober's buffers carry nothing from one probe to the next.
func TestReuse(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/long" {
			_, _ = w.Write(make([]byte, 100_000))
		}
	}))
	defer server.Close()
	names := nameserver(t, func(q dnsmessage.Message, _ bool) [][]byte { return [][]byte{reply(t, q, 1, nil)} })
	p := New(options())
	for range 3 {
		for _, c := range []struct {
			target Target
			bytes  func(int64) bool
		}{
			{Target{Protocol: "http", Addr: at(t, server.Listener.Addr()), Host: "x", Path: "/long"}, func(n int64) bool { return n == 100_000 }},
			{Target{Protocol: "dns", Addr: names, Name: "host.example"}, func(n int64) bool { return n > 12 && n < 512 }},
			{Target{Protocol: "http", Addr: at(t, server.Listener.Addr()), Host: "x", Path: "/"}, func(n int64) bool { return n == 0 }},
		} {
			var r Result
			p.Do(t.Context(), &c.target, &r)
			if r.Status != schemas.StatusOK || !c.bytes(r.Bytes) {
				t.Errorf("%+v: %+v", c.target, r)
			}
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("host.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	f.Add(reply(f, q, 0, nil))
	f.Add(reply(f, q, 3, nil))
	f.Add(reply(f, q, 1, nil)[:30])
	f.Add(reply(f, q, 0, func(m *dnsmessage.Message) { m.Truncated = true }))
	f.Add(reply(f, q, 0, func(m *dnsmessage.Message) { m.RCode, m.Questions = dnsmessage.RCodeRefused, nil }))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := parseAnswer(data, 7, "host.example")
		if err == nil && (a.size != len(data) || len(data) < 12 || a.records > len(data)) {
			t.Errorf("%+v of %d bytes", a, len(data))
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := New(options())
		p.buffers()
		p.limited = io.LimitedReader{R: strings.NewReader(string(data)), N: maxHead}
		p.reader.Reset(&p.limited)
		var r Result
		err := p.answer(p.reader, &r)
		if r.Bytes > int64(len(data)) || err == nil && r.HTTPStatus == 0 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
