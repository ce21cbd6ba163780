package fleet

import (
	"fmt"
	"path/filepath"
	"time"
)

// Description is what Up would do, found out without a single call.
type Description struct {
	Name      string            `json:"name"`
	Resumes   string            `json:"resumes,omitempty"` // id of the fleet that is there already
	Regions   []string          `json:"regions"`
	Instances int               `json:"instances"`
	Steps     []Step            `json:"steps"`
	UserData  map[string]string `json:"user_data"` // by site, without secrets
	Hourly    Estimate          `json:"hourly"`
	Lifetime  time.Duration     `json:"lifetime_ns"`
	Longest   Estimate          `json:"longest"` // if it lives as long as it may
	Prices    string            `json:"prices"`
	Warnings  []string          `json:"warnings,omitempty"`
}

// Step is one step of a plan. Those of one region follow each other, regions
// go side by side; steps without a region begin once every region is through.
type Step struct {
	Region string `json:"region,omitempty"`
	Text   string `json:"text"`
}

// rulesOfGroup is how many rules an account may have in a group unless it has
// asked for more.
const rulesOfGroup = 60

// Describe is a dry run.
func Describe(o Options) (*Description, error) {
	o.setDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	p := newPlan(&o)
	// The real one is chosen when the fleet is begun.
	p.ID = o.Name + "-xxxxxx"
	p.dir = filepath.Join(fleetsDir(o.Dir), p.ID)
	d := &Description{Name: o.Name, Regions: regionsOf(&o.Spec), UserData: map[string]string{}, Lifetime: o.Lifetime, Prices: PricesAsOf}
	if r, err := find(o.Dir, o.Name); err == nil {
		if err := r.plan.same(&o); err != nil {
			return nil, err
		}
		p, d.Resumes = r.plan, r.plan.ID
	}
	for _, s := range o.Spec.Sites {
		d.Instances += s.Count
		d.Hourly.add(s.Region, s.Type, s.Count, time.Hour)
		d.Longest.add(s.Region, s.Type, s.Count, o.Lifetime)
	}
	rules := len(protocols) * (d.Instances + 1)
	step := func(region, format string, args ...any) {
		d.Steps = append(d.Steps, Step{Region: region, Text: fmt.Sprintf(format, args...)})
	}
	for _, region := range d.Regions {
		images := map[string]bool{}
		for _, site := range p.sites(region) {
			if image := o.Spec.Sites[site].Image; !images[image] {
				images[image] = true
				step(region, "resolve image %s", image)
			}
		}
		name := resourceName(p.ID)
		if o.Spec.KeyPair {
			step(region, "create key pair %s (ed25519), private key in %s", name, p.keyFile(region))
		}
		step(region, "create security group %s in the default VPC", name)
		step(region, "let members of the group in: ICMP, UDP, TCP")
		if o.Spec.KeyPair {
			step(region, "let %s in: TCP port 22", o.Spec.SSHFrom)
		}
		for _, site := range p.sites(region) {
			s := o.Spec.Sites[site]
			step(region, "start %d × %s for site %s: agents %s-0 to -%d, IMDSv2 only, terminate on shutdown, shut down after %s",
				s.Count, s.Type, site, agentPrefix(p.ID, site), s.Count-1, o.Lifetime)
		}
		step(region, "wait until they run and have addresses")
	}
	for _, region := range d.Regions {
		step(region, "once all regions run: let the %d members' public addresses in (/32 each): ICMP, UDP, TCP", d.Instances)
	}
	for site := range o.Spec.Sites {
		script, err := p.redacted(site)
		if err != nil {
			return nil, err
		}
		d.UserData[site] = script
	}
	if o.Spec.KeyPair {
		rules++
	}
	if rules > rulesOfGroup {
		d.Warnings = append(d.Warnings, fmt.Sprintf("each region's security group needs %d rules, an account may have %d in one unless its quota (inbound rules per security group) was raised", rules, rulesOfGroup))
	}
	return d, nil
}
