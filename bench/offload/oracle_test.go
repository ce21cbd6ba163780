package main

import (
	"slices"
	"testing"
	"time"
)

const s = time.Second

func TestOracle(t *testing.T) {
	c := costs{arrivals: []time.Duration{0, 0, 0}, local: 4 * s, upload: s, cloud: 2 * s}
	if got, want := c.finish(0), []time.Duration{4 * s, 8 * s, 12 * s}; !slices.Equal(got, want) {
		t.Errorf("all at the edge: %v, want %v", got, want)
	}
	if got, want := c.finish(0b111), []time.Duration{3 * s, 5 * s, 7 * s}; !slices.Equal(got, want) {
		t.Errorf("all in the lab: %v, want %v", got, want)
	}
	set, took := c.best()
	if mean(took) != 4*s || set == 0 || set == 0b111 {
		t.Errorf("best: %03b with %v, want one at the edge and two in the lab, 4 s on average", set, took)
	}
	c.backlog = 100 * s
	if set, _ := c.best(); set != 0 {
		t.Errorf("with a lab that is busy: %03b, want all at the edge", set)
	}
	c = costs{arrivals: []time.Duration{0, 10 * s}, local: 4 * s, upload: s, cloud: s, store: s, tell: s}
	if got, want := c.finish(0b10), []time.Duration{5 * s, 3 * s}; !slices.Equal(got, want) {
		t.Errorf("far apart: %v, want %v", got, want)
	}
	if p := p95([]time.Duration{5 * s, s, 3 * s}); p != 5*s {
		t.Errorf("p95 of three: %s", p)
	}
}
