package clickhouse

import (
	"flag"
	"fmt"
	"io"
	"strconv"
	"time"
)

// HostCommand is the hidden first argument with which the binary re-executes
// itself to host the engine: a main (or a TestMain) that finds it in
// os.Args[1] must do nothing but os.Exit(RunHost(os.Args[2:])).
const HostCommand = "clickhouse-host"

// Exit codes of the host process. exitLocked is ClickHouse's own code for a
// directory that another server holds.
const (
	exitFailed = 1
	exitUsage  = 2
	exitLocked = 76
)

const (
	// hostLockGrace is how long a host waits for its predecessor on the same
	// directory to be gone: after kill -9 of a lab its engine needs a moment
	// to be torn down by the kernel.
	hostLockGrace = 3 * time.Second
	// hostStopGrace bounds the engine's clean shutdown, which waits for
	// connections that clients merely keep open. What was acknowledged is on
	// disk, so there is nothing to lose by ending without them.
	hostStopGrace = 2 * time.Second
	// Descriptors the host works with: the one on which it reports its ports
	// (from the parent), and, because the engine wants a terminal on standard
	// input, the parent's end of life and the terminal's other side.
	hostReportFD   = 3
	hostLifeFD     = 4
	hostTerminalFD = 5
)

// unsandboxedNotice starts the host's line that says why it is not sandboxed.
const unsandboxedNotice = "the ClickHouse engine runs without a sandbox, so that its SQL users can read the files of this system user"

// hostArgs is what a host is told on its command line. Everything secret is in
// the files under dir instead, because anyone can read a command line.
type hostArgs struct {
	library  string
	dir      string
	host     string
	tcpPort  int
	httpPort int
}

func (a hostArgs) list() []string {
	return []string{
		HostCommand,
		"--library=" + a.library,
		"--dir=" + a.dir,
		"--host=" + a.host,
		"--tcp-port=" + strconv.Itoa(a.tcpPort),
		"--http-port=" + strconv.Itoa(a.httpPort),
	}
}

func parseHostArgs(args []string, stderr io.Writer) (hostArgs, error) {
	var a hostArgs
	set := flag.NewFlagSet(HostCommand, flag.ContinueOnError)
	set.SetOutput(stderr)
	set.StringVar(&a.library, "library", "", "path of libchdb.so")
	set.StringVar(&a.dir, "dir", "", "directory with the configuration and the data")
	set.StringVar(&a.host, "host", "127.0.0.1", "address to listen on")
	set.IntVar(&a.tcpPort, "tcp-port", 0, "native port, 0 for any")
	set.IntVar(&a.httpPort, "http-port", 0, "HTTP port, 0 for any")
	if err := set.Parse(args); err != nil {
		return a, err
	}
	if a.library == "" || a.dir == "" || set.NArg() > 0 {
		return a, fmt.Errorf("%s is started by transferlab itself, not by hand", HostCommand)
	}
	return a, nil
}
