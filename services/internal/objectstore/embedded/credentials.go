package embedded

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Credentials are what a client of the server signs with.
type Credentials struct {
	AccessKey string `json:"access_key"`
	SecretKey string `json:"secret_key"`
}

// LoadOrCreateCredentials returns the credentials kept in dir/credentials.json, having made them up and written them,
// readable by the owner only, if there are none. dir is created if need be.
func LoadOrCreateCredentials(dir string) (Credentials, error) {
	path := filepath.Join(dir, "credentials.json")
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		var c Credentials
		if err := json.Unmarshal(text, &c); err != nil {
			return c, fmt.Errorf("read %s: %w", path, err)
		}
		if c.AccessKey == "" || c.SecretKey == "" {
			return c, fmt.Errorf("read %s: access_key or secret_key is missing; remove the file to have new ones made", path)
		}
		return c, nil
	case !errors.Is(err, fs.ErrNotExist):
		return Credentials{}, err
	}
	c := GenerateCredentials()
	if text, err = json.MarshalIndent(c, "", "\t"); err != nil {
		return Credentials{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Credentials{}, err
	}
	if err := writeFileAtomic(path, append(text, '\n'), 0o600); err != nil {
		return Credentials{}, fmt.Errorf("write credentials: %w", err)
	}
	return c, nil
}

// GenerateCredentials makes up credentials: 20 characters and 52, of 100 and 260 random bits.
func GenerateCredentials() Credentials {
	return Credentials{AccessKey: "TL" + rand.Text()[:18], SecretKey: rand.Text() + rand.Text()}
}
