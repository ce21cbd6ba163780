package plan

import (
	"slices"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

func section(change func(*schemas.Probe)) *schemas.Probe {
	p := &schemas.Probe{Count: 3}
	if change != nil {
		change(p)
	}
	p.SetDefaults()
	return p
}

func TestPathsOfAMesh(t *testing.T) {
	members := []string{"oregon", "oregon", "dublin"}
	for name, c := range map[string]struct {
		section *schemas.Probe
		want    int
	}{
		"full":           {section(nil), 3 * 2},
		"with itself":    {section(func(p *schemas.Probe) { p.Self = true }), 3 * 3},
		"two protocols":  {section(func(p *schemas.Probe) { p.Protocols = []string{"icmp", "udp"} }), 3 * 2 * 2},
		"pairs":          {section(func(p *schemas.Probe) { p.Mesh, p.Pairs = "pairs", [][]string{{"oregon", "dublin"}} }), 2},
		"pairs inside":   {section(func(p *schemas.Probe) { p.Mesh, p.Pairs = "pairs", [][]string{{"oregon", "oregon"}} }), 2},
		"targets":        {section(func(p *schemas.Probe) { p.Mesh, p.Targets = "none", []string{"icmp://a", "tcp://b:1"} }), 3 * 2},
		"mesh and more":  {section(func(p *schemas.Probe) { p.Targets = []string{"icmp://a"} }), 3*2 + 3},
		"nobody to meet": {section(func(p *schemas.Probe) { p.Mesh, p.Pairs = "pairs", [][]string{{"oregon", "mars"}} }), 0},
	} {
		t.Run(name, func(t *testing.T) {
			paths := Paths(7, 2, members, c.section)
			if len(paths) != c.want {
				t.Fatalf("%d paths, want %d: %+v", len(paths), c.want, paths)
			}
			seen := map[[4]any]bool{}
			for i, p := range paths {
				if p.Index != i || p.From < 0 || p.From >= len(members) || (p.To < 0) == (p.Target < 0) {
					t.Errorf("path %d: %+v", i, p)
				}
				if p.Phase < 0 || p.Phase >= time.Duration(c.section.Interval) {
					t.Errorf("path %d is due %s after the start, the interval is %s", i, p.Phase, c.section.Interval)
				}
				key := [4]any{p.From, p.To, p.Target, p.Protocol}
				if seen[key] {
					t.Errorf("path %+v is there twice", p)
				}
				seen[key] = true
			}
			if !slices.Equal(paths, Paths(7, 2, members, c.section)) {
				t.Error("planned again, other paths")
			}
			if c.want > 0 && slices.Equal(paths, Paths(8, 2, members, c.section)) {
				t.Error("another seed, the same phases")
			}
		})
	}
}

// A client's own probes never burst: its paths are spread evenly.
func TestPhasesAreSpread(t *testing.T) {
	members := make([]string, 50)
	p := section(nil)
	paths := Paths(1, 0, members, p)
	var mine []time.Duration
	for _, x := range paths {
		if x.From == 0 {
			mine = append(mine, x.Phase)
		}
	}
	slices.Sort(mine)
	want := time.Duration(p.Interval) / time.Duration(len(mine))
	for i := 1; i < len(mine); i++ {
		if gap := mine[i] - mine[i-1]; (gap - want).Abs() > time.Microsecond {
			t.Errorf("gap %d is %s, want %s", i, gap, want)
		}
	}
}
