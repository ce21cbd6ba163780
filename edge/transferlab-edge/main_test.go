package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge"
	"github.com/transferlab/transferlab/edge/spool"
	"github.com/transferlab/transferlab/schemas"
)

// lab answers what `check` asks and takes no clips: a gateway whose store is
// out of order.
func lab(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Transferlab-Time", fmt.Sprint(time.Now().UnixNano()))
		switch {
		case r.Header.Get("Authorization") != "Bearer right":
			http.Error(w, `{"title":"Unauthorized"}`, http.StatusUnauthorized)
		case r.URL.Path == "/v1/offload":
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(schemas.OffloadState{Slots: 3, Now: time.Now()})
		default:
			http.Error(w, `{"title":"Service Unavailable"}`, http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// config writes a configuration that hands everything over.
func config(t *testing.T, gateway, token, more string) string {
	t.Helper()
	// Not t.TempDir: a socket's path is short.
	dir, err := os.MkdirTemp("", "edge-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	files := map[string]string{"token": token, "edge.yaml": fmt.Sprintf(`name: garden
gateway: %s
token_file: token
spool: {dir: %s/spool, max_bytes: 100MB}
local: {enabled: false}
policy: {kind: cloud}
%s`, gateway, dir, more)}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "edge.yaml")
}

func noEnv(string) string { return "" }

func TestCheck(t *testing.T) {
	watched := t.TempDir()
	for _, c := range []struct {
		name, token, source string
		want                []string
	}{
		{"in order", "right", "source: {kind: directory, path: " + watched + "}", []string{
			"ok    config", "ok    programs   none needed", "ok    source     " + watched, "ok    spool", "ok    gateway", "3 detectors' slots",
		}},
		{"faults", "wrong", "source: {kind: file, path: /absent.mp4}\nmotion: {kind: gpio, line: 4, chip: /dev/absent}", []string{
			"FAIL  source", "set source.path to a video", "FAIL  sensor", "in the group gpio?", "ok    spool", "FAIL  gateway", "transferlab edge add NAME",
		}},
		{"no configuration", "", "colour: red", []string{"FAIL  config", "colour: there is no such field"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			err := check(t.Context(), config(t, lab(t), c.token, c.source), noEnv, &out)
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, out.String())
				}
			}
			failed := strings.Contains(out.String(), "FAIL")
			if failed != errors.Is(err, errNotInOrder) || (c.name != "in order" && !failed) {
				t.Errorf("%v for\n%s", err, out.String())
			}
			// The clock of the machine is what it is.
			for line := range strings.Lines(out.String()) {
				if c.name == "in order" && strings.HasPrefix(line, "FAIL") && !strings.Contains(line, "clock") {
					t.Error(line)
				}
			}
		})
	}
}

func TestCamerasThatAreListed(t *testing.T) {
	const list = "Available cameras\n-----------------\n0 : imx219 [3280x2464 10-bit RGGB] (/base/soc/i2c0mux/i2c@1/imx219@10)\n    Modes: 'SRGGB10_CSI2P' : 640x480 [206.65 fps]\n"
	if text, err := cameras(list, ""); err != nil || !strings.Contains(text, "imx219") {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := cameras(list, "1"); err == nil {
		t.Error("camera 1 was found")
	}
	if _, err := cameras("No cameras available!\n", "0"); err == nil {
		t.Error("a camera was found")
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"version"}, exitDone},
		{[]string{"bogus"}, exitUsage},
		{[]string{"run", "--config", "/absent/edge.yaml"}, exitUsage},
		{[]string{"check", "--config", "/absent/edge.yaml"}, exitFailure},
		{[]string{"status", "--config", config(t, "http://127.0.0.1:9", "right", "source: {kind: directory, path: /tmp}")}, exitFailure},
	} {
		var out, errs bytes.Buffer
		if code := execute(c.args, &out, &errs); code != c.code {
			t.Errorf("%v: %d, want %d: %s%s", c.args, code, c.code, out.String(), errs.String())
		}
		if out.Len()+errs.Len() == 0 {
			t.Errorf("%v said nothing", c.args)
		}
	}
}

// A file with motion, a lab that takes nothing: the clips are in the spool when
// the edge has ended, and status says so while it runs.
func TestRunKeepsClips(t *testing.T) {
	video := filepath.Join(t.TempDir(), "v.mp4")
	out, err := exec.CommandContext(t.Context(), "ffmpeg", "-loglevel", "error", "-filter_complex",
		"color=c=0x607060:s=640x360:r=20:d=5[b];color=c=white:s=64x96:r=20:d=5[m];[b][m]overlay=x='t*100':y=120:enable='between(t,2,3)'",
		"-c:v", "libx264", "-preset", "ultrafast", "-g", "10", video).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	path := config(t, lab(t), "right", "source: {kind: file, path: "+video+"}\nclip: {length: 1s, pre_roll: 1s}\n")
	cfg, err := edge.Load(path, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, cfg, newLog(cfg.LogLevel)) }()

	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for seen := false; !seen; <-tick.C {
		var text bytes.Buffer
		err := (&statusCmd{configFlag: configFlag{path}, JSON: true}).Run(ctx, console{&text})
		var s status
		if err == nil {
			err = json.Unmarshal(text.Bytes(), &s)
		}
		seen = err == nil && s.Online && s.Clips[spool.Decided]+s.Clips[spool.Uploading] == 1
		if ctx.Err() != nil {
			t.Fatalf("no clip in the spool: %v %s", err, text.String())
		}
	}
	var text bytes.Buffer
	if err := (&statusCmd{configFlag: configFlag{path}}).Run(ctx, console{&text}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "spool    1 clips") || !strings.Contains(text.String(), "uplink   online") {
		t.Errorf("%s", text.String())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	clips, err := filepath.Glob(filepath.Join(cfg.Spool.Dir, "clips", "*.ts"))
	if err != nil || len(clips) != 1 {
		t.Errorf("%v, %v: want one clip", clips, err)
	}
}
