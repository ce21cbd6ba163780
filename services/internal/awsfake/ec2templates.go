package awsfake

import "slices"

// ec2Template is a launch template with one version.
type ec2Template struct {
	id, name              string
	image, kind, userData string
}

// AddTemplate makes a launch template in a region and returns its id; userData is
// encoded in Base64.
func (e *EC2) AddTemplate(region, name, image, kind, userData string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &ec2Template{newID("lt"), name, image, kind, userData}
	e.regions[region].templates = append(e.regions[region].templates, t)
	return t.id
}

// template returns the launch template that a request names, or an empty one if it
// names none.
func (r *ec2Region) template(q query) (*ec2Template, error) {
	if !q.has("LaunchTemplate") {
		return &ec2Template{}, nil
	}
	id, name := q.text("LaunchTemplate.LaunchTemplateId"), q.text("LaunchTemplate.LaunchTemplateName")
	if (id == "") == (name == "") {
		return nil, fault("InvalidParameterCombination", "Exactly one of LaunchTemplateId and LaunchTemplateName is required")
	}
	at := slices.IndexFunc(r.templates, func(t *ec2Template) bool { return t.id == id || t.name == name })
	if at < 0 {
		if id != "" {
			return nil, fault("InvalidLaunchTemplateId.NotFound", "The launch template ID '%s' does not exist", id)
		}
		return nil, fault("InvalidLaunchTemplateName.NotFoundException", "At least one of the launch templates specified in the request does not exist.")
	}
	if v := q.text("LaunchTemplate.Version"); !slices.Contains([]string{"", "1", "$Latest", "$Default"}, v) {
		return nil, fault("InvalidLaunchTemplateId.VersionNotFound", "Could not find launch template version '%s'", v)
	}
	return r.templates[at], nil
}
