package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// maxLine bounds a line of a tool's output: fping prints all probes of a target
// in one.
const maxLine = 64 << 20

// milliseconds reads "0.049" or "1.2e3" as far as the tools print it.
func milliseconds(text string) (time.Duration, error) {
	ms, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(ms) || ms < 0 || ms > 1e9 {
		return 0, fmt.Errorf("round trip %q, want milliseconds", text)
	}
	return time.Duration(math.Round(ms * float64(time.Millisecond))), nil
}

func lines(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxLine)
	return s
}

// parseFping reads what `fping -C COUNT -q` prints: a line for each target,
// `127.0.0.1 : 0.049 - 0.028`, a dash for each probe without an answer. Every target
// must have count probes.
func parseFping(r io.Reader, targets, count int) (samples, error) {
	var out samples
	seen := 0
	s := lines(r)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		// Complaints, such as of ICMP errors, come between the lines.
		if len(fields) < 3 || fields[1] != ":" {
			continue
		}
		if len(fields)-2 != count {
			return samples{}, fmt.Errorf("fping: %d probes of %s, want %d", len(fields)-2, fields[0], count)
		}
		for _, f := range fields[2:] {
			out.sent++
			if f == "-" {
				continue
			}
			rtt, err := milliseconds(f)
			if err != nil {
				return samples{}, fmt.Errorf("fping: %s: %w", fields[0], err)
			}
			out.rtts = append(out.rtts, rtt)
		}
		seen++
	}
	if err := s.Err(); err != nil {
		return samples{}, fmt.Errorf("fping: %w", err)
	}
	if seen != targets {
		return samples{}, fmt.Errorf("fping: %d targets, want %d", seen, targets)
	}
	return out, nil
}

// parsePing reads what `ping -n` of iputils prints: a line for each answer and a
// summary. Duplicates do not count.
func parsePing(r io.Reader) (samples, error) {
	var out samples
	summary := false
	s := lines(r)
	for s.Scan() {
		line := s.Text()
		if before, _, found := strings.Cut(line, " packets transmitted, "); found {
			n, err := strconv.Atoi(before)
			if err != nil || n < 0 {
				return samples{}, fmt.Errorf("ping: summary %q", line)
			}
			out.sent, summary = n, true
			continue
		}
		if !strings.Contains(line, " icmp_seq=") || strings.HasSuffix(line, "(DUP!)") {
			continue
		}
		_, after, found := strings.Cut(line, " time=")
		text, unit, _ := strings.Cut(after, " ")
		if !found || unit != "ms" {
			continue // an ICMP error
		}
		rtt, err := milliseconds(text)
		if err != nil {
			return samples{}, fmt.Errorf("ping: %w", err)
		}
		out.rtts = append(out.rtts, rtt)
	}
	switch err := s.Err(); {
	case err != nil:
		return samples{}, fmt.Errorf("ping: %w", err)
	case !summary:
		return samples{}, errors.New("ping: no summary")
	case len(out.rtts) > out.sent:
		return samples{}, fmt.Errorf("ping: %d answers to %d probes", len(out.rtts), out.sent)
	}
	return out, nil
}

// counters are cloudprober's of all targets: they grow from its start.
type counters struct {
	sent, answered float64
	buckets        map[string]float64 // by upper bound in µs, as it is written
}

// parseCloudprober reads the metrics that cloudprober serves.
func parseCloudprober(text []byte) (counters, error) {
	out := counters{buckets: map[string]float64{}}
	s := lines(bytes.NewReader(text))
	for s.Scan() {
		line := s.Text()
		name, rest, found := strings.Cut(line, "{")
		labels, values, closed := strings.Cut(rest, "} ")
		if !found || !closed || !strings.Contains(labels, `ptype="ping"`) {
			continue
		}
		number, _, _ := strings.Cut(values, " ")
		v, err := strconv.ParseFloat(number, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
			return counters{}, fmt.Errorf("cloudprober: %q, want a counter", line)
		}
		switch name {
		case "total":
			out.sent += v
		case "success":
			out.answered += v
		case "latency_bucket":
			_, bound, _ := strings.Cut(labels, `le="`)
			bound, _, _ = strings.Cut(bound, `"`)
			out.buckets[bound] += v
		}
	}
	if err := s.Err(); err != nil {
		return counters{}, fmt.Errorf("cloudprober: %w", err)
	}
	return out, nil
}

func (c counters) minus(before counters) counters {
	d := counters{c.sent - before.sent, c.answered - before.answered, map[string]float64{}}
	for bound, n := range c.buckets {
		d.buckets[bound] = n - before.buckets[bound]
	}
	return d
}

// within is the lowest bound that a share p of the answers do not exceed, in µs;
// empty if there is none.
func (c counters) within(p float64) string {
	best, text := math.Inf(1), ""
	for bound, n := range c.buckets {
		le, err := strconv.ParseFloat(bound, 64)
		if err == nil && c.answered > 0 && n >= p*c.answered && (le < best || text == "") {
			best, text = le, bound
		}
	}
	return text
}
