package fleet

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// widest is the shortest prefix that a rule may open a port to, which only the
// network that may log in comes near; members are single addresses.
const widest = 8

// rule lets one network in, by one protocol.
func rule(protocol string, from, to int32, source netip.Prefix, why string) (types.IpPermission, error) {
	if !source.IsValid() || source.Bits() < widest {
		return types.IpPermission{}, fmt.Errorf("a rule that lets %s in is refused: want single members' addresses or a network that may log in", source)
	}
	p := types.IpPermission{IpProtocol: aws.String(protocol), FromPort: aws.Int32(from), ToPort: aws.Int32(to)}
	if source.Addr().Is4() {
		p.IpRanges = []types.IpRange{{CidrIp: aws.String(source.Masked().String()), Description: aws.String(why)}}
	} else {
		p.Ipv6Ranges = []types.Ipv6Range{{CidrIpv6: aws.String(source.Masked().String()), Description: aws.String(why)}}
	}
	return p, nil
}

// protocols that members measure by; ICMP's "ports" are type and code, of which
// -1 is any.
var protocols = [...]struct {
	name     string
	from, to int32
}{{"icmp", -1, -1}, {"udp", 0, 65535}, {"tcp", 0, 65535}}

// withinRules open a region's group to itself, and to whoever may log in.
func (p *plan) withinRules(group string) ([]types.IpPermission, error) {
	var all []types.IpPermission
	for _, o := range protocols {
		all = append(all, types.IpPermission{
			IpProtocol: aws.String(o.name), FromPort: aws.Int32(o.from), ToPort: aws.Int32(o.to),
			UserIdGroupPairs: []types.UserIdGroupPair{{GroupId: aws.String(group), Description: aws.String("members in this region")}},
		})
	}
	if p.Spec.KeyPair {
		source, err := netip.ParsePrefix(p.Spec.SSHFrom)
		if err != nil {
			return nil, fmt.Errorf("ssh_from: %w", err)
		}
		r, err := rule("tcp", 22, 22, source, "log in")
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// betweenRules open a region's group to every member's public address: those of
// the other regions, and those of its own, which reach each other by the public
// address that they announce as well as by the private one.
func betweenRules(all []Member) ([]types.IpPermission, error) {
	var rules []types.IpPermission
	for _, m := range all {
		if !m.Public.IsValid() || m.Public.IsUnspecified() {
			return nil, fmt.Errorf("instance %s of site %s has no public address: the default VPC of %s does not give any", m.InstanceID, m.Site, m.Region)
		}
		for _, o := range protocols {
			r, err := rule(o.name, o.from, o.to, netip.PrefixFrom(m.Public, m.Public.BitLen()), m.Agent)
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		}
	}
	return rules, nil
}

const duplicateRule = "InvalidPermission.Duplicate"

// authorize adds rules to a group; those that are there already do no harm.
func (c *cloud) authorize(ctx context.Context, group string, rules []types.IpPermission) error {
	for _, r := range rules {
		for _, network := range r.IpRanges {
			if source, err := netip.ParsePrefix(aws.ToString(network.CidrIp)); err != nil || source.Bits() < widest {
				return fmt.Errorf("a rule that lets %s in is refused", aws.ToString(network.CidrIp))
			}
		}
		for _, network := range r.Ipv6Ranges {
			if source, err := netip.ParsePrefix(aws.ToString(network.CidrIpv6)); err != nil || source.Bits() < widest {
				return fmt.Errorf("a rule that lets %s in is refused", aws.ToString(network.CidrIpv6))
			}
		}
	}
	add := func(some []types.IpPermission) error {
		_, err := call(ctx, "open the security group in "+c.region, []string{"InvalidGroup.NotFound"}, func(ctx context.Context) (*ec2.AuthorizeSecurityGroupIngressOutput, error) {
			return c.ec2.AuthorizeSecurityGroupIngress(ctx, &ec2.AuthorizeSecurityGroupIngressInput{GroupId: aws.String(group), IpPermissions: some})
		})
		return err
	}
	err := add(rules)
	if code(err) != duplicateRule {
		return err
	}
	// One that is there makes the service refuse all of them.
	for _, r := range rules {
		if err := add([]types.IpPermission{r}); err != nil && code(err) != duplicateRule {
			return err
		}
	}
	return nil
}
