package provisioner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/fleet"
)

// How long instances may take from running to being on the bus.
const bootPatience = 10 * time.Minute

// fleetName is a run's fleet's.
func fleetName(run uuid.UUID) string { return "run-" + run.String()[24:] }

func (p *place) fleetOptions() fleet.Options {
	o := fleet.Options{Dir: p.cfg.State, Name: fleetName(p.run), Run: p.run}
	if p.file != nil && p.file.Fleet != nil {
		o.Spec, o.Service = *p.file.Fleet, schemas.ServiceOf(p.file.Workload)
	}
	return o
}

// makeFleet starts the run's instances and waits until each has said, from where
// it should be, that it is there.
func (p *place) makeFleet(ctx context.Context) error {
	o := p.fleetOptions()
	user, password := p.cfg.AgentUser, p.cfg.AgentSecret
	if p.cfg.Users != nil {
		user = "fleet-" + o.Name
		var err error
		if password, err = p.cfg.Users.AddUser(user, bus.RoleAgent); err != nil {
			return fmt.Errorf("make the fleet's credentials: %w", err)
		}
	}
	o.Bus = p.cfg.fleetBus(user, password)
	if o.Spec.Bus != "" {
		o.Bus.URL = o.Spec.Bus
	}
	if o.Bus.URL == "" {
		return errors.New("instances could not reach the bus: start the lab with `transferlab up --advertise HOST`, or name the address in fleet.bus")
	}
	o.Progress = func(text string) { p.note(ctx, "%s", text) }
	d, err := fleet.Describe(o)
	if err != nil {
		return fmt.Errorf("plan the fleet: %w", err)
	}
	p.note(ctx, "%d instances in %s, estimated at %s an hour", d.Instances, strings.Join(d.Regions, ", "), d.Hourly)
	f, err := fleet.Up(ctx, o)
	if err != nil {
		return fmt.Errorf("start the fleet: %w", err)
	}
	var names []string
	for _, m := range f.Members {
		names = append(names, m.Agent)
	}
	p.note(ctx, "waiting for %d instances to join the bus", len(names))
	waiting, cancel := context.WithTimeoutCause(ctx, bootPatience, fmt.Errorf("not within %s of their start", bootPatience))
	defer cancel()
	if err := p.awaitAgents(waiting, names, f.Expect); err != nil {
		return err
	}
	p.say(ctx, func(s *schemas.Place) { s.Agents = names })
	return nil
}

// leaveFleet takes the run's fleet down, if there is one.
func (p *place) leaveFleet(ctx context.Context) error {
	o := p.fleetOptions()
	o.Progress = func(text string) { p.note(ctx, "%s", text) }
	summary, err := fleet.Down(ctx, o)
	if errors.Is(err, fleet.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take the fleet down: %w", err)
	}
	if p.cfg.Users != nil {
		if err := p.cfg.Users.RemoveUser("fleet-" + o.Name); err != nil {
			return fmt.Errorf("remove the fleet's credentials: %w", err)
		}
	}
	p.note(ctx, "the fleet is gone: %d instances ran %s in all, estimated at %s", len(summary.Instances), summary.Ran.Round(time.Second), summary.Cost)
	return p.recordInstances(ctx, summary)
}

// recordInstances tells what the fleet has used, as events like any other.
func (p *place) recordInstances(ctx context.Context, s *fleet.Summary) error {
	for _, i := range s.Instances {
		err := p.recorder.Record(&schemas.Event{
			Intended: i.Launched, Run: p.run, Attempt: 1, Workload: p.workload(), Service: ServiceName, Site: i.Site, Kind: schemas.KindInstance,
			Duration: i.Ran, Status: schemas.StatusOK,
			Attrs: []schemas.Attr{
				{Key: "region", Value: i.Region},
				{Key: "instance_id", Value: i.InstanceID},
				{Key: "instance_type", Value: i.Type},
			},
		})
		if err != nil {
			return err
		}
	}
	flush, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return p.recorder.Flush(flush)
}

// workload is the run's, as far as it is known: a fleet that an earlier start has
// left is taken down without its file.
func (p *place) workload() string {
	if p.file == nil {
		return "none"
	}
	return p.file.Workload
}
