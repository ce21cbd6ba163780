package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/report"
)

// Gateway serves the HTTP API.
type Gateway struct {
	cfg     Config
	node    *node.Node
	log     *slog.Logger
	machine report.Machine
	metrics *metrics
	rate    *rate.Limiter
	wrong   *rate.Limiter // answers to wrong tokens
	heavy   chan struct{}
	streams chan struct{}

	observe http.Handler // /healthz, /metrics
	address atomic.Pointer[net.Addr]

	api       huma.API
	dsn       clickhouse.DSN
	database  atomic.Pointer[driver.Conn]
	lastError atomic.Pointer[error] // of the database
	runs      *bus.Bucket[schemas.Run]
	tasks     *bus.Bucket[schemas.TaskState]
	agents    *bus.Bucket[schemas.Agent]
	schedules *bus.Bucket[schemas.Recurring]
	index     *index
	edges     *edges
	clips     *clips
}

// New returns a gateway; Run starts it.
func New(cfg Config, n *node.Node) *Gateway {
	return &Gateway{
		cfg: cfg, node: n, log: n.Log, machine: thisMachine(), metrics: newMetrics(n.Metrics),
		rate: rate.NewLimiter(rate.Limit(cfg.Rate), int(2*cfg.Rate)+1),
		// Guessing a token of 26 letters at this speed takes longer than there is.
		wrong: rate.NewLimiter(5, 20),
		heavy: make(chan struct{}, max(cfg.Heavy, 1)), streams: make(chan struct{}, max(cfg.Streams, 1)),
		index: newIndex(), edges: newEdges(cfg.Clips, n.Log), clips: newClips(cfg.Clips, n),
	}
}

// Observe gives the handler of /healthz and /metrics, such as that of
// [node.Handler] for all nodes of the process. It is called before Run; without
// it the gateway answers for itself only.
func (g *Gateway) Observe(h http.Handler) { g.observe = h }

// Addr is the address the gateway serves on, nil until it does.
func (g *Gateway) Addr() net.Addr {
	if a := g.address.Load(); a != nil {
		return *a
	}
	return nil
}

// firstPatience is how long a gateway that starts waits for ClickHouse before it
// serves without.
const firstPatience = 3 * time.Second

// Run serves until ctx ends.
func (g *Gateway) Run(ctx context.Context) error {
	if err := g.cfg.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	var err error
	if g.dsn, err = clickhouse.ParseDSN(g.cfg.ClickHouse); err != nil {
		return err
	}
	if err := g.openBuckets(ctx); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	// In this order: everything ends, then the database is closed.
	defer g.closeDatabase()
	defer parts.Wait()
	defer stop(nil)

	// A lab without its database still shows its runs and says what is wrong.
	first, cancel := context.WithTimeout(ctx, firstPatience)
	err = g.openDatabase(first)
	cancel()
	if err != nil {
		if clickhouse.IsPermanent(err) {
			return err
		}
		g.log.Warn("ClickHouse does not answer; will try again", "error", err)
	}
	parts.Go(func() { g.watchDatabase(ctx) })
	g.node.Check("clickhouse", g.databaseHealth)
	if err := g.index.load(ctx, g.runs); err != nil {
		return err
	}
	parts.Go(func() { g.index.follow(ctx, g.runs, g.log) })

	if err := g.edges.open(ctx, g.node.Bus); err != nil {
		return err
	}
	parts.Go(func() { g.edges.run(ctx) })
	if err := g.clips.open(ctx); err != nil {
		return err
	}
	parts.Go(func() { g.clips.run(ctx) })

	address, served, err := node.Serve(ctx, g.cfg.Listen, g.Handler(), g.log)
	if err != nil {
		return err
	}
	g.address.Store(&address)
	g.log.Info("serving", "url", "http://"+address.String())
	g.node.Ready()
	<-served
	return context.Cause(ctx)
}

func (g *Gateway) openBuckets(ctx context.Context) (err error) {
	c := g.node.Bus
	if err := c.AwaitProvisioned(ctx, "KV_"+bus.BucketSchedules); err != nil {
		return err
	}
	if g.runs, err = bus.OpenBucket[schemas.Run](ctx, c, bus.BucketRuns); err != nil {
		return err
	}
	if g.tasks, err = bus.OpenBucket[schemas.TaskState](ctx, c, bus.BucketTrials); err != nil {
		return err
	}
	if g.agents, err = bus.OpenBucket[schemas.Agent](ctx, c, bus.BucketAgents); err != nil {
		return err
	}
	g.schedules, err = bus.OpenBucket[schemas.Recurring](ctx, c, bus.BucketSchedules)
	return err
}

func (g *Gateway) openDatabase(ctx context.Context) error {
	conn, err := clickhouse.Open(ctx, g.cfg.ClickHouse)
	if err != nil {
		g.lastError.Store(&err)
		return err
	}
	g.database.Store(&conn)
	g.lastError.Store(nil)
	return nil
}

func (g *Gateway) closeDatabase() {
	if conn := g.database.Load(); conn != nil {
		if err := (*conn).Close(); err != nil {
			g.log.Debug("close ClickHouse", "error", err)
		}
	}
}

// watchDatabase opens the database if that has not worked yet, and keeps its
// health.
func (g *Gateway) watchDatabase(ctx context.Context) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		conn := g.database.Load()
		if conn == nil {
			if err := g.openDatabase(ctx); err == nil {
				g.log.Info("ClickHouse answers")
			}
			continue
		}
		ping, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := (*conn).Ping(ping)
		cancel()
		if err != nil && ctx.Err() == nil {
			g.lastError.Store(&err)
		} else {
			g.lastError.Store(nil)
		}
	}
}

func (g *Gateway) databaseHealth() error {
	if err := g.lastError.Load(); err != nil {
		return *err
	}
	return nil
}

// db is the reading connection, or a problem.
func (g *Gateway) db() (driver.Conn, error) {
	conn := g.database.Load()
	if conn == nil {
		return nil, problem(http.StatusServiceUnavailable, "ClickHouse does not answer: %v", g.databaseHealth())
	}
	return *conn, nil
}

// Handler is the whole interface: limits and token in front of the API.
func (g *Gateway) Handler() http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("transferlab", g.node.Version)
	config.Info.Description = "A lab for data in motion: experiments, runs, reports, and SQL over every timed event."
	config.DocsPath, config.SchemasPath = "", ""
	// Links to schemas in every answer would be one more field for scripts to
	// skip.
	config.CreateHooks = nil
	config.RejectUnknownQueryParameters = true
	config.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}}
	config.Security = []map[string][]string{{"token": {}}}
	g.api = humago.New(mux, config)
	g.api.UseMiddleware(g.count, g.separate)
	g.registerRuns()
	g.registerReports()
	g.registerSQL()
	g.registerLab()
	g.registerSeries()
	g.registerEdges()
	g.registerClips()

	observe := g.observe
	if observe == nil {
		observe = node.Handler(prometheus.NewRegistry(), g.node)
	}
	mux.Handle("GET /healthz", observe)
	mux.Handle("GET /metrics", observe)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, problem(http.StatusNotFound, "%s %s is not part of the API; GET /openapi.json describes what is", r.Method, r.URL.Path))
	})
	return g.guard(mux)
}

// schemaName tells the types of the report from messages of the same name.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if strings.HasSuffix(t.PkgPath(), "internal/report") && !strings.HasPrefix(name, "Report") {
		return "Report" + name
	}
	return name
}
