package measure

import (
	"context"
	"fmt"
	"math"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/transferlab/transferlab/schemas/clickhouse/reports"
	"github.com/transferlab/transferlab/services/internal/report"
)

// measureSwarm computes what was measured of swarms: a cell for each of the
// report's, in its order.
func (b *builder) measureSwarm(ctx context.Context, s *Source) error {
	r := b.report
	r.Swarm = make([]report.SwarmCell, len(r.Cells))
	for i := range r.Cells {
		r.Swarm[i] = report.SwarmCell{
			Cell: i, Values: r.Cells[i].Values, Statuses: map[string]uint64{}, Phases: []report.SwarmPhase{}, Wire: []report.SwarmWire{},
		}
	}
	for _, part := range []struct {
		query string
		row   func(driver.Rows) error
	}{
		{reports.SwarmCells, b.swarmCell},
		{reports.SwarmPhases, b.swarmPhase},
		{reports.SwarmWire, b.swarmWire},
	} {
		parameters := b.selection.parameters()
		delete(parameters, "kind")
		if err := s.query(ctx, part.query, parameters, part.row); err != nil {
			return err
		}
	}
	for i := range r.Swarm {
		r.Swarm[i].Share()
	}
	b.noteUnattributed()
	return nil
}

func (b *builder) swarmCell(row driver.Rows) error {
	var (
		c                                                     report.SwarmCell
		cell, leechers                                        uint32
		times                                                 []uint64
		least, bound, duplicate                               uint64
		measured, bounds, bounded, copies, copied, interfaces uint64
		mean, sd, throughput, throughputSD, ratio, ratioSD    float64
		spread, boundEfficiency, copyEfficiency, unattributed float64
	)
	if err := row.Scan(&cell, &c.Trials, &leechers, &c.Transfers, &c.OK, &c.Statuses, &times, &least, &mean, &sd, &throughput, &throughputSD,
		&measured, &ratio, &ratioSD, &spread, &bounds, &bound, &bounded, &boundEfficiency, &copies, &duplicate, &copied, &copyEfficiency,
		&interfaces, &unattributed); err != nil {
		return err
	}
	if int(cell) >= len(b.report.Swarm) {
		return nil
	}
	at := &b.report.Swarm[cell]
	at.Trials, at.Leechers, at.Transfers, at.OK, at.Statuses = c.Trials, leechers, c.Transfers, c.OK, c.Statuses
	if c.OK > 0 {
		at.Transfer, at.Least = quantiles(times), &least
	}
	at.Mean, at.SD = known(mean, c.OK > 0), known(sd, c.OK > 1)
	at.Throughput, at.ThroughputSD = known(throughput, c.OK > 0), known(throughputSD, c.OK > 1)
	at.Ratio, at.RatioSD = known(ratio, measured > 0), known(ratioSD, measured > 1)
	at.Spread = known(spread, measured > 0)
	if bounds > 0 {
		at.Bound = &bound
	}
	if copies > 0 {
		at.Copy = &duplicate
	}
	at.BoundEfficiency, at.CopyEfficiency = known(boundEfficiency, bounded > 0), known(copyEfficiency, copied > 0)
	at.Unattributed = known(unattributed, interfaces > 0)
	return nil
}

// known is a figure, or nil where nothing counts for it.
func known(v float64, there bool) *float64 {
	if !there || math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

func (b *builder) swarmPhase(row driver.Rows) error {
	var (
		p     report.SwarmPhase
		cell  uint32
		after []uint64
	)
	if err := row.Scan(&cell, &p.Phase, &p.Transfers, &after); err != nil {
		return err
	}
	if q := quantiles(after); q != nil && int(cell) < len(b.report.Swarm) {
		p.Quantiles = *q
		at := &b.report.Swarm[cell]
		at.Phases = append(at.Phases, p)
	}
	return nil
}

func (b *builder) swarmWire(row driver.Rows) error {
	var (
		w    report.SwarmWire
		cell uint32
	)
	if err := row.Scan(&cell, &w.Class, &w.Bytes, &w.Share, &w.Messages, &w.LeecherBytes, &w.LeecherMessages, &w.SeederBytes, &w.SeederMessages,
		&w.TrackerBytes, &w.TrackerMessages); err != nil {
		return err
	}
	if int(cell) < len(b.report.Swarm) && !math.IsNaN(w.Share) && !math.IsInf(w.Share, 0) {
		at := &b.report.Swarm[cell]
		at.Wire = append(at.Wire, w)
	}
	return nil
}

// mostUnattributed is the share of what an interface sent that may be unaccounted
// for without a word.
const mostUnattributed = .01

// noteUnattributed tells where bytes do not add up. That makes no figure wrong,
// so the run stays valid; whoever needs it sets a threshold.
func (b *builder) noteUnattributed() {
	r := b.report
	for i := range r.Swarm {
		c := &r.Swarm[i]
		if c.Unattributed != nil && *c.Unattributed > mostUnattributed {
			r.Notes = append(r.Notes, fmt.Sprintf("%s: in the worst trial %.2f %% of the bytes on the network are unattributed, more than %.0f %%",
				c.Name(), 100**c.Unattributed, 100*mostUnattributed))
		}
	}
}
