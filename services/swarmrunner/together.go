package swarmrunner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

const (
	// comeLimit is how long after the start agents may take to find each other.
	comeLimit = 15 * time.Second
	// partLimit is how long they may take to be done after the last leecher.
	partLimit = 30 * time.Second
)

// conduct waits until every leecher of the trial has ended, wherever it is. ctx
// is the end of waiting.
func (j *job) conduct(ctx context.Context) error {
	if j.task.Agents == 1 {
		return wait(ctx, j.settled)
	}
	if j.hub != nil {
		j.invite(ctx)
		if wait(ctx, j.settled) == nil {
			j.hub.sayEnded(len(j.leechers))
		}
		return wait(ctx, j.hub.over)
	}
	k, err := j.join(ctx)
	if err != nil {
		// Its own leechers may get their file all the same.
		return errors.Join(err, wait(ctx, j.settled))
	}
	if wait(ctx, j.settled) == nil {
		k.say(note{Ended: len(j.leechers)})
	}
	if err := wait(ctx, k.over); err != nil {
		return err
	}
	select {
	case <-k.lost:
		return fmt.Errorf("the tracker's agent %s is gone: %w", j.cast.hub, k.why)
	default:
		return nil
	}
}

func wait(ctx context.Context, what <-chan struct{}) error {
	select {
	case <-what:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// invite lets the other agents in.
func (j *job) invite(ctx context.Context) {
	leechers := map[string]int{}
	for agent := range j.cast.address {
		leechers[agent] = 0
	}
	for _, r := range j.cast.leechers {
		leechers[r.agent]++
	}
	leechers[""] = leechers[j.task.Agent]
	delete(leechers, j.task.Agent)
	j.hub.serve(context.WithoutCancel(ctx), j.start.Key, leechers, j.start.At.Add(comeLimit), j.cast.receiver, func(ctx context.Context, c net.Conn) error {
		return sendCopy(ctx, c, j.content.data)
	})
}

// join makes this agent known to the hub.
func (j *job) join(ctx context.Context) (*link, error) {
	l, err := j.dialHub(ctx, forNotes, j.start.At.Add(comeLimit))
	if err != nil {
		return nil, err
	}
	k := newLink(l)
	j.mu.Lock()
	j.link = k
	j.mu.Unlock()
	return k, nil
}

func (j *job) dialHub(ctx context.Context, purpose string, until time.Time) (*line, error) {
	port := j.cast.ports[j.cast.hub]["hub"]
	if port == 0 {
		return nil, fmt.Errorf("agent %s, where the tracker is, does not say where it is reached", j.cast.hub)
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	return dialHub(ctx, func(ctx context.Context) (net.Conn, error) {
		return j.network.Dial(ctx, "tcp", netip.Addr{}, netip.AddrPortFrom(j.cast.address[j.cast.hub], port))
	}, j.start.Key, j.task.Agent, purpose)
}

// copied is what became of the plain copy.
type copied struct {
	begun    time.Time
	duration time.Duration
	verified time.Duration // with reading it for its SHA-256, after it was there; 0 if it was not read
	bytes    uint64
	status   string
	text     string
	from, to string // agents
}

// copyPlainly copies the content over one TCP connection, once nobody else is at
// it: what the network and this machine can do. It returns nil where it is not
// for this agent to say.
func (j *job) copyPlainly(ctx context.Context, sound bool) *copied {
	mine := j.cast.receiver == j.task.Agent
	c := &copied{begun: time.Now(), from: j.cast.hub, to: j.cast.receiver}
	var err error
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case !sound:
		err = errors.New("the swarm did not come to its end")
	default:
		limited, cancel := copyLimit(ctx)
		defer cancel()
		err = j.copyOnce(limited, c)
	}
	if !mine {
		if err != nil {
			j.log.Warn("the plain copy", "error", err)
		}
		return nil
	}
	switch {
	case err == nil:
		c.status = schemas.StatusOK
	case errors.Is(err, errWrongCopy):
		c.status, c.text = schemas.StatusCorrupt, err.Error()
	case errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		c.status, c.text = schemas.StatusTimeout, err.Error()
	case ctx.Err() != nil:
		c.status, c.text = schemas.StatusCancelled, err.Error()
	default:
		c.status, c.text = schemas.StatusError, err.Error()
	}
	return c
}

// copyLimit leaves a little of the trial's time: a copy that takes too long must
// not make a swarm that was done in time a failure.
func copyLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	end, limited := ctx.Deadline()
	if !limited {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end.Add(-min(2*time.Second, time.Until(end)/4)))
}

// copyOnce does this agent's part of the copy.
func (j *job) copyOnce(ctx context.Context, c *copied) error {
	mine := j.cast.receiver == j.task.Agent
	if j.task.Agents == 1 {
		return j.copyHere(ctx, c)
	}
	parting, cancel := context.WithTimeoutCause(ctx, partLimit, fmt.Errorf("the other agents were not done within %s", partLimit))
	defer cancel()
	if j.hub != nil {
		j.hub.sayLeft()
		if err := wait(parting, j.hub.left); err != nil {
			return err
		}
		if mine {
			return j.copyHere(ctx, c)
		}
		j.hub.askCopy()
		return wait(ctx, j.hub.copied)
	}
	j.link.say(note{Left: true})
	if !mine {
		return nil
	}
	select {
	case <-j.link.copy:
	case <-j.link.lost:
		return fmt.Errorf("the tracker's agent %s is gone: %w", j.cast.hub, j.link.why)
	case <-parting.Done():
		return context.Cause(parting)
	}
	defer j.link.say(note{Copied: true})
	l, err := j.dialHub(ctx, forCopy, time.Now().Add(comeLimit))
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	return j.receive(ctx, l, l.reader, c)
}

// copyHere is a copy with both ends at this agent.
func (j *job) copyHere(ctx context.Context, c *copied) error {
	from, to := j.addr, j.addr
	if j.task.Agents == 1 {
		from, to = homeAddress(true, 0), homeAddress(false, 0)
	}
	listener, err := openAt(from, func(at netip.AddrPort) (net.Listener, error) { return j.network.Listen(ctx, at) })
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer func() { _ = listener.Close() }()
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	var sending sync.WaitGroup
	var sendErr error
	sending.Go(func() {
		conn, err := listener.Accept()
		if err != nil {
			sendErr = err
			return
		}
		defer func() { _ = conn.Close() }()
		sendErr = sendCopy(ctx, conn, j.content.data)
	})
	at := netip.AddrPortFrom(from, portOf(listener.Addr()))
	conn, err := j.network.Dial(ctx, "tcp", to, at)
	if err != nil {
		_ = listener.Close()
		sending.Wait()
		return fmt.Errorf("connect: %w", err)
	}
	err = j.receive(ctx, conn, conn, c)
	_ = conn.Close()
	sending.Wait()
	if err != nil {
		return errors.Join(err, sendErr)
	}
	return nil
}

// copyChunk is what is read and written at a time, copyIdle how long nothing may
// come.
const (
	copyChunk = 256 << 10
	copyIdle  = 30 * time.Second
)

// sendCopy waits for the word to begin and sends the content.
func sendCopy(ctx context.Context, c net.Conn, content []byte) error {
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	extend := func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return c.SetDeadline(time.Now().Add(copyIdle))
	}
	if err := extend(); err != nil {
		return err
	}
	var word [1]byte
	if _, err := io.ReadFull(c, word[:]); err != nil {
		return fmt.Errorf("wait for the word to begin: %w", err)
	}
	for len(content) > 0 {
		if err := extend(); err != nil {
			return err
		}
		n, err := c.Write(content[:min(len(content), copyChunk)])
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		content = content[n:]
	}
	// The other closes when it has everything.
	if err := extend(); err != nil {
		return err
	}
	_, _ = c.Read(word[:])
	return nil
}

var errWrongCopy = errors.New("the copy is not what was sent")

// receive takes the time from the word to begin, which takes as long to get there
// as a connection does, to the last byte.
func (j *job) receive(ctx context.Context, c net.Conn, r io.Reader, result *copied) error {
	memory, err := newMemory(int64(j.section.Size))
	if err != nil {
		return err
	}
	defer func() {
		if err := memory.close(); err != nil {
			j.log.Warn("the plain copy", "error", err)
		}
	}()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	cause := func(err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("receive: %w", err)
	}
	result.begun = time.Now()
	result.bytes, err = fill(ctx, c, r, memory.data)
	result.duration = time.Since(result.begun)
	if err != nil {
		return cause(err)
	}
	sum, err := digest(ctx, memory.data)
	if err != nil {
		return err
	}
	result.verified = time.Since(result.begun)
	if sum != j.sum {
		return errWrongCopy
	}
	return nil
}

// fill gives the word to begin and reads until memory is full.
func fill(ctx context.Context, c net.Conn, r io.Reader, memory []byte) (got uint64, err error) {
	if _, err := c.Write([]byte{1}); err != nil {
		return 0, err
	}
	for len(memory) > 0 {
		if err := c.SetReadDeadline(time.Now().Add(copyIdle)); err != nil {
			return got, err
		}
		if ctx.Err() != nil {
			return got, context.Cause(ctx)
		}
		n, err := r.Read(memory[:min(len(memory), copyChunk)])
		memory = memory[n:]
		got += uint64(n)
		if err != nil && len(memory) > 0 {
			return got, err
		}
	}
	return got, nil
}
