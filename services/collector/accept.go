package collector

import (
	"fmt"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// accept returns the one block of a message, or says why it cannot be stored.
// The same bytes always get the same answer: a replay depends on it.
func accept(m bus.EventBatch) (schemas.BatchInfo, error) {
	data, err := m.Content()
	if err != nil {
		return schemas.BatchInfo{}, err
	}
	switch m.Format {
	case bus.FormatNative:
	case bus.FormatJSON:
		if data, err = encodeJSON(data); err != nil {
			return schemas.BatchInfo{}, err
		}
	default:
		return schemas.BatchInfo{}, fmt.Errorf("header %s: %.64q, want %s or %s", bus.HeaderFormat, m.Format, bus.FormatNative, bus.FormatJSON)
	}
	return schemas.InspectBatch(data)
}
