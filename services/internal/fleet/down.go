package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/transferlab/transferlab/schemas"
)

// Usage is how long one instance ran.
type Usage struct {
	Site       string        `json:"site"`
	Region     string        `json:"region"`
	InstanceID string        `json:"instance_id"`
	Type       string        `json:"type"`
	Launched   time.Time     `json:"launched"`
	Ran        time.Duration `json:"ran_ns"`
}

// Summary is what a fleet has used.
type Summary struct {
	Instances []Usage       `json:"instances,omitempty"`
	Ran       time.Duration `json:"ran_ns"` // of all instances together
	Cost      Estimate      `json:"cost"`
}

// ending is a fleet on its way down.
type ending struct {
	teller
	id      string
	plan    *plan    // nil if nothing of it is on this machine
	journal *journal // nil likewise
	settle  time.Duration

	mu    sync.Mutex
	usage map[string]*Usage
}

// Down removes a fleet by its name or id, everything in every region of its
// plan and of o.Regions, and returns once listing shows that nothing is left.
// It goes on with an interrupted Up or Down. A fleet without a journal here is
// looked for by its id in o.Regions.
func Down(ctx context.Context, o Options) (*Summary, error) {
	o.setDefaults()
	for _, r := range o.Regions {
		if !regionName.MatchString(r) {
			return nil, &UsageError{fmt.Errorf("region %q, want one such as us-west-2", r)}
		}
	}
	if !unitName.MatchString(o.Name) {
		return nil, &UsageError{fmt.Errorf("fleet name %q, want lower-case letters, digits and hyphens", o.Name)}
	}
	r, err := find(o.Dir, o.Name)
	if errors.Is(err, ErrNotFound) && len(o.Regions) > 0 {
		d := &ending{id: o.Name, settle: o.Settle, teller: teller{tell: o.Progress}, usage: map[string]*Usage{}}
		if err := d.sweep(ctx, o.Profile, o.Regions); err != nil {
			return nil, err
		}
		return d.summary(), nil
	}
	if err != nil {
		return nil, err
	}
	unlock, err := lockName(o.Dir, r.plan.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	j, err := openJournal(filepath.Join(r.plan.dir, fileJournal))
	if err != nil {
		return nil, err
	}
	defer j.close()
	d := &ending{id: r.plan.ID, plan: r.plan, journal: j, settle: o.Settle, teller: teller{tell: o.Progress}, usage: map[string]*Usage{}}
	return d.run(ctx, o.Regions)
}

func (d *ending) run(ctx context.Context, more []string) (*Summary, error) {
	closed := state(d.journal.all()) == StateClosed
	if !closed {
		if err := d.journal.add(entry{Step: stepDown, Phase: phaseIntent}); err != nil {
			return nil, err
		}
	}
	for _, m := range members(d.journal.all()) {
		d.usage[m.InstanceID] = &Usage{Site: m.Site, Region: m.Region, InstanceID: m.InstanceID, Type: m.Type, Launched: m.Launched}
	}
	regions := regionsOf(&d.plan.Spec)
	for _, r := range more {
		if !slices.Contains(regions, r) {
			regions = append(regions, r)
		}
	}
	if err := d.sweep(ctx, d.plan.Spec.Profile, regions); err != nil {
		return nil, err
	}
	// The fleet's secrets end with it.
	leftovers := []string{fileAccess, fileAccess + ".new", filePlan + ".new"}
	for _, r := range regions {
		key := filepath.Base(d.plan.keyFile(r))
		leftovers = append(leftovers, key, key+".new")
	}
	for _, name := range leftovers {
		if err := removeIfThere(filepath.Join(d.plan.dir, name)); err != nil {
			return nil, fmt.Errorf("remove the fleet's secrets: %w", err)
		}
	}
	summary := d.summary()
	if closed {
		return summary, nil
	}
	return summary, d.journal.add(entry{Step: stepClosed, Phase: phaseDone, Summary: summary})
}

// sweep empties regions; a region that fails does not keep the others.
func (d *ending) sweep(ctx context.Context, profile string, regions []string) error {
	errs := make([]error, len(regions))
	var each sync.WaitGroup
	for i, region := range regions {
		each.Go(func() {
			c, err := connect(ctx, profile, region)
			if err == nil {
				err = d.region(ctx, c)
			}
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", region, err)
			}
		})
	}
	each.Wait()
	if err := errors.Join(errs...); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("fleet %s is not gone: %w", d.id, err)
	}
	return nil
}

func (d *ending) note(e entry) error {
	if d.journal == nil {
		return nil
	}
	return d.journal.add(e)
}

// quiet is when nothing that was asked for in the region can appear any more.
func (d *ending) quiet(region string) time.Time {
	if d.journal == nil {
		return time.Time{}
	}
	at := unanswered(d.journal.all(), region)
	if at.IsZero() {
		return at
	}
	// A clock that was set back must not make us wait for a day.
	if now := time.Now(); at.After(now) {
		at = now
	}
	return at.Add(d.settle)
}

// known are things that the journal has the service's word for and that may not
// be listed yet.
func (d *ending) known(region, step string) map[string]time.Time {
	if d.journal == nil {
		return nil
	}
	return created(d.journal.all(), region, step)
}

// region removes what is there, again and again until nothing is and nothing
// more can come. The order is the services': an instance holds its group, a
// group may be named by another.
func (d *ending) region(ctx context.Context, c *cloud) error {
	s := &sweeping{ending: d, cloud: c, seen: map[string]bool{}, quietAt: d.quiet(c.region)}
	var last error
	err := poll(ctx, endPatience, "remove the fleet from "+c.region, func(ctx context.Context) (bool, error) {
		var left int
		var err error
		// What has just been acted on is looked at again without a pause, a
		// few times: one thing's end often makes way for the next.
		for range 4 {
			s.acted = false
			if left, err = s.once(ctx); err != nil || !s.acted {
				break
			}
		}
		if err != nil && !retriable(err) {
			return false, err
		}
		last = err
		return err == nil && left == 0 && !time.Now().Before(s.quietAt), nil
	})
	if err != nil && last != nil && ctx.Err() == nil {
		return errors.Join(err, last)
	}
	return err
}

// retriable reports whether removing may just be too early.
func retriable(err error) bool {
	return slices.Contains([]string{
		"DependencyViolation", "InvalidGroup.InUse", "InvalidGroup.NotFound", "InvalidInstanceID.NotFound",
		"InvalidPermission.NotFound", "IncorrectInstanceState", "IncorrectState",
	}, code(err))
}

// sweeping is one region being emptied.
type sweeping struct {
	*ending
	*cloud
	seen    map[string]bool // ids that were listed at least once
	quietAt time.Time
	acted   bool // the last look ended something
}

// pending reports whether a thing that was never listed may still be there: it
// was made so lately that lists may not have it yet.
func (s *sweeping) pending(id string, made time.Time) bool {
	return !s.seen[id] && time.Now().Before(made.Add(s.settle))
}

// once takes one look and acts on it; left is how much is not gone yet.
func (s *sweeping) once(ctx context.Context) (left int, err error) {
	left, err = s.endInstances(ctx)
	if err != nil || left > 0 {
		return left, err
	}
	if left, err = s.endGroups(ctx); err != nil {
		return left, err
	}
	keys, err := s.endKeys(ctx)
	return left + keys, err
}

func (s *sweeping) endInstances(ctx context.Context) (left int, err error) {
	found, err := s.instances(ctx, tagFilter(TagFleet, s.id))
	if err != nil {
		return 0, err
	}
	// Tags may be known later than what carries them; the token never is.
	if s.plan != nil && time.Now().Before(s.quietAt) {
		var tokens []string
		for _, site := range s.plan.sites(s.region()) {
			tokens = append(tokens, token(s.id, site))
		}
		if len(tokens) > 0 {
			more, err := s.instances(ctx, filter("client-token", tokens...))
			if err != nil {
				return 0, err
			}
			found = append(found, more...)
		}
	}
	end := map[string]bool{}
	for i := range found {
		instance := &found[i]
		id := aws.ToString(instance.InstanceId)
		s.seen[id] = true
		s.account(instance)
		if gone(instance) {
			continue
		}
		left++
		if stateOf(instance) != types.InstanceStateNameShuttingDown {
			end[id] = true
		}
	}
	for id, made := range s.known(s.region(), stepRun) {
		if s.pending(id, made) {
			left++
			end[id] = true
		}
	}
	if len(end) == 0 {
		return left, nil
	}
	ids := slices.Sorted(maps.Keys(end))
	s.say("%s: ending %d instances", s.region(), len(ids))
	if err := s.note(entry{Region: s.region(), Step: stepTerminate, Phase: phaseIntent, IDs: ids}); err != nil {
		return left, err
	}
	_, err = s.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: ids})
	if code(err) == "InvalidInstanceID.NotFound" && len(ids) > 1 {
		// One that is not known makes the service refuse all of them.
		err = nil
		for _, id := range ids {
			_, one := s.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
			err = errors.Join(err, one)
		}
	}
	if err != nil {
		return left, fmt.Errorf("end instances %s: %w", strings.Join(ids, ", "), err)
	}
	s.acted = true
	s.ended(ids)
	return left, s.note(entry{Region: s.region(), Step: stepTerminate, Phase: phaseDone, IDs: ids})
}

func (s *sweeping) region() string { return s.cloud.region }

func (s *sweeping) endGroups(ctx context.Context) (left int, err error) {
	found, err := s.groups(ctx, tagFilter(TagFleet, s.id))
	if err != nil {
		return 0, err
	}
	named, err := s.groups(ctx, filter("group-name", resourceName(s.id)))
	if err != nil {
		return 0, err
	}
	ids := map[string]*types.SecurityGroup{}
	for _, list := range [][]types.SecurityGroup{found, named} {
		for i := range list {
			id := aws.ToString(list[i].GroupId)
			ids[id] = &list[i]
			s.seen[id] = true
		}
	}
	for id, made := range s.known(s.region(), stepGroup) {
		if ids[id] == nil && s.pending(id, made) {
			ids[id] = &types.SecurityGroup{}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		left++
		if err := s.endGroup(ctx, id, ids[id]); err != nil {
			return left, err
		}
	}
	return left, nil
}

func (s *sweeping) endGroup(ctx context.Context, id string, g *types.SecurityGroup) error {
	// A group cannot go while an instance is in it. Ours are gone from the
	// list by now; one that is not tells of a launch nobody knew of.
	inside, err := s.instances(ctx, filter("instance.group-id", id))
	if err != nil {
		return err
	}
	for i := range inside {
		instance := &inside[i]
		if gone(instance) || stateOf(instance) == types.InstanceStateNameShuttingDown {
			continue
		}
		if tag(instance.Tags, TagFleet) != s.id {
			return fmt.Errorf("instance %s is in the fleet's security group %s but not of the fleet: it keeps the group from being deleted", aws.ToString(instance.InstanceId), id)
		}
	}
	if len(g.IpPermissions) > 0 {
		if err := s.note(entry{Region: s.region(), Step: stepRevoke, Phase: phaseIntent, IDs: []string{id}}); err != nil {
			return err
		}
		_, err := s.ec2.RevokeSecurityGroupIngress(ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: aws.String(id), IpPermissions: g.IpPermissions})
		if err != nil {
			return fmt.Errorf("revoke the rules of security group %s: %w", id, err)
		}
	}
	s.say("%s: deleting security group %s", s.region(), id)
	if err := s.note(entry{Region: s.region(), Step: stepNoGroup, Phase: phaseIntent, IDs: []string{id}}); err != nil {
		return err
	}
	if _, err := s.ec2.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: aws.String(id)}); err != nil {
		return fmt.Errorf("delete security group %s: %w", id, err)
	}
	s.seen[id], s.acted = true, true
	return s.note(entry{Region: s.region(), Step: stepNoGroup, Phase: phaseDone, IDs: []string{id}})
}

func (s *sweeping) endKeys(ctx context.Context) (left int, err error) {
	names := map[string]bool{}
	for _, f := range []types.Filter{tagFilter(TagFleet, s.id), filter("key-name", resourceName(s.id))} {
		found, err := s.keys(ctx, f)
		if err != nil {
			return 0, err
		}
		for i := range found {
			names[aws.ToString(found[i].KeyName)] = true
			s.seen[aws.ToString(found[i].KeyPairId)] = true
		}
	}
	for id, made := range s.known(s.region(), stepKey) {
		if s.pending(id, made) {
			names[resourceName(s.id)] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		left++
		s.say("%s: deleting key pair %s", s.region(), name)
		if err := s.note(entry{Region: s.region(), Step: stepNoKey, Phase: phaseIntent, IDs: []string{name}}); err != nil {
			return left, err
		}
		if err := s.deleteKey(ctx, name); err != nil {
			return left, err
		}
		s.acted = true
		if err := s.note(entry{Region: s.region(), Step: stepNoKey, Phase: phaseDone, IDs: []string{name}}); err != nil {
			return left, err
		}
	}
	return left, nil
}

var endedAt = regexp.MustCompile(`\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)`)

// account keeps an instance's figures for the summary.
func (s *sweeping) account(i *types.Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.member(s.id, i)
	u := s.usage[m.InstanceID]
	if u == nil {
		u = &Usage{Site: m.Site, Region: m.Region, InstanceID: m.InstanceID, Type: m.Type, Launched: m.Launched}
		s.usage[m.InstanceID] = u
	}
	if u.Ran > 0 || !gone(i) && stateOf(i) != types.InstanceStateNameShuttingDown {
		return
	}
	// Ended before by itself or by somebody else: the service says when.
	end := time.Now()
	if found := endedAt.FindStringSubmatch(aws.ToString(i.StateTransitionReason)); found != nil {
		if at, err := time.Parse(time.DateTime, found[1]); err == nil {
			end = at
		}
	}
	u.Ran = max(end.Sub(u.Launched), 0)
}

// ended notes that instances were told to end now.
func (s *sweeping) ended(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if u := s.usage[id]; u != nil && u.Ran == 0 {
			u.Ran = max(time.Since(u.Launched), 0)
		}
	}
}

func (d *ending) summary() *Summary {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &Summary{}
	for _, id := range slices.Sorted(maps.Keys(d.usage)) {
		u := *d.usage[id]
		s.Instances = append(s.Instances, u)
		s.Ran += u.Ran
		s.Cost.add(u.Region, u.Type, 1, u.Ran)
	}
	return s
}

func sortedSites(f *schemas.Fleet) []string { return slices.Sorted(maps.Keys(f.Sites)) }

// Remove deletes what this machine keeps of a fleet that is gone.
func Remove(dir, id string) error {
	r, err := find(dir, id)
	if err != nil {
		return err
	}
	if state(r.entries) != StateClosed {
		return &UsageError{fmt.Errorf("fleet %s is not gone", id)}
	}
	if err := os.RemoveAll(r.plan.dir); err != nil {
		return fmt.Errorf("remove the journal of fleet %s: %w", id, err)
	}
	return nil
}
