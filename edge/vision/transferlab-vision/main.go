// Command transferlab-vision runs neural networks for package vision, which starts it
// and speaks with it over its standard input and output (package wire). It is a
// process of its own because OpenCV aborts the process on much that it does
// not like: then this one dies, and nothing else.
//
// build.sh builds it. Without the tag opencv it builds too, and says that it has no
// engine.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/edge/vision/internal/nets"
	"github.com/transferlab/transferlab/edge/vision/internal/wire"
)

// network is a model that has been loaded.
type network interface {
	// objects finds what is in a picture.
	objects(f wire.Frame) ([]wire.Object, error)
	close()
}

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintf(os.Stderr, "transferlab-vision is started by transferlab and transferlab-edge; it takes no arguments (engine: %q)\n", engine())
		os.Exit(2)
	}
	out, err := takeOutput()
	if err == nil {
		err = serve(os.Stdin, out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "transferlab-vision:", err)
		os.Exit(1)
	}
}

// takeOutput keeps the standard output for messages: what a library prints there
// goes to the standard error output instead.
func takeOutput() (*os.File, error) {
	fd, err := unix.Dup(unix.Stdout)
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	if err := unix.Dup2(unix.Stderr, unix.Stdout); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "messages"), nil
}

type message struct {
	typ  wire.Type
	data []byte
}

// serve answers until the input ends.
func serve(in io.Reader, out io.Writer) error {
	stream := wire.NewStream(in, out)
	if err := stream.WriteJSON(wire.TypeHello, wire.Hello{Version: wire.Version, Engine: engine()}); err != nil {
		return err
	}
	// Whoever started this may be gone while a picture is being looked at, which
	// can take long: the end of the input ends the process at once.
	messages := make(chan message)
	next := make(chan struct{})
	go func() {
		for {
			typ, data, err := stream.Read()
			if err == io.EOF {
				os.Exit(0)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "transferlab-vision:", err)
				os.Exit(1)
			}
			messages <- message{typ, data}
			<-next
		}
	}()
	var loaded network
	for {
		m := <-messages
		var err error
		switch m.typ {
		case wire.TypeLoad:
			if loaded != nil {
				loaded.close()
				loaded = nil
			}
			var answer wire.Loaded
			if loaded, answer, err = load(m.data); err == nil {
				err = stream.WriteJSON(wire.TypeLoaded, answer)
			} else {
				loaded = nil
				err = stream.WriteJSON(wire.TypeFault, fault(err))
			}
		case wire.TypeFrame:
			var objects []wire.Object
			if objects, err = look(loaded, m.data); err == nil {
				err = stream.WriteJSON(wire.TypeObjects, objects)
			} else {
				err = stream.WriteJSON(wire.TypeFault, fault(err))
			}
		default:
			err = fmt.Errorf("message of type %q, want a model or a picture", byte(m.typ))
		}
		if err != nil {
			return err
		}
		next <- struct{}{}
	}
}

// fault is an error short enough for a message.
func fault(err error) wire.Fault {
	const most = 4096
	text := err.Error()
	return wire.Fault{Text: text[:min(len(text), most)]}
}

func look(n network, data []byte) ([]wire.Object, error) {
	if n == nil {
		return nil, fmt.Errorf("no model is loaded")
	}
	f, err := wire.ParseFrame(data)
	if err != nil {
		return nil, err
	}
	return n.objects(f)
}

func load(data []byte) (network, wire.Loaded, error) {
	var l wire.Load
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, wire.Loaded{}, err
	}
	m, err := nets.Read(l)
	if err != nil {
		return nil, wire.Loaded{}, err
	}
	n, err := open(m, l.Threads)
	if err != nil {
		return nil, wire.Loaded{}, err
	}
	answer := wire.Loaded{
		SHA256: m.SHA256, Kind: m.Spec.Kind, Width: m.Spec.Width, Height: m.Spec.Height,
		Stretch: m.Spec.Fit == nets.FitStretch, Threshold: float32(m.Spec.Threshold),
	}
	// The engine notices many faults of a model only when it runs: better now than
	// with a clip in hand.
	blank := wire.Frame{Width: m.Spec.Width, Height: m.Spec.Height, Threshold: 0.5}
	blank.Pix = make([]byte, 3*blank.Width*blank.Height)
	if _, err := n.objects(blank); err != nil {
		n.close()
		return nil, wire.Loaded{}, fmt.Errorf("tried on an empty picture: %w", err)
	}
	return n, answer, nil
}
