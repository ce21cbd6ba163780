package vision

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/edge/vision/internal/wire"
	"github.com/transferlab/transferlab/schemas"
)

// demuxers are ffmpeg's names for types of clips: what a clip is taken for is not left to
// its bytes, since ffmpeg knows formats that name other files to be opened.
func demuxers() map[string]string {
	return map[string]string{schemas.TypeMP4: "mp4", schemas.TypeMPEG: "mpegts", schemas.TypeH264: "h264", schemas.TypeMKV: "matroska"}
}

// picture is a decoded frame: 3 bytes (red, green, blue) a pixel.
type picture struct {
	sample        int
	width, height int
	pix           []byte
}

// shape is what pictures a model wants.
type shape struct {
	width, height int
	stretch       bool
}

func (s shape) filter() string {
	size := fmt.Sprintf("scale=%d:%d:flags=bilinear", s.width, s.height)
	if !s.stretch {
		size += ":force_original_aspect_ratio=decrease"
	}
	return size
}

// samples is the filter that picks the frame on show at every k/rate of the clip.
func samples(rate float64) string {
	return "fps=" + strconv.FormatFloat(rate, 'f', -1, 64) + ":round=up:start_time=0"
}

// queued is how many pictures may wait for the model: enough that neither waits for the
// other when one stumbles.
const queued = 4

// decoder is an ffmpeg at work on a clip.
type decoder struct {
	pictures chan picture
	free     chan []byte // pictures' memory that can be used again
	cmd      *exec.Cmd
	stderr   tail
	meter    *meter
	most     int // pictures
	wg       sync.WaitGroup

	// Good once wg is done.
	decoded         time.Time
	readErr, srcErr error
}

func (d *Detector) ffmpeg(ctx context.Context, clip *schemas.Clip, input, filter string, frames int) *exec.Cmd {
	threads := d.o.Threads
	if threads == 0 {
		threads = runtime.NumCPU()
	}
	if threads > 1 {
		// A thread for each processor leaves them idle whenever one waits for another's
		// part of the frame before: twice as many took a fifth off the time on two.
		threads = min(2*threads, maxThreads)
	}
	protocol, _, _ := strings.Cut(input, ":")
	args := []string{
		"-nostdin", "-hide_banner", "-v", "error", "-protocol_whitelist", protocol, "-max_pixels", strconv.Itoa(maxPixels),
		"-threads", strconv.Itoa(threads),
	}
	if d.o.Keyframes {
		args = append(args, "-skip_frame", "nokey")
	}
	args = append(args, "-f", demuxers()[clip.Type], "-i", input, "-map", "0:v:0", "-an", "-sn", "-dn",
		"-vf", filter, "-vsync", "passthrough", "-frames:v", strconv.Itoa(frames),
		"-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1")
	return d.command(ctx, d.o.FFmpeg, args...)
}

// decode starts decoding. The context ends it; wait must be called in any case.
func (d *Detector) decode(ctx context.Context, cancel context.CancelCauseFunc, src *source, clip *schemas.Clip, rate float64, want shape) (*decoder, error) {
	most := int(min(math.Ceil(d.o.MaxLength.Seconds()*rate), schemas.MaxDetectionFrames))
	dec := &decoder{
		pictures: make(chan picture, queued), free: make(chan []byte, queued+2), most: most,
	}
	input := "pipe:0"
	if clip.Type == schemas.TypeMP4 {
		first, err := indexFirst(src.r)
		if err != nil {
			return nil, errors.Join(err, src.drain(ctx))
		}
		if !first {
			input = "file:/dev/stdin"
			if src.copy == nil {
				if err := src.keep(); err != nil {
					return nil, err
				}
			}
			if err := src.drain(ctx); err != nil {
				return nil, err
			}
		}
	}
	dec.cmd = d.ffmpeg(ctx, clip, input, samples(rate)+","+want.filter(), most+1)
	dec.cmd.Stderr = &dec.stderr
	out, err := dec.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start ffmpeg: %w", err)
	}
	var in io.WriteCloser
	if input == "pipe:0" {
		in, err = dec.cmd.StdinPipe()
	} else {
		dec.cmd.Stdin = src.copy
		_, err = src.copy.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = d.start(dec.cmd)
	}
	if err != nil {
		return nil, fmt.Errorf("start ffmpeg: %w", err)
	}
	dec.meter = newMeter()
	src.meter = dec.meter
	if in != nil {
		dec.wg.Go(func() {
			if dec.srcErr = src.pump(ctx, in, dec.meter.progress); dec.srcErr != nil {
				cancel(dec.srcErr)
			}
		})
	}
	dec.wg.Go(func() {
		dec.readErr = dec.read(ctx, out)
		dec.decoded = time.Now()
		if dec.readErr != nil {
			cancel(dec.readErr)
		}
		close(dec.pictures)
	})
	return dec, nil
}

// read takes pictures from ffmpeg's output.
func (dec *decoder) read(ctx context.Context, out io.Reader) error {
	r := bufio.NewReaderSize(out, 256<<10)
	for sample := 0; ; sample++ {
		var buf []byte
		select {
		case buf = <-dec.free:
		default:
		}
		p, err := readPPM(r, buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%w: decoder: %w", ErrUndecodable, err)
		}
		if sample >= dec.most {
			return fmt.Errorf("%w: more than %d frames to look at", ErrUndecodable, dec.most)
		}
		p.sample = sample
		dec.meter.progress()
		select {
		case dec.pictures <- p:
			continue
		default:
		}
		done := dec.meter.wait()
		select {
		case dec.pictures <- p:
			done()
		case <-ctx.Done():
			done()
			return nil
		}
	}
}

// watch ends a decoder that works without getting anywhere.
func (dec *decoder) watch(ctx context.Context, cancel context.CancelCauseFunc, most time.Duration) {
	tick := time.NewTicker(most / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if dec.meter.stuck() > most {
				cancel(fmt.Errorf("%w: decoding got nowhere for %s", ErrUndecodable, most))
				return
			}
		}
	}
}

// wait ends when ffmpeg has, and says whether it found a video.
func (dec *decoder) wait() (time.Duration, error) {
	dec.wg.Wait()
	busy := dec.meter.stop()
	err := dec.cmd.Wait()
	if dec.srcErr != nil {
		return busy, dec.srcErr
	}
	if dec.readErr != nil {
		return busy, dec.readErr
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		reason := dec.stderr.reason()
		if status, ok := dec.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			reason = "ffmpeg ended by signal " + status.Signal().String()
		}
		return busy, fmt.Errorf("%w: %s", ErrUndecodable, reason)
	}
	return busy, nil
}

// readPPM reads a picture in ffmpeg's binary PPM into buf, if that is large enough. The
// error is io.EOF at the end between two pictures.
func readPPM(r *bufio.Reader, buf []byte) (picture, error) {
	var p picture
	magic, err := r.ReadSlice('\n')
	if err == io.EOF && len(magic) == 0 {
		return p, io.EOF
	}
	if err != nil || string(magic) != "P6\n" {
		return p, errors.New("its output is no picture")
	}
	number := func() int {
		n, digits := 0, 0
		for digits < 6 {
			c, err := r.ReadByte()
			if err != nil {
				return -1
			}
			if c == ' ' || c == '\n' {
				break
			}
			if c < '0' || c > '9' {
				return -1
			}
			n = 10*n + int(c-'0')
			digits++
		}
		return n
	}
	p.width, p.height = number(), number()
	depth := number()
	if p.width < 1 || p.width > wire.MaxSide || p.height < 1 || p.height > wire.MaxSide || depth != 255 {
		return p, errors.New("its output is no picture of the right size")
	}
	if size := 3 * p.width * p.height; cap(buf) < size {
		p.pix = make([]byte, size)
	} else {
		p.pix = buf[:size]
	}
	if _, err := io.ReadFull(r, p.pix); err != nil {
		return p, io.ErrUnexpectedEOF
	}
	return p, nil
}

// fullSize decodes one sample of the clip again, at the size it has, up to maxAnnotated.
func (d *Detector) fullSize(ctx context.Context, copy *os.File, clip *schemas.Clip, rate float64, sample int) (picture, error) {
	if _, err := copy.Seek(0, io.SeekStart); err != nil {
		return picture{}, err
	}
	filter := fmt.Sprintf("%s,select=eq(n\\,%d),scale=min(iw\\,%d):min(ih\\,%d):flags=bilinear:force_original_aspect_ratio=decrease",
		samples(rate), sample, maxAnnotated, maxAnnotated)
	cmd := d.ffmpeg(ctx, clip, "file:/dev/stdin", filter, 1)
	cmd.Stdin = copy
	var stderr tail
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return picture{}, err
	}
	if err := cmd.Start(); err != nil {
		return picture{}, err
	}
	p, err := readPPM(bufio.NewReaderSize(out, 256<<10), nil)
	_, _ = io.Copy(io.Discard, out)
	if waited := cmd.Wait(); err != nil || waited != nil {
		return picture{}, fmt.Errorf("%w: decode frame %d again: %s", ErrUndecodable, sample, stderr.reason())
	}
	return p, nil
}
