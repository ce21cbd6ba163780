package pace

import (
	"testing"
	"time"
)

func TestSleeper(t *testing.T) {
	for _, precise := range []bool{true, false} {
		s := NewSleeper(precise)
		for _, d := range []time.Duration{-time.Second, 0, time.Microsecond, 3 * time.Millisecond, 3 * time.Millisecond} {
			at := time.Now().Add(d)
			if !s.Until(at) {
				t.Fatalf("precise %t: woken", precise)
			}
			if early := time.Until(at); early > 0 {
				t.Errorf("precise %t: %s too early", precise, early)
			}
		}
		timer := time.AfterFunc(5*time.Millisecond, s.Wake)
		if s.Until(time.Now().Add(time.Hour)) {
			t.Errorf("precise %t: slept for an hour", precise)
		}
		timer.Stop()
		for _, d := range []time.Duration{time.Hour, 0} {
			if s.Until(time.Now().Add(d)) {
				t.Errorf("precise %t: waits after it was woken", precise)
			}
		}
		s.Wake()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
