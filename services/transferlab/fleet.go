package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/transferlab/transferlab/services/internal/fleet"
)

// fleetCmd is `transferlab fleet`.
type fleetCmd struct {
	Up   fleetUpCmd   `cmd:"" help:"Start a fleet, or go on with one that was interrupted."`
	Ls   fleetLsCmd   `cmd:"" help:"List fleets, and what exists of them."`
	Down fleetDownCmd `cmd:"" help:"Remove a fleet and everything of it."`
}

// fleetBusFlags say how instances join a bus.
type fleetBusFlags struct {
	Bus     string `name:"bus" help:"Address of the bus as instances reach it: tls://host:port; fleet.bus of the file if not given." env:"TRANSFERLAB_FLEET_BUS" placeholder:"URL"`
	BusCA   string `name:"bus-ca" help:"Its certificate authority (PEM); the public ones if not given." env:"TRANSFERLAB_FLEET_BUS_CA" type:"existingfile" placeholder:"FILE"`
	BusUser string `name:"bus-user" help:"User made for this fleet; the password comes from TRANSFERLAB_FLEET_BUS_PASSWORD." env:"TRANSFERLAB_FLEET_BUS_USER" placeholder:"NAME"`
}

func (f *fleetBusFlags) access() (fleet.BusAccess, error) {
	a := fleet.BusAccess{URL: f.Bus, User: f.BusUser, Password: os.Getenv("TRANSFERLAB_FLEET_BUS_PASSWORD")}
	if f.BusCA != "" {
		pem, err := os.ReadFile(f.BusCA)
		if err != nil {
			return a, fmt.Errorf("read certificate authority of the bus: %w", err)
		}
		a.CA = string(pem)
	}
	return a, nil
}

type fleetUpCmd struct {
	File     string        `arg:"" help:"Experiment file (YAML) with a fleet."`
	Name     string        `help:"Name of the fleet; the experiment's if not given."`
	DryRun   bool          `name:"dry-run" help:"Print the plan, what instances would run and what it would cost; call nothing."`
	Lifetime time.Duration `help:"Instances end themselves after this long, whatever becomes of the lab." default:"4h"`

	fleetBusFlags
}

func (f *fleetUpCmd) options(c *cli) (fleet.Options, error) {
	_, e, err := readExperiment(f.File)
	if err != nil {
		return fleet.Options{}, err
	}
	if e.Fleet == nil {
		return fleet.Options{}, usage("%s: fleet: missing, want the sites and the agent of a fleet", f.File)
	}
	name := f.Name
	if name == "" {
		name = strings.TrimRight(e.Name[:min(len(e.Name), 24)], "-")
	}
	access, err := f.access()
	if err != nil {
		return fleet.Options{}, err
	}
	if f.DryRun {
		// A plan can be shown before there are credentials.
		if access.User == "" {
			access.User = "fleet-" + name
		}
		if access.Password == "" {
			access.Password = "(hidden)"
		}
	}
	return fleet.Options{
		Dir: c.Dir, Name: name, Spec: *e.Fleet, Bus: access, Lifetime: f.Lifetime, Progress: func(text string) { say("%s", text) },
	}, nil
}

func (f *fleetUpCmd) Run(ctx context.Context, c *cli) error {
	options, err := f.options(c)
	if err != nil {
		return err
	}
	d, err := fleet.Describe(options)
	if err != nil {
		return fleetError(err)
	}
	if f.DryRun {
		if c.JSON {
			return show(os.Stdout, d)
		}
		printPlan(d)
		return nil
	}
	for _, w := range d.Warnings {
		say("warning: %s", w)
	}
	say("%d instances in %s: %s an hour (%s)", d.Instances, strings.Join(d.Regions, ", "), d.Hourly, d.Prices)
	up, err := fleet.Up(ctx, options)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: `fleet up` goes on with fleet %s, `fleet down %s` removes it", options.Name, options.Name)
		}
		var wrong *fleet.UsageError
		if !errors.As(err, &wrong) {
			err = fmt.Errorf("%w\n`fleet up` goes on with fleet %s, `fleet down %s` removes what there is of it", err, options.Name, options.Name)
		}
		return fleetError(err)
	}
	if c.JSON {
		return show(os.Stdout, up)
	}
	fmt.Printf("fleet %s is up as %s\n", up.Name, up.ID)
	printMembers(up)
	return nil
}

// fleetError gives what was asked for wrongly the exit code of that.
func fleetError(err error) error {
	var wrong *fleet.UsageError
	if errors.As(err, &wrong) {
		return usage("%v", err)
	}
	return err
}

func printPlan(d *fleet.Description) {
	if d.Resumes != "" {
		fmt.Printf("fleet %s is there already as %s: up goes on with it\n", d.Name, d.Resumes)
	}
	fmt.Printf("fleet %s: %d instances in %s\n", d.Name, d.Instances, strings.Join(d.Regions, ", "))
	for _, s := range d.Steps {
		fmt.Printf("  %-14s %s\n", s.Region, s.Text)
	}
	for _, w := range d.Warnings {
		fmt.Printf("warning: %s\n", w)
	}
	fmt.Printf("estimate: %s an hour; %s if it lives for %s\n  (%s)\n", d.Hourly, d.Longest, d.Lifetime, d.Prices)
	for _, site := range slices.Sorted(maps.Keys(d.UserData)) {
		fmt.Printf("\nuser-data of site %s:\n", site)
		for line := range strings.Lines(d.UserData[site]) {
			fmt.Print("  | ", line)
		}
	}
}

func printMembers(f *fleet.Fleet) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SITE\tREGION\tINSTANCE\tTYPE\tPUBLIC\tPRIVATE\tAGENT")
	for _, m := range f.Members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Site, m.Region, m.InstanceID, m.Type, m.Public, m.Private, m.Agent)
	}
	_ = w.Flush()
}

type fleetLsCmd struct {
	Regions []string `help:"Also list what exists in these regions, whoever started it." placeholder:"REGION,…"`
	Profile string   `help:"Profile of the shared AWS configuration." env:"AWS_PROFILE"`
	Offline bool     `help:"Only what the journals say; call nothing."`
}

func (l *fleetLsCmd) Run(ctx context.Context, c *cli) error {
	fleets, err := fleet.List(c.Dir)
	if err != nil {
		return err
	}
	live := []fleet.Resource{}
	if !l.Offline {
		if live, err = l.live(ctx, fleets); err != nil {
			return fleetError(err)
		}
	}
	if c.JSON {
		if fleets == nil {
			fleets = []fleet.Fleet{}
		}
		return show(os.Stdout, map[string]any{"fleets": fleets, "live": live})
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FLEET\tID\tSTATE\tCREATED\tINSTANCES\tREGIONS\tUSED")
	for _, f := range fleets {
		used := ""
		if f.Summary != nil {
			used = fmt.Sprintf("%.0f instance-seconds, %s", f.Summary.Ran.Seconds(), f.Summary.Cost)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", f.Name, f.ID, f.State, f.Created.Local().Format(time.DateTime), len(f.Members), strings.Join(f.Regions(), ","), used)
	}
	if !l.Offline {
		fmt.Fprintf(w, "\nKIND\tREGION\tID\tFLEET\tSITE\tSTATE\tADDRESS\n")
		for _, r := range live {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Kind, r.Region, r.ID, r.Fleet, r.Site, r.State, r.Address)
		}
	}
	return w.Flush()
}

// live lists the regions of open fleets with each one's own profile, and those
// that were asked for.
func (l *fleetLsCmd) live(ctx context.Context, fleets []fleet.Fleet) ([]fleet.Resource, error) {
	wanted := map[string]map[string]bool{}
	add := func(profile string, regions ...string) {
		if wanted[profile] == nil {
			wanted[profile] = map[string]bool{}
		}
		for _, r := range regions {
			wanted[profile][r] = true
		}
	}
	for _, f := range fleets {
		if f.State != fleet.StateClosed {
			add(f.Spec.Profile, f.Regions()...)
		}
	}
	add(l.Profile, l.Regions...)
	all := []fleet.Resource{}
	for _, profile := range slices.Sorted(maps.Keys(wanted)) {
		some, err := fleet.Live(ctx, profile, slices.Sorted(maps.Keys(wanted[profile])))
		if err != nil {
			return nil, err
		}
		for _, r := range some {
			if !slices.Contains(all, r) {
				all = append(all, r)
			}
		}
	}
	return all, nil
}

type fleetDownCmd struct {
	Name    string        `arg:"" optional:"" help:"Name or id of the fleet."`
	All     bool          `help:"Every fleet of this lab and, with --regions, every fleet there, whoever started it."`
	Regions []string      `help:"Look through these regions too, for fleets this lab has no journal of." placeholder:"REGION,…"`
	Profile string        `help:"Profile of the shared AWS configuration, for fleets this lab has no journal of." env:"AWS_PROFILE"`
	Settle  time.Duration `help:"How long to look for what was asked for when the answer never came." default:"30s" env:"TRANSFERLAB_FLEET_SETTLE"`
}

func (d *fleetDownCmd) Run(ctx context.Context, c *cli) error {
	if (d.Name == "") != d.All {
		return usage("fleet down: want either a name or --all")
	}
	names, err := d.names(ctx, c)
	if err != nil {
		return fleetError(err)
	}
	summaries := map[string]*fleet.Summary{}
	var errs []error
	for _, name := range names {
		s, err := fleet.Down(ctx, fleet.Options{
			Dir: c.Dir, Name: name, Settle: d.Settle, Regions: d.Regions, Profile: d.Profile, Progress: func(text string) { say("%s", text) },
		})
		if err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("interrupted: `fleet down %s` goes on", name)
			}
			errs = append(errs, err)
			continue
		}
		summaries[name] = s
		if !c.JSON {
			fmt.Printf("fleet %s is gone: %d instances ran for %.0f s in all, %s (%s)\n", name, len(s.Instances), s.Ran.Seconds(), s.Cost, fleet.PricesAsOf)
		}
	}
	if c.JSON {
		errs = append(errs, show(os.Stdout, summaries))
	}
	return fleetError(errors.Join(errs...))
}

func (d *fleetDownCmd) names(ctx context.Context, c *cli) ([]string, error) {
	if !d.All {
		return []string{d.Name}, nil
	}
	fleets, err := fleet.List(c.Dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range fleets {
		if f.State != fleet.StateClosed {
			names = append(names, f.ID)
		}
	}
	live, err := fleet.Live(ctx, d.Profile, d.Regions)
	if err != nil {
		return nil, err
	}
	for _, r := range live {
		if !slices.Contains(names, r.Fleet) {
			names = append(names, r.Fleet)
		}
	}
	return names, nil
}
