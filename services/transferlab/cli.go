package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/services/gateway/client"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// cli is the command line.
type cli struct {
	Dir     string `help:"State directory of the embedded lab." env:"TRANSFERLAB_DIR" default:"${dir}" type:"path" placeholder:"DIR"`
	Server  string `help:"URL of a lab's gateway, instead of the lab in the state directory. Its token comes from TRANSFERLAB_TOKEN." env:"TRANSFERLAB_URL" placeholder:"URL"`
	JSON    bool   `help:"Print JSON where a command has something to print."`
	Verbose bool   `short:"v" help:"Log what the lab's parts do."`

	Up       upCmd       `cmd:"" help:"Run the lab: bus, database, store and every service."`
	Demo     demoCmd     `cmd:"" help:"Run a short s3 experiment and print its report."`
	Validate validateCmd `cmd:"" help:"Check an experiment file and say what it would do."`
	Run      runCmd      `cmd:"" help:"Run an experiment and print its report."`
	Runs     runsCmd     `cmd:"" help:"List runs, newest first."`
	Cancel   cancelCmd   `cmd:"" help:"End a run; resume goes on with it."`
	Resume   resumeCmd   `cmd:"" help:"Go on with a run that was cancelled or failed."`
	Report   reportCmd   `cmd:"" help:"Print the report of a run."`
	Compare  compareCmd  `cmd:"" help:"Compare two runs, metric by metric."`
	SQL      sqlCmd      `cmd:"" name:"sql" help:"Ask the database, read-only; prints exactly what it answers."`
	Export   exportCmd   `cmd:"" help:"Write the events of a run to a file."`
	Fleet    fleetCmd    `cmd:"" help:"Cloud instances with agents: up, ls, down."`
	Edge     edgeCmd     `cmd:"" help:"Accounts of edges: add, list, revoke."`
	Data     dataCmd     `cmd:"" help:"Objects in the lab's store: put, ls, rm."`
	Schedule scheduleCmd `cmd:"" help:"Experiments that run by themselves: set, ls, rm."`
	Series   seriesCmd   `cmd:"" help:"The 1-minute series: import from CloudWatch, export to DynamoDB."`
	Status   statusCmd   `cmd:"" help:"Show services, agents and the state of the stores."`
	Setup    setupCmd    `cmd:"" help:"Fetch what the embedded lab needs (once)."`
	Service  serviceCmd  `cmd:"" passthrough:"" help:"Run one service on a bus that is there: service NAME [flags]."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

func defaultDir() string {
	if base := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "transferlab")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ".transferlab"
	}
	return filepath.Join(home, ".local", "state", "transferlab")
}

func (c *cli) envPath() string { return filepath.Join(c.Dir, "env") }

func (c *cli) log() *slog.Logger {
	level := slog.LevelError
	if c.Verbose {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// session is a lab to talk to.
type session struct {
	*client.Client
	lab *lab // nil when it is somebody else's
}

// close ends a lab that was started for the command.
func (s *session) close() {
	if s.lab != nil {
		s.lab.Close()
	}
}

// connect reaches the lab that --server names, or the one that runs on the
// state directory, or starts one there for the duration of the command.
func (c *cli) connect(ctx context.Context) (*session, error) { return c.open(ctx, true) }

// act is connect for commands that start runs or go on with them.
func (c *cli) act(ctx context.Context) (*session, error) { return c.open(ctx, false) }

func (c *cli) open(ctx context.Context, reading bool) (*session, error) {
	if c.Server != "" {
		return dial(c.Server, os.Getenv("TRANSFERLAB_TOKEN"))
	}
	started, err := startLab(ctx, labOptions{Dir: c.Dir, Agent: agent.DefaultConfig(), Reading: reading, Log: c.log(), Say: say})
	if errors.Is(err, errLabRunning) {
		return c.running(ctx)
	}
	if err != nil {
		return nil, err
	}
	s, err := dial(started.URL, started.token)
	if err != nil {
		started.Close()
		return nil, err
	}
	s.lab = started
	return s, nil
}

// up reaches a lab that is there already.
func (c *cli) up(ctx context.Context) (*session, error) {
	if c.Server == "" {
		unlock, err := lockDir(filepath.Join(c.Dir, "lab.lock"))
		if errors.Is(err, errLabRunning) {
			return c.running(ctx)
		}
		if err == nil {
			unlock()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, fmt.Errorf("no lab is up in %s: transferlab up starts one", c.Dir)
	}
	return c.connect(ctx)
}

// running reaches the lab that holds the state directory; it may be just
// starting.
func (c *cli) running(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		env, err := readEnv(c.envPath())
		if err == nil {
			return dial(env["TRANSFERLAB_URL"], env["TRANSFERLAB_TOKEN"])
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("a lab holds %s but does not say where it serves: %w", c.Dir, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func dial(url, token string) (*session, error) {
	c, err := client.New(url, token)
	if err != nil {
		return nil, err
	}
	return &session{Client: c}, nil
}

// show prints a value as JSON.
func show(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type versionCmd struct{}

func (versionCmd) Run(c *cli) error {
	if c.JSON {
		return show(os.Stdout, map[string]string{"version": version()})
	}
	fmt.Println("transferlab", version())
	return nil
}

type upCmd struct {
	PortNATS             int    `name:"port-nats" help:"Port of the bus." default:"4222"`
	PortClickHouse       int    `name:"port-clickhouse" help:"Port of the database's HTTP interface." default:"8123"`
	PortClickHouseNative int    `name:"port-clickhouse-native" help:"Port of the database's native protocol." default:"0"`
	PortS3               int    `name:"port-s3" help:"Port of the store." default:"9000"`
	PortHTTP             int    `name:"port-http" help:"Port of the API." default:"8080"`
	Advertise            string `name:"advertise" help:"Host name or address under which machines elsewhere reach this one: the bus then listens on every interface, by TLS only." env:"TRANSFERLAB_ADVERTISE" placeholder:"HOST"`
	ClickHouse           string `name:"clickhouse" help:"External ClickHouse: clickhouse://… or https://… (better by environment: it holds a password)." env:"TRANSFERLAB_CLICKHOUSE" placeholder:"DSN"`
	ClickHouseReader     string `name:"clickhouse-reader" help:"The same as a user that can only read." env:"TRANSFERLAB_CLICKHOUSE_READER" placeholder:"DSN"`

	busFlags
	Agent agent.Config `embed:"" prefix:"agent-"`
}

// busFlags reach an external bus.
type busFlags struct {
	NATS     string `name:"nats" help:"External NATS: nats://host:4222 or tls://host:4222." env:"TRANSFERLAB_NATS" placeholder:"URL"`
	NATSUser string `name:"nats-user" help:"User there; the password comes from TRANSFERLAB_NATS_PASSWORD." env:"TRANSFERLAB_NATS_USER"`
	NATSCred string `name:"nats-creds" help:"Credentials file there, instead of user and password." env:"TRANSFERLAB_NATS_CREDS" type:"existingfile"`
	NATSSock string `name:"nats-socket" help:"Unix socket to dial instead of the host of --nats: a relay to it." env:"TRANSFERLAB_NATS_SOCKET" hidden:""`
	NATSCA   string `name:"nats-ca" help:"Certificate authority of the server (PEM)." env:"TRANSFERLAB_NATS_CA" type:"existingfile"`
}

func (f busFlags) options() bus.Options {
	return bus.Options{
		URL: f.NATS, User: f.NATSUser, Password: os.Getenv("TRANSFERLAB_NATS_PASSWORD"), CredsFile: f.NATSCred, CAFile: f.NATSCA, Socket: f.NATSSock,
	}
}

func (u *upCmd) Run(ctx context.Context, c *cli) error {
	if u.Agent.Site == "local" {
		u.Agent.Site = "*"
	}
	if err := u.Agent.Validate(); err != nil {
		return usage("%v", err)
	}
	begin := time.Now()
	l, err := startLab(ctx, labOptions{
		Dir: c.Dir, Agent: u.Agent, Log: c.log(), Say: say,
		Ports: ports{
			NATS: u.PortNATS, ClickHouse: u.PortClickHouse, ClickHouseNative: u.PortClickHouseNative, S3: u.PortS3, HTTP: u.PortHTTP,
		},
		ClickHouse: u.ClickHouse, ClickHouseReader: u.ClickHouseReader, NATS: u.options(), Advertise: u.Advertise,
	})
	if errors.Is(err, errLabRunning) {
		return fmt.Errorf("%w: --dir chooses another one", err)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Printf("transferlab %s is up after %.1f s\n", version(), time.Since(begin).Seconds())
	for i := 0; i < len(l.env); i += 2 {
		switch name := l.env[i]; name {
		case "TRANSFERLAB_URL", "CLICKHOUSE_URL", "NATS_URL", "AWS_ENDPOINT_URL":
			fmt.Printf("  %-18s %s\n", name, l.env[i+1])
		}
	}
	fmt.Printf("  credentials        . %s\n", l.envPath())
	fmt.Println("Ctrl-C ends it; what it has stored stays.")
	select {
	case <-ctx.Done():
		say("ending")
		return nil
	case err := <-l.failed:
		return err
	case <-l.died():
		return errors.New("the database engine ended; its log is in the state directory")
	}
}
