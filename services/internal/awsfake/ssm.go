package awsfake

import (
	"encoding/json"
	"errors"
	"net/http"
)

// serveSSM answers GetParameter (JSON 1.1).
func (e *EC2) serveSSM(w http.ResponseWriter, r *http.Request, account Account) {
	answer, err := e.parameter(r, account)
	status := http.StatusOK
	if err != nil {
		var f *failure
		if !errors.As(err, &f) {
			f = &failure{http.StatusInternalServerError, "InternalServerError", err.Error()}
		}
		status, answer = f.status, map[string]any{"__type": f.code, "message": f.message}
	}
	data, err := json.Marshal(answer)
	if err != nil {
		status, data = http.StatusInternalServerError, []byte("{}")
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	_, _ = w.Write(data)
}

func (e *EC2) parameter(r *http.Request, account Account) (any, error) {
	body, err := account.authenticate(r, "ssm")
	if err != nil {
		return nil, err
	}
	if r.Header.Get("X-Amz-Target") != "AmazonSSM.GetParameter" {
		return nil, &failure{http.StatusBadRequest, "UnknownOperationException", r.Header.Get("X-Amz-Target")}
	}
	var q struct{ Name string }
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, &failure{http.StatusBadRequest, "SerializationException", err.Error()}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	region := e.regions[account.Region]
	if region == nil || region.params[q.Name] == "" {
		return nil, &failure{http.StatusBadRequest, "ParameterNotFound", ""}
	}
	return map[string]any{"Parameter": map[string]any{
		"Name": q.Name, "Type": "String", "Value": region.params[q.Name], "Version": 1, "DataType": "aws:ec2:image",
		"ARN": "arn:aws:ssm:" + account.Region + "::parameter" + q.Name, "LastModifiedDate": 1.7e9,
	}}, nil
}
