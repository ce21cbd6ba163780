package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/transferlab/transferlab/edge"
	"github.com/transferlab/transferlab/edge/spool"
)

// status is what a running edge says of itself: one JSON object to whoever
// connects to its socket.
type status struct {
	Name    string              `json:"name"`
	Version string              `json:"version"`
	Started time.Time           `json:"started"`
	Clips   map[spool.State]int `json:"clips"` // in the spool
	Bytes   int64               `json:"bytes"`
	Limit   int64               `json:"limit_bytes"`
	Oldest  time.Time           `json:"oldest,omitzero"`
	Tally   spool.Tally         `json:"since_ever"`
	Online  bool                `json:"online"`
	RTT     time.Duration       `json:"rtt_ns,omitempty"`
	Rate    float64             `json:"uplink_bytes_per_s,omitempty"`
	Offset  time.Duration       `json:"clock_offset_ns"` // the lab's clock is ahead by
	Bound   time.Duration       `json:"clock_bound_ns,omitempty"`
}

func socketPath(cfg edge.Config) string { return filepath.Join(cfg.Spool.Dir, "status.sock") }

// tell answers on the socket until ctx ends. The spool's lock has been taken: a
// socket that is there is of a process that has gone.
func tell(ctx context.Context, cfg edge.Config, p edge.Parts) error {
	path := socketPath(cfg)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tell the status: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("tell the status: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	defer listener.Close()
	if err := os.Chmod(path, 0o660); err != nil {
		return fmt.Errorf("tell the status: %w", err)
	}
	started := time.Now()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("tell the status: %w", err)
		}
		stats := p.Spool.Stats()
		s := status{
			Name: cfg.Name, Version: version(), Started: started, Clips: stats.Clips, Bytes: stats.Bytes, Limit: int64(cfg.Spool.MaxBytes),
			Oldest: stats.Oldest, Tally: stats.Tally, Online: p.Lab.Online(),
		}
		s.RTT, _ = p.Lab.RTT()
		s.Rate, _ = p.Lab.Rate()
		s.Offset, s.Bound, _ = p.Lab.Clock()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		_ = json.NewEncoder(conn).Encode(s)
		_ = conn.Close()
	}
}

type statusCmd struct {
	configFlag `embed:""`
	JSON       bool `help:"Print JSON."`
}

func (c *statusCmd) Run(ctx context.Context, out console) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socketPath(cfg))
	if err != nil {
		return fmt.Errorf("ask the edge of %s: is it running, and may you ask it? %w", c.Config, err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("ask the edge: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	if err != nil {
		return fmt.Errorf("ask the edge: %w", err)
	}
	if c.JSON {
		_, err = out.Write(data)
		return err
	}
	var s status
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("understand the edge: %w", err)
	}
	return s.print(out, time.Now())
}

func (s *status) print(w io.Writer, now time.Time) error {
	var err error
	line := func(name, format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(w, "%-8s %s\n", name, fmt.Sprintf(format, args...))
		}
	}
	line("edge", "%s, version %s, up %s", s.Name, s.Version, now.Sub(s.Started).Round(time.Second))
	total := 0
	for _, n := range s.Clips {
		total += n
	}
	line("spool", "%d clips, %.1f MB of %.0f MB", total, float64(s.Bytes)/1e6, float64(s.Limit)/1e6)
	for _, state := range slices.Sorted(maps.Keys(s.Clips)) {
		if s.Clips[state] > 0 {
			line("", "%d %s", s.Clips[state], state)
		}
	}
	if !s.Oldest.IsZero() {
		line("oldest", "%s", now.Sub(s.Oldest).Round(time.Second))
	}
	line("so far", "%d all the way, %d refused, %d dropped, %d expired", s.Tally.Reported, s.Tally.Refused, s.Tally.Dropped, s.Tally.Expired)
	if s.Online {
		line("uplink", "online, round trip %s, %.1f Mbit/s", s.RTT.Round(10*time.Microsecond), s.Rate*8/1e6)
		line("clock", "the lab's is %s ahead, ± %s", s.Offset.Round(10*time.Microsecond), s.Bound.Round(10*time.Microsecond))
	} else {
		line("uplink", "offline")
	}
	return err
}
