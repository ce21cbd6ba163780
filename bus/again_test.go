package bus_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/schemas"
)

// What is handed back is no dead letter, whichever try it was, and who ends
// leaves it to another.
func TestHandedBack(t *testing.T) {
	s := bustest.Start(t)
	operator := bustest.Join(t, s, bus.RoleOperator)
	consumption := bus.Consumption{
		Stream: bus.StreamClips, Durable: bus.ConsumerDetectors, Subject: bus.SubjectAnyClips, Shared: true, Tries: 1,
	}
	if err := operator.Publish(t.Context(), bus.SubjectClips("pi"), "a", &schemas.ClipOffer{ID: "a", Edge: "pi"}); err != nil {
		t.Fatal(err)
	}
	first, end := context.WithCancel(t.Context())
	tries := 0
	err := bus.Consume(first, bustest.Join(t, s, bus.RoleDetector), consumption, func(ctx context.Context, _ schemas.ClipOffer) error {
		if tries++; tries == 3 {
			end()
		}
		return fmt.Errorf("%w: try %d", bus.ErrAgain, tries)
	})
	if err != nil || tries != 3 {
		t.Fatalf("%d tries, %v", tries, err)
	}
	second, done := context.WithTimeout(t.Context(), 20*time.Second)
	defer done()
	handed := time.Now()
	var took time.Duration
	err = bus.Consume(second, bustest.Join(t, s, bus.RoleDetector), consumption, func(context.Context, schemas.ClipOffer) error {
		took = time.Since(handed)
		done()
		return nil
	})
	if err != nil || took == 0 || took > 10*time.Second {
		t.Errorf("the other had it after %s, %v", took, err)
	}
	if err := operator.DeadLetters(t.Context(), func(l bus.DeadLetter) error {
		return fmt.Errorf("dead letter: %s", l.Reason)
	}); err != nil {
		t.Error(err)
	}
}
