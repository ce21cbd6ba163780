package vision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

const helloTimeout = 20 * time.Second

// worker is a process transferlab-vision. It is used by one clip at a time.
type worker struct {
	cmd    *exec.Cmd
	in     *os.File
	out    *os.File
	stream *wire.Stream
	stderr tail
	exited chan struct{}
	engine string
	loaded wire.Load
	info   wire.Loaded
}

func (d *Detector) startWorker(ctx context.Context) (*worker, error) {
	w := &worker{exited: make(chan struct{})}
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start transferlab-vision: %w", err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		_, _ = theirIn.Close(), in.Close()
		return nil, fmt.Errorf("start transferlab-vision: %w", err)
	}
	w.in, w.out, w.stream = in, out, wire.NewStream(out, in)
	// The process outlives the clip that it is started for.
	w.cmd = d.command(context.WithoutCancel(ctx), d.o.Program)
	w.cmd.Stdin, w.cmd.Stdout, w.cmd.Stderr = theirIn, theirOut, &w.stderr
	err = d.start(w.cmd)
	_, _ = theirIn.Close(), theirOut.Close()
	if err != nil {
		_, _ = in.Close(), out.Close()
		return nil, fmt.Errorf("start transferlab-vision: %w", err)
	}
	go func() {
		_ = w.cmd.Wait()
		close(w.exited)
	}()
	data, err := w.ask(ctx, helloTimeout, wire.TypeHello, func() error { return nil })
	if err != nil {
		w.end()
		return nil, fmt.Errorf("start transferlab-vision: %w", err)
	}
	var hello wire.Hello
	if err := json.Unmarshal(data, &hello); err != nil || hello.Version != wire.Version {
		w.end()
		return nil, fmt.Errorf("%s speaks version %d, want %d: both programs must be of one build", d.o.Program, hello.Version, wire.Version)
	}
	if hello.Engine == "" {
		w.end()
		return nil, fmt.Errorf("%s was built without OpenCV: run `task opencv`", d.o.Program)
	}
	w.engine = hello.Engine
	d.o.Log.Debug("worker started", "pid", w.cmd.Process.Pid, "engine", w.engine)
	return w, nil
}

// errFault is an answer that says that there is none. The worker goes on.
type errFault struct{ text string }

func (e errFault) Error() string { return e.text }

// errDied says that the worker is gone.
type errDied struct{ text string }

func (e errDied) Error() string { return e.text }

// ask sends something and returns the answer. The worker is gone afterwards unless the
// error is nil or errFault.
func (w *worker) ask(ctx context.Context, most time.Duration, want wire.Type, send func() error) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	stop := context.AfterFunc(limited, w.kill)
	err := send()
	var typ wire.Type
	var data []byte
	if err == nil {
		typ, data, err = w.stream.Read()
	}
	if !stop() {
		w.kill()
		<-w.exited
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, errDied{fmt.Sprintf("no answer within %s", most)}
	}
	switch {
	case err != nil:
	case typ == want:
		return data, nil
	case typ == wire.TypeFault:
		var f wire.Fault
		if err = json.Unmarshal(data, &f); err == nil {
			return nil, errFault{f.Text}
		}
	default:
		err = fmt.Errorf("answer of type %q, want %q", byte(typ), byte(want))
	}
	// Its output ends before it does: what it had to say is on its way.
	select {
	case <-w.exited:
	case <-time.After(time.Second):
		w.kill()
		<-w.exited
		return nil, errDied{err.Error()}
	}
	return nil, errDied{w.last()}
}

// last says how the worker ended.
func (w *worker) last() string {
	text := w.cmd.ProcessState.String()
	if reason := w.stderr.reason(); reason != "" {
		text += ": " + reason
	}
	return text
}

// killed reports whether somebody from outside ended it.
func (w *worker) killed() bool {
	status, ok := w.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && (status.Signal() == syscall.SIGKILL || status.Signal() == syscall.SIGTERM)
}

// load has the worker load a model, if it has not.
func (w *worker) load(ctx context.Context, l wire.Load, most time.Duration) error {
	if w.loaded == l {
		return nil
	}
	w.loaded = wire.Load{}
	data, err := w.ask(ctx, most, wire.TypeLoaded, func() error { return w.stream.WriteJSON(wire.TypeLoad, l) })
	var fault errFault
	var died errDied
	switch {
	case errors.As(err, &fault):
		return fmt.Errorf("%w: %s: %s", ErrModel, l.Name, fault.text)
	case errors.As(err, &died):
		if w.killed() {
			return fmt.Errorf("%w: while loading %s: %s", ErrCrashed, l.Name, died.text)
		}
		return fmt.Errorf("%w: %s: %s", ErrModel, l.Name, died.text)
	case err != nil:
		return err
	}
	info, err := wire.ParseLoaded(data)
	if err != nil {
		w.kill()
		return fmt.Errorf("%w: %w", ErrCrashed, err)
	}
	w.loaded, w.info = l, info
	return nil
}

// look has the worker look at a picture.
func (w *worker) look(ctx context.Context, p picture, threshold float32, most time.Duration) ([]wire.Object, error) {
	data, err := w.ask(ctx, most, wire.TypeObjects, func() error {
		return w.stream.Write(wire.TypeFrame, wire.FrameHead(p.width, p.height, threshold), p.pix)
	})
	var fault errFault
	var died errDied
	switch {
	case errors.As(err, &fault):
		return nil, fmt.Errorf("%w: %s: %s", ErrModel, w.loaded.Name, fault.text)
	case errors.As(err, &died):
		return nil, fmt.Errorf("%w: looking at frame %d: %s", ErrCrashed, p.sample, died.text)
	case err != nil:
		return nil, err
	}
	objects, err := wire.ParseObjects(data)
	if err != nil {
		w.kill()
		return nil, fmt.Errorf("%w: %w", ErrCrashed, err)
	}
	return objects, nil
}

func (w *worker) kill() { _ = w.cmd.Process.Kill() }

func (w *worker) alive() bool {
	select {
	case <-w.exited:
		return false
	default:
		return true
	}
}

// end lets the worker go and waits until it has.
func (w *worker) end() {
	_ = w.in.Close()
	select {
	case <-w.exited:
	case <-time.After(time.Second):
		w.kill()
		<-w.exited
	}
	_ = w.out.Close()
}
