package collector

import (
	"testing"
)

func TestEventsArrive(t *testing.T) {
	r := newRig(t)
	c := r.start(r.testConfig(), nil)
	if err := c.node.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.publishEvents("a", 1, 1000)
	r.publishEvents("b", 1, 500)
	r.publishEvents("a", 1001, 1001)
	r.expect("a", 1001)
	r.expect("b", 500)
	r.settled()
	if err := c.node.Health(); err != nil {
		t.Errorf("health: %v", err)
	}
}
