package plan

import (
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

func TestTriggers(t *testing.T) {
	o := &schemas.Offload{Clips: 1000, Every: schemas.Duration(9 * time.Second)}
	o.SetDefaults()
	constant := Triggers(7, 0, 0, o)
	if len(constant) != 1000 || constant[0].At != 0 || constant[999].At != 999*9*time.Second {
		t.Errorf("%d triggers, from %s to %s", len(constant), constant[0].At, constant[999].At)
	}
	o.Arrival = "poisson"
	poisson := Triggers(7, 0, 0, o)
	for i := 1; i < len(poisson); i++ {
		if poisson[i].At < poisson[i-1].At || poisson[i].Scene != poisson[i-1].Scene+1 {
			t.Fatalf("trigger %d: %+v after %+v", i, poisson[i], poisson[i-1])
		}
	}
	// The mean of 1000 exponential times is within 10 % of theirs but once in a thousand.
	if mean := poisson[999].At / 1000; mean < 8*time.Second || mean > 10*time.Second {
		t.Errorf("a trigger every %s, want 9 s on average", mean)
	}
	if again := Triggers(7, 0, 0, o); again[999] != poisson[999] {
		t.Error("the same seed gave other triggers")
	}
	for _, other := range [][]Trigger{Triggers(8, 0, 0, o), Triggers(7, 1, 0, o), Triggers(7, 0, 1, o)} {
		if other[999].At == poisson[999].At {
			t.Error("another seed, trial or edge gave the same triggers")
		}
	}
	o.Arrival, o.Every = "constant", 0
	if burst := Triggers(7, 0, 0, o); burst[999].At != 0 {
		t.Errorf("all at once: the last at %s", burst[999].At)
	}
}
