package vision

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// command prepares a child process that dies with this one, gets no part of the
// terminal's signals and inherits no secrets by its environment.
func (d *Detector) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	if d.o.Nice > 0 {
		program, args = "nice", append([]string{"-n", strconv.Itoa(d.o.Nice), program}, args...)
	}
	c := exec.CommandContext(ctx, program, args...)
	c.SysProcAttr = childAttributes()
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "OPENCV_LOG_LEVEL", "GOCOVERDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			c.Env = append(c.Env, name+"="+v)
		}
	}
	// Whoever else has a child's pipe open must not keep Wait from returning.
	c.WaitDelay = 5 * time.Second
	return c
}

// tail keeps the end of what a child says.
type tail struct {
	mu   sync.Mutex
	data []byte
}

const tailBytes = 32 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p[max(0, len(p)-tailBytes):]...)
	if extra := len(t.data) - tailBytes; extra > 0 {
		t.data = append(t.data[:0], t.data[extra:]...)
	}
	return len(p), nil
}

var address = regexp.MustCompile(` @ 0x[0-9a-f]+`)

// reason is the last line that says something: short, and without what differs from run
// to run. What an exception of C++ said goes before what came of it.
func (t *tail) reason() string {
	const most = 300
	t.mu.Lock()
	defer t.mu.Unlock()
	found := ""
	for line := range strings.Lines(strings.ToValidUTF8(string(t.data), "?")) {
		line = strings.TrimSpace(address.ReplaceAllString(line, ""))
		if what, ok := strings.CutPrefix(line, "what():"); ok {
			found = strings.TrimSpace(what)
			break
		}
		// A signal, or Go's own end: what follows is where it was.
		if strings.HasPrefix(line, "SIG") || strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			found = line
			break
		}
		if line != "" && !strings.HasPrefix(line, "Last message repeated") {
			found = line
		}
	}
	return found[:min(len(found), most)]
}

// meter measures how long something is busy: the time that passes while it waits for
// nobody.
type meter struct {
	mu      sync.Mutex
	waits   int
	since   time.Time
	total   time.Duration
	mark    time.Duration // total when it last got somewhere
	stopped bool
}

func newMeter() *meter { return &meter{since: time.Now()} }

// wait says that the one measured waits for somebody until the returned function is
// called. Waits may overlap.
func (m *meter) wait() (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waits++; m.waits == 1 && !m.stopped {
		m.total += time.Since(m.since)
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.waits--; m.waits == 0 {
			m.since = time.Now()
		}
	}
}

// stop ends the measurement and returns the time busy.
func (m *meter) stop() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total = m.busy()
	m.stopped = true
	return m.total
}

// progress says that the one measured has got somewhere.
func (m *meter) progress() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark = m.busy()
}

// stuck is how long it has been busy since then.
func (m *meter) stuck() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.busy() - m.mark
}

func (m *meter) busy() time.Duration {
	if m.waits > 0 || m.stopped {
		return m.total
	}
	return m.total + time.Since(m.since)
}
