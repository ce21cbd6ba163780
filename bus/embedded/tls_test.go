package embedded

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestCertificatesAreRenewed(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	certificates := func(now time.Time) ([]byte, []byte) {
		t.Helper()
		config, a, err := serverTLS(dir, []string{"lab.example.com"}, now)
		if err != nil {
			t.Fatal(err)
		}
		return config.Certificates[0].Certificate[0], a.pem
	}
	server, ca := certificates(now)
	if again, sameCA := certificates(now.Add(serverLife - serverRenew - time.Hour)); !bytes.Equal(again, server) || !bytes.Equal(sameCA, ca) {
		t.Error("renewed long before the end")
	}
	renewed, sameCA := certificates(now.Add(serverLife - serverRenew + time.Hour))
	if bytes.Equal(renewed, server) || !bytes.Equal(sameCA, ca) {
		t.Error("near its end the server's certificate stayed, or the authority did not")
	}
	if later, otherCA := certificates(now.Add(authorityLife - authorityRenew + time.Hour)); bytes.Equal(later, renewed) || bytes.Equal(otherCA, ca) {
		t.Error("near its end the authority stayed")
	}

	// A crash between a new key and its certificate.
	_, ca = certificates(now)
	other := t.TempDir()
	if _, _, err := serverTLS(other, []string{"lab.example.com"}, now); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(other, "server-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server-key.pem"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, sameCA := certificates(now); !bytes.Equal(sameCA, ca) {
		t.Error("another authority because of the server's key")
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := serverTLS(dir, []string{"lab.example.com"}, now); err == nil {
		t.Error("an authority that cannot be read was replaced: instances would no longer trust the bus")
	}
}
