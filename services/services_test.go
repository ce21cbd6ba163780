package services

import (
	"regexp"
	"testing"
)

// What the lab and the command line take for granted of every service.
func TestEveryServiceIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range All() {
		if !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(s.Name) || seen[s.Name] {
			t.Errorf("name %q: want lower case and hyphens, once", s.Name)
		}
		seen[s.Name] = true
		if s.Short == "" || s.Role == "" || s.Run == nil {
			t.Errorf("%s: no help, role or Run", s.Name)
		}
		if _, ok := s.Config.(interface{ Validate() error }); !ok {
			t.Errorf("%s: its configuration cannot validate itself", s.Name)
		}
	}
}
