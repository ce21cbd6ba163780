package api

import (
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// Headers of every answer to an edge: the gateway's clock, in nanoseconds of
// Unix time, when the request's head had come and when the answer's head went.
const (
	HeaderReceived = "Transferlab-Received"
	HeaderTime     = "Transferlab-Time"
)

// ClipReserve asks for a place to upload a clip to whose size is not known yet.
type ClipReserve struct {
	Type     string `json:"type" doc:"Media type of the clip."`
	MaxBytes int64  `json:"max_bytes" minimum:"1" doc:"The clip will not be larger."`
}

// ClipUpload is where the bytes of a clip go.
type ClipUpload struct {
	State     schemas.ClipState `json:"state"`
	PartBytes int64             `json:"part_bytes" doc:"Part n is the bytes from (n-1)*part_bytes on."`
	Parts     []ClipPart        `json:"parts" doc:"Of a multipart upload; none if there is nothing to send or put_url is given."`
	// PutURL takes a small clip whole; the request must carry PutHeaders.
	PutURL     string            `json:"put_url,omitempty"`
	PutHeaders map[string]string `json:"put_headers,omitempty"`
	Expires    time.Time         `json:"expires,omitzero" doc:"When the URLs do."`
}

// ClipPart is one part of a multipart upload.
type ClipPart struct {
	N    int    `json:"n"`
	URL  string `json:"url,omitempty" doc:"Where to PUT it; none if it is done."`
	Size int64  `json:"size_bytes"`
	Done bool   `json:"done" doc:"The store has it."`
	ETag string `json:"etag,omitempty"`
}

// ClipETag says which version of a part belongs to a clip.
type ClipETag struct {
	N    int    `json:"n"`
	ETag string `json:"etag"`
}

// ClipComplete says that every byte of a clip is sent.
type ClipComplete struct {
	Clip   schemas.Clip        `json:"clip"`
	Parts  []ClipETag          `json:"parts,omitempty" doc:"What the edge believes to have sent; what the store has if not given."`
	Result *schemas.Detections `json:"result,omitempty" doc:"If the edge looked at the clip itself."`
}

// ClipSeen is what an edge saw in a clip, ahead of the clip's bytes.
type ClipSeen struct {
	Clip   schemas.Clip       `json:"clip"`
	Result schemas.Detections `json:"result"`
}

// ClipConfirm asks which clips have ended.
type ClipConfirm struct {
	Clips []string      `json:"clips" minItems:"1" maxItems:"1000" doc:"Ids."`
	Wait  time.Duration `json:"wait_ns,omitempty" minimum:"0" maximum:"30000000000" doc:"How long to wait for the first."`
}

// ClipConfirmed are those that have.
type ClipConfirmed struct {
	Clips   []schemas.ClipState `json:"clips" doc:"Result and bytes are stored."`
	Unknown []string            `json:"unknown,omitempty" doc:"Nothing is known under these ids of this edge."`
}

// Edge is an account of an edge.
type Edge struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Revoked time.Time `json:"revoked,omitzero"`
	Seen    time.Time `json:"seen,omitzero" doc:"To within ten minutes."`
}

// EdgeName names an account to be made.
type EdgeName struct {
	Name string `json:"name" pattern:"^[a-z0-9][a-z0-9_-]{0,62}$" doc:"Lower-case letters, digits, hyphens and underscores, at most 63."`
}

// EdgeToken is a new account with its token, which is shown this once.
type EdgeToken struct {
	Name    string    `json:"name"`
	Token   string    `json:"token"`
	Created time.Time `json:"created"`
}
