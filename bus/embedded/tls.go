package embedded

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// How long certificates last, and how long before their end they are made anew.
const (
	authorityLife  = 10 * 365 * 24 * time.Hour
	authorityRenew = 180 * 24 * time.Hour
	serverLife     = 365 * 24 * time.Hour
	serverRenew    = 60 * 24 * time.Hour
	// Clocks of other machines may be behind ours.
	clockSlack = time.Hour
)

var hostName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// authority signs the server's certificates. Its key stays in the directory.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
	file        string
}

// serverTLS returns the configuration for a server that is reached as any of
// hosts, with the authority to trust. Both are kept in dir and made anew near
// their end, or for another host.
func serverTLS(dir string, hosts []string, now time.Time) (*tls.Config, *authority, error) {
	for _, host := range hosts {
		if net.ParseIP(host) == nil && (len(host) > 253 || !hostName.MatchString(host)) {
			return nil, nil, fmt.Errorf("advertised address of the bus: %q, want a host name or an IP address", host)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("create directory for certificates: %w", err)
	}
	a, err := loadAuthority(dir, now)
	if err != nil {
		return nil, nil, err
	}
	certificate, err := a.server(dir, hosts, now)
	if err != nil {
		return nil, nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}, a, nil
}

func loadAuthority(dir string, now time.Time) (*authority, error) {
	file := filepath.Join(dir, "ca.pem")
	key, chain, err := loadPair(file, filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		return nil, err
	}
	if key != nil && now.Add(authorityRenew).Before(chain.NotAfter) && chain.IsCA {
		return &authority{certificate: chain, key: key, pem: encodeCertificate(chain.Raw), file: file}, nil
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "transferlab bus"}, NotBefore: now.Add(-clockSlack), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key, raw, err := makePair(dir, "ca", template, nil)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("certificate authority of the bus: %w", err)
	}
	return &authority{certificate: certificate, key: key, pem: encodeCertificate(raw), file: file}, nil
}

// server returns the certificate for hosts and for this machine itself.
func (a *authority) server(dir string, hosts []string, now time.Time) (tls.Certificate, error) {
	key, certificate, err := loadPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return tls.Certificate{}, err
	}
	if key != nil && now.Add(serverRenew).Before(certificate.NotAfter) && certificate.CheckSignatureFrom(a.certificate) == nil &&
		!slices.ContainsFunc(hosts, func(host string) bool { return certificate.VerifyHostname(host) != nil }) {
		return tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key, Leaf: certificate}, nil
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "transferlab bus server"}, NotBefore: now.Add(-clockSlack), NotAfter: now.Add(serverLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	key, raw, err := makePair(dir, "server", template, a)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, nil
}

// loadPair reads a certificate and its key; nil if they are not there or do not
// belong together, as after a crash between writing one and the other.
func loadPair(certificateFile, keyFile string) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	certificatePEM, err := os.ReadFile(certificateFile)
	if err == nil {
		var keyPEM []byte
		if keyPEM, err = os.ReadFile(keyFile); err == nil {
			return parsePair(certificateFile, certificatePEM, keyPEM)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	return nil, nil, fmt.Errorf("read certificate of the bus: %w", err)
}

func parsePair(name string, certificatePEM, keyPEM []byte) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	block, _ := pem.Decode(certificatePEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if block == nil || keyBlock == nil {
		return nil, nil, fmt.Errorf("read certificate of the bus %s: no PEM in it or in its key", name)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read certificate of the bus %s: %w", name, err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read key of %s: %w", name, err)
	}
	key, is := parsed.(*ecdsa.PrivateKey)
	if !is || !key.PublicKey.Equal(certificate.PublicKey) {
		return nil, nil, nil
	}
	return key, certificate, nil
}

// makePair makes a key and its certificate, signed by a or by itself, and keeps
// both; the key first, so that a certificate never lacks its own.
func makePair(dir, name string, template *x509.Certificate, a *authority) (*ecdsa.PrivateKey, []byte, error) {
	fail := func(err error) (*ecdsa.PrivateKey, []byte, error) {
		return nil, nil, fmt.Errorf("make certificate %s of the bus: %w", name, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return fail(err)
	}
	parent, signer := template, key
	if a != nil {
		parent, signer = a.certificate, a.key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return fail(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fail(err)
	}
	var keyPEM bytes.Buffer
	if err := pem.Encode(&keyPEM, &pem.Block{Type: "PRIVATE KEY", Bytes: encoded}); err != nil {
		return fail(err)
	}
	if err := writePrivate(filepath.Join(dir, name+"-key.pem"), keyPEM.Bytes()); err != nil {
		return fail(err)
	}
	if err := writePrivate(filepath.Join(dir, name+".pem"), encodeCertificate(raw)); err != nil {
		return fail(err)
	}
	return key, raw, nil
}

func encodeCertificate(raw []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
}

// writePrivate replaces a file that only its owner may read.
func writePrivate(path string, data []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
