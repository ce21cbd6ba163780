package swarmrunner

import (
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// bound is the shortest time in which so many leechers can have the file,
// whatever protocol they speak: the fluid bound of Kumar and Ross
// (Peer-assisted file distribution: the minimum distribution time, 2006),
//
//	max( F/u_s, F/d_min, N·F/(u_s + Σu) )
//
// for a file of F bytes, u_s the uploads of all seeders, d_min the slowest
// leecher's download and Σu the uploads of all leechers. A rate without limit
// makes its terms vanish; without any there is no bound (0).
//
// The first and the last term are about leechers that come together. One that
// comes later may find the others with the whole file, so that of a stream of
// leechers only what holds for each is left.
func bound(s *schemas.Swarm, leechers, seeders int) time.Duration {
	size := float64(s.Size)
	rate := func(r schemas.BitRate) float64 { return float64(r) / 8 }
	seeds, uploads := float64(seeders)*rate(s.SeedUpload), float64(leechers)*rate(s.Upload)
	// Those that are made to fail need not have the file, though they may give
	// of it until then.
	complete := float64(leechers - doomed(s))
	var seconds float64
	if s.Download > 0 {
		seconds = size / rate(s.Download)
	}
	together := s.Arrival == "together"
	if s.SeedUpload > 0 && together {
		seconds = max(seconds, size/seeds)
	}
	if s.SeedUpload > 0 && (s.Upload > 0 || leechers == 1) {
		if !together {
			complete, uploads = 1, uploads-rate(s.Upload)
		}
		seconds = max(seconds, complete*size/(seeds+uploads))
	}
	return time.Duration(seconds * float64(time.Second))
}

// doomed is how many leechers faults keep from having the file.
func doomed(s *schemas.Swarm) int {
	dead := map[int]bool{}
	for _, f := range s.Faults {
		if f.Do == schemas.FaultKillLeecher || f.Do == schemas.FaultTruncateTorrent {
			dead[f.Peer] = true
		}
	}
	return len(dead)
}
