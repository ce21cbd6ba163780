package collector

import (
	"fmt"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// accept returns the one block of a message, or says why it cannot be stored.
// The same bytes always get the same answer: a replay depends on it. The memory
// that the block is in comes back too; it is that of into, if that was enough.
func accept(m bus.EventBatch, into []byte) (schemas.BatchInfo, []byte, error) {
	data, err := m.Content(into)
	if err != nil {
		return schemas.BatchInfo{}, nil, err
	}
	switch m.Format {
	case bus.FormatNative:
	case bus.FormatJSON:
		if data, err = encodeJSON(data); err != nil {
			return schemas.BatchInfo{}, nil, err
		}
	default:
		return schemas.BatchInfo{}, nil, fmt.Errorf("header %s: %.64q, want %s or %s", bus.HeaderFormat, m.Format, bus.FormatNative, bus.FormatJSON)
	}
	info, err := schemas.InspectBatch(data)
	return info, data, err
}
