package awsfake

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxLaunch is how many instances one call may start.
const maxLaunch = 256

func (e *EC2) runInstances(r *ec2Region, q query) (*ec2Response, error) {
	template, err := r.template(q)
	if err != nil {
		return nil, err
	}
	image, kind := cmp.Or(q.text("ImageId"), template.image), cmp.Or(q.text("InstanceType"), template.kind)
	low, err := q.number("MinCount", 0)
	if err != nil {
		return nil, err
	}
	high, err := q.number("MaxCount", 0)
	if err != nil {
		return nil, err
	}
	switch {
	case image == "":
		return nil, fault("MissingParameter", "The request must contain the parameter ImageId")
	case !r.images[image]:
		return nil, fault("InvalidAMIID.NotFound", "The image id '[%s]' does not exist", image)
	case low < 1 || high < low || high > maxLaunch:
		return nil, fault("InvalidParameterValue", "MinCount %d, MaxCount %d", low, high)
	case !strings.Contains(kind, "."):
		return nil, fault("InvalidParameterValue", "Invalid value '%s' for InstanceType.", kind)
	}
	var groups []string
	for _, id := range q.list("SecurityGroupId") {
		at := slices.IndexFunc(r.groups, func(g *ec2Group) bool { return g.id == id })
		if at < 0 || unseen(&r.groups[at].unseen) {
			return nil, fault("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
		}
		groups = append(groups, id)
	}
	key := q.text("KeyName")
	if key != "" && !slices.ContainsFunc(r.keys, func(k *ec2Key) bool { return k.name == key && !unseen(&k.unseen) }) {
		return nil, fault("InvalidKeyPair.NotFound", "The key pair '%s' does not exist", key)
	}
	script, err := base64.StdEncoding.DecodeString(cmp.Or(q.text("UserData"), template.userData))
	if err != nil {
		return nil, fault("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data")
	}
	if len(script) > 16<<10 {
		return nil, fault("InvalidParameterValue", "User data is limited to 16384 bytes")
	}
	tokens := q.text("MetadataOptions.HttpTokens")
	if tokens == "" {
		tokens = "optional"
	}
	shutdown := q.text("InstanceInitiatedShutdownBehavior")
	if shutdown == "" {
		shutdown = "stop"
	}
	if tokens != "optional" && tokens != "required" || shutdown != "stop" && shutdown != "terminate" {
		return nil, fault("InvalidParameterValue", "MetadataOptions.HttpTokens %s, InstanceInitiatedShutdownBehavior %s", tokens, shutdown)
	}
	tags, err := q.tagged("instance")
	if err != nil {
		return nil, err
	}
	if err := dryRun(q); err != nil {
		return nil, err
	}
	client := q.text("ClientToken")
	if len(client) > 64 {
		return nil, fault("InvalidParameterValue", "ClientToken is longer than 64 characters")
	}
	if earlier := r.tokens[client]; client != "" && earlier != nil {
		if earlier.fingerprint != fingerprint(q) {
			return nil, fault("IdempotentParameterMismatch", "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).")
		}
		return &ec2Response{ReservationID: earlier.reservation, OwnerID: "123456789012", Launched: &xmlLaunched{Instances: xmlInstances(earlier.instances)}}, nil
	}
	launch := &ec2Launch{fingerprint: fingerprint(q), reservation: newID("r")}
	for index := range high {
		e.launched++
		e.hosts++
		i := &ec2Instance{
			InstanceInfo: InstanceInfo{
				ID: newID("i"), Region: r.name, Zone: r.name + string("abc"[index%3]), Type: kind, Image: image, State: "pending", LaunchIndex: index,
				Public: host(203, 0, e.hosts), Private: host(172, 31, e.hosts), Tags: maps.Clone(tags), Groups: groups, Key: key, Token: client,
				Launched: time.Now().UTC().Truncate(time.Second), UserData: string(script), HTTPTokens: tokens, Shutdown: shutdown,
			},
			reservation: launch.reservation, changed: time.Now(), unseen: e.o.Invisible,
		}
		r.instances = append(r.instances, i)
		launch.instances = append(launch.instances, i)
		if e.o.OnLaunch != nil {
			go e.o.OnLaunch(i.InstanceInfo, i.UserData)
		}
	}
	if client != "" {
		r.tokens[client] = launch
	}
	return &ec2Response{ReservationID: launch.reservation, OwnerID: "123456789012", Launched: &xmlLaunched{Instances: xmlInstances(launch.instances)}}, nil
}

func host(a, b byte, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{a, b, byte(n / 250 % 250), byte(n%250 + 1)})
}

// fingerprint stands for what must be the same when a token is used again.
func fingerprint(q query) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(q)) {
		h.Write([]byte(name + "\x00" + q[name] + "\x00"))
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (e *EC2) describeInstances(r *ec2Region, q query) (*ec2Response, error) {
	asked := q.list("InstanceId")
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
	var found []*ec2Instance
	for _, i := range r.instances {
		if unseen(&i.unseen) {
			continue
		}
		ok, err := q.filters(map[string]func() []string{
			"instance-id": one(i.ID), "instance-state-name": one(i.State), "client-token": one(i.Token), "image-id": one(i.Image),
			"instance-type": one(i.Type), "availability-zone": one(i.Zone), "key-name": one(i.Key), "reservation-id": one(i.reservation),
			"instance.group-id": func() []string { return i.held() }, "vpc-id": one(r.vpc),
			"tag:": tagPairs(i.Tags), "tag-key": tagKeys(i.Tags),
		})
		if err != nil {
			return nil, err
		}
		if ok && (len(asked) == 0 || slices.Contains(asked, i.ID)) {
			found = append(found, i)
		}
	}
	for _, id := range asked {
		if !slices.ContainsFunc(found, func(i *ec2Instance) bool { return i.ID == id }) {
			return nil, fault("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
		}
	}
	x := &ec2Response{}
	found = found[min(skip, len(found)):]
	if limit > 0 && len(found) > limit {
		found, x.NextToken = found[:limit], strconv.Itoa(skip+limit)
	}
	for _, i := range found {
		last := len(x.Reservations) - 1
		if last < 0 || x.Reservations[last].ID != i.reservation {
			x.Reservations = append(x.Reservations, xmlReservation{ID: i.reservation, Owner: "123456789012"})
			last++
		}
		x.Reservations[last].Instances = append(x.Reservations[last].Instances, xmlInstances([]*ec2Instance{i})...)
	}
	return x, nil
}

// held are the groups that an instance keeps from being deleted.
func (i *ec2Instance) held() []string {
	if i.State == "terminated" {
		return nil
	}
	return i.Groups
}

func (e *EC2) terminateInstances(r *ec2Region, q query) (*ec2Response, error) {
	ids := q.list("InstanceId")
	if len(ids) == 0 {
		return nil, fault("MissingParameter", "The request must contain the parameter InstanceId")
	}
	var all []*ec2Instance
	for _, id := range ids {
		at := slices.IndexFunc(r.instances, func(i *ec2Instance) bool { return i.ID == id })
		if at < 0 || unseen(&r.instances[at].unseen) {
			return nil, fault("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
		}
		all = append(all, r.instances[at])
	}
	if err := dryRun(q); err != nil {
		return nil, err
	}
	x := &ec2Response{Launched: &xmlLaunched{}}
	for _, i := range all {
		before := i.State
		if before == "pending" || before == "running" {
			i.State, i.changed = "shutting-down", time.Now()
			i.reason = "User initiated (" + time.Now().UTC().Format(time.DateTime) + " GMT)"
			if e.o.OnTerminate != nil {
				go e.o.OnTerminate(i.ID)
			}
			e.settle(i)
		}
		x.Launched.Changes = append(x.Launched.Changes, xmlChange{i.ID, xmlStateOf(i.State), xmlStateOf(before)})
	}
	return x, nil
}

// SetState forces an instance into a state, as its own end or a failure of its
// host would.
func (e *EC2) SetState(id, state string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.regions {
		for _, i := range r.instances {
			if i.ID == id {
				i.State, i.changed = state, time.Now()
				i.reason = "Server.InstanceInitiatedShutdown (" + time.Now().UTC().Format(time.DateTime) + " GMT)"
			}
		}
	}
}
