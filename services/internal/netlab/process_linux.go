package netlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const journalName = "netlab.json"

// journal is what a lab leaves for its successor, should it be killed.
type journal struct {
	ID        string         `json:"id"` // value of EnvLab in its processes
	Processes []journalEntry `json:"processes"`
}

// journalEntry is a process; its start in clock ticks since boot tells it from
// a later one with the same number.
type journalEntry struct {
	Node  string `json:"node"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

func (j journal) write(dir string) error {
	b, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	path := filepath.Join(dir, journalName)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// lockDir claims a lab's directory for this process until the file is closed.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the lab's directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another emulated network is running on %s", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// Reap kills what a lab that was itself killed left behind: processes of its
// journal and their children. It refuses when a lab runs on the directory, and
// does nothing where there is no journal.
func Reap(ctx context.Context, dir string) error {
	lock, err := lockDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	return reap(ctx, dir)
}

// reap is Reap for the owner of the lock.
func reap(ctx context.Context, dir string) error {
	path := filepath.Join(dir, journalName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	var j journal
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("read the journal %s (remove it when no process of a lab is left): %w", path, err)
	}
	ctx, cancel := context.WithTimeout(ctx, reapLimit)
	defer cancel()
	for _, p := range j.Processes {
		same := func() bool {
			start, err := processStart(p.PID)
			return err == nil && start == p.Start
		}
		if err := kill(ctx, p.PID, same); err != nil {
			return fmt.Errorf("end process %d, left by an emulated network: %w", p.PID, err)
		}
	}
	if err := killTagged(ctx, j.ID); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the journal: %w", err)
	}
	return nil
}

const reapLimit = 10 * time.Second

// kill ends a process, not necessarily our child, if it is the one meant, and
// returns when it is gone.
func kill(ctx context.Context, pid int, isMeant func() bool) error {
	if pid <= 1 || pid == os.Getpid() {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Asked once the descriptor is held: the number cannot pass to another now.
	if !isMeant() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill: %w", err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for its end: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for its end: %w", err)
		}
	}
}

// killTagged ends every process that has the lab's id in its environment. It
// looks again until there is none, since what it kills may have been about to
// start another.
func killTagged(ctx context.Context, id string) error {
	if id == "" {
		return nil
	}
	tag := EnvLab + "=" + id
	for {
		pids, err := tagged(tag)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := kill(ctx, pid, func() bool { return hasTag(pid, tag) }); err != nil {
				return fmt.Errorf("end process %d of an emulated network: %w", pid, err)
			}
		}
	}
}

func tagged(tag string) ([]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer func() { _ = proc.Close() }()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err == nil && pid != os.Getpid() && hasTag(pid, tag) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// hasTag is false for a process that is gone, and for a zombie.
func hasTag(pid int, tag string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+tag+"\x00"))
}

// processStart reads field 22 of /proc/PID/stat: when it started.
func processStart(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("start of process %d: %w", pid, err)
	}
	// The second field, the name, is in parentheses and may hold any character.
	_, rest, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("start of process %d: %d fields", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("start of process %d: %w", pid, err)
	}
	return start, nil
}

// Process runs in a node.
type Process struct {
	cmd   *exec.Cmd
	stdin *os.File
	done  chan struct{}
	err   error
	once  sync.Once
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how it ended, nil for success; to be asked when Done is closed.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Stop asks the process to end, by the end of its standard input and SIGTERM,
// and ends it by SIGKILL when ctx does. It returns when the process is gone,
// with what Err says.
func (p *Process) Stop(ctx context.Context) error {
	p.closeInput()
	p.signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Kill()
	}
	return p.err
}

// Kill ends the process, and those of its group, at once and returns when it is
// gone.
func (p *Process) Kill() {
	p.closeInput()
	p.signal(unix.SIGKILL)
	<-p.done
}

func (p *Process) closeInput() { p.once.Do(func() { _ = p.stdin.Close() }) }

// signal reaches the process's whole group, unless it has been waited for: then
// the number may be another's.
func (p *Process) signal(s unix.Signal) {
	select {
	case <-p.done:
	default:
		_ = unix.Kill(-p.cmd.Process.Pid, s)
	}
}

// outputGrace is how long a process's output is read after its end: a child of
// its own may keep the pipe open.
const outputGrace = time.Second

func startProcess(cmd *exec.Cmd) (*Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	cmd.Stdin = r
	cmd.WaitDelay = outputGrace
	// A group of its own: Ctrl-C at the terminal is for the lab alone.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = r.Close()
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	p := &Process{cmd: cmd, stdin: w, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		p.closeInput()
		close(p.done)
	}()
	return p, nil
}
