package swarmrunner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/pace"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/swarmrunner/metainfo"
	"github.com/transferlab/transferlab/services/swarmrunner/peer"
	"github.com/transferlab/transferlab/services/swarmrunner/tracker"
	"github.com/transferlab/transferlab/services/swarmrunner/transport"
)

// job is one prepared task.
type job struct {
	worker  *Worker
	log     *slog.Logger
	task    *schemas.Task
	section *schemas.Swarm
	addr    netip.Addr // what this agent's sockets are bound to; peers alone on it have addresses of their own
	key     [32]byte   // of the content

	network     *transport.Network
	content     *store // where it is seeded
	torrent     *metainfo.Torrent
	sum         [32]byte
	tracker     *tracker.Server
	trackerPort uint16
	serving     sync.WaitGroup
	hub         *hub // where other agents come to
	leechers    []*member
	seeders     []*member

	cast  *cast
	token string
	start agent.Start

	lag    *hdrhistogram.Histogram
	before transport.Counters
	after  transport.Counters
	// counted tells why there are no counters, if so.
	counted  error
	counting time.Duration   // between the two
	used     transport.Usage // by this agent's sockets between the two
	told     tracker.Traffic // of the tracker until then

	mu      sync.Mutex
	link    *link // to the hub, once it is there
	ended   int   // leechers whose fate is known
	failed  int
	settled chan struct{} // closed when all have ended
}

func newJob(w *Worker, task *schemas.Task, section *schemas.Swarm, addr netip.Addr) *job {
	return &job{
		worker: w, log: w.log.With("run", task.Run, "trial", task.Trial), task: task, section: section, addr: addr,
		key: contentKey(task.Seed, task.Trial), lag: hdrhistogram.New(64, int64(time.Hour), 3), settled: make(chan struct{}),
	}
}

func (j *job) members() []*member { return slices.Concat(j.seeders, j.leechers) }

// plan gives leechers their arrivals.
func (j *job) plan() {
	arrivals := plan.Arrivals(j.task.Seed, j.task.Trial, len(j.cast.leechers), j.section)
	for _, m := range j.leechers {
		m.arrival = arrivals[m.number]
	}
	if len(j.leechers) == 0 {
		close(j.settled)
	}
}

// Run implements agent.Job.
func (j *job) Run(ctx context.Context, start agent.Start, record func(*schemas.Event) error, progress func(schemas.Progress)) (schemas.TaskResult, error) {
	j.start = start
	if j.cast == nil {
		if err := j.meet(ctx); err != nil {
			return schemas.TaskResult{}, err
		}
	}
	reported := make(chan struct{})
	over := make(chan struct{})
	go func() {
		defer close(reported)
		j.report(progress, over)
	}()
	swarmErr := j.swarm(ctx)
	j.verify(ctx)
	releaseErr := j.release()
	copied := j.copyPlainly(ctx, swarmErr == nil)
	close(over)
	<-reported

	e := &events{job: j, record: record}
	recordErr := e.all(copied)
	result := schemas.TaskResult{
		Issued: uint64(len(j.leechers)), Bytes: e.bytes, Errors: e.failed,
		LagP50: time.Duration(j.lag.ValueAtQuantile(50)), LagP99: time.Duration(j.lag.ValueAtQuantile(99)), LagMax: time.Duration(j.lag.Max()),
	}
	progress(j.progress())
	return result, errors.Join(swarmErr, releaseErr, recordErr, context.Cause(ctx))
}

// meet makes sense of the other agents, of which the start tells.
func (j *job) meet(ctx context.Context) error {
	if len(j.start.Key) == 0 {
		return errors.New("several agents take part, and they have no secret")
	}
	token := trackerToken(j.start.Key)
	if err := j.assemble(ctx, j.start.Peers, token); err != nil {
		return err
	}
	if j.cast.hub != j.task.Agent {
		return j.closeTracker()
	}
	j.tracker.SetToken(token)
	return nil
}

// swarm does what is timed, and returns when every peer of this agent has left.
// An error is the machinery's.
func (j *job) swarm(ctx context.Context) error {
	// What is to end with the last leecher, wherever it is.
	running, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop()

	begun, used := time.Now(), j.network.Usage()
	j.before, j.counted = j.network.Counters()
	conducted := make(chan error, 1)
	beside.Go(func() { conducted <- j.conduct(running) })
	for _, m := range j.seeders {
		if j.tracker != nil {
			// Nobody waits for the first announce of who has the file.
			if err := j.tracker.Register(j.torrent.InfoHash, peerID(j.key, true, m.number), j.reach(m), 0); err != nil {
				j.log.Warn("make a seeder known to the tracker", "error", err)
			}
		}
		m.tell(cmdStart)
	}
	for _, m := range j.leechers {
		beside.Go(func() { j.follow(running, m) })
	}
	beside.Go(func() { j.watch(running) })
	beside.Go(func() { j.faults(running) })
	beside.Go(func() { j.dispatch(running) })

	var err error
	select {
	case err = <-conducted:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		err = nil // the caller knows
		j.abort(ctx)
	}
	// A fault that takes its time must not come in the way of the end.
	stop()
	j.leave()
	if j.tracker != nil && j.task.Agents == 1 {
		// Nobody is left who could ask it: what is counted now is all.
		if err := j.stopTracker(); err != nil {
			j.log.Warn("stop the tracker", "error", err)
		}
	}
	if j.counted == nil {
		j.after, j.counted = j.network.Counters()
		j.used, j.counting = j.usage().Since(used), time.Since(begun)
	}
	if j.tracker != nil {
		j.told = j.tracker.Traffic()
	}
	return err
}

// reach is where others reach a peer.
func (j *job) reach(m *member) netip.AddrPort {
	if j.task.Agents == 1 {
		return m.address
	}
	return netip.AddrPortFrom(j.cast.address[j.task.Agent], m.address.Port())
}

// dispatch has every leecher come when it is due.
func (j *job) dispatch(ctx context.Context) {
	sleeper := pace.NewSleeper(true)
	defer func() {
		if err := sleeper.Close(); err != nil {
			j.log.Warn("close", "error", err)
		}
	}()
	defer context.AfterFunc(ctx, sleeper.Wake)()
	order := slices.Clone(j.leechers)
	slices.SortStableFunc(order, func(a, b *member) int { return cmp.Compare(a.arrival, b.arrival) })
	for _, m := range order {
		intended := j.start.At.Add(m.arrival)
		if !sleeper.Until(intended) {
			return
		}
		j.mu.Lock()
		open := m.status == ""
		m.begun = open
		j.mu.Unlock()
		if !open {
			continue
		}
		lag := time.Since(intended)
		if m.bad != nil {
			j.decide(m, schemas.StatusBadTorrent, m.bad.Error())
			continue
		}
		m.tell(cmdStart)
		// Beyond its range the histogram counts nothing: an hour is late enough.
		_ = j.lag.RecordValue(int64(min(max(lag, 0), time.Hour)))
	}
}

// follow waits for what becomes of a leecher.
func (j *job) follow(ctx context.Context, m *member) {
	select {
	case <-m.complete:
		j.decide(m, schemas.StatusOK, "")
		if j.section.OnComplete == "leave" {
			m.tell(cmdLeave)
		}
	case <-m.done:
		// It may have been complete just before.
		select {
		case <-m.complete:
			j.decide(m, schemas.StatusOK, "")
			return
		default:
		}
		m.mu.Lock()
		text := m.outcome.Err
		m.mu.Unlock()
		j.decide(m, schemas.StatusError, cmp.Or(text, "it ended by itself"))
	case <-ctx.Done():
	}
}

// decide notes what became of a leecher, unless that is known already, and
// reports whether it was not.
func (j *job) decide(m *member, status, text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if m.status != "" {
		return false
	}
	m.status, m.text, m.at = status, text, time.Now()
	j.ended++
	if status != schemas.StatusOK {
		j.failed++
	}
	if j.ended == len(j.leechers) {
		close(j.settled)
	}
	return true
}

// abort ends everything at once: the trial's time is over, or it was cancelled.
func (j *job) abort(ctx context.Context) {
	status, text := schemas.StatusCancelled, "the trial was cancelled"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		status, text = schemas.StatusTimeout, fmt.Sprint(context.Cause(ctx))
	}
	for _, m := range j.leechers {
		j.decide(m, status, text)
	}
	for _, m := range j.members() {
		m.tell(cmdStop)
	}
}

// Bounds on how often leechers are looked after.
const (
	watchLeast = 5 * time.Millisecond
	watchMost  = 250 * time.Millisecond
)

// watch gives up leechers that come to nothing.
func (j *job) watch(ctx context.Context) {
	patience := time.Duration(j.section.Patience)
	tick := time.NewTicker(min(max(patience/20, watchLeast), watchMost))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.settled:
			return
		case <-tick.C:
		}
		for _, m := range j.leechers {
			j.mu.Lock()
			waits := m.begun && m.status == ""
			j.mu.Unlock()
			if !waits {
				continue
			}
			p := m.now()
			if p.Last.IsZero() || time.Since(p.Last) < patience {
				continue
			}
			if status, text := giveUp(p, patience); j.decide(m, status, text) {
				m.tell(cmdLeave)
			}
		}
	}
}

// giveUp says why there was no progress.
func giveUp(p peer.Progress, patience time.Duration) (status, text string) {
	switch {
	case !p.Announced && p.Connected == 0:
		return schemas.StatusNoTracker, fmt.Sprintf("no answer of the tracker within %s", patience)
	case p.Sources > 0:
		return schemas.StatusStalled, fmt.Sprintf("no piece within %s, though %d of %d others had what was missing", patience, p.Sources, p.Connected)
	case p.Wrong > 0:
		return schemas.StatusCorrupt, fmt.Sprintf("%d pieces were wrong, and nobody else had them", p.Wrong)
	}
	return schemas.StatusNoPeers, fmt.Sprintf("no piece within %s: none of %d others had what was missing", patience, p.Connected)
}

// leave has every peer leave and waits for it, not for ever.
func (j *job) leave() {
	all := j.members()
	for _, m := range all {
		m.tell(cmdLeave)
	}
	late := time.NewTimer(leaveLimit + time.Second)
	defer late.Stop()
	killed := false
	for _, m := range all {
		if m.bad != nil {
			continue // it never was there
		}
		for waiting := true; waiting; {
			select {
			case <-m.done:
				waiting = false
			case <-late.C:
				if killed {
					j.log.Error("peers did not end; going on without them", "peer", m.name())
					return
				}
				killed = true
				for _, other := range all {
					other.tell(cmdStop)
				}
				late.Reset(killLimit)
			}
		}
	}
}

const progressEvery = 100 * time.Millisecond

func (j *job) report(progress func(schemas.Progress), over <-chan struct{}) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		progress(j.progress())
		select {
		case <-over:
			return
		case <-tick.C:
		}
	}
}

// progress counts leechers whose fate is known.
func (j *job) progress() schemas.Progress {
	j.mu.Lock()
	p := schemas.Progress{Done: uint64(j.ended), Total: uint64(len(j.leechers)), Errors: uint64(j.failed)}
	j.mu.Unlock()
	for _, m := range j.leechers {
		p.Bytes += uint64(m.have())
	}
	return p
}

// have is how many bytes of the file a peer has.
func (m *member) have() int64 {
	select {
	case <-m.done:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.outcome.Report.Have
	default:
		return m.now().Have
	}
}

// verify reads every finished file and compares it with what was seeded. It is
// done when all have left, and by no more than the machine has processors: in the
// middle of the swarm it would take from those that are not done yet, whose
// pieces have been checked one by one anyway.
func (j *job) verify(ctx context.Context) {
	free := make(chan struct{}, runtime.GOMAXPROCS(0))
	var reading sync.WaitGroup
	defer reading.Wait()
	for _, m := range j.leechers {
		if m.status != schemas.StatusOK {
			continue
		}
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return
		}
		reading.Go(func() {
			defer func() { <-free }()
			m.tell(cmdHash)
			if wait(ctx, m.hashed) != nil {
				return
			}
			m.life.mu.Lock()
			sum, err := m.sum, m.hashErr
			m.life.mu.Unlock()
			j.mu.Lock()
			defer j.mu.Unlock()
			switch {
			case err != nil:
				m.status, m.text = schemas.StatusError, fmt.Sprintf("read the finished file: %v", err)
			case sum != j.sum:
				m.status, m.text = schemas.StatusCorrupt, "the finished file is not what was seeded"
			default:
				return
			}
			j.failed++
		})
	}
}

// release gives back what the peers have taken.
func (j *job) release() error {
	var errs []error
	for _, m := range j.members() {
		if m.body != nil {
			errs = append(errs, m.close())
			m.body = nil
		}
	}
	return errors.Join(errs...)
}

// Close implements agent.Job.
func (j *job) Close() error {
	errs := []error{j.release()}
	if j.link != nil {
		errs = append(errs, j.link.close())
		j.link = nil
	}
	errs = append(errs, j.closeTracker())
	if j.network != nil {
		errs = append(errs, j.network.Close())
		j.network = nil
	}
	errs = append(errs, j.content.close())
	return errors.Join(errs...)
}

func (j *job) closeTracker() error {
	var errs []error
	if j.hub != nil {
		errs = append(errs, j.hub.close())
		j.hub = nil
	}
	if j.tracker != nil {
		errs = append(errs, j.stopTracker())
		j.tracker = nil
	}
	return errors.Join(errs...)
}

func (j *job) stopTracker() error {
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	err := j.tracker.Close(ctx)
	j.serving.Wait()
	return err
}
