//go:build linux && !noengine

package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// RunHost is the whole main of the engine's process. args is what follows
// HostCommand on the command line; the result is the process's exit code. It
// returns when the engine has ended: because standard input was closed (the
// parent asked for it, or is gone), or because the engine failed.
func RunHost(args []string) int {
	a, err := parseHostArgs(args, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitUsage
	}
	unix.Umask(0o077)
	if os.Getenv(sandboxedEnv) == "" {
		if err := openTerminal(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return exitFailed
		}
		// What it returns is why the engine has to run without.
		fmt.Fprintf(os.Stderr, "%s: %v\n", unsandboxedNotice, enterSandbox(a))
	}
	ctx, cancel := context.WithTimeout(context.Background(), hostLockGrace)
	defer cancel()
	unlock, err := lockFile(ctx, filepath.Join(a.dir, lockName), nil)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			fmt.Fprintf(os.Stderr, "Code: %d. another ClickHouse engine is running on %s\n", exitLocked, a.dir)
			return exitLocked
		}
		fmt.Fprintf(os.Stderr, "lock %s: %v\n", a.dir, err)
		return exitFailed
	}
	defer unlock()
	if err := host(a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return 0
}

// openTerminal makes standard input a terminal and moves what it was, the
// parent's pipe, to hostLifeFD.
//
// On a terminal the engine believes to be interactive, and only then an error
// in one client's connection ends that connection. Otherwise it ends the
// process: a wrong password, a missing database, a port scan or a client that
// is killed on the native port would each take the server down.
func openTerminal() error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock the pseudo-terminal: %w", err)
	}
	slave, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fmt.Errorf("open the pseudo-terminal's other side: %w", errno)
	}
	// These outlive the re-execution inside the sandbox.
	for _, move := range []struct{ from, to int }{{0, hostLifeFD}, {master, hostTerminalFD}, {int(slave), 0}} {
		if err := unix.Dup3(move.from, move.to, 0); err != nil {
			return fmt.Errorf("arrange descriptors: %w", err)
		}
	}
	return nil
}

func host(a hostArgs) error {
	lib, err := purego.Dlopen(a.library, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("load the engine: %w", err)
	}
	// chdb_result * chdb_query_cmdline(int argc, char ** argv)
	// const char * chdb_result_error(chdb_result *)
	var (
		run         func(argc int32, argv unsafe.Pointer) unsafe.Pointer
		resultError func(result unsafe.Pointer) string
	)
	for name, fn := range map[string]any{"chdb_query_cmdline": &run, "chdb_result_error": &resultError} {
		sym, err := purego.Dlsym(lib, name)
		if err != nil {
			return fmt.Errorf("the library at %s is not a usable engine: %w", a.library, err)
		}
		purego.RegisterFunc(fn, sym)
	}

	// The engine executes one queries file after the other and reads each to
	// its end first. The first opens the ports and tells them; the second
	// holds the engine in a read until its pipe is closed, which ends it
	// cleanly, as a finished script would.
	openPorts, err := pipeWith(fmt.Sprintf(
		"SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; "+
			"SELECT getServerPort('tcp_port'), getServerPort('http_port'), version() INTO OUTFILE '/proc/self/fd/%d' APPEND FORMAT TSV;\n",
		hostReportFD))
	if err != nil {
		return err
	}
	hold, release, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("create a pipe: %w", err)
	}

	life := os.NewFile(hostLifeFD, "life")
	terminal := os.NewFile(hostTerminalFD, "terminal")
	var stopping atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, life)
		stopping.Store(true)
		_ = release.Close()
		_ = terminal.Close()
		time.AfterFunc(hostStopGrace, func() { os.Exit(0) })
	}()

	argv := cStrings(
		"clickhouse",
		"--path="+filepath.Join(a.dir, storeName),
		"--config-file="+filepath.Join(a.dir, configName),
		// The configuration's level is not looked at here, and tracing every
		// insert is not free.
		"--log-level=warning",
		"--interactive",
		"--disable_suggestion",
		"--history_file="+filepath.Join(a.dir, storeName, "tmp", "history"),
		"--listen_host="+a.host,
		"--tcp_port="+strconv.Itoa(a.tcpPort),
		"--http_port="+strconv.Itoa(a.httpPort),
		fmt.Sprintf("--queries-file=/proc/self/fd/%d", openPorts.Fd()),
		fmt.Sprintf("--queries-file=/proc/self/fd/%d", hold.Fd()),
	)
	result := run(int32(len(argv.pointers)-1), unsafe.Pointer(&argv.pointers[0]))
	runtime.KeepAlive(argv)
	runtime.KeepAlive(openPorts)
	runtime.KeepAlive(hold)
	runtime.KeepAlive(terminal)

	// The result says success even when the engine gave up, so what counts is
	// whether anyone asked it to stop.
	if stopping.Load() {
		return nil
	}
	if result != nil {
		if text := resultError(result); text != "" {
			return fmt.Errorf("the engine ended: %s", text)
		}
	}
	return errors.New("the engine ended by itself")
}

// pipeWith returns the reading end of a pipe that holds text and nothing more.
// text must fit a pipe's buffer.
func pipeWith(text string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("create a pipe: %w", err)
	}
	if _, err := w.WriteString(text); err != nil {
		return nil, fmt.Errorf("write to a pipe: %w", err)
	}
	return r, w.Close()
}

// cArgs is a C argv: zero-terminated strings behind a null-terminated array,
// pinned for as long as the engine may look at them.
type cArgs struct {
	pointers []*byte
	pinner   runtime.Pinner
}

func cStrings(args ...string) *cArgs {
	c := &cArgs{pointers: make([]*byte, len(args)+1)}
	for i, arg := range args {
		b := append([]byte(arg), 0)
		c.pointers[i] = &b[0]
		c.pinner.Pin(&b[0])
	}
	c.pinner.Pin(&c.pointers[0])
	return c
}
