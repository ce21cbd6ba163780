package awsfake

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
)

func client(t *testing.T, o EC2Options, region string, a Account) (*EC2, *ec2.Client) {
	t.Helper()
	fake := NewEC2(DefaultAccount(), o)
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	return fake, ec2.New(ec2.Options{
		BaseEndpoint: aws.String(server.URL), Region: region, Retryer: retry.AddWithMaxAttempts(retry.NewStandard(), 1),
		Credentials: credentials.NewStaticCredentialsProvider(a.AccessKey, a.SecretKey, ""),
	})
}

func wantCode(t *testing.T, what string, err error, want string) {
	t.Helper()
	var api smithy.APIError
	got := ""
	if errors.As(err, &api) {
		got = api.ErrorCode()
	}
	if got != want {
		t.Errorf("%s: %q (%v), want %q", what, got, err, want)
	}
}

// The refusals that clients of EC2 have to live with, as the SDK reads them.
func TestEC2Refuses(t *testing.T) {
	ctx := t.Context()
	fake, c := client(t, EC2Options{}, "us-west-2", DefaultAccount())
	group := &ec2.CreateSecurityGroupInput{GroupName: aws.String("g"), Description: aws.String("x")}
	dry := *group
	dry.DryRun = aws.Bool(true)
	_, err := c.CreateSecurityGroup(ctx, &dry)
	wantCode(t, "dry run", err, "DryRunOperation")
	made, err := c.CreateSecurityGroup(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateSecurityGroup(ctx, group)
	wantCode(t, "the same group", err, "InvalidGroup.Duplicate")

	rule := []types.IpPermission{{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(1), ToPort: aws.Int32(2), IpRanges: []types.IpRange{{CidrIp: aws.String("192.0.2.1/32")}}}}
	authorize := &ec2.AuthorizeSecurityGroupIngressInput{GroupId: made.GroupId, IpPermissions: rule}
	if _, err = c.AuthorizeSecurityGroupIngress(ctx, authorize); err != nil {
		t.Fatal(err)
	}
	_, err = c.AuthorizeSecurityGroupIngress(ctx, authorize)
	wantCode(t, "the same rule", err, "InvalidPermission.Duplicate")
	malformed := *authorize
	malformed.IpPermissions = []types.IpPermission{{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(1), ToPort: aws.Int32(2), IpRanges: []types.IpRange{{CidrIp: aws.String("192.0.2.1/24")}}}}
	_, err = c.AuthorizeSecurityGroupIngress(ctx, &malformed)
	wantCode(t, "a network with host bits", err, "InvalidParameterValue")

	other, err := c.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{GroupName: aws.String("h"), Description: aws.String("x")})
	if err != nil {
		t.Fatal(err)
	}
	naming := []types.IpPermission{{IpProtocol: aws.String("-1"), UserIdGroupPairs: []types.UserIdGroupPair{{GroupId: made.GroupId}}}}
	if _, err = c.AuthorizeSecurityGroupIngress(ctx, &ec2.AuthorizeSecurityGroupIngressInput{GroupId: other.GroupId, IpPermissions: naming}); err != nil {
		t.Fatal(err)
	}
	_, err = c.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: made.GroupId})
	wantCode(t, "a group that another names", err, "DependencyViolation")
	if _, err = c.RevokeSecurityGroupIngress(ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: other.GroupId, IpPermissions: naming}); err != nil {
		t.Fatal(err)
	}
	_, err = c.RevokeSecurityGroupIngress(ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: other.GroupId, IpPermissions: naming})
	wantCode(t, "a rule that is not there", err, "InvalidPermission.NotFound")

	run := &ec2.RunInstancesInput{
		ImageId: aws.String(FakeImage), InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(2), ClientToken: aws.String("once"),
		SecurityGroupIds: []string{*made.GroupId}, UserData: aws.String(base64.StdEncoding.EncodeToString([]byte("#!"))),
	}
	first, err := c.RunInstances(ctx, run)
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.RunInstances(ctx, run)
	if err != nil || *first.Instances[1].InstanceId != *second.Instances[1].InstanceId || fake.Launched() != 2 {
		t.Errorf("the same token: %v, %d instances", err, fake.Launched())
	}
	different := *run
	different.InstanceType = "t3.large"
	_, err = c.RunInstances(ctx, &different)
	wantCode(t, "the same token for something else", err, "IdempotentParameterMismatch")
	_, err = c.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: made.GroupId})
	wantCode(t, "a group with instances", err, "DependencyViolation")
	unknown := *run
	unknown.ImageId = aws.String("ami-00000000")
	_, err = c.RunInstances(ctx, &unknown)
	wantCode(t, "an image that is not there", err, "InvalidAMIID.NotFound")

	_, err = c.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{"i-0"}})
	wantCode(t, "an instance that is not there", err, "InvalidInstanceID.NotFound")
	_, err = c.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("colour"), Values: []string{"red"}}}})
	wantCode(t, "a filter that is not there", err, "InvalidParameterValue")
	ended, err := c.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{*first.Instances[0].InstanceId, *first.Instances[1].InstanceId}})
	if err != nil || len(ended.TerminatingInstances) != 2 {
		t.Errorf("%+v, %v", ended, err)
	}
	for _, g := range []*string{made.GroupId, other.GroupId} {
		if _, err = c.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: g}); err != nil {
			t.Error(err)
		}
	}
	_, err = c.DeleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: made.GroupId})
	wantCode(t, "a group that is gone", err, "InvalidGroup.NotFound")

	key := &ec2.CreateKeyPairInput{KeyName: aws.String("k"), KeyType: types.KeyTypeEd25519}
	if _, err = c.CreateKeyPair(ctx, key); err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateKeyPair(ctx, key)
	wantCode(t, "the same key pair", err, "InvalidKeyPair.Duplicate")
	for range 2 {
		if _, err = c.DeleteKeyPair(ctx, &ec2.DeleteKeyPairInput{KeyName: aws.String("k")}); err != nil {
			t.Error(err)
		}
	}
	_, err = c.DescribeKeyPairs(ctx, &ec2.DescribeKeyPairsInput{KeyNames: []string{"k"}})
	wantCode(t, "a key pair that is gone", err, "InvalidKeyPair.NotFound")
	fake.Throttle(1)
	_, err = c.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{})
	wantCode(t, "throttled", err, "RequestLimitExceeded")
	if left := fake.Left(); len(left) != 0 {
		t.Error(left)
	}

	a := DefaultAccount()
	a.SecretKey = "wrong"
	_, c = client(t, EC2Options{}, "us-west-2", a)
	_, err = c.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{})
	wantCode(t, "a wrong key", err, "AuthFailure")
	_, c = client(t, EC2Options{}, "mars-north-1", DefaultAccount())
	_, err = c.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{})
	wantCode(t, "a region that is not there", err, "AuthFailure")
}

func TestEC2Pages(t *testing.T) {
	_, c := client(t, EC2Options{Page: 2}, "eu-west-1", DefaultAccount())
	for _, token := range []string{"a", "b", "c"} {
		if _, err := c.RunInstances(t.Context(), &ec2.RunInstancesInput{
			ImageId: aws.String(FakeImage), InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1), ClientToken: aws.String(token),
		}); err != nil {
			t.Fatal(err)
		}
	}
	pages, instances := 0, map[string]bool{}
	for p := ec2.NewDescribeInstancesPaginator(c, &ec2.DescribeInstancesInput{}); p.HasMorePages(); pages++ {
		out, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range out.Reservations {
			for _, i := range r.Instances {
				instances[*i.InstanceId] = true
			}
		}
	}
	if pages != 2 || len(instances) != 3 {
		t.Errorf("%d instances on %d pages", len(instances), pages)
	}
}

// A metadata service of version 2 answers nobody without a token.
func TestIMDS(t *testing.T) {
	fake, c := client(t, EC2Options{}, "eu-west-1", DefaultAccount())
	out, err := c.RunInstances(t.Context(), &ec2.RunInstancesInput{ImageId: aws.String(FakeImage), InstanceType: "t3.micro", MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
	if err != nil {
		t.Fatal(err)
	}
	h := fake.IMDS(*out.Instances[0].InstanceId)
	ask := func(method, path, header, value string) (int, string) {
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set(header, value)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if code, _ := ask("GET", "/latest/meta-data/placement/region", "X", ""); code != http.StatusUnauthorized {
		t.Errorf("without a token: %d", code)
	}
	_, token := ask("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if code, text := ask("GET", "/latest/meta-data/placement/region", "X-aws-ec2-metadata-token", token); code != http.StatusOK || text != "eu-west-1" {
		t.Errorf("%d %q", code, text)
	}
	if code, _ := ask("GET", "/latest/meta-data/nothing", "X-aws-ec2-metadata-token", token); code != http.StatusNotFound {
		t.Errorf("%d", code)
	}
}

func FuzzEC2Query(f *testing.F) {
	f.Add("Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=tag%3Ax&Filter.1.Value.1=a*")
	f.Add("Action=AuthorizeSecurityGroupIngress&GroupId=sg-1&IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=1&IpPermissions.1.ToPort=2&IpPermissions.1.IpRanges.1.CidrIp=1.2.3.4%2F32")
	f.Add("Action=RunInstances&ImageId=" + FakeImage + "&MinCount=1&MaxCount=3&InstanceType=t3.micro&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=k")
	f.Add("a=1&a=2&%zz")
	f.Fuzz(func(t *testing.T, body string) {
		q, err := parseQuery(body)
		if err != nil {
			return
		}
		// Whatever was parsed, every action answers or refuses it.
		e := NewEC2(DefaultAccount(), EC2Options{})
		r := e.regions["us-west-2"]
		r.groups = append(r.groups, &ec2Group{id: "sg-1", name: "g", tags: map[string]string{"x": "abc"}})
		for name, do := range map[string]func(*ec2Region, query) (*ec2Response, error){
			"RunInstances": e.runInstances, "DescribeInstances": e.describeInstances, "CreateSecurityGroup": e.createGroup, "DescribeSecurityGroups": e.describeGroups,
			"AuthorizeSecurityGroupIngress": e.authorize, "RevokeSecurityGroupIngress": e.revoke, "CreateKeyPair": e.createKeyPair, "DescribeKeyPairs": e.describeKeyPairs,
			"CreateTags": e.createTags, "DescribeImages": e.describeImages, "DescribeVpcs": e.describeVPCs, "TerminateInstances": e.terminateInstances, "DeleteSecurityGroup": e.deleteGroup,
		} {
			x, err := do(r, q)
			if err != nil {
				var f *failure
				if !errors.As(err, &f) || f.code == "" {
					t.Fatalf("%s: %v", name, err)
				}
				continue
			}
			x.action = name
			if answer := string(ec2Answer(x, "r")); !strings.Contains(answer, "<"+name+"Response") || strings.Contains(answer, "InternalError") {
				t.Fatalf("%s: %s", name, answer)
			}
		}
	})
}
