package swarmrunner

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
	"github.com/transferlab/transferlab/services/swarmrunner/peer"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
)

const minPieceLength = metainfo.MinPieceLength

// RunPeer is the process of one peer: what it is told comes by standard input, at
// whose end it ends. It returns the exit code.
func RunPeer() int {
	p := &process{out: os.Stdout, network: transport.Host()}
	err := p.run(bufio.NewReaderSize(os.Stdin, lineBytes))
	if errors.Is(err, io.EOF) {
		return 0
	}
	p.say(word{Fault: err.Error()})
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// process is the inside of a child.
type process struct {
	out     io.Writer
	mu      sync.Mutex // of out
	network *transport.Network
	spec    spec
	content *store
	peer    *local
}

func (p *process) say(w word) {
	b, err := json.Marshal(w)
	if err != nil {
		b, _ = json.Marshal(word{Fault: err.Error()})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A parent that does not hear is gone, which the end of its orders says.
	_, _ = p.out.Write(append(b, '\n'))
}

// run does what it is told, until it is told nothing any more (io.EOF) or
// something that it cannot do.
func (p *process) run(in *bufio.Reader) error {
	for {
		b, err := readLine(in, maxOrder)
		if err != nil {
			return err
		}
		var o order
		if err := parseLine(b, &o); err != nil {
			return err
		}
		switch {
		case o.Spec != nil && p.peer == nil:
			if err := p.open(o.Spec); err != nil {
				return err
			}
		case o.Orders != nil && p.peer != nil && !p.peer.armed:
			p.arm(o.Orders)
		case o.Do != "" && p.peer != nil:
			p.do(o.Do)
		default:
			return fmt.Errorf("%w: an order out of place", errLine)
		}
	}
}

func (p *process) open(s *spec) error {
	p.spec = *s
	ctx := context.Background()
	var content []byte
	if s.Seeder {
		if len(s.Key) != 32 {
			return fmt.Errorf("%w: a key of %d bytes", errLine, len(s.Key))
		}
		var err error
		if p.content, err = newMemory(s.Size); err != nil {
			return err
		}
		if err := makeContent(ctx, [32]byte(s.Key), p.content.data); err != nil {
			return err
		}
		content = p.content.data
	}
	l, err := openLocal(ctx, p.network, *s, content)
	if err != nil {
		return err
	}
	p.peer = l
	p.say(word{Ready: &l.address})
	return nil
}

func (p *process) arm(o *orders) {
	var a armed
	if len(o.ID) != 20 {
		a.Error = fmt.Sprintf("an id of %d bytes", len(o.ID))
	} else if err := p.peer.arm(context.Background(), *o); errors.Is(err, errBadTorrent) {
		a.Bad = err.Error()
	} else if err != nil {
		a.Error = err.Error()
	}
	p.say(word{Armed: &a})
	if p.peer.armed {
		go p.tellEnd()
	}
}

func (p *process) do(c command) {
	p.peer.tell(c)
	switch {
	case !p.peer.armed:
	case c == cmdStart:
		begun := newBridge().out(p.peer.peer.Report().Begun)
		p.say(word{Begun: &begun})
		go p.tellProgress()
	case c == cmdHash:
		go func() {
			<-p.peer.hashed
			h := hashed{Sum: p.peer.sum[:], Took: p.peer.took}
			if p.peer.hashErr != nil {
				h.Error = p.peer.hashErr.Error()
			}
			p.say(word{Hash: &h})
		}()
	}
}

// How often a process says how far it is.
const (
	progressCoarse = 50 * time.Millisecond
	progressFine   = 2 * time.Millisecond
)

func (p *process) tellProgress() {
	every := progressCoarse
	if p.spec.Fine {
		every = progressFine
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last peer.Progress
	for {
		select {
		case <-p.peer.done:
			return
		case <-tick.C:
		}
		now := p.peer.now()
		if now == last {
			continue
		}
		last = now
		now.Last = newBridge().out(now.Last)
		p.say(word{Progress: &now})
	}
}

func (p *process) tellEnd() {
	select {
	case <-p.peer.complete:
		p.say(word{Complete: true})
	case <-p.peer.done:
		select {
		case <-p.peer.complete:
			p.say(word{Complete: true})
		default:
		}
	}
	<-p.peer.done
	o := p.peer.outcome
	convert(&o.Report, newBridge().out)
	// Errors are texts in Err and Refused by now.
	o.Report.Err, o.Report.TrackerError = nil, nil
	o.Own = p.network.Usage()
	p.say(word{Done: &o})
}
