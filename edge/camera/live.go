package camera

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/edge/motion"
)

// live is a source whose stream runs without a pause.
type live struct {
	o     Options
	stall time.Duration // without a byte the children are started again
	first time.Duration // wait after the first failure, doubled at each further one
	most  time.Duration
}

func newLive(o Options) *live {
	return &live{o: o, stall: 15 * time.Second, first: 500 * time.Millisecond, most: 30 * time.Second}
}

// errEnded is the regular end of a file.
var errEnded = errors.New("the video has ended")

// Run implements [Source].
func (l *live) Run(ctx context.Context, sink Sink) error {
	r := newRecorder(l.o, sink)
	defer r.writers.Wait()
	triggers := make(chan time.Time, 1)
	lines, stop := context.WithCancel(ctx)
	defer stop()
	group, lines := errgroup.WithContext(lines)
	if l.o.Motion.Kind == motion.KindGPIO {
		group.Go(func() error { return l.sense(lines, triggers) })
	}
	group.Go(func() error {
		defer stop()
		return l.keep(lines, r, triggers)
	})
	err := group.Wait()
	if ctx.Err() != nil || errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// keep runs the children, again and again.
func (l *live) keep(ctx context.Context, r *recorder, triggers chan time.Time) error {
	wait := l.first
	for {
		begun := time.Now()
		err := l.once(ctx, r, triggers)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if l.o.Source.Kind == KindFile {
			if err == nil {
				err = errEnded
			}
			return err
		}
		if time.Since(begun) > 2*l.most {
			wait = l.first
		}
		if err == nil {
			err = errors.New("the stream has ended")
		}
		l.o.Log.Error("the camera is started again", "error", err, "in", wait)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, l.most)
	}
}

// once runs the children until one ends.
func (l *live) once(ctx context.Context, r *recorder, triggers chan time.Time) error {
	p, err := plan(ctx, l.o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The encoder's end of each pipe is closed here once it has been started, so
	// that its exit is the end of the stream.
	var theirs, ours []*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			_ = f.Close()
		}
	}
	defer func() { closeAll(ours); closeAll(theirs) }()
	pipe := func() (reader, writer *os.File, err error) {
		if reader, writer, err = os.Pipe(); err != nil {
			return nil, nil, fmt.Errorf("open a pipe: %w", err)
		}
		return reader, writer, nil
	}
	video, videoEnd, err := pipe()
	if err != nil {
		return err
	}
	ours, theirs = append(ours, video), append(theirs, videoEnd)
	encoder := command(ctx, p.ffmpeg, p.args)
	encoder.Stdout = videoEnd
	var pictures *os.File
	if l.o.Motion.Pictures() {
		reader, writer, err := pipe()
		if err != nil {
			return err
		}
		pictures, ours, theirs = reader, append(ours, reader), append(theirs, writer)
		encoder.ExtraFiles = []*os.File{writer}
	}
	var feeder *exec.Cmd
	switch {
	case p.feeder != "":
		reader, writer, err := pipe()
		if err != nil {
			return err
		}
		theirs = append(theirs, reader, writer)
		feeder = command(ctx, p.feeder, p.feederArgs)
		feeder.Stdout, encoder.Stdin = writer, reader
	case p.input != "":
		reader, writer, err := pipe()
		if err != nil {
			return err
		}
		theirs = append(theirs, reader, writer)
		// A pipe holds as much without anyone reading.
		if _, err := io.WriteString(writer, p.input); err != nil {
			return fmt.Errorf("hand over the input's address: %w", err)
		}
		encoder.Stdin = reader
	}

	group, ctx := errgroup.WithContext(ctx)
	start := func(c *exec.Cmd) error {
		wait, err := run(c, stderr{name: base(c.Path), secrets: p.secrets, log: l.o.Log, ended: ctx.Done()})
		if err != nil {
			return err
		}
		group.Go(func() error {
			// Whoever ends first takes the others along: the encoder lives no longer
			// than the camera.
			defer cancel()
			return wait()
		})
		return nil
	}
	err = start(encoder)
	if err == nil && feeder != nil {
		err = start(feeder)
	}
	closeAll(theirs)
	theirs = nil
	if err != nil {
		cancel()
		_ = group.Wait()
		return err
	}
	if pictures != nil {
		group.Go(func() error {
			look(ctx, pictures, motion.New(l.o.Motion), l.o.Motion.MinArea, triggers, l.o.Log)
			return nil
		})
	}
	group.Go(func() error {
		err := l.record(ctx, r, video, triggers)
		if err != nil {
			cancel()
			return err
		}
		// The encoder is about to end by itself.
		time.AfterFunc(grace, cancel)
		return nil
	})
	return group.Wait()
}

// record reads the stream to its end.
func (l *live) record(ctx context.Context, r *recorder, video *os.File, triggers <-chan time.Time) error {
	r.restart(time.Now())
	defer func() { r.finish(time.Now()) }()
	buffer := make([]byte, 64<<10)
	for {
		if err := video.SetReadDeadline(time.Now().Add(l.stall)); err != nil {
			return fmt.Errorf("read the stream: %w", err)
		}
		n, err := video.Read(buffer)
		select {
		case at := <-triggers:
			r.trigger(at)
		default:
		}
		if n > 0 {
			r.read(ctx, time.Now(), buffer[:n])
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("the stream has been silent for %s", l.stall)
		case err != nil:
			return fmt.Errorf("read the stream: %w", err)
		}
	}
}

// look looks at pictures until their end.
func look(ctx context.Context, pictures io.Reader, d motion.Detector, least float64, triggers chan<- time.Time, log *slog.Logger) {
	picture := make([]byte, motion.Width*motion.Height)
	for {
		if _, err := io.ReadFull(pictures, picture); err != nil {
			return
		}
		at := time.Now()
		area := d.Look(picture)
		if area < least {
			continue
		}
		log.DebugContext(ctx, "motion", "area", area)
		select {
		case triggers <- at:
		default:
		}
	}
}

// sense waits for the sensor.
func (l *live) sense(ctx context.Context, triggers chan<- time.Time) error {
	line := l.o.Line
	if line == nil {
		var err error
		if line, err = motion.OpenLine(l.o.Motion); err != nil {
			return err
		}
	}
	defer func() {
		if err := line.Close(); err != nil {
			l.o.Log.Warn("close the sensor", "error", err)
		}
	}()
	for {
		at, err := line.Wait(ctx)
		if err != nil {
			return err
		}
		select {
		case triggers <- at:
		default:
		}
	}
}

// steps are the programs of a source with their arguments.
type steps struct {
	ffmpeg string
	args   []string
	// feeder gives what ffmpeg reads on its standard input, if there is one.
	feeder     string
	feederArgs []string
	input      string   // or this is on its standard input
	secrets    []string // never to be logged
}

// plan finds the programs and makes their arguments.
func plan(ctx context.Context, o Options) (steps, error) {
	programs, err := o.Source.Programs()
	if err != nil {
		return steps{}, err
	}
	c := o.Source
	p := steps{ffmpeg: programs.FFmpeg, feeder: programs.Rpicam}
	encode := true
	var in []string
	switch {
	case c.Kind == KindFile:
		codec := ""
		if c.Encoder == "" {
			if codec, err = probe(ctx, programs.FFprobe, c.Path); err != nil {
				return steps{}, err
			}
		}
		encode = codec != "h264"
		in = []string{"-re"}
		if c.Loop {
			in = append(in, "-stream_loop", "-1")
		}
		in = append(in, "-i", "file:"+c.Path)
	case c.Kind == KindRTSP:
		encode = false
		p.input = "ffconcat version 1.0\nfile '" + c.URL + "'\noption rtsp_transport tcp\noption timeout 10000000\n"
		p.secrets = secrets(c.URL)
		in = []string{
			"-f", "concat", "-safe", "0", "-protocol_whitelist", "pipe,fd,rtsp,rtsps,rtp,srtp,udp,tcp,tls,crypto,http,https",
			"-i", "pipe:0",
		}
	case programs.Rpicam != "":
		encode = false
		p.feederArgs = []string{
			"-t", "0", "-n", "--codec", "h264", "--inline", "--flush",
			"--width", fmt.Sprint(c.Width), "--height", fmt.Sprint(c.Height), "--framerate", fmt.Sprint(c.FPS),
			"--bitrate", fmt.Sprint(int64(c.Bitrate)), "--intra", fmt.Sprint(c.FPS), "-o", "-",
		}
		if c.Device != "" {
			p.feederArgs = append(p.feederArgs, "--camera", c.Device)
		}
		in = []string{"-f", "h264", "-framerate", fmt.Sprint(c.FPS), "-probesize", "32768", "-i", "pipe:0"}
	default:
		encode = c.Format != "h264"
		in = []string{"-f", "v4l2", "-framerate", fmt.Sprint(c.FPS), "-video_size", fmt.Sprintf("%dx%d", c.Width, c.Height)}
		if c.Format != "" {
			in = append(in, "-input_format", c.Format)
		}
		in = append(in, "-i", c.Device)
	}
	p.args = []string{"-hide_banner", "-nostats", "-loglevel", "error", "-fflags", "nobuffer"}
	key := o.Motion.Frames == motion.FramesKey || o.Motion.Frames == motion.FramesAuto && programs.Rpicam != ""
	if key && !encode {
		p.args = append(p.args, "-skip_frame", "nokey")
	}
	p.args = append(append(p.args, in...), "-map", "0:v:0", "-an", "-sn", "-dn")
	if encode {
		p.args = append(p.args, encoding(&c)...)
	} else {
		p.args = append(p.args, "-c:v", "copy")
	}
	if programs.Rpicam != "" {
		// A stream without a container has no times: frames come evenly, none waits
		// for a later one.
		p.args = append(p.args, "-bsf:v", fmt.Sprintf("setts=ts=N/(%d*TB)", c.FPS))
	}
	p.args = append(p.args, "-f", "mpegts", "-muxdelay", "0", "-muxpreload", "0", "-flush_packets", "1", "pipe:1")
	if o.Motion.Pictures() {
		// A tenth less than the interval: time stamps are rounded.
		interval := 0.9 / o.Motion.Rate
		p.args = append(p.args, "-map", "0:v:0", "-an", "-sn", "-dn", "-fps_mode", "passthrough",
			"-vf", fmt.Sprintf("select='isnan(prev_selected_t)+gte(t-prev_selected_t,%.4f)',scale=%d:%d:flags=area,format=gray", interval, motion.Width, motion.Height),
			"-f", "rawvideo", "-flush_packets", "1", "pipe:3")
	}
	return p, nil
}

// encoding is ffmpeg's for a stream with a key frame every second, none of whose
// frames waits for a later one.
func encoding(c *Config) []string {
	name := c.encoder(func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	})
	rate := fmt.Sprint(int64(c.Bitrate))
	args := []string{
		"-c:v", name, "-b:v", rate, "-maxrate", rate, "-bufsize", rate, "-g", fmt.Sprint(c.FPS), "-bf", "0",
		"-r", fmt.Sprint(c.FPS), "-s", fmt.Sprintf("%dx%d", c.Width, c.Height), "-pix_fmt", "yuv420p",
	}
	if name == "libx264" {
		args = append(args, "-preset", "ultrafast", "-tune", "zerolatency", "-sc_threshold", "0", "-keyint_min", fmt.Sprint(c.FPS))
	}
	return args
}

// Programs are the paths of what a source runs; empty for those that it does
// not need.
type Programs struct {
	FFmpeg, FFprobe, Rpicam string
}

// Programs finds them.
func (c *Config) Programs() (Programs, error) {
	var p Programs
	var errs []error
	find := func(path *string, name, cure string) {
		found, err := exec.LookPath(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("find the program %s: %w: %s", name, err, cure))
		}
		*path = found
	}
	if c.Kind == KindDirectory {
		return p, nil
	}
	ffmpeg, rpicam := "ffmpeg", "rpicam-vid"
	if c.Program != "" && (c.Kind != KindCamera || c.v4l2()) {
		ffmpeg = c.Program
	} else if c.Program != "" {
		rpicam = c.Program
	}
	find(&p.FFmpeg, ffmpeg, "install it (Debian's package ffmpeg) or set source.program")
	switch {
	case c.Kind == KindCamera && !c.v4l2():
		find(&p.Rpicam, rpicam, "install it (Raspberry Pi OS: rpicam-apps-lite, on a Raspberry Pi 5 rpicam-apps), or set source.device to a V4L2 device such as /dev/video0")
	case c.Kind == KindFile && c.Encoder == "":
		probe := "ffprobe"
		if dir, isDir := strings.CutSuffix(ffmpeg, "/ffmpeg"); isDir {
			probe = dir + "/ffprobe"
		}
		find(&p.FFprobe, probe, "it comes with ffmpeg")
	}
	return p, errors.Join(errs...)
}

// probe says how a file's video is encoded.
func probe(ctx context.Context, ffprobe, path string) (codec string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c := command(ctx, ffprobe, []string{"-v", "error", "-select_streams", "v:0", "-show_entries", "stream=codec_name", "-of", "csv=p=0", "file:" + path})
	out, err := c.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr[:min(len(exit.Stderr), 500)])))
		}
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	codec, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	if codec == "" {
		return "", fmt.Errorf("look at %s: no video in it", path)
	}
	return strings.Trim(codec, ", \r"), nil
}
