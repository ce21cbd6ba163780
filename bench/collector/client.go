package main

import (
	"fmt"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/transferlab/transferlab/schemas"
)

// clientBlock encodes events as a columnar client does that knows nothing of
// this table: row after row in the order in which they come, all producers
// mixed. names and numbers are the producers and numbers of the events.
func clientBlock(events []*schemas.Event, names []string, numbers []uint64) ([]byte, error) {
	word := func() *proto.ColLowCardinality[string] { return proto.NewLowCardinality[string](new(proto.ColStr)) }
	var (
		ts                                   = new(proto.ColDateTime64).WithPrecision(proto.PrecisionNano).WithLocation(time.UTC)
		run                                  proto.ColUUID
		trial                                proto.ColUInt32
		attempt                              proto.ColUInt16
		workload, service, site, agent, kind = word(), word(), word(), word(), word()
		wait, first, duration, size, seq     proto.ColUInt64
		status, producer                     = word(), word()
		text                                 proto.ColStr
		attrs                                = proto.NewMap[string, string](word(), new(proto.ColStr))
		entries                              []proto.KV[string, string]
	)
	for i, e := range events {
		ts.Append(e.Intended)
		run.Append(e.Run)
		trial.Append(e.Trial)
		attempt.Append(e.Attempt)
		workload.Append(e.Workload)
		service.Append(e.Service)
		site.Append(e.Site)
		agent.Append(e.Agent)
		kind.Append(e.Kind)
		wait.Append(uint64(e.Wait))
		first.Append(uint64(e.FirstByte))
		duration.Append(uint64(e.Duration))
		size.Append(e.Bytes)
		status.Append(e.Status)
		text.Append(e.Error)
		entries = entries[:0]
		for _, a := range e.Attrs {
			entries = append(entries, proto.KV[string, string]{Key: a.Key, Value: a.Value})
		}
		attrs.AppendKV(entries)
		producer.Append(names[i])
		seq.Append(numbers[i])
	}
	data := []proto.ColInput{
		ts, &run, &trial, &attempt, workload, service, site, agent, kind, &wait, &first, &duration, &size, status, &text, attrs, producer, &seq,
	}
	input := make([]proto.InputColumn, len(data))
	for i, c := range schemas.EventColumns() {
		input[i] = proto.InputColumn{Name: c.Name, Data: data[i]}
	}
	for _, c := range input {
		if p, ok := c.Data.(proto.Preparable); ok {
			if err := p.Prepare(); err != nil {
				return nil, fmt.Errorf("column %s: %w", c.Name, err)
			}
		}
	}
	var buf proto.Buffer
	if err := (proto.Block{Columns: len(input), Rows: len(events)}).EncodeRawBlock(&buf, 0, input); err != nil {
		return nil, err
	}
	return buf.Buf, nil
}
