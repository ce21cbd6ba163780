package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/services/internal/report"
)

// How long a client may take between two pieces of a body or of an answer, and
// for a whole body.
const (
	bodyPatience  = 30 * time.Second
	wholePatience = 2 * time.Minute
)

// guard stands in front of everything: rate, token, slow bodies.
func (g *Gateway) guard(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(g.cfg.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		edges := ofEdges(r.URL.Path)
		stamped := &stampedWriter{ResponseWriter: w, received: time.Now()}
		if edges {
			w = stamped
		}
		if open := r.URL.Path == "/healthz" || r.URL.Path == "/openapi.json"; !open {
			token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			got := sha256.Sum256([]byte(token))
			// Hashes first, so that not even the length can be timed.
			operator := found && subtle.ConstantTimeCompare(got[:], want[:]) == 1
			var edge *account
			if edges && found && !operator {
				edge = g.edges.find(token)
			}
			if edge == nil && (!operator || edges && !forBoth(r)) {
				g.refuseToken(w, r, found, edges)
				return
			}
			if edge != nil {
				g.guardEdge(stamped, r, edge, next)
				return
			}
		}
		if !g.rate.Allow() {
			g.metrics.refused.WithLabelValues("rate").Inc()
			w.Header().Set("Retry-After", "1")
			writeProblem(w, problem(http.StatusTooManyRequests, "more than %g requests a second", g.cfg.Rate))
			return
		}
		if r.Body != nil && r.Body != http.NoBody {
			// A copy: the server finds out by the body's type whether all of it
			// was read, and would take the rest for the next request.
			patient := *r
			patient.Body = &patientBody{ReadCloser: r.Body, control: http.NewResponseController(w), until: time.Now().Add(wholePatience)}
			r = &patient
		}
		next.ServeHTTP(w, r)
	})
}

// refuseToken answers who does not show the token that a path is for.
func (g *Gateway) refuseToken(w http.ResponseWriter, r *http.Request, found, edges bool) {
	if !g.wrong.Allow() {
		g.metrics.refused.WithLabelValues("token_rate").Inc()
		w.Header().Set("Retry-After", "1")
		writeProblem(w, problem(http.StatusTooManyRequests, "too many requests without the right token"))
		return
	}
	g.metrics.refused.WithLabelValues("token").Inc()
	g.log.Warn("request without the right token", "from", r.RemoteAddr, "method", short(r.Method), "path", short(r.URL.Path))
	w.Header().Set("WWW-Authenticate", `Bearer realm="transferlab"`)
	text := "the token is wrong"
	switch {
	case edges && found:
		text = "the token is none of an edge, or was revoked"
	case edges:
		text = "no token: send the header `Authorization: Bearer …` with the token of an edge (`transferlab edge add NAME` makes one)"
	case !found:
		text = "no token: send the header `Authorization: Bearer …` with the value of TRANSFERLAB_TOKEN (in the file env of the lab's directory)"
	}
	writeProblem(w, problem(http.StatusUnauthorized, "%s", text))
}

// patientBody bounds the time of a body. The deadline must be gone when the
// body is: the server reads on to notice that the client leaves, and would take
// a deadline that passes for that. One that has passed stays: the server reads
// on before it answers, and would wait for who does not send.
type patientBody struct {
	io.ReadCloser
	control *http.ResponseController
	until   time.Time
}

func (b *patientBody) Read(p []byte) (int, error) {
	deadline := time.Now().Add(bodyPatience)
	if b.until.Before(deadline) {
		deadline = b.until
	}
	_ = b.control.SetReadDeadline(deadline)
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// patientWriter bounds the time a client may take to read a piece of an
// answer, and begins the answer with the first piece.
type patientWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begin   func(http.Header) // before the first byte
	begun   bool
}

func (p *patientWriter) Write(data []byte) (int, error) {
	if !p.begun {
		p.begun = true
		p.begin(p.w.Header())
		p.w.WriteHeader(http.StatusOK)
	}
	if err := p.control.SetWriteDeadline(time.Now().Add(bodyPatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return p.w.Write(data)
}

// take takes a place of a bounded number, or refuses.
func (g *Gateway) take(places chan struct{}, what string) (release func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		g.metrics.refused.WithLabelValues("busy").Inc()
		return nil, huma.ErrorWithHeaders(
			problem(http.StatusTooManyRequests, "%d %s are in work, which is the most at a time: try again later", cap(places), what),
			http.Header{"Retry-After": {"2"}})
	}
}

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
	refused  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "transferlab_http_requests_total", Help: "Requests answered, by operation and status.",
		}, []string{"operation", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "transferlab_http_request_seconds", Help: "Time to answer, streams included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"operation"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "transferlab_http_requests_in_flight", Help: "Requests in work."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "transferlab_http_refused_total", Help: "Requests refused before they were looked at, by reason.",
		}, []string{"reason"}),
	}
	r.MustRegister(m.requests, m.seconds, m.inFlight, m.refused)
	return m
}

// count is the middleware that measures every operation.
func (g *Gateway) count(ctx huma.Context, next func(huma.Context)) {
	began := time.Now()
	operation := ctx.Operation().OperationID
	g.metrics.inFlight.Inc()
	defer func() {
		g.metrics.inFlight.Dec()
		status := ctx.Status()
		if status == 0 {
			status = http.StatusOK
		}
		g.metrics.requests.WithLabelValues(operation, strconv.Itoa(status)).Inc()
		g.metrics.seconds.WithLabelValues(operation).Observe(time.Since(began).Seconds())
	}()
	next(ctx)
}

func thisMachine() report.Machine {
	return report.Machine{
		OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(),
		CPUModel: cpuModel("/proc/cpuinfo"), Kernel: firstLine("/proc/sys/kernel/osrelease"),
	}
}
