package swarmrunner

import (
	"net/netip"
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// homeless is an address that no machine has: of the block for documentation.
func homeless() netip.Addr { return netip.MustParseAddr("192.0.2.1") }

func TestBound(t *testing.T) {
	t.Parallel()
	const mbit = schemas.BitRate(1e6)
	for name, c := range map[string]struct {
		section           schemas.Swarm
		leechers, seeders int
		want              time.Duration
	}{
		"no rates":                         {schemas.Swarm{}, 10, 1, 0},
		"the download":                     {schemas.Swarm{Download: 8 * mbit}, 10, 1, 10 * time.Second},
		"the seeder":                       {schemas.Swarm{SeedUpload: 8 * mbit}, 10, 1, 10 * time.Second},
		"one leecher has nobody else":      {schemas.Swarm{SeedUpload: 8 * mbit}, 1, 1, 10 * time.Second},
		"two seeders":                      {schemas.Swarm{SeedUpload: 8 * mbit}, 10, 2, 5 * time.Second},
		"all uploads":                      {schemas.Swarm{SeedUpload: 8 * mbit, Upload: mbit * 4 / 5}, 10, 1, 50 * time.Second},
		"uploads without the seeder's":     {schemas.Swarm{Upload: 8 * mbit}, 10, 1, 0},
		"the largest":                      {schemas.Swarm{SeedUpload: 80 * mbit, Upload: 80 * mbit, Download: 4 * mbit}, 10, 1, 20 * time.Second},
		"the killed need nothing":          {schemas.Swarm{SeedUpload: 8 * mbit, Upload: mbit * 4 / 5, Faults: []schemas.SwarmFault{{Do: schemas.FaultKillLeecher, Peer: 3}, {Do: schemas.FaultKillLeecher, Peer: 3}}}, 10, 1, 45 * time.Second},
		"later ones find the others' help": {schemas.Swarm{SeedUpload: 8 * mbit, Upload: 8 * mbit, Arrival: "staggered"}, 5, 1, 2 * time.Second},
		"or the seeder's alone":            {schemas.Swarm{SeedUpload: 8 * mbit, Arrival: "staggered"}, 5, 1, 0},
	} {
		c.section.Size = 10_000_000
		if c.section.Arrival == "" {
			c.section.Arrival = "together"
		}
		if got := bound(&c.section, c.leechers, c.seeders); got.Round(time.Microsecond) != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
