package camera

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// log is where a test waits for what is logged.
type log struct {
	mu    sync.Mutex
	text  bytes.Buffer
	from  int
	wrote chan struct{}
}

func newLog() *log { return &log{wrote: make(chan struct{}, 1)} }

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until a text is logged after the one awaited before.
func (l *log) await(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		l.mu.Lock()
		_, _, found := strings.Cut(l.text.String()[l.from:], text)
		if found {
			l.from += strings.Index(l.text.String()[l.from:], text) + len(text)
		}
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-l.wrote:
		case <-timeout:
			t.Fatalf("%q was not logged in a minute:\n%s", text, l)
		}
	}
}
