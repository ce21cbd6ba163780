package schemas

import "testing"

func TestPieceLength(t *testing.T) {
	for _, c := range []struct {
		swarm Swarm
		want  int64
	}{
		{Swarm{Size: 1}, 16 << 10},
		{Swarm{Size: 10_000}, 16 << 10},
		{Swarm{Size: 1_000_000}, 16 << 10},
		{Swarm{Size: 10_000_000}, 128 << 10},
		{Swarm{Size: 10_000_000, Upload: 1}, 32 << 10},
		{Swarm{Size: 100_000_000}, 256 << 10},
		{Swarm{Size: 4 << 30}, 1 << 20},
		{Swarm{Size: 10_000_000, PieceSize: 64 << 10}, 64 << 10},
	} {
		if got := c.swarm.PieceLength(); got != c.want {
			t.Errorf("%s, %s up: %d, want %d", c.swarm.Size, c.swarm.Upload, got, c.want)
		}
	}
}
