package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/transferlab/transferlab/bench/internal/figures"
	"github.com/transferlab/transferlab/bench/internal/lab"
)

// Names of tools in tables and raw figures.
const (
	toolOurs        = "ours"
	toolFping       = "fping"
	toolPing        = "ping"
	toolCloudprober = "cloudprober"
)

const cloudproberPackage = "github.com/cloudprober/cloudprober/cmd/cloudprober@v0.14.0"

// missing says how a tool that is missing is to be had.
func (o *options) missing(tool string) string {
	switch tool {
	case toolFping:
		return "not found; apt-get install fping"
	case toolPing:
		return "not found, or not of iputils; apt-get install iputils-ping"
	default:
		return fmt.Sprintf("%s not found; go install %s, then --cloudprober PATH", o.cloudprober, cloudproberPackage)
	}
}

// version of a tool; empty if it is not there or does not work.
func (o *options) version(ctx context.Context, tool string) string {
	switch tool {
	case toolFping:
		out, err := exec.CommandContext(ctx, "fping", "-v").Output()
		if err != nil {
			return ""
		}
		line, _, _ := strings.Cut(string(out), "\n")
		_, version, _ := strings.Cut(line, "Version ")
		return version
	case toolPing:
		out, err := exec.CommandContext(ctx, "ping", "-V").Output()
		line, _, _ := strings.Cut(string(out), "\n")
		if err != nil || !strings.Contains(line, "iputils") {
			return ""
		}
		return strings.TrimPrefix(line, "ping from ")
	default:
		path, err := exec.LookPath(o.cloudprober)
		if err != nil {
			return ""
		}
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return "unknown"
		}
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == "github.com/cloudprober/cloudprober" {
				return m.Version + ", " + info.GoVersion
			}
		}
		return "unknown"
	}
}

func peerVersions(ctx context.Context, o *options) []figures.Condition {
	var out []figures.Condition
	for _, tool := range []string{toolFping, toolPing, toolCloudprober} {
		v := o.version(ctx, tool)
		if v == "" {
			v = o.missing(tool)
		}
		out = append(out, figures.Condition{Name: "peer-" + tool, Value: v})
	}
	return out
}

// usage is what a process took that has ended.
type usage struct {
	elapsed, cpu time.Duration
	peak         int64 // bytes
}

// runTool runs a program to its end. Losses make fping and ping exit with 1.
func runTool(ctx context.Context, limit time.Duration, program string, args ...string) (stdout, stderr []byte, u usage, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &out, &complaints
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, nil, u, fmt.Errorf("start %s: %w", program, err)
	}
	ended, peak := make(chan struct{}), make(chan int64)
	go watchPeak(cmd.Process.Pid, ended, peak)
	err = cmd.Wait()
	u.elapsed = time.Since(begin)
	close(ended)
	u.peak = <-peak
	if ctx.Err() != nil || cmd.ProcessState == nil || (err != nil && cmd.ProcessState.ExitCode() != 1) {
		return nil, nil, u, fmt.Errorf("%s: %w: %.500s", program, err, complaints.Bytes())
	}
	u.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return out.Bytes(), complaints.Bytes(), u, nil
}

// watchPeak follows the memory of a process until it has ended. The kernel's final
// account would not do: there, a child begins with what its parent had.
func watchPeak(pid int, ended <-chan struct{}, peak chan<- int64) {
	most := int64(0)
	defer func() { peak <- most }()
	for {
		if m, err := lab.MemoryOf(pid); err == nil {
			most = max(most, m.Peak)
		}
		select {
		case <-ended:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// fping probes every target count times, period apart. gap, in milliseconds, is
// the least time between any two probes.
func fping(ctx context.Context, targets []string, period time.Duration, count int, gap string) (samples, usage, error) {
	args := []string{"-C", strconv.Itoa(count), "-p", strconv.FormatInt(period.Milliseconds(), 10), "-q", "-b", "56"}
	if gap != "" {
		args = append(args, "-i", gap)
	}
	// Without it an answer counts as lost after one period.
	args = append(append(args, "-t", "1000"), targets...)
	_, said, u, err := runTool(ctx, 10*time.Duration(count)*period+time.Minute, "fping", args...)
	if err != nil {
		return samples{}, u, err
	}
	s, err := parseFping(bytes.NewReader(said), len(targets), count)
	return s, u, err
}

// fpings has so many processes of fping share the targets. Elapsed is the longest,
// the rest sums.
func fpings(ctx context.Context, targets []string, processes int, period time.Duration, count int, gap string) (samples, usage, error) {
	var (
		mu      sync.Mutex
		all     samples
		used    usage
		faults  []error
		working sync.WaitGroup
	)
	for part := range slices.Chunk(targets, (len(targets)+processes-1)/processes) {
		working.Go(func() {
			s, u, err := fping(ctx, part, period, count, gap)
			mu.Lock()
			defer mu.Unlock()
			all.sent += s.sent
			all.rtts = append(all.rtts, s.rtts...)
			used = usage{max(used.elapsed, u.elapsed), used.cpu + u.cpu, used.peak + u.peak}
			faults = append(faults, err)
		})
	}
	working.Wait()
	return all, used, errors.Join(faults...)
}

func ping(ctx context.Context, target string, period time.Duration, count int) (samples, usage, error) {
	said, complaints, u, err := runTool(ctx, 10*time.Duration(count)*period+time.Minute, "ping",
		"-c", strconv.Itoa(count), "-i", strconv.FormatFloat(period.Seconds(), 'f', -1, 64), "-n", "-s", "56", target)
	if err != nil {
		return samples{}, u, err
	}
	s, err := parsePing(bytes.NewReader(said))
	if err != nil {
		return samples{}, u, fmt.Errorf("%w: %.500s", err, complaints)
	}
	return s, u, nil
}

// cloudproberRun is what cloudprober did between two of its own accounts.
type cloudproberRun struct {
	counters
	elapsed, cpu time.Duration
	peak         int64
}

// cloudproberRounds is how often each of its probes sends to every target in a
// second: it sleeps a millisecond after each packet, so that 100 targets leave
// time for little more, and what is not answered a second after the first packet is lost.
const cloudproberRounds = 7

// runCloudprober has so many ping probes of cloudprober, in one process, send to every target
// seven times a second.
func runCloudprober(ctx context.Context, program, dir string, probes int, targets []string, duration time.Duration) (_ cloudproberRun, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return cloudproberRun{}, fmt.Errorf("find a port: %w", err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		return cloudproberRun{}, fmt.Errorf("find a port: %w", err)
	}
	var config strings.Builder
	fmt.Fprintf(&config, "host: \"127.0.0.1\"\nport: %d\n", port)
	for i := range probes {
		fmt.Fprintf(&config, `probe {
  name: "p%d"
  type: PING
  interval_msec: 1000
  timeout_msec: 990
  stats_export_interval_msec: 1000
  latency_unit: "us"
  latency_distribution { explicit_buckets: "1,2,3,4,5,6,7,8,9,10,12,15,20,30,50,70,100,200,500,1000,10000,100000" }
  targets { host_names: "%s" }
  ping_probe { packets_per_probe: %d packets_interval_msec: 0 payload_size: 56 use_datagram_socket: %t }
}
`, i, strings.Join(targets, ","), cloudproberRounds, pingSockets())
	}
	path := filepath.Join(dir, "cloudprober.cfg")
	if err := os.WriteFile(path, []byte(config.String()), 0o644); err != nil {
		return cloudproberRun{}, fmt.Errorf("configure cloudprober: %w", err)
	}
	log := filepath.Join(dir, "cloudprober.log")
	// With raw sockets it would log each of its own requests that comes by.
	p, err := lab.StartProcess(log, nil, program, "--config_file", path, "--min_log_level", "ERROR", "--disable_cloud_logging")
	if err != nil {
		return cloudproberRun{}, err
	}
	defer p.Kill() // it waits 5 s for nothing if asked
	ctx, cancel := context.WithTimeout(ctx, duration+time.Minute)
	defer cancel()
	take := func() (cloudproberRun, error) {
		c, err := scrape(ctx, fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		if err != nil {
			return cloudproberRun{}, nil // not up yet
		}
		cpu, err := lab.ProcessorTime(p.PID())
		if err != nil {
			return cloudproberRun{}, err
		}
		mem, err := lab.MemoryOf(p.PID())
		return cloudproberRun{c, 0, cpu, mem.Peak}, err
	}
	// Counters move once a second: both accounts are taken just after they did.
	moved := func(least float64) (cloudproberRun, time.Time, error) {
		for {
			r, err := take()
			if err != nil || r.sent > least {
				return r, time.Now(), err
			}
			select {
			case <-ctx.Done():
				text, _ := os.ReadFile(log)
				return r, time.Time{}, fmt.Errorf("cloudprober counts nothing: %w: %.500s", ctx.Err(), text)
			case <-p.Ended():
				text, _ := os.ReadFile(log)
				return r, time.Time{}, fmt.Errorf("cloudprober has ended: %.500s", text)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	first, _, err := moved(0)
	if err != nil {
		return cloudproberRun{}, err
	}
	// The first second has its start in it.
	first, begin, err := moved(first.sent)
	if err != nil {
		return cloudproberRun{}, err
	}
	select {
	case <-ctx.Done():
		return cloudproberRun{}, ctx.Err()
	case <-time.After(duration - 200*time.Millisecond):
	}
	before, err := take()
	if err != nil {
		return cloudproberRun{}, err
	}
	last, end, err := moved(before.sent)
	if err != nil {
		return cloudproberRun{}, err
	}
	return cloudproberRun{last.minus(first.counters), end.Sub(begin), last.cpu - first.cpu, last.peak}, nil
}

func scrape(ctx context.Context, url string) (counters, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return counters{}, fmt.Errorf("ask cloudprober: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return counters{}, fmt.Errorf("ask cloudprober: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	if err != nil {
		return counters{}, fmt.Errorf("ask cloudprober: %w", err)
	}
	return parseCloudprober(text)
}

// pingSockets reports whether the kernel lets this user's group send echo requests
// without a raw socket, by the range of groups that it allows.
func pingSockets() bool {
	bounds := strings.Fields(figures.FirstLine(pingGroups))
	if len(bounds) != 2 {
		return false
	}
	low, err := strconv.Atoi(bounds[0])
	if err != nil {
		return false
	}
	high, err := strconv.Atoi(bounds[1])
	if err != nil {
		return false
	}
	groups, _ := os.Getgroups()
	return slices.ContainsFunc(append(groups, os.Getgid()), func(g int) bool { return low <= g && g <= high })
}
