package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
)

// heartbeat keeps proxies from taking a quiet run for a dead connection.
const heartbeat = 10 * time.Second

// follow streams a run's progress as server-sent events (WHATWG HTML, 9.2).
func (g *Gateway) follow(ctx context.Context, in *runInput) (*huma.StreamResponse, error) {
	run, err := g.run(ctx, in.ID)
	if err != nil {
		return nil, g.explain(ctx, err)
	}
	release, err := g.take(g.streams, "event streams")
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer release()
		_, w := humago.Unwrap(hctx)
		stream := newEventStream(w)
		if err := g.stream(hctx.Context(), run, stream); err != nil && hctx.Context().Err() == nil {
			g.log.Warn("event stream ended", "run", run.ID, "error", err)
			// An end without the event `end` tells the client to come again.
			panic(http.ErrAbortHandler)
		}
	}}, nil
}

func (g *Gateway) stream(ctx context.Context, run schemas.Run, stream *eventStream) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Both sources are open before the state is read, so that no change falls
	// in between.
	progress := make(chan schemas.RunProgress, 64)
	err := bus.Listen(ctx, g.node.Bus, bus.SubjectProgress(run.ID.String()), func(p schemas.RunProgress) {
		select {
		case progress <- p:
		default: // a slow reader misses some: the next says more
		}
	})
	if err != nil {
		return err
	}
	changes := make(chan bus.Entry[schemas.Run])
	watched := make(chan error, 1)
	go func() {
		watched <- g.runs.Watch(ctx, run.ID.String(), func(e bus.Entry[schemas.Run]) error {
			select {
			case changes <- e:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	defer func() { stop(); <-watched }()
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watched:
			watched <- nil
			return err
		case e := <-changes:
			if e.Deleted {
				return fmt.Errorf("run %s was deleted", run.ID)
			}
			run = e.Value
			run.File = ""
			if err := stream.send(api.EventRun, run); err != nil {
				return err
			}
			if run.Ended() {
				return stream.send(api.EventEnd, run)
			}
		case p := <-progress:
			if err := stream.send(api.EventProgress, p); err != nil {
				return err
			}
		case <-tick.C:
			if err := stream.beat(); err != nil {
				return err
			}
		}
	}
}

type eventStream struct {
	out     *patientWriter
	control *http.ResponseController
}

func newEventStream(w http.ResponseWriter) *eventStream {
	control := http.NewResponseController(w)
	return &eventStream{control: control, out: &patientWriter{w: w, control: control, begin: func(h http.Header) {
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
	}}}
}

func (s *eventStream) send(event string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	if _, err := fmt.Fprintf(s.out, "event: %s\ndata: %s\n\n", event, data); err != nil {
		return err
	}
	return s.control.Flush()
}

func (s *eventStream) beat() error {
	if _, err := s.out.Write([]byte(":\n\n")); err != nil {
		return err
	}
	return s.control.Flush()
}
