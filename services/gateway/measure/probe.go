package measure

import (
	"context"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/schemas/clickhouse/reports"
	"github.com/transferlab/transferlab/services/internal/report"
)

// measurePaths computes what was measured between sites.
func (b *builder) measurePaths(ctx context.Context, s *Source) error {
	r := b.report
	r.Paths = []report.Path{}
	parameters := b.selection.parameters()
	delete(parameters, "kind")
	err := s.query(ctx, reports.ProbePaths, parameters, func(row driver.Rows) error {
		var (
			p                          report.Path
			cell                       uint32
			rtt, forward, backward     []int64
			shortest                   int64
			forwards, backwards, lines uint64
		)
		if err := row.Scan(&cell, &p.Protocol, &p.From, &p.To, &lines, &p.Sent, &p.OK, &p.Duplicates, &p.Late, &p.Jitter,
			&rtt, &shortest, &forwards, &forward, &backwards, &backward, &p.Statuses); err != nil {
			return err
		}
		if int(cell) >= len(r.Cells) {
			return nil
		}
		p.Cell, p.Values, p.Lines = int(cell), r.Cells[cell].Values, lines
		if p.Sent > 0 {
			p.Loss, p.Duplicated = float64(p.Sent-p.OK)/float64(p.Sent), float64(p.Duplicates)/float64(p.Sent)
		}
		if p.OK > 0 {
			p.RTT, p.Min, p.Reordered = signedQuantiles(rtt), uint64(max(shortest, 0)), float64(p.Late)/float64(p.OK)
		}
		if forwards > 0 {
			p.Forward = signedQuantiles(forward)
		}
		if backwards > 0 {
			p.Backward = signedQuantiles(backward)
		}
		r.Paths = append(r.Paths, p)
		return nil
	})
	r.Ratios = report.Ratios(r.Paths)
	return err
}

func signedQuantiles(v []int64) *report.Quantiles {
	whole := make([]uint64, len(v))
	for i, x := range v {
		whole[i] = uint64(max(x, 0))
	}
	return quantiles(whole)
}

// checks are what the provisioner measured of the run's network.
func (b *builder) checks() []schemas.PlaceCheck {
	var all []schemas.PlaceCheck
	for _, st := range b.network {
		if st.Kind != schemas.KindGate {
			continue
		}
		all = append(all, schemas.PlaceCheck{
			Link: st.Attrs["link"], What: st.Attrs["what"], Unit: st.Attrs["unit"], Set: st.real("set"), Measured: st.real("measured"),
			Tolerance: st.real("tolerance"), Samples: int(st.number("samples")), OK: st.Status == schemas.StatusOK,
		})
	}
	return all
}
