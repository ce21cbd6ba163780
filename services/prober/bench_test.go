package prober

import (
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/prober/packet"
)

// What a packet costs from its result to its row in a batch.
func BenchmarkPacketEvent(b *testing.B) {
	for _, protocol := range []string{schemas.ProtocolICMP, schemas.ProtocolUDP} {
		b.Run(protocol, func(b *testing.B) {
			tr := &trial{section: section(func(s *schemas.Probe) { s.Protocols = []string{protocol} }), members: []*member{
				{name: "agent-1", site: "oregon", clients: []int{0, 1, 2, 3}},
			}}
			tr.prepare(b, b.Context())
			j := tr.members[0].job.(*job)
			block, seq := schemas.NewBlock("agent-1/x"), uint64(0)
			if _, err := j.Run(b.Context(), agent.Start{At: time.Now(), Peers: tr.peers}, func(e *schemas.Event) error {
				if block.Rows() == 2000 {
					block.Reset()
				}
				seq++
				block.Append(e, seq)
				return nil
			}, func(schemas.Progress) {}); err != nil {
				b.Fatal(err)
			}
			r := packet.Result{Status: schemas.StatusOK, TTL: 64, Stamps: 3, Intended: j.start, HasOneWay: protocol == schemas.ProtocolUDP}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r.RTT, r.Forward, r.Backward, r.Reflected = time.Duration(30_000+i), time.Duration(15_000+i), time.Duration(14_000+i), 5000
				j.packet(&j.mesh.paths[i%len(j.mesh.paths)], &r)
			}
		})
	}
}
