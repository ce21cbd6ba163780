package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Kinds of resources.
const (
	KindInstance = "instance"
	KindGroup    = "security-group"
	KindKey      = "key-pair"
)

// Resource is something of a fleet that exists in an account.
type Resource struct {
	Region   string    `json:"region"`
	Kind     string    `json:"kind"`
	ID       string    `json:"id"`
	Fleet    string    `json:"fleet"`
	Site     string    `json:"site,omitempty"`
	Run      string    `json:"run,omitempty"`
	State    string    `json:"state,omitempty"`
	Type     string    `json:"type,omitempty"`
	Address  string    `json:"address,omitempty"`
	Launched time.Time `json:"launched,omitzero"`
}

// Live lists what exists of any fleet in regions, by its tags: instances that
// are not terminated, security groups, key pairs.
func Live(ctx context.Context, profile string, regions []string) ([]Resource, error) {
	all, errs := make([][]Resource, len(regions)), make([]error, len(regions))
	var each sync.WaitGroup
	for i, region := range regions {
		each.Go(func() {
			if !regionName.MatchString(region) {
				errs[i] = &UsageError{fmt.Errorf("region %q, want one such as us-west-2", region)}
				return
			}
			c, err := connect(ctx, profile, region)
			if err == nil {
				all[i], err = c.live(ctx)
			}
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", region, err)
			}
		})
	}
	each.Wait()
	return slices.Concat(all...), errors.Join(errs...)
}

func (c *cloud) live(ctx context.Context) ([]Resource, error) {
	ours := filter("tag-key", TagFleet)
	var all []Resource
	instances, err := c.instances(ctx, ours)
	if err != nil {
		return nil, err
	}
	for i := range instances {
		instance := &instances[i]
		if gone(instance) {
			continue
		}
		all = append(all, Resource{
			Region: c.region, Kind: KindInstance, ID: aws.ToString(instance.InstanceId), Fleet: tag(instance.Tags, TagFleet), Site: tag(instance.Tags, TagSite),
			Run: tag(instance.Tags, TagRun), State: string(stateOf(instance)), Type: string(instance.InstanceType), Address: aws.ToString(instance.PublicIpAddress),
			Launched: aws.ToTime(instance.LaunchTime),
		})
	}
	groups, err := c.groups(ctx, ours)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		all = append(all, Resource{Region: c.region, Kind: KindGroup, ID: aws.ToString(g.GroupId), Fleet: tag(g.Tags, TagFleet), Run: tag(g.Tags, TagRun)})
	}
	keys, err := c.keys(ctx, ours)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		all = append(all, Resource{Region: c.region, Kind: KindKey, ID: aws.ToString(k.KeyName), Fleet: tag(k.Tags, TagFleet), Run: tag(k.Tags, TagRun)})
	}
	slices.SortStableFunc(all, func(a, b Resource) int { return strings.Compare(a.Fleet, b.Fleet) })
	return all, nil
}
