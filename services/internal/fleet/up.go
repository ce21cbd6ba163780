package fleet

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/services/internal/lockfile"
)

// rising is a fleet on its way up.
type rising struct {
	*plan
	teller
	journal *journal
}

// Up starts a fleet, or goes on with the one that has the name already, and
// returns once every instance runs and may be reached by every other. An error
// leaves a fleet that can be gone on with or removed.
func Up(ctx context.Context, o Options) (*Fleet, error) {
	o.setDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	unlock, err := lockName(o.Dir, o.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, err := begin(&o)
	if err != nil {
		return nil, err
	}
	j, err := openJournal(filepath.Join(p.dir, fileJournal))
	if err != nil {
		return nil, err
	}
	defer j.close()
	u := &rising{plan: p, journal: j, teller: teller{tell: o.Progress}}
	if err := u.run(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("fleet %s is not up: %w", p.ID, err)
	}
	return p.fleet(j.all()), nil
}

func lockName(dir, name string) (func(), error) {
	if err := os.MkdirAll(fleetsDir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("create directory of fleets: %w", err)
	}
	unlock, err := lockfile.Take(filepath.Join(fleetsDir(dir), name+".lock"))
	if errors.Is(err, lockfile.ErrHeld) {
		return nil, fmt.Errorf("another process is working on fleet %s: %w", name, err)
	}
	return unlock, err
}

// begin returns the open fleet of the name, or a new one.
func begin(o *Options) (*plan, error) {
	r, err := find(o.Dir, o.Name)
	if errors.Is(err, ErrNotFound) {
		p := newPlan(o)
		return p, p.save()
	}
	if err != nil {
		return nil, err
	}
	if err := r.plan.same(o); err != nil {
		return nil, err
	}
	if state(r.entries) == StateEnding {
		return nil, &UsageError{fmt.Errorf("fleet %s is being removed: `fleet down %s` goes on with that", r.plan.ID, o.Name)}
	}
	return r.plan, nil
}

func (u *rising) run(ctx context.Context) error {
	// Nothing is asked for before all of it is known to be possible.
	for _, site := range sortedSites(&u.Spec) {
		if _, err := u.userData(site); err != nil {
			return err
		}
	}
	regions := regionsOf(&u.Spec)
	clouds := make([]*cloud, len(regions))
	for i, region := range regions {
		var err error
		if clouds[i], err = connect(ctx, u.Spec.Profile, region); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	var all []Member
	groups := make([]string, len(regions))
	starting, startCtx := errgroup.WithContext(ctx)
	for i, c := range clouds {
		starting.Go(func() error {
			group, members, err := u.region(startCtx, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.region, err)
			}
			mu.Lock()
			defer mu.Unlock()
			groups[i], all = group, append(all, members...)
			return nil
		})
	}
	if err := starting.Wait(); err != nil {
		return err
	}
	rules, err := betweenRules(all)
	if err != nil {
		return err
	}
	opening, openCtx := errgroup.WithContext(ctx)
	for i, c := range clouds {
		opening.Go(func() error {
			u.say("%s: letting the fleet's %d addresses in", c.region, len(all))
			_, err := u.step(c.region, stepBetween, groups[i], func() (entry, error) { return entry{}, c.authorize(openCtx, groups[i], rules) })
			return err
		})
	}
	if err := opening.Wait(); err != nil {
		return err
	}
	return u.journal.add(entry{Step: stepUp, Phase: phaseDone, Members: all})
}

// step takes one step unless the journal has its result.
func (u *rising) step(region, name, item string, take func() (entry, error)) (*entry, error) {
	if e := u.journal.done(region, name, item); e != nil {
		return e, nil
	}
	if err := u.journal.add(entry{Region: region, Step: name, Item: item, Phase: phaseIntent}); err != nil {
		return nil, err
	}
	e, err := take()
	e.Region, e.Step, e.Item, e.Phase = region, name, item, phaseDone
	if err != nil {
		if refused(err) {
			e = entry{Region: region, Step: name, Item: item, Phase: phaseRefuse, Error: err.Error()}
			return nil, errors.Join(err, u.journal.add(e))
		}
		return nil, err
	}
	return &e, u.journal.add(e)
}

// region takes a region's steps in order until its instances run.
func (u *rising) region(ctx context.Context, c *cloud) (group string, members []Member, err error) {
	images := map[string]string{}
	for _, site := range u.sites(c.region) {
		spec := u.Spec.Sites[site].Image
		e, err := u.step(c.region, stepImage, spec, func() (entry, error) {
			id, err := c.image(ctx, spec)
			return entry{IDs: []string{id}}, err
		})
		if err != nil {
			return "", nil, err
		}
		images[spec] = e.IDs[0]
	}
	if u.Spec.KeyPair {
		u.say("%s: key pair %s", c.region, resourceName(u.ID))
		if _, err := u.step(c.region, stepKey, "", func() (entry, error) { return u.keyPair(ctx, c) }); err != nil {
			return "", nil, err
		}
	}
	u.say("%s: security group %s", c.region, resourceName(u.ID))
	e, err := u.step(c.region, stepGroup, "", func() (entry, error) { return u.group(ctx, c) })
	if err != nil {
		return "", nil, err
	}
	group = e.IDs[0]
	rules, err := u.withinRules(group)
	if err != nil {
		return "", nil, err
	}
	if _, err := u.step(c.region, stepWithin, group, func() (entry, error) { return entry{}, c.authorize(ctx, group, rules) }); err != nil {
		return "", nil, err
	}
	var ids []string
	for _, site := range u.sites(c.region) {
		s := u.Spec.Sites[site]
		u.say("%s: %d × %s for site %s", c.region, s.Count, s.Type, site)
		e, err := u.step(c.region, stepRun, site, func() (entry, error) { return u.launch(ctx, c, site, images[s.Image], group) })
		if err != nil {
			return "", nil, err
		}
		ids = append(ids, e.IDs...)
	}
	// Not through step: what ran when the journal was written may have ended.
	members, err = u.await(ctx, c, ids)
	if err != nil {
		return "", nil, err
	}
	return group, members, u.journal.add(entry{Region: c.region, Step: stepAddresses, Phase: phaseDone, Members: members})
}

// image resolves an image as the file names it.
func (c *cloud) image(ctx context.Context, spec string) (string, error) {
	name, parameter := strings.CutPrefix(spec, "ssm:")
	if !parameter {
		return spec, nil
	}
	out, err := call(ctx, "resolve image "+spec, nil, func(ctx context.Context) (*ssm.GetParameterOutput, error) {
		return c.ssm.GetParameter(ctx, &ssm.GetParameterInput{Name: aws.String(name)})
	})
	if err != nil {
		return "", err
	}
	if out.Parameter == nil || !strings.HasPrefix(aws.ToString(out.Parameter.Value), "ami-") {
		return "", fmt.Errorf("resolve image %s: the parameter holds no image id", spec)
	}
	return aws.ToString(out.Parameter.Value), nil
}

// keyPair makes a key pair whose private key is on disk. One that is there
// without it was answered to a process that was killed: nobody has it and
// nothing uses it yet, so it is made anew.
func (u *rising) keyPair(ctx context.Context, c *cloud) (entry, error) {
	name, path := resourceName(u.ID), u.keyFile(c.region)
	for range 3 {
		found, err := c.keys(ctx, filter("key-name", name))
		if err != nil {
			return entry{}, err
		}
		if len(found) > 0 {
			if _, err := os.Stat(path); err == nil {
				return entry{IDs: []string{aws.ToString(found[0].KeyPairId)}}, nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return entry{}, err
			}
			if err := c.deleteKey(ctx, name); err != nil {
				return entry{}, err
			}
		}
		out, err := call(ctx, "create key pair", nil, func(ctx context.Context) (*ec2.CreateKeyPairOutput, error) {
			return c.ec2.CreateKeyPair(ctx, &ec2.CreateKeyPairInput{
				KeyName: aws.String(name), KeyType: types.KeyTypeEd25519, KeyFormat: types.KeyFormatPem,
				TagSpecifications: u.tagged(types.ResourceTypeKeyPair, ""),
			})
		})
		if code(err) == "InvalidKeyPair.Duplicate" {
			// Made by an attempt whose answer was lost: its private key is too.
			if err := c.deleteKey(ctx, name); err != nil {
				return entry{}, err
			}
			continue
		}
		if err != nil {
			return entry{}, err
		}
		if err := writeDurable(path, []byte(aws.ToString(out.KeyMaterial))); err != nil {
			return entry{}, err
		}
		return entry{IDs: []string{aws.ToString(out.KeyPairId)}}, nil
	}
	return entry{}, fmt.Errorf("create key pair %s: it is there again whenever it was deleted", name)
}

func (c *cloud) deleteKey(ctx context.Context, name string) error {
	_, err := call(ctx, "delete key pair", nil, func(ctx context.Context) (*ec2.DeleteKeyPairOutput, error) {
		return c.ec2.DeleteKeyPair(ctx, &ec2.DeleteKeyPairInput{KeyName: aws.String(name)})
	})
	if code(err) == "InvalidKeyPair.NotFound" {
		return nil
	}
	return err
}

func (p *plan) tagged(kind types.ResourceType, site string) []types.TagSpecification {
	name, run := resourceName(p.ID), ""
	if site != "" {
		name = agentPrefix(p.ID, site)
	}
	if !isZero(p.Run) {
		run = p.Run.String()
	}
	return []types.TagSpecification{{ResourceType: kind, Tags: tags("Name", name, TagFleet, p.ID, TagSite, site, TagRun, run)}}
}

// group makes the fleet's security group in the default VPC, or finds it.
func (u *rising) group(ctx context.Context, c *cloud) (entry, error) {
	vpcs, err := call(ctx, "find the default VPC", nil, func(ctx context.Context) (*ec2.DescribeVpcsOutput, error) {
		return c.ec2.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{Filters: []types.Filter{filter("is-default", "true")}})
	})
	if err != nil {
		return entry{}, err
	}
	if len(vpcs.Vpcs) == 0 {
		return entry{}, errors.New("the account has no default VPC in this region (aws ec2 create-default-vpc makes one)")
	}
	vpc, name := aws.ToString(vpcs.Vpcs[0].VpcId), resourceName(u.ID)
	out, err := call(ctx, "create security group", nil, func(ctx context.Context) (*ec2.CreateSecurityGroupOutput, error) {
		return c.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{
			GroupName: aws.String(name), Description: aws.String("members of transferlab fleet " + u.ID), VpcId: aws.String(vpc),
			TagSpecifications: u.tagged(types.ResourceTypeSecurityGroup, ""),
		})
	})
	if err == nil {
		return entry{IDs: []string{aws.ToString(out.GroupId)}}, nil
	}
	if code(err) != "InvalidGroup.Duplicate" {
		return entry{}, err
	}
	var id string
	err = poll(ctx, settlePatience, "find security group "+name, func(ctx context.Context) (bool, error) {
		found, err := c.groups(ctx, filter("group-name", name), filter("vpc-id", vpc))
		if err != nil || len(found) == 0 {
			return false, err
		}
		if owner := tag(found[0].Tags, TagFleet); owner != u.ID {
			return false, fmt.Errorf("security group %s is there already and is not this fleet's", name)
		}
		id = aws.ToString(found[0].GroupId)
		return true, nil
	})
	return entry{IDs: []string{id}}, err
}

// launch starts a site's instances, once however often it is called.
func (u *rising) launch(ctx context.Context, c *cloud, site, image, group string) (entry, error) {
	script, err := u.userData(site)
	if err != nil {
		return entry{}, err
	}
	s := u.Spec.Sites[site]
	input := &ec2.RunInstancesInput{
		ImageId: aws.String(image), InstanceType: types.InstanceType(s.Type),
		MinCount: aws.Int32(int32(s.Count)), MaxCount: aws.Int32(int32(s.Count)),
		ClientToken: aws.String(token(u.ID, site)), SecurityGroupIds: []string{group},
		UserData: aws.String(base64.StdEncoding.EncodeToString([]byte(script))),
		// What the user-data holds can be read on the instance: only by whoever
		// can make a request of its own there.
		MetadataOptions:                   &types.InstanceMetadataOptionsRequest{HttpTokens: types.HttpTokensStateRequired, HttpEndpoint: types.InstanceMetadataEndpointStateEnabled},
		InstanceInitiatedShutdownBehavior: types.ShutdownBehaviorTerminate,
		TagSpecifications:                 append(u.tagged(types.ResourceTypeInstance, site), u.tagged(types.ResourceTypeVolume, site)...),
	}
	if u.Spec.KeyPair {
		input.KeyName = aws.String(resourceName(u.ID))
	}
	out, err := call(ctx, "start instances of site "+site, []string{"InvalidGroup.NotFound", "InvalidKeyPair.NotFound"}, func(ctx context.Context) (*ec2.RunInstancesOutput, error) {
		return c.ec2.RunInstances(ctx, input)
	})
	if err != nil {
		return entry{}, err
	}
	var e entry
	for i := range out.Instances {
		m := c.member(u.ID, &out.Instances[i])
		// An answer before the tags are known everywhere may lack them.
		m.Site, m.Agent = site, fmt.Sprintf("%s-%d", agentPrefix(u.ID, site), aws.ToInt32(out.Instances[i].AmiLaunchIndex))
		e.IDs, e.Members = append(e.IDs, m.InstanceID), append(e.Members, m)
	}
	if len(e.IDs) != s.Count {
		return entry{}, fmt.Errorf("start instances of site %s: %d, want %d", site, len(e.IDs), s.Count)
	}
	return e, nil
}

// await returns the instances once all of them run and have addresses.
func (u *rising) await(ctx context.Context, c *cloud, ids []string) ([]Member, error) {
	var members []Member
	u.say("%s: waiting until %d instances run", c.region, len(ids))
	var addressless time.Time
	err := poll(ctx, launchPatience, fmt.Sprintf("wait until %d instances run", len(ids)), func(ctx context.Context) (bool, error) {
		found, err := c.instances(ctx, filter("instance-id", ids...))
		if err != nil {
			return false, err
		}
		members = members[:0]
		running := true
		for i := range found {
			instance := &found[i]
			switch s := stateOf(instance); s {
			case types.InstanceStateNameRunning:
			case types.InstanceStateNamePending:
				running = false
			default:
				reason := aws.ToString(instance.StateTransitionReason)
				if instance.StateReason != nil {
					reason = aws.ToString(instance.StateReason.Message)
				}
				return false, fmt.Errorf("instance %s is %s: %s", aws.ToString(instance.InstanceId), s, reason)
			}
			members = append(members, c.member(u.ID, instance))
		}
		if !running || len(members) != len(ids) {
			return false, nil
		}
		if addressless.IsZero() {
			addressless = time.Now()
		}
		for _, m := range members {
			if !m.Public.IsValid() && time.Since(addressless) < settlePatience {
				return false, nil
			}
		}
		return true, nil
	})
	return members, err
}
