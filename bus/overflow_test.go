package bus_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/schemas"
)

// The far taker gets something only while the near one is behind.
func TestOverflow(t *testing.T) {
	s := bustest.Start(t)
	edge := bustest.Join(t, s, bus.RoleEdge)
	ctx, cancel := context.WithCancel(t.Context())
	consumption := bus.Consumption{
		Stream: bus.StreamOffers, Durable: "edge-pi", Subject: bus.SubjectOffers("pi"), Overflow: true, Backlog: 1,
	}
	var nearGot, farGot atomic.Int64
	release, got := make(chan struct{}), make(chan string, 100)
	ended := make(chan error, 2)
	near, far := consumption, consumption
	near.Near = true
	go func() {
		ended <- bus.Consume(ctx, edge, near, func(_ context.Context, _ schemas.ClipOffer) error {
			nearGot.Add(1)
			got <- "near"
			<-release
			return nil
		})
	}()
	go func() {
		ended <- bus.Consume(ctx, edge, far, func(_ context.Context, _ schemas.ClipOffer) error {
			farGot.Add(1)
			got <- "far"
			return nil
		})
	}()
	offer := func(i int) {
		t.Helper()
		id := fmt.Sprintf("c%d", i)
		if err := edge.Publish(t.Context(), bus.SubjectOffers("pi"), id, &schemas.ClipOffer{ID: id, Edge: "pi"}); err != nil {
			t.Fatal(err)
		}
	}
	offer(0)
	if who := <-got; who != "near" {
		t.Fatalf("the first clip went to the %s taker", who)
	}
	offer(1) // waits: the near one is busy, and one waiting is allowed
	offer(2)
	if who := <-got; who != "far" {
		t.Fatalf("a clip beyond the backlog went to the %s taker", who)
	}
	// One still waits, and it is the near taker's.
	waiting, inWork, err := edge.Backlog(t.Context(), bus.StreamOffers, "edge-pi")
	if err != nil || waiting+inWork < 1 {
		t.Errorf("backlog %d waiting, %d in work, %v", waiting, inWork, err)
	}
	close(release)
	select {
	case who := <-got:
		if who != "near" {
			t.Errorf("the clip that waited went to the %s taker", who)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the clip that waited went to nobody")
	}
	cancel()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if nearGot.Load() != 2 || farGot.Load() != 1 {
		t.Errorf("near got %d, far got %d; want 2 and 1", nearGot.Load(), farGot.Load())
	}
}
