package camera

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// grace is how long a child that was told to end may take.
const grace = 2 * time.Second

// command makes a child that ends with ctx.
func command(ctx context.Context, program string, args []string) *exec.Cmd {
	c := exec.CommandContext(ctx, program, args...)
	c.SysProcAttr = dieWithParent()
	// A camera is left in order by those who are asked to end.
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = grace
	return c
}

// run starts a child; wait returns when it has ended.
func run(c *exec.Cmd, out stderr) (wait func() error, err error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", out.name, err)
	}
	c.Stderr = writer
	started, ended, last := make(chan error, 1), make(chan error, 1), make(chan string, 1)
	go func() { last <- out.copy(reader) }()
	go func() {
		// The kernel ends the child with the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		_ = writer.Close()
		started <- err
		if err == nil {
			ended <- c.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-last
		return nil, fmt.Errorf("start %s: %w", out.name, err)
	}
	return func() error {
		err := <-ended
		said := <-last
		if err == nil {
			return nil
		}
		if said != "" {
			return fmt.Errorf("%s: %w: %s", out.name, err, said)
		}
		return fmt.Errorf("%s: %w", out.name, err)
	}, nil
}

// stderr logs what a child says.
type stderr struct {
	name    string
	secrets []string
	log     *slog.Logger
	// ended is closed when the child was told to end: what it says of that is
	// not worth a warning.
	ended <-chan struct{}
}

const (
	longestLine = 400
	linesAMin   = 20
)

// copy logs lines to the end of r, bounded, and returns the last one.
func (s stderr) copy(r io.ReadCloser) (last string) {
	defer r.Close()
	lines := bufio.NewReaderSize(r, 4096)
	var since time.Time
	told, left := 0, 0
	for {
		part, long, err := lines.ReadLine()
		line := string(part)
		for long && err == nil {
			_, long, err = lines.ReadLine()
		}
		if text := s.clean(line); text != "" {
			last = text
			if now := time.Now(); now.Sub(since) > time.Minute {
				if left > 0 {
					s.log.Warn(s.name+": further lines left out", "lines", left)
				}
				since, told, left = now, 0, 0
			}
			if told++; told <= linesAMin {
				level := slog.LevelWarn
				select {
				case <-s.ended:
					level = slog.LevelDebug
				default:
				}
				s.log.Log(context.Background(), level, s.name, "says", text)
			} else {
				left++
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.log.Warn("read what "+s.name+" says", "error", err)
			}
			return last
		}
	}
}

// clean takes secrets out of a line before it is cut: half a secret is one too.
func (s stderr) clean(line string) string {
	for _, secret := range s.secrets {
		line = strings.ReplaceAll(line, secret, "***")
	}
	line = strings.TrimSpace(line)
	return strings.ToValidUTF8(line[:min(len(line), longestLine)], "?")
}

// secrets are what must not be shown of an address, the longest first.
func secrets(address string) (all []string) {
	_, rest, found := strings.Cut(Redact(address), "://***@")
	if !found {
		return nil
	}
	whole := strings.TrimSuffix(address, "@"+rest)
	_, login, _ := strings.Cut(whole, "://")
	all = append(all, login)
	if _, password, found := strings.Cut(login, ":"); found && password != "" {
		all = append(all, password)
		if plain, err := url.PathUnescape(password); err == nil && plain != password {
			all = append(all, plain)
		}
	}
	return all
}
