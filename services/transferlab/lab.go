package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/collector"
	"github.com/transferlab/transferlab/services/detector"
	"github.com/transferlab/transferlab/services/edgerunner"
	"github.com/transferlab/transferlab/services/gateway"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/lockfile"
	store "github.com/transferlab/transferlab/services/internal/objectstore/embedded"
	"github.com/transferlab/transferlab/services/prober"
	"github.com/transferlab/transferlab/services/provisioner"
	"github.com/transferlab/transferlab/services/s3loader"
	"github.com/transferlab/transferlab/services/scheduler"
	"github.com/transferlab/transferlab/services/swarmrunner"
)

// ports of the embedded lab; 0 is any free one.
type ports struct {
	NATS             int
	ClickHouse       int // HTTP interface
	ClickHouseNative int
	S3               int
	HTTP             int
}

// labOptions say what an embedded lab is made of.
type labOptions struct {
	Dir   string
	Ports ports
	// External parts, used instead of embedded ones.
	ClickHouse       string // DSN
	ClickHouseReader string // DSN of a user that may only read; ClickHouse's if empty
	NATS             bus.Options
	// Advertise is the host under which the embedded bus is reached from
	// elsewhere; empty keeps it to this machine.
	Advertise string
	Agent     agent.Config
	// Reading leaves out what would go on with runs: a command that only looks
	// at results must not begin a trial that it would then interrupt.
	Reading bool
	Log     *slog.Logger
	// Say tells the user what is being done.
	Say func(format string, args ...any)
}

// lab is a running embedded lab.
type lab struct {
	options  labOptions
	nats     *embedded.Server
	engine   *clickhouse.Server
	store    *store.Server
	token    string
	edge     string // token of the account of the lab's own edges
	URL      string // of the gateway
	env      []string
	failed   chan error // the first service that ended
	stop     context.CancelFunc
	services sync.WaitGroup
	conns    []*bus.Conn
	unlock   func()
}

// errLabRunning says that another process has the state directory.
var errLabRunning = errors.New("another transferlab is using this directory")

// lockDir takes the state directory for this process.
func lockDir(path string) (unlock func(), err error) {
	unlock, err = lockfile.Take(path)
	if errors.Is(err, lockfile.ErrHeld) {
		return nil, errLabRunning
	}
	return unlock, err
}

// startLab starts every part and returns once all serve.
func startLab(ctx context.Context, o labOptions) (_ *lab, err error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	unlock, err := lockDir(filepath.Join(o.Dir, "lab.lock"))
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", o.Dir, err)
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &lab{options: o, unlock: unlock, stop: stop, failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if l.token, err = loadToken(filepath.Join(o.Dir, "token")); err != nil {
		return nil, err
	}
	if l.edge, err = loadToken(filepath.Join(o.Dir, "edge-token")); err != nil {
		return nil, err
	}
	if err := l.startParts(ctx); err != nil {
		return nil, err
	}
	if err := l.startServices(ctx, running); err != nil {
		return nil, err
	}
	return l, l.writeEnv()
}

// startParts starts what the services stand on, all at once.
func (l *lab) startParts(ctx context.Context) error {
	o := l.options
	parts, ctx := errgroup.WithContext(ctx)
	if o.NATS.URL == "" {
		parts.Go(func() (err error) {
			options := embedded.Options{Dir: filepath.Join(o.Dir, "nats"), Port: o.Ports.NATS, Advertise: o.Advertise, Log: o.Log.With("part", "nats")}
			if o.Advertise != "" {
				options.Host = "0.0.0.0"
			}
			l.nats, err = embedded.Start(ctx, options)
			var taken *embedded.PortError
			if errors.As(err, &taken) {
				return fmt.Errorf("--port-nats %d: %w (0 takes any free port)", taken.Port, taken.Unwrap())
			}
			return err
		})
	}
	if o.ClickHouse == "" {
		parts.Go(func() error { return l.startEngine(ctx) })
	}
	parts.Go(func() error {
		dir := filepath.Join(o.Dir, "s3")
		credentials, err := store.LoadOrCreateCredentials(dir)
		if err != nil {
			return err
		}
		l.store, err = store.Start(ctx, store.Options{
			Dir: dir, Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Ports.S3)),
			AccessKey: credentials.AccessKey, SecretKey: credentials.SecretKey, Log: o.Log.With("part", "s3"),
		})
		if embedded.IsPortTaken(err) {
			return fmt.Errorf("--port-s3 %d: %w (0 takes any free port)", o.Ports.S3, err)
		}
		return err
	})
	return parts.Wait()
}

func (l *lab) startEngine(ctx context.Context) error {
	o := l.options
	library, err := ensureEngine(ctx, o.Say)
	if err != nil {
		return err
	}
	dir := filepath.Join(o.Dir, "clickhouse")
	credentials, err := clickhouse.LoadOrCreateCredentials(ctx, dir)
	if err != nil {
		return err
	}
	l.engine, err = clickhouse.Start(ctx, clickhouse.Options{
		Dir: dir, Library: library, Credentials: credentials,
		TCPPort: o.Ports.ClickHouseNative, HTTPPort: o.Ports.ClickHouse, Log: o.Log.With("part", "clickhouse"),
	})
	var taken *clickhouse.PortTakenError
	if errors.As(err, &taken) {
		flag := "--port-clickhouse"
		if taken.Port == o.Ports.ClickHouseNative {
			flag = "--port-clickhouse-native"
		}
		return fmt.Errorf("%s %d: %w (0 takes any free port)", flag, taken.Port, err)
	}
	return err
}

// bus joins the bus as a role.
func (l *lab) bus(ctx context.Context, role, name string) (*bus.Conn, error) {
	options := l.options.NATS
	if l.nats != nil {
		options = l.nats.Options(role, name, l.options.Log)
	}
	options.Name = name
	conn, err := bus.Connect(ctx, options)
	if err != nil {
		return nil, err
	}
	l.conns = append(l.conns, conn)
	return conn, nil
}

func (l *lab) dsn() (writer, reader string) {
	if l.engine != nil {
		return l.engine.LabDSN(), l.engine.ReaderDSN()
	}
	reader = l.options.ClickHouseReader
	if reader == "" {
		reader = l.options.ClickHouse
	}
	return l.options.ClickHouse, reader
}

// startPatience is how long services may take until they serve; a large
// database that was killed needs a while.
const startPatience = 3 * time.Minute

// stopPatience is how long services may take to end.
const stopPatience = time.Minute

// startServices provisions the bus and starts the services until running ends.
func (l *lab) startServices(ctx, running context.Context) error {
	operator, err := l.bus(ctx, bus.RoleOperator, "lab")
	if err != nil {
		return err
	}
	if err := operator.Provision(ctx, bus.DefaultLimits()); err != nil {
		return err
	}
	if err := l.admitEdges(ctx, operator); err != nil {
		return err
	}
	metrics := node.Registry()
	writer, reader := l.dsn()

	collecting := collector.DefaultConfig()
	collecting.ClickHouse = writer
	loading := s3loader.DefaultConfig()
	loading.Config = l.options.Agent
	loading.Endpoint, loading.Region = l.store.Endpoint(), l.store.Region()
	loading.AccessKey, loading.SecretKey = l.store.Credentials().AccessKey, l.store.Credentials().SecretKey
	probing, swarming, edging := prober.DefaultConfig(), swarmrunner.DefaultConfig(), edgerunner.DefaultConfig()
	probing.Config, swarming.Config, edging.Config = l.options.Agent, l.options.Agent, l.options.Agent
	if l.options.Agent.Name != "" {
		// Each agent has a name of its own.
		probing.Name += "-probe"
		swarming.Name += "-swarm"
		edging.Name += "-edge"
	}
	edging.Account, edging.Token = labEdges, l.edge
	if edging.Store, err = hostOf(l.store.Endpoint()); err != nil {
		return err
	}
	detecting := detector.DefaultConfig()
	detecting.Endpoint, detecting.Region = l.store.Endpoint(), l.store.Region()
	// Edges that are played here would have a machine of their own.
	detecting.Nice = 10
	detecting.AccessKey, detecting.SecretKey = l.store.Credentials().AccessKey, l.store.Credentials().SecretKey
	scheduling := scheduler.DefaultConfig()
	serving := gateway.DefaultConfig()
	serving.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(l.options.Ports.HTTP))
	serving.Token = l.token
	serving.ClickHouse, serving.ClickHouseWriter = reader, writer
	serving.Clips.Store, serving.Clips.Region = l.store.Endpoint(), l.store.Region()
	serving.Clips.AccessKey, serving.Clips.SecretKey = l.store.Credentials().AccessKey, l.store.Credentials().SecretKey
	// All edges of an experiment share one account.
	serving.Clips.EdgeRate, serving.Clips.EdgeUploads, serving.Clips.EdgeOpen, serving.Clips.EdgeWaits = 2000, serving.Clips.Uploads, 10_000, serving.Clips.Waits

	var gate *gateway.Gateway
	var nodes []*node.Node
	entries := []node.Service{
		{Name: "collector", Short: "bus to database", Role: bus.RoleCollector, Run: func(ctx context.Context, n *node.Node) error {
			return collector.New(collecting, n).Run(ctx)
		}},
	}
	if !l.options.Reading {
		entries = append(entries,
			node.Service{Name: "scheduler", Short: "runs and trials", Role: bus.RoleScheduler, Run: func(ctx context.Context, n *node.Node) error {
				return scheduler.New(scheduling, n).Run(ctx)
			}},
			node.Service{Name: "s3-loader", Short: "s3 workload", Role: bus.RoleAgent, Run: func(ctx context.Context, n *node.Node) error {
				return s3loader.New(loading, n).Run(ctx)
			}},
			node.Service{Name: "prober", Short: "probe workload", Role: bus.RoleAgent, Run: func(ctx context.Context, n *node.Node) error {
				return prober.New(probing, n).Run(ctx)
			}},
			node.Service{Name: "swarm-runner", Short: "swarm workload", Role: bus.RoleAgent, Run: func(ctx context.Context, n *node.Node) error {
				return swarmrunner.New(swarming, n).Run(ctx)
			}},
			node.Service{Name: "edge-runner", Short: "offload workload", Role: bus.RoleAgent, Run: func(ctx context.Context, n *node.Node) error {
				edging.Gateway = l.URL
				return edgerunner.New(edging, n).Run(ctx)
			}},
			node.Service{Name: "provisioner", Short: "emulated networks and fleets", Role: bus.RoleProvisioner, Run: func(ctx context.Context, n *node.Node) error {
				return provisioner.New(l.provisioning(), n).Run(ctx)
			}})
	}
	if why := detector.Available(detecting); why != nil {
		l.options.Log.Debug("no detector in this lab", "reason", why)
	} else if !l.options.Reading {
		entries = append(entries, node.Service{Name: "detector", Short: "what is in clips", Role: bus.RoleDetector, Run: func(ctx context.Context, n *node.Node) error {
			return detector.New(detecting, n).Run(ctx)
		}})
	}
	entries = append(entries, node.Service{Name: "gateway", Short: "HTTP API", Role: bus.RoleGateway, Run: func(ctx context.Context, _ *node.Node) error {
		return gate.Run(ctx)
	}})
	for _, s := range entries {
		conn, err := l.bus(ctx, s.Role, s.Name)
		if err != nil {
			return err
		}
		n, err := node.New(s, version(), conn, metrics, l.options.Log)
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
	}
	gate = gateway.New(serving, nodes[len(nodes)-1])
	gate.Observe(node.Handler(metrics, nodes...))
	patient, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	start := func(i int) {
		l.services.Go(func() {
			if err := nodes[i].Run(running, entries[i]); err != nil && running.Err() == nil {
				select {
				case l.failed <- err:
				default:
				}
			}
		})
	}
	// The gateway first: others have to know where it is.
	last := len(nodes) - 1
	start(last)
	if err := l.await(patient, nodes[last]); err != nil {
		return err
	}
	l.URL = "http://" + gate.Addr().String()
	for i := range nodes[:last] {
		start(i)
	}
	for _, n := range nodes[:last] {
		if err := l.await(patient, n); err != nil {
			return err
		}
	}
	return nil
}

// await returns when a service serves, or any has failed.
func (l *lab) await(ctx context.Context, n *node.Node) error {
	ready := make(chan error, 1)
	go func() { ready <- n.AwaitReady(ctx) }()
	select {
	case err := <-ready:
		if err != nil {
			return errors.Join(err, n.Health())
		}
		return nil
	case err := <-l.failed:
		if embedded.IsPortTaken(err) {
			return fmt.Errorf("--port-http %d: %w (0 takes any free port)", l.options.Ports.HTTP, err)
		}
		return err
	}
}

func hostOf(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("address of the store: %w", err)
	}
	return u.Host, nil
}

// labEdges is the account of the edges that the lab plays itself.
const labEdges = "lab"

// admitEdges gives the lab's own edges their account.
func (l *lab) admitEdges(ctx context.Context, operator *bus.Conn) error {
	accounts, err := bus.OpenBucket[schemas.EdgeAccount](ctx, operator, bus.BucketEdges)
	if err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(l.edge))
	account := schemas.EdgeAccount{Name: labEdges, Hash: hex.EncodeToString(hash[:]), Created: time.Now()}
	if _, err := accounts.Put(ctx, labEdges, account); err != nil {
		return fmt.Errorf("admit the lab's own edges: %w", err)
	}
	return nil
}

// provisioning is how the provisioner's agents reach this lab.
func (l *lab) provisioning() provisioner.Config {
	cfg := provisioner.DefaultConfig()
	cfg.State = l.options.Dir
	cfg.S3Endpoint, cfg.S3Region = l.store.Endpoint(), l.store.Region()
	cfg.S3AccessKey, cfg.S3SecretKey = l.store.Credentials().AccessKey, l.store.Credentials().SecretKey
	cfg.Gateway, cfg.EdgeToken, cfg.EdgeAccount = l.URL, l.edge, labEdges
	if l.nats == nil {
		o := l.options.NATS
		cfg.AgentBus, cfg.AgentUser, cfg.AgentSecret, cfg.AgentCA = redacted(o.URL), o.User, o.Password, o.CAFile
		cfg.FleetBus = cfg.AgentBus
		return cfg
	}
	cfg.AgentBus, cfg.AgentUser, cfg.AgentSecret, cfg.AgentCA = l.nats.URL(), bus.RoleAgent, l.nats.Password(bus.RoleAgent), l.nats.CAFile()
	cfg.FleetBus, cfg.FleetCA, cfg.Users = l.nats.PublicURL(), l.nats.CA(), l.nats
	return cfg
}

// Close ends the services, then what they stand on.
func (l *lab) Close() {
	l.stop()
	ended := make(chan struct{})
	go func() { defer close(ended); l.services.Wait() }()
	select {
	case <-ended:
	case <-time.After(stopPatience):
		l.options.Log.Error("services did not end; going on without them", "after", stopPatience)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, c := range l.conns {
		if err := c.Close(ctx); err != nil {
			l.options.Log.Warn("leave the bus", "error", err)
		}
	}
	if l.store != nil {
		if err := l.store.Close(ctx); err != nil {
			l.options.Log.Warn("stop the store", "error", err)
		}
	}
	if l.engine != nil {
		if err := l.engine.Close(ctx); err != nil {
			l.options.Log.Warn("stop the database", "error", err)
		}
	}
	if l.nats != nil {
		l.nats.Close()
	}
	if err := os.Remove(l.envPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.options.Log.Warn("remove the environment file", "error", err)
	}
	l.unlock()
}

func (l *lab) envPath() string { return filepath.Join(l.options.Dir, "env") }

// writeEnv writes the shell file that makes other tools work on the lab.
func (l *lab) writeEnv() error {
	set := func(name, value string) { l.env = append(l.env, name, value) }
	s3 := l.store.Credentials()
	set("AWS_ACCESS_KEY_ID", s3.AccessKey)
	set("AWS_SECRET_ACCESS_KEY", s3.SecretKey)
	set("AWS_ENDPOINT_URL", l.store.Endpoint())
	set("AWS_REGION", l.store.Region())
	// The AWS CLI of Debian 12 reads only this one.
	set("AWS_DEFAULT_REGION", l.store.Region())
	writer, _ := l.dsn()
	d, err := clickhouse.ParseDSN(writer)
	if err != nil {
		return err
	}
	set("CLICKHOUSE_URL", d.HTTPURL)
	set("CLICKHOUSE_USER", d.User)
	set("CLICKHOUSE_PASSWORD", d.Password())
	set("CLICKHOUSE_DATABASE", d.Database)
	if l.engine != nil {
		host, port, err := net.SplitHostPort(l.engine.TCPAddr())
		if err != nil {
			return fmt.Errorf("address of the database: %w", err)
		}
		set("CLICKHOUSE_HOST", host)
		set("CLICKHOUSE_PORT", port)
	}
	if l.nats != nil {
		set("NATS_URL", l.nats.URL())
		set("NATS_USER", bus.RoleOperator)
		set("NATS_PASSWORD", l.nats.Password(bus.RoleOperator))
		if ca := l.nats.CAFile(); ca != "" {
			set("NATS_CA", ca)
		}
	} else {
		set("NATS_URL", redacted(l.options.NATS.URL))
		set("NATS_USER", l.options.NATS.User)
		set("NATS_PASSWORD", l.options.NATS.Password)
	}
	set("TRANSFERLAB_URL", l.URL)
	set("TRANSFERLAB_TOKEN", l.token)
	var b strings.Builder
	for i := 0; i < len(l.env); i += 2 {
		fmt.Fprintf(&b, "export %s=%s\n", l.env[i], shellQuote(l.env[i+1]))
	}
	return writePrivate(l.envPath(), []byte(b.String()))
}

func redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// writePrivate replaces a file so that no reader sees half of it.
func writePrivate(path string, data []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func loadToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(data))) >= 20 {
		return strings.TrimSpace(string(data)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read token: %w", err)
	}
	token := rand.Text() + rand.Text()
	return token, writePrivate(path, []byte(token+"\n"))
}

// died is closed when the database engine is gone for good.
func (l *lab) died() <-chan struct{} {
	if l.engine == nil {
		return nil
	}
	return l.engine.Done()
}

// readEnv reads a file that writeEnv wrote.
func readEnv(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read environment of the lab: %w", err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if found {
			env[name] = strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(value, "'"), "'"), `'\''`, "'")
		}
	}
	return env, nil
}
