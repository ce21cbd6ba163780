package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/bench/internal/lab"
)

// tool is a program that downloads a prefix into a directory.
type tool struct {
	name, program string
	version       []string
	// command is its arguments and further environment for a cell.
	command func(l *lab.Lab, c cell, scratch, into string) (args, env []string, err error)
}

func knownTools() []tool {
	return []tool{
		{"rclone", "rclone", []string{"version"}, rclone},
		{"awscli", "aws", []string{"--version"}, awscli},
		{"s5cmd", "s5cmd", []string{"version"}, s5cmd},
	}
}

// tools are those on the PATH. They write files, which no library here does:
// into memory, where there is a file system for that.
func tools(l *lab.Lab) []client {
	var out []client
	for _, t := range knownTools() {
		path, version := found(t.program, t.version)
		if path == "" {
			continue
		}
		out = append(out, client{name: t.name, what: version + ", to files", run: func(ctx context.Context, c cell) (measured, error) {
			return t.run(ctx, l, path, c)
		}})
	}
	if path, version := found("warp", []string{"--version"}); path != "" {
		out = append(out, client{name: "warp", what: version + ", get, its own objects and its own figures", run: func(ctx context.Context, c cell) (measured, error) {
			return warp(ctx, l, path, c)
		}})
	}
	return out
}

// found looks a program up and has it say its version: a shim may be on the
// PATH with nothing behind it.
func found(program string, version []string) (path, says string) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", ""
	}
	out, err := exec.Command(path, version...).Output()
	if err != nil {
		return "", ""
	}
	says, _, _ = strings.Cut(string(out), "\n")
	return path, strings.TrimSpace(says)
}

func memoryDir() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

func (t *tool) run(ctx context.Context, l *lab.Lab, path string, c cell) (_ measured, err error) {
	scratch, err := os.MkdirTemp(memoryDir(), "transferlab-bench-s3-")
	if err != nil {
		return measured{}, fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	into := filepath.Join(scratch, "into")
	if err := os.Mkdir(into, 0o700); err != nil {
		return measured{}, fmt.Errorf("make a directory: %w", err)
	}
	args, env, err := t.command(l, c, scratch, into)
	if err != nil {
		return measured{}, err
	}
	var complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(append(awsEnv(l), "HOME="+scratch), env...)
	cmd.Stderr = &complaints
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return measured{}, fmt.Errorf("%w: %s", err, complaints.String())
	}
	m := measured{Elapsed: time.Since(begin), CPU: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	err = filepath.WalkDir(into, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		m.Requests++
		m.Bytes += info.Size()
		return nil
	})
	return m, err
}

func rclone(l *lab.Lab, c cell, _, into string) (args, env []string, err error) {
	n := strconv.Itoa(c.concurrency)
	return []string{"copy", "bench:" + bucket + "/" + c.prefix(), into, "--transfers", n, "--checkers", n, "--config", os.DevNull},
		[]string{
			"RCLONE_CONFIG_BENCH_TYPE=s3", "RCLONE_CONFIG_BENCH_PROVIDER=Other", "RCLONE_CONFIG_BENCH_ENV_AUTH=true",
			"RCLONE_CONFIG_BENCH_ENDPOINT=" + l.Env["AWS_ENDPOINT_URL"], "RCLONE_CONFIG_BENCH_REGION=" + l.Env["AWS_REGION"],
		}, nil
}

func awscli(_ *lab.Lab, c cell, scratch, into string) (args, env []string, err error) {
	config := filepath.Join(scratch, "config")
	text := fmt.Sprintf("[default]\ns3 =\n  max_concurrent_requests = %d\n  addressing_style = path\n", c.concurrency)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, nil, fmt.Errorf("write configuration: %w", err)
	}
	return []string{"s3", "cp", "--recursive", "--only-show-errors", "s3://" + bucket + "/" + c.prefix(), into}, []string{"AWS_CONFIG_FILE=" + config}, nil
}

func s5cmd(l *lab.Lab, c cell, _, into string) (args, env []string, err error) {
	return []string{
		"--endpoint-url", l.Env["AWS_ENDPOINT_URL"], "--numworkers", strconv.Itoa(c.concurrency), "--log", "error",
		"cp", "s3://" + bucket + "/" + c.prefix() + "*", into + "/",
	}, nil, nil
}

// warp uploads objects of its own first, so that only its own figures say
// anything; its processor time is not that of the downloads.
func warp(ctx context.Context, l *lab.Lab, path string, c cell) (measured, error) {
	scratch, err := os.MkdirTemp("", "transferlab-bench-s3-")
	if err != nil {
		return measured{}, fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(scratch)
	host := strings.TrimPrefix(strings.TrimPrefix(l.Env["AWS_ENDPOINT_URL"], "http://"), "https://")
	cmd := exec.CommandContext(ctx, path, "get", "--host", host, "--bucket", bucket+"-warp", "--lookup", "path", "--region", l.Env["AWS_REGION"],
		"--obj.size", strconv.FormatInt(c.size, 10), "--objects", strconv.Itoa(min(c.objects, 64)), "--concurrent", strconv.Itoa(c.concurrency),
		"--duration", "3s", "--no-color", "--benchdata", filepath.Join(scratch, "data"))
	cmd.Env = append(os.Environ(), "WARP_ACCESS_KEY="+l.Env["AWS_ACCESS_KEY_ID"], "WARP_SECRET_KEY="+l.Env["AWS_SECRET_ACCESS_KEY"], "HOME="+scratch)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return measured{}, fmt.Errorf("%w: %s", err, out)
	}
	mib, err := warpRate(out)
	if err != nil {
		return measured{}, err
	}
	// As if it had fetched the cell at the rate that it reports.
	elapsed := time.Duration(float64(c.bytes()) / (mib * (1 << 20)) * float64(time.Second))
	return measured{Bytes: c.bytes(), Requests: int64(c.objects), Elapsed: elapsed, CPU: -1}, nil
}

// warpRate finds the average rate in warp's report, in MiB/s.
func warpRate(report []byte) (float64, error) {
	m := regexp.MustCompile(`Average: ([0-9.]+) (MiB|GiB)/s`).FindSubmatch(report)
	if m == nil {
		return 0, fmt.Errorf("no rate in warp's report: %s", report)
	}
	rate, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return 0, fmt.Errorf("rate in warp's report: %w", err)
	}
	if string(m[2]) == "GiB" {
		rate *= 1024
	}
	return rate, nil
}
