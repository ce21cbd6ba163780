package embedded_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/schemas"
)

func start(t *testing.T, dir, advertise string) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(t.Context(), embedded.Options{Dir: dir, Host: "127.0.0.1", Advertise: advertise})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// join connects by a socket; the error is nil once the server has let us in.
func join(t *testing.T, o bus.Options) (*bus.Conn, error) {
	t.Helper()
	return within(t, 10*time.Second, o)
}

// refused is join for those who are not to get in: a bus that does not let one
// in is tried again until the time is over.
func refused(t *testing.T, o bus.Options) error {
	t.Helper()
	_, err := within(t, 300*time.Millisecond, o)
	return err
}

func within(t *testing.T, patience time.Duration, o bus.Options) (*bus.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	o.Name = t.Name()
	c, err := bus.Connect(ctx, o)
	if err == nil {
		t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	}
	return c, err
}

func provision(t *testing.T, s *embedded.Server) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(t.Context(), s.Options(bus.RoleOperator, "provision", nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	if err := c.Provision(t.Context(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	return c
}

// announce does what an agent does first; it needs the role's rights.
func announce(t *testing.T, c *bus.Conn, name string) error {
	t.Helper()
	agents, err := bus.OpenBucket[schemas.Agent](t.Context(), c, bus.BucketAgents)
	if err != nil {
		return err
	}
	_, err = agents.Put(t.Context(), name, schemas.Agent{Name: name, Start: "1", Service: "x", Site: "oregon", Workloads: []string{"probe"}, Seen: time.Now(), CPUs: 1})
	return err
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir, "localhost")
	provision(t, s) // in this process, without TLS

	for _, name := range []string{"ca.pem", "ca-key.pem", "server.pem", "server-key.pem"} {
		if info, err := os.Stat(filepath.Join(dir, "tls", name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if !strings.HasPrefix(s.URL(), "tls://127.0.0.1:") || !strings.HasPrefix(s.PublicURL(), "tls://localhost:") {
		t.Errorf("addresses %s, %s", s.URL(), s.PublicURL())
	}
	agent := bus.Options{URL: s.PublicURL(), User: bus.RoleAgent, Password: s.Password(bus.RoleAgent), CAFile: s.CAFile()}
	for _, address := range []string{s.PublicURL(), s.URL()} {
		agent.URL = address
		c, err := join(t, agent)
		if err != nil {
			t.Fatal(err)
		}
		if err := announce(t, c, "a"); err != nil {
			t.Fatal(err)
		}
	}

	other := start(t, t.TempDir(), "localhost")
	wrong := agent
	wrong.CAFile = other.CAFile()
	if err := refused(t, wrong); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with another authority: %v", err)
	}
	wrong = agent
	wrong.CAFile = ""
	if err := refused(t, wrong); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without an authority: %v", err)
	}
	wrong.URL = strings.Replace(agent.URL, "tls://", "nats://", 1)
	if err := refused(t, wrong); err == nil {
		t.Error("joined without TLS")
	}
	plain(t, s)

	// The certificate in use is the one that the authority made for the host.
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	if state := handshake(t, u.Host, s.CA()); state.PeerCertificates[0].VerifyHostname("localhost") != nil || state.PeerCertificates[0].VerifyHostname("::1") != nil {
		t.Errorf("certificate for %v %v", state.PeerCertificates[0].DNSNames, state.PeerCertificates[0].IPAddresses)
	}
}

// plain makes sure that nobody is let in who writes a password unencrypted.
func plain(t *testing.T, s *embedded.Server) {
	t.Helper()
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	login, err := json.Marshal(map[string]any{"user": bus.RoleOperator, "pass": s.Password(bus.RoleOperator), "verbose": true})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("CONNECT " + string(login) + "\r\nPING\r\n"))
	var answer strings.Builder
	buffer := make([]byte, 4096)
	for {
		n, err := c.Read(buffer)
		answer.Write(buffer[:n])
		if err != nil {
			break
		}
	}
	if strings.Contains(answer.String(), "PONG") || strings.Contains(answer.String(), "+OK") {
		t.Errorf("the server answered %q without TLS", answer.String())
	}
}

func handshake(t *testing.T, address string, ca []byte) tls.ConnectionState {
	t.Helper()
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	// The server speaks first, unencrypted: one line.
	for b := make([]byte, 1); b[0] != '\n'; {
		if _, err := raw.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no certificate")
	}
	c := tls.Client(raw, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState()
}

func TestAuthorityStaysAndHostChanges(t *testing.T) {
	dir := t.TempDir()
	first, err := embedded.Start(t.Context(), embedded.Options{Dir: dir, Host: "127.0.0.1", Advertise: "lab.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	ca, before := string(first.CA()), read(t, dir, "server.pem")
	first.Close()
	again, err := embedded.Start(t.Context(), embedded.Options{Dir: dir, Host: "127.0.0.1", Advertise: "lab.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if string(again.CA()) != ca || read(t, dir, "server.pem") != before {
		t.Error("a restart made new certificates")
	}
	again.Close()
	s := start(t, dir, "192.0.2.9")
	if string(s.CA()) != ca {
		t.Error("another host made a new authority")
	}
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	if state := handshake(t, u.Host, s.CA()); state.PeerCertificates[0].VerifyHostname("192.0.2.9") != nil {
		t.Error("the certificate is not for the new host")
	}
	if s.PublicURL() != "tls://192.0.2.9:"+u.Port() {
		t.Error(s.PublicURL())
	}
	for _, bad := range []string{"a b", "-x", "tls://lab", "lab:4222", "x\n"} {
		if s, err := embedded.Start(t.Context(), embedded.Options{Dir: t.TempDir(), Host: "127.0.0.1", Advertise: bad}); err == nil {
			s.Close()
			t.Errorf("advertised %q", bad)
		}
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "tls", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestUsersComeAndGo(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir, "localhost")
	provision(t, s)
	staying, err := join(t, bus.Options{URL: s.URL(), User: bus.RoleAgent, Password: s.Password(bus.RoleAgent), CAFile: s.CAFile()})
	if err != nil {
		t.Fatal(err)
	}

	password, err := s.AddUser("fleet-mesh", bus.RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.AddUser("fleet-mesh", bus.RoleAgent); err != nil || again != password {
		t.Errorf("added again: %q, %v, want the same password", again, err)
	}
	if _, err := s.AddUser("fleet-mesh", bus.RoleOperator); err == nil {
		t.Error("added again with another role")
	}
	for _, bad := range []string{"", "agent", "lab", "A", "a b", "users*"} {
		if _, err := s.AddUser(bad, bus.RoleAgent); err == nil {
			t.Errorf("added user %q", bad)
		}
	}
	if _, err := s.AddUser("x", "king"); err == nil {
		t.Error("added a user with a role that there is not")
	}
	options := bus.Options{URL: s.URL(), User: "fleet-mesh", Password: password, CAFile: s.CAFile()}
	c, err := join(t, options)
	if err != nil {
		t.Fatal(err)
	}
	if err := announce(t, c, "b"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := c.Provision(short, bus.DefaultLimits()); err == nil {
		t.Error("a user with an agent's role has provisioned the bus")
	}
	if err := staying.Healthy(); err != nil {
		t.Errorf("adding a user has disconnected another: %v", err)
	}
	s.Close()

	s = start(t, dir, "localhost")
	provision(t, s)
	options.URL = s.URL()
	if c, err = join(t, options); err != nil {
		t.Fatalf("after a restart: %v", err)
	}
	if err := s.RemoveUser("fleet-mesh"); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(10 * time.Second)
	for c.Healthy() == nil {
		select {
		case <-deadline:
			t.Fatal("the removed user is still connected")
		case <-time.After(5 * time.Millisecond):
		}
	}
	if err := refused(t, options); err == nil || !strings.Contains(err.Error(), "refuses these credentials") {
		t.Errorf("the removed user: %v", err)
	}
	if err := s.RemoveUser("fleet-mesh"); err != nil || len(s.Users()) != 0 {
		t.Errorf("removed again: %v, users %v", err, s.Users())
	}
	if _, err := join(t, bus.Options{URL: s.URL(), User: bus.RoleAgent, Password: s.Password(bus.RoleAgent), CAFile: s.CAFile()}); err != nil {
		t.Errorf("the role itself: %v", err)
	}
}
