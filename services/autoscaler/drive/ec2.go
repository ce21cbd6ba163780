package drive

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
)

// tagOwner marks instances; its value is the owner.
const tagOwner = "transferlab:autoscaler"

// EC2Config says how workers are started as instances. Credentials and endpoints
// come from where every AWS tool takes them.
type EC2Config struct {
	Owner   string // marks the instances
	Region  string
	Profile string // of the shared configuration; the default one if empty
	// Template is the launch template, an id (lt-…) or a name, that has all the
	// rest: image, type, groups, and user-data that start a worker which calls
	// itself by the instance's id. Version of it, the default one if empty.
	Template, Version string
	Log               *slog.Logger
}

// Validate reports every fault.
func (c *EC2Config) Validate() error {
	var errs []error
	if !ownerName(c.Owner) {
		errs = append(errs, fmt.Errorf("--owner: %q, want lower-case letters, digits, hyphens and underscores, at most 31", c.Owner))
	}
	if !regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`).MatchString(c.Region) {
		errs = append(errs, fmt.Errorf("--region: %q, want a region such as eu-west-1", c.Region))
	}
	if !regexp.MustCompile(`^[a-zA-Z0-9().\-/_]{3,128}$`).MatchString(c.Template) {
		errs = append(errs, fmt.Errorf("--launch-template: %q, want the id or name of one", c.Template))
	}
	if !regexp.MustCompile(`^([0-9]{1,9}|\$Latest|\$Default)?$`).MatchString(c.Version) {
		errs = append(errs, fmt.Errorf("--launch-template-version: %q, want a number, $Latest or $Default", c.Version))
	}
	return errors.Join(errs...)
}

// EC2 runs workers on instances of their own.
type EC2 struct {
	c   EC2Config
	api *ec2.Client
	now func() time.Time

	// One Start at a time: a token belongs to one request.
	starting sync.Mutex
	// open is a request whose answer never came: the same token and number again
	// start nothing twice.
	open *launch

	mu sync.Mutex
	// launched are instances that lists may not have yet.
	launched map[string]Instance
}

type launch struct {
	token string
	count int32
	at    time.Time
}

// How long a new instance may be missing from lists before it counts as gone, and how
// long a token is good for.
const (
	unseenPatience = 2 * time.Minute
	tokenPatience  = 10 * time.Minute
)

// pages keeps a list that never ends from keeping us for ever.
const pages = 1000

// OpenEC2 makes a driver; nothing is asked of the cloud yet.
func OpenEC2(ctx context.Context, c EC2Config) (*EC2, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	options := []func(*config.LoadOptions) error{
		config.WithRegion(c.Region),
		config.WithRetryer(func() aws.Retryer {
			// What could not be done is decided on anew at the next step.
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = 4, 2*time.Second })
		}),
	}
	if c.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(c.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("configure AWS: %w", err)
	}
	return &EC2{c: c, api: ec2.NewFromConfig(cfg), now: time.Now, launched: map[string]Instance{}}, nil
}

// List returns the instances that run or will.
func (e *EC2) List(ctx context.Context) ([]Instance, error) {
	var all []Instance
	ended := map[string]bool{}
	input := &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("tag:" + tagOwner), Values: []string{e.c.Owner}}}}
	for page := 0; ; page++ {
		if page == pages {
			return nil, fmt.Errorf("list instances: no end after %d pages", pages)
		}
		out, err := e.api.DescribeInstances(ctx, input)
		if err != nil {
			return nil, fmt.Errorf("list instances: %w", err)
		}
		for _, r := range out.Reservations {
			for _, i := range r.Instances {
				found := instanceOf(i)
				if i.State == nil || i.State.Name == types.InstanceStateNamePending || i.State.Name == types.InstanceStateNameRunning {
					all = append(all, found)
				} else {
					ended[found.ID] = true
				}
			}
		}
		if aws.ToString(out.NextToken) == "" {
			break
		}
		input.NextToken = out.NextToken
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, i := range e.launched {
		switch {
		case ended[id], slices.ContainsFunc(all, func(o Instance) bool { return o.ID == id }), e.now().Sub(i.Started) > unseenPatience:
			delete(e.launched, id)
		default:
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b Instance) int { return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

func instanceOf(i types.Instance) Instance {
	id := aws.ToString(i.InstanceId)
	return Instance{ID: id, Worker: id, Started: aws.ToTime(i.LaunchTime)}
}

// Start starts up to n instances, as many as there is capacity for, at least one or
// it fails. A request that was not answered is made again before any other.
func (e *EC2) Start(ctx context.Context, n int) error {
	e.starting.Lock()
	defer e.starting.Unlock()
	n = min(n, MaxStart)
	if e.open != nil && e.now().Sub(e.open.at) < tokenPatience {
		n -= int(e.open.count)
		if err := e.launch(ctx); err != nil {
			return err
		}
	}
	if n <= 0 {
		return nil
	}
	e.open = &launch{token: rand.Text() + rand.Text(), count: int32(n), at: e.now()}
	return e.launch(ctx)
}

// launch makes the open request, and closes it if it was answered in any way.
func (e *EC2) launch(ctx context.Context) error {
	template := &types.LaunchTemplateSpecification{LaunchTemplateName: aws.String(e.c.Template)}
	if strings.HasPrefix(e.c.Template, "lt-") {
		template = &types.LaunchTemplateSpecification{LaunchTemplateId: aws.String(e.c.Template)}
	}
	if e.c.Version != "" {
		template.Version = aws.String(e.c.Version)
	}
	tags := []types.Tag{
		{Key: aws.String(tagOwner), Value: aws.String(e.c.Owner)},
		{Key: aws.String("Name"), Value: aws.String("transferlab-" + e.c.Owner)},
	}
	out, err := e.api.RunInstances(ctx, &ec2.RunInstancesInput{
		LaunchTemplate: template, MinCount: aws.Int32(1), MaxCount: aws.Int32(e.open.count), ClientToken: aws.String(e.open.token),
		// A worker that ends by itself shuts its instance down, and that must not
		// go on costing.
		InstanceInitiatedShutdownBehavior: types.ShutdownBehaviorTerminate,
		TagSpecifications: []types.TagSpecification{
			{ResourceType: types.ResourceTypeInstance, Tags: tags},
			{ResourceType: types.ResourceTypeVolume, Tags: tags},
		},
	})
	if err != nil {
		if refused(err) {
			e.open = nil
		}
		return fmt.Errorf("start instances: %w", err)
	}
	e.open = nil
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, i := range out.Instances {
		found := instanceOf(i)
		// The list's clock is the cloud's, this one counts how long it is missing.
		found.Started = e.now()
		e.launched[found.ID] = found
	}
	return nil
}

// refused reports whether the cloud has answered that it did not do it, as opposed
// to an answer that never came or a fault on its side.
func refused(err error) bool {
	api, ok := errors.AsType[smithy.APIError](err)
	return ok && api.ErrorFault() != smithy.FaultServer && !strings.HasPrefix(api.ErrorCode(), "Internal") &&
		api.ErrorCode() != "Unavailable" && api.ErrorCode() != "ServiceUnavailable" && api.ErrorCode() != "RequestLimitExceeded"
}

// Stop terminates an instance, if it is ours.
func (e *EC2) Stop(ctx context.Context, id string) error {
	all, err := e.List(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(i Instance) bool { return i.ID == id }) {
		return nil
	}
	_, err = e.api.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
	if api, ok := errors.AsType[smithy.APIError](err); ok && api.ErrorCode() == "InvalidInstanceID.NotFound" {
		e.mu.Lock()
		_, fresh := e.launched[id]
		e.mu.Unlock()
		if !fresh {
			return nil
		}
		return fmt.Errorf("terminate %s, which is too new to be known everywhere: %w", id, err)
	}
	if err != nil {
		return fmt.Errorf("terminate %s: %w", id, err)
	}
	e.mu.Lock()
	delete(e.launched, id)
	e.mu.Unlock()
	return nil
}

// Close leaves the instances as they are: they are found again by their tag.
func (e *EC2) Close(context.Context) error { return nil }
