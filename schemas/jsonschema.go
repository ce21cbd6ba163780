package schemas

import (
	"encoding/json"
	"fmt"

	"github.com/invopop/jsonschema"
)

// ExperimentSchema is the JSON Schema of the experiment file, for editors. It
// is published as schemas/experiment.schema.json.
func ExperimentSchema() ([]byte, error) {
	r := jsonschema.Reflector{
		FieldNameTag: "yaml", ExpandedStruct: true, RequiredFromJSONSchemaTags: true, Anonymous: true,
	}
	s := r.Reflect(&Experiment{})
	s.ID = "https://github.com/transferlab/transferlab/schemas/experiment.schema.json"
	s.Title = "transferlab experiment"
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	return append(data, '\n'), nil
}
