// Command transferlab is the whole lab in one binary: the command line, every
// service, and the embedded lab that `up`, `run` and `demo` start.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/netlab"
	"github.com/transferlab/transferlab/services/swarmrunner"
)

// Exit codes, on which scripts rely.
const (
	exitHeld    = 0  // done, every threshold held
	exitFailure = 1  // something went wrong
	exitUsage   = 2  // the command line or the experiment file is wrong
	exitInvalid = 98 // the run is INVALID: its figures say nothing
	exitMissed  = 99 // a threshold was missed
)

// exitError ends the program with a code; its text has been shown if it is
// empty.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

func usage(format string, args ...any) error {
	return &exitError{code: exitUsage, text: fmt.Sprintf(format, args...)}
}

func main() {
	// The lab's own child process that hosts the database engine.
	if len(os.Args) > 1 && os.Args[1] == clickhouse.HostCommand {
		os.Exit(clickhouse.RunHost(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == netlab.RelayCommand {
		os.Exit(netlab.RunRelay(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == swarmrunner.PeerCommand {
		os.Exit(swarmrunner.RunPeer())
	}
	os.Exit(execute(os.Args[1:]))
}

func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	var c cli
	parser, err := kong.New(&c,
		kong.Name("transferlab"),
		kong.Description("A lab for data in motion: how long does it take to move this data from here to there, and why?"),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Vars{"dir": defaultDir()},
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, "transferlab:", err)
		return exitFailure
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "transferlab:", err)
		fmt.Fprintln(os.Stderr, "transferlab --help shows what is allowed.")
		return exitUsage
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(&c)
	if err == nil {
		return exitHeld
	}
	code := exitFailure
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, "transferlab:", text)
	}
	return code
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
