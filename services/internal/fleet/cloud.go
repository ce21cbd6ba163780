package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/smithy-go"
)

// Bounds of waiting.
const (
	callPatience   = 2 * time.Minute  // one call with its retries
	settlePatience = time.Minute      // until a new thing is known everywhere
	launchPatience = 10 * time.Minute // from pending to running
	endPatience    = 15 * time.Minute // until nothing of a region is left
	firstPause     = 50 * time.Millisecond
	longestPause   = 5 * time.Second
)

// cloud is one region of an account.
type cloud struct {
	region string
	ec2    *ec2.Client
	ssm    *ssm.Client
}

// connect makes the clients of a region. Endpoints and credentials come from
// where every AWS tool takes them: the environment and the shared files.
func connect(ctx context.Context, profile, region string) (*cloud, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRegion(region),
		config.WithRetryer(func() aws.Retryer {
			// RequestLimitExceeded and the like; the backoff is the SDK's.
			return retry.AddWithMaxAttempts(retry.NewStandard(), 8)
		}),
	}
	if profile != "" {
		options = append(options, config.WithSharedConfigProfile(profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("configure AWS: %w", err)
	}
	return &cloud{region: region, ec2: ec2.NewFromConfig(cfg), ssm: ssm.NewFromConfig(cfg)}, nil
}

// code is the service's name for an error, "" if the service did not answer.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// refused reports whether the service has answered that it did not do it, as
// opposed to an answer that never came or a fault on its side.
func refused(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorFault() != smithy.FaultServer && !strings.HasPrefix(api.ErrorCode(), "Internal") &&
		api.ErrorCode() != "Unavailable" && api.ErrorCode() != "ServiceUnavailable"
}

// poll calls step with growing pauses until it is done, fails, or patience or
// ctx ends; what says what is waited for.
func poll(ctx context.Context, patience time.Duration, what string, step func(ctx context.Context) (done bool, err error)) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		done, err := step(limited)
		if err == nil && done {
			return nil
		}
		if err != nil && limited.Err() == nil {
			return err
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%s: not within %s", what, patience)
		case <-time.After(pause):
		}
	}
}

// call makes one call, again while it is refused with one of the codes: things
// that were just made are not known everywhere at once.
func call[T any](ctx context.Context, what string, codes []string, do func(ctx context.Context) (T, error)) (answer T, err error) {
	var last error
	err = poll(ctx, settlePatience, what, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, callPatience)
		defer cancel()
		answer, last = do(ctx)
		if last != nil && slices.Contains(codes, code(last)) {
			return false, nil
		}
		return true, last
	})
	if err != nil {
		if last != nil && ctx.Err() == nil {
			err = last
		}
		return answer, fmt.Errorf("%s: %w", what, err)
	}
	return answer, nil
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: aws.String(name), Values: values}
}

func tagFilter(name string, values ...string) types.Filter { return filter("tag:"+name, values...) }

func tags(pairs ...string) []types.Tag {
	var all []types.Tag
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			all = append(all, types.Tag{Key: aws.String(pairs[i]), Value: aws.String(pairs[i+1])})
		}
	}
	return all
}

func tag(all []types.Tag, name string) string {
	for _, t := range all {
		if aws.ToString(t.Key) == name {
			return aws.ToString(t.Value)
		}
	}
	return ""
}

// pages keeps a server that never ends its list from keeping us for ever.
const pages = 1000

// instances lists those that all filters match.
func (c *cloud) instances(ctx context.Context, filters ...types.Filter) ([]types.Instance, error) {
	var all []types.Instance
	input := &ec2.DescribeInstancesInput{Filters: filters}
	for range pages {
		out, err := call(ctx, "list instances in "+c.region, nil, func(ctx context.Context) (*ec2.DescribeInstancesOutput, error) {
			return c.ec2.DescribeInstances(ctx, input)
		})
		if err != nil {
			return nil, err
		}
		for _, r := range out.Reservations {
			all = append(all, r.Instances...)
		}
		if aws.ToString(out.NextToken) == "" {
			return all, nil
		}
		input.NextToken = out.NextToken
	}
	return nil, fmt.Errorf("list instances in %s: no end after %d pages", c.region, pages)
}

// groups lists the security groups that all filters match.
func (c *cloud) groups(ctx context.Context, filters ...types.Filter) ([]types.SecurityGroup, error) {
	var all []types.SecurityGroup
	input := &ec2.DescribeSecurityGroupsInput{Filters: filters}
	for range pages {
		out, err := call(ctx, "list security groups in "+c.region, nil, func(ctx context.Context) (*ec2.DescribeSecurityGroupsOutput, error) {
			return c.ec2.DescribeSecurityGroups(ctx, input)
		})
		if err != nil {
			return nil, err
		}
		all = append(all, out.SecurityGroups...)
		if aws.ToString(out.NextToken) == "" {
			return all, nil
		}
		input.NextToken = out.NextToken
	}
	return nil, fmt.Errorf("list security groups in %s: no end after %d pages", c.region, pages)
}

// keys lists the key pairs that all filters match.
func (c *cloud) keys(ctx context.Context, filters ...types.Filter) ([]types.KeyPairInfo, error) {
	out, err := call(ctx, "list key pairs in "+c.region, nil, func(ctx context.Context) (*ec2.DescribeKeyPairsOutput, error) {
		return c.ec2.DescribeKeyPairs(ctx, &ec2.DescribeKeyPairsInput{Filters: filters})
	})
	if err != nil {
		return nil, err
	}
	return out.KeyPairs, nil
}

// member is an instance as the fleet sees it.
func (c *cloud) member(id string, i *types.Instance) Member {
	site := tag(i.Tags, TagSite)
	m := Member{
		Site: site, Region: c.region, InstanceID: aws.ToString(i.InstanceId), Type: string(i.InstanceType),
		Agent: fmt.Sprintf("%s-%d", agentPrefix(id, site), aws.ToInt32(i.AmiLaunchIndex)), Launched: aws.ToTime(i.LaunchTime),
	}
	if i.Placement != nil {
		m.Zone = aws.ToString(i.Placement.AvailabilityZone)
	}
	m.Public, _ = netip.ParseAddr(aws.ToString(i.PublicIpAddress))
	m.Private, _ = netip.ParseAddr(aws.ToString(i.PrivateIpAddress))
	return m
}

func stateOf(i *types.Instance) types.InstanceStateName {
	if i.State == nil {
		return ""
	}
	return i.State.Name
}

// gone reports whether an instance costs nothing any more and holds nothing.
func gone(i *types.Instance) bool { return stateOf(i) == types.InstanceStateNameTerminated }

// teller passes on progress from several goroutines, one at a time.
type teller struct {
	mu   sync.Mutex
	tell func(string)
}

func (t *teller) say(format string, args ...any) {
	if t.tell == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell(fmt.Sprintf(format, args...))
}
