package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/transferlab/transferlab/services/gateway/api"
)

type accountKey struct{}

// accountOf is the edge that a request is from, nil if it is the operator's.
func accountOf(ctx context.Context) *account {
	a, _ := ctx.Value(accountKey{}).(*account)
	return a
}

// ofEdges reports whether a path is part of the interface for edges.
func ofEdges(path string) bool {
	return path == "/v1/clips" || strings.HasPrefix(path, "/v1/clips/") || path == "/v1/offload"
}

// forBoth reports whether the operator may ask for it as well.
func forBoth(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/clips/") && strings.HasSuffix(r.URL.Path, "/result")
}

// edgeOperation marks operations that need an edge's account; operatorToo those
// that the operator may call as well.
const (
	edgeOperation = "edge"
	operatorToo   = "operator-too"
)

// separate keeps accounts to the operations they are for, however a path got
// past the guard.
func (g *Gateway) separate(ctx huma.Context, next func(huma.Context)) {
	edge, mark := accountOf(ctx.Context()) != nil, ctx.Operation().Metadata
	if allowed := mark[operatorToo] != nil || (mark[edgeOperation] != nil) == edge; !allowed {
		if err := huma.WriteErr(g.api, ctx, http.StatusForbidden, "this token is not for this operation"); err != nil {
			g.log.Debug("answer", "error", err)
		}
		return
	}
	next(ctx)
}

// guardEdge stands in front of everything for edges.
func (g *Gateway) guardEdge(w *stampedWriter, r *http.Request, a *account, next http.Handler) {
	if !a.rate.Allow() {
		g.metrics.refused.WithLabelValues("edge_rate").Inc()
		w.Header().Set("Retry-After", "1")
		writeProblem(w, problem(http.StatusTooManyRequests, "more than %g requests a second of edge %s", g.cfg.Clips.EdgeRate, a.name))
		return
	}
	control := http.NewResponseController(w)
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), accountKey{}, a))
	defer cancel(nil)
	ended := make(chan struct{})
	stop := context.AfterFunc(a.gone, func() {
		defer close(ended)
		cancel(context.Cause(a.gone))
		_ = control.SetReadDeadline(time.Unix(1, 0))
	})
	w.last = func() bool { return a.gone.Err() != nil }
	defer func() {
		if stop() {
			return
		}
		// The server takes the deadline for the end of the connection: no other
		// request may come over it.
		<-ended
		if !w.closing {
			panic(http.ErrAbortHandler)
		}
	}()
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		if receivesClips(r) {
			r.Body = newPacedBody(r.Body, control, g.cfg.Clips.Pause, g.cfg.Clips.MinRate)
		} else {
			r.Body = &patientBody{ReadCloser: r.Body, control: control, until: time.Now().Add(wholePatience)}
		}
	}
	next.ServeHTTP(w, r)
}

func receivesClips(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Path == "/v1/clips"
}

var errSlow = errors.New("the body comes too slowly")

// pacedBody bounds the time of a body by its size: however large it may be, a
// client cannot hold its place by sending a byte now and then.
type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
	begun   time.Time
	pause   time.Duration // between two pieces, and before a rate is asked for: links wake up
	rate    int64         // bytes a second
	n       int64
}

func newPacedBody(body io.ReadCloser, control *http.ResponseController, pause time.Duration, rate int64) *pacedBody {
	return &pacedBody{ReadCloser: body, control: control, begun: time.Now(), pause: pause, rate: rate}
}

func (b *pacedBody) Read(p []byte) (int, error) {
	deadline := time.Now().Add(b.pause)
	if whole := b.begun.Add(b.pause + time.Duration(float64(b.n)/float64(b.rate)*float64(time.Second))); whole.Before(deadline) {
		deadline = whole
	}
	_ = b.control.SetReadDeadline(deadline)
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	switch {
	case errors.Is(err, io.EOF):
		_ = b.control.SetReadDeadline(time.Time{})
	case errors.Is(err, os.ErrDeadlineExceeded):
		// The deadline stays: the server reads on before it answers.
		err = errSlow
	}
	return n, err
}

// stampedWriter says the gateway's time in every answer, when it is given.
type stampedWriter struct {
	http.ResponseWriter
	received time.Time
	last     func() bool // whether the connection ends with this answer; may be nil
	closing  bool
	once     sync.Once
}

func (s *stampedWriter) stamp() {
	s.once.Do(func() {
		s.Header().Set(api.HeaderReceived, strconv.FormatInt(s.received.UnixNano(), 10))
		s.Header().Set(api.HeaderTime, strconv.FormatInt(time.Now().UnixNano(), 10))
		if s.closing = s.last != nil && s.last(); s.closing {
			s.Header().Set("Connection", "close")
		}
	})
}

func (s *stampedWriter) WriteHeader(status int) {
	s.stamp()
	s.ResponseWriter.WriteHeader(status)
}

func (s *stampedWriter) Write(p []byte) (int, error) {
	s.stamp()
	return s.ResponseWriter.Write(p)
}

func (s *stampedWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }
