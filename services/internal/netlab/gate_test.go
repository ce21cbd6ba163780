//go:build linux

package netlab

import (
	"math"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

func TestGate(t *testing.T) {
	links := []schemas.SiteLink{
		{A: "dublin", B: "oregon", Link: schemas.Link{RTT: ms(140), Loss: 0.001, Rate: 100e6}},
		{A: "dublin", B: "lab", Link: schemas.Link{RTT: ms(3)}},
		{A: "dublin", B: "tokyo", Link: schemas.Link{RTT: ms(40), Jitter: ms(2), Loss: 0.2, Duplicate: 0.2, Reorder: 0.1, Rate: 10e6}},
		{A: "oregon", B: "tokyo", Link: schemas.Link{RTT: ms(10), Rate: 512e3}},
		{A: "oregon", B: "sydney", Link: schemas.Link{Rate: 200e6}},
	}
	l := startTopology(t, schemas.Topology{
		Sites: map[string]schemas.Link{"oregon": {RTT: ms(0.6)}, "dublin": {}, "tokyo": {}, "sydney": {}}, Links: links, Seed: 3,
	}, NodeSpec{"oregon-1", "oregon"}, NodeSpec{"oregon-2", "oregon"}, NodeSpec{"dublin-1", "dublin"}, NodeSpec{"tokyo-1", "tokyo"}, NodeSpec{"sydney-1", "sydney"})
	begin := time.Now()
	checks, err := l.Gate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("took %s", time.Since(begin))
	// How busy the machine is decides on the last tenths of a millisecond: the
	// verdict must follow from the figures, and the figures be of the link.
	for _, c := range checks {
		t.Logf("%v %s", c.OK, c.Text)
		off := c.Measured - c.Set
		if c.OK != (math.Abs(off) <= c.Tolerance) {
			t.Errorf("the verdict does not follow: %+v", c)
		}
		slack := 0.2 * c.Set
		if c.What == WhatRTT {
			slack = float64(10 * time.Millisecond)
		}
		if off < -c.Tolerance-slack || off > c.Tolerance+slack {
			t.Errorf("not of this link: %+v", c)
		}
	}
	if want := 1 + len(links) + 2*4; len(checks) != want {
		t.Errorf("%d checks, want %d", len(checks), want)
	}
	s, err := l.Stats(t.Context())
	if err != nil || s.Overrun+s.Malformed+s.Unreachable+s.WriteErrors != 0 {
		t.Errorf("%+v %v", s, err)
	}
}
