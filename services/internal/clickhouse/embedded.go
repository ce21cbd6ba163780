package clickhouse

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/cpu"
)

// Options configure the embedded engine.
type Options struct {
	// Dir holds the configuration, the data and the engine's log. Created with
	// mode 0700.
	Dir string
	// Library is the path EnsureLibrary returned.
	Library string
	// Host is the IP address to listen on, and with it who may connect: 127.0.0.1
	// (the default) is for this machine only, 0.0.0.0 for whoever has a password.
	Host string
	// TCPPort (native protocol) and HTTPPort on Host; 0 means any free one.
	TCPPort, HTTPPort int
	// Credentials of the two users.
	Credentials Credentials
	// Executable is started with HostCommand as its first argument. Default:
	// the running binary.
	Executable string
	// Env is added to the child's environment.
	Env []string
	// MemoryLimit caps the engine's memory in bytes; 0 means half of the
	// machine's (or the container's).
	MemoryLimit int64
	// Reader bounds the reader's queries. The zero value means
	// DefaultReaderLimits.
	Reader ReaderLimits
	// StartTimeout bounds one start of the engine, StopTimeout one clean
	// shutdown before it is killed. Defaults: 60 s (recovery of a large store
	// included) and 20 s.
	StartTimeout, StopTimeout time.Duration
	// MaxRestarts is how many times within RestartWindow an engine that died
	// is started again before the Server gives up. Defaults: 5 in 1 minute;
	// negative MaxRestarts means never.
	MaxRestarts   int
	RestartWindow time.Duration
	// Log receives what happens; nil discards.
	Log *slog.Logger
}

func (o *Options) setDefaults() error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the running binary: %w", err)
		}
		o.Executable = exe
		if runtime.GOOS == "linux" {
			// Still this program after its file was replaced by a newer one.
			o.Executable = "/proc/self/exe"
		}
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.Reader == (ReaderLimits{}) {
		o.Reader = DefaultReaderLimits()
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = time.Minute
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 20 * time.Second
	}
	if o.MaxRestarts == 0 {
		o.MaxRestarts = 5
	}
	if o.RestartWindow == 0 {
		o.RestartWindow = time.Minute
	}
	if o.Dir != "" {
		abs, err := filepath.Abs(o.Dir)
		if err != nil {
			return fmt.Errorf("make the ClickHouse directory absolute: %w", err)
		}
		o.Dir = abs
	}
	return nil
}

// Validate reports every fault of the options.
func (o Options) Validate() error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("no directory for ClickHouse"))
	}
	if o.Library == "" {
		errs = append(errs, errors.New("no path of the ClickHouse engine library"))
	}
	if net.ParseIP(o.Host) == nil {
		errs = append(errs, fmt.Errorf("address %q of ClickHouse: an IP address is needed, such as 127.0.0.1 or 0.0.0.0", o.Host))
	}
	for name, port := range map[string]int{"native": o.TCPPort, "HTTP": o.HTTPPort} {
		if port < 0 || port > 65535 {
			errs = append(errs, fmt.Errorf("%s port %d of ClickHouse: allowed are 0 (any free) to 65535", name, port))
		}
	}
	if o.TCPPort != 0 && o.TCPPort == o.HTTPPort {
		errs = append(errs, fmt.Errorf("native and HTTP port of ClickHouse are both %d: they must differ", o.TCPPort))
	}
	if o.MemoryLimit != 0 && o.MemoryLimit < 256<<20 {
		errs = append(errs, fmt.Errorf("memory limit of ClickHouse is %d bytes: at least %d, or 0 for half of the machine's", o.MemoryLimit, 256<<20))
	}
	return errors.Join(append(errs, o.Credentials.Validate())...)
}

// addr is where a client on this machine finds port.
func (o Options) addr(port int) string {
	host := o.Host
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// PortTakenError says that a port the engine was told to listen on is in use.
type PortTakenError struct {
	Protocol string // "native" or "http"
	Port     int
}

func (e *PortTakenError) Error() string {
	return fmt.Sprintf("port %d (ClickHouse %s) is taken by another process", e.Port, e.Protocol)
}

// ErrDirLocked says that another engine, so probably another lab, runs on the
// same directory.
var ErrDirLocked = errors.New("another ClickHouse engine is running on this directory")

// Server is a running embedded engine.
type Server struct {
	opt      Options
	tcpPort  int
	httpPort int
	version  string

	run      context.Context // ends when Close is called
	stop     context.CancelFunc
	stopOnce sync.Once
	stopBy   context.Context // Close's; valid after run has ended
	done     chan struct{}
	err      error // valid after done is closed

	mu       sync.Mutex
	pid      int
	restarts int
}

// Start writes the configuration, starts the engine and returns when it
// answers. ctx bounds the start only; the engine runs until Close, or until it
// could not be kept running, or until this process ends.
//
// Errors: *PortTakenError, ErrDirLocked, or what the engine said.
func Start(ctx context.Context, opt Options) (*Server, error) {
	if err := opt.setDefaults(); err != nil {
		return nil, err
	}
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	if runtime.GOARCH == "amd64" && !cpu.X86.HasAVX2 {
		return nil, errors.New("the embedded ClickHouse engine needs a processor with AVX2: use an external ClickHouse by its DSN")
	}
	if err := writeConfig(opt); err != nil {
		return nil, fmt.Errorf("write the ClickHouse configuration: %w", err)
	}
	s := &Server{opt: opt, done: make(chan struct{})}
	p, err := s.launch(ctx, opt.TCPPort, opt.HTTPPort)
	if err != nil {
		return nil, fmt.Errorf("start ClickHouse on %s: %w", opt.Dir, err)
	}
	s.tcpPort, s.httpPort, s.version = p.tcpPort, p.httpPort, p.version
	create := "CREATE DATABASE IF NOT EXISTS " + quoteIdentifier(Database)
	if err := HTTPQuery(ctx, "http://"+s.HTTPAddr(), LabUser, opt.Credentials.Lab, create, map[string]string{"database": "system"}, nil, io.Discard); err != nil {
		p.kill()
		return nil, fmt.Errorf("create the database %s: %w", Database, err)
	}
	s.run, s.stop = context.WithCancel(context.Background())
	opt.Log.Info("ClickHouse is ready", "version", s.version, "native", s.TCPAddr(), "http", s.HTTPAddr(), "pid", p.pid)
	go s.supervise(p)
	return s, nil
}

// TCPAddr is host:port of the native protocol, for clients on this machine. It
// stays the same over restarts.
func (s *Server) TCPAddr() string { return s.opt.addr(s.tcpPort) }

// HTTPAddr is host:port of the HTTP interface, for clients on this machine. It
// stays the same over restarts.
func (s *Server) HTTPAddr() string { return s.opt.addr(s.httpPort) }

// Version is the engine's version, such as 26.7.2.1.
func (s *Server) Version() string { return s.version }

// PID is the process id of the engine now; it changes with a restart.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}

// Restarts is how many times the engine died and was started again.
func (s *Server) Restarts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.restarts
}

// LabDSN is the native DSN of the read-write user. It contains the password.
func (s *Server) LabDSN() string {
	return s.dsn(LabUser, s.opt.Credentials.Lab)
}

// ReaderDSN is the native DSN of the read-only user. It contains the password.
func (s *Server) ReaderDSN() string {
	return s.dsn(ReaderUser, s.opt.Credentials.Reader)
}

func (s *Server) dsn(user, password string) string {
	u := url.URL{
		Scheme: "clickhouse", User: url.UserPassword(user, password), Host: s.TCPAddr(), Path: "/" + Database,
		RawQuery: url.Values{"http_url": {"http://" + s.HTTPAddr()}}.Encode(),
	}
	return u.String()
}

// Done is closed when the engine has ended for good.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait blocks until the engine has ended for good: nil after Close, else why it
// could not be kept running.
func (s *Server) Wait() error {
	<-s.done
	return s.err
}

// Close ends the engine cleanly, or by force when ctx or the stop timeout ends
// first; it returns when the process is gone. Acknowledged data is safe both
// ways.
func (s *Server) Close(ctx context.Context) error {
	s.stopOnce.Do(func() {
		s.stopBy = ctx
		s.stop()
	})
	<-s.done
	return s.err
}

// supervise owns the engine's processes from the first to the last.
func (s *Server) supervise(p *process) {
	defer close(s.done)
	var deaths []time.Time
	for {
		select {
		case <-s.run.Done():
			s.err = p.shutdown(s.stopBy, s.opt.StopTimeout)
			return
		case <-p.exited:
		}
		why := p.failure()
		s.opt.Log.Error("ClickHouse died", "pid", p.pid, "error", why)
		for p = nil; p == nil; {
			deaths = append(deaths, time.Now())
			for time.Since(deaths[0]) > s.opt.RestartWindow {
				deaths = deaths[1:]
			}
			if len(deaths) > s.opt.MaxRestarts {
				s.err = fmt.Errorf("ClickHouse died %d times within %s, giving up: %w", len(deaths), s.opt.RestartWindow, why)
				s.opt.Log.Error("ClickHouse is not restarted any more", "deaths", len(deaths), "window", s.opt.RestartWindow)
				return
			}
			err := sleep(s.run, restartDelay(len(deaths)))
			if err == nil {
				p, err = s.launch(s.run, s.tcpPort, s.httpPort)
			}
			if s.run.Err() != nil && err != nil {
				return
			}
			if err != nil {
				why = err
				s.opt.Log.Error("ClickHouse did not start again", "error", err)
			}
		}
		s.mu.Lock()
		s.restarts++
		s.mu.Unlock()
		s.opt.Log.Warn("ClickHouse was restarted", "pid", p.pid)
	}
}

// restartDelay doubles from 100 ms to 10 s: the first restart is quick because
// everything else is waiting, the later ones leave room for what is wrong.
func restartDelay(deaths int) time.Duration {
	return min(100*time.Millisecond<<min(deaths-1, 10), 10*time.Second)
}

// process is one run of the engine.
type process struct {
	cmd      *exec.Cmd
	stdin    io.Closer
	pid      int
	tcpPort  int
	httpPort int
	version  string
	tail     *tail
	exited   chan struct{}
	exitErr  error // valid after exited is closed
}

// launch starts one process and returns when it answers on both ports.
func (s *Server) launch(ctx context.Context, tcpPort, httpPort int) (*process, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.opt.StartTimeout, fmt.Errorf("not ready after %s", s.opt.StartTimeout))
	defer cancel()
	p, report, err := s.spawn(tcpPort, httpPort)
	if err != nil {
		return nil, err
	}
	defer func() { _ = report.Close() }()
	if err := p.ready(ctx, report, s.opt.addr); err != nil {
		if errors.Is(err, context.Cause(ctx)) {
			err = fmt.Errorf("%w%s", err, p.tail.suffix())
		}
		p.kill()
		if failure := s.explain(p, tcpPort, httpPort); failure != nil {
			return nil, failure
		}
		return nil, err
	}
	s.mu.Lock()
	s.pid = p.pid
	s.mu.Unlock()
	return p, nil
}

func (s *Server) spawn(tcpPort, httpPort int) (*process, *os.File, error) {
	args := hostArgs{library: s.opt.Library, dir: s.opt.Dir, host: s.opt.Host, tcpPort: tcpPort, httpPort: httpPort}
	cmd := exec.Command(s.opt.Executable, args.list()...)
	cmd.Args[0] = "transferlab"
	cmd.Env = append(engineEnv(), s.opt.Env...)
	cmd.Dir = s.opt.Dir
	cmd.SysProcAttr = childAttributes()
	cmd.WaitDelay = time.Second
	report, reportTo, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("create a pipe: %w", err)
	}
	defer func() { _ = reportTo.Close() }()
	cmd.ExtraFiles = []*os.File{reportTo}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		_ = report.Close()
		return nil, nil, fmt.Errorf("create a pipe: %w", err)
	}
	p := &process{cmd: cmd, stdin: stdin, tail: &tail{log: s.opt.Log, failed: make(chan struct{})}, exited: make(chan struct{})}
	cmd.Stderr = p.tail
	started := make(chan error, 1)
	go func() {
		// The kernel's parent-death signal is bound to the thread that started
		// the child, so that thread must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.exitErr = cmd.Wait()
		p.tail.flush()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		_ = report.Close()
		_ = stdin.Close()
		return nil, nil, fmt.Errorf("start the engine's process: %w", err)
	}
	p.pid = cmd.Process.Pid
	return p, report, nil
}

// engineEnv is the little of our environment that the engine needs: its SQL
// users can read what it is given, and ours may hold credentials.
func engineEnv() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// ready reads the ports the engine reports and then asks it over HTTP.
func (p *process) ready(ctx context.Context, report *os.File, addr func(port int) string) error {
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(io.LimitReader(report, 4096)).ReadString('\n')
		line <- text
	}()
	var text string
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.exited:
		return p.failure()
	case <-p.tail.failed:
		// The engine says so and stays.
		return fmt.Errorf("the engine could not open its ports%s", p.tail.suffix())
	case text = <-line:
	}
	fields := strings.Fields(text)
	if len(fields) != 3 {
		// The pipe ended without an answer: the process is on its way out.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.exited:
			return p.failure()
		}
	}
	var err error
	if p.tcpPort, err = strconv.Atoi(fields[0]); err != nil {
		return fmt.Errorf("read the native port: %w", err)
	}
	if p.httpPort, err = strconv.Atoi(fields[1]); err != nil {
		return fmt.Errorf("read the HTTP port: %w", err)
	}
	p.version = fields[2]
	return p.ping(ctx, "http://"+addr(p.httpPort)+"/ping")
}

func (p *process) ping(ctx context.Context, target string) error {
	transport := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.exited:
			return p.failure()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// failure describes an exit nobody asked for.
func (p *process) failure() error {
	how := "exited"
	if p.exitErr != nil {
		how = p.exitErr.Error()
	}
	return fmt.Errorf("the engine's process ended (%s), its log is %s%s", how, filepath.Join(p.cmd.Dir, logDirName, logName), p.tail.suffix())
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
	_ = p.stdin.Close()
}

// shutdown asks the engine to end and insists after a while.
func (p *process) shutdown(ctx context.Context, timeout time.Duration) error {
	_ = p.stdin.Close()
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
	case <-t.C:
	}
	p.kill()
	return errors.New("ClickHouse did not end in time and was killed")
}

// explain turns what the engine said while failing to start into an error the
// caller can act on, or nil.
func (s *Server) explain(p *process, tcpPort, httpPort int) error {
	text := p.tail.String()
	if strings.Contains(text, fmt.Sprintf("Code: %d.", exitLocked)) {
		return ErrDirLocked
	}
	if strings.Contains(text, "Address already in use") {
		for _, c := range []struct {
			protocol string
			port     int
		}{{"native", tcpPort}, {"http", httpPort}} {
			if c.port != 0 && strings.Contains(text, ":"+strconv.Itoa(c.port)) {
				return &PortTakenError{Protocol: c.protocol, Port: c.port}
			}
		}
	}
	return nil
}

const (
	tailLines     = 40
	tailLineBytes = 2048
)

// tail logs a process's output line by line and keeps the last lines for the
// error message. Lines are cut: it may be a crash dump.
type tail struct {
	log *slog.Logger

	// failed is closed when the engine has reported an error.
	failed chan struct{}

	mu    sync.Mutex
	part  []byte
	lines []string
	error bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range p {
		if b == '\n' {
			t.end()
		} else if len(t.part) < tailLineBytes {
			t.part = append(t.part, b)
		}
	}
	return len(p), nil
}

func (t *tail) end() {
	if line := strings.TrimRight(string(t.part), "\r "); line != "" && !strings.HasPrefix(line, "Logging ") {
		if strings.HasPrefix(line, unsandboxedNotice) {
			t.log.Warn(line)
		} else {
			t.log.Debug("ClickHouse says", "line", line)
		}
		if !t.error && strings.HasPrefix(line, "Code: ") {
			t.error = true
			close(t.failed)
		}
		if t.lines = append(t.lines, line); len(t.lines) > tailLines {
			t.lines = t.lines[1:]
		}
	}
	t.part = t.part[:0]
}

func (t *tail) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end()
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}

func (t *tail) suffix() string {
	if s := t.String(); s != "" {
		return ":\n" + s
	}
	return ""
}
