package awsfake

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

func (e *EC2) createGroup(r *ec2Region, q query) (*ec2Response, error) {
	name, text, vpc := q.text("GroupName"), q.text("GroupDescription"), q.text("VpcId")
	switch {
	case name == "" || len(name) > 255 || strings.HasPrefix(name, "sg-"):
		return nil, fault("InvalidParameterValue", "Value (%s) for parameter GroupName is invalid", name)
	case text == "":
		return nil, fault("MissingParameter", "The request must contain the parameter GroupDescription")
	case vpc != "" && vpc != r.vpc:
		return nil, fault("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", vpc)
	}
	if err := dryRun(q); err != nil {
		return nil, err
	}
	for _, g := range r.groups {
		if g.name == name {
			return nil, fault("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", name, r.vpc)
		}
	}
	tags, err := q.tagged("security-group")
	if err != nil {
		return nil, err
	}
	g := &ec2Group{id: newID("sg"), name: name, description: text, vpc: r.vpc, tags: tags, unseen: e.o.Invisible}
	r.groups = append(r.groups, g)
	return &ec2Response{Return: ptrTo(true), GroupID: g.id, Tags: xmlTags(tags)}, nil
}

// group finds one by the parameters that name it.
func (r *ec2Region) group(q query) (*ec2Group, error) {
	id, name := q.text("GroupId"), q.text("GroupName")
	if id == "" && name == "" {
		return nil, fault("MissingParameter", "The request must contain the parameter groupName or groupId")
	}
	for _, g := range r.groups {
		if (id == "" || g.id == id) && (name == "" || g.name == name) {
			if unseen(&g.unseen) {
				break
			}
			return g, nil
		}
	}
	return nil, fault("InvalidGroup.NotFound", "The security group '%s' does not exist", id+name)
}

func (e *EC2) describeGroups(r *ec2Region, q query) (*ec2Response, error) {
	x := &ec2Response{}
	ids, names := q.list("GroupId"), q.list("GroupName")
	limit, err := q.number("MaxResults", 0)
	if err != nil {
		return nil, err
	}
	skip, err := q.number("NextToken", 0)
	if err != nil || skip < 0 {
		return nil, fault("InvalidParameterValue", "Unable to parse pagination token")
	}
	if e.o.Page > 0 && (limit == 0 || limit > e.o.Page) {
		limit = e.o.Page
	}
	for _, g := range r.groups {
		if unseen(&g.unseen) {
			continue
		}
		ok, err := q.filters(map[string]func() []string{
			"group-id": one(g.id), "group-name": one(g.name), "vpc-id": one(g.vpc), "description": one(g.description),
			"tag:": tagPairs(g.tags), "tag-key": tagKeys(g.tags),
		})
		if err != nil {
			return nil, err
		}
		if ok && (len(ids) == 0 || slices.Contains(ids, g.id)) && (len(names) == 0 || slices.Contains(names, g.name)) {
			x.Groups = append(x.Groups, xmlGroupOf(g))
		}
	}
	if asked := append(slices.Clone(ids), names...); len(x.Groups) < len(asked) {
		return nil, fault("InvalidGroup.NotFound", "The security group '%s' does not exist", asked[0])
	}
	x.Groups = x.Groups[min(skip, len(x.Groups)):]
	if limit > 0 && len(x.Groups) > limit {
		x.Groups, x.NextToken = x.Groups[:limit], strconv.Itoa(skip+limit)
	}
	return x, nil
}

// rules reads IpPermissions; each source is a rule of its own.
func (r *ec2Region) readRules(q query) ([]ec2Rule, error) {
	var all []ec2Rule
	for n := 1; q.has("IpPermissions." + strconv.Itoa(n)); n++ {
		at := "IpPermissions." + strconv.Itoa(n)
		protocol := q.text(at + ".IpProtocol")
		from, err := q.number(at+".FromPort", -1)
		if err != nil {
			return nil, err
		}
		to, err := q.number(at+".ToPort", -1)
		if err != nil {
			return nil, err
		}
		switch protocol {
		case "tcp", "udp":
			if from < 0 || to > 65535 || from > to {
				return nil, fault("InvalidParameterValue", "Invalid value for portRange. Must specify both from and to ports with TCP/UDP.")
			}
		case "icmp", "icmpv6", "-1":
		default:
			return nil, fault("InvalidParameterValue", "Invalid value '%s' for IP protocol. Unknown protocol.", protocol)
		}
		before := len(all)
		add := func(source, text string) {
			all = append(all, ec2Rule{protocol: protocol, from: from, to: to, source: source, text: text})
		}
		for m := 1; q.has(at + ".IpRanges." + strconv.Itoa(m)); m++ {
			source := q.text(at + ".IpRanges." + strconv.Itoa(m) + ".CidrIp")
			if p, err := netip.ParsePrefix(source); err != nil || !p.Addr().Is4() || p.Masked() != p {
				return nil, fault("InvalidParameterValue", "CIDR block %s is malformed", source)
			}
			add(source, q.text(at+".IpRanges."+strconv.Itoa(m)+".Description"))
		}
		for m := 1; q.has(at + ".Ipv6Ranges." + strconv.Itoa(m)); m++ {
			source := q.text(at + ".Ipv6Ranges." + strconv.Itoa(m) + ".CidrIpv6")
			if p, err := netip.ParsePrefix(source); err != nil || !p.Addr().Is6() || p.Masked() != p {
				return nil, fault("InvalidParameterValue", "CIDR block %s is malformed", source)
			}
			add(source, q.text(at+".Ipv6Ranges."+strconv.Itoa(m)+".Description"))
		}
		for m := 1; q.has(at + ".Groups." + strconv.Itoa(m)); m++ {
			source := q.text(at + ".Groups." + strconv.Itoa(m) + ".GroupId")
			if !slices.ContainsFunc(r.groups, func(g *ec2Group) bool { return g.id == source }) {
				return nil, fault("InvalidGroup.NotFound", "The security group '%s' does not exist", source)
			}
			add(source, q.text(at+".Groups."+strconv.Itoa(m)+".Description"))
		}
		if len(all) == before {
			return nil, fault("MissingParameter", "Either 'CidrIp' or 'SourceSecurityGroupId' should be provided.")
		}
	}
	if len(all) == 0 {
		return nil, fault("MissingParameter", "The request must contain the parameter ipPermissions")
	}
	return all, nil
}

// maxRules is how many a group may have.
const maxRules = 60

func (e *EC2) authorize(r *ec2Region, q query) (*ec2Response, error) {
	g, err := r.group(q)
	if err != nil {
		return nil, err
	}
	rules, err := r.readRules(q)
	if err != nil {
		return nil, err
	}
	if err := dryRun(q); err != nil {
		return nil, err
	}
	for i, one := range rules {
		if slices.ContainsFunc(g.rules, one.same) || slices.ContainsFunc(rules[:i], one.same) {
			return nil, fault("InvalidPermission.Duplicate", "the specified rule \"peer: %s, %s, from port: %d, to port: %d, ALLOW\" already exists", one.source, one.protocol, one.from, one.to)
		}
	}
	if len(g.rules)+len(rules) > maxRules {
		return nil, fault("RulesPerSecurityGroupLimitExceeded", "The maximum number of rules per security group has been reached.")
	}
	g.rules = append(g.rules, rules...)
	return &ec2Response{Return: ptrTo(true)}, nil
}

func (e *EC2) revoke(r *ec2Region, q query) (*ec2Response, error) {
	g, err := r.group(q)
	if err != nil {
		return nil, err
	}
	rules, err := r.readRules(q)
	if err != nil {
		return nil, err
	}
	if err := dryRun(q); err != nil {
		return nil, err
	}
	for _, one := range rules {
		if !slices.ContainsFunc(g.rules, one.same) {
			return nil, fault("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
		}
	}
	g.rules = slices.DeleteFunc(g.rules, func(have ec2Rule) bool { return slices.ContainsFunc(rules, have.same) })
	return &ec2Response{Return: ptrTo(true)}, nil
}

func (e *EC2) deleteGroup(r *ec2Region, q query) (*ec2Response, error) {
	g, err := r.group(q)
	if err != nil {
		return nil, err
	}
	if err := dryRun(q); err != nil {
		return nil, err
	}
	used := slices.ContainsFunc(r.instances, func(i *ec2Instance) bool { return slices.Contains(i.held(), g.id) })
	named := slices.ContainsFunc(r.groups, func(o *ec2Group) bool {
		return o != g && slices.ContainsFunc(o.rules, func(rule ec2Rule) bool { return rule.source == g.id })
	})
	if used || named {
		return nil, fault("DependencyViolation", "resource %s has a dependent object", g.id)
	}
	r.groups = slices.DeleteFunc(r.groups, func(o *ec2Group) bool { return o == g })
	return &ec2Response{Return: ptrTo(true), GroupID: g.id}, nil
}
