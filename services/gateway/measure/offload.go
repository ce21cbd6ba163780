package measure

import (
	"context"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/transferlab/transferlab/schemas/clickhouse/reports"
	"github.com/transferlab/transferlab/services/internal/report"
)

// measureOffload computes what was measured of clips: a cell for each of the
// report's, in its order.
func (b *builder) measureOffload(ctx context.Context, s *Source) error {
	r := b.report
	r.Offload = make([]report.OffloadCell, len(r.Cells))
	for i := range r.Cells {
		r.Offload[i] = report.OffloadCell{Cell: i, Values: r.Cells[i].Values, Statuses: map[string]uint64{}, Stages: []report.OffloadStage{}}
	}
	parameters := b.selection.parameters()
	delete(parameters, "kind")
	if err := s.query(ctx, reports.OffloadCells, parameters, b.offloadCell); err != nil {
		return err
	}
	return s.query(ctx, reports.OffloadStages, parameters, b.offloadStage)
}

func (b *builder) offloadCell(row driver.Rows) error {
	var (
		c                                           report.OffloadCell
		cell                                        uint32
		ends, overheads, detects                    []uint64
		mean, local, unaccounted, precision, recall float64
		labelled, pictures, differing, predictions  uint64
		misjudged                                   float64
	)
	if err := row.Scan(&cell, &c.Clips, &c.OK, &c.Statuses, &ends, &mean, &overheads, &detects, &local, &unaccounted, &precision, &recall,
		&labelled, &pictures, &differing, &predictions, &misjudged); err != nil {
		return err
	}
	if int(cell) >= len(b.report.Offload) {
		return nil
	}
	at := &b.report.Offload[cell]
	at.Clips, at.OK, at.Statuses = c.Clips, c.OK, c.Statuses
	if c.OK > 0 {
		at.EndToEnd, at.Overhead, at.Detect = report.SpanOf(ends), report.SpanOf(overheads), report.SpanOf(detects)
	}
	at.Mean = known(mean, c.OK > 0)
	at.LocalShare = known(local, c.OK > 0)
	at.Unaccounted = known(unaccounted, c.OK > 0)
	at.Precision, at.Recall = known(precision, labelled > 0), known(recall, labelled > 0)
	at.Differing = known(float64(differing)/float64(max(pictures, 1)), c.OK > 0)
	at.Misjudged = known(misjudged, predictions > 0)
	return nil
}

func (b *builder) offloadStage(row driver.Rows) error {
	var (
		stage report.OffloadStage
		cell  uint32
		added []uint64
	)
	if err := row.Scan(&cell, &stage.Stage, &stage.Clips, &stage.Mean, &added); err != nil {
		return err
	}
	if int(cell) < len(b.report.Offload) && len(added) == 3 {
		stage.P50, stage.P95, stage.Max = added[0], added[1], added[2]
		at := &b.report.Offload[cell]
		at.Stages = append(at.Stages, stage)
	}
	return nil
}
