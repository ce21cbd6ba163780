package footage

import (
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Counts of labels.
type Counts struct {
	Found  int // there and seen
	Missed int // there and not seen
	False  int // seen and not there
}

// Precision is the share of what was seen that is there; 1 if nothing was seen.
func (c Counts) Precision() float64 { return share(c.Found, c.False) }

// Recall is the share of what is there that was seen; 1 if nothing is there.
func (c Counts) Recall() float64 { return share(c.Found, c.Missed) }

func share(part, rest int) float64 {
	if part+rest == 0 {
		return 1
	}
	return float64(part) / float64(part+rest)
}

// Add adds other counts.
func (c *Counts) Add(o Counts) {
	c.Found += o.Found
	c.Missed += o.Missed
	c.False += o.False
}

// Result is how well a clip was seen.
type Result struct {
	Frames Counts // label by label in every frame that was looked at
	Clip   Counts // label by label in the whole clip
}

// Score holds what was seen in a clip against what is to be seen in it. Frames
// closer than margin to a moment when something comes or goes are left out: which side
// of it they are on is a matter of rounding.
func Score(c Clip, frames []schemas.Frame, margin time.Duration) Result {
	var r Result
	all := map[string]bool{}
	for _, f := range frames {
		if close(c, f.At, margin) {
			continue
		}
		seen := map[string]bool{}
		for _, o := range f.Objects {
			seen[o.Label] = true
			all[o.Label] = true
		}
		r.Frames.Add(count(c.Truth, seen, func(s Span) bool { return f.At >= s.From && f.At < s.To }))
	}
	r.Clip = count(c.Truth, all, func(Span) bool { return true })
	return r
}

func close(c Clip, at, margin time.Duration) bool {
	for _, s := range c.Truth {
		for _, edge := range []time.Duration{s.From, s.To} {
			if edge > 0 && edge < c.Length && (at-edge).Abs() < margin {
				return true
			}
		}
	}
	return false
}

func count(truth []Span, seen map[string]bool, applies func(Span) bool) Counts {
	var c Counts
	there := map[string]bool{} // true if it must be found
	for _, s := range truth {
		if applies(s) {
			there[s.Label] = there[s.Label] || !s.Optional
		}
	}
	for label, must := range there {
		switch {
		case must && seen[label]:
			c.Found++
		case must:
			c.Missed++
		}
	}
	for label := range seen {
		if _, ok := there[label]; !ok {
			c.False++
		}
	}
	return c
}
