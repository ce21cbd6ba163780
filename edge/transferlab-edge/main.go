// Command transferlab-edge is the station at the edge: it records clips when
// something moves, looks at them itself or hands them to the lab, and keeps each
// until the lab has confirmed it. It is one file without dependencies; ffmpeg,
// rpicam-vid and transferlab-vision are programs that it starts.
//
// Exit codes: 0 done (run: ended by a signal, or a source that ends has ended;
// check: everything is in order), 1 something went wrong (check: something is
// not in order), 2 the command line or the configuration is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/transferlab/transferlab/edge"
)

// Exit codes, on which scripts rely.
const (
	exitDone    = 0
	exitFailure = 1
	exitUsage   = 2
)

type cli struct {
	Run     runCmd     `cmd:"" help:"Record clips and see to their results, until a signal."`
	Check   checkCmd   `cmd:"" help:"Say of everything that is needed whether it works, and what to do if not."`
	Status  statusCmd  `cmd:"" help:"Say what the running edge has in its spool and how its uplink is."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// configFlag is the configuration of every command that has one.
type configFlag struct {
	Config string `help:"Configuration file." default:"/etc/transferlab-edge/edge.yaml" env:"TRANSFERLAB_EDGE_CONFIG" type:"path" placeholder:"FILE"`
}

// usageError is a fault of what the user has written.
type usageError struct{ error }

func (c *configFlag) load() (edge.Config, error) {
	cfg, err := edge.Load(c.Config, os.Getenv)
	if err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

// console is where commands print.
type console struct{ io.Writer }

func main() { os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr)) }

func execute(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	var c cli
	parser, err := kong.New(&c,
		kong.Name("transferlab-edge"),
		kong.Description("Motion to result: clips from a camera, looked at here or in the lab, none lost."),
		kong.UsageOnError(), kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "transferlab-edge:", err)
		return exitFailure
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "transferlab-edge:", err)
		_, _ = fmt.Fprintln(stderr, "transferlab-edge --help shows what is allowed.")
		return exitUsage
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	parsed.Bind(console{stdout})
	err = parsed.Run()
	if err == nil {
		return exitDone
	}
	if !errors.Is(err, errNotInOrder) {
		_, _ = fmt.Fprintln(stderr, "transferlab-edge:", err)
	}
	if errors.As(err, new(usageError)) {
		return exitUsage
	}
	return exitFailure
}

type versionCmd struct{}

func (versionCmd) Run(out console) error {
	_, err := fmt.Fprintln(out, version())
	return err
}

// version is the module's, as the go command recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return release
	}
	return info.Main.Version
}

// release is the version under development.
const release = "0.1.0"

func newLog(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
