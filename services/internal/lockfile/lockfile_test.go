//go:build unix

package lockfile

import (
	"errors"
	"path/filepath"
	"testing"
)

func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Take(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Take(path); !errors.Is(err, ErrHeld) {
		t.Errorf("taken twice: %v", err)
	}
	unlock()
	unlock, err = Take(path)
	if err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	unlock()
	if _, err := Take(filepath.Join(path, "below")); err == nil || errors.Is(err, ErrHeld) {
		t.Errorf("where there is no directory: %v", err)
	}
}
