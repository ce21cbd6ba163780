package scale

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Names of policies.
const (
	PolicySource     = "source"
	PolicyBacklog    = "backlog-per-worker"
	PolicyPredictive = "predictive"
	PolicyFixed      = "fixed"
)

// Policies lists the names of all policies.
func Policies() []string {
	return []string{PolicySource, PolicyBacklog, PolicyPredictive, PolicyFixed}
}

// MaxCap is the most instances that a policy may be allowed.
const MaxCap = 1000

// Policy is a rule with its settings.
type Policy struct {
	Name string

	// Floor and Cap bound the instances that exist at a time, those included that
	// boot or drain; the floor counts those that will stay.
	Floor, Cap int

	// Wait is the acceptable one: 95 of 100 clips shall wait no longer for a
	// worker to begin with them.
	Wait time.Duration

	// Warmup is how long an instance takes to boot, as far as anybody knows: how far
	// the predictive policy looks ahead. One that has not come after Patience is
	// given up.
	Warmup, Patience time.Duration

	// CoolDown is how long fewer instances must have been enough before any is
	// drained; Hysteresis is by what share of the present ones they must be fewer.
	CoolDown   time.Duration
	Hysteresis float64

	// Count is what the policy `fixed` keeps.
	Count int
}

// DefaultPolicy is predictive, from none to the 19 instances of the source.
func DefaultPolicy() Policy {
	return Policy{
		Name: PolicyPredictive, Cap: 19, Wait: 10 * time.Second,
		Warmup: 45 * time.Second, Patience: 5 * time.Minute, CoolDown: time.Minute, Hysteresis: 0.15, Count: 1,
	}
}

// What the source's workers do: long polls as long as SQS allows, three empty
// ones in a row.
const sourceEmpty = 3 * 20 * time.Second

// Validate reports every fault, naming the flag.
func (p Policy) Validate() error {
	var errs []error
	bad := func(flag string, value any, want string) {
		errs = append(errs, fmt.Errorf("--%s: %v, want %s", flag, value, want))
	}
	if !slices.Contains(Policies(), p.Name) {
		bad("policy", fmt.Sprintf("%q", p.Name), strings.Join(Policies(), ", "))
	}
	if p.Cap < 1 || p.Cap > MaxCap {
		bad("cap", p.Cap, fmt.Sprintf("1 to %d instances", MaxCap))
	}
	if p.Floor < 0 || p.Floor > p.Cap {
		bad("floor", p.Floor, fmt.Sprintf("0 to the cap, %d", p.Cap))
	}
	if p.Name == PolicyFixed && (p.Count < p.Floor || p.Count > p.Cap) {
		bad("count", p.Count, fmt.Sprintf("the floor, %d, to the cap, %d", p.Floor, p.Cap))
	}
	for _, f := range []struct {
		flag      string
		value     time.Duration
		low, high time.Duration
	}{
		{"wait", p.Wait, time.Millisecond, 24 * time.Hour},
		{"warm-up", p.Warmup, 0, time.Hour},
		{"patience", p.Patience, time.Second, 24 * time.Hour},
		{"cool-down", p.CoolDown, 0, 24 * time.Hour},
	} {
		if f.value < f.low || f.value > f.high {
			bad(f.flag, f.value, fmt.Sprintf("%s to %s", f.low, f.high))
		}
	}
	if p.Patience < p.Warmup {
		bad("patience", p.Patience, fmt.Sprintf("no less than the warm-up, %s", p.Warmup))
	}
	if !(p.Hysteresis >= 0 && p.Hysteresis < 1) {
		bad("hysteresis", p.Hysteresis, "0 up to, not including, 1")
	}
	return errors.Join(errs...)
}
