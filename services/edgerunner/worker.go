package edgerunner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/edge"
	"github.com/transferlab/transferlab/edge/footage"
	"github.com/transferlab/transferlab/edge/spool"
	"github.com/transferlab/transferlab/edge/uplink"
	"github.com/transferlab/transferlab/edge/vision"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
)

// Worker executes the service's tasks.
type Worker struct {
	cfg  Config
	conn *bus.Conn
	log  *slog.Logger
}

var _ agent.Worker = (*Worker)(nil)

// NewWorker returns what executes the service's tasks.
func NewWorker(cfg Config, conn *bus.Conn, log *slog.Logger) *Worker {
	return &Worker{cfg: cfg, conn: conn, log: log}
}

// Prepare reads the section, makes the clips, and sets up every edge; it waits
// for detectors where somebody else than the edges shall look.
func (w *Worker) Prepare(ctx context.Context, task *schemas.Task) (agent.Job, error) {
	if err := task.Validate(); err != nil {
		return nil, err
	}
	var section schemas.Offload
	if err := json.Unmarshal(task.Section, &section); err != nil {
		return nil, fmt.Errorf("read the section of the task: %w", err)
	}
	section.SetDefaults()
	if err := section.Validate(); err != nil {
		return nil, err
	}
	state := w.cfg.State
	if state == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a folder for spools (--edge-state): %w", err)
		}
		state = filepath.Join(cache, "transferlab", "edge-runner")
	}
	made, err := footage.Make(ctx, filepath.Join(state, "clips"), spec(&section))
	if err != nil {
		return nil, fmt.Errorf("make the clips: %w", err)
	}
	j := &job{log: w.log, cfg: w.cfg, conn: w.conn, task: task, section: &section, made: made}
	spools := filepath.Join(state, "spools")
	if err := os.MkdirAll(spools, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for spools: %w", err)
	}
	if j.dir, err = os.MkdirTemp(spools, "trial-"); err != nil {
		return nil, fmt.Errorf("make a folder for spools: %w", err)
	}
	if err := j.prepare(ctx); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// spec is what the clips of a section are like.
func spec(o *schemas.Offload) footage.Spec {
	s := footage.Spec{
		Seed: 1, Scenes: o.Scenes, Length: time.Duration(o.Length), Bits: int64(float64(o.Size) * 8 / time.Duration(o.Length).Seconds()),
		Width: 1920, Height: 1080, Rate: 30,
	}
	switch o.Resolution {
	case "720p":
		s.Width, s.Height = 1280, 720
	case "360p":
		s.Width, s.Height = 640, 360
	}
	if len(s.Scenes) == 0 {
		s.Scenes = footage.Scenes()
	}
	s.Clips = len(s.Scenes)
	return s
}

// player is one client: an edge and what it stands on.
type player struct {
	client  schemas.Client
	took    time.Duration // for a clip, by the edge's detector
	name    string
	spool   *spool.Spool
	lab     *uplink.Client
	vision  *vision.Detector
	relay   *relay
	end     context.CancelFunc // of the relay
	station *edge.Station
	source  *schedule
	clips   map[string]*planned
}

func (j *job) prepare(ctx context.Context) error {
	for _, c := range j.task.Clients {
		p, err := j.player(ctx, c)
		if p != nil {
			j.players = append(j.players, p)
		}
		if err != nil {
			return err
		}
		if err := j.warm(ctx, p); err != nil {
			return fmt.Errorf("warm edge %d up: %w", c.Index, err)
		}
	}
	direct, err := uplink.New(uplink.Options{Gateway: j.cfg.Gateway, Token: j.cfg.Token, CAFile: j.cfg.CAFile, StoreAddr: j.cfg.Store, Log: j.log})
	if err != nil {
		return fmt.Errorf("reach the lab: %w", err)
	}
	j.direct = direct
	if j.section.Policy != schemas.PolicyLocal || j.section.Backlog > 0 {
		if err := j.awaitDetectors(ctx); err != nil {
			return err
		}
	}
	// Last: the detectors begin with them at once.
	return j.queueOthers(ctx)
}

// statusWarm is of clips that warmed an uplink up and that nobody has looked at.
const statusWarm = "warm"

// warm has an edge look at a clip and upload one, as it would have done before: a
// trial does not begin with a model that is not loaded, cold connections, and
// an edge that knows neither its own speed nor its uplink's.
func (j *job) warm(ctx context.Context, p *player) error {
	c := &j.made[0]
	f, err := os.Open(c.Path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	clip := schemas.Clip{
		ID: p.name + "-warm", Size: c.Size, SHA256: c.SHA256, Type: c.Type, Trigger: time.Now(), Length: c.Length, Detection: j.section.Detection(),
	}
	result := &schemas.Detections{Version: 1, Clip: clip.ID, Edge: j.cfg.Account, SHA256: c.SHA256, Where: schemas.WhereEdge, Status: statusWarm, Created: time.Now()}
	if p.vision != nil {
		begun := time.Now()
		seen, err := p.vision.Detect(ctx, f, clip)
		if err != nil {
			return err
		}
		p.took, result.Status = time.Since(begun), schemas.StatusOK
		result.Model, result.Sample, result.Frames, result.Labels = seen.Model, seen.Sample, seen.Frames, seen.Labels
	}
	_, err = p.lab.Upload(ctx, clip, f, uplink.Progress{}, result)
	return err
}

// detectorPatience is how long a trial waits for the lab's first detector.
const detectorPatience = 30 * time.Second

func (j *job) awaitDetectors(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, detectorPatience)
	defer cancel()
	for {
		state, err := j.direct.State(ctx)
		if err == nil && state.Slots > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("the lab has had no detector for %s: start one with `transferlab service detector`", detectorPatience), err)
		}
		_ = sleepUntil(ctx, time.Now().Add(250*time.Millisecond))
	}
}

func (j *job) player(ctx context.Context, c schemas.Client) (*player, error) {
	o := j.section
	p := &player{client: c, name: fmt.Sprintf("edge-%s-%d-%d-%d", j.task.Run, j.task.Trial, j.task.Attempt, c.Index), clips: map[string]*planned{}}
	var err error
	p.spool, err = spool.Open(ctx, spool.Options{Dir: filepath.Join(j.dir, fmt.Sprint(c.Index)), Log: j.log})
	if err != nil {
		return p, fmt.Errorf("open the spool of edge %d: %w", c.Index, err)
	}
	gateway, store := j.cfg.Gateway, j.cfg.Store
	if o.Uplink > 0 || o.RTT > 0 || o.OutageEvery > 0 {
		if gateway, store, err = j.shape(p); err != nil {
			return p, err
		}
	}
	p.lab, err = uplink.New(uplink.Options{
		Gateway: gateway, Token: j.cfg.Token, CAFile: j.cfg.CAFile, StoreAddr: store, Connections: o.Connections, Path: o.Path, Log: j.log,
	})
	if err != nil {
		return p, fmt.Errorf("reach the lab: %w", err)
	}
	if o.Policy == schemas.PolicyCloud {
		return p, nil
	}
	threads := 0
	if o.LocalCPU < 1 {
		threads = 1 // a part of this machine has no several processors
	}
	p.vision, err = vision.New(vision.Options{
		Threads: threads,
		Model:   o.Model, Sample: o.Sample, Threshold: o.Threshold, Slots: o.LocalSlots, CPU: float64(o.LocalCPU), Log: j.log,
	})
	if err != nil {
		return p, fmt.Errorf("detector of edge %d: %w", c.Index, err)
	}
	if err := p.vision.Warm(ctx); err != nil {
		return p, fmt.Errorf("detector of edge %d: %w", c.Index, err)
	}
	return p, nil
}

// shape puts a relay between the edge and both ways to the lab.
func (j *job) shape(p *player) (gateway, store string, err error) {
	ctx, end := context.WithCancel(context.Background())
	p.relay, p.end = newRelay(float64(j.section.Uplink)/8, time.Duration(j.section.RTT), j.log), end
	u, err := url.Parse(j.cfg.Gateway)
	if err != nil {
		return "", "", fmt.Errorf("--gateway: %w", err)
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	if u.Scheme == "https" {
		return "", "", errors.New("offload.uplink, offload.rtt, offload.outage_every: the emulated uplink cannot stand before an https gateway, whose certificate names another host: use links of emulated sites")
	}
	if u.Host, err = p.relay.to(ctx, address); err != nil {
		return "", "", err
	}
	if j.cfg.Store == "" {
		if j.section.Path == "direct" {
			return "", "", errors.New("offload.uplink, offload.rtt, offload.outage_every: want --store-address, so that uploads to the store take the emulated uplink too, or `path: gateway`")
		}
		return u.String(), "", nil
	}
	store, err = p.relay.to(ctx, j.cfg.Store)
	return u.String(), store, err
}

// Close implements agent.Job.
func (j *job) Close() error {
	var errs []error
	if j.direct != nil {
		j.direct.Close()
	}
	for _, p := range j.players {
		if p.lab != nil {
			p.lab.Close()
		}
		if p.vision != nil {
			errs = append(errs, p.vision.Close())
		}
		if p.spool != nil {
			errs = append(errs, p.spool.Close())
		}
		if p.relay != nil {
			p.end()
			p.relay.wait()
		}
	}
	return errors.Join(append(errs, os.RemoveAll(j.dir))...)
}
