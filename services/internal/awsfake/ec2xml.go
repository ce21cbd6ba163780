package awsfake

import (
	"bytes"
	"encoding/xml"
	"maps"
	"slices"
	"time"
)

// ec2Response has the fields of every answer; each action fills its own.
type ec2Response struct {
	action string

	RequestID     string           `xml:"requestId"`
	Return        *bool            `xml:"return,omitempty"`
	Regions       []xmlRegion      `xml:"regionInfo>item,omitempty"`
	VPCs          []xmlVPC         `xml:"vpcSet>item,omitempty"`
	Images        []xmlImage       `xml:"imagesSet>item,omitempty"`
	Keys          []xmlKey         `xml:"keySet>item,omitempty"`
	Groups        []xmlGroup       `xml:"securityGroupInfo>item,omitempty"`
	Reservations  []xmlReservation `xml:"reservationSet>item,omitempty"`
	ReservationID string           `xml:"reservationId,omitempty"`
	OwnerID       string           `xml:"ownerId,omitempty"`
	Launched      *xmlLaunched     `xml:"instancesSet,omitempty"`
	KeyName       string           `xml:"keyName,omitempty"`
	KeyID         string           `xml:"keyPairId,omitempty"`
	Fingerprint   string           `xml:"keyFingerprint,omitempty"`
	KeyMaterial   string           `xml:"keyMaterial,omitempty"`
	GroupID       string           `xml:"groupId,omitempty"`
	Tags          []xmlTag         `xml:"tagSet>item,omitempty"`
	NextToken     string           `xml:"nextToken,omitempty"`
}

// xmlLaunched is the set of instances that were started, or that changed.
type xmlLaunched struct {
	Instances []xmlInstance
	Changes   []xmlChange
}

// MarshalXML writes both kinds as items.
func (l *xmlLaunched) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	items := struct {
		Items []any `xml:"item"`
	}{}
	for _, i := range l.Instances {
		items.Items = append(items.Items, i)
	}
	for _, c := range l.Changes {
		items.Items = append(items.Items, c)
	}
	return e.EncodeElement(items, start)
}

type xmlRegion struct {
	Name     string `xml:"regionName"`
	Endpoint string `xml:"regionEndpoint"`
	OptIn    string `xml:"optInStatus"`
}

type xmlVPC struct {
	ID      string `xml:"vpcId"`
	State   string `xml:"state"`
	CIDR    string `xml:"cidrBlock"`
	Tenancy string `xml:"instanceTenancy"`
	Default bool   `xml:"isDefault"`
	Owner   string `xml:"ownerId"`
}

type xmlImage struct {
	ID             string `xml:"imageId"`
	State          string `xml:"imageState"`
	Architecture   string `xml:"architecture"`
	Type           string `xml:"imageType"`
	RootDevice     string `xml:"rootDeviceName"`
	RootDeviceType string `xml:"rootDeviceType"`
	Virtualization string `xml:"virtualizationType"`
	Name           string `xml:"name"`
}

type xmlTag struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func xmlTags(tags map[string]string) []xmlTag {
	var all []xmlTag
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		all = append(all, xmlTag{k, tags[k]})
	}
	return all
}

type xmlKey struct {
	ID          string   `xml:"keyPairId"`
	Name        string   `xml:"keyName"`
	Fingerprint string   `xml:"keyFingerprint"`
	Type        string   `xml:"keyType"`
	Created     string   `xml:"createTime"`
	Tags        []xmlTag `xml:"tagSet>item"`
}

type xmlGroup struct {
	Owner       string          `xml:"ownerId"`
	ID          string          `xml:"groupId"`
	Name        string          `xml:"groupName"`
	Description string          `xml:"groupDescription"`
	VPC         string          `xml:"vpcId"`
	Ingress     []xmlPermission `xml:"ipPermissions>item"`
	Tags        []xmlTag        `xml:"tagSet>item"`
}

type xmlPermission struct {
	Protocol string         `xml:"ipProtocol"`
	From     *int           `xml:"fromPort,omitempty"`
	To       *int           `xml:"toPort,omitempty"`
	Groups   []xmlPermGroup `xml:"groups>item"`
	Ranges   []xmlRange     `xml:"ipRanges>item"`
	Ranges6  []xmlRange6    `xml:"ipv6Ranges>item"`
}

type xmlPermGroup struct {
	User string `xml:"userId"`
	ID   string `xml:"groupId"`
	Text string `xml:"description,omitempty"`
}

type xmlRange struct {
	CIDR string `xml:"cidrIp"`
	Text string `xml:"description,omitempty"`
}

type xmlRange6 struct {
	CIDR string `xml:"cidrIpv6"`
	Text string `xml:"description,omitempty"`
}

// xmlGroupOf puts the sources of one protocol and port range together, as EC2
// does.
func xmlGroupOf(g *ec2Group) xmlGroup {
	x := xmlGroup{Owner: "123456789012", ID: g.id, Name: g.name, Description: g.description, VPC: g.vpc, Tags: xmlTags(g.tags)}
	for _, r := range g.rules {
		at := slices.IndexFunc(x.Ingress, func(p xmlPermission) bool {
			return p.Protocol == r.protocol && (p.From == nil || *p.From == r.from && *p.To == r.to)
		})
		if at < 0 {
			p := xmlPermission{Protocol: r.protocol}
			if r.protocol != "-1" {
				p.From, p.To = ptrTo(r.from), ptrTo(r.to)
			}
			x.Ingress = append(x.Ingress, p)
			at = len(x.Ingress) - 1
		}
		p := &x.Ingress[at]
		switch {
		case len(r.source) > 3 && r.source[:3] == "sg-":
			p.Groups = append(p.Groups, xmlPermGroup{"123456789012", r.source, r.text})
		case slices.Contains([]byte(r.source), ':'):
			p.Ranges6 = append(p.Ranges6, xmlRange6{r.source, r.text})
		default:
			p.Ranges = append(p.Ranges, xmlRange{r.source, r.text})
		}
	}
	return x
}

type xmlReservation struct {
	ID        string        `xml:"reservationId"`
	Owner     string        `xml:"ownerId"`
	Instances []xmlInstance `xml:"instancesSet>item"`
}

type xmlState struct {
	Code int    `xml:"code"`
	Name string `xml:"name"`
}

func xmlStateOf(name string) xmlState {
	codes := map[string]int{"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
	return xmlState{codes[name], name}
}

type xmlChange struct {
	ID      string   `xml:"instanceId"`
	Current xmlState `xml:"currentState"`
	Before  xmlState `xml:"previousState"`
}

type xmlGroupRef struct {
	ID   string `xml:"groupId"`
	Name string `xml:"groupName,omitempty"`
}

type xmlInstance struct {
	ID          string        `xml:"instanceId"`
	Image       string        `xml:"imageId"`
	State       xmlState      `xml:"instanceState"`
	PrivateName string        `xml:"privateDnsName"`
	PublicName  string        `xml:"dnsName"`
	Reason      string        `xml:"reason"`
	Key         string        `xml:"keyName,omitempty"`
	LaunchIndex int           `xml:"amiLaunchIndex"`
	Type        string        `xml:"instanceType"`
	Launched    string        `xml:"launchTime"`
	Zone        string        `xml:"placement>availabilityZone"`
	Tenancy     string        `xml:"placement>tenancy"`
	Private     string        `xml:"privateIpAddress,omitempty"`
	Public      string        `xml:"ipAddress,omitempty"`
	Groups      []xmlGroupRef `xml:"groupSet>item"`
	Token       string        `xml:"clientToken,omitempty"`
	Tags        []xmlTag      `xml:"tagSet>item"`
	HTTPTokens  string        `xml:"metadataOptions>httpTokens"`
}

func xmlInstances(all []*ec2Instance) []xmlInstance {
	var xs []xmlInstance
	for _, i := range all {
		x := xmlInstance{
			ID: i.ID, Image: i.Image, State: xmlStateOf(i.State), Reason: i.reason, Key: i.Key, LaunchIndex: i.LaunchIndex, Type: i.Type,
			Launched: i.Launched.Format(time.RFC3339), Zone: i.Zone, Tenancy: "default", Token: i.Token, Tags: xmlTags(i.Tags), HTTPTokens: i.HTTPTokens,
		}
		if i.State != "terminated" {
			x.Private = i.Private.String()
			for _, g := range i.Groups {
				x.Groups = append(x.Groups, xmlGroupRef{ID: g})
			}
			// A pending instance has no public address yet.
			if i.State == "running" {
				x.Public = i.Public.String()
			}
		}
		xs = append(xs, x)
	}
	return xs
}

const ec2Namespace = "http://ec2.amazonaws.com/doc/" + ec2Version + "/"

func ec2Answer(x *ec2Response, request string) []byte {
	x.RequestID = request
	start := xml.StartElement{
		Name: xml.Name{Local: x.action + "Response"}, Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: ec2Namespace}},
	}
	return encode(x, &start)
}

func ec2Error(f *failure, request string) []byte {
	return encode(struct {
		XMLName xml.Name `xml:"Response"`
		Code    string   `xml:"Errors>Error>Code"`
		Message string   `xml:"Errors>Error>Message"`
		Request string   `xml:"RequestID"`
	}{Code: f.code, Message: f.message, Request: request}, nil)
}

func encode(v any, start *xml.StartElement) []byte {
	b := bytes.NewBufferString(xml.Header)
	e := xml.NewEncoder(b)
	var err error
	if start == nil {
		err = e.Encode(v)
	} else {
		err = e.EncodeElement(v, *start)
	}
	if err != nil {
		return []byte(xml.Header + "<Response><Errors><Error><Code>InternalError</Code><Message>encoding failed</Message></Error></Errors></Response>")
	}
	return b.Bytes()
}
