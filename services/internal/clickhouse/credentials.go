package clickhouse

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Names of the embedded engine's two users: LabUser reads and writes the
// database named Database, ReaderUser only reads it, within limits.
const (
	LabUser    = "lab"
	ReaderUser = "reader"
	Database   = "transferlab"
)

// Credentials are the passwords of the embedded engine's users.
type Credentials struct {
	Lab    string `json:"lab"`
	Reader string `json:"reader"`
}

// Validate reports every missing password.
func (c Credentials) Validate() error {
	var errs []error
	if c.Lab == "" {
		errs = append(errs, errors.New("no password for user "+LabUser))
	}
	if c.Reader == "" {
		errs = append(errs, errors.New("no password for user "+ReaderUser))
	}
	return errors.Join(errs...)
}

// String hides the passwords from logs.
func (Credentials) String() string { return "credentials of " + LabUser + ", " + ReaderUser }

// GoString hides the passwords from %#v too.
func (c Credentials) GoString() string { return c.String() }

// LoadOrCreateCredentials reads dir/credentials.json (mode 0600), creating dir
// (0700) and the file with fresh random passwords at the first start. Two
// processes that start at once get the same passwords.
func LoadOrCreateCredentials(ctx context.Context, dir string) (Credentials, error) {
	var c Credentials
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return c, fmt.Errorf("create the ClickHouse directory: %w", err)
	}
	unlock, err := lockFile(ctx, filepath.Join(dir, "credentials.lock"), nil)
	if err != nil {
		return c, fmt.Errorf("lock the ClickHouse credentials: %w", err)
	}
	defer unlock()
	path := filepath.Join(dir, "credentials.json")
	raw, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(raw, &c); err != nil {
			return c, fmt.Errorf("read %s: %w", path, err)
		}
		if err := c.Validate(); err != nil {
			return c, fmt.Errorf("read %s: %w", path, err)
		}
		return c, nil
	case !errors.Is(err, fs.ErrNotExist):
		return c, fmt.Errorf("read the ClickHouse credentials: %w", err)
	}
	c = Credentials{Lab: rand.Text(), Reader: rand.Text()}
	if raw, err = json.Marshal(c); err != nil {
		return c, err
	}
	if err := writeFileAtomic(path, append(raw, '\n'), 0o600); err != nil {
		return c, fmt.Errorf("write the ClickHouse credentials: %w", err)
	}
	return c, nil
}
