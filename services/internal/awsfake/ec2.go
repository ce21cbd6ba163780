package awsfake

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// EC2 is the part of EC2 that starts and ends instances, with their security
// groups and key pairs, and SSM's parameters that name images: ec2query and
// JSON 1.1 on one address, told apart by what a request is signed for. Regions
// are separate, by the same token. Each has a default VPC and two images.
//
// What it refuses and how is EC2's: duplicates, dependencies, idempotency
// tokens, things that are not there. State is in memory and outlives any
// client.
type EC2 struct {
	account Account
	o       EC2Options

	mu       sync.Mutex
	regions  map[string]*ec2Region
	throttle int
	calls    map[string]int
	launched int // instances ever
	hosts    int // addresses given out
}

// EC2Options vary what EC2 does.
type EC2Options struct {
	// Regions that exist; us-west-2, eu-west-1 and us-east-1 if empty.
	Regions []string
	// Transition is how long an instance takes from pending to running and
	// from shutting-down to terminated.
	Transition time.Duration
	// Invisible is how many lists a new thing is missing from; calls that name
	// its id fail as if it were not there, as often.
	Invisible int
	// Page is how many results a list has at most, 0 for no limit.
	Page int
	// OnLaunch is called, on a goroutine of its own, with each instance that
	// starts and its user-data, decoded.
	OnLaunch func(i InstanceInfo, userData string)
	// OnTerminate is called with the id of each instance that is to end.
	OnTerminate func(id string)
}

// InstanceInfo is one instance as its owner and its metadata service see it.
type InstanceInfo struct {
	ID, Region, Zone, Type, Image string
	State                         string
	LaunchIndex                   int
	Public, Private               netip.Addr
	Tags                          map[string]string
	Groups                        []string
	Key                           string
	Token                         string
	Launched                      time.Time
	UserData                      string
	HTTPTokens                    string
	Shutdown                      string
}

type ec2Region struct {
	name      string
	vpc       string
	images    map[string]bool
	params    map[string]string
	instances []*ec2Instance
	groups    []*ec2Group
	keys      []*ec2Key
	templates []*ec2Template
	tokens    map[string]*ec2Launch
}

type ec2Launch struct {
	fingerprint string
	reservation string
	instances   []*ec2Instance
}

type ec2Instance struct {
	InstanceInfo
	reservation string
	changed     time.Time // of the state
	reason      string
	unseen      int
}

type ec2Group struct {
	id, name, description, vpc string
	tags                       map[string]string
	rules                      []ec2Rule
	unseen                     int
}

type ec2Rule struct {
	protocol string
	from, to int
	source   string // CIDR or group id
	text     string
}

func (r ec2Rule) same(o ec2Rule) bool {
	return r.protocol == o.protocol && r.from == o.from && r.to == o.to && r.source == o.source
}

type ec2Key struct {
	id, name, kind, fingerprint string
	tags                        map[string]string
	created                     time.Time
	unseen                      int
}

// FakeImage exists in every region; FakeImageParameter names it.
const (
	FakeImage          = "ami-0123456789abcdef0"
	FakeImageParameter = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
)

// NewEC2 returns an account without instances.
func NewEC2(a Account, o EC2Options) *EC2 {
	if len(o.Regions) == 0 {
		o.Regions = []string{"us-west-2", "eu-west-1", "us-east-1"}
	}
	e := &EC2{account: a, o: o, regions: map[string]*ec2Region{}, calls: map[string]int{}}
	for _, name := range o.Regions {
		e.regions[name] = &ec2Region{
			name: name, vpc: newID("vpc"), images: map[string]bool{FakeImage: true, "ami-0fedcba9876543210": true},
			params: map[string]string{FakeImageParameter: FakeImage}, tokens: map[string]*ec2Launch{},
		}
	}
	return e
}

// Throttle makes the next n calls fail with RequestLimitExceeded.
func (e *EC2) Throttle(n int) { e.mu.Lock(); e.throttle = n; e.mu.Unlock() }

// Calls counts the calls of an action that were answered without error.
func (e *EC2) Calls(action string) int { e.mu.Lock(); defer e.mu.Unlock(); return e.calls[action] }

// Launched counts the instances that were ever started.
func (e *EC2) Launched() int { e.mu.Lock(); defer e.mu.Unlock(); return e.launched }

// Instances returns every instance that is not terminated.
func (e *EC2) Instances() []InstanceInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []InstanceInfo
	for _, name := range slices.Sorted(maps.Keys(e.regions)) {
		for _, i := range e.regions[name].instances {
			e.settle(i)
			if i.State != "terminated" {
				all = append(all, i.InstanceInfo)
			}
		}
	}
	return all
}

// Left describes everything that a fleet could have left behind: instances that
// are not terminated, security groups beside the default ones, key pairs.
func (e *EC2) Left() []string {
	var all []string
	for _, i := range e.Instances() {
		all = append(all, i.Region+" "+i.ID+" "+i.State)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(e.regions)) {
		for _, g := range e.regions[name].groups {
			all = append(all, name+" "+g.id+" "+g.name)
		}
		for _, k := range e.regions[name].keys {
			all = append(all, name+" "+k.id+" "+k.name)
		}
	}
	return all
}

// Rules returns what the groups of a region let in, as "protocol from-to source".
func (e *EC2) Rules(region string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []string
	for _, g := range e.regions[region].groups {
		for _, r := range g.rules {
			all = append(all, fmt.Sprintf("%s %d-%d %s", r.protocol, r.from, r.to, r.source))
		}
	}
	return all
}

// settle moves an instance on to the state it has reached by now.
func (e *EC2) settle(i *ec2Instance) {
	if time.Since(i.changed) < e.o.Transition {
		return
	}
	switch i.State {
	case "pending":
		i.State = "running"
	case "shutting-down":
		i.State = "terminated"
	}
}

func newID(kind string) string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return kind + "-0" + hex.EncodeToString(b[:])
}

func (e *EC2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, scope, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	scope, _, _ = strings.Cut(scope, ",")
	parts := strings.Split(scope, "/")
	account, service := e.account, "ec2"
	if len(parts) == 5 {
		account.Region, service = parts[2], parts[3]
	}
	if service == "ssm" {
		e.serveSSM(w, r, account)
		return
	}
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	request := newID("req")
	answer, err := e.answer(r, account)
	status := http.StatusOK
	if err != nil {
		var f *failure
		if !errors.As(err, &f) {
			f = &failure{http.StatusInternalServerError, "InternalError", err.Error()}
		}
		f = ec2Failure(f)
		status, answer = f.status, nil
		w.WriteHeader(status)
		_, _ = w.Write(ec2Error(f, request))
		return
	}
	w.WriteHeader(status)
	_, _ = w.Write(ec2Answer(answer, request))
}

// ec2Failure gives the signature's faults EC2's names.
func ec2Failure(f *failure) *failure {
	switch f.code {
	case "MissingAuthenticationTokenException":
		return &failure{http.StatusUnauthorized, "MissingAuthenticationToken", f.message}
	case "UnrecognizedClientException", "InvalidSignatureException", "IncompleteSignature":
		return &failure{http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials"}
	}
	return f
}

func fault(code, format string, args ...any) error {
	return &failure{http.StatusBadRequest, code, fmt.Sprintf(format, args...)}
}

const ec2Version = "2016-11-15"

func (e *EC2) answer(r *http.Request, account Account) (*ec2Response, error) {
	body, err := account.authenticate(r, "ec2")
	if err != nil {
		return nil, err
	}
	if r.Method != http.MethodPost {
		return nil, fault("InvalidRequest", "method %s", r.Method)
	}
	q, err := parseQuery(string(body))
	if err != nil {
		return nil, fault("MalformedQueryString", "%v", err)
	}
	if v := q.text("Version"); v != ec2Version {
		return nil, fault("NoSuchVersion", "The requested version (%s) of service AmazonEC2 does not exist", v)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	region := e.regions[account.Region]
	if region == nil {
		return nil, &failure{http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials"}
	}
	if e.throttle > 0 {
		e.throttle--
		return nil, &failure{http.StatusServiceUnavailable, "RequestLimitExceeded", "Request limit exceeded."}
	}
	for _, i := range region.instances {
		e.settle(i)
	}
	action := q.text("Action")
	handler := map[string]func(*ec2Region, query) (*ec2Response, error){
		"DescribeRegions": e.describeRegions, "DescribeVpcs": e.describeVPCs, "DescribeImages": e.describeImages,
		"CreateKeyPair": e.createKeyPair, "DescribeKeyPairs": e.describeKeyPairs, "DeleteKeyPair": e.deleteKeyPair,
		"CreateSecurityGroup": e.createGroup, "DescribeSecurityGroups": e.describeGroups, "DeleteSecurityGroup": e.deleteGroup,
		"AuthorizeSecurityGroupIngress": e.authorize, "RevokeSecurityGroupIngress": e.revoke,
		"RunInstances": e.runInstances, "DescribeInstances": e.describeInstances, "TerminateInstances": e.terminateInstances,
		"CreateTags": e.createTags,
	}[action]
	if handler == nil {
		return nil, fault("InvalidAction", "The action %s is not valid for this web service.", action)
	}
	answer, err := handler(region, q)
	if err == nil {
		e.calls[action]++
		answer.action = action
	}
	return answer, err
}

// dryRun is the answer to a request that only asks whether it would be
// allowed, once its parameters have passed.
func dryRun(q query) error {
	if q.text("DryRun") == "true" {
		return &failure{http.StatusPreconditionFailed, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."}
	}
	return nil
}

// filters are all to match; of one's values, one.
func (q query) filters(supported map[string]func() []string) (bool, error) {
	for n := 1; q.has("Filter." + strconv.Itoa(n)); n++ {
		at := "Filter." + strconv.Itoa(n)
		name, values := q.text(at+".Name"), q.list(at+".Value")
		get := supported[name]
		if key, is := strings.CutPrefix(name, "tag:"); is && supported["tag:"] != nil {
			get = func() []string {
				for _, pair := range supported["tag:"]() {
					if k, v, _ := strings.Cut(pair, "\x00"); k == key {
						return []string{v}
					}
				}
				return nil
			}
		}
		if get == nil {
			return false, fault("InvalidParameterValue", "The filter '%s' is invalid", name)
		}
		if len(values) == 0 {
			return false, fault("InvalidParameterValue", "The filter '%s' has no value", name)
		}
		if len(values) > 200 {
			return false, fault("FilterLimitExceeded", "The maximum number of filter values specified on a single call is 200")
		}
		if !slices.ContainsFunc(get(), func(v string) bool {
			return slices.ContainsFunc(values, func(pattern string) bool { return wildcard(pattern, v) })
		}) {
			return false, nil
		}
	}
	return true, nil
}

// wildcard matches * and ?.
func wildcard(pattern, s string) bool {
	for {
		if pattern == "" {
			return s == ""
		}
		switch {
		case pattern[0] == '*':
			for i := 0; i <= len(s); i++ {
				if wildcard(pattern[1:], s[i:]) {
					return true
				}
			}
			return false
		case s == "", pattern[0] != '?' && pattern[0] != s[0]:
			return false
		}
		pattern, s = pattern[1:], s[1:]
	}
}

func tagPairs(tags map[string]string) func() []string {
	return func() []string {
		var all []string
		for k, v := range tags {
			all = append(all, k+"\x00"+v)
		}
		return all
	}
}

func tagKeys(tags map[string]string) func() []string {
	return func() []string { return slices.Collect(maps.Keys(tags)) }
}

func one(s string) func() []string { return func() []string { return []string{s} } }

// tagged reads the tags for a kind of resource.
func (q query) tagged(kind string) (map[string]string, error) {
	tags := map[string]string{}
	for n := 1; q.has("TagSpecification." + strconv.Itoa(n)); n++ {
		at := "TagSpecification." + strconv.Itoa(n)
		if q.text(at+".ResourceType") != kind {
			continue
		}
		if err := q.tags(at+".Tag", tags); err != nil {
			return nil, err
		}
	}
	return tags, nil
}

func (q query) tags(prefix string, into map[string]string) error {
	for m := 1; q.has(prefix + "." + strconv.Itoa(m)); m++ {
		at := prefix + "." + strconv.Itoa(m)
		key, value := q.text(at+".Key"), q.text(at+".Value")
		if key == "" || len(key) > 128 || len(value) > 256 || strings.HasPrefix(key, "aws:") {
			return fault("InvalidParameterValue", "Tag keys must be 1 to 128 characters and not start with aws:; values at most 256")
		}
		into[key] = value
	}
	return nil
}

func (e *EC2) describeRegions(*ec2Region, query) (*ec2Response, error) {
	x := &ec2Response{}
	for _, name := range e.o.Regions {
		x.Regions = append(x.Regions, xmlRegion{name, "ec2." + name + ".amazonaws.com", "opt-in-not-required"})
	}
	return x, nil
}

func (e *EC2) describeVPCs(r *ec2Region, q query) (*ec2Response, error) {
	x := &ec2Response{}
	ok, err := q.filters(map[string]func() []string{
		"is-default": one("true"), "isDefault": one("true"), "vpc-id": one(r.vpc), "state": one("available"),
		"tag:": func() []string { return nil }, "tag-key": func() []string { return nil },
	})
	if err != nil {
		return nil, err
	}
	if ids := q.list("VpcId"); len(ids) > 0 && !slices.Contains(ids, r.vpc) {
		return nil, fault("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", ids[0])
	}
	if ok {
		x.VPCs = []xmlVPC{{r.vpc, "available", "172.31.0.0/16", "default", true, "123456789012"}}
	}
	return x, nil
}

func (e *EC2) describeImages(r *ec2Region, q query) (*ec2Response, error) {
	x := &ec2Response{}
	asked := q.list("ImageId")
	for _, id := range asked {
		if !r.images[id] {
			return nil, fault("InvalidAMIID.NotFound", "The image id '[%s]' does not exist", id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.images)) {
		ok, err := q.filters(map[string]func() []string{"image-id": one(id), "architecture": one("x86_64"), "state": one("available")})
		if err != nil {
			return nil, err
		}
		if ok && (len(asked) == 0 || slices.Contains(asked, id)) {
			x.Images = append(x.Images, xmlImage{id, "available", "x86_64", "machine", "/dev/xvda", "ebs", "hvm", "fake"})
		}
	}
	return x, nil
}

func (e *EC2) createKeyPair(r *ec2Region, q query) (*ec2Response, error) {
	name := q.text("KeyName")
	if name == "" || len(name) > 255 {
		return nil, fault("MissingParameter", "The request must contain the parameter KeyName")
	}
	kind := q.text("KeyType")
	if kind != "ed25519" {
		return nil, fault("InvalidParameterValue", "key type %q: only ed25519 is made here", kind)
	}
	if err := dryRun(q); err != nil {
		return nil, err
	}
	for _, k := range r.keys {
		if k.name == name {
			return nil, fault("InvalidKeyPair.Duplicate", "The keypair already exists")
		}
	}
	tags, err := q.tagged("key-pair")
	if err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	login, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	k := &ec2Key{id: newID("key"), name: name, kind: kind, fingerprint: ssh.FingerprintSHA256(login)[7:] + "=", tags: tags, created: time.Now(), unseen: e.o.Invisible}
	r.keys = append(r.keys, k)
	return &ec2Response{KeyName: name, KeyID: k.id, Fingerprint: k.fingerprint, KeyMaterial: string(pem.EncodeToMemory(block)), Tags: xmlTags(tags)}, nil
}

// unseen counts a list that something new is missing from.
func unseen(left *int) bool {
	if *left <= 0 {
		return false
	}
	*left--
	return true
}

func (e *EC2) describeKeyPairs(r *ec2Region, q query) (*ec2Response, error) {
	x := &ec2Response{}
	names, ids := q.list("KeyName"), q.list("KeyPairId")
	for _, k := range r.keys {
		if unseen(&k.unseen) {
			continue
		}
		ok, err := q.filters(map[string]func() []string{
			"key-name": one(k.name), "key-pair-id": one(k.id), "fingerprint": one(k.fingerprint), "tag:": tagPairs(k.tags), "tag-key": tagKeys(k.tags),
		})
		if err != nil {
			return nil, err
		}
		if !ok || len(names) > 0 && !slices.Contains(names, k.name) || len(ids) > 0 && !slices.Contains(ids, k.id) {
			continue
		}
		x.Keys = append(x.Keys, xmlKey{k.id, k.name, k.fingerprint, k.kind, k.created.UTC().Format(time.RFC3339), xmlTags(k.tags)})
	}
	if asked := append(names, ids...); len(x.Keys) < len(asked) {
		return nil, fault("InvalidKeyPair.NotFound", "The key pair '%s' does not exist", asked[0])
	}
	return x, nil
}

func (e *EC2) deleteKeyPair(r *ec2Region, q query) (*ec2Response, error) {
	name, id := q.text("KeyName"), q.text("KeyPairId")
	if err := dryRun(q); err != nil {
		return nil, err
	}
	x := &ec2Response{Return: ptrTo(true)}
	r.keys = slices.DeleteFunc(r.keys, func(k *ec2Key) bool {
		hit := name != "" && k.name == name || id != "" && k.id == id
		if hit {
			x.KeyID = k.id
		}
		return hit
	})
	return x, nil
}

func ptrTo[T any](v T) *T { return &v }

func (e *EC2) createTags(r *ec2Region, q query) (*ec2Response, error) {
	tags := map[string]string{}
	if err := q.tags("Tag", tags); err != nil {
		return nil, err
	}
	if err := dryRun(q); err != nil {
		return nil, err
	}
	var targets []map[string]string
	for _, id := range q.list("ResourceId") {
		found := false
		for _, i := range r.instances {
			if i.ID == id && i.unseen == 0 {
				targets, found = append(targets, i.Tags), true
			}
		}
		for _, g := range r.groups {
			if g.id == id && g.unseen == 0 {
				targets, found = append(targets, g.tags), true
			}
		}
		for _, k := range r.keys {
			if k.id == id && k.unseen == 0 {
				targets, found = append(targets, k.tags), true
			}
		}
		if !found {
			return nil, fault("InvalidID", "The ID '%s' is not valid", id)
		}
	}
	for _, t := range targets {
		maps.Copy(t, tags)
	}
	return &ec2Response{Return: ptrTo(true)}, nil
}
