package swarmrunner

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
)

// contentKey is what the bytes of a trial's file follow from: the same at every
// agent, others in every trial, so that nothing that is kept of one trial can
// serve the next.
func contentKey(seed uint64, trial uint32) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "transferlab 1 %d swarm trial %d content", seed, trial))
}

// contentStep is how much of the content is made between looks at ctx.
const contentStep = 16 << 20

// makeContent fills b.
func makeContent(ctx context.Context, key [32]byte, b []byte) error {
	random := rand.NewChaCha8(key)
	for len(b) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(len(b), contentStep)
		// It never fails.
		_, _ = random.Read(b[:n])
		b = b[n:]
	}
	return nil
}

// digest is the SHA-256 of b, or why ctx ended before it was known.
func digest(ctx context.Context, b []byte) (sum [32]byte, err error) {
	h := sha256.New()
	for len(b) > 0 {
		if ctx.Err() != nil {
			return sum, context.Cause(ctx)
		}
		n := min(len(b), contentStep)
		h.Write(b[:n])
		b = b[n:]
	}
	h.Sum(sum[:0])
	return sum, nil
}

func digestText(text string) [32]byte { return sha256.Sum256([]byte(text)) }
